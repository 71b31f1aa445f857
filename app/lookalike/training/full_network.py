"""A whole network while it is trained: torchvision's ResNet with a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from lookalike.records import Preprocess
from lookalike.training.network import HeadNetwork


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
