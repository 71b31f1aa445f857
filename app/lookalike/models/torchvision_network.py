"""Torchvision's ResNets: finds and checks their weights, and makes them run fast.

The vectors stay the same. Batch normalization is folded into the convolutions. On CPUs, each
convolution then takes its ReLU, and a block's last one the residual sum, into the same oneDNN call.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import logging
import shutil
import urllib.request
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lookalike.errors import WeightsError, WeightsMismatchError, WeightsNotFoundError
from lookalike.files.disk import atomic_write
from lookalike.models.spec import ModelRequest
from lookalike.models.torchvision import dim_of
from lookalike.records import ModelSpec, Preprocess, file_sha256

VERSION: Final = str(torchvision.__version__)
RANDOM = "random"
_SUFFIXES = (".pth", ".pt", ".safetensors")
_TIMEOUT_S = 10.0
_SHOWN = 5  # layers named in an error
_CONVOLUTIONS = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}  # in a ResNet and its blocks

_log = logging.getLogger(__name__)


def build(
    request: ModelRequest,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> tuple[Network, ModelSpec]:
    """Loads a network that is ready to run, and its spec.

    Args:
        request: Its `head` and `int8` are left to others.
        dtype: Of convolutions and weights; pooling is float32 always.
        device: Where to run; None for a network of plain operators on the CPU, which other
            programs can read.

    Raises:
        WeightsError: The weights cannot be used.
        ConfigurationError: A value cannot work.
    """
    preprocess, pooling = request.preprocess(Preprocess()), request.pooling
    backbone = load_backbone(request.model, weights=request.weights)
    network = Network(
        backbone.network, preprocess=preprocess, pooling=pooling, dtype=dtype, device=device
    )
    spec = ModelSpec(
        model=request.model,
        weights=backbone.weights,
        weights_sha256=backbone.sha256,
        pooling=pooling,
        preprocess=preprocess,
        dim=dim_of(request.model, pooling=pooling, input_size=preprocess.input_size),
    )
    return network, spec


class Network(nn.Module):
    """Pixels to pooled features; takes torchvision's ResNet apart, other arguments as `build`."""

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        preprocess: Preprocess,
        pooling: str,
        dtype: torch.dtype,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        plain = _folded_trunk(backbone)
        plain.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        fused = device is not None and device.type == "cpu" and dtype != torch.float16
        self._trunk = _fused_trunk(plain, dtype, side=preprocess.input_size) if fused else plain
        self._pooling = pooling
        self._dtype = dtype
        for name, three in (("_mean", preprocess.mean), ("_std", preprocess.std)):
            self.register_buffer(name, torch.tensor(three, device=device).reshape(1, 3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turns (N, H, W, 3) uint8 on the device into (N, dim) float32, not normalized."""
        x = pixels.permute(0, 3, 1, 2).float()  # (N, 3, H, W), channels last in memory
        maps: Tensor = self._trunk(((x - self._mean) / self._std).to(self._dtype)).float()
        return maps.mean((2, 3)) if self._pooling == "avg" else maps.flatten(1)


def _folded_trunk(model: Any) -> Any:
    """From the normalized input to the last feature map; folds batch normalization, in place."""
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    for part in (model, *chain.from_iterable(layers)):
        for conv, norm in _CONVOLUTIONS.items():
            if hasattr(part, conv):
                setattr(part, conv, fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
                setattr(part, norm, nn.Identity())
        if getattr(part, "downsample", None) is not None:
            part.downsample = nn.Sequential(fuse_conv_bn_eval(*part.downsample))
    return nn.Sequential(model.conv1, model.relu, model.maxpool, *layers)


def _fused_trunk(plain: Any, dtype: torch.dtype, *, side: int) -> Any:
    """The same of fused convolutions; the plain one where there are none or they disagree."""
    sample = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)
    sample = sample.to(dtype=dtype, memory_format=torch.channels_last)
    conv, _, pool, *layers = plain
    try:
        with torch.inference_mode():
            blocks = (_FusedBlock(block) for block in chain.from_iterable(layers))
            fused = nn.Sequential(_FusedConv(conv, relu=True), pool, *blocks)
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


class LoadedBackbone(NamedTuple):
    """A network with its weights: their name or their file's, and their digest as hex digits.

    The network is in evaluation mode, float32; its classifier is an identity.
    """

    network: nn.Module
    weights: str
    sha256: str


def load_backbone(model: str, *, weights: str) -> LoadedBackbone:
    """Builds a network without its classifier and gives it its weights.

    Args:
        model: As torchvision names it.
        weights: A torchvision weights name, a path to a state dict (.pth, .pt, .safetensors), or
            `random`, which is the same on every call.

    Raises:
        WeightsNotFoundError: No such name or file, or the download failed.
        WeightsMismatchError: The file's layers are not the model's.
        WeightsError: The file cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network: nn.Module = torchvision.models.get_model(model, weights=None)
    network.fc = nn.Identity()
    network.eval().requires_grad_(False)
    if weights == RANDOM:
        name = RANDOM
    else:
        path, name = _find(model, weights)
        _load_into(network, _read_state(path), path=path)
    return LoadedBackbone(network, name, state_sha256(network.state_dict()))


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Digests tensors by sorted name, dtype, shape and bytes; classifier and counters left out."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if _counts(name)):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _counts(name: str) -> bool:
    """Whether a tensor takes part in what the network computes."""
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def _find(model: str, weights: str) -> tuple[Path, str]:
    """Resolves a setting to a file that is there, and the name to show for it."""
    known = torchvision.models.get_model_weights(model)
    if weights in known.__members__:
        entry = known[weights]
        return _cached(str(entry.url)), str(entry.name)
    path = Path(weights).expanduser()
    if path.is_file():
        return path, path.name
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise WeightsNotFoundError(f"There is no weights file at {path.absolute()}")
    nearest = difflib.get_close_matches(weights.upper(), known.__members__, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise WeightsNotFoundError(
        f"Unknown weights {weights!r} for {model}.{hint} Known: "
        f"{', '.join(known.__members__)}, a path to a file ({', '.join(_SUFFIXES)}), or {RANDOM}"
    )


def _cached(url: str) -> Path:
    """The file of a named set in torch's cache folder, downloaded if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    expected = path.stem.rsplit("-", 1)[-1]  # torchvision puts the digest's start in the name
    if path.is_file():
        _check_digest(path, expected=expected)
    else:
        _download(url, path, expected=expected)
    return path


def _check_digest(path: Path, *, expected: str) -> None:
    actual = file_sha256(path)
    if not actual.startswith(expected):
        raise WeightsError(
            f"{path} is damaged: its sha256 starts with {actual[: len(expected)]} instead of "
            f"{expected}. Delete the file, so that it is downloaded again"
        )


def _download(url: str, path: Path, *, expected: str) -> None:
    """Downloads a file, and gives it its name once its digest is right."""
    _log.info("downloading %s to %s", url, path)
    request = urllib.request.Request(url, headers={"User-Agent": "lookalike"})  # noqa: S310  # torchvision's own table, https
    try:
        with (
            atomic_write(path) as file,
            urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer,  # noqa: S310  # as above
        ):
            shutil.copyfileobj(answer, file, 1 << 20)
            file.flush()
            _check_digest(Path(file.name), expected=expected)
    except (OSError, http.client.HTTPException, WeightsError) as exc:
        raise WeightsNotFoundError(
            f"The weights are not on this machine and {url} cannot be downloaded ({exc}). "
            f"Put {path.name} into {path.parent}, or give a path to a weights file, or set "
            f"LOOKALIKE_WEIGHTS={RANDOM} to try the service without"
        ) from exc


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict, without classifier; wrappers and a `module.` prefix are taken off."""
    try:
        content: Any = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as exc:
        raise WeightsError(
            f"The weights file {path} cannot be read ({exc}): it must be a state dict saved with "
            "torch.save, or a .safetensors file"
        ) from exc
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    ):
        raise WeightsError(f"The weights file {path} holds no state dict (layer names -> tensors)")
    state = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in state.items() if _counts(name)}


def _load_into(network: nn.Module, state: Mapping[str, torch.Tensor], *, path: Path) -> None:
    """Copies a state dict into a network whose layers must be exactly the same."""
    own = {name: tensor for name, tensor in network.state_dict().items() if _counts(name)}
    shapes = sorted(
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    )
    problems = [
        f"{len(names)} {title}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
        for title, names in (
            ("missing layers", sorted(own.keys() - state.keys())),
            ("layers that the model lacks", sorted(state.keys() - own.keys())),
            ("layers of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise WeightsMismatchError(
            f"The weights file {path} does not fit the model. {'; '.join(problems)}. "
            "Give the file of this model, or choose the model of this file"
        )
    network.load_state_dict(dict(state), strict=False)
