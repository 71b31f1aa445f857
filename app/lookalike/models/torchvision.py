"""The family `torchvision`: its ResNets. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Final

from lookalike.errors import ConfigurationError
from lookalike.models.base import Encoder
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import ModelSpec, Preprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What there is to know about a network before it is built.

    Attributes:
        name: As torchvision names it, e.g. `resnet50`.
        channels: Channels of the last feature map, the vector's length under `avg` pooling.
        stride: Input pixels for each position of the last feature map, along one side.
        preprocess: What happens to a picture before the network, unless said otherwise.
    """

    name: str
    channels: int
    stride: int = 32
    preprocess: Preprocess = field(default=Preprocess())

    def dim(self, *, pooling: str, input_size: int) -> int:
        """Numbers in a vector under `pooling` (`avg` or `flatten`), for this input in pixels."""
        if pooling == "avg":
            return self.channels
        positions = -(-input_size // self.stride)
        return self.channels * positions * positions


ARCHITECTURES: Final = {
    architecture.name: architecture
    for architecture in (
        Architecture(name="resnet18", channels=512),
        Architecture(name="resnet34", channels=512),
        Architecture(name="resnet50", channels=2048),
        Architecture(name="resnet101", channels=2048),
        Architecture(name="resnet152", channels=2048),
    )
}

MODELS: Final = tuple(ARCHITECTURES)
HAS_NETWORK: Final = True

_DECIDING = {"random": ("torch", "torchvision"), "DEFAULT": ("torchvision",)}


def settle(request: ModelRequest) -> ModelRequest:
    """Fills in the model's own input size; see `registry.NetworkFamily`."""
    own = ARCHITECTURES[request.model].preprocess
    return replace(request, input_size=request.preprocess(own).input_size)


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
    from lookalike.models import torch_encoder, torchvision_network  # noqa: PLC0415 - import torch

    settle(request)
    placement = torch_encoder.place(run)
    network, spec = torchvision_network.build(
        request, dtype=placement.dtype, device=placement.device
    )
    return torch_encoder.TorchEncoder(
        network,
        spec,
        placement=placement,
        run=run,
        libraries=torchvision_network.LIBRARIES,
    )


def export(request: ModelRequest) -> tuple[Any, ModelSpec]:
    """Loads a network for conversion; see `registry.NetworkFamily`."""
    from lookalike.models import torchvision_network  # noqa: PLC0415 - imports torch

    return torchvision_network.build(request)
