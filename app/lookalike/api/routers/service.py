"""What runs here: /collections and /jobs, /info, /health and /metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ConfigDict, Field
from starlette.types import Receive, Scope, Send

from lookalike import __version__
from lookalike.api.audit import note
from lookalike.api.caching import is_head
from lookalike.api.deps import COLLECTION_PATTERN, FilterQuery, Parts, PartsDep, Route
from lookalike.api.errors import responses
from lookalike.api.security import ADMIN, READ, WRITE
from lookalike.api.uploads import JsonRoute
from lookalike.bootstrap import move_request
from lookalike.errors import LookalikeError, RequestTooLargeError
from lookalike.models.base import Modality
from lookalike.progress import log_failure
from lookalike.records import Access, CollectionInfo
from lookalike.schemas import (
    Answer,
    CollectionOut,
    CollectionsOut,
    CountOut,
    FacetsOut,
    JobOut,
    JobsOut,
    PassportOut,
    PathsOut,
    Schema,
    VectorSetOut,
    VectorSetsOut,
)
from lookalike.services.backup import TarBackup
from lookalike.services.checks import WINDOW
from lookalike.services.jobs import IMPORT_KINDS, REEMBED_KIND, TAG_KIND, JobStatus
from lookalike.services.pictures import MAX_VALUES
from lookalike.services.tagging import MAX_BEST, MAX_LABEL, MAX_LABELS, Tagging
from lookalike.store.base import unknown_collection
from lookalike.store.filters import MAX_NAMED_FIELDS, parse_filter

ACCEPTED = {
    "description": "The job waits or runs; GET its Location to see how far it is",
    "headers": {"Location": {"schema": {"type": "string"}, "description": "/jobs/{id}"}},
}
"""OpenAPI's description of an answer 202 with a job."""

PATH_PATTERN = r"^[^\x00-\x1f\x7f]+$"

CollectionName = Annotated[str, Path(pattern=COLLECTION_PATTERN, max_length=63)]
Digest = Annotated[
    str, Path(description="`digest` of the passport that made them", pattern="^[0-9a-f]{16}$")
]
JobId = Annotated[str, Path(description="The job's id", pattern="^[0-9a-f]{16}$")]


class JobRoute(JsonRoute):
    """A route that may take a body of JSON."""

    too_large = RequestTooLargeError


router = APIRouter()
_collections = APIRouter(prefix="/collections", tags=["collections"], route_class=Route)
_service = APIRouter(tags=["service"], route_class=Route)
_jobs = APIRouter(route_class=JobRoute, tags=["jobs"])


class ReembedIn(Schema):
    """The model to move a collection to; what is left out is the service's own setting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, pattern=PATH_PATTERN, max_length=1024)
    """resnet18, 34, 50, 101 or 152"""
    weights: str | None = Field(None, pattern=PATH_PATTERN, max_length=1024)
    """A torchvision weights name, a path on the service's machine, or random"""
    pooling: Literal["avg", "flatten"] | None = None
    resize: Literal["squash", "crop"] | None = None
    input_size: int | None = Field(None, ge=32, le=1024)
    """Side of the network's input; null: the model's own"""
    head: str | None = Field(None, pattern=PATH_PATTERN, max_length=1024)
    """A head's file on the service's machine; null: no head"""
    int8: bool | None = None
    """Whether the newest int8 network of these settings makes the vectors"""

    def given(self) -> dict[str, Any]:
        """Returns what was sent. Null counts only for `head` and `input_size`."""
        sent = self.model_dump(exclude_unset=True).items()
        null = {"head", "input_size"}
        return {name: value for name, value in sent if value is not None or name in null}


class RenameIn(Schema):
    """The new name of a collection."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: str = Field(pattern=COLLECTION_PATTERN, max_length=63, examples=["default"])


class AliasIn(Schema):
    """The collection that an alias leads to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    collection: str = Field(pattern=COLLECTION_PATTERN, max_length=63, examples=["default"])


@_collections.get("", summary="List collections", responses=responses(401), dependencies=READ)
def list_collections(parts: PartsDep) -> CollectionsOut:
    """Every collection with its count and what made its vectors."""
    infos, live = parts.services.store.collections(), parts.services.encoders.live
    return CollectionsOut(collections=CollectionOut.of_all(infos, live))


