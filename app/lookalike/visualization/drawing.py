"""What pictures are drawn with: fonts, texts cut to a width, and thumbnails of a whole set."""

from __future__ import annotations

import base64
import functools
import importlib.util
import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lookalike.cores import available_cores
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.pipeline import Pipeline
from lookalike.services.vector_set import PictureReader

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_ELLIPSIS = "…"


@functools.cache
def load_font(size: int, *, bold: bool = False) -> Font:
    """DejaVu Sans, which comes with matplotlib; where it is missing, Pillow's own font.

    Pillow's own font has ASCII alone; DejaVu Sans has Latin, Greek, Cyrillic, Arabic and more.
    A letter that the font lacks is drawn as a box.

    Args:
        size: In pixels.
        bold: A heavier face, for titles.
    """
    spec = importlib.util.find_spec("matplotlib")  # finds it without importing it
    if spec is not None and spec.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)  # pragma: no cover  # a matplotlib without its data


def printable(text: str) -> str:
    """The text on one line, with U+FFFD for each character that cannot be shown or encoded."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def shorten(text: str, *, font: Font, width: float) -> str:
    """Cuts the middle out of a text that is wider than `width` pixels, so that its end stays.

    Returns:
        The printable text, or less of it around an ellipsis; empty where not even that fits.
    """
    text = printable(text)[:500]
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head, tail = (kept + 1) // 2, kept // 2
        shorter = text[:head].rstrip() + _ELLIPSIS + text[len(text) - tail :].lstrip()
        if font.getlength(shorter) <= width:
            return shorter
    return _ELLIPSIS if font.getlength(_ELLIPSIS) <= width else ""


_SIZES = (128, 96, 64, 48, 32, 16)  # multiples of 16: JPEG blocks never mix two pictures
_PIXELS = 24_000_000  # of all thumbnails together
_SHEET_SIDE = 2048  # every browser decodes pictures of this size


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """A square thumbnail of each picture.

    Attributes:
        pixels: (N, size, size, 3) uint8, RGB.
        missing: Positions of pictures that cannot be read; gray tiles stand for them.
    """

    pixels: NDArray[np.uint8]
    missing: frozenset[int]

    def __len__(self) -> int:
        """Pictures."""
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Side of one, in pixels."""
        return int(self.pixels.shape[1])

    def image(self, position: int) -> Image.Image:
        """One thumbnail as an RGB picture."""
        return Image.fromarray(self.pixels[position])


def thumbnail_size(count: int) -> int:
    """The largest side, in pixels, at which `count` thumbnails stay below 24 million pixels.

    Returns:
        One of 128, 96, 64, 48, 32 and 16; never less.
    """
    return next((size for size in _SIZES if count * size * size <= _PIXELS), _SIZES[-1])


def missing_picture(size: int) -> Image.Image:
    """A gray square, crossed out, for a picture that cannot be read.

    Args:
        size: Its side, in pixels.
    """
    image = Image.new("RGB", (size, size), "#d5d9de")
    pen, a = ImageDraw.Draw(image), size * 3 / 8
    for y0, y1 in ((a, size - a), (size - a, a)):
        pen.line((a, y0, size - a, y1), fill="#8a929b", width=max(1, size // 24))
    return image


def read_thumbnails(
    picture: PictureReader,
    count: int,
    *,
    size: int,
    progress: Progress = NO_PROGRESS,
) -> Thumbnails:
    """Reads every picture and cuts a square out of its middle.

    Args:
        picture: Opens a picture by its position; called by several threads at once.
        count: Pictures, N.
        size: Side of a thumbnail, in pixels.
        progress: Told how many are done.
    """
    pixels = np.empty((count, size, size, 3), dtype=np.uint8)
    missing: set[int] = set()

    def read(position: int) -> tuple[Image.Image, None]:
        image = picture(position, size=size)
        return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS), None

    cores = available_cores()
    with (
        Pipeline(threads=cores, window=4 * cores) as pipeline,
        closing(pipeline.run(range(count), read)) as results,
    ):
        for position, result in enumerate(results):
            if result.error is not None:
                missing.add(position)
            pixels[position] = np.asarray(result.value or missing_picture(size))
            progress.report(position + 1, count)
    return Thumbnails(pixels, frozenset(missing))


def sheet_columns(size: int) -> int:
    """Thumbnails along one side of a sprite sheet.

    Args:
        size: Side of one, in pixels.
    """
    return _SHEET_SIDE // size


def sprite_sheets(thumbnails: Thumbnails) -> Iterator[str]:
    """Lays the thumbnails on square sheets, row by row; gives each as a JPEG `data:` address.

    Thumbnail i is on sheet i // c², where c is `sheet_columns`; the last sheet is cut off below.
    """
    size, columns = thumbnails.size, sheet_columns(thumbnails.size)
    for start in range(0, len(thumbnails), columns * columns):
        part = thumbnails.pixels[start : start + columns * columns]
        rows = -(-len(part) // columns)
        cells = np.full((rows * columns, size, size, 3), 255, dtype=np.uint8)
        cells[: len(part)] = part
        grid = cells.reshape(rows, columns, size, size, 3).swapaxes(1, 2)
        sheet = Image.fromarray(grid.reshape(rows * size, columns * size, 3))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=80)
        yield "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
