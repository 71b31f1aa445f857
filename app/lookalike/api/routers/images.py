"""Everything under /images, and GET /duplicates."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ConfigDict, Field, WithJsonSchema
from starlette.types import Receive, Scope, Send

from lookalike.api.audit import note
from lookalike.api.caching import is_head, is_unchanged
from lookalike.api.deps import (
    COLLECTION_PATTERN,
    FILTER_REFERENCE,
    CollectionQuery,
    FilterQuery,
    ImageId,
    PartsDep,
    Route,
)
from lookalike.api.errors import responses
from lookalike.api.routers.search import similar
from lookalike.api.security import READ, READ_OR_LINK, WRITE
from lookalike.api.uploads import JsonRoute
from lookalike.errors import RequestTooLargeError
from lookalike.files.audit import MOST_NOTED
from lookalike.records import DEFAULT_COLLECTION, MOST_CHANGED, DuplicateKind
from lookalike.schemas import (
    ChangedOut,
    DuplicatesOut,
    DuplicatesRunning,
    ForgottenOut,
    ImageOut,
    ImagesOut,
    Schema,
)
from lookalike.services.duplicates import (
    MAX_LIMIT,
    MIN_THRESHOLD,
    THRESHOLD,
    DuplicateOptions,
    Unfinished,
)
from lookalike.services.pictures import Chosen
from lookalike.store.filters import Filter, parse_filter

router = APIRouter()
_images = APIRouter(prefix="/images", tags=["images"], route_class=JsonRoute)
_duplicates = APIRouter(tags=["duplicates"], route_class=Route)


class ManyRoute(JsonRoute):
    """A route that takes many ids."""

    too_large = RequestTooLargeError
    more_bytes = 140 * MOST_CHANGED  # of ids at their longest, with quotes and a comma


_many = APIRouter(prefix="/images", tags=["images"], route_class=ManyRoute)

RETRY_AFTER_S = 2
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'"}
_CHUNK = 2**18
_NOTED_FILTER = 1000  # characters of a filter in the audit log


class BlobResponse(StreamingResponse):
    """An open file, whole or the one range asked for (RFC 9110); closed however the answer ends.

    A header `Range` that cannot be read, or that asks for several ranges, is ignored.
    """

    def __init__(
        self, request: Request, file: BinaryIO, *, media_type: str, headers: Mapping[str, str]
    ) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        first, last, status = 0, size - 1, 200
        further = {"Accept-Ranges": "bytes"}
        if is_unchanged(request.headers, headers["ETag"]):
            super().__init__((), 304, {**_SAFE, **headers})
            return
        if asked := _asked_range(request, size, headers["ETag"]):
            first, last = asked
            if first <= last:
                status, part = 206, f"{first}-{last}"
            else:
                status, part, first, last = 416, "*", 0, -1  # no byte of the file
            further["Content-Range"] = f"bytes {part}/{size}"
        further["Content-Length"] = str(last + 1 - first)
        content = () if is_head(request) else _chunks(file, first, last)
        super().__init__(content, status, {**_SAFE, **further, **headers}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; a client that goes away leaves no file open."""
        with self._file:
            await super().__call__(scope, receive, send)


def _asked_range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """The first and the last byte that a request asks for; None if it gets the whole file.

    The first is behind the last if the file has none of these bytes.
    """
    asked = request.headers.get("Range", "")
    found = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})", asked, re.IGNORECASE | re.ASCII)
    if found is None or not any(found.groups()):
        return None
    if request.headers.get("If-Range", etag) != etag:
        return None
    if not found[1]:  # the last bytes
        return max(0, size - int(found[2])), size - 1
    first, last = int(found[1]), int(found[2]) if found[2] else max(int(found[1]), size - 1)
    return (first, min(last, size - 1)) if first <= last else None


def _chunks(file: BinaryIO, first: int, last: int) -> Iterator[bytes]:
    file.seek(first)
    while chunk := file.read(min(_CHUNK, last + 1 - file.tell())):
        yield chunk


VersionQuery = Annotated[
    str | None,
    Query(description="Names the content in links, so that what they lead to may be kept"),
]


class MetadataPatch(Schema):
    """Changes to a picture's metadata: keys are set, null removes one (RFC 7396)."""

    metadata: dict[str, Any] = Field(examples=[{"label": "cat"}])


