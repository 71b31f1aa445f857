"""Vectors from a network that OpenVINO runs on the CPU; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from lookalike.cores import available_cores
from lookalike.errors import EmbeddingFailedError
from lookalike.models.base import Prepared, Vectors
from lookalike.models.openvino_runtime import (
    choose_float,
    compile_network,
    installed_version,
    precision_of,
    read_network,
)
from lookalike.models.resizing import least_decode_size, resize_image
from lookalike.models.vectors import check_batch, normalize
from lookalike.records import ModelSpec

_LEAST_PART = 2
"""Pictures of a part, so that no thread is idle for long."""


class OpenVinoEncoder:
    """A converted network, as `openvino_convert` or `openvino_quantize` makes it.

    It is prepared twice: one picture has all threads, and the parts of a batch run side by side
    with few threads each, which is faster as threads then seldom wait for each other.

    Args:
        network: OpenVINO's model, or the path of its .xml file: (N, side, side, 3) uint8 in,
            (N, dim) float32 out.
        spec: What the network is; its `int8` says whether it was quantized.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where the CPU computes it in
            hardware; of a quantized network, what is left of floats in it.
        threads: Most CPU threads of one call; all cores unless given.

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
    ) -> None:
        self._spec = spec
        self._floats = choose_float(precision)
        self._version = installed_version()
        model = read_network(network) if isinstance(network, Path) else network
        compiled, parallel = (
            compile_network(
                model,
                precision=self._floats,
                threads=threads or available_cores(),
                side_by_side=side_by_side,
            )
            for side_by_side in (False, True)
        )
        self._hint = precision_of(compiled)
        self._whole = compiled.create_infer_request()
        streams = parallel.get_property("NUM_STREAMS")
        self._parts = [parallel.create_infer_request() for _ in range(streams)]

    @property
    def spec(self) -> ModelSpec:
        """What made the vectors."""
        return self._spec

    @property
    def provenance(self) -> Mapping[str, str]:
        """Recorded beside the spec: `precision`, `runtime`, `device`, library versions.

        `openvino_precision` is what OpenVINO says that it computes floats in.
        """
        return {
            "precision": "int8" if self._spec.int8 else self._floats,
            "openvino_precision": self._hint,
            "runtime": "openvino",
            "device": "cpu",
            "openvino": self._version,
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
            EmbeddingFailedError: A batch of another shape, a result without a direction, or
                OpenVINO failed, for want of memory for example.
        """
        check_batch(batch, input_size=self._spec.preprocess.input_size)
        if len(batch) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        try:
            features = self._forward(np.ascontiguousarray(batch))
        except (RuntimeError, MemoryError) as exc:
            raise EmbeddingFailedError(
                f"OpenVINO failed on {len(batch)} pictures ({exc}): set a smaller "
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
