"""A torchvision ResNet made ready to run fast: same numbers, fewer and cheaper steps.

Batch normalization is folded into the convolutions. On CPUs, each convolution then takes its
ReLU, and a block's last one the residual sum, into the same oneDNN call.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lookalike.models.registry import Architecture

_log = logging.getLogger(__name__)


class Network(nn.Module):
    """Pixels to pooled features.

    Args:
        backbone: torchvision's ResNet, float32, in evaluation mode; left as it is.
        architecture: Gives the normalization.
        pooling: `avg` or `flatten`.
        dtype: Of convolutions and weights; pooling is float32 always.
        device: Where to run.
        input_size: Side of the input, in pixels.
        fused: Whether to use oneDNN's fused convolutions where there are some; without them the
            network is of plain operators alone, which other programs can read.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        architecture: Architecture,
        pooling: str,
        dtype: torch.dtype,
        device: torch.device,
        input_size: int,
        fused: bool = True,
    ) -> None:
        super().__init__()
        folded: Any = _fold_batch_norm(copy.deepcopy(backbone))
        folded = folded.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        plain = _plain_trunk(folded)
        if fused and device.type == "cpu" and dtype != torch.float16:
            self._trunk = _fused_trunk(folded, plain, dtype=dtype, input_size=input_size)
        else:
            self._trunk = plain
        self._pooling = pooling
        self._dtype = dtype
        mean = torch.tensor(architecture.preprocess.mean, device=device).reshape(1, 3, 1, 1) * 255
        std = torch.tensor(architecture.preprocess.std, device=device).reshape(1, 3, 1, 1) * 255
        self.register_buffer("_mean", mean)
        self.register_buffer("_std", std)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turns (N, H, W, 3) uint8 on the device into (N, dim) float32, not normalized."""
        x = pixels.permute(0, 3, 1, 2).float()  # (N, 3, H, W), channels last in memory
        maps: Tensor = self._trunk(((x - self._mean) / self._std).to(self._dtype)).float()
        return maps.mean((2, 3)) if self._pooling == "avg" else maps.flatten(1)


def _fold_batch_norm(model: Any) -> Any:
    """Folds every batch normalization of a ResNet into the convolution before it, in place."""
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), nn.Identity()
    for block in _blocks(model):
        for number in range(1, _convolutions(block) + 1):
            conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
            setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{number}", nn.Identity())
        if block.downsample is not None:
            block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))
    return model


def _blocks(model: Any) -> list[Any]:
    """The residual blocks, in order."""
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    return [block for layer in layers for block in layer]


def _convolutions(block: Any) -> int:
    """2 for a basic block, 3 for a bottleneck."""
    return 3 if hasattr(block, "conv3") else 2


def _plain_trunk(model: Any) -> nn.Sequential:
    """Everything between the normalized input and the last feature map."""
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    return nn.Sequential(model.conv1, model.relu, model.maxpool, *layers)


def _fused_trunk(
    model: Any, plain: nn.Sequential, *, dtype: torch.dtype, input_size: int
) -> nn.Sequential:
    """The same of fused convolutions; the plain one where there are none or they disagree."""
    sample = torch.linspace(-2, 2, 3 * input_size * input_size).reshape(
        1, 3, input_size, input_size
    )
    sample = sample.to(dtype=dtype, memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            blocks = (_FusedBlock(block) for block in _blocks(model))
            fused = nn.Sequential(_FusedConv(model.conv1, relu=True), model.maxpool, *blocks)
            # Also the first call, which packs the weights.
            expected, actual = plain(sample).float(), fused(sample).float()
        agree = nn.functional.cosine_similarity(expected.flatten(), actual.flatten(), dim=0) > 0.999
    except (AttributeError, NotImplementedError, RuntimeError) as exc:
        _log.info("this torch has no fused convolutions (%s): running without", exc)
        return plain
    return fused if agree else plain


class _FusedConv(nn.Module):
    """A convolution with its ReLU, or with a residual sum and its ReLU, in one oneDNN call."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self._weight = conv.weight.detach()
        self._bias = conv.bias
        self._geometry = (
            [int(side) for side in conv.padding],
            list(conv.stride),
            list(conv.dilation),
            conv.groups,
        )
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
        count = _convolutions(block)
        self._convs = nn.ModuleList(
            _FusedConv(getattr(block, f"conv{number}"), relu=True) for number in range(1, count + 1)
        )
        shortcut = block.downsample
        self._shortcut = None if shortcut is None else _FusedConv(shortcut[0], relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the block's output; `x` may be overwritten."""
        residual = x if self._shortcut is None else self._shortcut(x)
        for conv in self._convs[:-1]:
            x = conv(x)
        return self._convs[-1](x, residual)  # type: ignore[no-any-return]
