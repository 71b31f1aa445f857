"""A torchvision network for other runtimes: plain operators, float32, and its passport."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lookalike.models.preprocessing import PREPROCESSING_VERSION
from lookalike.models.registry import ExtractorSpec, get_spec
from lookalike.models.torchvision_network import Network
from lookalike.models.torchvision_weights import LoadedBackbone, load_backbone
from lookalike.records import Passport


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """A network that other programs can read.

    Attributes:
        network: (N, side, side, 3) uint8 -> (N, dim) float32, not normalized; batch normalization
            is folded, nothing is fused.
        passport: As `TorchvisionExtractor` has it for the same settings.
    """

    network: nn.Module
    passport: Passport


def exportable(
    model: str, *, weights: str, pooling: str, resize: str, input_size: int
) -> Exportable:
    """Loads a network for export; arguments as those of `TorchvisionExtractor`.

    Raises:
        WeightsError: The weights cannot be used.
    """
    spec = get_spec(model)
    backbone = load_backbone(model, weights=weights)
    network = Network(
        backbone.network,
        spec=spec,
        pooling=pooling,
        dtype=torch.float32,
        device=torch.device("cpu"),
        input_size=input_size,
        fused=False,
    )
    passport = backbone_passport(
        backbone, spec, pooling=pooling, resize=resize, input_size=input_size
    )
    return Exportable(network=network, passport=passport)


def backbone_passport(
    backbone: LoadedBackbone, spec: ExtractorSpec, *, pooling: str, resize: str, input_size: int
) -> Passport:
    """The passport of a torchvision network's vectors, whatever runs it."""
    return Passport(
        model=spec.name,
        weights=backbone.weights,
        weights_sha256=backbone.sha256,
        pooling=pooling,
        resize=resize,
        input_size=input_size,
        dim=spec.dim(pooling=pooling, input_size=input_size),
        preprocessing=PREPROCESSING_VERSION,
    )
