"""Chooses what runs the network, torch or OpenVINO with a converted one, and builds it."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from lookalike.config import Settings
from lookalike.converting import float_network, models_folder, settled_origin
from lookalike.errors import ConfigurationError
from lookalike.models import openvino_files, openvino_runtime
from lookalike.models.base import Encoder
from lookalike.models.openvino_files import KeptNetwork


def build_backbone(
    settings: Settings, *, cores: int, keep: bool = False, quantized: str | None = None
) -> Encoder:
    """Builds the network that the settings name, without a head.

    Args:
        settings: What was asked for.
        cores: CPU threads of one call.
        keep: Whether a network that is converted is kept in the data folder.
        quantized: Which int8 network, where the precision is int8: the digest of its spec. The
            newest of these settings unless given.

    Raises:
        WeightsError: The weights cannot be used.
        ConfigurationError: A setting cannot work.
    """
    if settings.model == "color":
        _refuse_for_color(settings)
        from lookalike.models.color_encoder import ColorEncoder  # noqa: PLC0415 - as below

        return ColorEncoder()
    if choose_runtime(settings) == "openvino":
        return _openvino_backbone(settings, cores=cores, keep=keep, quantized=quantized)
    from lookalike.models.torchvision_encoder import (  # noqa: PLC0415 - imports torch
        TorchvisionEncoder,
    )

    return TorchvisionEncoder(
        settings.model,
        weights=settings.weights,
        pooling=settings.pooling,
        resize=settings.resize,
        input_size=settings.input_size,
        device=settings.device,
        precision=settings.precision,
        threads=cores,
        compiled=settings.compile,
    )


def _refuse_for_color(settings: Settings) -> None:
    for setting, asked in (
        ("LOOKALIKE_COMPILE", settings.compile),
        ("LOOKALIKE_PRECISION=int8", settings.precision == "int8"),
    ):
        if asked:
            raise ConfigurationError(
                f"{setting} is for networks, and the model color has no network: unset it"
            )


def put_head(backbone: Encoder, path: Path) -> Encoder:
    """Puts a head that is kept in a file on an encoder.

    Raises:
        WeightsError: The file cannot be used, or belongs to another network.
    """
    from lookalike.models.headed_encoder import HeadedEncoder  # noqa: PLC0415 - as needed
    from lookalike.models.heads import load_head  # noqa: PLC0415

    return HeadedEncoder(backbone, load_head(path))


def choose_runtime(settings: Settings) -> Literal["torch", "openvino"]:
    """Resolves `auto`, without importing torch.

    OpenVINO runs the network where it is installed, computes the precision that is asked for, and
    the network is to run on the CPU; int8 runs nowhere else.

    Raises:
        ConfigurationError: OpenVINO is asked for, or needed, and cannot be used.
    """
    if settings.runtime == "torch":
        return "torch"
    wanted = settings.runtime == "openvino" or settings.precision == "int8"
    if not wanted and not _is_preferred(settings):
        return "torch"
    if settings.device not in {"auto", "cpu"}:
        raise ConfigurationError(
            f"OpenVINO runs on the CPU here, not on {settings.device}: set LOOKALIKE_DEVICE=cpu, "
            "or LOOKALIKE_RUNTIME=torch and a precision other than int8"
        )
    if settings.compile:
        raise ConfigurationError(
            "LOOKALIKE_COMPILE needs torch and a CUDA device, and OpenVINO runs the network: unset "
            "it or, where there is such a device, set LOOKALIKE_RUNTIME=torch"
        )
    openvino_runtime.import_openvino()
    return "openvino"


def _is_preferred(settings: Settings) -> bool:
    if not openvino_runtime.is_installed():  # first: asking the driver takes time
        return False
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not has_gpu())
    return on_cpu and openvino_runtime.computes(settings.precision)


def has_gpu() -> bool:
    """Whether torch would find a GPU, told without importing it."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    try:
        build = version("torch").partition("+")[2]  # cpu, cu132, rocm7.1; nothing from PyPI
    except PackageNotFoundError:
        return False
    if build == "cpu":
        return False
    return build.startswith("rocm") or _cuda_devices() > 0


def _cuda_devices() -> int:
    """As the driver counts them, which heeds CUDA_VISIBLE_DEVICES."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):  # no driver
        return 0
    return 0 if failed else count.value


def _openvino_backbone(
    settings: Settings, *, cores: int, keep: bool, quantized: str | None
) -> Encoder:
    from lookalike.models.openvino_encoder import OpenVinoEncoder  # noqa: PLC0415 - as needed

    if settings.precision == "int8":
        kept = _int8_network(settings, quantized)
        return OpenVinoEncoder(kept.xml, spec=kept.spec, threads=cores)
    precision = openvino_runtime.choose_float(settings.precision)
    network, spec = float_network(settings, keep=keep)
    return OpenVinoEncoder(network, spec=spec, precision=precision, threads=cores)


def _int8_network(settings: Settings, digest: str | None) -> KeptNetwork:
    """The network of a spec, or the newest of these settings."""
    folder = models_folder(settings)
    if digest is not None:
        if kept := openvino_files.open_network(folder, digest):
            return kept
        raise ConfigurationError(f"The int8 network {digest} is not in {folder}, or is damaged")
    origin = replace(settled_origin(settings), int8=True)
    if kept := openvino_files.find_network(folder, origin):
        return kept
    raise ConfigurationError(
        f"There is no int8 network of {settings.model} with these settings in {folder}: make one "
        "with lookalike quantize PATH (a folder of your own pictures), or ask for floats "
        '(another LOOKALIKE_PRECISION; "int8": false where a collection is moved)'
    )
