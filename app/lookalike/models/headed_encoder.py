"""An encoder with a head on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.models.base import Encoder, Prepared, Vectors
from lookalike.models.head import Head
from lookalike.records import ModelSpec


class HeadedEncoder:
    """The vectors of another encoder, through a head.

    What it gives is what the head makes of the other's vectors, so vectors that are stored without
    a head can be brought over without their pictures.

    Args:
        encoder: Makes the vectors that the head takes.
        head: Trained on vectors of this encoder.

    Raises:
        WeightsMismatchError: The head was trained on the vectors of another network.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        self._encoder = encoder
        self._head = head
        self._spec = head.spec_over(encoder.spec)

    @property
    def encoder(self) -> Encoder:
        """The one below the head."""
        return self._encoder

    @property
    def head(self) -> Head:
        """The head."""
        return self._head

    @property
    def spec(self) -> ModelSpec:
        """What made the vectors: the encoder's, with the head's digest and its `dim`."""
        return self._spec

    @property
    def provenance(self) -> Mapping[str, str]:
        """Recorded beside the spec: the encoder's."""
        return self._encoder.provenance

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._spec.dim

    @property
    def decode_size(self) -> int:
        """Shorter side, in pixels, below which a decoder must not shrink a picture."""
        return self._encoder.decode_size

    def prepare(self, image: Image.Image) -> Prepared:
        """Resizes an upright RGB picture to the network's input: (H, W, 3) uint8."""
        return self._encoder.prepare(image)

    def encode(self, batch: NDArray[np.uint8]) -> Vectors:
        """Turns (N, H, W, 3) uint8 into (N, dim) float32 rows of length 1.

        Raises:
            EmbeddingFailedError: As the encoder's; or the head's result has no direction.
        """
        return self._head.apply(self._encoder.encode(batch))
