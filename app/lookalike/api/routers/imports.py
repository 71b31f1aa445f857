"""POST /index/archive and POST /index/folder: many pictures as a job."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response, UploadFile

from lookalike.api.archive_uploads import ArchiveRoute
from lookalike.api.deps import (
    COLLECTION_PATTERN,
    ServicesDep,
    known_fields,
    no_query_parameters,
    parse_metadata,
)
from lookalike.api.errors import responses
from lookalike.api.job_schemas import ACCEPTED, FolderIn, JobOut
from lookalike.api.routers.jobs import JobRoute
from lookalike.api.security import require_admin
from lookalike.errors import InvalidMetadataError
from lookalike.records import DEFAULT_COLLECTION, OnConflict
from lookalike.services.importing import ImportOptions
from lookalike.services.job_run import JobStatus

archives = APIRouter(route_class=ArchiveRoute, tags=["index"])
folders = APIRouter(route_class=JobRoute, tags=["index"])


@archives.post(
    "/index/archive",
    status_code=202,
    summary="Add the pictures of an archive",
    operation_id="index_archive",
    responses={202: ACCEPTED, **responses(400, 401, 408, 409, 413, 415, 422, 503, 507)},
    dependencies=[
        Depends(require_admin),
        Depends(no_query_parameters),
        known_fields("file", "metadata", "folder_field", "on_conflict", "collection"),
    ],
)
def index_archive(
    request: Request,
    file: Annotated[UploadFile, "A zip file, or a tar file, plain or packed: gz, bz2, xz"],
    services: ServicesDep,
    response: Response,
    metadata: Annotated[
        str, Form(description='JSON object for every picture: {"label": "cat"}')
    ] = "",
    folder_field: Annotated[
        str,
        Form(max_length=256, description="Metadata field for the name of the picture's folder"),
    ] = "",
    on_conflict: Annotated[
        OnConflict, Form(description="What to do with ids that exist")
    ] = OnConflict.REPLACE,
    collection: Annotated[
        str, Form(pattern=COLLECTION_PATTERN, description="Made where it does not exist")
    ] = DEFAULT_COLLECTION,
) -> JobOut:
    """Send a zip or tar file as `file`; its pictures are indexed in the background.

    A picture that fails is an error of the job and harms no other.
    """
    file.file.flush()  # so that what is read by its name is whole
    options = ImportOptions(
        collection=collection,
        on_conflict=on_conflict,
        metadata=_one_object(metadata),
        folder_field=folder_field or None,
    )
    spool = request.state.spool
    job = services.imports.begin_archive(spool, file.filename or "", options, services.jobs)
    return _accepted(response, job)


@folders.post(
    "/index/folder",
    status_code=202,
    summary="Add the pictures of a folder of the server",
    operation_id="index_folder",
    responses={202: ACCEPTED, **responses(400, 401, 403, 408, 409, 413, 422, 503, 507)},
    dependencies=[Depends(require_admin)],
)
def index_folder(asked: FolderIn, services: ServicesDep, response: Response) -> JobOut:
    """Its pictures are indexed in the background, as `lookalike index` would.

    Only below the folders of LOOKALIKE_IMPORT_DIRS. The very same work is not begun twice: the
    job that is under way is given again.
    """
    options = ImportOptions(
        collection=asked.collection,
        on_conflict=asked.on_conflict,
        metadata=asked.metadata,
        folder_field=asked.folder_field,
    )
    return _accepted(response, services.imports.begin_folder(asked.path, options, services.jobs))


def _one_object(text: str) -> dict[str, Any] | None:
    (found,) = parse_metadata(text, 1)
    if text.lstrip().startswith("["):
        raise InvalidMetadataError("metadata must be one JSON object, for every picture")
    return found


def _accepted(response: Response, job: JobStatus) -> JobOut:
    response.headers["Location"] = f"/jobs/{job.job.id}"
    return JobOut.of(job)


router = APIRouter()
router.include_router(archives)
router.include_router(folders)
