"""What every encoder offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.records import ModelSpec

Prepared = NDArray[np.uint8]
"""One picture ready for the network: (H, W, 3) uint8, RGB."""

Vectors = NDArray[np.float32]
"""Unit vectors: (N, dim) float32, rows of length 1."""


class Encoder(Protocol):
    """The network without its classifier: prepared pictures in, unit vectors out.

    `prepare` may run on many threads at once; `extract` is called by one thread at a time.
    """

    @property
    def spec(self) -> ModelSpec:
        """What made the vectors."""
        ...

    @property
    def provenance(self) -> Mapping[str, str]:
        """Recorded beside the spec: `precision`, `runtime`, `device`, library versions."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def decode_size(self) -> int:
        """Shorter side, in pixels, below which a decoder must not shrink a picture."""
        ...

    def prepare(self, image: Image.Image) -> Prepared:
        """Resizes an upright RGB picture to the network's input: (H, W, 3) uint8."""
        ...

    def encode(self, batch: NDArray[np.uint8]) -> Vectors:
        """Turns (N, H, W, 3) uint8 into (N, dim) float32 rows of length 1."""
        ...
