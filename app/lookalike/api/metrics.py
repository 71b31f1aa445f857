"""Figures for Prometheus; one registry for each application, so that tests can make several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lookalike.bootstrap import Services
from lookalike.services.recall_meter import WINDOW

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Everything that `GET /metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lookalike_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "lookalike_request_seconds",
            "Seconds from the first byte of a request to the last of its answer",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stage = Histogram(
            "lookalike_stage_seconds",
            "Seconds in each stage of a call",
            ("call", "stage"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "lookalike_batch_size",
            "Pictures embedded at once",
            buckets=_SIZES,
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "lookalike_batch_seconds",
            "Seconds to embed a batch",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "lookalike_requests_in_progress", "Requests being answered", registry=self.registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def stages(self, call: str, took_ms: Mapping[str, float]) -> None:
        """Counts where the time of one call went."""
        for stage, milliseconds in took_ms.items():
            self._stage.labels(call, stage).observe(milliseconds / 1000)

    def batch(self, size: int, seconds: float) -> None:
        """Counts one embedded batch; the batcher calls this."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def watch(self, services: Services) -> None:
        """Adds the figures that are read when they are asked for: queue, collections, recall."""
        self.registry.register(_Live(services))

    def render(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _Live(Collector):
    """Figures that are read when they are asked for."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        queue = GaugeMetricFamily(
            "lookalike_queue_length", "Pictures that wait for the network", labels=["model"]
        )
        for live in self._services.encoders.live:
            queue.add_metric([live.spec.model], live.batcher.queue_length)
        yield queue
        images = GaugeMetricFamily(
            "lookalike_images", "Pictures in a collection", labels=["collection"]
        )
        for info in self._services.store.collections():
            images.add_metric([info.name], info.count)
        yield images
        yield from self._recall()

    def _recall(self) -> Iterable[Metric]:
        mean = GaugeMetricFamily(
            "lookalike_ann_recall_at_k",
            f"Share of the true matches that the index finds: mean of the last {WINDOW} samples",
            labels=["collection"],
        )
        samples = CounterMetricFamily(
            "lookalike_ann_recall_samples",
            "Searches that were chosen to be done again exactly, and what became of them",
            labels=["collection", "outcome"],
        )
        for name, figures in self._services.recall_meter.figures().items():
            if figures.mean is not None:
                mean.add_metric([name], figures.mean)
            samples.add_metric([name, "measured"], figures.samples)
            samples.add_metric([name, "dropped"], figures.dropped)
            samples.add_metric([name, "skipped"], figures.skipped)
        yield mean
        yield samples