def _described(info: CollectionInfo, parts: Parts) -> CollectionOut:
    (out,) = CollectionOut.of_all([info], parts.services.encoders.live)
    return out


@_collections.put(
    "/{name}",
    summary="Make an empty collection",
    responses={
        201: {"model": CollectionOut, "description": "It was made"},
        **responses(401, 403, 422, 503, 507),
    },
    dependencies=WRITE,
)
def make_collection(name: CollectionName, parts: PartsDep, response: Response) -> CollectionOut:
    """For the vectors of the service's own model; 200 if it is there already, unchanged."""
    services = parts.services
    made = services.collections.make(name, services.encoders.default.encoder)
    response.status_code = 201 if made else 200
    found = services.store.collection(name)
    if found is None:  # deleted at this very moment
        raise unknown_collection(name)
    return _described(found, parts)


@_jobs.post(
    "/collections/{name}/rename",
    summary="Give a collection another name",
    responses=responses(400, 401, 403, 404, 408, 409, 413, 422, 503, 507),
    dependencies=ADMIN,
    tags=["collections"],
)
def rename_collection(
    request: Request, name: CollectionName, asked: RenameIn, parts: PartsDep
) -> CollectionOut:
    """In one step; no picture is touched. Refused while a job works on the collection."""
    note(request, to=asked.to)
    found = parts.services.collections.rename(name, asked.to)
    return _described(found, parts)


@_jobs.put(
    "/aliases/{alias}",
    summary="Give a collection a second name, or move it to another one",
    responses=responses(400, 401, 403, 404, 408, 409, 413, 422, 503, 507),
    dependencies=ADMIN,
    tags=["collections"],
)
def put_alias(
    request: Request, alias: CollectionName, asked: AliasIn, parts: PartsDep
) -> CollectionOut:
    """In one step: each call that names the alias reaches the one collection or the other."""
    note(request, collection=asked.collection)
    found = parts.services.collections.alias(alias, asked.collection)
    return _described(found, parts)


@_service.delete(
    "/aliases/{alias}",
    status_code=204,
    summary="Remove an alias",
    responses=responses(401, 403, 404, 422, 503, 507),
    dependencies=ADMIN,
    tags=["collections"],
)
def delete_alias(alias: CollectionName, parts: PartsDep) -> Response:
    """Its collection stays."""
    parts.services.collections.unalias(alias)
    return Response(status_code=204)


@_collections.delete(
    "/{name}",
    status_code=204,
    summary="Delete a collection",
    responses=responses(401, 403, 404, 409, 422, 507),
    dependencies=ADMIN,
)
def delete_collection(name: CollectionName, parts: PartsDep) -> Response:
    """All of its pictures, vectors and files go; imports into it end."""
    parts.services.collections.drop(name)
    return Response(status_code=204)


@_collections.get(
    "/{name}/count",
    summary="Count the pictures that pass a filter",
    responses=responses(401, 404, 422, 503),
    dependencies=READ,
)
def count_images(name: CollectionName, parts: PartsDep, filter: FilterQuery = None) -> CountOut:
    """All pictures of the collection if there is no filter."""
    pictures, where = parts.services.pictures, parse_filter(filter)
    count = pictures.count(name, where)
    return CountOut(collection=name, count=count, warnings=pictures.warnings(name, where))


@_collections.get(
    "/{name}/paths",
    summary="List the paths that pictures were seen at, below one root",
    responses=responses(401, 404, 422),
    dependencies=READ,
)
def list_paths(
    name: CollectionName,
    parts: PartsDep,
    root: Annotated[
        str,
        Query(max_length=4096, description="A folder that was indexed, an archive or a manifest"),
    ],
) -> PathsOut:
    """Each with the id of its picture; nothing if no picture came from there."""
    paths = parts.services.pictures.seen(name, root)
    return PathsOut(collection=name, root=root, paths=paths)


