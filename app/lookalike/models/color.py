"""The family `color`: an encoder without a network, whose vectors can be computed by hand."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from lookalike.errors import InvalidParameterError
from lookalike.models.base import (
    Encoder,
    ImageEncoder,
    Modality,
    Vectors,
    normalize,
)
from lookalike.models.spec import PREPROCESSING_VERSION, ModelRequest, RunOptions
from lookalike.records import ModelSpec, Preprocess

_CELL = 8  # pixels


class ColorEncoder(ImageEncoder):
    """The mean color of each cell of a small grid.

    A picture is cut into `grid` times `grid` cells, row by row. Each cell gives three numbers:
    its mean red, green and blue, each counted from 1 to 256 so that black has a direction too.
    The vector is these numbers, scaled to length 1.

    The texts that it takes are colors as in CSS: `red`, `#ff0000`, `hsl(0, 100%, 50%)`. Such a
    text has the vector of a picture of that color alone.

    Args:
        grid: Cells along one side; the vector has `grid * grid * 3` numbers.
        resize: `squash` or `crop`.
    """

    modalities = frozenset({Modality.IMAGE, Modality.TEXT})

    def __init__(self, *, grid: int = 4, resize: str = "squash") -> None:
        preprocess = Preprocess(
            input_size=grid * _CELL, resize=resize, version=PREPROCESSING_VERSION
        )
        spec = ModelSpec(
            model="color",
            weights="none",
            weights_sha256=hashlib.sha256(b"").hexdigest(),
            preprocess=preprocess,
            dim=grid * grid * 3,
        )
        super().__init__(
            spec, precision="float32", runtime="numpy", device="cpu", numpy=np.__version__
        )
        self.decode_size = 2 * preprocess.input_size
        self._grid = grid

    def _prepare_text(self, text: str) -> NDArray[np.uint8]:
        """A picture of one color: (input_size, input_size, 3) uint8."""
        try:
            color = ImageColor.getrgb(text.replace(" ", ""))[:3]
        except ValueError as exc:
            raise InvalidParameterError(
                f"The model color takes names of colors and their values, such as red or #ff0000, "
                f"not {text[:60]!r}"
            ) from exc
        side = self.spec.preprocess.input_size
        return np.full((side, side, 3), [min(one, 255) for one in color], dtype=np.uint8)

    def _embed(self, pixels: NDArray[np.uint8]) -> Vectors:
        """Turns (N, 8 grid, 8 grid, 3) uint8 into (N, dim) unit vectors."""
        cells = pixels.reshape(len(pixels), self._grid, _CELL, self._grid, _CELL, 3)
        means = cells.mean(axis=(2, 4), dtype=np.float32) + np.float32(1)  # (N, grid, grid, 3)
        return normalize(means.reshape(len(pixels), -1))


def make_encoder(request: ModelRequest, run: RunOptions) -> Encoder:  # noqa: ARG001 - see registry.Family
    """The one encoder of this family; nothing of a request applies to it."""
    return ColorEncoder()
