"""The parts of the running application, and parameters that several routes share.

Parameters are annotated aliases. Dependencies are `async`, because FastAPI runs each of the others
on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import iscoroutinefunction, signature
from typing import TYPE_CHECKING, Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Path, Query, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from lookalike.bootstrap import Services
from lookalike.errors import InvalidParameterError
from lookalike.store.filters import LISTS, MAX_CONDITIONS, MAX_ITEMS, ORDERINGS

if TYPE_CHECKING:
    from lookalike.api.addresses import Proxies
    from lookalike.api.admission import Admission, Bodies
    from lookalike.api.links import Links
    from lookalike.api.monitoring import Metrics
    from lookalike.api.security import Keys
    from lookalike.api.uploads import UploadLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running application."""

    services: Services  # the use cases
    keys: Keys  # the keys in force
    links: Links  # how links in answers are made
    metrics: Metrics  # where calls are counted
    proxies: Proxies  # whose word on a client's address is believed
    admission: Admission  # places for requests that wait for the network
    bodies: Bodies  # bodies that are coming, but for archives
    archive_admission: Admission  # places for archives that are being sent
    archives: Bodies  # those archives
    search_limits: UploadLimits  # limits on a body of JSON
    query_limits: UploadLimits  # limits on a body with the pictures of a query
    batch_limits: UploadLimits  # limits on a body with many queries
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
    'JSON object over metadata, see the schema Filter: {"label": "cat"}, '
    '{"price": {"gte": 10, "lt": 50}}, {"or": [{"tag": {"in": ["a", "b"]}}, '
    '{"not": {"size.w": {"exists": true}}}]}; all conditions must hold'
)
FILTER_REFERENCE: dict[str, Any] = {"$ref": "#/components/schemas/Filter"}
_FILTERS: dict[str, Any] = {
    "type": "array",
    "items": FILTER_REFERENCE,
    "minItems": 1,
    "maxItems": MAX_CONDITIONS,
}
_ORDERED: dict[str, Any] = {"type": ["number", "string"]}
_SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean", "null"]}
_SCALARS: dict[str, Any] = {"type": "array", "items": _SCALAR, "maxItems": MAX_ITEMS}
_OPERANDS = {
    **dict.fromkeys(("eq", "ne", "contains"), _SCALAR),
    **dict.fromkeys(ORDERINGS, _ORDERED),
    **dict.fromkeys(LISTS, _SCALARS),
    "exists": {"type": "boolean"},
}

FILTER_SCHEMAS: dict[str, dict[str, Any]] = {
    "Filter": {
        "title": "Filter",
        "description": "Conditions on metadata fields, which must all hold. Other keys than `and`, "
        "`or` and `not` name a field, e.g. `label` or `size.w`, with what it is compared with.",
        "type": "object",
        "properties": {"and": _FILTERS, "or": _FILTERS, "not": FILTER_REFERENCE},
        # Filters too: where types come from a schema, other keys include these three.
        "additionalProperties": {
            "anyOf": [
                _SCALAR,
                {"$ref": "#/components/schemas/FieldCondition"},
                _FILTERS,
                FILTER_REFERENCE,
            ]
        },
        "examples": [{"label": "cat", "or": [{"price": {"lt": 50}}, {"tags": "sale"}]}],
    },
    "FieldCondition": {
        "title": "FieldCondition",
        "description": "What a field must meet, all of it; of a list, one item.",
        "type": "object",
        "properties": _OPERANDS,
        "additionalProperties": False,
        "minProperties": 1,
        "examples": [{"gte": 10, "lt": 50}],
    },
}
"""The filter language for OpenAPI; filters in forms and queries are these as JSON."""


class Route(APIRoute):
    """A route whose answer becomes JSON on the thread that made it; FastAPI takes another one."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        status = options.get("status_code") or 200

        @wraps(endpoint)
        def answer(**values: Any) -> Any:
            made = endpoint(**values)
            if not isinstance(made, BaseModel):
                return made
            return Response(made.model_dump_json(), status, media_type="application/json")

        sets_headers = "response" in signature(endpoint).parameters
        is_plain = not (sets_headers or iscoroutinefunction(endpoint))
        super().__init__(path, answer if is_plain else endpoint, **options)


async def _parts(request: Request) -> Parts:
    return parts_of(request)


PartsDep = Annotated[Parts, Depends(_parts)]

CollectionQuery = Annotated[
    str, Query(description="Collection", pattern=COLLECTION_PATTERN, max_length=63)
]
ImageId = Annotated[str, Path(description="The picture's id", pattern=ID_PATTERN, max_length=128)]
FilterQuery = Annotated[str | None, Query(alias="filter", description=FILTER_HELP)]


async def known_query(request: Request) -> None:
    """Dependency of every call: refuses query parameters that it would ignore.

    Not of health: monitors add what keeps caches away. And not of pages such as /docs.
    """
    route: APIRoute = request.scope["route"]
    is_health = route.path.startswith("/health/")
    if not request.query_params or is_health or not route.include_in_schema:
        return
    names = list(_query_names(route.dependant))
    if not names and route.body_field is not None:
        sent = ", ".join(sorted(request.query_params))
        raise InvalidParameterError(
            f"{sent}: this call takes nothing in its address; put it into the body, as GET /docs "
            "shows"
        )
    refuse_others(request.query_params, names, what="parameter")


def _query_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def known_fields(*names: str) -> Any:
    """Dependency that refuses form fields with other names."""

    async def check(request: Request) -> None:
        refuse_others(await request.form(), names)

    return Depends(check)


def refuse_others(sent: Iterable[str], names: Sequence[str], *, what: str = "field") -> None:
    """Refuses parameters with other names; says which of the known ones is nearest."""
    if unknown := sorted(set(sent) - set(names)):
        raise InvalidParameterError(unknown_name(unknown[0], names, what=what))


def unknown_name(name: str, names: Sequence[str], *, what: str) -> str:
    """Says that there is no such parameter or field, and which known one may be meant."""
    nearest = get_close_matches(name, names, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else "."
    known = ", ".join(names) if names else "none"
    return f"{ascii(name)[1:-1]}: no such {what}{hint} This call takes {known}"
