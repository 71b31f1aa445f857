"""What routes ask for, as annotated aliases.

Dependencies are `async`, because FastAPI runs each of the others on a thread of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request

from lookalike.bootstrap import Services
from lookalike.errors import InvalidMetadataError, InvalidParameterError
from lookalike.services.duplicates.service import DuplicateService
from lookalike.services.indexing import IndexingService
from lookalike.services.pictures import PictureService
from lookalike.services.search import MAX_K, SearchService
from lookalike.services.url_search import UrlSearchService

COLLECTION_PATTERN = "^[a-z][a-z0-9_]{0,62}$"
ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$"

FILTER_HELP = (
    'JSON object over metadata: {"label": "cat"}, {"price": {"gte": 10, "lt": 50}}, '
    '{"tag": {"in": ["a", "b"]}}; all conditions must hold'
)


async def services(request: Request) -> Services:
    """The parts, made when the service started."""
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


async def _duplicates(services: ServicesDep) -> DuplicateService:
    return services.duplicates


async def _search(services: ServicesDep) -> SearchService:
    return services.search


async def _url_search(services: ServicesDep) -> UrlSearchService:
    return services.url_search


async def _indexing(services: ServicesDep) -> IndexingService:
    return services.indexing


async def _pictures(services: ServicesDep) -> PictureService:
    return services.pictures


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


async def no_query_parameters(request: Request) -> None:
    """Refuses parameters in the address of a form call, which would be ignored in silence."""
    if request.query_params:
        raise InvalidParameterError(
            f"{sorted(request.query_params)} came in the address; this call takes form fields: "
            "curl -F file=@photo.jpg -F k=5 ..."
        )


def known_fields(*names: str) -> Any:
    """Dependency that refuses form fields nobody reads."""

    async def check(request: Request) -> None:
        _refuse_others((await request.form()).keys(), names)

    return Depends(check)


def known_query(*names: str) -> Any:
    """Dependency that refuses parameters in the address that nobody reads."""

    async def check(request: Request) -> None:
        _refuse_others(request.query_params.keys(), names)

    return Depends(check)


def _refuse_others(sent: Iterable[str], names: tuple[str, ...]) -> None:
    if unknown := sorted(set(sent) - set(names)):
        raise InvalidParameterError(
            f"{', '.join(unknown)}: no such field; this call takes {', '.join(names)}"
        )


DuplicatesDep = Annotated[DuplicateService, Depends(_duplicates)]
SearchDep = Annotated[SearchService, Depends(_search)]
UrlSearchDep = Annotated[UrlSearchService, Depends(_url_search)]
IndexingDep = Annotated[IndexingService, Depends(_indexing)]
PicturesDep = Annotated[PictureService, Depends(_pictures)]

CollectionQuery = Annotated[
    str, Query(description="Collection", pattern=COLLECTION_PATTERN, max_length=63)
]
ImageId = Annotated[str, Path(description="The picture's id", pattern=ID_PATTERN, max_length=128)]
K = Annotated[int, Query(ge=1, le=MAX_K, description="How many matches")]
MinScore = Annotated[
    float | None, Query(ge=-1, le=1, description="Leave out matches below this cosine")
]
FilterQuery = Annotated[str | None, Query(alias="filter", description=FILTER_HELP)]
GroupBy = Annotated[
    str | None,
    Query(min_length=1, max_length=256, description="Only the best of each value of this field"),
]
