"""OpenVINO itself: importing it, what this CPU computes, and compiling a network for it."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

from lookalike.errors import ConfigurationError

FLOATS: Final = {"float32": "f32", "bfloat16": "bf16"}
"""The float precisions of ours that OpenVINO computes in on CPUs -> its names for them."""


def is_installed() -> bool:
    """Whether OpenVINO is there; does not import it."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """Imports OpenVINO, without what it sends home.

    `import openvino` alone counts itself at Google Analytics, and makes a folder in the home folder
    for it, if the package openvino-telemetry is there, which it installs. It goes without where
    that cannot be imported; NNCF does the same.

    Raises:
        ConfigurationError: It is not installed, or cannot be imported here.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not to be had"
    try:
        import openvino  # noqa: PLC0415 - an extra that may not be there
    except ImportError as exc:
        why = "is not installed" if not is_installed() else f"cannot be imported ({exc})"
        raise ConfigurationError(
            f"OpenVINO {why}: pip install 'lookalike[openvino]', or set LOOKALIKE_RUNTIME=torch"
        ) from exc
    return openvino


@cache
def core() -> Any:
    """OpenVINO's core, one for the process."""
    return import_openvino().Core()


def installed_version() -> str:
    """OpenVINO's version, e.g. `2026.4.1`."""
    return str(import_openvino().get_version()).partition("-")[0]


def computes_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 in hardware."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def computes(precision: str) -> bool:
    """Whether OpenVINO computes in this precision here; `auto` is one that it does."""
    if precision == "bfloat16":
        return computes_bfloat16()
    return precision in {"auto", "float32", "int8"}


def choose_float(precision: str) -> str:
    """Resolves `auto` to `bfloat16` where the CPU computes it, and `float32` elsewhere.

    Raises:
        ConfigurationError: Not a precision that OpenVINO computes in on CPUs.
    """
    if precision == "auto":
        return "bfloat16" if computes_bfloat16() else "float32"
    if precision not in FLOATS:
        raise ConfigurationError(
            f"OpenVINO does not compute {precision} on CPUs: choose float32, bfloat16 or int8, "
            "or set LOOKALIKE_RUNTIME=torch"
        )
    return precision


def read_network(path: Path) -> Any:
    """Reads OpenVINO's model from its .xml file; the .bin beside it is mapped, not read.

    Raises:
        ConfigurationError: The files are no network.
    """
    try:
        return core().read_model(path)
    except RuntimeError as exc:
        raise _unusable(exc) from exc


def compile_network(
    network: Any, *, precision: str, threads: int, side_by_side: bool = False
) -> Any:
    """Prepares a network for this CPU.

    OpenVINO chooses a precision by itself unless it is told one, and takes another than it was told
    without a word: so it is always told, and asked afterwards.

    Args:
        network: OpenVINO's model.
        precision: `float32` or `bfloat16`, of all that is not quantized.
        threads: Most threads at work at any time.
        side_by_side: Whether several calls run at once, each on few threads, as many of them as
            OpenVINO chooses (its NUM_STREAMS); otherwise one runs on all threads.

    Raises:
        ConfigurationError: The CPU does not compute this precision, or the network is none.
    """
    asked = FLOATS[precision]
    options = {
        "INFERENCE_PRECISION_HINT": asked,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "THROUGHPUT" if side_by_side else "LATENCY",
        "ENABLE_CPU_PINNING": False,  # others may use these cores, too
    } | ({} if side_by_side else {"NUM_STREAMS": 1})
    try:
        compiled = core().compile_model(network, "CPU", options)
    except RuntimeError as exc:
        raise _unusable(exc) from exc
    actual = precision_of(compiled)
    if actual != asked:
        raise ConfigurationError(
            f"OpenVINO computes {actual} instead of {precision} on this CPU: set "
            "LOOKALIKE_PRECISION=float32, or auto"
        )
    return compiled


def precision_of(compiled: Any) -> str:
    """What OpenVINO says that it computes floats in: `f32`, `bf16`."""
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def _unusable(exc: RuntimeError) -> ConfigurationError:
    return ConfigurationError(
        f"OpenVINO cannot use the converted network ({str(exc).strip().splitlines()[-1]}): delete "
        "its folder below models in the data folder, so that it is made again"
    )
