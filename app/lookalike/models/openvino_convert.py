"""Turns a torch network into OpenVINO's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lookalike.models.openvino_runtime import import_openvino


def convert(network: Any, *, input_size: int) -> Any:
    """Converts a network of plain operators.

    Args:
        network: A torch module, (N, side, side, 3) uint8 -> (N, dim) float32.
        input_size: Side of its input, in pixels.

    Returns:
        OpenVINO's model, for batches of any length; its weights are float32.
    """
    openvino = import_openvino()
    sample = np.zeros((1, input_size, input_size, 3), dtype=np.uint8)
    shape = openvino.PartialShape([-1, input_size, input_size, 3])
    with warnings.catch_warnings():  # OpenVINO uses what this torch calls deprecated
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r"(?s).*torch\.jit\.", category=category)
        return openvino.convert_model(
            network, example_input=sample, input=[(shape, openvino.Type.u8)]
        )
