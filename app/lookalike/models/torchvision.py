"""The family `torchvision`: all of its networks that classify pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from lookalike.models.registry import RESNETS, Loaded
from lookalike.models.resnet import ResNetTrunk
from lookalike.models.weights import downloaded, load_weights, same_random_weights
from lookalike.records import Preprocess

_AUXILIARY: Mapping[str, Mapping[str, bool]] = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
"""Networks with more classifiers than one -> how they are made without those; their input is as of
all others, since they scale it themselves."""


def load(name: str, weights: str) -> Loaded:
    """Loads a network; see `registry.Family`."""
    backbone = load_backbone(name, weights=weights)
    preprocess = _described(name, weights)
    return Loaded(
        network=_maps(backbone.network, preprocess.input_size),
        preprocess=preprocess,
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
    options: dict[str, Any] = dict(_AUXILIARY.get(model, {}))
    if model.startswith("vit_"):
        options["image_size"] = _described(model, weights).input_size
    with same_random_weights():
        network = torchvision.models.get_model(model, weights=None, **options)
    classifier = _take_classifier(network)
    network.eval().requires_grad_(False)
    known = torchvision.models.get_model_weights(model)
    shown, sha256 = load_weights(
        network,
        weights,
        model=model,
        named={name: partial(_file, entry) for name, entry in known.__members__.items()},
        classifier=(f"{classifier}.", "aux1.", "aux2.", "AuxLogits."),
    )
    return LoadedBackbone(network, shown, sha256)


def _file(entry: Any) -> tuple[Path, str]:
    return downloaded(str(entry.url)), str(entry.name)


def _take_classifier(network: nn.Module) -> str:
    """Puts an identity in the place of the last linear layer; returns the layer's name.

    SqueezeNet, whose classifier is a convolution, loses all of that.
    """
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    name = linear[-1] if linear else "classifier"
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    return name


def _described(name: str, weights: str) -> Preprocess:
    """The preprocessing of named weights; of others, that of the first that have a name."""
    if name in RESNETS:
        return Preprocess()
    known = torchvision.models.get_model_weights(name)
    entry = known[weights] if weights in known.__members__ else next(iter(known))
    described = entry.transforms()
    (side,), (resized,) = described.crop_size, described.resize_size
    return Preprocess(
        input_size=side,
        resize="crop",
        crop_share=side / resized,
        interpolation=described.interpolation.value,
        mean=tuple(described.mean),
        std=tuple(described.std),
    )


def _maps(network: Any, side: int) -> nn.Module:
    """The part whose output's mean over positions is the network's; else the network itself."""
    if isinstance(network, torchvision.models.ResNet):
        return ResNetTrunk(network)
    if isinstance(network, torchvision.models.SqueezeNet):
        maps: nn.Module = network.features
        return maps
    sample = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)
    with torch.inference_mode():
        expected = network(sample)  # (1, dim)

        def agrees(part: nn.Module) -> bool:
            try:
                pooled = part(sample).flatten(2).mean(2)
            except (RuntimeError, IndexError):  # what follows takes no maps, or there are none
                return False
            apart = (pooled - expected).norm() if pooled.shape == expected.shape else torch.inf
            return bool(apart <= 1e-3 * expected.norm())

        features = getattr(network, "features", None)
        if isinstance(features, nn.Sequential):
            for part in (features, nn.Sequential(*features, nn.ReLU())):
                if agrees(part):
                    return part
        pool = getattr(network, "avgpool", None)
        if isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in {1, (1, 1)}:
            network.avgpool = nn.Identity()
            unpooled = _Unpooled(network, expected.shape[1])
            if agrees(unpooled):
                return unpooled
            network.avgpool = pool
    whole: nn.Module = network
    return whole


class _Unpooled(nn.Module):
    """A network that flattened what it pooled, and now only flattens."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self._network, self._channels = network, channels

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, scaled, to (N, channels, positions)."""
        maps: Tensor = self._network(x)
        return maps.reshape(maps.shape[0], self._channels, -1)
