"""The parts that the application makes when it starts, and that requests use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio import CapacityLimiter
from fastapi import Request

from lookalike.bootstrap import Services

if TYPE_CHECKING:
    from lookalike.api.metrics import Metrics
    from lookalike.api.security import Keys
    from lookalike.api.uploads import Admission, ArchiveUploadLimits, UploadLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running application.

    Attributes:
        services: The use cases.
        keys: The keys in force.
        metrics: Where calls are counted.
        admission: Places for requests that wait for the network.
        archive_admission: Places for archives that are being sent.
        search_limits: Limits on a body with one picture, and on a body of JSON.
        index_limits: Limits on a body with many pictures.
        archive_limits: Limits on a body with an archive.
        canary_threads: Threads for `GET /health/ready`.
        metrics_threads: Threads for `GET /metrics`.
    """

    services: Services
    keys: Keys
    metrics: Metrics
    admission: Admission
    archive_admission: Admission
    search_limits: UploadLimits
    index_limits: UploadLimits
    archive_limits: ArchiveUploadLimits
    canary_threads: CapacityLimiter
    metrics_threads: CapacityLimiter


def parts_of(request: Request) -> Parts:
    """Returns the parts of the application that received a request."""
    parts: Parts = request.app.state.parts
    return parts
