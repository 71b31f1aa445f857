"""A picture on its way through indexing: what is known of it at each station."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ImageExistsError, LookalikeError
from lookalike.media.sources import PictureSource
from lookalike.models.encoders import LiveEncoder
from lookalike.records import ImageRecord, Metadata, NewImage, OnConflict, PutOutcome, PutStatus


class Originals(StrEnum):
    """What becomes of the files themselves."""

    KEEP = "keep"
    REFERENCE = "reference"
    NONE = "none"

    def refers_to(self, source: PictureSource) -> bool:
        """Whether a picture's file is referred to where it lies."""
        return self is Originals.REFERENCE and source.path is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexItem:
    """What became of one picture: its status and id, or the error that stopped it."""

    source: PictureSource
    status: PutStatus | None = None
    id: str | None = None
    error: LookalikeError | None = None

    @property
    def failed(self) -> bool:
        """Whether the picture is not in the collection as it was sent."""
        return self.error is not None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A picture whose vector is being made."""

    source: PictureSource
    image: NewImage
    thumbnail: bytes
    vector: Future[NDArray[np.float32]]
    live: LiveEncoder


@dataclass(frozen=True, slots=True)
class Ready:
    """A picture with its vector, (dim,) float32, at its place in the group."""

    place: int
    waiting: Waiting
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Known:
    """A picture whose bytes seem to be stored already; settled when its turn comes."""

    source: PictureSource
    image: NewImage


Started = IndexItem | Known | Waiting
"""What is known of a picture before its turn to be stored comes."""


@dataclass(slots=True)
class Task:
    """What one call of `index` fixes for all of its pictures.

    But `live` changes when the collection moves to another embedding set meanwhile. `check` is
    called right before each commit, and may raise to end the work.
    """

    collection: str
    on_conflict: OnConflict
    live: LiveEncoder
    check: Callable[[], None] = lambda: None


def known_image(
    record: ImageRecord, sha256: str, metadata: Metadata | None, *, source: str | None
) -> NewImage:
    """A picture that seems to be stored already: what its bytes would say is what the row says."""
    return NewImage(
        id=record.id,
        sha256=sha256,
        filename=record.filename,
        media_type=record.media_type,
        width=record.width,
        height=record.height,
        bytes=record.bytes,
        metadata=metadata,
        source=source,
    )


def flat(groups: Generator[list[IndexItem], None, None]) -> Iterator[IndexItem]:
    """The items of the groups one by one; closed, it closes them."""
    with closing(groups):
        for group in groups:
            yield from group


def item_of(source: PictureSource, outcome: PutOutcome) -> IndexItem:
    """What became of a picture, from what the store did."""
    if outcome.status is PutStatus.CONFLICT:
        return IndexItem(source=source, id=outcome.record.id, error=conflict(outcome.record.id))
    return IndexItem(source=source, status=outcome.status, id=outcome.record.id)


def conflict(image_id: str) -> ImageExistsError:
    """The error for an id that is taken."""
    return ImageExistsError(
        f"The id {image_id!r} is taken by another picture or other metadata; send "
        "on_conflict=replace to replace it, or choose another id"
    )
