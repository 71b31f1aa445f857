"""The families of models; nothing heavy is imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from lookalike.errors import ConfigurationError
from lookalike.models.base import Encoder
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import Preprocess

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSide:
    """How an encoder of pictures takes texts, too; their vectors can be compared."""

    tokenize: Callable[[str], Any]  # a text -> (length,) int64, the same length for all
    network: nn.Module  # (N, length) int64 -> (N, dim) float32; dim as of the pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A torch network with its weights: float32, in evaluation mode, without its classifier.

    Attributes:
        network: (N, 3, side, side) float32, scaled by `preprocess`'s mean and std -> feature maps
            (N, channels, rows, columns), of which the mean over positions is the vector; or, of
            a network with a pooling of its own, vectors (N, dim). On CPUs, a method `fused(dtype,
            side)` may give a faster equal.
        preprocess: The model's own; its `version` does not matter.
        weights: Their name, or their file's.
        sha256: Their digest, as `weights.load_weights` returns it.
        versions: Of the libraries that made the network, to record beside torch's.
        text: How it takes texts, if it does.
    """

    network: nn.Module
    preprocess: Preprocess
    weights: str
    sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)
    text: TextSide | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is known of a family before its module is imported.

    Attributes:
        module: Offers `load(name: str, weights: str) -> Loaded`, or, without torch networks,
            `make_encoder(request: ModelRequest, run: RunOptions) -> Encoder`. Both raise
            `WeightsError` if the weights cannot be used, `ConfigurationError` if a value cannot
            work.
        models: Names that users write without the family, e.g. `resnet50` -> the model's own
            preprocessing; None if only `load` knows it.
        has_others: Whether it has models beyond `models`, as `family/name`; else those are all.
        has_network: Whether it has torch networks.
        has_text: Whether its models take texts as well as pictures.
        weights: Name of the weights that are taken unless others are asked for; none if empty.
        separator: What users write between a model's name and its weights, if they name both as
            one: the first of these in the name.
        deciding: Name of weights -> the packages whose versions decide what it stands for.
    """

    module: str
    models: Mapping[str, Preprocess | None] = field(default_factory=dict)
    has_others: bool = False
    has_network: bool = True
    has_text: bool = False
    weights: str = "pretrained"
    separator: str | None = None
    deciding: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"random": ("torch",)})

    def load(self, name: str, weights: str) -> Loaded:
        """Loads a network; `name` is without the family."""
        loaded: Loaded = import_module(self.module).load(name, weights)
        return loaded

    def make_encoder(self, request: ModelRequest, run: RunOptions) -> Encoder:
        """Makes an encoder without a torch network; without the request's head."""
        encoder: Encoder = import_module(self.module).make_encoder(request, run)
        return encoder

    def deciding_versions(self, weights: str) -> dict[str, str]:
        """Package -> version of those that decide what a name of weights stands for."""
        return {name: version(name) for name in self.deciding.get(weights, ())}


RESNETS: Final = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Those of torchvision's that the whole of can be trained, and that CPUs run fused."""

FAMILIES: Mapping[str, Family] = {
    "torchvision": Family(
        module="lookalike.models.torchvision",
        models=dict.fromkeys(RESNETS, Preprocess()),
        weights="IMAGENET1K_V1",
        deciding={"random": ("torch", "torchvision"), "DEFAULT": ("torchvision",)},
    ),
    "color": Family(
        module="lookalike.models.color",
        models={"color": None},
        has_network=False,
        has_text=True,
        weights="none",
    ),
    "onnx": Family(
        module="lookalike.models.openvino.onnx_file",
        models={"onnx": None},
        has_others=True,
        has_network=False,
        weights="",
        separator="/",
    ),
}
"""A model is found by its name in `models`, or else by the family before the slash."""


def find_family(model: str) -> Family:
    """Finds a model's family; raises `ConfigurationError`, which names all, for unknown models."""
    prefix, slash, name = model.partition("/")
    family = FAMILIES.get(prefix)
    if slash and family and family.has_others and name not in family.models:  # each has one name
        return family
    by_name = {name: family for family in FAMILIES.values() for name in family.models}
    if model in by_name:
        return by_name[model]
    nearest = difflib.get_close_matches((name or model).lower(), by_name, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigurationError(f"Unknown model {model!r}.{hint} Known models: {', '.join(by_name)}")


def split_weights(model: str, weights: str | None) -> tuple[str, str | None]:
    """A model's name without the weights that it names, as in `onnx/FILE`; and the weights.

    Raises `ConfigurationError` if `weights` are others, or there is no such family.
    """
    family = find_family(model)
    if family.separator is None or family.separator not in model:
        return model, weights
    name, _, own = model.partition(family.separator)
    if not own or weights not in (None, own):
        raise ConfigurationError(
            f"The model {model!r} names {f'the weights {own}' if own else 'no weights'}, and the "
            f"weights are set to {weights or 'nothing'}: name them once"
        )
    return name, own


def find_network_family(model: str) -> Family:
    """As `find_family`; raises `ConfigurationError` also for a model without a network."""
    family = find_family(model)
    if not family.has_network:
        raise ConfigurationError(f"The model {model} has no network of torch; choose another one")
    return family


def load(model: str, weights: str) -> Loaded:
    """Loads a model's network; raises as `Family.load`, and for a model without a network."""
    family = find_network_family(model)
    return family.load(model if model in family.models else model.partition("/")[2], weights)


def models_with_text() -> list[str]:
    """Names of the models that take texts, too; `family/NAME` stands for all of a family."""
    return [
        model
        for name, family in FAMILIES.items()
        if family.has_text
        for model in (*family.models, *([f"{name}/NAME"] if family.has_others else []))
    ]