@_collections.get(
    "/{name}/facets",
    summary="Count the values of metadata fields",
    responses=responses(401, 404, 422, 503),
    dependencies=READ,
)
def list_facets(
    name: CollectionName,
    parts: PartsDep,
    filter: FilterQuery = None,
    field: Annotated[
        list[str] | None,
        Query(
            description="A field, e.g. label or size.w; may be repeated. Default: the 32 that most "
            "pictures have",
            max_length=MAX_NAMED_FIELDS,
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_VALUES, description="Most values of a field")] = 10,
) -> FacetsOut:
    """For each field, how many pictures have it, its most frequent values, and its range."""
    pictures, where = parts.services.pictures, parse_filter(filter)
    found = pictures.facets(name, fields=field, where=where, limit=limit)
    warnings = pictures.warnings(name, where, fields=field or ())
    return FacetsOut.of_all(name, found, warnings)


@_collections.get(
    "/{name}/vectors",
    summary="List the vectors of a collection",
    responses=responses(401, 404, 422),
    dependencies=READ,
)
def list_vectors(name: CollectionName, parts: PartsDep) -> VectorSetsOut:
    """One set for each model that the collection was embedded with; searches use the active one."""
    sets = parts.services.collections.vector_sets(name)
    return VectorSetsOut(collection=name, vectors=[VectorSetOut.of(one) for one in sets])


@_collections.delete(
    "/{name}/vectors/{digest}",
    status_code=204,
    summary="Delete the vectors of a model that the collection no longer uses",
    responses=responses(401, 403, 404, 409, 422, 507),
    dependencies=ADMIN,
)
def delete_vectors(name: CollectionName, digest: Digest, parts: PartsDep) -> Response:
    """Frees their space on the disk; going back to that model means embedding again."""
    parts.services.collections.discard(name, digest)
    return Response(status_code=204)


def accepted(request: Request, parts: Parts, response: Response, job: JobStatus) -> JobOut:
    """Answers 202 with a job that began: notes it, and puts its address into the header."""
    note(request, job=job.job.id)
    response.headers["Location"] = f"{parts.links.root_path}/jobs/{job.job.id}"
    return JobOut.of(job)


@_jobs.post(
    "/collections/{name}/reembed",
    status_code=202,
    summary="Move a collection to another model",
    responses={202: ACCEPTED, **responses(400, 401, 403, 404, 408, 413, 422, 503, 507)},
    dependencies=ADMIN,
)
def reembed(
    request: Request,
    name: CollectionName,
    parts: PartsDep,
    response: Response,
    asked: ReembedIn | None = None,
) -> JobOut:
    """New vectors for every picture, in the background; the old ones answer until the switch.

    The very same work is not begun twice: the job that is under way is given again.
    """
    services = parts.services
    services.reembedding.require(name)
    model = move_request(services.settings, asked.given() if asked else None)
    job = services.jobs.start(REEMBED_KIND, services.reembedding.parameters(name, model))
    return accepted(request, parts, response, job)


class TagIn(Schema):
    """The labels, and where they go."""

    model_config = ConfigDict(extra="forbid", strict=True)

    labels: list[str] = Field(
        min_length=1, max_length=MAX_LABELS, examples=[["red", "green", "blue"]]
    )
    """Texts, of at most 200 characters"""
    field: str = Field("tags", min_length=1, max_length=MAX_LABEL)
    """Metadata field that is written: an object of `labels`, best first, and their `scores`"""
    templates: list[str] = Field(["{}"], min_length=1, max_length=100)
    """Texts with {} in the place of the label, such as `a photo of a {}`"""
    k: int = Field(1, ge=1, le=MAX_BEST)
    """Most labels of one picture"""
    min_score: float | None = Field(None, ge=-1, le=1)
    """Cosine below which labels are left out"""


@_jobs.post(
    "/collections/{name}/tag",
    status_code=202,
    summary="Label pictures by texts",
    responses={202: ACCEPTED, **responses(400, 401, 403, 404, 408, 409, 413, 422, 503, 507)},
    dependencies=WRITE,
)
def tag(
    request: Request, name: CollectionName, parts: PartsDep, response: Response, asked: TagIn
) -> JobOut:
    """The labels that fit each picture best, in the background; needs a model that takes texts.

    The very same work is not begun twice: the job that is under way is given again.
    """
    services = parts.services
    tagging = Tagging(collection=name, **asked.model_dump())
    job = services.jobs.start(TAG_KIND, services.tagging.parameters(tagging))
    return accepted(request, parts, response, job)


