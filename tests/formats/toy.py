"""A family of one very small network, so that a folder with an int8 network stays small."""

from __future__ import annotations

import hashlib

import pytest

from lookalike.models import registry
from lookalike.models.registry import FAMILIES, Family, Loaded
from lookalike.records import Preprocess

_SEED, _DIM = 7, 24
_OWN = Preprocess(input_size=32, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))


def register(patch: pytest.MonkeyPatch) -> None:
    """Makes the family known until the patch is undone."""
    toy = Family(module=__name__, models={"toy/net": _OWN}, deciding={})
    patch.setattr(registry, "FAMILIES", {**FAMILIES, "toy": toy})


def load(name: str, weights: str) -> Loaded:
    import torch
    from torch import nn

    class Net(nn.Sequential):
        """(N, 3, 32, 32) -> (N, 24, 2, 2)."""

        def __init__(self) -> None:
            super().__init__(
                nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, _DIM, 4, stride=4)
            )
            draw = torch.Generator().manual_seed(_SEED)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.3, generator=draw)

    return Loaded(
        network=Net().eval(),
        preprocess=_OWN,
        weights=weights,
        sha256=hashlib.sha256(b"%d" % _SEED).hexdigest(),
    )
