"""What pictures are drawn with: fonts, cut texts, colors of classes, and thumbnails of a set."""

from __future__ import annotations

import base64
import functools
import importlib.util
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lookalike.cores import available_cores
from lookalike.media.sources import SOFTWARE
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.pipeline import Pipeline
from lookalike.services.vector_set import PictureReader

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

TEXT, QUIET, LINE = "#1a1d21", "#626a73", "#dde1e6"
"""Colors of every picture on white, the same as on the pages."""

_ELLIPSIS = "…"


def png_of(figure: Figure) -> bytes:
    """A plot as the bytes of a file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": SOFTWARE})
    return file.getvalue()


def plain_axes(axes: Axes) -> None:
    """A light grid below what is drawn, and no frame at the top and the right."""
    axes.grid(which="major", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_legend(axes: Axes, *entries: Any, left: float, **style: Any) -> None:
    """A legend without a frame beside the plot, `left` widths of it away; texts as they are."""
    style |= {"loc": "upper left", "bbox_to_anchor": (left, 1.0), "frameon": False, "fontsize": 10}
    for text in axes.legend(*entries, **style).get_texts():
        text.set_parse_math(False)
        text.set_color(TEXT)


@functools.cache
def load_font(size: int, *, bold: bool = False) -> Font:
    """DejaVu Sans, which comes with matplotlib; where it is missing, Pillow's own font.

    Pillow's own font has ASCII alone; DejaVu Sans has Latin, Greek, Cyrillic, Arabic and more.
    A letter that the font lacks is drawn as a box.
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
    """A square thumbnail of each picture."""

    pixels: NDArray[np.uint8]  # (N, size, size, 3) uint8, RGB
    missing: frozenset[int]  # positions of pictures that cannot be read; gray tiles stand for them

    @property
    def size(self) -> int:
        """Side of one, in pixels."""
        return int(self.pixels.shape[1])


def thumbnail_size(count: int) -> int:
    """The largest side, 128 to 16, at which `count` thumbnails stay below 24 million pixels."""
    return next((size for size in _SIZES if count * size * size <= _PIXELS), _SIZES[-1])


def missing_picture(size: int) -> Image.Image:
    """A gray square, crossed out, for a picture that cannot be read."""
    image = Image.new("RGB", (size, size), "#d5d9de")
    pen, a = ImageDraw.Draw(image), size * 3 / 8
    for y0, y1 in ((a, size - a), (size - a, a)):
        pen.line((a, y0, size - a, y1), fill="#8a929b", width=max(1, size // 24))
    return image


def read_thumbnails(
    picture: PictureReader, count: int, *, size: int, progress: Progress = NO_PROGRESS
) -> Thumbnails:
    """Reads every picture and cuts a square out of its middle.

    `picture` is called by several threads at once.
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


def jpeg_uri(jpeg: bytes) -> str:
    """The bytes of a JPEG file as a `data:` address."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def sheet_columns(size: int) -> int:
    """Thumbnails along one side of a sprite sheet."""
    return _SHEET_SIDE // size


def sprite_sheets(thumbnails: Thumbnails) -> Iterator[str]:
    """Lays the thumbnails on square sheets, row by row; gives each as a JPEG `data:` address.

    Thumbnail i is on sheet i // c², where c is `sheet_columns`; the last sheet is cut off below.
    """
    size, columns = thumbnails.size, sheet_columns(thumbnails.size)
    for start in range(0, len(thumbnails.pixels), columns * columns):
        part = thumbnails.pixels[start : start + columns * columns]
        rows = -(-len(part) // columns)
        cells = np.full((rows * columns, size, size, 3), 255, dtype=np.uint8)
        cells[: len(part)] = part
        grid = cells.reshape(rows, columns, size, size, 3).swapaxes(1, 2)
        sheet = Image.fromarray(grid.reshape(rows * size, columns * size, 3))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=80)
        yield jpeg_uri(file.getvalue())


COLORS: tuple[str, ...] = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf"),
    *("#bcbd22", "#5c14ff", "#ad0085", "#00eb00", "#b8b8ff", "#007a5c", "#ff0085", "#ad7a00"),
    *("#d600ff", "#5c99ff", "#f5ada3", "#5ce0a3"),
)
"""20 colors, at least 0.13 apart in OKLab (tab20: 0.05), visible on black and on white."""

OTHER_COLOR = "#999999"
"""Of the classes that are too many for a color of their own."""

PLAIN_COLOR = "#4a7ddb"
"""Of pictures without labels."""

_BINS = 32


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of N pictures, those with a color of their own first, each part by name."""

    names: tuple[str, ...]  # printable; empty where the pictures have no labels
    colors: tuple[str, ...]  # one for each, `#rrggbb`
    counts: tuple[int, ...]  # pictures in each
    # (N,) int32, the class of each picture; all 0 where there are no labels
    index: NDArray[np.int32]
    colored: int  # how many have a color of their own: all up to 20, else the 19 largest


def classes_of(labels: Sequence[str] | None, *, count: int) -> Classes:
    """Counts the classes and gives them colors."""
    if labels is None:
        return Classes((), (), (), np.zeros(count, dtype=np.int32), 0)
    counter = Counter(labels)
    colored = len(counter) if len(counter) <= len(COLORS) else len(COLORS) - 1
    largest = set(sorted(counter, key=lambda name: (-counter[name], name))[:colored])
    names = sorted(counter, key=lambda name: (name not in largest, name.casefold(), name))
    numbers = {name: number for number, name in enumerate(names)}
    return Classes(
        names=tuple(printable(name) for name in names),
        colors=COLORS[:colored] + (OTHER_COLOR,) * (len(names) - colored),
        counts=tuple(counter[name] for name in names),
        index=np.fromiter((numbers[label] for label in labels), dtype=np.int32, count=count),
        colored=colored,
    )


def unit_square(places: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scales (N, 2) places so that each axis runs from 0 to 1; one without extent is 0.5."""
    low, extent = places.min(axis=0), np.ptp(places, axis=0).astype(np.float64)
    scaled = (places - low) / np.where(extent > 0, extent, 1.0)
    return np.where(extent > 0, scaled, 0.5).astype(np.float64)


def aspect_ratio(places: NDArray[np.float32]) -> float:
    """Width by height of what the places cover, between 1/3 and 3; 1 where it has no extent."""
    width, height = (float(extent) for extent in np.ptp(places, axis=0))
    if width <= 0 or height <= 0:
        return 1.0
    return min(3.0, max(1 / 3, width / height))


def densest_places(places: NDArray[np.float32], classes: Classes) -> NDArray[np.float64]:
    """Where each class has most of its pictures, (classes, 2).

    It is their mean around the peak of a smoothed histogram: that of all could lie between groups.
    """
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415 - as needed

    bins = np.minimum((unit_square(places) * _BINS).astype(int), _BINS - 1)  # (N, 2)
    centers = np.empty((len(classes.names), 2))
    for number in range(len(classes.names)):
        members = np.flatnonzero(classes.index == number)
        density = np.zeros((_BINS, _BINS))
        np.add.at(density, tuple(bins[members].T), 1.0)
        density = gaussian_filter(density, sigma=1.5, mode="constant")
        peak = np.array(np.unravel_index(density.argmax(), density.shape))
        away = np.abs(bins[members] - peak).max(axis=1)
        near = members[away <= max(2, away.min())]
        centers[number] = places[near].mean(axis=0)
    return centers
