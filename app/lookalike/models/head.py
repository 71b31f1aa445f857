"""Embedding heads: a few trained layers that turn a frozen network's vectors into better ones.

A head is `(Linear, ReLU, BatchNorm)` once for each width, then a scaling to length 1. On disk it is
two files: the tensors as `.safetensors`, with the names of `torch.nn.Sequential(Linear, ReLU,
BatchNorm1d, ...)`, and a `.json` of the same stem that describes them. Training is in
`lookalike.training`; nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    EmbeddingFailedError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from lookalike.files.disk import atomic_write
from lookalike.models.base import Encoder, Features, Vectors, normalize
from lookalike.records import ModelSpec

FORMAT: Final = 1
"""Version of the two files."""

_FILE = "head.safetensors"
_COUNTER = "num_batches_tracked"  # torch wants it in a state dict; it changes no number

EPSILON: Final = 1e-5
"""Added to the variance in batch normalization, torch's default."""

_ROWS = 4096  # at a time: the work is done in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """The shape of a head: numbers in the vectors it takes, in those it gives, and in between."""

    dim_in: int
    dim_out: int = 512
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the widths; raises ValueError."""
        if min(self.widths) < 1:
            raise ValueError(f"the widths of a head are at least 1, not {self.widths}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers before and after each layer: `dim_in`, `hidden`, `dim_out`."""
        return (self.dim_in, *self.hidden, self.dim_out)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name and shape, as in `Sequential(Linear, ReLU, BatchNorm1d, ...)`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (before, after) in enumerate(pairwise(self.widths)):
            linear, norm = 3 * layer, 3 * layer + 2
            shapes |= {f"{linear}.weight": (after, before), f"{linear}.bias": (after,)}
            names = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{norm}.{name}": (after,) for name in names}
        return shapes


class Head:
    """Trained layers, ready to be applied.

    Args:
        spec: Their shape.
        tensors: Float32 arrays with the names and shapes of `spec.shapes()`.
        backbone: What made the vectors that it was trained on, and must make those that it is
            applied to.
        trained: What it was trained with, as JSON: data, loss, seed, metrics. For people.

    Raises:
        WeightsMismatchError: A tensor is missing, surplus, or has another shape; or the backbone's
            vectors have another length.
        WeightsError: A number is not finite, or a variance is negative.
    """

    def __init__(
        self,
        spec: HeadSpec,
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        backbone: ModelSpec,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec = spec
        self.tensors: Mapping[str, NDArray[np.float32]] = {
            name: np.array(tensor, dtype=np.float32) for name, tensor in tensors.items()
        }
        self.backbone = backbone
        self.trained: Mapping[str, Any] = dict(trained or {})
        if backbone.dim != spec.dim_in:
            raise WeightsMismatchError(
                f"The head takes vectors of {spec.dim_in} numbers, and those of the network that "
                f"it names have {backbone.dim}: copy both files of the head again"
            )
        _check_tensors(self.tensors, spec)
        self.digest: Final = _digest(self.tensors)
        self._layers = [_layer(self.tensors, number) for number in range(len(spec.widths) - 1)]

    def spec_over(self, backbone: ModelSpec) -> ModelSpec:
        """The spec of this head's vectors; raises `WeightsMismatchError` for another backbone."""
        apart = self.backbone.differences(backbone)
        if not apart:
            return replace(backbone, head=self.digest, dim=self.spec.dim_out)
        named = "; ".join(
            f"{name} is {own} in the head's and {theirs} here"
            for name, (own, theirs) in apart.items()
        )
        raise WeightsMismatchError(
            f"The head was trained on the vectors of another network: {named}. Set what the head "
            "was trained with, choose the head of this network, or train one with lookalike train"
        )

    def apply(self, vectors: NDArray[np.float32]) -> Vectors:
        """Turns (N, dim_in) float32 rows of length 1 into (N, dim_out) float32 rows of length 1.

        Batch normalization uses the means and variances of the training. Sums are made in float64,
        so that a row's result does not depend on the rows beside it.

        Raises:
            EmbeddingFailedError: Another width; NaN or an infinity; or a result of zeros alone.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.spec.dim_in:
            raise EmbeddingFailedError(
                f"The head takes vectors of {self.spec.dim_in} numbers, not {vectors.shape}: use "
                "it with the network that it was trained on"
            )
        blocks = [
            self._forward(vectors[start : start + _ROWS]) for start in range(0, len(vectors), _ROWS)
        ]
        return np.concatenate([np.empty((0, self.spec.dim_out), np.float32), *blocks])

    def _forward(self, rows: NDArray[np.float32]) -> Vectors:
        x = rows.astype(np.float64)
        for weight, bias, scale, shift in self._layers:
            x = np.maximum(x @ weight + bias, 0) * scale + shift
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        x = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
        return normalize(x.astype(np.float32))


class HeadedEncoder:
    """An encoder around an encoder: the inner one's vectors, through a head.

    Raises `WeightsMismatchError` if the head was trained on the vectors of another network.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        self.head = head
        self.spec = head.spec_over(encoder.spec)
        self.provenance = encoder.provenance
        self.modalities = encoder.modalities
        self.decode_size = encoder.decode_size
        self.prepare = encoder.prepare
        self._encode = encoder.encode

    def encode(self, batch: Sequence[Features]) -> Vectors:
        """Turns N prepared items into (N, dim) float32 rows of length 1."""
        return self.head.apply(self._encode(batch))


def load_head(path: str | os.PathLike[str]) -> Head:
    """Reads a head from its `.safetensors`, or the folder that has it as `head.safetensors`.

    Raises:
        WeightsNotFoundError: One of the two files is not there.
        WeightsMismatchError: The two do not belong together, or the tensors are not the layers
            that the JSON describes.
        WeightsError: A file is damaged, or of a version that is not known.
    """
    file = _tensor_file(path)
    described = file.with_suffix(".json")
    spec, backbone, sha256, trained = _read_description(described)
    head = Head(spec, _read_tensors(file), backbone=backbone, trained=trained)
    if head.digest != sha256:
        raise WeightsMismatchError(
            f"{file} and {described.name} are not of the same head (sha256 {head.digest[:12]} and "
            f"{sha256[:12]}): copy both files again"
        )
    return head


def save_head(head: Head, path: str | os.PathLike[str]) -> Path:
    """Writes a head to a `.safetensors`, whose path it returns, and a JSON of the same stem.

    Readers see old files or whole new ones. Folders above are made.

    Raises:
        WeightsError: Another suffix, or the files cannot be written there.
    """
    import safetensors.numpy  # noqa: PLC0415 - as needed

    file = _tensor_file(path)
    counters = {
        f"{3 * layer + 2}.{_COUNTER}": np.array(0, dtype=np.int64)
        for layer in range(len(head.spec.widths) - 1)
    }
    document = {
        "format": FORMAT,
        "spec": {**asdict(head.spec), "hidden": list(head.spec.hidden)},
        "backbone": head.backbone.to_dict(),
        "sha256": head.digest,
        "trained": head.trained,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        for name, data in (
            (file, safetensors.numpy.save({**head.tensors, **counters})),
            (file.with_suffix(".json"), text.encode()),
        ):
            with atomic_write(name) as written:
                written.write(data)
    except OSError as exc:
        raise WeightsError(
            f"The head cannot be written to {file}: {exc.strerror}. Choose another place"
        ) from exc
    return file


def _tensor_file(named: str | os.PathLike[str]) -> Path:
    path = Path(named).expanduser()
    try:
        file = path / _FILE if path.is_dir() else path
    except (OSError, ValueError) as exc:
        raise WeightsError(f"The head {path} cannot be read: {exc}. Name another file") from exc
    if file.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is no head: name its .safetensors file, or the folder with its {_FILE}"
        )
    return file


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise WeightsNotFoundError(
            f"There is no file {path.absolute()}: a head is two files, .safetensors and .json, as "
            "lookalike train writes them"
        ) from exc
    except (OSError, ValueError) as exc:
        raise WeightsError(f"The head's file {path} cannot be read: {exc}") from exc


def _read_tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    import safetensors  # noqa: PLC0415 - as needed
    import safetensors.numpy  # noqa: PLC0415

    data = _read(file)
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise WeightsError(
            f"The head's file {file} is truncated or damaged ({exc}): copy it again, or train "
            "the head again"
        ) from exc
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}


