"""GET /explain and POST /explain."""

from __future__ import annotations

from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Form, Query, Request, Response, UploadFile

from lookalike.api.deps import (
    COLLECTION_PATTERN,
    ID_PATTERN,
    CollectionQuery,
    Parts,
    PartsDep,
    known_fields,
)
from lookalike.api.errors import responses
from lookalike.api.security import READ
from lookalike.api.uploads import UploadRoute
from lookalike.records import DEFAULT_COLLECTION
from lookalike.schemas import ExplanationOut
from lookalike.visualization.heat import drawing

_FORMAT = "json: scores, shares and the drawing as a data address; png: the drawing alone"
_ID: dict[str, Any] = {"pattern": ID_PATTERN, "max_length": 128}

router = APIRouter(route_class=UploadRoute, tags=["search"])
_OK: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


@router.get(
    "/explain",
    response_model=ExplanationOut,
    summary="Say why two stored pictures are alike",
    responses=_OK | responses(401, 404, 409, 410, 413, 415, 422, 503),
    dependencies=READ,
)
def explain_stored(
    request: Request,
    parts: PartsDep,
    query: Annotated[str, Query(description="The id of one picture", **_ID)],
    match: Annotated[str, Query(description="The id of the other", **_ID)],
    collection: CollectionQuery = DEFAULT_COLLECTION,
    kind: Annotated[Literal["json", "png"], Query(alias="format", description=_FORMAT)] = "json",
) -> Response:
    """What each part of both adds to their score. Needs a model that averages over positions."""
    with parts.admission.place(parts.proxies.client_of(request)):
        return _answer(parts, collection, query, match, kind)


@router.post(
    "/explain",
    response_model=ExplanationOut,
    summary="Say why a stored picture is like yours",
    responses=_OK | responses(400, 401, 404, 408, 409, 410, 413, 415, 422, 503, 507),
    dependencies=[*READ, known_fields("file", "match", "collection", "format")],
)
def explain(
    file: Annotated[UploadFile, "The picture"],
    parts: PartsDep,
    match: Annotated[str, Form(description="The id of a picture that was found", **_ID)],
    collection: Annotated[
        str, Form(pattern=COLLECTION_PATTERN, description="Where it is")
    ] = DEFAULT_COLLECTION,
    kind: Annotated[Literal["json", "png"], Form(alias="format", description=_FORMAT)] = "json",
) -> Response:
    """What each part of both adds to their score, as GET /explain does for two stored pictures."""
    return _answer(parts, collection, file.file, match, kind)


def _answer(
    parts: Parts, collection: str, query: str | BinaryIO, match: str, kind: str
) -> Response:
    explanation = parts.services.explaining.explain(collection, query, match)
    parts.metrics.stages("explain", explanation.took_ms)
    png = drawing(explanation)
    if kind == "png":
        return Response(png, media_type="image/png")
    text = ExplanationOut.drawn(explanation, png).model_dump_json()
    return Response(text, media_type="application/json")
