"""A torchvision network for other runtimes: plain operators, float32, and its spec."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from lookalike.models.registry import Architecture, get_architecture
from lookalike.models.resizing import PREPROCESSING_VERSION
from lookalike.models.torchvision_network import Network
from lookalike.models.torchvision_weights import LoadedBackbone, load_backbone
from lookalike.records import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """A network that other programs can read.

    Attributes:
        network: (N, side, side, 3) uint8 -> (N, dim) float32, not normalized; batch normalization
            is folded, nothing is fused.
        spec: As `TorchvisionEncoder` has it for the same settings.
    """

    network: nn.Module
    spec: ModelSpec


def exportable(
    model: str, *, weights: str, pooling: str, resize: str, input_size: int
) -> Exportable:
    """Loads a network for export; arguments as those of `TorchvisionEncoder`.

    Raises:
        WeightsError: The weights cannot be used.
    """
    architecture = get_architecture(model)
    backbone = load_backbone(model, weights=weights)
    network = Network(
        backbone.network,
        architecture=architecture,
        pooling=pooling,
        dtype=torch.float32,
        device=torch.device("cpu"),
        input_size=input_size,
        fused=False,
    )
    spec = backbone_spec(
        backbone, architecture, pooling=pooling, resize=resize, input_size=input_size
    )
    return Exportable(network=network, spec=spec)


def backbone_spec(
    backbone: LoadedBackbone,
    architecture: Architecture,
    *,
    pooling: str,
    resize: str,
    input_size: int,
) -> ModelSpec:
    """The spec of a torchvision network's vectors, whatever runs it."""
    return ModelSpec(
        model=architecture.name,
        weights=backbone.weights,
        weights_sha256=backbone.sha256,
        pooling=pooling,
        preprocess=replace(
            architecture.preprocess,
            resize=resize,
            input_size=input_size,
            version=PREPROCESSING_VERSION,
        ),
        dim=architecture.dim(pooling=pooling, input_size=input_size),
    )
