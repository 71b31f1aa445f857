"""Reduced against full decoding of a 12-megapixel JPEG: time, and what it does to the vector.

`python -m benchmarks.decoding [WEIGHTS MODEL INPUT_SIZE] [--quick]` from the repository's root.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.common import CAMERA, announce, paired, pictures, report
from lookalike.bootstrap import build_encoder
from lookalike.config import load_settings
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.models.base import Encoder

COUNT = 24


def main() -> None:
    """Prints the ratio of times and the worst ratio of distances, for soft and grainy pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="?", default="random")
    parser.add_argument("model", nargs="?", default="resnet50")
    parser.add_argument("size", nargs="?", type=int, default=224, metavar="input_size")
    parser.add_argument("--quick", action="store_true", help="few pictures")
    options = parser.parse_args()
    weights, model, size = options.weights, options.model, options.size
    announce(f"Decoding, {model} with {weights} weights at {size}")
    settings = load_settings(
        model=model, weights=weights, input_size=size, precision="float32", runtime="torch"
    )
    encoder = build_encoder(settings)
    grainy = pictures(4 if options.quick else COUNT, CAMERA)
    for name, files in (("soft", [soften(data) for data in grainy]), ("grainy", grainy)):
        compare(f"{name}, {statistics.median(map(len, files)) / 1e6:.1f} MB", files, encoder)


def compare(name: str, files: list[bytes], encoder: Encoder) -> None:
    """Measures one kind of picture."""

    def reduced(data: bytes) -> Image.Image:
        return decode_image(data, limits=ImageLimits(), decode_size=encoder.decode_size).image

    def full(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def bare(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        image.draft(None, (encoder.decode_size, encoder.decode_size))
        return image

    slow, fast, ratio = paired(
        lambda: milliseconds(full, files), lambda: milliseconds(reduced, files)
    )
    report(f"12-megapixel JPEG ({name}), full decode against ours",
           f"{fast:.1f} ms", f"{slow:.1f} ms", ratio, "at least 5")  # fmt: skip
    slow, bare_ms, ratio = paired(
        lambda: milliseconds(full, files), lambda: milliseconds(bare, files)
    )
    report(f"12-megapixel JPEG ({name}), full decode against the library's reduced decode alone",
           f"{bare_ms:.1f} ms", f"{slow:.1f} ms", ratio, "what can be reached")  # fmt: skip
    ours = encoder.encode([encoder.prepare(reduced(data)) for data in files])
    exact = encoder.encode([encoder.prepare(full(data)) for data in files])
    apart = 1 - np.sum(ours * exact, axis=1)  # (N,)
    others = 1 - exact @ exact.T + 2 * np.eye(len(files))  # (N, N)
    worst = float(np.max(apart / others.min(axis=1)))
    report(f"12-megapixel JPEG ({name}), distance of the vector to the full decode's against the "
           "nearest other picture's, worst",
           f"{apart.max():.2e}", f"{others.min():.2e}", worst, "at most 0.10")  # fmt: skip


def soften(data: bytes) -> bytes:
    """The same picture without the grain, as a camera's noise reduction leaves it."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    small = image.resize((1000, 750), Image.Resampling.BOX)
    small.resize(image.size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def milliseconds(decode: Callable[[bytes], Image.Image], files: list[bytes]) -> float:
    """Median time to decode one picture."""
    took = []
    for data in files:
        started = time.perf_counter()
        decode(data).load()
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


if __name__ == "__main__":
    main()
