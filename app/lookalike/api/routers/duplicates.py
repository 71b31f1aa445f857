"""GET /duplicates."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from lookalike.api.deps import CollectionQuery, DuplicatesDep, known_query
from lookalike.api.duplicate_schemas import DuplicatesOut, DuplicatesRunning
from lookalike.api.errors import responses
from lookalike.api.security import require_read
from lookalike.records import DEFAULT_COLLECTION, DuplicateKind
from lookalike.services.duplicates.service import (
    MAX_LIMIT,
    MIN_THRESHOLD,
    THRESHOLD,
    DuplicateOptions,
    Progress,
)

RETRY_AFTER_S = 2

router = APIRouter(tags=["duplicates"])


@router.get(
    "/duplicates",
    response_model=DuplicatesOut,
    summary="Find pictures that are stored more than once",
    operation_id="list_duplicates",
    responses={
        202: {
            "model": DuplicatesRunning,
            "description": "The search is under way; ask again after Retry-After seconds",
            "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}},
        },
        **responses(401, 404, 409, 422, 503),
    },
    dependencies=[
        Depends(require_read),
        known_query("collection", "kind", "threshold", "limit", "cursor"),
    ],
)
def list_duplicates(
    service: DuplicatesDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    kind: Annotated[
        DuplicateKind, Query(description="The weakest kind to find; stricter ones are included")
    ] = DuplicateKind.NEAR,
    threshold: Annotated[
        float,
        Query(
            ge=MIN_THRESHOLD,
            le=1,
            description="The lowest cosine of two duplicates; the same bytes need none",
        ),
    ] = THRESHOLD,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most groups to return")] = 100,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the groups before", max_length=140)
    ] = None,
) -> DuplicatesOut | Response:
    """Groups of one picture to keep and those that are directly like it, the largest first.

    Where the search takes longer than a few seconds, the answer is 202 with how far it is.
    """
    options = DuplicateOptions(
        collection=collection,
        kind=kind,
        threshold=threshold,
        limit=limit,
        cursor=cursor or None,
    )
    found = service.find(options)
    if isinstance(found, Progress):
        return Response(
            DuplicatesRunning.of(found).model_dump_json(),
            status_code=202,
            media_type="application/json",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )
    return DuplicatesOut.of(found)
