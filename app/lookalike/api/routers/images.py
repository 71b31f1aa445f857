"""Everything under /images."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import FileResponse

from lookalike.api.deps import (
    CollectionQuery,
    FilterQuery,
    GroupBy,
    ImageId,
    K,
    MinScore,
    PicturesDep,
    SearchDep,
)
from lookalike.api.errors import responses
from lookalike.api.schemas import ImageOut, ImagesOut, MetadataPatch, SearchOut
from lookalike.api.search_inputs import QueryEffort
from lookalike.api.security import require_admin, require_read
from lookalike.api.uploads import JsonRoute
from lookalike.records import DEFAULT_COLLECTION
from lookalike.services.search import SearchOptions
from lookalike.store.filters import parse_filter

router = APIRouter(prefix="/images", tags=["images"], route_class=JsonRoute)

READ = [Depends(require_read)]
ADMIN = [Depends(require_admin)]
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'"}


@router.get(
    "",
    summary="List pictures",
    operation_id="list_images",
    responses=responses(401, 404, 422),
    dependencies=READ,
)
def list_images(
    pictures: PicturesDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the stretch before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most pictures to return")] = 100,
    filter: FilterQuery = None,  # noqa: A002 - the parameter's name in HTTP
) -> ImagesOut:
    """Pictures, oldest first, a stretch at a time."""
    page = pictures.page(collection, cursor=cursor or None, limit=limit, where=parse_filter(filter))
    return ImagesOut.of(collection, page)


@router.get(
    "/{image_id}",
    summary="Read a picture's record",
    operation_id="get_image",
    responses=responses(401, 404, 422),
    dependencies=READ,
)
def get_image(
    image_id: ImageId, pictures: PicturesDep, collection: CollectionQuery = DEFAULT_COLLECTION
) -> ImageOut:
    """What is stored about one picture."""
    return ImageOut.of(pictures.get(collection, image_id))


@router.patch(
    "/{image_id}",
    summary="Change a picture's metadata",
    operation_id="patch_image",
    responses=responses(400, 401, 404, 408, 413, 422, 507),
    dependencies=ADMIN,
)
def patch_image(
    image_id: ImageId,
    patch: Annotated[MetadataPatch, Body()],
    pictures: PicturesDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
) -> ImageOut:
    """Keys that are given are set, null removes one, the rest stays (RFC 7396)."""
    return ImageOut.of(pictures.patch_metadata(collection, image_id, patch.metadata))


@router.delete(
    "/{image_id}",
    status_code=204,
    summary="Delete a picture",
    operation_id="delete_image",
    responses=responses(401, 404, 422, 507),
    dependencies=ADMIN,
)
def delete_image(
    image_id: ImageId, pictures: PicturesDep, collection: CollectionQuery = DEFAULT_COLLECTION
) -> Response:
    """Never found again from the answer on."""
    pictures.delete(collection, image_id)
    return Response(status_code=204)


@router.get(
    "/{image_id}/file",
    summary="The picture as it was sent",
    operation_id="get_image_file",
    response_class=FileResponse,
    responses={200: {"content": {"image/*": {}}}, **responses(401, 404, 422)},
    dependencies=READ,
)
def get_file(
    image_id: ImageId, pictures: PicturesDep, collection: CollectionQuery = DEFAULT_COLLECTION
) -> FileResponse:
    """The very bytes."""
    record, path = pictures.original(collection, image_id)
    disposition = f"inline; filename*=utf-8''{quote(record.filename, safe='')}"
    return FileResponse(
        path,
        media_type=record.media_type,
        headers={**_SAFE, "ETag": f'"{record.sha256}"', "Content-Disposition": disposition},
    )


@router.get(
    "/{image_id}/thumbnail",
    summary="The picture in small",
    operation_id="get_image_thumbnail",
    response_class=FileResponse,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(401, 404, 413, 415, 422, 507)},
    dependencies=READ,
)
def get_thumbnail(
    image_id: ImageId, pictures: PicturesDep, collection: CollectionQuery = DEFAULT_COLLECTION
) -> FileResponse:
    """A JPEG of at most 256 pixels a side."""
    path = pictures.thumbnail(collection, image_id)
    return FileResponse(path, media_type="image/jpeg", headers=_SAFE)


@router.get(
    "/{image_id}/similar",
    summary="Find the pictures most like a stored one",
    operation_id="similar_images",
    responses=responses(401, 404, 409, 422, 503),
    dependencies=READ,
)
def similar_images(
    request: Request,
    image_id: ImageId,
    search: SearchDep,
    effort: QueryEffort,
    k: K = 10,
    min_score: MinScore = None,
    filter: FilterQuery = None,  # noqa: A002 - the parameter's name in HTTP
    group_by: GroupBy = None,
    collection: CollectionQuery = DEFAULT_COLLECTION,
) -> SearchOut:
    """The same answer as POST /search gives; the picture itself is left out."""
    options = SearchOptions(
        collection=collection,
        k=k,
        min_score=min_score,
        where=parse_filter(filter),
        group_by=group_by,
        effort=effort,
    )
    result = search.similar(image_id, options)
    request.app.state.metrics.stages("similar", result.took_ms)
    return SearchOut.of(result)
