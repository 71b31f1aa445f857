"""Converted networks as files: `models/DIGEST/`, by their spec, found by what they came from.

A folder holds an .xml and a .bin, and `manifest.json`, which is written last and names the two with
their checksums. So whatever a crash leaves is either whole or not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from lookalike.errors import WeightsError
from lookalike.models.registry import get_architecture
from lookalike.models.resizing import PREPROCESSING_VERSION
from lookalike.records import ModelSpec

FORMAT: Final = 1
"""Version of the manifest, and of what a conversion is."""

_MANIFEST = "manifest.json"
_STALE_S = 3600.0
_DECIDING = {"random": ("torch", "torchvision"), "DEFAULT": ("torchvision",)}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a network is converted from, told without torch: two that agree are the same network.

    Attributes:
        model: A name of the registry.
        weights: A torchvision weights name, `random`, or the file's name.
        weights_file: Hex sha256 of the file's bytes; None where `weights` is no file.
        versions: Of the libraries that decide what `weights` stands for, where they do.
        pooling: `avg` or `flatten`.
        resize: `squash` or `crop`.
        input_size: Side of the input in pixels.
        preprocessing: As in the spec.
        int8: Whether it is quantized.
    """

    model: str
    weights: str
    weights_file: str | None
    versions: Mapping[str, str]
    pooling: str
    resize: str
    input_size: int
    preprocessing: int = PREPROCESSING_VERSION
    int8: bool = False


def origin_of(
    model: str, *, weights: str, pooling: str, resize: str, input_size: int | None
) -> Origin:
    """Describes what settings name; arguments as those of `TorchvisionEncoder`.

    Raises:
        ConfigurationError: There is no such model.
        WeightsError: The weights file cannot be read.
    """
    file = _weights_file(weights)
    try:
        digest = None if file is None else _sha256(file)
    except OSError as exc:
        raise WeightsError(f"The weights file {file} cannot be read: {exc.strerror}") from exc
    return Origin(
        model=model,
        weights=weights if file is None else file.name,
        weights_file=digest,
        versions={name: version(name) for name in _DECIDING.get(weights, ())},
        pooling=pooling,
        resize=resize,
        input_size=input_size or get_architecture(model).preprocess.input_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNetwork:
    """A converted network in a data folder.

    Attributes:
        xml: OpenVINO's file; the .bin lies beside it.
        spec: What the network is.
        openvino: The version of OpenVINO that made it.
        notes: What else is known of how it was made, for people.
    """

    xml: Path
    spec: ModelSpec
    openvino: str
    notes: Mapping[str, Any]


def find_network(
    folder: Path, origin: Origin, *, openvino: str | None = None
) -> KeptNetwork | None:
    """Finds a converted network that is whole.

    Args:
        folder: `models` of a data folder; need not exist.
        origin: What it must have been converted from.
        openvino: The version that must have made it; any unless given.

    Returns:
        None where there is none; the log says so where there is one that is damaged.
    """

    def fits(home: Path, document: Mapping[str, Any]) -> bool:
        if document["origin"] != asdict(origin):
            return False
        if openvino not in {None, document["openvino"]}:
            _log.info("%s was made by OpenVINO %s", home, document["openvino"])
            return False
        return True

    newest_first = sorted(folder.glob(f"*/{_MANIFEST}"), key=_changed, reverse=True)
    found = (_read(manifest.parent, fits, int8=origin.int8) for manifest in newest_first)
    return next((one for one in found if one is not None), None)


def open_network(folder: Path, digest: str) -> KeptNetwork | None:
    """The int8 network whose spec has this digest; None where it is not there, or damaged.

    Args:
        folder: `models` of a data folder; need not exist.
        digest: Of the spec: 16 hex digits.
    """
    home = folder / Path(digest).name
    return _read(home, lambda *_: True, int8=True) if (home / _MANIFEST).is_file() else None


def keep_network(
    folder: Path,
    origin: Origin,
    spec: ModelSpec,
    *,
    openvino: str,
    save: Callable[[Path], object],
    notes: Mapping[str, Any] | None = None,
) -> KeptNetwork:
    """Writes a network; what was there under the same spec is replaced in one step.

    Args:
        folder: `models` of a data folder; made where it is missing.
        origin: What the network was converted from.
        spec: What it is; names the folder.
        openvino: The version that made it.
        save: Writes an .xml at the path that it is given, and a .bin beside it.
        notes: JSON to keep with it.

    Raises:
        OSError: It cannot be written.
    """
    home = folder / spec.digest
    home.mkdir(parents=True, exist_ok=True)
    xml = home / f"{uuid.uuid4().hex}.xml"
    save(xml)
    files = (xml, xml.with_suffix(".bin"))
    for file in files:
        _sync(file)
    document: dict[str, Any] = {
        "format": FORMAT,
        "origin": asdict(origin),
        "passport": spec.to_dict(),
        "openvino": openvino,
        "files": {file.name: _sha256(file) for file in files},
        "notes": dict(notes or {}),
    }
    _write(home / _MANIFEST, json.dumps(document, indent=2) + "\n")
    for synced in (home, folder, folder.parent):
        _sync(synced)
    _tidy(home, {*document["files"], _MANIFEST})
    return KeptNetwork(xml=xml, spec=spec, openvino=openvino, notes=document["notes"])


def _read(
    home: Path, fits: Callable[[Path, Mapping[str, Any]], bool], *, int8: bool
) -> KeptNetwork | None:
    """What a folder holds; None where it does not fit, or where it is damaged, as the log says."""
    try:
        document = json.loads((home / _MANIFEST).read_text(encoding="utf-8"))
        if document["format"] != FORMAT or not fits(home, document):
            return None
        return _checked(home, document, int8=int8)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        _log.warning("the converted network in %s cannot be used: %s", home, exc)
        return None


def _checked(home: Path, document: Mapping[str, Any], *, int8: bool) -> KeptNetwork:
    """The network that a manifest describes; raises ValueError where it is not whole."""
    spec = ModelSpec.from_dict(document["passport"])
    if spec.digest != home.name or spec.int8 != int8:
        raise ValueError(f"it belongs to the spec {spec.digest}")
    files: Mapping[str, str] = document["files"]
    for name, expected in files.items():
        if Path(name).name != name or _sha256(home / name) != expected:
            raise ValueError(f"{name} is damaged")
    (xml,) = (name for name in files if name.endswith(".xml"))
    if Path(xml).with_suffix(".bin").name not in files:
        raise ValueError("its .bin is not named")
    return KeptNetwork(
        xml=home / xml,
        spec=spec,
        openvino=str(document["openvino"]),
        notes=dict(document["notes"]),
    )


def _weights_file(weights: str) -> Path | None:
    if weights == "random":
        return None
    try:
        path = Path(weights).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # no path at all
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    """Writes through to the disk under a temporary name, then renames."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _tidy(home: Path, wanted: set[str]) -> None:
    """Deletes what no manifest names; the young may be another process's, about to be named."""
    for file in home.iterdir():
        with contextlib.suppress(OSError):
            if file.name not in wanted and time.time() - file.stat().st_mtime > _STALE_S:
                file.unlink()
