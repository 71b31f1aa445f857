"""Converted networks: found in the cache folder, or converted and kept there; int8 ones are data.

Each is an artifact folder named by the digest of its spec, and is found by what it came from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from lookalike import errors
from lookalike.cores import available_cores, end_with_parent
from lookalike.errors import LookalikeError, NotConvertibleError, WeightsError, lacks_memory
from lookalike.files.artifacts import (
    MANIFEST,
    Artifact,
    BrokenArtifactError,
    read_artifact,
    save_artifact,
)
from lookalike.models.base import normalize
from lookalike.models.openvino import runtime
from lookalike.models.registry import find_network_family
from lookalike.models.spec import PREPROCESSING_VERSION, ModelRequest
from lookalike.records import ModelSpec, file_sha256, without_defaults

KIND: Final = "network"
VERSION: Final = 1
"""Version of the artifact, and of what a conversion is."""

LEAST_COSINE: Final = 0.9999
"""To torch's vectors, both in float32; a network that comes out further apart is not used."""

_CHECKED = 3  # pictures
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
        digest = None if file is None else _content_sha256(file)
    except OSError as exc:
        raise WeightsError(f"The weights file {file} cannot be read: {exc.strerror}") from exc
    settled = replace(request, weights=request.weights if file is None else file.name, head=None)
    own = family.models.get(request.model)
    if own is not None:
        size, resize = request.preprocess(own).input_size, request.resize or own.resize
        # What is left out was the default once.
        settled = replace(settled, input_size=size, resize=None if resize == "squash" else resize)
    return {
        "request": without_defaults(settled),
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

    Returns the path of its .xml file or, if it cannot be kept, the network; and its spec.

    Raises:
        WeightsError: The weights cannot be used.
        NotConvertibleError: OpenVINO cannot run it, or gives other vectors than torch.
    """
    request = replace(request, int8=False)
    origin, openvino = origin_of(request), runtime.installed_version()
    kept = find_network(folder, origin, openvino=openvino)
    if kept is None and (why := _read_refused(folder, origin)):
        raise _refused(request, why)
    if kept is None and "torch" not in sys.modules:
        _convert_apart(request, folder)
        kept = find_network(folder, origin, openvino=openvino)
    return kept or _convert_here(request, folder)


def _convert_here(request: ModelRequest, folder: Path) -> tuple[Any, ModelSpec]:
    """Converts a network and keeps it; raises `NotConvertibleError` if OpenVINO cannot run it."""
    log.info("converting %s for OpenVINO, once", request.model)
    started = time.monotonic()
    origin = origin_of(request)
    from lookalike.models.network import build  # noqa: PLC0415 - imports torch

    source, spec, _ = build(request)
    try:
        network = runtime.convert(source, input_size=spec.preprocess.input_size)
        _check_converted(source, network, spec.preprocess.input_size)
    except Exception as exc:  # whatever OpenVINO's converter raises
        if lacks_memory(exc):
            raise
        why = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        _note_refused(folder, origin, why)
        raise _refused(request, why) from exc
    log.info("converted %s in %.1f s", request.model, time.monotonic() - started)
    if origin_of(request) == origin:  # else the weights file was changed meanwhile
        keep_network(folder, origin, spec, network)
    return network, spec


def _check_converted(source: Any, network: Any, side: int) -> None:
    """Raises ValueError if OpenVINO's vectors are not torch's, both in float32."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (_CHECKED, 8, 8, 3), dtype=np.uint8)
    at = np.arange(side) * 8 // side
    pixels = coarse[:, at][:, :, at]  # (N, side, side, 3): squares of one color
    expected = source.features(pixels)
    compiled = runtime.compile_network(network, precision="float32", threads=available_cores())
    actual = compiled(pixels)[0]
    cosine = float(np.einsum("nd,nd->n", normalize(expected), normalize(actual)).min())
    if not cosine >= LEAST_COSINE:
        raise ValueError(f"its vectors differ from torch's, cosine {cosine:.6f}")


def _refused(request: ModelRequest, why: str) -> NotConvertibleError:
    return NotConvertibleError(
        f"OpenVINO cannot run {request.model} ({why}): set LOOKALIKE_RUNTIME=torch, and a "
        "precision other than int8"
    )


def _refused_home(folder: Path, origin: Mapping[str, Any]) -> Path:
    text = json.dumps(origin, sort_keys=True)
    return folder / "refused" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _note_refused(folder: Path, origin: Mapping[str, Any], why: str) -> None:
    """Remembers that a network cannot be converted, so that it is not tried at each start."""
    facts = {"openvino": runtime.installed_version(), "why": why}
    try:
        save_artifact(
            _refused_home(folder, origin),
            kind="refusal",
            version=VERSION,
            facts=facts,
            write=lambda _: None,
        )
    except OSError as exc:
        log.info("not noted in %s: %s", folder, exc)


def _read_refused(folder: Path, origin: Mapping[str, Any]) -> str | None:
    """Why this version of OpenVINO cannot run a network, if that is known."""
    try:
        noted = read_artifact(_refused_home(folder, origin), kind="refusal", version=VERSION)
        if noted is not None and noted.facts["openvino"] == runtime.installed_version():
            return str(noted.facts["why"])
    except (BrokenArtifactError, OSError, KeyError):
        pass
    return None


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
    end_with_parent()
    document = json.loads(given)
    request = ModelRequest.from_dict(document["request"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _convert_here(request, Path(document["folder"]))
    except LookalikeError as exc:
        print(json.dumps([type(exc).__name__, str(exc)]))  # noqa: T201 - read by the other
        raise SystemExit(_REFUSED) from exc


def _read(
    home: Path, origin: Mapping[str, Any] | None = None, openvino: str | None = None
) -> KeptNetwork | None:
    """What a folder holds; None if it was made otherwise, or is damaged, which the log says."""
    try:
        artifact = read_artifact(home, kind=KIND, version=VERSION)
        if artifact is None or (origin is not None and not _comes_from(origin, artifact)):
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


def _comes_from(origin: Mapping[str, Any], artifact: Artifact) -> bool:
    """Also if what the artifact's request left to the model is what is asked for."""
    made_from, spec = artifact.facts["origin"], artifact.facts["spec"]
    left = {name: spec[name] for name in ("input_size", "resize")}
    settled = {**made_from, "request": left | made_from["request"]}
    return bool(origin in (made_from, settled))


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
        if weights != "random" and path.exists():
            return path
    return None


def _content_sha256(path: Path) -> str:
    """Of a file, its own; of a folder, over the names and contents of the files in it."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):  # removed meanwhile
        return path.stat().st_mtime
    return 0.0
