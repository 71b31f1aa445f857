"""What runs here and whether it works: /info, /health and /metrics."""

from __future__ import annotations

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request, Response

from lookalike import __version__
from lookalike.api.deps import ServicesDep
from lookalike.api.errors import responses
from lookalike.api.metrics import CONTENT_TYPE
from lookalike.api.routers.collections import described
from lookalike.api.schemas import HealthOut, InfoOut, LiveModelOut, PassportOut, RecallOut
from lookalike.api.security import require_read

router = APIRouter(tags=["service"])


@router.get(
    "/info",
    summary="What runs here",
    operation_id="info",
    responses=responses(401),
    dependencies=[Depends(require_read)],
)
def info(services: ServicesDep) -> InfoOut:
    """Models with their specs, collections, index types, limits and versions."""
    settings = services.settings
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


@router.get("/health/live", summary="The process answers", operation_id="live")
async def live() -> HealthOut:
    """Answers while every thread is busy."""
    return HealthOut()


@router.get(
    "/health/ready",
    summary="A picture was embedded and searched",
    operation_id="ready",
    responses=responses(503),
)
async def ready(request: Request) -> HealthOut:
    """Runs a canary picture through the whole line, within a time limit."""
    limiter: CapacityLimiter = request.app.state.canary_threads
    await to_thread.run_sync(request.app.state.services.canary.check, limiter=limiter)
    return HealthOut()


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **responses(401)},
    dependencies=[Depends(require_read)],
)
async def metrics(request: Request) -> Response:
    """Requests, latencies by stage, batch sizes, queue, index size."""
    limiter: CapacityLimiter = request.app.state.metrics_threads
    figures = await to_thread.run_sync(request.app.state.metrics.render, limiter=limiter)
    return Response(figures, media_type=CONTENT_TYPE)
