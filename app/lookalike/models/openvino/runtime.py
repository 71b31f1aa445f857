"""OpenVINO itself: importing, converting, quantizing, compiling, and the encoder; without torch."""

from __future__ import annotations

import importlib.util
import io
import logging
import sys
import warnings
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.cores import available_cores
from lookalike.errors import ConfigurationError, EmbeddingFailedError
from lookalike.models.base import ImageEncoder, Texts, Vectors, normalize
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import ModelSpec

_LEAST_PART = 2  # pictures, so that no thread is idle for long

FLOATS: Final = {"float32": "f32", "bfloat16": "bf16"}
"""The float precisions of ours that OpenVINO computes in on CPUs -> its names for them."""

NEIGHBORS: Final = 10
"""Of each picture, compared before and after."""


def is_installed() -> bool:
    """Whether OpenVINO is there; does not import it."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """Imports OpenVINO with its usage reporting off.

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
    """Resolves `auto`; raises `ConfigurationError` if OpenVINO does not compute it on CPUs."""
    if precision == "auto":
        return "bfloat16" if computes_bfloat16() else "float32"
    if precision not in FLOATS:
        raise ConfigurationError(
            f"OpenVINO does not compute {precision} on CPUs: choose float32, bfloat16 or int8, "
            "or set LOOKALIKE_RUNTIME=torch"
        )
    return precision


def read_network(path: Path) -> Any:
    """Reads OpenVINO's model from its .xml file; raises `ConfigurationError` if it is none."""
    try:
        return core().read_model(path)
    except RuntimeError as exc:
        raise _unusable(exc) from exc


def save(network: Any, path: Path) -> None:
    """Writes OpenVINO's model as an .xml file, and a .bin beside it, with float32 weights."""
    import_openvino().save_model(network, path, compress_to_fp16=False)


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


def convert(network: Any, *, input_size: int) -> Any:
    """Converts a torch network of plain operators to OpenVINO's model, for batches of any length.

    Args:
        network: A torch module, (N, input_size, input_size, 3) uint8 -> (N, dim) float32.
        input_size: Side of its input, in pixels.
    """
    openvino = import_openvino()
    sample = np.zeros((1, input_size, input_size, 3), dtype=np.uint8)
    shape = openvino.PartialShape([-1, *sample.shape[1:]])
    with warnings.catch_warnings():  # of what torch calls deprecated, and of sizes that are fixed
        warnings.simplefilter("ignore")
        return openvino.convert_model(
            network, example_input=sample, input=[(shape, openvino.Type.u8)]
        )


def quantize(
    network: Any,
    calibration: NDArray[np.uint8],
    *,
    progress: Progress = NO_PROGRESS,
) -> Any:
    """Quantizes all convolutions, weights and activations, to 8 bits.

    The range of every activation is that of all calibration pictures together. NNCF's own choice,
    the mean of each picture's range, cuts off the strongest answers, and with them a third of the
    agreement (docs/decisions/0011).

    Args:
        network: OpenVINO's model, float32; left as it is.
        calibration: (N, side, side, 3) uint8, pictures like those to come.
        progress: Told how many pictures were seen.

    Raises:
        ConfigurationError: NNCF is not installed.
    """
    import_openvino()
    try:
        import nncf  # noqa: PLC0415 - slow, and an extra that may not be there
        from nncf.quantization.range_estimator import (  # noqa: PLC0415
            RangeEstimatorParametersSet,
        )
    except ImportError as exc:
        raise ConfigurationError(
            f"Quantizing needs NNCF, which cannot be imported ({exc}): "
            "pip install 'lookalike[openvino]'"
        ) from exc
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own way sets handlers of others, too

    def picture(number: int) -> NDArray[np.uint8]:
        progress.report(number + 1, len(calibration))
        return calibration[number : number + 1]

    with redirect_stdout(io.StringIO()):  # its own bars
        return nncf.quantize(
            network,
            nncf.Dataset(range(len(calibration)), picture),
            subset_size=len(calibration),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )


