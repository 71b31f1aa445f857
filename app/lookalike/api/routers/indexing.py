"""POST /index, and /index/archive, /index/folder, /index/manifest: many pictures as a job."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from lookalike.api import errors
from lookalike.api.audit import note
from lookalike.api.deps import COLLECTION_PATTERN, PartsDep, known_fields
from lookalike.api.routers.service import ACCEPTED, PATH_PATTERN, JobRoute, accepted
from lookalike.api.security import WRITE
from lookalike.api.uploads import ArchiveRoute, IndexRoute
from lookalike.errors import InvalidIdError, InvalidMetadataError, InvalidParameterError
from lookalike.files.audit import MOST_NOTED
from lookalike.media.sources import PictureSource
from lookalike.records import DEFAULT_COLLECTION, OnConflict, Place
from lookalike.schemas import IndexItemOut, IndexOut, ItemError, JobOut, Schema
from lookalike.services.feeds import ImportOptions
from lookalike.services.indexing import IndexItem
from lookalike.services.search import Stopwatch
from lookalike.store.filters import storable_text

router = APIRouter(tags=["index"])
_pictures = APIRouter(route_class=IndexRoute)
_archives = APIRouter(route_class=ArchiveRoute)
_folders = APIRouter(route_class=JobRoute)

OnConflictForm = Annotated[OnConflict, Form(description="What to do with ids that exist")]
CollectionForm = Annotated[
    str, Form(pattern=COLLECTION_PATTERN, description="Made where it does not exist")
]
CommonMetadataForm = Annotated[
    str, Form(description='JSON object for every picture: {"label": "cat"}')
]
FolderFieldForm = Annotated[
    str, Form(max_length=256, description="Metadata field for the name of the picture's folder")
]

MAX_PATH = 4096  # characters
MAX_GLOB, MAX_GLOBS = 1024, 100

_FIELDS = ("metadata", "on_conflict", "collection")


@_pictures.post(
    "/index",
    response_model=IndexOut,
    status_code=201,
    summary="Add pictures, or replace them",
    responses={
        200: {"model": IndexOut, "description": "Nothing was new"},
        207: {"model": IndexOut, "description": "Some of several files failed"},
        **errors.responses(400, 401, 403, 408, 409, 413, 415, 422, 503, 507),
    },
    dependencies=[*WRITE, known_fields("files", "ids", "paths", "root", *_FIELDS)],
)
def index(
    request: Request,
    files: Annotated[list[UploadFile], "One picture or many"],
    parts: PartsDep,
    ids: Annotated[
        list[str],
        Form(
            description="One id for each file: repeat the field, or a JSON list; else from content"
        ),
    ] = [],  # noqa: B006 - FastAPI copies it, and Swagger UI must see that it is empty
    paths: Annotated[
        list[str],
        Form(
            description="One path for each file, to be kept with it: repeat the field, or a JSON "
            "list; null for none"
        ),
    ] = [],  # noqa: B006 - as above
    root: Annotated[
        str,
        Form(
            max_length=MAX_PATH,
            description="The folder that the paths are below, so that equal paths of two folders "
            "are told apart",
        ),
    ] = "",
    metadata: Annotated[
        str, Form(description='JSON: one object for all, or a list: {"label": "cat"}')
    ] = "",
    on_conflict: OnConflictForm = OnConflict.REPLACE,
    collection: CollectionForm = DEFAULT_COLLECTION,
) -> Response:
    """Send pictures as `files`; what was answered 201 is on the disk and findable.

    A file that fails answers with its own error and harms no other.
    """
    watch = Stopwatch()
    count = len(files)
    given = zip(
        files,
        _ids(ids, count),
        _metadata(metadata, count),
        _places(root, paths, count),
        strict=True,
    )
    sources = [
        PictureSource(
            filename=one.filename or "",
            size=one.size or 0,
            file=one.file,
            id=id,
            metadata=own,
            place=place,
        )
        for one, id, own, place in given
    ]
    indexing = parts.services.indexing
    items = list(indexing.index(sources, collection=collection, on_conflict=on_conflict))
    parts.metrics.stages("index", watch.took_ms())
    counts = Counter("failed" if item.status is None else item.status.value for item in items)
    some = [item.id for item in items[:MOST_NOTED]]
    note(request, collection=collection, **counts, ids=some)
    return _answer(request, collection, items)


def _metadata(text: str, count: int) -> list[dict[str, Any] | None]:
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


def _one_object(text: str) -> dict[str, Any] | None:
    (found,) = _metadata(text, 1)
    if text.lstrip().startswith("["):
        raise InvalidMetadataError("metadata must be one JSON object, for every picture")
    return found


def _ids(given: list[str], count: int) -> list[str | None]:
    """Returns one id for each file; also reads a JSON list, and the comma list of Swagger UI."""
    ids: list[str | None] = [text for text in given if text != ""]
    if len(ids) == 1 and (first := ids[0]) is not None:
        if first.startswith("["):
            ids = _id_list(first)
        elif count > 1 and "," in first:
            ids = [*first.split(",")]
    if not ids:
        return [None] * count
    if len(ids) != count:
        raise InvalidIdError(f"{len(ids)} ids for {count} files; send one for each, or none at all")
    return ids


def _places(root: str, given: list[str], count: int) -> list[Place | None]:
    """Returns one place for each file; the paths may be one JSON list."""
    paths: Sequence[object] = given
    if len(given) == 1 and given[0].startswith("["):
        try:
            paths = json.loads(given[0])
        except (ValueError, RecursionError) as exc:
            raise InvalidParameterError(f"paths is not a valid JSON list: {exc}") from exc
    if not paths:
        return [None] * count
    if len(paths) != count:
        raise InvalidParameterError(
            f"{len(paths)} paths for {count} files; send one for each, or none at all"
        )
    return [_place(root, path) for path in paths]


def _place(root: str, path: object) -> Place | None:
    if path is None or path == "":
        return None
    text = path if isinstance(path, str) else ""
    parts = text.replace("\\", "/").split("/")
    known = parts[0] != "" and ".." not in parts and len(text) <= MAX_PATH
    if not known or not storable_text(text) or not storable_text(root):
        raise InvalidParameterError(
            f"{ascii(path)[:200]} is no path below a folder; send one of at most {MAX_PATH:,} "
            "characters, such as 2019/may/a.jpg"
        )
    return Place(root, "/".join(part for part in parts if part not in {"", "."}))


def _id_list(text: str) -> list[str | None]:
    """Reads a JSON list of ids; null stands for an id from the content."""
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidIdError(f"ids is not a valid JSON list: {exc}") from exc
    if not all(one is None or isinstance(one, str) for one in ids):
        raise InvalidIdError("ids must be texts, or null for an id from the content")
    return list(ids)


def _answer(request: Request, collection: str, items: list[IndexItem]) -> JSONResponse:
    """Answers 201 if something was made or changed, 200 if not, 207 if some failed.

    If every file failed, answers with the first one's error and the items beside it.
    """
    outs = [_item(item) for item in items]
    counts = Counter(out.status for out in outs)
    failures = [item.error for item in items if item.error is not None]
    if len(failures) == len(items):
        others = [out.model_dump(exclude_none=True) for out in outs]
        extra = {"items": others} if len(outs) > 1 else {}
        return errors.answer(request, failures[0], **extra)
    copies = sum(out.copy_of is not None for out in outs)
    conflicts = sum(out.metadata_kept or False for out in outs)
    facts = {"collection": collection, "items": outs, "copies": copies, "conflicts": conflicts}
    body = IndexOut.model_validate(facts | counts)
    changed = counts["created"] + counts["replaced"] + counts["updated"]
    status = 207 if failures else 201 if changed else 200
    return JSONResponse(body.model_dump(exclude_none=True), status_code=status)


def _item(item: IndexItem) -> IndexItemOut:
    status = "failed" if item.status is None else item.status.value
    facts: dict[str, Any] = {"filename": item.source.filename, "status": status, "id": item.id}
    facts |= {"copy_of": item.copy_of, "metadata_kept": item.kept_metadata or None}
    if item.error is not None:
        facts["error"] = ItemError(code=item.error.code, detail=str(item.error))
    return IndexItemOut.model_validate(facts)


class FolderIn(Schema):
    """A folder of the server whose pictures are indexed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str = Field(
        pattern=PATH_PATTERN, min_length=1, max_length=4096, examples=["/mnt/photos/2026"]
    )
    """Whole path on the server"""
    collection: str = Field(DEFAULT_COLLECTION, max_length=63)
    """Made where it does not exist"""
    on_conflict: OnConflict = Field(OnConflict.REPLACE, strict=False)
    """What to do with ids that exist"""
    metadata: dict[str, Any] | None = Field(None, description="For every picture")
    folder_field: str | None = Field(None, min_length=1, max_length=256)
    """Metadata field for the name of the picture's folder"""
    exclude: list[Annotated[str, Field(min_length=1, max_length=MAX_GLOB)]] = Field(
        [], max_length=MAX_GLOBS
    )
    """Globs of files and folders that are passed over: `*.tmp`, `drafts/`, `2019/**/raw`"""


