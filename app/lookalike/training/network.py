"""Networks in training, as torch modules: a head alone, or a whole network with its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.models.head import Head, HeadSpec
from lookalike.records import ModelSpec, Preprocess

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


@dataclass(frozen=True, slots=True, kw_only=True)
class FullOptions:
    """What can be chosen beyond `TrainingOptions`.

    Attributes:
        backbone_rate: Learning rate of the network below the head, as a share of the head's.
        augmentation: Show a random crop of 60% to 100% of each picture, mirrored half of the time.
        gradient_checkpointing: Compute activations twice rather than keep them: less memory.
        mixed_precision: The network below the head in bfloat16.
        device: As the setting of this name.
    """

    backbone_rate: float = 0.1
    augmentation: bool = True
    gradient_checkpointing: bool = False
    mixed_precision: bool = False
    device: str = "auto"


class FullNetwork(nn.Module):
    """Pixels to the head's vectors.

    Args:
        backbone: torchvision's ResNet without its classifier.
        head: The head.
        preprocess: Gives the normalization of pixels.
        full: Gives gradient checkpointing and mixed precision.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: HeadNetwork,
        *,
        preprocess: Preprocess,
        full: FullOptions,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone.requires_grad_(True)
        self.head = head
        self._full = full
        for name, values in (
            ("_mean", preprocess.mean),
            ("_std", preprocess.std),
        ):
            pixels = 255 * torch.tensor(values).reshape(1, 3, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    def train(self, mode: bool = True) -> FullNetwork:
        """As of any module, but for the batch normalization inside the network."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, dim) float32 of length 1: what the encoder gives."""
        x = (pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std
        below = self.backbone
        with torch.autocast(
            x.device.type, dtype=torch.bfloat16, enabled=self._full.mixed_precision
        ):
            x = below.maxpool(below.relu(below.bn1(below.conv1(x))))
            for layer in (below.layer1, below.layer2, below.layer3, below.layer4):
                if self._full.gradient_checkpointing and torch.is_grad_enabled():
                    x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
                else:
                    x = layer(x)
        return nn.functional.normalize(x.float().mean((2, 3)))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, dim_out) float32 of length 1."""
        vectors: Tensor = self.head(self.features(pixels))
        return vectors
