"""An encoder without a network, whose vectors can be computed by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from lookalike.models.base import Prepared, Vectors
from lookalike.models.choices import Resize
from lookalike.models.resizing import PREPROCESSING_VERSION, resize_image
from lookalike.models.vectors import check_batch, normalize
from lookalike.records import ModelSpec, Preprocess

_CELL = 8  # pixels


class ColorEncoder:
    """The mean color of each cell of a small grid.

    A picture is cut into `grid` times `grid` cells, row by row. Each cell gives three numbers:
    its mean red, green and blue, each counted from 1 to 256 so that black has a direction too.
    The vector is these numbers, scaled to length 1.

    Args:
        grid: Cells along one side; the vector has `grid * grid * 3` numbers.
        resize: `squash` or `crop`.
    """

    def __init__(self, *, grid: int = 4, resize: Resize = "squash") -> None:
        self._grid = grid
        self._spec = ModelSpec(
            model="color",
            weights="none",
            weights_sha256=hashlib.sha256(b"").hexdigest(),
            preprocess=Preprocess(
                input_size=grid * _CELL, resize=resize, version=PREPROCESSING_VERSION
            ),
            dim=grid * grid * 3,
        )

    @property
    def spec(self) -> ModelSpec:
        """What made the vectors."""
        return self._spec

    @property
    def provenance(self) -> Mapping[str, str]:
        """Recorded beside the spec."""
        return {
            "precision": "float32",
            "runtime": "numpy",
            "device": "cpu",
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        }

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._spec.dim

    @property
    def decode_size(self) -> int:
        """Shorter side, in pixels, below which a decoder must not shrink a picture."""
        return 2 * self._spec.preprocess.input_size

    def prepare(self, image: Image.Image) -> Prepared:
        """Resizes an upright RGB picture: (8 grid, 8 grid, 3) uint8."""
        return resize_image(image, self._spec.preprocess)

    def encode(self, batch: NDArray[np.uint8]) -> Vectors:
        """Turns (N, 8 grid, 8 grid, 3) uint8 into (N, dim) float32 rows of length 1."""
        check_batch(batch, input_size=self._spec.preprocess.input_size)
        cells = batch.reshape(len(batch), self._grid, _CELL, self._grid, _CELL, 3)
        means = cells.mean(axis=(2, 4), dtype=np.float32) + np.float32(1)  # (N, grid, grid, 3)
        return normalize(means.reshape(len(batch), self.dim))
