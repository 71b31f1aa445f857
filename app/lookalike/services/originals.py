"""The original of a stored picture: kept, or referred to in place, and where it is by now."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from lookalike.files.blobs import LocalFiles
from lookalike.media.sources import PictureSource, sha256_of
from lookalike.records import ImageRecord, NewImage
from lookalike.store.base import Store


class Originals(StrEnum):
    """Whether the files of indexed pictures are kept."""

    KEEP = "keep"
    REFERENCE = "reference"
    NONE = "none"

    def refers_to(self, source: PictureSource) -> bool:
        """Whether a picture's file is used where it lies, without a copy."""
        return self is Originals.REFERENCE and source.path is not None


def original_of(record: ImageRecord, files: LocalFiles) -> Path | None:
    """The file of a picture as it was sent, in place or kept; None where it is not here."""
    return _unchanged(record) or files.path(record.sha256, record.media_type)


class OriginalKeeper:
    """Sees to it that originals can be had later.

    Args:
        store: Knows where those lie that are referred to.
        files: Where they are kept.
        originals: What becomes of the files themselves.
    """

    def __init__(self, store: Store, files: LocalFiles, originals: Originals) -> None:
        self._store = store
        self._files = files
        self._originals = originals

    def keep(self, source: PictureSource, image: NewImage) -> None:
        """Puts the original where it belongs; what is there already is left alone."""
        if self._originals is Originals.NONE or self._originals.refers_to(source):
            return
        with source.open() as file:
            self._files.put(file, image.sha256, image.media_type)

    def moved(self, source: PictureSource, record: ImageRecord) -> str | None:
        """Where the file of a stored picture lies from now on, given another with its bytes.

        None where its own is still to be had: so of two copies the first stays.

        Raises:
            UnreadableImageError: It is this one, and it cannot be referred to.
        """
        if not self._originals.refers_to(source) or source.lies_at(record.source):
            return None
        return None if original_of(record, self._files) else source.place()

    def keep_known(self, source: PictureSource, image: NewImage, record: ImageRecord) -> None:
        """As `keep`, for a picture that is stored, with its row and `image.source` from `moved`."""
        self.keep(source, image)
        if image.source is not None and not original_of(record, self._files):
            self._store.refer(record.collection, image)


def _unchanged(record: ImageRecord) -> Path | None:
    """The file that a record refers to in place, if it still holds the very same bytes."""
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
