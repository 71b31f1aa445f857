"""Quantizes a converted network to 8-bit integers after its training; the one user of NNCF."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ConfigurationError
from lookalike.models.base import Vectors
from lookalike.models.openvino.runtime import import_openvino
from lookalike.progress import NO_PROGRESS, Progress

NEIGHBORS: Final = 10
"""Of each picture, compared before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How much of float32 is left, on pictures that had no part in the calibration.

    Attributes:
        pictures: How many were compared.
        cosine_min: Least cosine of a picture's two vectors; `cosine_mean` is the mean.
        overlap: Mean share of a picture's ten nearest among the others that stay, 0 to 1.
    """

    pictures: int
    cosine_min: float
    cosine_mean: float
    overlap: float


def quantize(
    network: Any,
    calibration: NDArray[np.uint8],
    *,
    progress: Progress = NO_PROGRESS,
) -> Any:
    """Quantizes all convolutions, weights and activations, to 8 bits.

    The range of every activation is that of all calibration pictures together. NNCF's own choice,
    the mean of each picture's range, cuts off the strongest answers, and with them a third of the
    agreement (docs/decisions/0011).

    Args:
        network: OpenVINO's model, float32; left as it is.
        calibration: (N, side, side, 3) uint8, pictures like those to come.
        progress: Told how many pictures were seen.

    Raises:
        ConfigurationError: NNCF is not installed.
    """
    import_openvino()
    try:
        import nncf  # noqa: PLC0415 - slow, and an extra that may not be there
        from nncf.quantization.range_estimator import (  # noqa: PLC0415
            RangeEstimatorParametersSet,
        )
    except ImportError as exc:
        raise ConfigurationError(
            f"Quantizing needs NNCF, which cannot be imported ({exc}): "
            "pip install 'lookalike[openvino]'"
        ) from exc
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own way sets handlers of others, too

    def picture(number: int) -> NDArray[np.uint8]:
        progress.report(number + 1, len(calibration))
        return calibration[number : number + 1]

    with redirect_stdout(io.StringIO()):  # its own bars
        return nncf.quantize(
            network,
            nncf.Dataset(range(len(calibration)), picture),
            subset_size=len(calibration),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )


def agreement(before: Vectors, after: Vectors) -> Agreement:
    """Compares (N, dim) unit vectors of the same pictures; ValueError unless N > `NEIGHBORS`."""
    if before.shape != after.shape or len(before) <= NEIGHBORS:
        raise ValueError(f"{before.shape} and {after.shape} cannot be compared")
    cosines = np.einsum("nd,nd->n", before.astype(np.float64), after.astype(np.float64))
    kept = [
        len(np.intersect1d(*pair)) / NEIGHBORS
        for pair in zip(_nearest(before), _nearest(after), strict=True)
    ]
    return Agreement(
        pictures=len(before),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        overlap=float(np.mean(kept)),
    )


def _nearest(vectors: Vectors) -> NDArray[np.intp]:
    """Each row's nearest others: (N, NEIGHBORS)."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :NEIGHBORS]
