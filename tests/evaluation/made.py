"""Labelled sets of vectors, made or drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import OriginalNotKeptError
from lookalike.models.color import ColorEncoder
from lookalike.records import ModelSpec
from lookalike.services.vector_set import PictureReader, Skipped, VectorSet
from scripts.samples import Sample, jpeg_bytes, samples
from tests.store.helpers import digest

GONE = 3
"""The position whose picture `plain_picture` cannot open."""


def clouds(
    sizes: Sequence[int], *, dim: int = 16, spread: float = 1.2, seed: int = 0
) -> tuple[NDArray[np.float32], list[str]]:
    """Unit vectors around one center for each class, and their labels, in mixed order."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centers = rng.normal(size=(len(sizes), dim))
    rows = centers[codes] + spread * rng.normal(size=(len(codes), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"class {code:03d}" for code in codes]


def plain_picture(position: int, *, size: int) -> Image.Image:
    if position == GONE:
        raise OriginalNotKeptError("the file is gone; index it again")
    return Image.new("RGB", (size, size // 2), (position * 5 % 256, 90, 160))


def vector_set(
    vectors: NDArray[np.float32],
    labels: Sequence[str] | None,
    *,
    name: str = "made",
    weights: str = "trained",
    picture: PictureReader = plain_picture,
    skipped: Sequence[Skipped] = (),
) -> VectorSet:
    count, dim = vectors.shape
    spec = ModelSpec(model="tiny", weights=weights, weights_sha256="0" * 64, dim=dim)
    return VectorSet(
        name=name,
        spec=spec,
        provenance={"precision": "float32"},
        vectors=vectors,
        ids=[f"id{n}" for n in range(count)],
        names=[f"{n}.jpg" for n in range(count)],
        labels=labels,
        sha256s=[digest(str(n)) for n in range(count)],
        picture=picture,
        skipped=skipped,
    )


def drawn_set(*, classes: Sequence[str], instances: int, views: int) -> VectorSet:
    """Pictures of `samples` with the vectors that `ColorEncoder` gives them."""
    drawn: list[Sample] = list(samples(classes=classes, instances=instances, views=views))
    files = [jpeg_bytes(sample, size=(96, 72)) for sample in drawn]

    def picture(position: int, *, size: int) -> Image.Image:
        return Image.open(io.BytesIO(files[position])).convert("RGB")

    encoder = ColorEncoder()
    batch = [encoder.prepare(picture(n, size=32)) for n in range(len(files))]
    return VectorSet(
        name="drawn",
        spec=encoder.spec,
        provenance=encoder.provenance,
        vectors=encoder.encode(batch),
        ids=[f"{sample.label}/{sample.filename}" for sample in drawn],
        names=[Path(sample.filename).name for sample in drawn],
        labels=[sample.label for sample in drawn],
        sha256s=[digest(sample.filename) for sample in drawn],
        picture=picture,
    )
