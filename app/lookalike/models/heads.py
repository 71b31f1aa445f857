"""Heads as files: tensors as `.safetensors`, and a `.json` of the same stem that describes them.

The tensors have the names of `torch.nn.Sequential(Linear, ReLU, BatchNorm1d, ...)`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import WeightsError, WeightsMismatchError, WeightsNotFoundError
from lookalike.models.head import Head, HeadSpec
from lookalike.records import ModelSpec

__all__ = ["Head", "HeadSpec", "load_head", "save_head"]

FORMAT: Final = 1
"""Version of the two files."""

_FILE = "head.safetensors"
_COUNTER = "num_batches_tracked"  # torch wants it in a state dict; it changes no number


def load_head(path: str | os.PathLike[str]) -> Head:
    """Reads what `save_head` wrote.

    Args:
        path: The `.safetensors` file, or the folder that holds it as `head.safetensors`.

    Raises:
        WeightsNotFoundError: One of the two files is not there.
        WeightsMismatchError: The two do not belong together, or the tensors are not the layers
            that the JSON describes.
        WeightsError: A file is damaged, or of a version that is not known.
    """
    file = _tensor_file(Path(path).expanduser())
    described = _read_description(_description_file(file))
    head = Head(
        described.spec,
        _read_tensors(file),
        backbone=described.backbone,
        trained=described.trained,
    )
    if head.digest != described.sha256:
        raise WeightsMismatchError(
            f"{file} and {_description_file(file).name} are not of the same head (sha256 "
            f"{head.digest[:12]} and {described.sha256[:12]}): copy both files again"
        )
    return head


def save_head(head: Head, path: str | os.PathLike[str]) -> Path:
    """Writes a head as `PATH` and a JSON of the same stem; readers see old files or whole new ones.

    Args:
        head: To be saved.
        path: Ends in `.safetensors`; folders above it are made.

    Returns:
        The path of the tensors' file.

    Raises:
        WeightsError: Another suffix, or the files cannot be written there.
    """
    import safetensors.numpy  # noqa: PLC0415 - as needed

    file = _tensor_file(Path(path).expanduser())
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
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, safetensors.numpy.save({**head.tensors, **counters}))
        _write(_description_file(file), text.encode())
    except OSError as exc:
        raise WeightsError(
            f"The head cannot be written to {file}: {exc.strerror}. Choose another place"
        ) from exc
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Description:
    """What the JSON says."""

    spec: HeadSpec
    backbone: ModelSpec
    sha256: str
    trained: Mapping[str, Any]


def _tensor_file(path: Path) -> Path:
    try:
        file = path / _FILE if path.is_dir() else path
    except (OSError, ValueError) as exc:
        raise WeightsError(f"The head {path} cannot be read: {exc}. Name another file") from exc
    if file.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is no head: name its .safetensors file, or the folder with its {_FILE}"
        )
    return file


def _description_file(file: Path) -> Path:
    return file.with_suffix(".json")


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


def _read_description(path: Path) -> _Description:
    data = _read(path)
    try:
        document = json.loads(data)
        version = document["format"]
    except (ValueError, KeyError, TypeError) as exc:
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
        return _Description(
            spec=HeadSpec(**{**spec, "hidden": tuple(spec["hidden"])}),
            backbone=ModelSpec.from_dict(document["backbone"]),
            sha256=str(document["sha256"]),
            trained=dict(document["trained"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise WeightsError(
            f"{path} is damaged ({type(exc).__name__}: {exc}): copy it again, or train the head "
            "again"
        ) from exc


def _write(path: Path, data: bytes) -> None:
    """Writes through to the disk under a temporary name, then renames."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
