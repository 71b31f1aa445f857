"""POST /search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, UploadFile

from app.api.deps import (
    COLLECTION_PATTERN,
    FILTER_HELP,
    SearchDep,
    known_fields,
    no_query_parameters,
)
from app.api.errors import responses
from app.api.schemas import SearchOut
from app.api.security import require_read
from app.api.uploads import UploadRoute
from app.records import DEFAULT_COLLECTION
from app.services.search import MAX_K, SearchOptions
from app.store.filters import parse_filter

router = APIRouter(route_class=UploadRoute, tags=["search"])


@router.post(
    "/search",
    response_model=SearchOut,
    summary="Find the pictures most like yours",
    operation_id="search",
    responses=responses(400, 401, 404, 408, 409, 413, 415, 422, 503, 507),
    dependencies=[
        Depends(require_read),
        Depends(no_query_parameters),
        known_fields("file", "k", "min_score", "filter", "group_by", "collection"),
    ],
)
def search(
    request: Request,
    file: Annotated[UploadFile, "The picture"],
    service: SearchDep,
    k: Annotated[int, Form(ge=1, le=MAX_K, description="How many matches")] = 10,
    min_score: Annotated[
        float, Form(ge=-1, le=1, description="Leave out matches below this cosine")
    ] = -1.0,
    filter: Annotated[str, Form(description=FILTER_HELP)] = "",  # noqa: A002 - HTTP name
    group_by: Annotated[
        str, Form(description="Only the best of each value of this metadata field")
    ] = "",
    collection: Annotated[
        str, Form(pattern=COLLECTION_PATTERN, description="Where to search")
    ] = DEFAULT_COLLECTION,
) -> SearchOut:
    """Send a picture as `file`; get the most similar pictures of the collection, best first."""
    options = SearchOptions(
        collection=collection,
        k=k,
        min_score=min_score,
        where=parse_filter(filter),
        group_by=group_by or None,
    )
    result = service.search(file.file, options)
    request.app.state.metrics.stages("search", result.took_ms)
    return SearchOut.of(result)
