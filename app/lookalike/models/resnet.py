"""Torchvision's ResNets up to their last feature map, and a faster equal of them for CPUs.

The vectors stay the same. Each convolution takes its ReLU, and a block's last one the residual
sum, into the same oneDNN call.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.models.network import fold_pairs

_CONVOLUTIONS = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}  # in a ResNet and its blocks

_log = logging.getLogger(__name__)


class ResNetTrunk(nn.Sequential):
    """(N, 3, H, W) to the last feature map; batch normalization is folded, in place."""

    def __init__(self, model: Any) -> None:
        layers = (model.layer1, model.layer2, model.layer3, model.layer4)
        for part in (model, *chain.from_iterable(layers)):
            fold_pairs(part, list(_CONVOLUTIONS.items()))
        super().__init__(model.conv1, model.relu, model.maxpool, *layers)

    def fused(self, dtype: torch.dtype, side: int) -> nn.Module:
        """The same of fused convolutions; this where there are none or they disagree."""
        sample = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)
        sample = sample.to(dtype=dtype, memory_format=torch.channels_last)
        trunk: Any = self
        conv, _, pool, *layers = trunk
        try:
            with torch.inference_mode():
                blocks = (_FusedBlock(block) for block in chain.from_iterable(layers))
                fused = nn.Sequential(_FusedConv(conv, relu=True), pool, *blocks)
                # Also the first call, which packs the weights.
                expected, actual = (each(sample).float().flatten() for each in (self, fused))
            agree = nn.functional.cosine_similarity(expected, actual, dim=0) > 0.999
        except (AttributeError, NotImplementedError, RuntimeError) as exc:
            _log.info("this torch has no fused convolutions (%s): running without", exc)
            return self
        return fused if agree else self


class _FusedConv(nn.Module):
    """A convolution with its ReLU, or with a residual sum and its ReLU, in one oneDNN call."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self._weight = conv.weight.detach()
        self._bias = conv.bias
        padding = [int(side) for side in conv.padding]
        self._geometry = padding, list(conv.stride), list(conv.dilation), conv.groups
        self._activation = "relu" if relu else "none"
        self._packed = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolves (N, C, H, W); `residual` is added before the ReLU, and overwritten."""
        if not self._packed:
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, *self._geometry, [1, *x.shape[1:]]
            )
            self._packed = True
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
                x, self._weight, self._bias, *self._geometry, self._activation, [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise_(  # type: ignore[no-any-return]
            residual, x, self._weight, self._bias, *self._geometry, "add", 1.0, "relu", [], ""
        )


class _FusedBlock(nn.Module):
    """A residual block of fused convolutions."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        convs = (getattr(block, name) for name in _CONVOLUTIONS if hasattr(block, name))
        self._convs = nn.ModuleList(_FusedConv(conv, relu=True) for conv in convs)
        shortcut = block.downsample
        self._shortcut = None if shortcut is None else _FusedConv(shortcut[0], relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the block's output; `x` may be overwritten."""
        residual = x if self._shortcut is None else self._shortcut(x)
        for conv in self._convs[:-1]:
            x = conv(x)
        return self._convs[-1](x, residual)  # type: ignore[no-any-return]
