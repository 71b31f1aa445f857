"""Vectors from torchvision's ResNets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from lookalike.cores import available_cores
from lookalike.errors import ConfigurationError, EmbeddingFailedError
from lookalike.models.base import Prepared, Vectors
from lookalike.models.choices import Pooling, Precision, Resize, check_choices
from lookalike.models.registry import get_architecture
from lookalike.models.resizing import least_decode_size, resize_image
from lookalike.models.torchvision_export import backbone_spec
from lookalike.models.torchvision_network import Network
from lookalike.models.torchvision_weights import load_backbone
from lookalike.models.vectors import check_batch, normalize
from lookalike.records import ModelSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchvisionEncoder:
    """A ResNet without its classifier.

    Args:
        model: A name of the registry, e.g. `resnet50`.
        weights: A torchvision weights name, a path, or `random`.
        pooling: `avg` for the mean over positions, `flatten` for the whole last feature map in
            torchvision's order (channel, row, column).
        resize: `squash` or `crop`.
        input_size: Side of the square input in pixels, at least 32; the model's own unless given.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: `auto` takes bfloat16 on CPUs that compute it in hardware, float16 on CUDA,
            and float32 otherwise.
        threads: CPU threads of one call; all cores unless given.
        compiled: Whether `torch.compile` writes code for the network, which needs a CUDA device
            and takes up to minutes.

    Raises:
        ConfigurationError: A value that cannot work; `WeightsError` where the weights cannot.
    """

    def __init__(
        self,
        model: str = "resnet50",
        weights: str = "IMAGENET1K_V1",
        *,
        pooling: Pooling = "avg",
        resize: Resize = "squash",
        input_size: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        architecture = get_architecture(model)
        size = architecture.preprocess.input_size if input_size is None else input_size
        check_choices(pooling=pooling, resize=resize, input_size=size)
        _check_precision(precision)
        self._threads = threads or available_cores()
        self._device = choose_device(device)
        if compiled and self._device.type != "cuda":
            raise ConfigurationError(
                f"LOOKALIKE_COMPILE needs a CUDA device, and this runs on {self._device}: unset it"
            )
        self._precision = choose_precision(precision, device=self._device)
        torch.set_num_threads(self._threads)
        backbone = load_backbone(model, weights=weights)
        self._compiled = compiled
        network = Network(
            backbone.network,
            architecture=architecture,
            pooling=pooling,
            dtype=_DTYPES[self._precision],
            device=self._device,
            input_size=size,
        )
        self._network: Any = torch.compile(network) if compiled else network
        self._spec = backbone_spec(
            backbone, architecture, pooling=pooling, resize=resize, input_size=size
        )
        if compiled:  # now, rather than in the first request: once for one, once for any number
            for count in (1, 2, 3):
                self._forward(torch.zeros((count, size, size, 3), dtype=torch.uint8))

    @property
    def spec(self) -> ModelSpec:
        """What made the vectors."""
        return self._spec

    @property
    def provenance(self) -> Mapping[str, str]:
        """Recorded beside the spec: `precision`, `runtime`, `device`, library versions."""
        return {
            "precision": self._precision,
            "runtime": "torch.compile" if self._compiled else "torch",
            "device": str(self._device),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
        }

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._spec.dim

    @property
    def decode_size(self) -> int:
        """Shorter side, in pixels, below which a decoder must not shrink a picture."""
        return least_decode_size(self._spec.preprocess)

    def prepare(self, image: Image.Image) -> Prepared:
        """Resizes an upright RGB picture: (input_size, input_size, 3) uint8."""
        return resize_image(image, self._spec.preprocess)

    def encode(self, batch: NDArray[np.uint8]) -> Vectors:
        """Turns (N, input_size, input_size, 3) uint8 into (N, dim) float32 rows of length 1.

        Raises:
            EmbeddingFailedError: A batch of another shape, a result without a direction, or a
                device without memory for even one picture.
        """
        check_batch(batch, input_size=self._spec.preprocess.input_size)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # holds for the calling thread only
        pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"]))
        return normalize(self._forward(pixels))

    def _exact_convolutions(self) -> AbstractContextManager[None]:
        """Keeps cuDNN from rounding float32 to 10 bits of mantissa (TF32), its default."""
        if self._device.type != "cuda":
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

    def _forward(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        """Runs the network, in halves where the device has no memory for the whole."""
        try:
            with torch.inference_mode(), self._exact_convolutions():
                features = self._network(pixels.to(self._device)).cpu().numpy()
        except torch.OutOfMemoryError as exc:
            if len(pixels) == 1:
                raise EmbeddingFailedError(
                    f"{self._device} has no memory left for one picture: free some, choose a "
                    "smaller input size, or another device"
                ) from exc
        else:
            return np.asarray(features, dtype=np.float32)
        middle = len(pixels) // 2
        return np.concatenate([self._forward(pixels[:middle]), self._forward(pixels[middle:])])


def choose_device(device: str) -> torch.device:
    """Resolves `auto` and checks that the device is there.

    Raises:
        ConfigurationError: No such device on this machine.
    """
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


def choose_precision(precision: Precision, *, device: torch.device) -> str:
    """Resolves `auto` to what the device computes fast."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "float16"
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if device.type == "cpu" and fast else "float32"


def _check_precision(precision: str) -> None:
    """Refuses what torch does not compute in here."""
    if precision == "int8":
        raise ConfigurationError(
            "torch runs no int8 network here: set LOOKALIKE_RUNTIME=openvino (on CPUs), or another "
            "LOOKALIKE_PRECISION"
        )
    if precision != "auto" and precision not in _DTYPES:
        raise ConfigurationError(
            f"Unknown precision {precision!r}: it must be auto, {', '.join(_DTYPES)}"
        )
