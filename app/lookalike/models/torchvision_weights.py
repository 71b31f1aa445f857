"""Finds, checks and loads the weights of a torchvision network."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import nn

from lookalike.errors import WeightsError, WeightsMismatchError, WeightsNotFoundError

RANDOM = "random"
_SUFFIXES = (".pth", ".pt", ".safetensors")
_TIMEOUT_S = 10.0
_SHOWN = 5  # layers named in an error

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBackbone:
    """A network with its weights.

    Attributes:
        network: torchvision's, in evaluation mode, float32; its classifier is an identity.
        weights: The weights' name, or the file's name.
        sha256: Hex digest over the state dict without classifier.
    """

    network: nn.Module
    weights: str
    sha256: str


def load_backbone(model: str, *, weights: str) -> LoadedBackbone:
    """Builds a network without its classifier and gives it its weights.

    Args:
        model: As torchvision names it.
        weights: A torchvision weights name, a path to a state dict (.pth, .pt, .safetensors), or
            `random`, which is the same on every call.

    Raises:
        WeightsNotFoundError: No such name or file, or the download failed.
        WeightsMismatchError: The file's layers are not the model's.
        WeightsError: The file cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network: nn.Module = torchvision.models.get_model(model, weights=None)
    network.fc = nn.Identity()
    network.eval().requires_grad_(False)
    if weights == RANDOM:
        name = RANDOM
    else:
        path, name = _find(model, weights)
        _load_into(network, read_state(path), path=path)
    return LoadedBackbone(network=network, weights=name, sha256=state_sha256(network.state_dict()))


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Digests tensors by sorted name, dtype, shape and bytes; classifier and counters left out."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if _counts(name)):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _counts(name: str) -> bool:
    """Whether a tensor takes part in what the network computes."""
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def _find(model: str, weights: str) -> tuple[Path, str]:
    """Resolves a setting to a file that is there, and the name to show for it."""
    known = torchvision.models.get_model_weights(model)
    if weights in known.__members__:
        entry = known[weights]
        return _cached(str(entry.url)), str(entry.name)
    path = Path(weights).expanduser()
    if path.is_file():
        return path, path.name
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise WeightsNotFoundError(f"There is no weights file at {path.absolute()}")
    nearest = difflib.get_close_matches(weights.upper(), known.__members__, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise WeightsNotFoundError(
        f"Unknown weights {weights!r} for {model}.{hint} Known: "
        f"{', '.join(known.__members__)}, a path to a file ({', '.join(_SUFFIXES)}), or {RANDOM}"
    )


def _cached(url: str) -> Path:
    """The file of a named set in torch's cache folder, downloaded if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    expected = path.stem.rsplit("-", 1)[-1]  # torchvision puts the digest's start in the name
    if not path.is_file():
        _download(url, path, expected=expected)
        return path
    _check_digest(path, expected=expected)
    return path


def _check_digest(path: Path, *, expected: str) -> None:
    """Compares a file's sha256 with how it must start."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise WeightsError(
            f"{path} is damaged: its sha256 starts with {actual[: len(expected)]} instead of "
            f"{expected}. Delete the file, so that it is downloaded again"
        )


def _download(url: str, path: Path, *, expected: str) -> None:
    """Downloads a file under a temporary name, checks its digest, and only then renames it."""
    _log.info("downloading %s to %s", url, path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "lookalike"})  # noqa: S310  # torchvision's own table, https
        with (
            urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer,  # noqa: S310  # as above
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        _check_digest(partial, expected=expected)
        partial.replace(path)
    except (OSError, http.client.HTTPException, WeightsError) as exc:
        raise WeightsNotFoundError(
            f"The weights are not on this machine and {url} cannot be downloaded ({exc}). "
            f"Put {path.name} into {path.parent}, or give a path to a weights file, or set "
            f"LOOKALIKE_WEIGHTS={RANDOM} to try the service without"
        ) from exc
    finally:
        partial.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict, without classifier; wrappers and a `module.` prefix are taken off.

    Raises:
        WeightsError: The file cannot be read, or holds no state dict.
    """
    try:
        content: Any = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as exc:
        raise WeightsError(
            f"The weights file {path} cannot be read ({exc}): it must be a state dict saved with "
            "torch.save, or a .safetensors file"
        ) from exc
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    ):
        raise WeightsError(f"The weights file {path} holds no state dict (layer names -> tensors)")
    state = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in state.items() if _counts(name)}


def _load_into(network: nn.Module, state: Mapping[str, torch.Tensor], *, path: Path) -> None:
    """Copies a state dict into a network whose layers must be exactly the same."""
    own = {name: tensor for name, tensor in network.state_dict().items() if _counts(name)}
    shapes = sorted(
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    )
    problems = [
        f"{len(names)} {title}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
        for title, names in (
            ("missing layers", sorted(own.keys() - state.keys())),
            ("layers that the model lacks", sorted(state.keys() - own.keys())),
            ("layers of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise WeightsMismatchError(
            f"The weights file {path} does not fit the model. {'; '.join(problems)}. "
            "Give the file of this model, or choose the model of this file"
        )
    network.load_state_dict(dict(state), strict=False)
