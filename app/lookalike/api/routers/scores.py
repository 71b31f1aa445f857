"""What scores mean, /collections/{name}/calibration, and what people say of matches, /feedback."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Form, Path, Query, Request, Response, UploadFile
from pydantic import ConfigDict, Field

from lookalike.api.audit import note
from lookalike.api.deps import (
    COLLECTION_PATTERN,
    ID_PATTERN,
    CollectionQuery,
    PartsDep,
    known_fields,
)
from lookalike.api.errors import responses
from lookalike.api.routers.service import ACCEPTED, CollectionName, JobRoute, accepted
from lookalike.api.security import ADMIN, READ, WRITE
from lookalike.api.uploads import UploadRoute
from lookalike.records import DEFAULT_COLLECTION
from lookalike.schemas import CalibrationOut, JobOut, JudgementOut, JudgementsOut, Schema
from lookalike.services.calibrating import remove_calibration, require_calibration
from lookalike.services.jobs import CALIBRATE_KIND
from lookalike.services.scores import CalibrationOptions

router = APIRouter()
_calibration = APIRouter(
    prefix="/collections/{name}/calibration", route_class=JobRoute, tags=["scores"]
)
_judge = APIRouter(route_class=UploadRoute, tags=["scores"])
_feedback = APIRouter(prefix="/feedback", tags=["scores"])


class CalibrationIn(Schema):
    """What a calibration is made from."""

    model_config = ConfigDict(extra="forbid", strict=True)

    label_field: str | None = Field(None, min_length=1, max_length=256)
    """A metadata field that says what a picture shows; null: judgements decide, if there are
    enough, below which score nothing matches"""
    false_alarms: float = Field(0.05, ge=0.001, le=0.5)
    """Share of queries without a right picture that may be answered with a match"""
    sample: int = Field(200, ge=20, le=2000)
    """Pictures of which copies are made"""
    seed: int = Field(0, ge=0, lt=2**32)
    """Chooses them"""


@_calibration.get(
    "",
    summary="What the scores of a collection mean",
    responses=responses(401, 404, 422),
    dependencies=READ,
)
def get_calibration(name: CollectionName, parts: PartsDep) -> CalibrationOut:
    """Under the collection's active model; 404 until it was calibrated under this one."""
    return CalibrationOut.of(require_calibration(parts.services.store, name))


@_calibration.post(
    "",
    status_code=202,
    summary="Calibrate the scores of a collection",
    responses={202: ACCEPTED, **responses(400, 401, 403, 404, 408, 413, 422, 503, 507)},
    dependencies=ADMIN,
)
def calibrate(
    request: Request,
    name: CollectionName,
    parts: PartsDep,
    response: Response,
    asked: CalibrationIn | None = None,
) -> JobOut:
    """Copies of some of its pictures are searched for, in the background."""
    services = parts.services
    options = CalibrationOptions(**asked.model_dump(exclude_unset=True) if asked else {})
    job = services.jobs.start(CALIBRATE_KIND, services.calibrations.parameters(name, options))
    return accepted(request, parts, response, job)


@_calibration.delete(
    "",
    status_code=204,
    summary="Forget what the scores of a collection mean",
    responses=responses(401, 403, 404, 422, 507),
    dependencies=ADMIN,
)
def delete_calibration(name: CollectionName, parts: PartsDep) -> Response:
    """Answers of searches then say nothing about copies, or about whether anything matches."""
    remove_calibration(parts.services.store, name)
    return Response(status_code=204)


@_judge.post(
    "/feedback",
    status_code=201,
    summary="Say whether a match is right",
    responses={
        200: {"model": JudgementOut, "description": "The same was said before"},
        **responses(400, 401, 403, 404, 408, 409, 413, 415, 422, 503, 507),
    },
    dependencies=[*WRITE, known_fields("file", "query", "match", "right", "collection")],
)
def judge(
    request: Request,
    parts: PartsDep,
    response: Response,
    match: Annotated[
        str, Form(description="The match's id", pattern=ID_PATTERN, examples=["9f86d081884c7d65"])
    ],
    right: Annotated[bool, Form(description="Whether it is a right match")],
    query: Annotated[
        str, Form(description="Id of the stored picture that was searched with, or empty")
    ] = "",
    file: Annotated[
        UploadFile | None, File(description="The picture that was searched with, if not stored")
    ] = None,
    collection: Annotated[
        str, Form(pattern=COLLECTION_PATTERN, description="Where it was searched")
    ] = DEFAULT_COLLECTION,
) -> JudgementOut:
    """Of a query (`query` or `file`) and a match, what was said last counts.

    Judgements say below which score nothing matches (POST /collections/{name}/calibration), and
    `lookalike train --from-feedback` learns from them.
    """
    found, is_new = parts.services.feedback.judge(
        collection,
        match,
        right=right,
        query=query or None,
        picture=None if file is None else file.file,
    )
    note(request, collection=collection, id=found.id, query=found.query, match=match, right=right)
    if not is_new:
        response.status_code = 200
    return JudgementOut.of(found)


@_feedback.get(
    "",
    summary="List what was said of matches",
    responses=responses(401, 404, 422),
    dependencies=READ,
)
def list_feedback(
    parts: PartsDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most judgements to return")] = 100,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of those before", max_length=64)
    ] = None,
) -> JudgementsOut:
    """The oldest first. A judgement goes with its query and its match."""
    found, next_cursor = parts.services.store.judgements.page(
        collection, cursor=cursor or None, limit=limit
    )
    judgements = [JudgementOut.of(one) for one in found]
    return JudgementsOut(collection=collection, judgements=judgements, next_cursor=next_cursor)


@_feedback.delete(
    "/{judgement_id}",
    status_code=204,
    summary="Take back what was said of a match",
    responses=responses(401, 403, 404, 422, 507),
    dependencies=WRITE,
)
def delete_feedback(
    request: Request,
    judgement_id: Annotated[str, Path(description="The judgement's id", pattern="^[0-9a-f]{16}$")],
    parts: PartsDep,
    collection: CollectionQuery = DEFAULT_COLLECTION,
) -> Response:
    """It is as if it had never been said."""
    note(request, collection=collection)
    parts.services.store.judgements.delete(collection, judgement_id)
    return Response(status_code=204)


for part in (_calibration, _judge, _feedback):
    router.include_router(part)
