"""Pictures with their vectors in memory, wherever they come from: a dataset or a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import LookalikeError
from lookalike.records import ModelSpec


class PictureReader(Protocol):
    """Opens a picture of a set by its position; many threads may call it at once."""

    def __call__(self, position: int, *, size: int) -> Image.Image:
        """An upright RGB picture, perhaps at a reduced size.

        Args:
            position: 0 to N - 1.
            size: In pixels; no side is reduced below it.

        Raises:
            LookalikeError: The file is gone, or cannot be read any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that is not in the set, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSet:
    """N pictures and their vectors; position i is the same picture everywhere.

    Attributes:
        name: Of the dataset or the collection, for titles.
        spec: What made the vectors.
        provenance: Recorded beside the spec: precision, runtime, device.
        vectors: (N, dim) float32, rows of length 1; perhaps a read-only memory map.
        ids: One for each picture, each different: the path in the dataset, or the id.
        names: For display, one for each picture.
        labels: One for each picture, or None where there are none.
        sha256s: Hex digest of each file.
        picture: Opens a picture by its position.
        skipped: Pictures that could not be read.
    """

    name: str
    spec: ModelSpec
    provenance: Mapping[str, str]
    vectors: NDArray[np.float32]
    ids: Sequence[str]
    names: Sequence[str]
    labels: Sequence[str] | None
    sha256s: Sequence[str]
    picture: PictureReader
    skipped: Sequence[Skipped] = ()

    def __post_init__(self) -> None:
        """Checks the lengths; raises ValueError."""
        lengths = {len(self.vectors), len(self.ids), len(self.names), len(self.sha256s)}
        if self.labels is not None:
            lengths.add(len(self.labels))
        if len(lengths) != 1:
            raise ValueError(f"the parts of a vector set have different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        """Pictures."""
        return len(self.vectors)

    def picture_or_none(self, position: int, *, size: int) -> Image.Image | None:
        """As `picture`; None for one that cannot be read any more."""
        try:
            return self.picture(position, size=size)
        except LookalikeError:
            return None
