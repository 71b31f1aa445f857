"""What runs here and whether it works: /info, /health and /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Response
from pydantic import Field

from lookalike import __version__
from lookalike.api.deps import PartsDep
from lookalike.api.errors import responses
from lookalike.api.monitoring import CONTENT_TYPE
from lookalike.api.routers.collections import described
from lookalike.api.security import READ
from lookalike.schemas import Answer, CollectionOut, PassportOut, Schema
from lookalike.services.checks import WINDOW

router = APIRouter(tags=["service"])


class LiveModelOut(Schema):
    """A model that answers now."""

    passport: PassportOut
    provenance: Mapping[str, str]


class RecallOut(Answer):
    """What an approximate index finds of the true answers, measured on real searches."""

    samples: int = Field(description="Searches that were done again exactly, since the start")
    mean: float | None = Field(
        ge=0, le=1, description=f"Mean recall of the last {WINDOW} of them; null before the first"
    )
    dropped: int = Field(description="Chosen, but too many waited already")
    skipped: int = Field(description="Tried, but pictures changed meanwhile or nothing was found")


class InfoOut(Schema):
    """What runs here."""

    version: str
    models: list[LiveModelOut]
    collections: list[CollectionOut]
    recall: dict[str, RecallOut] = Field(
        description="By collection; where the index is approximate, once a search was measured"
    )
    store: dict[str, Any]
    limits: dict[str, int]


class HealthOut(Schema):
    """The service lives, or is ready."""

    status: Literal["ok"] = "ok"


@router.get("/info", summary="What runs here", responses=responses(401), dependencies=READ)
def info(parts: PartsDep) -> InfoOut:
    """Models with their passports, collections, index types, limits and versions."""
    services, settings = parts.services, parts.services.settings
    return InfoOut(
        version=__version__,
        models=[
            LiveModelOut(passport=PassportOut.of(live.spec), provenance=live.encoder.provenance)
            for live in services.encoders.live
        ],
        collections=described(services),
        recall={
            name: RecallOut.of(figures) for name, figures in services.recall_meter.figures().items()
        },
        store=services.store.describe(),
        limits={
            "max_file_bytes": settings.max_file_bytes,
            "max_pixels": settings.max_pixels,
            "max_files": settings.max_files,
            "max_metadata_bytes": settings.max_metadata_bytes,
            "max_batch": settings.max_batch,
            "queue_size": settings.queue_size,
        },
    )


@router.get("/health/live", summary="The process answers")
async def live() -> HealthOut:
    """Answers while every thread is busy."""
    return HealthOut()


@router.get(
    "/health/ready", summary="A picture was embedded and searched", responses=responses(503)
)
async def ready(parts: PartsDep) -> HealthOut:
    """Runs a canary picture through the whole line, within a time limit."""
    await to_thread.run_sync(parts.services.canary.check, limiter=parts.canary_threads)
    return HealthOut()


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **responses(401)},
    dependencies=READ,
)
async def metrics(parts: PartsDep) -> Response:
    """Requests, latencies by stage, batch sizes, queue, index size."""
    figures = await to_thread.run_sync(parts.metrics.render, limiter=parts.metrics_threads)
    return Response(figures, media_type=CONTENT_TYPE)
