"""POST /search, POST /search/url and GET /images/{image_id}/similar."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, UploadFile
from pydantic import ConfigDict, Field, WithJsonSchema

from lookalike.api.deps import (
    COLLECTION_PATTERN,
    FILTER_HELP,
    FILTER_REFERENCE,
    CollectionQuery,
    FilterQuery,
    ImageId,
    Parts,
    PartsDep,
    known_fields,
)
from lookalike.api.errors import responses
from lookalike.api.security import READ
from lookalike.api.uploads import JsonRoute, UploadRoute
from lookalike.errors import RequestTooLargeError
from lookalike.records import DEFAULT_COLLECTION, LIMITS, Effort
from lookalike.schemas import Schema, SearchOut
from lookalike.services.search import MAX_K, SearchOptions, SearchResult
from lookalike.store.filters import Filter, parse_filter

# The same as form fields, as query parameters, and in a body of JSON.
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


class UrlSearchIn(Schema):
    """A search by the picture at an address."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(min_length=1, max_length=2048, examples=["https://example.com/photo.jpg"])
    """Where the picture is; http or https"""
    k: K = 10
    min_score: MinScore = -1.0
    filter: Annotated[dict[str, Any], WithJsonSchema(FILTER_REFERENCE)] | None = None
    """Conditions on metadata, e.g. {"label": "cat"}"""
    group_by: str | None = Field(None, min_length=1, max_length=256)
    """Only the best of each value of this metadata field"""
    collection: str = Field(DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    """Where to search"""
    nprobe: Nprobe = None
    ef_search: EfSearch = None
    k_factor: KFactor = None
    exact: Exact = False

    @property
    def effort(self) -> Effort:
        """How hard to look, as one object."""
        return Effort(**{name: getattr(self, name) for name in PARAMETERS})


class UrlRoute(JsonRoute):
    """A route that fetches a picture.

    No place is held while the body comes or the picture is fetched: either may be slow.
    """

    too_large = RequestTooLargeError

    def admit(self, parts: Parts, client: str | None) -> None:
        """Refuses a request that the setting forbids, or that the queue has no room for."""
        parts.services.search.require_fetcher()
        parts.admission.check(client)


_FIELDS = ("file", "k", "min_score", "filter", "group_by", "collection", *PARAMETERS)

router = APIRouter(route_class=UploadRoute, tags=["search"])
_by_url = APIRouter(route_class=UrlRoute)
similar = APIRouter(prefix="/images", tags=["images"])


@router.post(
    "/search",
    response_model=SearchOut,
    summary="Find the pictures most like yours",
    responses=responses(400, 401, 404, 408, 409, 413, 415, 422, 503, 507),
    dependencies=[*READ, known_fields(*_FIELDS)],
)
def search(
    file: Annotated[UploadFile, "The picture"],
    parts: PartsDep,
    k: Annotated[K, Form()] = 10,
    min_score: Annotated[MinScore, Form()] = -1.0,
    filter: Annotated[str, Form(description=FILTER_HELP)] = "",
    group_by: Annotated[
        str, Form(description="Only the best of each value of this metadata field")
    ] = "",
    collection: Annotated[
        str, Form(pattern=COLLECTION_PATTERN, description="Where to search")
    ] = DEFAULT_COLLECTION,
    nprobe: Annotated[Nprobe, Form()] = None,
    ef_search: Annotated[EfSearch, Form()] = None,
    k_factor: Annotated[KFactor, Form()] = None,
    exact: Annotated[Exact, Form()] = False,
) -> SearchOut:
    """Send a picture as `file`; get the most similar pictures of the collection, best first."""
    options = SearchOptions(
        collection=collection,
        k=k,
        min_score=min_score,
        where=parse_filter(filter),
        group_by=group_by or None,
        effort=Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact),
    )
    result = parts.services.search.search(file.file, options)
    return _answer(parts, "search", result)


@_by_url.post(
    "/search/url",
    summary="Find the pictures most like the one at an address",
    responses=responses(400, 401, 403, 404, 408, 409, 413, 415, 422, 502, 503, 504, 507),
    dependencies=READ,
)
def search_url(request: Request, query: UrlSearchIn, parts: PartsDep) -> SearchOut:
    """The same answer as POST /search gives; LOOKALIKE_FETCH_URLS turns it on."""
    options = SearchOptions(
        collection=query.collection,
        k=query.k,
        min_score=query.min_score,
        where=None if query.filter is None else Filter.parse(query.filter),
        group_by=query.group_by,
        effort=query.effort,
    )
    slot = partial(parts.admission.place, parts.proxies.client_of(request))
    result = parts.services.search.search_url(query.url, options, slot=slot)
    return _answer(parts, "search_url", result)


@similar.get(
    "/{image_id}/similar",
    summary="Find the pictures most like a stored one",
    responses=responses(401, 404, 409, 422, 503),
    dependencies=READ,
)
def similar_images(
    image_id: ImageId,
    parts: PartsDep,
    k: K = 10,
    min_score: Annotated[
        float | None, Query(ge=-1, le=1, description="Leave out matches below this cosine")
    ] = None,
    filter: FilterQuery = None,
    group_by: Annotated[
        str | None,
        Query(
            min_length=1, max_length=256, description="Only the best of each value of this field"
        ),
    ] = None,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    nprobe: Nprobe = None,
    ef_search: EfSearch = None,
    k_factor: KFactor = None,
    exact: Exact = False,
) -> SearchOut:
    """The same answer as POST /search gives; the picture itself is left out."""
    options = SearchOptions(
        collection=collection,
        k=k,
        min_score=min_score,
        where=parse_filter(filter),
        group_by=group_by,
        effort=Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact),
    )
    result = parts.services.search.similar(image_id, options)
    return _answer(parts, "similar", result)


def _answer(parts: Parts, call: str, result: SearchResult) -> SearchOut:
    parts.metrics.stages(call, result.took_ms)
    return SearchOut.of(result, parts.links)


router.include_router(_by_url)
