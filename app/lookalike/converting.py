"""The settings' network as OpenVINO takes it: found in the data folder, or converted and kept."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lookalike import errors
from lookalike.config import Settings
from lookalike.errors import LookalikeError
from lookalike.models import openvino_files, openvino_runtime
from lookalike.models.choices import check_choices
from lookalike.models.openvino_files import KeptNetwork, Origin
from lookalike.models.registry import get_architecture
from lookalike.records import ModelSpec

log = logging.getLogger(__name__)

_CONVERT: Final = (
    "import sys; from lookalike.converting import convert_for; convert_for(sys.argv[1])"
)
_OF_NETWORK: Final = ("model", "weights", "pooling", "resize", "input_size")
_REFUSED: Final = 3
"""Exit code of a process that met an error of ours, and not another one."""


def models_folder(settings: Settings) -> Path:
    """Where converted networks are kept."""
    return settings.data_dir / "models"


def settled_origin(settings: Settings) -> Origin:
    """What the settings' network is converted from.

    Raises:
        ConfigurationError: A setting cannot work; `WeightsError` where the weights cannot.
    """
    size = settings.input_size or get_architecture(settings.model).preprocess.input_size
    check_choices(pooling=settings.pooling, resize=settings.resize, input_size=size)
    return openvino_files.origin_of(
        settings.model,
        weights=settings.weights,
        pooling=settings.pooling,
        resize=settings.resize,
        input_size=size,
    )


def float_network(settings: Settings, *, keep: bool) -> tuple[Any, ModelSpec]:
    """The settings' network for OpenVINO: the kept one, or converted now.

    Args:
        settings: What was asked for.
        keep: Whether one that is converted is kept in the data folder.

    Returns:
        The path of its .xml file or, where it is not kept, the network; and its spec.

    Raises:
        WeightsError: The weights cannot be used.
    """
    kept = _kept_float(settings)
    if kept is None and keep and "torch" not in sys.modules:
        _convert_apart(settings)
        kept = _kept_float(settings)
    return _convert_here(settings, keep=keep) if kept is None else (kept.xml, kept.spec)


def _kept_float(settings: Settings) -> KeptNetwork | None:
    return openvino_files.find_network(
        models_folder(settings),
        settled_origin(settings),
        openvino=openvino_runtime.installed_version(),
    )


def _convert_here(settings: Settings, *, keep: bool) -> tuple[Any, ModelSpec]:
    log.info("converting %s for OpenVINO, once", settings.model)
    started = time.monotonic()
    from lookalike.models.openvino_convert import convert  # noqa: PLC0415 - for torch
    from lookalike.models.torchvision_export import exportable  # noqa: PLC0415 - imports torch

    origin = settled_origin(settings)
    source = exportable(
        origin.model,
        weights=settings.weights,
        pooling=origin.pooling,
        resize=origin.resize,
        input_size=origin.input_size,
    )
    network = convert(source.network, input_size=origin.input_size)
    log.info("converted %s in %.1f s", settings.model, time.monotonic() - started)
    if keep and settled_origin(settings) == origin:  # else the file was changed meanwhile
        keep_network(settings, origin, source.spec, network)
    return network, source.spec


def _convert_apart(settings: Settings) -> None:
    """Converts and keeps the network in another process, whose end gives torch's memory back.

    Where there can be none, the log says so and nothing is kept. What it logs is logged here.

    Raises:
        LookalikeError: What the other process met.
    """
    named = {name: getattr(settings, name) for name in _OF_NETWORK}
    given = json.dumps(named | {"data_dir": str(settings.data_dir)})
    try:
        with subprocess.Popen(  # noqa: S603 - this Python; -P: not what lies in the working folder
            [sys.executable, "-P", "-c", _CONVERT, given],
            stdin=subprocess.DEVNULL,
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


def convert_for(given: str) -> None:
    """Converts and keeps a network; what the process does that `float_network` starts.

    Args:
        given: A JSON object of settings: those that name the network, and `data_dir`.

    Prints an error of ours, its name and its text as JSON, for the other process to raise.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    named = json.loads(given)
    named["data_dir"] = Path(named["data_dir"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _convert_here(Settings.model_construct(**named), keep=True)
    except LookalikeError as exc:
        print(json.dumps([type(exc).__name__, str(exc)]))  # noqa: T201 - read by the other
        raise SystemExit(_REFUSED) from exc


def keep_network(
    settings: Settings,
    origin: Origin,
    spec: ModelSpec,
    network: Any,
    *,
    notes: Mapping[str, Any] | None = None,
) -> Path | None:
    """Keeps OpenVINO's model in the data folder; None, and a line in the log, if that fails."""
    openvino = openvino_runtime.import_openvino()
    try:
        kept = openvino_files.keep_network(
            models_folder(settings),
            origin,
            spec,
            openvino=openvino_runtime.installed_version(),
            save=lambda path: openvino.save_model(network, path, compress_to_fp16=False),
            notes=notes,
        )
    except (OSError, RuntimeError) as exc:
        log.warning("the converted network cannot be kept and will be made again: %s", exc)
        return None
    return kept.xml
