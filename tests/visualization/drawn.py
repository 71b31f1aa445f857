"""A set of drawn pictures with the vectors of the encoder without weights."""

from __future__ import annotations

import functools

from PIL import Image

from lookalike.errors import OriginalNotKeptError
from lookalike.models.color import ColorEncoder
from lookalike.services.vector_set import VectorSet
from scripts.samples import Sample, draw, samples


@functools.cache
def picture_of(sample: Sample) -> Image.Image:
    return draw(sample, size=(96, 72))


def drawn_set(
    *, classes=("mug", "car", "leaf"), instances=5, views=3, labels=True, lost=()
) -> VectorSet:
    """Pictures in classes; those at the positions `lost` cannot be read any more."""
    made = list(samples(classes=classes, instances=instances, views=views))
    encoder = ColorEncoder()
    prepared = [encoder.prepare(picture_of(sample)) for sample in made]

    def picture(position: int, *, size: int) -> Image.Image:
        if position in lost:
            raise OriginalNotKeptError("gone")
        return picture_of(made[position])

    return VectorSet(
        name="samples",
        spec=encoder.spec,
        provenance=encoder.provenance,
        vectors=encoder.encode(prepared),
        ids=[f"{sample.label}/{sample.filename}" for sample in made],
        names=[sample.filename for sample in made],
        labels=[sample.label for sample in made] if labels else None,
        sha256s=["0" * 64] * len(made),
        picture=picture,
    )
