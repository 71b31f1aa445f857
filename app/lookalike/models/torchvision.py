"""The family `torchvision`: its ResNets."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torchvision
from torch import nn

from lookalike.models.registry import Loaded
from lookalike.models.resnet import ResNetTrunk
from lookalike.models.weights import downloaded, load_weights, same_random_weights
from lookalike.records import Preprocess

_CLASSIFIER = "fc."


def load(name: str, weights: str) -> Loaded:
    """Loads a network; see `registry.Family`."""
    backbone = load_backbone(name, weights=weights)
    return Loaded(
        network=ResNetTrunk(backbone.network),
        preprocess=Preprocess(),
        weights=backbone.weights,
        sha256=backbone.sha256,
        versions={"torchvision": str(torchvision.__version__)},
    )


class LoadedBackbone(NamedTuple):
    """Torchvision's own network, with an identity for a classifier; others as of `Loaded`."""

    network: nn.Module
    weights: str
    sha256: str


def load_backbone(model: str, *, weights: str) -> LoadedBackbone:
    """Makes a network and gives it its weights; raises as `load_weights`."""
    with same_random_weights():
        network: Any = torchvision.models.get_model(model, weights=None)
    network.fc = nn.Identity()
    network.eval().requires_grad_(False)
    known = torchvision.models.get_model_weights(model)
    shown, sha256 = load_weights(
        network,
        weights,
        model=model,
        named={name: partial(_file, entry) for name, entry in known.__members__.items()},
        classifier=(_CLASSIFIER,),
    )
    return LoadedBackbone(network, shown, sha256)


def _file(entry: Any) -> tuple[Path, str]:
    return downloaded(str(entry.url)), str(entry.name)
