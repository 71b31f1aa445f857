"""Reading, changing and deleting what is stored."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from lookalike.errors import OriginalNotKeptError
from lookalike.files.blobs import LocalFiles
from lookalike.media.decode import ImageDecoder, make_thumbnail
from lookalike.records import DEFAULT_COLLECTION, CollectionInfo, ImageRecord, Metadata, Page
from lookalike.services.originals import original_of
from lookalike.store.base import Store, unknown_collection
from lookalike.store.filters import Filter
from lookalike.store.metadata import check_metadata
from lookalike.store.names import check_collection_name, check_id

THUMBNAIL_SIZE = 256
"""Longest side of a thumbnail, in pixels."""


class PictureService:
    """Everything about stored pictures that needs no vector."""

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
        """A stretch of a collection's pictures, oldest first.

        Raises:
            CollectionNotFoundError: There is no such collection.
        """
        check_collection_name(collection)
        if collection != DEFAULT_COLLECTION and self._store.spec(collection) is None:
            raise unknown_collection(collection)
        return self._store.page(collection, cursor=cursor, limit=limit, where=where)

    def patch_metadata(self, collection: str, image_id: str, patch: Metadata) -> ImageRecord:
        """Merges into a picture's metadata (RFC 7396). Raises `ImageNotFoundError`."""
        check_collection_name(collection)
        patch = check_metadata(patch, max_bytes=self._max_metadata_bytes)
        return self._store.patch_metadata(
            collection, check_id(image_id), patch, max_bytes=self._max_metadata_bytes
        )

    def delete(self, collection: str, image_id: str) -> None:
        """Removes one picture; its files go with a later sweep. Raises `ImageNotFoundError`."""
        self._store.delete(check_collection_name(collection), check_id(image_id))

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        return self._store.collections()

    def drop(self, collection: str) -> int:
        """Removes a collection and tells how many pictures it had."""
        return self._store.drop(check_collection_name(collection))

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
        """A picture to look at: upright RGB, no side reduced below `size` pixels but by a strip.

        The thumbnail is taken where it is large enough, or where there is nothing else.

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
        """A picture that is not stored, as `open` gives one. Raises `InvalidImageError`."""
        return self._decoder.decode(file, decode_size=size).image

    def thumbnail(self, collection: str, image_id: str) -> Path:
        """A picture's thumbnail, made again from the original where it is missing.

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
