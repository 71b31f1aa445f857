"""Runs torch networks of any family, on CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lookalike.cores import available_cores
from lookalike.errors import ConfigurationError, EmbeddingFailedError, WeightsMismatchError
from lookalike.models import registry
from lookalike.models.base import Features, ImageEncoder, Texts, Vectors, normalize
from lookalike.models.network import build
from lookalike.models.registry import TextSide
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import ModelSpec

DTYPES: Final = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


class TorchEncoder(ImageEncoder):
    """A torch network without its classifier.

    Args:
        network: (N, input_size, input_size, 3) uint8 on the device -> (N, dim) float32, not
            normalized.
        spec: What the network is.
        run: Gives `threads` and `compiled`.
        device: Where the network is.
        precision: In what it computes, a key of `DTYPES`.
        text: How it takes texts, its network on the device, if it does.
        libraries: Versions to record beside torch's and Pillow's.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        run: RunOptions,
        *,
        device: torch.device,
        precision: str,
        text: TextSide | None = None,
        **libraries: str,
    ) -> None:
        texts = None
        if text is not None:
            texts = Texts(text.tokenize, partial(self._forward_texts, text.network))
        super().__init__(
            spec,
            texts=texts,
            precision=precision,
            runtime="torch.compile" if run.compiled else "torch",
            device=str(device),
            torch=torch.__version__,
            **libraries,
        )
        self._threads = run.threads or available_cores()
        self._device = device
        self._network: Any = torch.compile(network) if run.compiled else network
        torch.set_num_threads(self._threads)
        if run.compiled:  # now, rather than in the first request: once for one, once for any number
            side = spec.preprocess.input_size
            for count in (1, 2, 3):
                pixels = torch.zeros((count, side, side, 3), dtype=torch.uint8)
                self._forward(pixels)

    def encode(self, batch: Sequence[Features]) -> Vectors:
        """Turns N prepared pictures or texts into (N, dim) unit vectors."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # holds for the calling thread only
        return super().encode(batch)

    def _embed(self, pixels: NDArray[np.uint8]) -> Vectors:
        return normalize(self._forward(torch.from_numpy(pixels)))

    def _forward(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        return self._run(self._network, pixels)

    def _forward_texts(self, network: nn.Module, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._run(network, torch.from_numpy(tokens))

    def _run(self, network: Any, items: torch.Tensor) -> NDArray[np.float32]:
        """Runs a network, in halves where the device has no memory for the whole."""
        try:
            # Else cuDNN rounds float32 to 10 bits of mantissa (TF32).
            exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
            with torch.inference_mode(), exact:
                features = network(items.to(self._device)).float().cpu().numpy()
        except torch.OutOfMemoryError as exc:
            if len(items) == 1:
                raise EmbeddingFailedError(
                    f"{self._device} has no memory left for one item: free some, choose a "
                    "smaller input size, or another device"
                ) from exc
        else:
            return np.asarray(features, dtype=np.float32)
        middle = len(items) // 2
        halves = (items[:middle], items[middle:])
        return np.concatenate([self._run(network, half) for half in halves])


def load_encoder(request: ModelRequest, run: RunOptions) -> TorchEncoder:
    """Loads a request's network on the device that is asked for; raises as `network.build`."""
    device, precision = place(run)
    built = build(request, dtype=DTYPES[precision], device=device)
    text = built.loaded.text
    if text is not None:
        text.network.to(device=device, dtype=DTYPES[precision])
    return TorchEncoder(
        built.network,
        built.spec,
        run,
        device=device,
        precision=precision,
        text=text,
        **built.loaded.versions,
    )


def load_texts(request: ModelRequest, sha256: str | None) -> Texts:
    """Loads how a model takes texts, in float32 on the CPU; without its side of pictures.

    Raises `WeightsMismatchError` unless the weights have this digest, if one is given.
    """
    loaded = registry.load(request.model, request.weights)
    if sha256 not in (None, loaded.sha256):
        raise WeightsMismatchError(
            f"The weights of {request.model} were changed since the service started: put the old "
            "ones back, or start again"
        )
    text = loaded.text
    assert text is not None, "asked of models with texts alone"

    def forward(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors: NDArray[np.float32] = text.network(torch.from_numpy(tokens)).numpy()
        return vectors

    return Texts(text.tokenize, forward)


def place(run: RunOptions) -> tuple[torch.device, str]:
    """Chooses the device and the precision, a key of `DTYPES`; raises `ConfigurationError`."""
    if run.precision != "auto" and run.precision not in DTYPES:
        raise ConfigurationError(
            f"Unknown precision {run.precision!r}: it must be auto, {', '.join(DTYPES)}"
        )
    device = choose_device(run.device)
    if run.compiled and device.type != "cuda":
        raise ConfigurationError(
            f"LOOKALIKE_COMPILE needs a CUDA device, and this runs on {device}: unset it"
        )
    return device, choose_precision(run.precision, device=device)


def choose_device(device: str) -> torch.device:
    """Resolves `auto`; raises `ConfigurationError` if the device is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as exc:
        raise ConfigurationError(
            f"Unknown device {device!r}: it must be auto, cpu, cuda, cuda:<number> or mps"
        ) from exc
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(chosen.type, False):
        raise ConfigurationError(
            f"The device {device!r} is not available here: choose auto, cpu, cuda, cuda:<number> "
            "or mps; CUDA needs the driver and a torch that was built with it"
        )
    return chosen


def choose_precision(precision: str, *, device: torch.device) -> str:
    """Resolves `auto` to what the device computes fast."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "float16"
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if device.type == "cpu" and fast else "float32"