class RollbackIn(Schema):
    """Which vectors to go back to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    digest: str | None = Field(None, pattern="^[0-9a-f]{16}$")
    """`digest` of their passport; null: the only ones that are not in use"""


@_jobs.post(
    "/collections/{name}/rollback",
    status_code=202,
    summary="Go back to vectors that were kept",
    responses={202: ACCEPTED, **responses(400, 401, 403, 404, 408, 413, 422, 503, 507)},
    dependencies=ADMIN,
)
def rollback(
    request: Request,
    name: CollectionName,
    parts: PartsDep,
    response: Response,
    asked: RollbackIn | None = None,
) -> JobOut:
    """Undoes a move to another model or head; pictures that came since get their vectors first."""
    services = parts.services
    model = services.reembedding.way_back(name, asked.digest if asked else None)
    job = services.jobs.start(REEMBED_KIND, services.reembedding.parameters(name, model))
    return accepted(request, parts, response, job)


class BackupIn(Schema):
    """What the backup holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: bool = False
    """Whether the service's keys are in it"""


class TarResponse(StreamingResponse):
    """A backup as a tar file. If it fails, the connection ends in the middle, so all can tell."""

    def __init__(self, tar: TarBackup, name: str, *, head: bool) -> None:
        self._tar = tar
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Backup-Bytes": str(tar.size),
        }
        content = () if head else iter(tar)
        super().__init__(content, headers=headers, media_type="application/x-tar")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and removes the copy of the catalog however the answer ends."""
        try:
            await super().__call__(scope, receive, send)
        except LookalikeError as exc:
            log_failure(exc, "a backup that was being sent ends here")
        finally:
            await to_thread.run_sync(self._tar.close)


@_jobs.post(
    "/backup",
    status_code=202,
    summary="Bring the service's backup folder up to date",
    responses={202: ACCEPTED, **responses(400, 401, 403, 408, 413, 422, 503, 507)},
    dependencies=ADMIN,
)
def begin_backup(
    request: Request, parts: PartsDep, response: Response, asked: BackupIn | None = None
) -> JobOut:
    """A new version in the folder that `LOOKALIKE_BACKUP_DIR` names, in the background."""
    keys = asked is not None and asked.keys
    job = parts.services.backups.start(parts.services.jobs, keys=keys)
    note(request, keys=keys)
    return accepted(request, parts, response, job)


@_jobs.get(
    "/backup",
    summary="Download a backup",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/x-tar": {}}},
        **responses(401, 403, 409, 422, 503, 507),
    },
    dependencies=ADMIN,
)
def download_backup(
    request: Request,
    parts: PartsDep,
    keys: Annotated[bool, Query(description="Whether the service's keys are in it")] = False,
    packed: Annotated[bool, Query(description="Whether it is packed with gzip")] = False,
) -> Response:
    """A tar file of all collections with originals, heads and int8 networks.

    It is whole if its last file is `manifest.json`; `lookalike restore` checks that.
    """
    note(request, keys=keys)
    services = parts.services
    tar = services.backups.tar(services.files.tmp, keys=keys, packed=packed)
    moment = re.sub("[-:]", "", tar.backup.created_at[:19])
    name = f"lookalike-{moment}.tar{'.gz' if packed else ''}"
    return TarResponse(tar, name, head=is_head(request))


@_jobs.get(
    "/jobs", summary="List jobs", responses=responses(401, 403, 422, 503), dependencies=ADMIN
)
def list_jobs(
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most jobs to return")] = 100,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the jobs before", max_length=64)
    ] = None,
) -> JobsOut:
    """The newest first; those that ended long ago are forgotten."""
    found, next_cursor = parts.services.jobs.page(cursor=cursor or None, limit=limit)
    return JobsOut(jobs=[JobOut.of(one) for one in found], next_cursor=next_cursor)


@_jobs.get(
    "/jobs/{job_id}",
    summary="How far a job is",
    responses=responses(401, 403, 404, 422, 503),
    dependencies=WRITE,
)
def get_job(job_id: JobId, parts: PartsDep) -> JobOut:
    """Progress, rate, errors so far and time left."""
    return JobOut.of(parts.services.jobs.get(job_id))


@_jobs.post(
    "/jobs/{job_id}/cancel",
    summary="End a job",
    responses=responses(401, 403, 404, 422, 503, 507),
    dependencies=WRITE,
)
def cancel_job(request: Request, job_id: JobId, parts: PartsDep) -> JobOut:
    """At its next step; what it did is kept, and one that ended stays as it is.

    A job that neither imports nor labels needs a key that may begin it: one of scope admin.
    """
    if parts.services.jobs.get(job_id).job.kind not in {*IMPORT_KINDS, TAG_KIND}:
        parts.keys.check(request, Access.ADMIN)
    return JobOut.of(parts.services.jobs.cancel(job_id))


class LiveModelOut(Schema):
    """A model that answers now."""

    passport: PassportOut
    provenance: Mapping[str, str]
    modalities: list[Modality] = Field(description="What queries may be: `image`, `text`")


class RecallOut(Answer):
    """What an approximate index finds of the true answers, measured on real searches."""

    samples: int = Field(description="Searches that were done again exactly, since the start")
    mean: float | None = Field(
        ge=0, le=1, description=f"Mean recall of the last {WINDOW} of them; null before the first"
    )
    dropped: int = Field(description="Chosen, but too many waited already")
    skipped: int = Field(description="Tried, but pictures changed meanwhile or nothing was found")


class OriginalsOut(Answer):
    """What reading the kept originals again in the background has found."""

    checked: int = Field(description="Originals that were read, since the start")
    rounds: int = Field(description="How often all of them were read, since the start")
    damaged: list[str] = Field(description="Files that do not hold what was sent; at most 100")


class InfoOut(Schema):
    """What runs here."""

    version: str
    models: list[LiveModelOut]
    collections: list[CollectionOut]
    recall: dict[str, RecallOut]
    """By collection; where the index is approximate, once a search was measured"""
    originals: OriginalsOut
    store: dict[str, Any]
    limits: dict[str, int]


class HealthOut(Schema):
    """The service lives, or is ready."""

    status: Literal["ok"] = "ok"


_SHOWN = 100  # damaged originals
_LIMITS = [f"max_{what}" for what in ("file_bytes", "pixels", "files", "metadata_bytes", "batch")]
_LIMITS.append("queue_size")


@_service.get("/info", summary="What runs here", responses=responses(401), dependencies=READ)
def info(parts: PartsDep) -> InfoOut:
    """Models with their passports, collections, index types, limits and versions."""
    services, settings = parts.services, parts.services.settings
    check = services.originals_check
    return InfoOut(
        version=__version__,
        models=[
            LiveModelOut(
                passport=PassportOut.of(live.spec),
                provenance=live.encoder.provenance,
                modalities=sorted(live.encoder.modalities),
            )
            for live in services.encoders.live
        ],
        collections=CollectionOut.of_all(services.store.collections(), services.encoders.live),
        recall={
            name: RecallOut.of(figures) for name, figures in services.recall_meter.figures().items()
        },
        originals=OriginalsOut(
            checked=check.checked, rounds=check.rounds, damaged=list(check.damaged[:_SHOWN])
        ),
        store=services.store.describe(),
        limits={name: getattr(settings, name) for name in _LIMITS},
    )


@_service.get("/health/live", summary="The process answers")
async def live() -> HealthOut:
    """Answers while every thread is busy."""
    return HealthOut()


@_service.get(
    "/health/ready", summary="A picture was embedded and searched", responses=responses(503)
)
async def ready(parts: PartsDep) -> HealthOut:
    """Runs a canary picture through the whole line, within a time limit."""
    await to_thread.run_sync(parts.services.canary.check, limiter=parts.canary_threads)
    return HealthOut()


@_service.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **responses(401)},
    dependencies=READ,
)
async def metrics(parts: PartsDep) -> Response:
    """Requests, latencies by stage, batch sizes, queue, index size."""
    figures = await to_thread.run_sync(parts.metrics.render, limiter=parts.metrics_threads)
    return Response(figures, media_type=CONTENT_TYPE_LATEST)


for part in (_collections, _jobs, _service):
    router.include_router(part)