class DeleteIn(Schema):
    """Which pictures to delete: `ids`, `filter` or `all`, one of them."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"ids": []}]}
    )

    ids: list[str] | None = Field(None, max_length=MOST_CHANGED)
    """At most 1,000; those that do not exist are named in the answer"""
    filter: Annotated[dict[str, Any], WithJsonSchema(FILTER_REFERENCE)] | None = None
    """Conditions on metadata, e.g. {"label": "cat"}"""
    all: bool = False
    """Whether every picture of the collection is meant"""
    dry_run: bool = False
    """Whether to say what would be changed, and to change nothing"""
    cursor: str | None = None
    """`next_cursor` of the call before, with `filter` or `all`"""
    collection: str = Field(DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)

    def chosen(self) -> Chosen:
        """Returns the pictures that are meant; raises `InvalidParameterError`."""
        return Chosen(
            collection=self.collection,
            ids=self.ids,
            where=None if self.filter is None else Filter.parse(self.filter),
            everything=self.all,
            cursor=self.cursor or None,
        )


class UpdateIn(DeleteIn):
    """Which pictures to change, as for deleting, and their metadata."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [], "metadata": {}}]})

    metadata: dict[str, Any] = Field(examples=[{"label": "cat"}])
    """Keys to set; null removes one, the rest stays (RFC 7396)"""
    replace: bool = False
    """Whether `metadata` takes the place of all that is there"""


_MANY: dict[int | str, dict[str, Any]] = {
    200: {"model": ChangedOut},
    207: {"model": ChangedOut, "description": "Some pictures failed; the others are done"},
}


def _noted(asked: DeleteIn) -> dict[str, Any]:
    """What the audit log says of a change of many pictures, before it is made."""
    noted = {"collection": asked.collection, "all": asked.all or None, "dry_run": asked.dry_run}
    if asked.filter is not None:
        noted["filter"] = json.dumps(asked.filter)[:_NOTED_FILTER]
    return noted | {"ids": None if asked.ids is None else asked.ids[:MOST_NOTED]}


def _changed(request: Request, out: ChangedOut) -> JSONResponse:
    """Notes and answers what a change of many pictures did: 207 where some failed."""
    done = [one.id for one in out.items if one.status != "failed"]
    note(request, changed=out.changed, failed=out.failed or None)
    if done:
        note(request, ids=done[:MOST_NOTED])
    return JSONResponse(out.model_dump(mode="json"), status_code=207 if out.failed else 200)


@_many.post(
    "/delete",
    response_model=ChangedOut,
    summary="Delete many pictures",
    responses={**_MANY, **responses(400, 401, 403, 404, 408, 413, 422, 503, 507)},
    dependencies=WRITE,
)
def delete_images(request: Request, asked: DeleteIn, parts: PartsDep) -> Response:
    """Those of `ids`, or those that pass `filter`, up to 1,000 in one step.

    Send `next_cursor` as `cursor` to go on with the rest. `dry_run` says what would go.
    """
    note(request, **_noted(asked))
    chosen = asked.chosen()
    changed = parts.services.pictures.delete_many(chosen, dry_run=asked.dry_run)
    how: dict[str, Any] = {"dry_run": asked.dry_run, "link": parts.links}
    return _changed(request, ChangedOut.of_all("deleted", chosen, changed, **how))


@_many.post(
    "/update",
    response_model=ChangedOut,
    summary="Change the metadata of many pictures",
    responses={**_MANY, **responses(400, 401, 403, 404, 408, 413, 422, 503, 507)},
    dependencies=WRITE,
)
def update_images(request: Request, asked: UpdateIn, parts: PartsDep) -> Response:
    """As PATCH of one picture: of those of `ids`, or that pass `filter`, up to 1,000 in one step.

    Send `next_cursor` as `cursor` to go on with the rest. `dry_run` says what would be changed.
    """
    note(request, **_noted(asked), fields=sorted(asked.metadata)[:MOST_NOTED])
    chosen = asked.chosen()
    how: dict[str, Any] = {"replace": asked.replace, "dry_run": asked.dry_run}
    changed = parts.services.pictures.update_many(chosen, asked.metadata, **how)
    how = {"dry_run": asked.dry_run, "link": parts.links}
    return _changed(request, ChangedOut.of_all("updated", chosen, changed, **how))


