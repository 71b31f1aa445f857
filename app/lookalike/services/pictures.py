"""Stored pictures: their rows, originals and thumbnails."""

from __future__ import annotations

import contextlib
import logging
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from lookalike.errors import OriginalNotKeptError
from lookalike.media.decode import ImageDecoder, make_thumbnail
from lookalike.progress import Worker
from lookalike.records import (
    DEFAULT_COLLECTION,
    ImageRecord,
    Metadata,
    check_collection_name,
    check_id,
)
from lookalike.store.base import BlobStore, Page, Store, spec_of, unknown_collection
from lookalike.store.filters import Filter, check_metadata

log = logging.getLogger(__name__)

THUMBNAIL_SIZE = 256
"""Longest side of a thumbnail, in pixels."""


class PictureService:
    """Reads, changes and deletes stored pictures; needs no vector."""

    def __init__(
        self, store: Store, files: BlobStore, decoder: ImageDecoder, *, max_metadata_bytes: int
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
        """A page of a collection's pictures, oldest first. Raises `CollectionNotFoundError`."""
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

    def original(self, collection: str, image_id: str) -> tuple[ImageRecord, BinaryIO]:
        """A picture's row and its file as it was sent, open.

        Raises:
            ImageNotFoundError: No picture has this id.
            OriginalNotKeptError: The row is there, the file is not.
        """
        record = self.get(collection, image_id)
        file = self._files.open(record)
        if file is None:
            raise OriginalNotKeptError(
                f"The original of {image_id!r} is not here: the service runs without originals, "
                "or the file was moved. Index the picture again to keep it"
            )
        return record, file

    def open(self, collection: str, image_id: str, *, size: int) -> Image.Image:
        """A picture to look at: upright RGB, neither side reduced below `size` pixels.

        The thumbnail is used if it is large enough (except for very long pictures), or if there
        is nothing else. Raises as `thumbnail`, and `InvalidImageError`.
        """
        if size > THUMBNAIL_SIZE // 2:
            with contextlib.suppress(OriginalNotKeptError):
                _, original = self.original(collection, image_id)
                with original:
                    return self.decode(original, size=size)
        with self.thumbnail(collection, image_id) as thumbnail:
            return self.decode(thumbnail, size=size)

    def decode(self, file: BinaryIO, *, size: int) -> Image.Image:
        """As `open`, for a picture that is not stored. Raises `InvalidImageError`."""
        return self._decoder.decode(file, decode_size=size).image

    def thumbnail(self, collection: str, image_id: str) -> BinaryIO:
        """A picture's thumbnail, open; made again from the original if it is missing.

        Raises:
            ImageNotFoundError: No picture has this id.
            OriginalNotKeptError: Neither thumbnail nor original is here.
        """
        record = self.get(collection, image_id)
        if (found := self._files.open_thumbnail(record.sha256)) is not None:
            return found
        _, original = self.original(collection, image_id)
        with original:
            decoded = self._decoder.decode(original, decode_size=THUMBNAIL_SIZE)
        made = make_thumbnail(decoded.image)
        self._files.put_thumbnail(record.sha256, made)
        return BytesIO(made)


def file_sweeper(store: Store, files: BlobStore, *, every_s: float = 3600.0) -> Worker:
    """A worker that removes files which no row names, now and every hour."""

    def sweep() -> bool:
        swept = files.sweep(store.references, stop=worker.closing.is_set)
        if swept:
            log.info("swept %d files that no picture names", swept)
        return False

    failure = "the sweep failed and will be tried again"
    worker = Worker("maintenance", sweep, failure=failure, every_s=every_s, retry_s=every_s)
    worker.wake()
    return worker
