"""Converted networks: found in the cache folder, or converted and kept there; int8 ones are data.

Each is an artifact folder named by the digest of its spec, and is found by what it came from.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from lookalike import errors
from lookalike.errors import LookalikeError, WeightsError
from lookalike.files.artifacts import (
    MANIFEST,
    Artifact,
    BrokenArtifactError,
    read_artifact,
    save_artifact,
)
from lookalike.models.openvino import runtime
from lookalike.models.registry import find_network_family
from lookalike.models.spec import PREPROCESSING_VERSION, ModelRequest
from lookalike.records import ModelSpec, file_sha256, without_defaults

KIND: Final = "network"
VERSION: Final = 1
"""Version of the artifact, and of what a conversion is."""

_NAME = "network.xml"
_CONVERT: Final = (
    "import sys; from lookalike.models.openvino.networks import main; main(sys.argv[1])"
)
_REFUSED: Final = 3
"""Exit code of a process that met an error of ours, and not another one."""

log = logging.getLogger(__name__)


def origin_of(request: ModelRequest) -> dict[str, Any]:
    """Says without torch what a request's network is converted from: if equal, the same network.

    Fields at their default are left out, so that a field added later changes no origin.

    Raises:
        ConfigurationError: A value cannot work.
        WeightsError: The weights file cannot be read.
    """
    family = find_network_family(request.model)
    file = _weights_file(request.weights)
    try:
        digest = None if file is None else file_sha256(file)
    except OSError as exc:
        raise WeightsError(f"The weights file {file} cannot be read: {exc.strerror}") from exc
    own = family.models.get(request.model)
    settled = (
        request
        if own is None
        else replace(
            request,
            input_size=request.preprocess(own).input_size,
            resize=request.resize or own.resize,
        )
    )
    settled = replace(settled, weights=request.weights if file is None else file.name, head=None)
    asked = without_defaults(settled)
    if settled.resize == "squash":
        del asked["resize"]  # the default once
    return {
        "request": asked,
        "weights_file": digest,
        "versions": family.deciding_versions(request.weights),
        "preprocessing": PREPROCESSING_VERSION,
    }


class KeptNetwork(NamedTuple):
    """A converted network: OpenVINO's .xml, the .bin beside it, and its spec."""

    xml: Path
    spec: ModelSpec


def find_network(
    folder: Path, origin: Mapping[str, Any], *, openvino: str | None = None
) -> KeptNetwork | None:
    """Finds the newest whole network of this origin, of one version of OpenVINO or of any.

    Returns None if there is none; `folder` need not exist. The log names those that are damaged.
    """
    manifests = sorted(folder.glob(f"*/{MANIFEST}"), key=_changed, reverse=True)
    found = (_read(manifest.parent, origin, openvino) for manifest in manifests)
    return next((kept for kept in found if kept is not None), None)


def open_network(folder: Path, digest: str) -> KeptNetwork | None:
    """The int8 network whose spec has this digest; None if it is not in `folder`, or damaged."""
    kept = _read(folder / Path(digest).name)
    return kept if kept is not None and kept.spec.int8 else None


def keep_network(
    folder: Path,
    origin: Mapping[str, Any],
    spec: ModelSpec,
    network: Any,
    *,
    notes: Mapping[str, Any] | None = None,
) -> KeptNetwork | None:
    """Keeps OpenVINO's model; an older one under the same spec is replaced in one step.

    `folder` is made if it is missing; `notes` are JSON for people. Returns None, after a line in
    the log, if the network cannot be written.
    """
    facts = {
        "origin": dict(origin),
        "spec": spec.to_dict(),
        "openvino": runtime.installed_version(),
        "notes": dict(notes or {}),
    }

    def write(content: Path) -> None:
        runtime.save(network, content / _NAME)

    home = folder / spec.digest
    try:
        return _kept(save_artifact(home, kind=KIND, version=VERSION, facts=facts, write=write))
    except (OSError, RuntimeError) as exc:
        log.warning(
            "the converted network cannot be kept in %s (%s): it is made anew each time; "
            "LOOKALIKE_CACHE_DIR sets another place",
            folder,
            exc,
        )
        return None