class ForgetIn(Schema):
    """Pictures that are gone from a folder, an archive or a manifest, and their paths there."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"root": "/mnt/photos"}]}
    )

    root: str = Field(max_length=4096)
    """What the paths are below, as it was sent when they were indexed"""
    ids: list[str] = Field([], max_length=MOST_CHANGED)
    """At most 1,000; one that was seen elsewhere, too, or was sent without a path, stays"""
    paths: list[str] = Field([], max_length=MOST_CHANGED)
    """At most 1,000, which are forgotten"""
    dry_run: bool = False
    """Whether to say what would be deleted, and to change nothing"""
    collection: str = Field(DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)


@_many.post(
    "/forget",
    summary="Forget paths where pictures lie no more, and delete those that lie nowhere else",
    responses=responses(400, 401, 403, 404, 408, 413, 422, 503, 507),
    dependencies=WRITE,
)
def forget_images(request: Request, asked: ForgetIn, parts: PartsDep) -> ForgottenOut:
    """What a sync deletes: compare `GET /collections/{name}/paths` with what is there now."""
    how = asked.model_dump(exclude={"collection", "root"})
    note(request, collection=asked.collection, root=asked.root, dry_run=asked.dry_run)
    deleted = parts.services.pictures.let_go(asked.collection, asked.root, **how)
    note(request, deleted=len(deleted), ids=deleted[:MOST_NOTED])
    return ForgottenOut(collection=asked.collection, dry_run=asked.dry_run, deleted=deleted)


@_images.get("", summary="List pictures", responses=responses(401, 404, 422), dependencies=READ)
def list_images(
    parts: PartsDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the stretch before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most pictures to return")] = 100,
    filter: FilterQuery = None,
) -> ImagesOut:
    """Pictures, oldest first, a stretch at a time."""
    pictures, where = parts.services.pictures, parse_filter(filter)
    page = pictures.page(collection, cursor=cursor or None, limit=limit, where=where)
    return ImagesOut(
        collection=collection,
        images=[ImageOut.of(record, parts.links) for record in page.records],
        next_cursor=page.next_cursor,
        warnings=pictures.warnings(collection, where, seen=page.records),
    )


@_images.get(
    "/{image_id}",
    summary="Read a picture's record",
    responses=responses(401, 404, 422),
    dependencies=READ,
)
def get_image(
    image_id: ImageId, parts: PartsDep, collection: CollectionQuery = DEFAULT_COLLECTION
) -> ImageOut:
    """What is stored about one picture."""
    return ImageOut.of(parts.services.pictures.get(collection, image_id), parts.links)


@_images.patch(
    "/{image_id}",
    summary="Change a picture's metadata",
    responses=responses(400, 401, 403, 404, 408, 413, 422, 507),
    dependencies=WRITE,
)
def patch_image(
    request: Request,
    image_id: ImageId,
    patch: Annotated[MetadataPatch, Body()],
    parts: PartsDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
) -> ImageOut:
    """Keys that are given are set, null removes one, the rest stays (RFC 7396)."""
    note(request, collection=collection, fields=sorted(patch.metadata)[:MOST_NOTED])
    record = parts.services.pictures.patch_metadata(collection, image_id, patch.metadata)
    return ImageOut.of(record, parts.links)


@_images.delete(
    "/{image_id}",
    status_code=204,
    summary="Delete a picture",
    responses=responses(401, 403, 404, 422, 507),
    dependencies=WRITE,
)
def delete_image(
    request: Request,
    image_id: ImageId,
    parts: PartsDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
) -> Response:
    """Never found again from the answer on."""
    note(request, collection=collection)
    parts.services.pictures.delete(collection, image_id)
    return Response(status_code=204)


@_images.get(
    "/{image_id}/file",
    summary="The picture as it was sent",
    response_class=StreamingResponse,
    responses={200: {"content": {"image/*": {}}}, **responses(401, 404, 422)},
    dependencies=READ_OR_LINK,
)
def get_image_file(
    request: Request,
    image_id: ImageId,
    parts: PartsDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    v: VersionQuery = None,
) -> Response:
    """The very bytes."""
    record, file = parts.services.pictures.original(collection, image_id)
    disposition = f"inline; filename*=utf-8''{quote(record.filename, safe='')}"
    return BlobResponse(
        request,
        file,
        media_type=record.media_type,
        headers={
            "ETag": f'"{record.sha256}"',
            "Cache-Control": parts.links.cache_control(request, record, v),
            "Content-Disposition": disposition,
        },
    )


@_images.get(
    "/{image_id}/thumbnail",
    summary="The picture in small",
    response_class=StreamingResponse,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(401, 404, 413, 415, 422, 507)},
    dependencies=READ_OR_LINK,
)
def get_image_thumbnail(
    request: Request,
    image_id: ImageId,
    parts: PartsDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    v: VersionQuery = None,
) -> Response:
    """A JPEG of at most 256 pixels a side."""
    record, file = parts.services.pictures.thumbnail(collection, image_id)
    headers = {
        "ETag": f'"{record.sha256}-thumbnail"',
        "Cache-Control": parts.links.cache_control(request, record, v),
    }
    return BlobResponse(request, file, media_type="image/jpeg", headers=headers)


@_duplicates.get(
    "/duplicates",
    response_model=DuplicatesOut,
    summary="Find pictures that are stored more than once",
    responses={
        202: {
            "model": DuplicatesRunning,
            "description": "The search is under way; ask again after Retry-After seconds",
            "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}},
        },
        **responses(401, 404, 409, 422, 503),
    },
    dependencies=READ,
)
def list_duplicates(
    parts: PartsDep,
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
        collection=collection, kind=kind, threshold=threshold, limit=limit, cursor=cursor or None
    )
    found = parts.services.duplicates.find(options)
    if isinstance(found, Unfinished):
        return Response(
            DuplicatesRunning.of(found).model_dump_json(),
            status_code=202,
            media_type="application/json",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )
    return DuplicatesOut.of(found, parts.links)


for part in (_images, _many, similar, _duplicates):
    router.include_router(part)
