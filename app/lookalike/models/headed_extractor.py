"""An extractor with a head on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.models.base import Extractor, Prepared, Vectors
from lookalike.models.head import Head
from lookalike.records import Passport


class HeadedExtractor:
    """The vectors of another extractor, through a head.

    What it gives is what the head makes of the other's vectors, so vectors that are stored without
    a head can be brought over without their pictures.

    Args:
        extractor: Makes the vectors that the head takes.
        head: Trained on vectors of this extractor.

    Raises:
        WeightsMismatchError: The head was trained on the vectors of another network.
    """

    def __init__(self, extractor: Extractor, head: Head) -> None:
        self._extractor = extractor
        self._head = head
        self._passport = head.passport_over(extractor.passport)

    @property
    def extractor(self) -> Extractor:
        """The one below the head."""
        return self._extractor

    @property
    def head(self) -> Head:
        """The head."""
        return self._head

    @property
    def passport(self) -> Passport:
        """What made the vectors: the extractor's, with the head's digest and its `dim`."""
        return self._passport

    @property
    def provenance(self) -> Mapping[str, str]:
        """Recorded beside the passport: the extractor's."""
        return self._extractor.provenance

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._passport.dim

    @property
    def decode_size(self) -> int:
        """Shorter side, in pixels, below which a decoder must not shrink a picture."""
        return self._extractor.decode_size

    def prepare(self, image: Image.Image) -> Prepared:
        """Resizes an upright RGB picture to the network's input: (H, W, 3) uint8."""
        return self._extractor.prepare(image)

    def extract(self, batch: NDArray[np.uint8]) -> Vectors:
        """Turns (N, H, W, 3) uint8 into (N, dim) float32 rows of length 1.

        Raises:
            EmbeddingFailedError: As the extractor's; or the head's result has no direction.
        """
        return self._head.apply(self._extractor.extract(batch))
