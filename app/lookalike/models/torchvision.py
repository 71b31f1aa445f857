"""The family `torchvision`: its ResNets. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

from lookalike.errors import ConfigurationError
from lookalike.models.base import Encoder
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import ModelSpec, Preprocess

CHANNELS: Final = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
}
"""Torchvision's name of a network -> channels of its last feature map."""

MODELS: Final = tuple(CHANNELS)
HAS_OTHERS: Final = False
HAS_NETWORK: Final = True
HAS_TEXT: Final = False

_STRIDE = 32  # input pixels for each position of the last feature map, along one side
_DECIDING = {"random": ("torch", "torchvision"), "DEFAULT": ("torchvision",)}


def dim_of(model: str, *, pooling: str, input_size: int) -> int:
    """Numbers in a vector under `pooling` (`avg` or `flatten`), for this input in pixels."""
    positions = 1 if pooling == "avg" else -(-input_size // _STRIDE)
    return CHANNELS[model] * positions * positions


def settle(request: ModelRequest) -> ModelRequest:
    """Fills in the model's own input size; see `registry.Family`."""
    return replace(request, input_size=request.preprocess(Preprocess()).input_size)


def deciding_versions(weights: str) -> Mapping[str, str]:
    """Versions of the libraries that decide what a name of weights stands for."""
    return {name: version(name) for name in _DECIDING.get(weights, ())}


def load(request: ModelRequest, run: RunOptions) -> Encoder:
    """Loads a network that torch runs; see `registry.Family`."""
    if request.int8:
        raise ConfigurationError(
            "torch runs no int8 network here: set LOOKALIKE_RUNTIME=openvino (on CPUs), or another "
            "LOOKALIKE_PRECISION"
        )
    from lookalike.models.torch_encoder import DTYPES, TorchEncoder, place  # noqa: PLC0415 - torch
    from lookalike.models.torchvision_network import VERSION, build  # noqa: PLC0415 - likewise

    device, precision = place(run)
    network, spec = build(request, dtype=DTYPES[precision], device=device)
    return TorchEncoder(network, spec, run, device=device, precision=precision, torchvision=VERSION)


def export(request: ModelRequest) -> tuple[Any, ModelSpec]:
    """Loads a network for conversion; see `registry.Family`."""
    from lookalike.models import torchvision_network  # noqa: PLC0415 - imports torch

    return torchvision_network.build(request)
