"""Finds the weights of torch networks, checks them, and copies them into their networks."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import logging
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import nn

from lookalike.errors import WeightsError, WeightsMismatchError, WeightsNotFoundError
from lookalike.files.disk import atomic_write
from lookalike.records import file_sha256

RANDOM: Final = "random"
_SUFFIXES = (".pth", ".pt", ".safetensors")
_TIMEOUT_S = 10.0
_SHOWN = 5  # layers named in an error

_log = logging.getLogger(__name__)


@contextmanager
def same_random_weights() -> Iterator[None]:
    """Networks that are made inside have the same random weights on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def load_weights(
    network: nn.Module,
    weights: str,
    *,
    model: str,
    named: Mapping[str, Callable[[], tuple[Path, str]] | None],
    classifier: tuple[str, ...] = (),
) -> tuple[str, str]:
    """Gives a network its weights; returns the name to show for them, and their digest.

    Args:
        network: Its classifier is an identity; `random` leaves it as it was made.
        weights: A key of `named`, a path to a state dict (.pth, .pt, .safetensors), or `random`.
        model: The network's name, for errors.
        named: Names of weights -> what finds their file, and the name to show; None where the
            caller does.
        classifier: What names of tensors start with that are left out, as in `fc.`.

    Raises:
        WeightsNotFoundError: No such name or file, or the download failed.
        WeightsMismatchError: The file's layers are not the model's.
        WeightsError: The file cannot be read.
    """
    if weights == RANDOM:
        shown = RANDOM
    else:
        find = named.get(weights)
        path, shown = find() if find else _find(weights, model, named)
        _load_into(network, read_state(path), path=path, classifier=classifier)
    return shown, state_sha256(network.state_dict(), classifier=classifier)


def state_sha256(state: Mapping[str, torch.Tensor], *, classifier: tuple[str, ...] = ()) -> str:
    """Digests tensors by sorted name, dtype, shape and bytes; classifier and counters left out."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if _counts(name, classifier)):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _counts(name: str, classifier: tuple[str, ...]) -> bool:
    """Whether a tensor takes part in what the network computes."""
    return not name.startswith(classifier) and not name.endswith("num_batches_tracked")


def _find(weights: str, model: str, named: Mapping[str, Any]) -> tuple[Path, str]:
    """A file that is there, and the name to show for it."""
    path = Path(weights).expanduser()
    if path.is_file():
        return path, path.name
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise WeightsNotFoundError(f"There is no weights file at {path.absolute()}")
    by_lower = {name.lower(): name for name in named}
    nearest = difflib.get_close_matches(weights.lower(), by_lower, n=1)
    hint = f" Did you mean {by_lower[nearest[0]]!r}?" if nearest else ""
    raise WeightsNotFoundError(
        f"Unknown weights {weights!r} for {model}.{hint} Known: "
        f"{''.join(f'{name}, ' for name in named)}a path to a file ({', '.join(_SUFFIXES)}), "
        f"or {RANDOM}"
    )


def downloaded(url: str) -> Path:
    """The file of this address in torch's cache folder, downloaded if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        check_digest(path)
    else:
        _download(url, path)
    return path


def check_digest(path: Path, named: Path | None = None) -> None:
    """Raises `WeightsError` unless a file's sha256 starts as its name ends, or another's does."""
    expected = (named or path).stem.rsplit("-", 1)[-1]
    actual = file_sha256(path)
    if not actual.startswith(expected):
        raise WeightsError(
            f"{path} is damaged: its sha256 starts with {actual[: len(expected)]} instead of "
            f"{expected}. Delete the file, so that it is downloaded again"
        )


def _download(url: str, path: Path) -> None:
    """Downloads a file, and gives it its name once its digest is right."""
    _log.info("downloading %s to %s", url, path)
    request = urllib.request.Request(url, headers={"User-Agent": "lookalike"})  # noqa: S310  # torchvision's own table, https
    try:
        with (
            atomic_write(path) as file,
            urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer,  # noqa: S310  # as above
        ):
            shutil.copyfileobj(answer, file, 1 << 20)
            file.flush()
            check_digest(Path(file.name), path)
    except (OSError, http.client.HTTPException, WeightsError) as exc:
        raise WeightsNotFoundError(
            f"The weights are not on this machine and {url} cannot be downloaded ({exc}). "
            f"Put {path.name} into {path.parent}, or give a path to a weights file, or set "
            f"LOOKALIKE_WEIGHTS={RANDOM} to try the service without"
        ) from exc


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict; wrappers and a `module.` prefix are taken off."""
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
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _load_into(
    network: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    path: Path,
    classifier: tuple[str, ...],
) -> None:
    """Copies a state dict into a network whose layers must be exactly the same."""
    own, state = (
        {name: tensor for name, tensor in each.items() if _counts(name, classifier)}
        for each in (network.state_dict(), state)
    )
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
