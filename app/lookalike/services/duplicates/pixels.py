"""Whether two pictures are the same one, re-encoded or resized: seen from their pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import LookalikeError
from lookalike.records import ImageRecord

SIDE = 16
"""Pictures are compared as SIDE x SIDE cells of mean color."""

MAX_CELL = 25.0
"""Most that one channel of one cell may differ by, of 255: a larger difference is a local edit."""

MAX_RMS = 5.0
"""Most that all cells together may differ by, as a root mean square, of 255."""

MAX_RELATIVE = 0.12
"""The same as a part of the picture's own standard deviation: pages of text differ by little."""

FLAT_RMS = 2.2
"""What re-encoding alone changes in a picture of one color; allowed in every picture."""

_REMEMBERED = 2**16  # reductions, of 768 bytes each

Reduced = NDArray[np.uint8]
"""A picture's cells: (SIDE, SIDE, 3) uint8."""

PictureOpener = Callable[[str, str], Image.Image]
"""Opens a stored picture by its id and sha256; raises `LookalikeError` where it cannot."""

log = logging.getLogger(__name__)


def reduced(image: Image.Image) -> Reduced:
    """The mean color of each cell of an upright RGB picture: (SIDE, SIDE, 3) uint8.

    Cells overlap (a triangle filter): Pillow's box filter counts whole pixels alone, so that its
    cells move where a picture is scaled.
    """
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.uint8)


def same_pixels(one: Reduced, others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether pictures show the same but for compression and size.

    With d the difference of the cells, and s the smaller of the two standard deviations over the
    cells (of each channel, averaged): max |d| <= MAX_CELL, and
    rms(d) <= min(MAX_RMS, max(FLAT_RMS, MAX_RELATIVE * s)). Calibrated on photographs and on
    pages of text, see `docs/decisions/0008-duplicates-are-stars.md`.

    Args:
        one: (SIDE, SIDE, 3) uint8.
        others: (N, SIDE, SIDE, 3) uint8.

    Returns:
        (N,) bool.
    """
    wide = others.astype(np.float32)
    apart = wide - one.astype(np.float32)  # (N, SIDE, SIDE, 3)
    rms = np.sqrt(np.square(apart).mean(axis=(1, 2, 3)))  # (N,)
    spread = np.minimum(wide.std(axis=(1, 2)).mean(axis=1), one.std(axis=(0, 1)).mean())  # (N,)
    allowed = np.clip(MAX_RELATIVE * spread, FLAT_RMS, MAX_RMS)
    same: NDArray[np.bool_] = (rms <= allowed) & (np.abs(apart).max(axis=(1, 2, 3)) <= MAX_CELL)
    return same


def same_shape(one: ImageRecord, other: ImageRecord) -> bool:
    """Whether one size can be the other's, scaled, with each side off by up to one pixel.

    With the smaller one (w, h) = s (W, H) + (e, f), |e| and |f| at most 1: |W h - w H| <= W + H.
    """
    small, large = sorted((one, other), key=lambda record: record.width * record.height)
    apart = abs(large.width * small.height - small.width * large.height)
    return apart <= large.width + large.height


class PixelComparer:
    """Compares stored pictures, and remembers their cells meanwhile.

    Args:
        open_picture: Opens a picture by id and sha256.
    """

    def __init__(self, open_picture: PictureOpener) -> None:
        self._open = open_picture
        self._reduced = lru_cache(maxsize=_REMEMBERED)(self._read)

    def same(self, one: ImageRecord, others: Sequence[ImageRecord]) -> NDArray[np.bool_]:
        """Which of the others are this picture re-encoded or resized: (N,) bool.

        A picture that cannot be opened is the same as none.
        """
        verdicts = np.zeros(len(others), dtype=np.bool_)
        asked = [place for place, other in enumerate(others) if same_shape(one, other)]
        own = self._reduced(one.id, one.sha256) if asked else None
        if own is None:
            return verdicts
        cells = [self._reduced(others[place].id, others[place].sha256) for place in asked]
        known = [place for place, cell in zip(asked, cells, strict=True) if cell is not None]
        if known:
            stacked = np.stack([cell for cell in cells if cell is not None])
            verdicts[known] = same_pixels(own, stacked)
        return verdicts

    def _read(self, image_id: str, sha256: str) -> Reduced | None:
        try:
            return reduced(self._open(image_id, sha256))
        except (LookalikeError, OSError) as exc:
            log.warning("%s cannot be compared by its pixels: %s", image_id, exc)
            return None
