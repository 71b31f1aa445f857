"""The families of models; nothing heavy is imported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from lookalike.errors import ConfigurationError
from lookalike.models.base import Encoder
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import ModelSpec

FAMILIES: Mapping[str, str] = {
    "torchvision": "lookalike.models.torchvision",
    "color": "lookalike.models.color",
}
"""Family -> the module that loads its models and offers what `Family` says.

A model is found by the families' `MODELS`, or else by the family before the slash in its name.
"""


class Family(Protocol):
    """What the module of a family offers. Importing it must not import torch."""

    MODELS: Sequence[str]
    """Names of models that users may write without the family, e.g. `resnet50`."""

    HAS_OTHERS: bool
    """Whether it has models beyond `MODELS`, as `family/name`; else those are all."""

    HAS_NETWORK: bool
    """Whether its models can be converted for OpenVINO; a family without offers `load` alone."""

    HAS_TEXT: bool
    """Whether its models take texts as well as pictures."""

    def load(self, request: ModelRequest, run: RunOptions) -> Encoder:
        """Loads an encoder that does not run on OpenVINO; without the request's head.

        Raises:
            WeightsError: The weights cannot be used.
            ConfigurationError: A value cannot work.
        """

    def settle(self, request: ModelRequest) -> ModelRequest:
        """Gives what the request leaves open the model's own value; raises as `load`."""

    def deciding_versions(self, weights: str) -> Mapping[str, str]:
        """Versions of the libraries that decide what a name of weights stands for."""

    def export(self, request: ModelRequest) -> tuple[Any, ModelSpec]:
        """The network in plain operators and float32, for conversion, and its spec, as of `load`.

        A torch module, (N, side, side, 3) uint8 -> (N, dim) float32, not normalized.
        """


def find_family(model: str) -> Family:
    """Finds a model's family; raises `ConfigurationError`, which names all, for unknown models."""
    prefix, slash, name = model.partition("/")
    if slash and prefix in FAMILIES:
        family = _family(prefix)
        if family.HAS_OTHERS and name not in family.MODELS:  # each model has one name
            return family
    by_name = {name: family for family in map(_family, FAMILIES) for name in family.MODELS}
    if model in by_name:
        return by_name[model]
    nearest = difflib.get_close_matches((name or model).lower(), by_name, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigurationError(f"Unknown model {model!r}.{hint} Known models: {', '.join(by_name)}")


def find_network_family(model: str) -> Family:
    """As `find_family`; raises `ConfigurationError` also for a model without a network."""
    family = find_family(model)
    if not family.HAS_NETWORK:
        raise ConfigurationError(f"The model {model} has no network; choose another one")
    return family


def models_with_text() -> list[str]:
    """Names of the models that take texts, too; `family/NAME` stands for all of a family."""
    with_text = [(name, family) for name in FAMILIES if (family := _family(name)).HAS_TEXT]
    return [
        model
        for name, family in with_text
        for model in (*family.MODELS, *([f"{name}/NAME"] if family.HAS_OTHERS else []))
    ]


def _family(name: str) -> Family:
    return cast("Family", import_module(FAMILIES[name]))
