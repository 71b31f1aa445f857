"""Stored pictures: their rows, originals and thumbnails."""

from __future__ import annotations

import contextlib
import logging
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from lookalike.errors import OriginalNotKeptError
from lookalike.files.blobs import LocalFiles
from lookalike.media.decode import ImageDecoder, make_thumbnail
from lookalike.media.sources import PictureSource
from lookalike.records import (
    DEFAULT_COLLECTION,
    ImageRecord,
    Metadata,
    NewImage,
    check_collection_name,
    check_id,
    sha256_of,
)
from lookalike.store.base import Page, Store, spec_of, unknown_collection
from lookalike.store.filters import Filter, check_metadata
from lookalike.worker import Worker

log = logging.getLogger(__name__)

THUMBNAIL_SIZE = 256
"""Longest side of a thumbnail, in pixels."""


class PictureService:
    """Reads, changes and deletes stored pictures; needs no vector."""

    def __init__(
        self, store: Store, files: LocalFiles, decoder: ImageDecoder, *, max_metadata_bytes: int
    ) -> None:
        self._store = store
        self._files = files
        self._decoder = decoder
        self._max_metadata_bytes = max_metadata_bytes

    def get(self, collection: str, image_id: str) -> ImageRecord:
        """One picture. Raises `ImageNotFoundError`."""
        return self._store.get(check_collection_name(collection), check_id(image_id))

    def page(
        self,
        collection: str,
        *,
        cursor: str | None = None,
        limit: int = 100,
        where: Filter | None = None,
    ) -> Page:
        """A page of a collection's pictures, oldest first.

        Raises:
            CollectionNotFoundError: There is no such collection.
        """
        check_collection_name(collection)
        if collection != DEFAULT_COLLECTION and spec_of(self._store, collection) is None:
            raise unknown_collection(collection)
        return self._store.scroll(collection, cursor=cursor, limit=limit, where=where)

    def patch_metadata(self, collection: str, image_id: str, patch: Metadata) -> ImageRecord:
        """Merges into a picture's metadata (RFC 7396). Raises `ImageNotFoundError`."""
        check_collection_name(collection)
        patch = check_metadata(patch, max_bytes=self._max_metadata_bytes)
        return self._store.update_metadata(
            collection, check_id(image_id), patch, max_bytes=self._max_metadata_bytes
        )

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one picture; its files go with a later sweep. Raises `ImageNotFoundError`."""
        self._store.delete(check_collection_name(collection), check_id(image_id))

    def original(self, collection: str, image_id: str) -> tuple[ImageRecord, Path]:
        """A picture's row and its file as it was sent.

        Raises:
            ImageNotFoundError: No picture has this id.
            OriginalNotKeptError: The row is there, the file is not.
        """
        record = self.get(collection, image_id)
        path = original_of(record, self._files)
        if path is None:
            raise OriginalNotKeptError(
                f"The original of {image_id!r} is not here: the service runs without originals, "
                "or the file was moved. Index the picture again to keep it"
            )
        return record, path

    def open(self, collection: str, image_id: str, *, size: int) -> Image.Image:
        """A picture to look at: upright RGB, neither side reduced below `size` pixels.

        The thumbnail is used if it is large enough (except for very long pictures), or if there
        is nothing else.

        Raises:
            ImageNotFoundError: No picture has this id.
            OriginalNotKeptError: Neither thumbnail nor original is here.
            InvalidImageError: The file cannot be read any more.
        """
        path = self.thumbnail(collection, image_id)
        if size > THUMBNAIL_SIZE // 2:
            with contextlib.suppress(OriginalNotKeptError):
                _, path = self.original(collection, image_id)
        with path.open("rb") as file:
            return self.decode(file, size=size)

    def decode(self, file: BinaryIO, *, size: int) -> Image.Image:
        """As `open`, for a picture that is not stored. Raises `InvalidImageError`."""
        return self._decoder.decode(file, decode_size=size).image

    def thumbnail(self, collection: str, image_id: str) -> Path:
        """A picture's thumbnail; made again from the original if it is missing.

        Raises:
            ImageNotFoundError: No picture has this id.
            OriginalNotKeptError: Neither thumbnail nor original is here.
        """
        record = self.get(collection, image_id)
        if (found := self._files.thumbnail(record.sha256)) is not None:
            return found
        _, path = self.original(collection, image_id)
        with path.open("rb") as file:
            decoded = self._decoder.decode(file, decode_size=THUMBNAIL_SIZE)
        self._files.put_thumbnail(record.sha256, make_thumbnail(decoded.image))
        return self._files.thumbnail(record.sha256) or path


class Originals(StrEnum):
    """Whether the files of indexed pictures are kept."""

    KEEP = "keep"
    REFERENCE = "reference"
    NONE = "none"

    def refers_to(self, source: PictureSource) -> bool:
        """Whether a picture's file is used where it lies, without a copy."""
        return self is Originals.REFERENCE and source.path is not None


def original_of(record: ImageRecord, files: LocalFiles) -> Path | None:
    """The original of a picture, in place or kept; None if neither exists."""
    return _unchanged(record) or files.path(record.sha256, record.media_type)


class OriginalKeeper:
    """Keeps originals, or notes where they lie.

    Args:
        store: Records the paths of originals that are used in place.
        files: Where copies are kept.
        originals: Whether copies are kept.
    """

    def __init__(self, store: Store, files: LocalFiles, originals: Originals) -> None:
        self._store = store
        self._files = files
        self._originals = originals

    def keep(self, source: PictureSource, image: NewImage) -> None:
        """Copies the original, unless it is used in place, is not wanted, or is there already."""
        if self._originals is Originals.NONE or self._originals.refers_to(source):
            return
        with source.open() as file:
            self._files.put(file, image.sha256, image.media_type)

    def moved(self, source: PictureSource, record: ImageRecord) -> str | None:
        """The new path of a stored picture's file, if another file with its bytes is sent.

        None if the recorded file still exists, so the first copy wins.

        Raises:
            UnreadableImageError: The new path cannot be recorded.
        """
        if not self._originals.refers_to(source) or source.lies_at(record.source):
            return None
        return None if original_of(record, self._files) else source.resolved_path()

    def keep_known(self, source: PictureSource, image: NewImage, record: ImageRecord) -> None:
        """As `keep`, for a picture that is stored already; records `image.source` if needed."""
        self.keep(source, image)
        if image.source is not None and not original_of(record, self._files):
            self._store.refer(record.collection, image)


def _unchanged(record: ImageRecord) -> Path | None:
    """The file that a row refers to in place, if it still has the same bytes."""
    if record.source is None:
        return None
    path = Path(record.source)
    try:
        if not path.is_file() or path.stat().st_size != record.bytes:
            return None
        with path.open("rb") as file:
            return path if sha256_of(file) == record.sha256 else None
    except OSError:  # it cannot be looked at, or went just now
        return None


def file_sweeper(store: Store, files: LocalFiles, *, every_s: float = 3600.0) -> Worker:
    """A worker that removes files which no row names, now and then every hour."""

    def sweep() -> bool:
        swept = files.sweep(store.references, stop=worker.closing.is_set)
        if swept:
            log.info("swept %d files that no picture names", swept)
        return False

    worker = Worker(
        "maintenance",
        sweep,
        failure="the sweep failed and will be tried again",
        every_s=every_s,
        retry_s=every_s,
    )
    worker.wake()
    return worker
