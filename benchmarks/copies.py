"""How many copies of photographs are called re-encoded, and how many other pictures are.

`python -m benchmarks.copies FOLDER [--count 40] [--pairs 3]` from the repository's root. FOLDER
holds photographs. Others are the pictures of benchmarks/duplicate_traps.py, each beside a copy of
another one of its set, made in the same ways.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable
from itertools import islice, permutations
from pathlib import Path

from PIL import ExifTags, Image

from benchmarks.common import announce, show
from benchmarks.duplicate_traps import DRAWN, saved
from benchmarks.results import Table
from lookalike.media.comparison import same_picture
from lookalike.media.decode import ImageLimits, decode_image, make_thumbnail
from lookalike.services.neighbor_graph import reduced, same_pixels

Way = Callable[[Image.Image], bytes]


def turned(image: Image.Image) -> bytes:
    """Stored on its side, with the orientation in its EXIF data."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


def scaled(share: float, quality: int, filter: Image.Resampling) -> Way:
    """Resized and saved as JPEG."""

    def way(image: Image.Image) -> bytes:
        width, height = (max(1, round(side * share)) for side in image.size)
        return saved(image.resize((width, height), filter), "JPEG", quality=quality)

    return way


WAYS: dict[str, Way] = {
    "PNG": lambda image: saved(image, "PNG"),
    "JPEG 30": lambda image: saved(image, "JPEG", quality=30),
    "JPEG 50": lambda image: saved(image, "JPEG", quality=50),
    "JPEG 75": lambda image: saved(image, "JPEG", quality=75),
    "JPEG 95": lambda image: saved(image, "JPEG", quality=95),
    "JPEG 80, 4:4:4, progressive": lambda image: saved(
        image, "JPEG", quality=80, subsampling=0, progressive=True
    ),
    "JPEG 90, turned by EXIF": turned,
    "WebP 75": lambda image: saved(image, "WEBP", quality=75),
    "AVIF 60": lambda image: saved(image, "AVIF", quality=60),
    "half, JPEG 85": scaled(0.5, 85, Image.Resampling.LANCZOS),
    "two thirds, JPEG 75": scaled(0.66, 75, Image.Resampling.BICUBIC),
    "150%, JPEG 85": scaled(1.5, 85, Image.Resampling.BICUBIC),
    "double, JPEG 75": scaled(2, 75, Image.Resampling.BILINEAR),
}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=40, help="photographs")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of each set of other pictures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    announce("Copies that are called re-encoded, and other pictures that are")
    files = sorted(file for file in options.folder.rglob("*.jpg"))
    chosen = random.Random(options.seed).sample(files, min(options.count, len(files)))
    photographs = [file.read_bytes() for file in chosen]
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photographs]
    others = [
        pair
        for draw in DRAWN.values()
        for pair in islice(permutations(draw(), 2), options.pairs)
        if pair[0].mode == "RGB"  # JPEG keeps no opacity
    ]
    rows = []
    for name, way in WAYS.items():
        copies = [is_found(*pair) for pair in zip(photographs, map(way, images), strict=True)]
        false = [is_found(saved(one, "PNG"), way(other)) for one, other in others]
        rows.append(
            [name, f"{sum(copies)} of {len(copies)}", f"{sum(false)} of {len(false)}"],
        )
        print(*rows[-1], sep=" | ", flush=True)
    show(Table("Called re-encoded", ["copy", "of photographs", "of other pictures"], rows))


def is_found(one: bytes, other: bytes) -> bool:
    """What the service says of a pair whose cosine is high enough."""
    cells = []
    for data in (one, other):
        image = decode_image(data, limits=ImageLimits(), decode_size=256).image
        thumbnail = Image.open(io.BytesIO(make_thumbnail(image)))
        cells.append(reduced(thumbnail.convert("RGB")))
    if not same_pixels(cells[0], cells[1][None])[0]:
        return False
    return bool(same_picture(io.BytesIO(one), io.BytesIO(other), limits=ImageLimits()))


if __name__ == "__main__":
    main()