@_archives.post(
    "/index/archive",
    status_code=202,
    summary="Add the pictures of an archive",
    responses={202: ACCEPTED, **errors.responses(400, 401, 403, 408, 409, 413, 415, 422, 503, 507)},
    dependencies=[*WRITE, known_fields("file", "folder_field", "exclude", *_FIELDS)],
)
def index_archive(
    request: Request,
    file: Annotated[UploadFile, "A zip file, or a tar file, plain or packed: gz, bz2, xz"],
    parts: PartsDep,
    response: Response,
    metadata: CommonMetadataForm = "",
    folder_field: FolderFieldForm = "",
    exclude: Annotated[
        list[Annotated[str, Field(max_length=MAX_GLOB)]],
        Form(max_length=MAX_GLOBS, description="Globs of files and folders that are passed over"),
    ] = [],  # noqa: B006 - as above
    on_conflict: OnConflictForm = OnConflict.REPLACE,
    collection: CollectionForm = DEFAULT_COLLECTION,
) -> JobOut:
    """Send a zip or tar file as `file`; its pictures are indexed in the background.

    A picture that fails is an error of the job and harms no other.
    """
    file.file.flush()  # it is read again by its name
    options = ImportOptions(
        collection=collection,
        on_conflict=on_conflict,
        metadata=_one_object(metadata),
        folder_field=folder_field or None,
        exclude=[glob for glob in exclude if glob],
    )
    spool, services = request.state.spool, parts.services
    note(request, collection=collection, filename=file.filename)
    job = services.imports.begin_archive(spool, file.filename or "", options, services.jobs)
    return accepted(request, parts, response, job)