class OpenVinoEncoder(ImageEncoder):
    """A converted network, as `convert` or `quantize` makes it.

    It is compiled twice: one picture runs on all threads, and the parts of a batch run side by
    side on few threads each, which is faster because threads then seldom wait for each other.

    Args:
        network: OpenVINO's model, or the path of its .xml file: (N, side, side, 3) uint8 in,
            (N, dim) float32 out.
        spec: What the network is; its `int8` says whether it was quantized.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where the CPU computes it in
            hardware; of a quantized network, what is left of floats in it.
        threads: Most CPU threads of one call; all cores unless given.
        texts: How it takes texts, if it does.

    Raises:
        ConfigurationError: OpenVINO is not installed, does not compute this precision here, or
            cannot read the network.
    """

    def __init__(
        self,
        network: Any,
        *,
        spec: ModelSpec,
        precision: str = "auto",
        threads: int | None = None,
        texts: Texts | None = None,
    ) -> None:
        floats = choose_float(precision)
        model = read_network(network) if isinstance(network, Path) else network
        threads = threads or available_cores()
        compiled, parallel = (
            compile_network(model, precision=floats, threads=threads, side_by_side=side_by_side)
            for side_by_side in (False, True)
        )
        super().__init__(
            spec,
            texts=texts,
            precision="int8" if spec.int8 else floats,
            openvino_precision=precision_of(compiled),
            runtime="openvino",
            device="cpu",
            openvino=installed_version(),
        )
        self._whole = compiled.create_infer_request()
        streams = parallel.get_property("NUM_STREAMS")
        self._parts = [parallel.create_infer_request() for _ in range(streams)]

    def _embed(self, pixels: NDArray[np.uint8]) -> Vectors:
        if len(pixels) == 0:
            return np.empty((0, self.spec.dim), dtype=np.float32)
        try:
            features = self._forward(pixels)
        except (RuntimeError, MemoryError) as exc:
            raise EmbeddingFailedError(
                f"OpenVINO failed on {len(pixels)} pictures ({exc}): set a smaller "
                "LOOKALIKE_MAX_BATCH, or LOOKALIKE_RUNTIME=torch"
            ) from exc
        return normalize(features)

    def _forward(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(batch) < _LEAST_PART * len(self._parts):
            whole: NDArray[np.float32] = self._whole.infer(batch, share_inputs=True)[0]
            return whole
        parts = np.array_split(batch, len(self._parts))
        with ExitStack() as waiting:  # for all of them, whichever fails
            for request, part in zip(self._parts, parts, strict=True):
                request.start_async(part, share_inputs=True)
                waiting.callback(request.wait)
        return np.concatenate([request.get_output_tensor().data for request in self._parts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How much of float32 is left, on pictures that had no part in the calibration.

    Attributes:
        pictures: How many were compared.
        cosine_min: Least cosine of a picture's two vectors; `cosine_mean` is the mean.
        overlap: Mean share of a picture's ten nearest among the others that stay, 0 to 1.
    """

    pictures: int
    cosine_min: float
    cosine_mean: float
    overlap: float


def agreement(before: Vectors, after: Vectors) -> Agreement:
    """Compares (N, dim) unit vectors of the same pictures; ValueError unless N > `NEIGHBORS`."""
    if before.shape != after.shape or len(before) <= NEIGHBORS:
        raise ValueError(f"{before.shape} and {after.shape} cannot be compared")
    cosines = np.einsum("nd,nd->n", before.astype(np.float64), after.astype(np.float64))
    kept = [
        len(np.intersect1d(*pair)) / NEIGHBORS
        for pair in zip(_nearest(before), _nearest(after), strict=True)
    ]
    return Agreement(
        pictures=len(before),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        overlap=float(np.mean(kept)),
    )


def _nearest(vectors: Vectors) -> NDArray[np.intp]:
    """Each row's nearest others: (N, NEIGHBORS)."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :NEIGHBORS]
