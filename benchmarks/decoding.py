"""Reduced against full decoding of a 12-megapixel JPEG: time, and what it does to the vector.

`python -m benchmarks.decoding [WEIGHTS MODEL INPUT_SIZE]` from the repository's root.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from app.embedding.preprocessing import ImageLimits, decode_image
from benchmarks.common import CAMERA, announce, paired, pictures, report

COUNT = 24


def main() -> None:
    """Prints the ratio of times and the worst ratio of distances."""
    weights, model, size = [*sys.argv[1:], *("random", "resnet50", "224")[len(sys.argv) - 1 :]]
    announce(f"Decoding, {model} with {weights} weights at {size}")
    from app.embedding.torchvision_extractor import TorchvisionExtractor  # noqa: PLC0415

    extractor = TorchvisionExtractor(
        model, weights=weights, input_size=int(size), precision="float32"
    )
    files = pictures(COUNT, CAMERA)

    def reduced(data: bytes) -> Image.Image:
        return decode_image(data, limits=ImageLimits(), decode_size=extractor.decode_size).image

    def full(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    fast, slow, ratio = paired(
        lambda: milliseconds(reduced, files), lambda: milliseconds(full, files)
    )
    report("decode 12 megapixels, full against reduced",
           f"{slow:.1f} ms", f"{fast:.1f} ms", 1 / ratio, "at least 5")  # fmt: skip
    ours = extractor.extract(np.stack([extractor.prepare(reduced(data)) for data in files]))
    exact = extractor.extract(np.stack([extractor.prepare(full(data)) for data in files]))
    apart = 1 - np.sum(ours * exact, axis=1)  # (N,)
    others = 1 - exact @ exact.T + 2 * np.eye(COUNT)  # (N, N)
    worst = float(np.max(apart / others.min(axis=1)))
    report("distance to the full decode's vector against the nearest other picture's, worst",
           f"{apart.max():.2e}", f"{others.min():.2e}", worst, "at most 0.10")  # fmt: skip


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
