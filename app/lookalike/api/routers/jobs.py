"""POST /collections/{name}/reembed, and what becomes of such long work: /jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from lookalike.api.deps import COLLECTION_PATTERN, ServicesDep
from lookalike.api.errors import responses
from lookalike.api.job_schemas import ACCEPTED, JobOut, JobsOut, ReembedIn
from lookalike.api.security import require_admin
from lookalike.api.uploads import JsonRoute
from lookalike.errors import RequestTooLargeError
from lookalike.model_recipes import recipe_of


class JobRoute(JsonRoute):
    """A route whose body, where it has one, says what to do."""

    too_large = RequestTooLargeError


router = APIRouter(route_class=JobRoute, tags=["jobs"], dependencies=[Depends(require_admin)])

JobId = Annotated[str, Path(description="The job's id", pattern="^[0-9a-f]{16}$")]


@router.post(
    "/collections/{name}/reembed",
    status_code=202,
    summary="Move a collection to another model",
    operation_id="reembed",
    responses={202: ACCEPTED, **responses(400, 401, 404, 408, 413, 422, 503, 507)},
)
def reembed(
    name: Annotated[str, Path(pattern=COLLECTION_PATTERN, max_length=63)],
    services: ServicesDep,
    response: Response,
    asked: ReembedIn | None = None,
) -> JobOut:
    """New vectors for every picture, in the background; the old ones answer until the switch.

    The very same work is not begun twice: the job that is under way is given again.
    """
    services.reembedding.require(name)
    recipe = recipe_of(services.settings, asked.given() if asked else None)
    job = services.jobs.start("reembed", services.reembedding.parameters(name, recipe))
    response.headers["Location"] = f"/jobs/{job.job.id}"
    return JobOut.of(job)


@router.get(
    "/jobs",
    summary="List jobs",
    operation_id="list_jobs",
    responses=responses(401, 422, 503),
)
def list_jobs(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most jobs to return")] = 100,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the jobs before", max_length=64)
    ] = None,
) -> JobsOut:
    """The newest first; those that ended long ago are forgotten."""
    found, next_cursor = services.jobs.page(cursor=cursor or None, limit=limit)
    return JobsOut(jobs=[JobOut.of(one) for one in found], next_cursor=next_cursor)


@router.get(
    "/jobs/{job_id}",
    summary="How far a job is",
    operation_id="get_job",
    responses=responses(401, 404, 422, 503),
)
def get_job(job_id: JobId, services: ServicesDep) -> JobOut:
    """Progress, rate, errors so far and time left."""
    return JobOut.of(services.jobs.get(job_id))


@router.post(
    "/jobs/{job_id}/cancel",
    summary="End a job",
    operation_id="cancel_job",
    responses=responses(401, 404, 422, 503, 507),
)
def cancel_job(job_id: JobId, services: ServicesDep) -> JobOut:
    """At its next step; what it did is kept, and one that ended stays as it is."""
    return JobOut.of(services.jobs.cancel(job_id))
