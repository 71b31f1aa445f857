"""A head while it is trained: torch's own layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.models.head import Head, HeadSpec
from lookalike.records import ModelSpec

_ROWS = 4096  # at a time


class HeadNetwork(nn.Module):
    """Linear, ReLU and batch normalization for each layer, then a scaling to length 1.

    A linear layer starts as the identity where its width stays the same, and otherwise as a random
    orthogonal map: near the features as they are, which are good already.

    Args:
        spec: The widths.
        seed: Of the first weights.
    """

    def __init__(self, spec: HeadSpec, *, seed: int) -> None:
        super().__init__()
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            layers: list[nn.Module] = []
            for before, after in zip(spec.widths, spec.widths[1:], strict=False):
                linear = nn.Linear(before, after)
                (nn.init.eye_ if before == after else nn.init.orthogonal_)(linear.weight)
                nn.init.zeros_(linear.bias)
                layers += [linear, nn.ReLU(), nn.BatchNorm1d(after, momentum=None)]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, dim_in) float32 to (N, dim_out) float32 of length 1."""
        return nn.functional.normalize(self.layers(vectors))

    @torch.no_grad()
    def settle(self, vectors: Tensor) -> None:
        """Sets the means and variances that `embed` uses to those over all of (N, dim_in).

        A moving average lags behind the weights, and with few batches in an epoch it never
        arrives (Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3).
        """
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
        self.train()
        for block in torch.chunk(vectors, -(-len(vectors) // _ROWS)):
            self(block)

    @torch.inference_mode()
    def embed(self, vectors: Tensor) -> NDArray[np.float32]:
        """As `forward`, with the means and variances of `settle`: (N, dim_out) float32."""
        self.eval()
        return torch.cat([self(block) for block in torch.split(vectors, _ROWS)]).cpu().numpy()

    def to_head(
        self, state: Mapping[str, Tensor], *, backbone: ModelSpec, trained: Mapping[str, Any]
    ) -> Head:
        """A state of this network as a head."""
        tensors = {name: state[f"layers.{name}"].numpy() for name in self.spec.shapes()}
        return Head(self.spec, tensors, backbone=backbone, trained=trained)
