"""What every torch network needs to make vectors of pictures, whatever its family."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lookalike.errors import ConfigurationError
from lookalike.models import registry
from lookalike.models.registry import Loaded
from lookalike.models.spec import ModelRequest
from lookalike.records import ModelSpec, Preprocess


class Built(NamedTuple):
    """A network that is ready to run, its spec, and what it was made from."""

    network: Network
    spec: ModelSpec
    loaded: Loaded


def build(
    request: ModelRequest,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Built:
    """Loads the network of a request.

    Args:
        request: Its `head` and `int8` are left to others.
        dtype: Of convolutions and weights; pooling is float32 always.
        device: Where to run; None for a network of plain operators on the CPU, which other
            programs can read.

    Raises:
        WeightsError: The weights cannot be used.
        ConfigurationError: A value cannot work.
    """
    loaded = registry.load(request.model, request.weights)
    preprocess = request.preprocess(loaded.preprocess)
    if preprocess.input_size != loaded.preprocess.input_size:
        _set_input_size(request.model, loaded.network, preprocess.input_size)
    network = Network(
        loaded.network, preprocess=preprocess, pooling=request.pooling, dtype=dtype, device=device
    )
    spec = ModelSpec(
        model=request.model,
        weights=loaded.weights,
        weights_sha256=loaded.sha256,
        pooling=request.pooling,
        preprocess=preprocess,
        dim=network.dim(request.model),
    )
    return Built(network, spec, loaded)


def _set_input_size(model: str, network: Any, side: int) -> None:
    try:
        if hasattr(network, "set_input_size"):
            network.set_input_size(side)
    except (RuntimeError, ValueError, TypeError, AssertionError) as exc:
        raise _unfit(model, side, exc) from exc


def _unfit(model: str, side: int, exc: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The model {model} does not take pictures of {side} pixels ({exc or type(exc).__name__}): "
        "leave input_size out to take the model's own, or give another one"
    )


class Network(nn.Module):
    """Pixels to pooled features, not normalized; changes `loaded`, others as `build`."""

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        loaded: nn.Module,
        *,
        preprocess: Preprocess,
        pooling: str,
        dtype: torch.dtype,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        self._side, self._pooling, self._dtype = preprocess.input_size, pooling, dtype
        features: Any = fold(loaded)
        features.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        on_cpu = device is not None and device.type == "cpu" and dtype != torch.float16
        if on_cpu and hasattr(features, "fused"):
            features = features.fused(dtype, self._side)
        self._features = features
        for name, three in (("_mean", preprocess.mean), ("_std", preprocess.std)):
            self.register_buffer(name, torch.tensor(three, device=device).reshape(1, 3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turns (N, side, side, 3) uint8 on the device into (N, dim) float32, not normalized."""
        return self._pooled(self._maps(pixels))

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs (N, side, side, 3) uint8 on the CPU: (N, dim) float32."""
        with torch.inference_mode():
            found: NDArray[np.float32] = self(torch.from_numpy(pixels)).numpy()
        return found

    def dim(self, model: str) -> int:
        """Numbers in a vector, as one picture shows; raises `ConfigurationError` if it has none.

        `model` is the network's name, for errors.
        """
        pixels = torch.zeros((1, self._side, self._side, 3), dtype=torch.uint8)
        try:
            with torch.inference_mode():
                maps = self._maps(pixels.to(self._mean.device))
        except (RuntimeError, ValueError, TypeError, AssertionError) as exc:
            raise _unfit(model, self._side, exc) from exc
        if maps.ndim == 2 and self._pooling == "flatten":
            raise ConfigurationError(
                f"The model {model} pools its features itself, so there is nothing to flatten: "
                "choose pooling avg"
            )
        return self._pooled(maps).shape[1]

    def _maps(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float()  # (N, 3, H, W), channels last in memory
        maps: Tensor = self._features(((x - self._mean) / self._std).to(self._dtype)).float()
        return maps

    def _pooled(self, maps: Tensor) -> Tensor:
        if maps.ndim > 2 and self._pooling == "avg":
            return maps.mean(tuple(range(2, maps.ndim)))
        return maps.flatten(1)


def fold(network: nn.Module) -> nn.Module:
    """Folds batch normalization into the convolution before it in every sequence, in place."""
    for part in network.modules():
        if isinstance(part, nn.Sequential):
            fold_pairs(part, [(str(at), str(at + 1)) for at in range(len(part) - 1)])
    return network


def fold_pairs(part: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Folds what follows a convolution directly, by the names of the two in `part`, in place."""
    for conv_name, norm_name in pairs:
        conv, norm = getattr(part, conv_name, None), getattr(part, norm_name, None)
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            setattr(part, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(part, norm_name, nn.Identity())
