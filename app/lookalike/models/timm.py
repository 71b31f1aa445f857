"""The family `timm`: `timm/NAME[.TAG]`, the networks of the library of this name."""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
import timm.data
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from torch import Tensor, nn

from lookalike.errors import ConfigurationError, WeightsNotFoundError
from lookalike.models.registry import Loaded
from lookalike.models.weights import RANDOM, load_weights, same_random_weights, state_sha256
from lookalike.records import Preprocess

_RESIZES = {"center": "crop", "squash": "squash", "border": "pad"}
_PRETRAINED = "pretrained"
_HUB_FILE = "model.safetensors"
_TIMEOUT_S = 10.0


def load(name: str, weights: str) -> Loaded:
    """Loads a network; see `registry.Family`."""
    network: Any = _make(name, pretrained=weights == _PRETRAINED)
    network.eval().requires_grad_(False)
    preprocess = _described(name, network)
    if weights == _PRETRAINED:
        shown, sha256 = weights, state_sha256(network.state_dict())
    else:
        heads = network.pretrained_cfg.get("classifier") or ()
        shown, sha256 = load_weights(
            network,
            weights,
            model=f"timm/{name}",
            named={_PRETRAINED: None},
            classifier=tuple(f"{each}." for each in ([heads] if isinstance(heads, str) else heads)),
        )
    return Loaded(
        network=_Network(network, preprocess.input_size),
        preprocess=preprocess,
        weights=shown,
        sha256=sha256,
        versions={"timm": timm.__version__},
    )


def _make(name: str, *, pretrained: bool) -> Any:
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(f'timm/{each}' for each in nearest)}?"
        raise ConfigurationError(
            f"timm {timm.__version__} has no model {name!r}.{hint if nearest else ''}"
        )
    try:
        with same_random_weights():
            network: Any = timm.create_model(name, num_classes=0)
    except (RuntimeError, ValueError, AssertionError) as exc:  # e.g. no such tag
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ConfigurationError(
            f"timm cannot make {name!r} ({exc}). With trained weights it has: "
            f"{', '.join(f'timm/{each}' for each in tags) or 'none'}"
        ) from exc
    if not pretrained:
        return network
    described = network.pretrained_cfg
    source = described.get("hf_hub_id") or described.get("url")
    try:
        _reach(described.get("hf_hub_id"))
        return timm.create_model(name, num_classes=0, pretrained=True)
    except Exception as exc:  # whatever the hub's client raises
        where = f"of {source}" if source else "(there are none of this name)"
        raise WeightsNotFoundError(
            f"timm cannot get the weights {where}: {_first_line(exc)}. Give the path to a file of "
            f"them ({_HUB_FILE} of that page), or set LOOKALIKE_WEIGHTS={RANDOM} to try the "
            "service without"
        ) from exc


def _reach(repository: str | None) -> None:
    """Raises what the hub's client does, but at once: its own download tries for a minute."""
    if repository and not isinstance(try_to_load_from_cache(repository, _HUB_FILE), str):
        get_hf_file_metadata(hf_hub_url(repository, _HUB_FILE), timeout=_TIMEOUT_S)


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


def _described(name: str, network: nn.Module) -> Preprocess:
    """What the model's own description says of its pictures."""
    said: Any = timm.data.resolve_model_data_config(network)  # type: ignore[attr-defined, no-untyped-call]
    channels, height, width = said["input_size"]
    if channels != 3 or height != width or said["crop_mode"] not in _RESIZES:
        raise ConfigurationError(
            f"timm/{name} takes no square color pictures ({channels} x {height} x {width}, "
            f"{said['crop_mode']}): choose another model"
        )
    interpolation = said["interpolation"]
    return Preprocess(
        input_size=height,
        resize=_RESIZES[said["crop_mode"]],
        crop_share=height / math.floor(height / said["crop_pct"]),
        interpolation="bilinear" if interpolation == "random" else interpolation,
        mean=said["mean"],
        std=said["std"],
    )


class _Network(nn.Module):
    """Up to the last feature map, where its mean is what timm gives; else timm's vectors."""

    def __init__(self, network: Any, side: int) -> None:
        super().__init__()
        self._network = network
        sample = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)
        self._has_maps = False
        with torch.inference_mode():
            maps = network.forward_features(sample)
            if maps.ndim == 4:
                pooled, expected = maps.flatten(2).mean(2), network(sample)
                self._has_maps = pooled.shape == expected.shape and bool(
                    (pooled - expected).norm() <= 1e-3 * expected.norm()
                )

    def set_input_size(self, side: int) -> None:
        """Fits a network with a table of positions to another input."""
        if hasattr(self._network, "set_input_size"):
            self._network.set_input_size(img_size=(side, side))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, scaled, to maps (N, channels, rows, columns) or vectors (N, dim)."""
        found: Tensor = self._network.forward_features(x) if self._has_maps else self._network(x)
        return found
