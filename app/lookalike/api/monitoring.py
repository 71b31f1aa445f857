"""Log lines (text on a terminal, JSON otherwise), and figures for Prometheus.

Each application has its own registry of figures, so that tests can make several.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from functools import partial
from math import inf
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import EventDict, Processor

from lookalike.api.addresses import Proxies, add_root_path
from lookalike.bootstrap import Services
from lookalike.records import redacted
from lookalike.services.checks import WINDOW

SPARSE_S = 60.0  # between two log lines of a kind that clients can cause
SPARSE_KINDS = 1000
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RECALL = f"Share of the true matches that the index finds: mean of the last {WINDOW} samples"
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics(Collector):
    """Everything that `GET /metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        histogram = partial(Histogram, registry=self.registry)
        seconds = partial(histogram, buckets=_SECONDS)
        self._requests = Counter(
            "lookalike_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._latency = seconds(
            "lookalike_request_seconds",
            "Seconds from the first byte of a request to the last of its answer",
            ("method", "route"),
        )
        self.in_progress = Gauge(
            "lookalike_requests_in_progress", "Requests being answered", registry=self.registry
        )
        self.wrong_keys = Counter(
            "lookalike_wrong_keys", "Wrong keys that were sent", registry=self.registry
        )
        self.connections = Gauge(
            "lookalike_connections", "Open connections", registry=self.registry
        )
        self.connections_ended = Counter(
            "lookalike_connections_ended",
            "Connections that the service ended, and why",
            ("why",),
            registry=self.registry,
        )
        stages = "Seconds in each stage of a call"
        self._stage = seconds("lookalike_stage_seconds", stages, ("call", "stage"))
        self._batch_size = histogram(
            "lookalike_batch_size", "Pictures embedded at once", buckets=_SIZES
        )
        self._batch_seconds = seconds("lookalike_batch_seconds", "Seconds to embed a batch")

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def stages(self, call: str, took_ms: Mapping[str, float]) -> None:
        """Counts where the time of one call went."""
        for stage, milliseconds in took_ms.items():
            self._stage.labels(call, stage).observe(milliseconds / 1000)

    def batch(self, size: int, seconds: float) -> None:
        """Counts one embedded batch; the live encoder calls this."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def watch(self, services: Services) -> None:
        """Adds the figures that are read when they are asked for: queue, collections, recall."""
        self._services = services
        self.registry.register(self)

    def render(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """Reads those figures; called by the registry."""
        queue, images, mean = (
            GaugeMetricFamily(name, text, labels=[label])
            for name, text, label in (
                ("lookalike_queue_length", "Pictures that wait for the network", "model"),
                ("lookalike_images", "Pictures in a collection", "collection"),
                ("lookalike_ann_recall_at_k", _RECALL, "collection"),
            )
        )
        samples = CounterMetricFamily(
            "lookalike_ann_recall_samples",
            "Searches that were chosen to be done again exactly, and what became of them",
            labels=["collection", "outcome"],
        )
        waiting: dict[str, int] = {}  # several encoders may be of one model
        for live in self._services.encoders.live:
            waiting[live.spec.model] = waiting.get(live.spec.model, 0) + live.queue_length
        for model, length in waiting.items():
            queue.add_metric([model], length)
        for info in self._services.store.collections():
            images.add_metric([info.name], info.count)
        for name, figures in self._services.recall_meter.figures().items():
            if figures.mean is not None:
                mean.add_metric([name], figures.mean)
            samples.add_metric([name, "measured"], figures.samples)
            samples.add_metric([name, "dropped"], figures.dropped)
            samples.add_metric([name, "skipped"], figures.skipped)
        check = self._services.originals_check
        checked = CounterMetricFamily(
            "lookalike_originals_checked", "Originals that were read to look for damage"
        )
        checked.add_metric([], check.checked)
        damaged = GaugeMetricFamily(
            "lookalike_originals_damaged", "Originals whose bytes are not those that were sent"
        )
        damaged.add_metric([], len(check.damaged))
        return [queue, images, mean, samples, checked, damaged]


log = logging.getLogger("lookalike.request")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
PROBES = {"/health/live", "/health/ready", "/metrics"}


def _drop_color_message(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Drops the colored copy that uvicorn adds to each message."""
    event.pop("color_message", None)
    return event


def _hide_keys(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Hides what is secret in keys that a text repeats, such as the path of a request."""
    return {
        name: redacted(value) if isinstance(value, str) else value for name, value in event.items()
    }


def configure_logging(level: str = "info", style: Literal["auto", "text", "json"] = "auto") -> None:
    """Sends every library's log lines to standard error in one form.

    Args:
        level: Least severe lines to print: debug, info, warning or error.
        style: `text` for people, `json` for machines, `auto` by whether it is a terminal.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _drop_color_message,
        _hide_keys,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    if style == "json" or (style == "auto" and not sys.stderr.isatty()):
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # our own line says more
    sparse = Sparse()
    for name in ("asyncio", "uvicorn.error", "lookalike.connections", "lookalike.api.errors"):
        logging.getLogger(name).filters = [sparse]
    for name in ("PIL", "faiss", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Sparse(logging.Filter):
    """Lets one line of a kind pass in a minute, with how many were left out before it.

    For warnings that clients can cause as often as they like. A kind is the text up to a colon.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}  # when one passed, how many were left out

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line passes; errors of our own always do."""
        if record.levelno > logging.WARNING and record.name != "asyncio":
            return True
        text = record.getMessage()
        kind = re.split(r"[:\n]", text, maxsplit=1)[0][:100]
        now = time.monotonic()
        passed, left_out = self._seen.get(kind, (-inf, 0))
        if now - passed < SPARSE_S:
            self._seen[kind] = (passed, left_out + 1)
            return False
        if left_out:
            record.msg, record.args = f"{text} ({left_out} more since the last such line)", ()
        if len(self._seen) > SPARSE_KINDS:
            self._seen.clear()
        self._seen[kind] = (now, 0)
        return True


class Observe:
    """Finds out whose each request is, gives it an id, logs it, and counts it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, proxies: Proxies, root_path: str) -> None:
        self._app = app
        self._metrics = metrics
        self._proxies = proxies
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._proxies.resolve(scope)
        add_root_path(scope, self._root_path)
        given = Headers(scope=scope).get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        status = 500
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            self._metrics.in_progress.track_inprogress(),
        ):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                self._report(scope, status, time.perf_counter() - started)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method, path = scope["method"], scope["path"]
        known = method if method in _METHODS else "OTHER"
        self._metrics.request(known, route, status, seconds)
        level = logging.DEBUG if route in PROBES and status < 500 else logging.INFO
        facts = {
            "method": method,
            "path": path,
            "status": status,
            "took_ms": round(seconds * 1000, 1),
            "client": (scope.get("client") or ("",))[0],
        }
        log.log(level, "%s %s %d", method, path, status, extra=facts)