def _read_description(path: Path) -> tuple[HeadSpec, ModelSpec, str, dict[str, Any]]:
    """The head's shape, what it was trained on, its digest, and what it was trained with."""
    data = _read(path)
    try:
        document = json.loads(data)
        version = document["format"]
    except (ValueError, RecursionError, KeyError, TypeError) as exc:
        raise WeightsError(
            f"{path} does not describe a head: copy it again from where lookalike train wrote it"
        ) from exc
    if version != FORMAT:
        raise WeightsError(
            f"{path} is of format {version}, and this version reads format {FORMAT}: use the "
            "version of Lookalike that wrote it, or train the head again"
        )
    try:
        spec = document["spec"]
        return (
            HeadSpec(**{**spec, "hidden": tuple(spec["hidden"])}),
            ModelSpec.from_dict(document["backbone"]),
            str(document["sha256"]),
            dict(document["trained"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise WeightsError(
            f"{path} is damaged ({type(exc).__name__}: {exc}): copy it again, or train the head "
            "again"
        ) from exc


def _check_tensors(tensors: Mapping[str, NDArray[np.float32]], spec: HeadSpec) -> None:
    wanted, found = spec.shapes(), {name: tensor.shape for name, tensor in tensors.items()}
    wrong = [one for one in sorted(wanted | found) if wanted.get(one) != found.get(one)]
    if wrong:
        name = wrong[0]
        raise WeightsMismatchError(
            f"The head's tensors are not those of {' -> '.join(map(str, spec.widths))}: {name} is "
            f"{found.get(name, 'missing')} instead of {wanted.get(name, 'absent')} ({len(wrong)} "
            "wrong in all). Copy both files of the head again"
        )
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all() or (name.endswith("running_var") and tensor.min() < 0):
            raise WeightsError(
                f"The head's {name} holds NaN, infinities or a negative variance: its training "
                "went wrong or the file is damaged. Train it again, with a lower learning rate"
            )


def _digest(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """Hex sha256 over names, shapes and bytes, by sorted name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


_Layer = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _layer(tensors: Mapping[str, NDArray[np.float32]], number: int) -> _Layer:
    """A layer in float64: weight (before, after), bias, and what batch normalization amounts to."""

    def wide(layer: int, name: str) -> NDArray[np.float64]:
        return tensors[f"{layer}.{name}"].astype(np.float64)

    linear, norm = 3 * number, 3 * number + 2
    scale = wide(norm, "weight") / np.sqrt(wide(norm, "running_var") + EPSILON)
    shift = wide(norm, "bias") - wide(norm, "running_mean") * scale
    weight = np.ascontiguousarray(wide(linear, "weight").T)
    return weight, wide(linear, "bias"), scale, shift
