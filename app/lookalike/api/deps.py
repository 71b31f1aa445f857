"""The parts of the running application, and parameters that several routes share.

Parameters are annotated aliases. Dependencies are `async`, because FastAPI runs each of the others
on a thread of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Form, Path, Query, Request
from pydantic import Field

from lookalike.bootstrap import Services
from lookalike.errors import InvalidMetadataError, InvalidParameterError
from lookalike.records import LIMITS, Effort
from lookalike.services.search import MAX_K

if TYPE_CHECKING:
    from lookalike.api.monitoring import Metrics
    from lookalike.api.security import Keys
    from lookalike.api.uploads import Admission, UploadLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running application."""

    services: Services  # the use cases
    keys: Keys  # the keys in force
    metrics: Metrics  # where calls are counted
    admission: Admission  # places for requests that wait for the network
    archive_admission: Admission  # places for archives that are being sent
    search_limits: UploadLimits  # limits on a body with one picture, and on a body of JSON
    index_limits: UploadLimits  # limits on a body with many pictures
    archive_limits: UploadLimits  # limits on a body with an archive
    canary_threads: CapacityLimiter  # threads for `GET /health/ready`
    metrics_threads: CapacityLimiter  # threads for `GET /metrics`


def parts_of(request: Request) -> Parts:
    """Returns the parts of the application that received a request."""
    parts: Parts = request.app.state.parts
    return parts


COLLECTION_PATTERN = "^[a-z][a-z0-9_]{0,62}$"
ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$"

FILTER_HELP = (
    'JSON object over metadata: {"label": "cat"}, {"price": {"gte": 10, "lt": 50}}, '
    '{"tag": {"in": ["a", "b"]}}; all conditions must hold'
)


async def _parts(request: Request) -> Parts:
    return parts_of(request)


PartsDep = Annotated[Parts, Depends(_parts)]

CollectionQuery = Annotated[
    str, Query(description="Collection", pattern=COLLECTION_PATTERN, max_length=63)
]
ImageId = Annotated[str, Path(description="The picture's id", pattern=ID_PATTERN, max_length=128)]
FilterQuery = Annotated[str | None, Query(alias="filter", description=FILTER_HELP)]
GroupBy = Annotated[
    str | None,
    Query(min_length=1, max_length=256, description="Only the best of each value of this field"),
]

# What follows is the same as a form field, as a query parameter, and in a body of JSON.

PARAMETERS = ("nprobe", "ef_search", "k_factor", "exact")
K = Annotated[int, Field(ge=1, le=MAX_K, description="How many matches")]
MinScore = Annotated[float, Field(ge=-1, le=1, description="Leave out matches below this cosine")]
_NPROBE = "Of an IVF index: lists that are visited; the index's own if not given"
_EF_SEARCH = "Of an HNSW index: candidates kept on the way; the index's own if not given"
_K_FACTOR = "Of a compressed index: candidates scored exactly for each match; its own if not given"
Nprobe = Annotated[int | None, Field(ge=1, le=LIMITS["nprobe"], description=_NPROBE)]
EfSearch = Annotated[int | None, Field(ge=1, le=LIMITS["ef_search"], description=_EF_SEARCH)]
KFactor = Annotated[int | None, Field(ge=1, le=LIMITS["k_factor"], description=_K_FACTOR)]
Exact = Annotated[bool, Field(description="Score every picture, whatever the index")]


async def _form_effort(
    nprobe: Annotated[Nprobe, Form()] = None,
    ef_search: Annotated[EfSearch, Form()] = None,
    k_factor: Annotated[KFactor, Form()] = None,
    exact: Annotated[Exact, Form()] = False,
) -> Effort:
    return Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact)


async def _query_effort(
    nprobe: Nprobe = None,
    ef_search: EfSearch = None,
    k_factor: KFactor = None,
    exact: Exact = False,
) -> Effort:
    return Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact)


FormEffort = Annotated[Effort, Depends(_form_effort)]
QueryEffort = Annotated[Effort, Depends(_query_effort)]


def parse_metadata(text: str, count: int) -> list[dict[str, Any] | None]:
    """Reads the `metadata` parameter: one object for all pictures, or a list with one for each."""
    if not text.strip():
        return [None] * count
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidMetadataError(
            f'metadata is not valid JSON ({exc}); send an object such as {{"label": "cat"}}'
        ) from exc
    if isinstance(value, list):
        if len(value) != count:
            raise InvalidMetadataError(
                f"metadata is a list of {len(value)} for {count} files; send one for each, or one "
                "object for all"
            )
        return value
    return [value] * count


def refuse_query(request: Request, instead: str) -> None:
    """Refuses query parameters on a call that would ignore them; `instead` says what it takes."""
    if request.query_params:
        raise InvalidParameterError(f"{sorted(request.query_params)} came in {instead}")


def known_fields(*names: str) -> Any:
    """Dependency that refuses form fields with other names, and query parameters."""

    async def check(request: Request) -> None:
        refuse_query(
            request, "the address; this call takes form fields: curl -F file=@photo.jpg -F k=5 ..."
        )
        refuse_others(await request.form(), names)

    return Depends(check)


def refuse_others(sent: Iterable[str], names: Iterable[str]) -> None:
    """Refuses parameters with other names."""
    if unknown := sorted(set(sent) - set(names)):
        raise InvalidParameterError(
            f"{', '.join(unknown)}: no such field; this call takes {', '.join(names)}"
        )
