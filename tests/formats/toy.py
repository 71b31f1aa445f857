"""A family of one very small network, so that a folder with an int8 network stays small."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lookalike.models import registry
from lookalike.models.base import Encoder
from lookalike.models.registry import FAMILIES
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import ModelSpec, Preprocess

MODELS = ("toy/net",)
HAS_OTHERS = True
HAS_NETWORK = True

_SEED, _DIM, _SIDE = 7, 24, 32


def register(patch: pytest.MonkeyPatch) -> None:
    """Makes the family known until the patch is undone."""
    patch.setattr(registry, "FAMILIES", {**FAMILIES, "toy": __name__})


def settle(request: ModelRequest) -> ModelRequest:
    return replace(request, input_size=_SIDE)


def deciding_versions(weights: str) -> Mapping[str, str]:
    return {}


def load(request: ModelRequest, run: RunOptions) -> Encoder:
    raise NotImplementedError("only OpenVINO runs it")


def export(request: ModelRequest) -> tuple[Any, ModelSpec]:
    import torch
    from torch import nn

    class Net(nn.Module):
        """(N, 32, 32, 3) uint8 -> (N, 24) float32."""

        def __init__(self) -> None:
            super().__init__()
            draw = torch.Generator().manual_seed(_SEED)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, _DIM, 4, stride=4)
            )
            for parameter in self.layers.parameters():
                nn.init.normal_(parameter, std=0.3, generator=draw)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            floats = pixels.permute(0, 3, 1, 2).float() / 255 - 0.5
            found: torch.Tensor = self.layers(floats).mean(dim=(2, 3))
            return found

    spec = ModelSpec(
        model="toy/net",
        weights=request.weights,
        weights_sha256=hashlib.sha256(b"%d" % _SEED).hexdigest(),
        preprocess=Preprocess(input_size=_SIDE, version=1),
        dim=_DIM,
    )
    return Net().eval(), spec
