"""What every encoder checks before and after the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import EmbeddingFailedError
from lookalike.models.base import Vectors


def check_batch(batch: NDArray[np.uint8], *, input_size: int) -> None:
    """Checks that a batch is (N, input_size, input_size, 3) uint8.

    Raises:
        EmbeddingFailedError: It is not.
    """
    if batch.ndim != 4 or batch.shape[1:] != (input_size, input_size, 3) or batch.dtype != np.uint8:
        raise EmbeddingFailedError(
            f"Expected pictures of ({input_size}, {input_size}, 3) uint8, "
            f"got {batch.shape[1:]} {batch.dtype}"
        )


def normalize(features: NDArray[np.float32]) -> Vectors:
    """Scales each row of (N, dim) float32 to length 1.

    Raises:
        EmbeddingFailedError: A row is all zeros or holds a NaN or an infinity: it has no
            direction, and must not be stored.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)  # (N, 1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise EmbeddingFailedError(
            "The network answered with zeros, infinities or NaN: its weights may be damaged, or "
            "the precision too low for them (try precision float32)"
        )
    return np.ascontiguousarray(features / lengths, dtype=np.float32)
