"""GET /collections and DELETE /collections/{name}."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from lookalike.api.deps import COLLECTION_PATTERN, ServicesDep
from lookalike.api.errors import responses
from lookalike.api.schemas import CollectionOut, CollectionsOut
from lookalike.api.security import require_admin, require_read
from lookalike.bootstrap import Services
from lookalike.services.dropping import drop_collection

router = APIRouter(prefix="/collections", tags=["collections"])


def described(services: Services) -> list[CollectionOut]:
    """All collections, each with whether a live model can search it."""
    live = [encoder.spec for encoder in services.encoders.live]
    return [
        CollectionOut.of(info, searchable=any(not info.spec.differences(spec) for spec in live))
        for info in services.pictures.collections()
    ]


@router.get(
    "",
    summary="List collections",
    operation_id="list_collections",
    responses=responses(401),
    dependencies=[Depends(require_read)],
)
def list_collections(services: ServicesDep) -> CollectionsOut:
    """Every collection with its count and what made its vectors."""
    return CollectionsOut(collections=described(services))


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete a collection",
    operation_id="delete_collection",
    responses=responses(401, 404, 422, 507),
    dependencies=[Depends(require_admin)],
)
def delete_collection(
    name: Annotated[str, Path(pattern=COLLECTION_PATTERN, max_length=63)], services: ServicesDep
) -> Response:
    """All of its pictures, vectors and files go; imports into it end."""
    drop_collection(
        name, pictures=services.pictures, jobs=services.jobs, gate=services.indexing.gate
    )
    return Response(status_code=204)
