"""How far an import is, in a small file, so that it goes on there after a crash."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.files.disk import disk_errors
from lookalike.services.import_feeds import Place

KEPT_ERRORS = 20
"""Errors whose text is kept."""


@dataclass(slots=True)
class Progress:
    """How far an import is.

    Attributes:
        total: Pictures in all; None where they were not counted yet.
        place: That of the last picture that is settled; None before the first.
        counts: Pictures that are settled, by what became of them.
        errors: The first few errors.
    """

    total: int | None = None
    place: Place | None = None
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Pictures that are settled."""
        return self.counts.total()

    def failed(self, text: str) -> None:
        """Counts a picture that failed."""
        self.counts["failed"] += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append(text)


class Journal:
    """A file that holds a `Progress`; gone, or broken by a crash, it stands for the start."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Progress:
        """What was written last."""
        try:
            held = json.loads(self._path.read_text(encoding="ascii"))
            return Progress(
                held["total"], held["place"], Counter(held["counts"]), list(held["errors"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return Progress()

    def write(self, progress: Progress) -> None:
        """Keeps how far it is, so that it survives a crash. Raises `StorageError`."""
        text = json.dumps(
            {
                "total": progress.total,
                "place": progress.place,
                "counts": dict(progress.counts),
                "errors": progress.errors,
            }
        )
        fresh = self._path.with_suffix(".new")
        with disk_errors("note how far the import is"):
            with fresh.open("w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)

    def remove(self) -> None:
        """Forgets it. Raises `StorageError`."""
        with disk_errors("remove what an import left"):
            self._path.with_suffix(".new").unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