@_archives.post(
    "/index/manifest",
    status_code=202,
    summary="Add the pictures that a table names",
    responses={202: ACCEPTED, **errors.responses(400, 401, 403, 408, 409, 413, 422, 503, 507)},
    dependencies=[*WRITE, known_fields("file", "folder_field", "root", *_FIELDS)],
)
def index_manifest(
    request: Request,
    file: Annotated[UploadFile, "A CSV file with a header, or lines of JSON: .csv, .tsv, .jsonl"],
    parts: PartsDep,
    response: Response,
    root: Annotated[
        str,
        Form(
            max_length=MAX_PATH,
            description="The manifest's whole path: relative paths are below its folder, and its "
            "pictures are told apart from those of other manifests",
        ),
    ] = "",
    metadata: CommonMetadataForm = "",
    folder_field: FolderFieldForm = "",
    on_conflict: OnConflictForm = OnConflict.REPLACE,
    collection: CollectionForm = DEFAULT_COLLECTION,
) -> JobOut:
    """Send a table as `file`, with a `path` or a `url` in each row; it is worked off as a job.

    Addresses are fetched as for `POST /search/url`, files read below LOOKALIKE_IMPORT_DIRS. A row
    that fails is an error of the job and harms no other.
    """
    file.file.flush()  # it is read again by its name
    if not storable_text(root):
        raise InvalidParameterError("root is no path that can be stored")
    options = ImportOptions(
        collection=collection,
        on_conflict=on_conflict,
        metadata=_one_object(metadata),
        folder_field=folder_field or None,
    )
    spool, services, name = request.state.spool, parts.services, file.filename or ""
    note(request, collection=collection, filename=name, root=root)
    job = services.imports.begin_manifest(spool, name, root or name, options, services.jobs)
    return accepted(request, parts, response, job)


@_folders.post(
    "/index/folder",
    status_code=202,
    summary="Add the pictures of a folder of the server",
    responses={202: ACCEPTED, **errors.responses(400, 401, 403, 408, 409, 413, 422, 503, 507)},
    dependencies=WRITE,
)
def index_folder(request: Request, asked: FolderIn, parts: PartsDep, response: Response) -> JobOut:
    """Its pictures are indexed in the background, as `lookalike index` would.

    Only below the folders of LOOKALIKE_IMPORT_DIRS. The very same work is not begun twice: the
    job that is under way is given again.
    """
    services, options = parts.services, ImportOptions(**asked.model_dump(exclude={"path"}))
    note(request, collection=asked.collection, path=asked.path)
    job = services.imports.begin_folder(asked.path, options, services.jobs)
    return accepted(request, parts, response, job)


for part in (_pictures, _archives, _folders):
    router.include_router(part)
