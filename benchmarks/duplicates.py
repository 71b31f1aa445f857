"""What share of changed copies is found again, beside a perceptual hash on the same pictures.

`python -m benchmarks.duplicates FOLDER [--model resnet50] [--weights random] [--input-size 224]`
from the repository's root. FOLDER holds photographs, with folders inside or without.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.common import announce, show
from benchmarks.results import Table
from lookalike.bootstrap import build_encoder
from lookalike.config import load_settings
from lookalike.media.decode import ImageLimits, decode_image, make_thumbnail
from lookalike.models.base import Encoder
from lookalike.services.duplicates import THRESHOLD
from lookalike.services.neighbor_graph import reduced, same_pixels

FALSE_RATES = (0.001, 0.01)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
BATCH = 32


def crop(image: Image.Image) -> Image.Image:
    """Without 2.5% at each edge."""
    across, down = round(image.width * 0.025), round(image.height * 0.025)
    return image.crop((across, down, image.width - across, image.height - down))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 50": lambda image: image,
    "half the size": lambda image: image.resize(
        (max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS
    ),
    "cropped by 5%": crop,
    "mirrored": ImageOps.mirror,
    "rotated by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """N pictures as each method sees them.

    Attributes:
        vectors: (N, dim) float32, rows of length 1.
        hashes: (N, 64) bool, pHash.
        cells: (N, SIDE, SIDE, 3) uint8, of the thumbnails.
        ratios: (N,) width by height.
    """

    vectors: NDArray[np.float32]
    hashes: NDArray[np.bool_]
    cells: NDArray[np.uint8]
    ratios: NDArray[np.float64]


def main() -> None:
    """Prints a Markdown table."""
    arguments = parse()
    announce(
        f"Duplicates, {arguments.model} with {Path(arguments.weights).name} weights at "
        f"{arguments.input_size}, {arguments.count} pictures of {arguments.folder.name}"
    )
    encoder = build_encoder(
        load_settings(
            model=arguments.model,
            weights=arguments.weights,
            input_size=arguments.input_size,
            precision="float32",
            runtime="torch",
        )
    )
    files = sorted(p for p in arguments.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    chosen = random.Random(arguments.seed).sample(files, min(arguments.count, len(files)))
    images = [decode_image(file.read_bytes(), limits=ImageLimits(), decode_size=2**16).image
              for file in chosen]  # fmt: skip
    originals = see([file.read_bytes() for file in chosen], encoder)
    report(originals, images, encoder)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def encode(image: Image.Image, quality: int) -> bytes:
    """As a JPEG file."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def see(files: list[bytes], encoder: Encoder) -> Seen:
    """Reads files as the service does, and hashes them."""
    vectors, hashes, cells, ratios = [], [], [], []
    for start in range(0, len(files), BATCH):
        prepared = []
        for data in files[start : start + BATCH]:
            decoded = decode_image(data, limits=ImageLimits(), decode_size=encoder.decode_size)
            prepared.append(encoder.prepare(decoded.image))
            thumbnail = Image.open(io.BytesIO(make_thumbnail(decoded.image)))
            cells.append(reduced(thumbnail.convert("RGB")))
            hashes.append(imagehash.phash(Image.open(io.BytesIO(data))).hash.ravel())
            ratios.append(decoded.width / decoded.height)
        vectors.append(encoder.encode(prepared))
    return Seen(np.concatenate(vectors), np.stack(hashes), np.stack(cells), np.array(ratios))


def report(originals: Seen, images: list[Image.Image], encoder: Encoder) -> None:
    """Compares each change with its original, and the originals with each other."""
    count = len(images)
    pairs = np.triu_indices(count, 1)
    cosines = (originals.vectors @ originals.vectors.T)[pairs]  # (P,)
    distances = (originals.hashes[:, None] != originals.hashes[None]).sum(axis=2)[pairs]  # (P,)
    at_cosine = [float(np.quantile(cosines, 1 - rate, method="higher")) for rate in FALSE_RATES]
    at_distance = [widest(distances, rate) for rate in FALSE_RATES]
    print(f"{len(cosines)} pairs of different pictures; cosine of the median pair "
          f"{np.median(cosines):.4f}, of the nearest {cosines.max():.4f}")  # fmt: skip
    heads = [f"cosine > {limit:.4f}" for limit in at_cosine] + [f"cosine >= {THRESHOLD}"]
    heads += ["and same pixels"] + [f"pHash <= {limit}" for limit in at_distance]
    rows = []
    for name, change in CHANGES.items():
        quality = 50 if name.startswith("JPEG") else 90
        changed = see([encode(change(image), quality) for image in images], encoder)
        own = np.sum(changed.vectors * originals.vectors, axis=1)
        apart = (changed.hashes != originals.hashes).sum(axis=1)
        same = np.array([
            same_pixels(one, other[None])[0]
            for one, other in zip(originals.cells, changed.cells, strict=True)
        ])  # fmt: skip
        same &= np.isclose(changed.ratios, originals.ratios, rtol=0.02)
        found = [own > limit for limit in at_cosine] + [own >= THRESHOLD]
        found += [(own >= THRESHOLD) & same] + [apart <= limit for limit in at_distance]
        rows.append(row(name, found))
    same = np.concatenate(
        [same_pixels(originals.cells[i], originals.cells[i + 1 :]) for i in range(count - 1)]
    )
    false = [cosines > limit for limit in at_cosine] + [cosines >= THRESHOLD]
    false += [(cosines >= THRESHOLD) & same] + [distances <= limit for limit in at_distance]
    rows.append(row("different pictures (false)", false, digits=2))
    show(Table("Changed copies that are found again, by threshold", ["change", *heads], rows))
    print(f"same pixels alone, whatever the cosine: {same.sum()} of {len(same)} pairs")


def widest(distances: NDArray[np.int64], rate: float) -> int:
    """The largest Hamming distance at which at most this share of the pairs is taken."""
    limits = np.arange(65)
    shares = (distances[None] <= limits[:, None]).mean(axis=1)
    limit = limits[shares <= rate].max(initial=-1)
    return int(distances[distances <= limit].max(initial=-1))


def row(name: str, found: list[NDArray[np.bool_]], *, digits: int = 1) -> list[str]:
    """A line of the table: shares in percent."""
    return [name, *(f"{one.mean():.{digits}%}" for one in found)]


if __name__ == "__main__":
    main()