def float_network(request: ModelRequest, folder: Path) -> tuple[Any, ModelSpec]:
    """A request's network for OpenVINO: the one in `folder`, or converted now and kept there.

    Returns the path of its .xml file or, if it cannot be kept, the network; and its spec. Raises
    `WeightsError` if the weights cannot be used.
    """
    request = replace(request, int8=False)
    kept = _kept_float(request, folder)
    if kept is None and "torch" not in sys.modules:
        _convert_apart(request, folder)
        kept = _kept_float(request, folder)
    return kept or _convert_here(request, folder)


def _kept_float(request: ModelRequest, folder: Path) -> KeptNetwork | None:
    return find_network(folder, origin_of(request), openvino=runtime.installed_version())


def _convert_here(request: ModelRequest, folder: Path) -> tuple[Any, ModelSpec]:
    log.info("converting %s for OpenVINO, once", request.model)
    started = time.monotonic()
    origin = origin_of(request)
    from lookalike.models.network import build  # noqa: PLC0415 - imports torch

    source, spec, _ = build(request)
    network = runtime.convert(source, input_size=spec.preprocess.input_size)
    log.info("converted %s in %.1f s", request.model, time.monotonic() - started)
    if origin_of(request) == origin:  # else the weights file was changed meanwhile
        keep_network(folder, origin, spec, network)
    return network, spec


def _convert_apart(request: ModelRequest, folder: Path) -> None:
    """Converts and keeps the network in another process, whose end gives torch's memory back.

    The process ends with this one. If none can be started, the log says so and nothing is kept.
    What it logs is logged here, and an error of ours is raised here.
    """
    given = json.dumps({"request": request.to_dict(), "folder": str(folder)})
    try:
        with subprocess.Popen(  # noqa: S603 - this Python; -P: not what lies in the working folder
            [sys.executable, "-P", "-c", _CONVERT, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            for line in child.stderr:
                log.info("%s", line.rstrip())
            answer = child.stdout.read()
    except OSError as exc:
        log.warning("no process can be started (%s): converting in this process", exc)
        return
    if child.returncode == _REFUSED:
        name, text = json.loads(answer.splitlines()[-1])
        raise getattr(errors, name)(text)
    if child.returncode != 0:
        log.warning("the process ended with %d: converting in this process", child.returncode)


def main(given: str) -> None:
    """Converts and keeps a network, in the process that `float_network` starts.

    Takes a JSON object of `request` and `folder`. Prints the name and the text of an error of ours
    as JSON, for the other process to raise.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    document = json.loads(given)
    request = ModelRequest.from_dict(document["request"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _convert_here(request, Path(document["folder"]))
    except LookalikeError as exc:
        print(json.dumps([type(exc).__name__, str(exc)]))  # noqa: T201 - read by the other
        raise SystemExit(_REFUSED) from exc


def _end_with_parent() -> None:
    """Ends this process once the one that started it closes our input, or ends."""
    sys.stdin.read()
    os._exit(1)


def _read(
    home: Path, origin: Mapping[str, Any] | None = None, openvino: str | None = None
) -> KeptNetwork | None:
    """What a folder holds; None if it was made otherwise, or is damaged, which the log says."""
    try:
        artifact = read_artifact(home, kind=KIND, version=VERSION)
        if artifact is None or origin not in (None, artifact.facts["origin"]):
            return None
        if openvino not in (None, made_by := artifact.facts["openvino"]):
            log.info("a converted network was made by OpenVINO %s", made_by)
            return None
        for name in artifact.files:
            artifact.verify(name)
        return _kept(artifact)
    except (BrokenArtifactError, OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        log.warning("the converted network in %s cannot be used: %s", home, exc)
        return None


def _kept(artifact: Artifact) -> KeptNetwork:
    """The network of an artifact; raises `BrokenArtifactError` if it lies under another's name."""
    spec = ModelSpec.from_dict(artifact.facts["spec"])
    if spec.digest != artifact.folder.name:
        raise BrokenArtifactError(f"it belongs to the spec {spec.digest}")
    artifact.path(Path(_NAME).with_suffix(".bin").name)
    return KeptNetwork(artifact.path(_NAME), spec)


def _weights_file(weights: str) -> Path | None:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no path at all
        path = Path(weights).expanduser()
        if weights != "random" and path.is_file():
            return path
    return None


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):  # removed meanwhile
        return path.stat().st_mtime
    return 0.0
