"""From a request to an encoder: chooses what runs the network, torch or OpenVINO, and builds it."""

from __future__ import annotations

import ctypes
import logging
import platform
import sys
import threading
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from lookalike.errors import ConfigurationError, NotConvertibleError, NotReadyError
from lookalike.models.base import Encoder, Texts
from lookalike.models.head import HeadedEncoder, load_head
from lookalike.models.openvino import networks, runtime
from lookalike.models.registry import find_family
from lookalike.models.spec import ModelRequest, RunOptions

_log = logging.getLogger(__name__)


def build_encoder(request: ModelRequest, run: RunOptions) -> Encoder:
    """Builds the encoder that is asked for, with its head.

    Raises:
        WeightsError: The weights or the head cannot be used.
        ConfigurationError: A value cannot work.
    """
    family = find_family(request.model)
    head = None if request.head is None else load_head(request.head)  # first: it is quickly read
    if not family.has_network:
        backbone = family.make_encoder(request, run)
    else:
        backbone = _network_backbone(request, run)
    return backbone if head is None else HeadedEncoder(backbone, head)


def choose_runtime(request: ModelRequest, run: RunOptions) -> Literal["torch", "openvino"]:
    """Resolves `auto`, without importing torch.

    OpenVINO runs the network if it is installed, computes the precision that is asked for, and
    the network is to run on the CPU; int8 runs nowhere else.

    Raises:
        ConfigurationError: OpenVINO is asked for, or needed, and cannot be used.
    """
    if run.runtime == "torch":
        return "torch"
    wanted = run.runtime == "openvino" or bool(request.int8)
    if not wanted and not _is_preferred(run):
        return "torch"
    if run.device not in {"auto", "cpu"}:
        raise ConfigurationError(
            f"OpenVINO runs on the CPU here, not on {run.device}: set LOOKALIKE_DEVICE=cpu, "
            "or LOOKALIKE_RUNTIME=torch and a precision other than int8"
        )
    if run.compiled:
        raise ConfigurationError(
            "LOOKALIKE_COMPILE needs torch and a CUDA device, and OpenVINO runs the network: unset "
            "it or, if there is such a device, set LOOKALIKE_RUNTIME=torch"
        )
    runtime.import_openvino()
    return "openvino"


def _is_preferred(run: RunOptions) -> bool:
    if not runtime.is_installed():  # first: asking the driver takes time
        return False
    on_cpu = run.device == "cpu" or (run.device == "auto" and not has_gpu())
    return on_cpu and runtime.computes(run.precision)


def has_gpu() -> bool:
    """Whether torch would find a GPU; does not import torch."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    try:
        build = version("torch").partition("+")[2]  # cpu, cu132, rocm7.1; nothing from PyPI
    except PackageNotFoundError:
        return False
    return build != "cpu" and (build.startswith("rocm") or _cuda_devices() > 0)


def _cuda_devices() -> int:
    """As the driver counts them, which heeds CUDA_VISIBLE_DEVICES."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):  # no driver
        return 0
    return 0 if failed else count.value


def _network_backbone(request: ModelRequest, run: RunOptions) -> Encoder:
    if choose_runtime(request, run) == "torch":
        return _torch_backbone(request, run)
    try:
        return _openvino_backbone(request, run)
    except NotConvertibleError as exc:
        if run.runtime == "openvino" or request.int8:
            raise
        _log.warning("%s stays in torch: %s", request.model, exc)
        return _torch_backbone(request, run)


def _torch_backbone(request: ModelRequest, run: RunOptions) -> Encoder:
    if request.int8:
        raise ConfigurationError(
            "torch runs no int8 network here: set LOOKALIKE_RUNTIME=openvino (on CPUs), or another "
            "LOOKALIKE_PRECISION"
        )
    from lookalike.models.torch_encoder import load_encoder  # noqa: PLC0415 - imports torch

    return load_encoder(request, run)


def _openvino_backbone(request: ModelRequest, run: RunOptions) -> Encoder:
    precision = runtime.choose_float("auto" if request.int8 else run.precision)
    network, spec = (
        _int8_network(request, run.networks)
        if request.int8
        else networks.float_network(request, run.cache)
    )
    texts = None
    if find_family(request.model).has_text:
        texts = _late_texts(request, None if spec.int8 else spec.weights_sha256)
    return runtime.OpenVinoEncoder(
        network, spec=spec, precision=precision, threads=run.threads, texts=texts
    )


def _late_texts(request: ModelRequest, sha256: str | None) -> Texts:
    """The text side of a model whose pictures OpenVINO takes: torch's, loaded for the first text.

    `sha256` is the digest that the weights must have; None for any.
    """
    lock = threading.Lock()

    @cache
    def load() -> Texts:
        from lookalike.models.torch_encoder import load_texts  # noqa: PLC0415 - imports torch

        return load_texts(replace(request, int8=False), sha256)

    def texts() -> Texts:
        with lock:
            try:
                return load()
            except ConfigurationError as exc:  # the service runs: pictures are still taken
                raise NotReadyError(str(exc)) from exc

    return Texts(lambda text: texts().tokenize(text), lambda tokens: texts().forward(tokens))


def _int8_network(request: ModelRequest, folder: Path) -> networks.KeptNetwork:
    """The network of a spec, or the newest of this request."""
    if isinstance(request.int8, str):
        if kept := networks.open_network(folder, request.int8):
            return kept
        raise ConfigurationError(
            f"The int8 network {request.int8} is not in {folder}, or is damaged"
        )
    if kept := networks.find_network(folder, networks.origin_of(replace(request, int8=True))):
        return kept
    raise ConfigurationError(
        f"There is no int8 network of {request.model} with these settings in {folder}: make one "
        "with lookalike quantize PATH (a folder of your own pictures), or ask for floats "
        '(another LOOKALIKE_PRECISION; "int8": false where a collection is moved)'
    )
