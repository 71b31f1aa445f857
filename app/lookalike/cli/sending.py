"""Files on their way to a running service."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lookalike.cli.backends import Job
from lookalike.cli.progress import Report
from lookalike.errors import ConfigurationError, UnreadableImageError
from lookalike.media.sources import PictureSource
from lookalike.services.importing import ImportOptions

BATCH_FILES = 16
BATCH_BYTES = 16_000_000
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file that was read, ready to be sent."""

    job: Job
    filename: str
    content: bytes


class Archive(io.BufferedReader):
    """An archive that tells how much of it was read.

    Args:
        path: The file.
        report: Told so, in megabytes.

    Raises:
        ConfigurationError: The file cannot be opened.
    """

    def __init__(self, path: Path, report: Report) -> None:
        try:
            super().__init__(io.FileIO(path))
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
        self._stage = f"sending {path.name} (MB)"
        self._megabytes = path.stat().st_size // _MB
        self._report = report

    def read(self, size: int | None = -1, /) -> bytes:
        """As usual."""
        data = super().read(size)
        self._report(self._stage, self.tell() // _MB, self._megabytes)
        return data


def form(options: ImportOptions) -> dict[str, str]:
    """The form fields of an import; what is not set is left out."""
    fields = options.parameters()
    if options.metadata is not None:
        fields["metadata"] = json.dumps(options.metadata)
    return {name: value for name, value in fields.items() if value is not None}


def batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Files in batches that are small in number and in bytes."""
    batch: list[Job] = []
    size = 0
    for job in jobs:
        with suppress(OSError):  # `_load` says why
            size += job.path.stat().st_size
        if batch and (len(batch) >= BATCH_FILES or size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(job)
    if batch:
        yield batch


def load(job: Job) -> Loaded:
    """Reads a file. Raises `UnreadableImageError`."""
    source = PictureSource.from_path(job.path)
    try:
        with source.open() as file:
            return Loaded(job, source.filename, file.read())
    except OSError as exc:
        raise UnreadableImageError(f"{job.path} cannot be read: {exc.strerror}") from exc
