"""What the commands need, wherever it is done: on a data folder, or on a running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lookalike.records import DuplicateKind, OnConflict
from lookalike.schemas import DuplicatesOut, DuplicatesRunning, ImageOut, SearchOut
from lookalike.store.effort import Effort


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to index with what is stored beside it."""

    path: Path
    metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What became of one file: a status, or why it failed."""

    path: Path
    status: str
    id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A search as the command line takes it."""

    k: int
    min_score: float | None
    filter: str | None
    group_by: str | None
    collection: str
    effort: Effort


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicatesAsk:
    """A question for duplicates as the command line takes it; None for the default."""

    collection: str
    kind: DuplicateKind
    threshold: float | None
    cursor: str | None = None


class Backend(Protocol):
    """What the commands need, wherever it is done."""

    def index(
        self, jobs: Sequence[Job], *, collection: str, on_conflict: OnConflict
    ) -> Iterator[Line]:
        """Indexes files and yields what became of each."""
        ...

    def search(self, image: Path, ask: Ask) -> SearchOut:
        """Searches with a picture file."""
        ...

    def search_url(self, url: str, ask: Ask, *, keep: Callable[[BinaryIO], object]) -> SearchOut:
        """Searches with the picture at an address; `keep` is given it where it comes here."""
        ...

    def info(self) -> dict[str, Any]:
        """What `GET /info` answers; without the models where none is loaded."""
        ...

    def images(self, collection: str, *, where: str | None) -> Iterator[ImageOut]:
        """All pictures of a collection, oldest first."""
        ...

    def duplicates(self, ask: DuplicatesAsk) -> DuplicatesOut | DuplicatesRunning:
        """A page of groups, or how far the search for them is; waits a moment for it."""
        ...

    def thumbnail(self, collection: str, image_id: str) -> bytes:
        """A small JPEG of a picture."""
        ...

    def delete(self, collection: str, image_id: str) -> None:
        """Deletes one picture."""
        ...

    def drop(self, collection: str) -> None:
        """Deletes a collection."""
        ...
