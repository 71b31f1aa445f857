"""The families of models; nothing heavy is imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from lookalike.errors import ConfigurationError
from lookalike.extras import Extra, require_extra
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
            (N, channels, rows, columns) or (N, channels, positions), of which the mean over
            positions is the vector; or, of a network with a pooling of its own, vectors (N, dim).
            On CPUs, a method `fused(dtype, side)` may give a faster equal; `set_input_size(side)`
            is called before another size than its own.
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
        extra: What of ours is to be installed for it.
        deciding: Name of weights -> the packages whose versions decide what it stands for.
    """

    module: str
    models: Mapping[str, Preprocess | None] = field(default_factory=dict)
    has_others: bool = False
    has_network: bool = True
    has_text: bool = False
    weights: str = "pretrained"
    separator: str | None = None
    extra: Extra | None = None
    deciding: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"random": ("torch",)})

    def load(self, name: str, weights: str) -> Loaded:
        """Loads a network; `name` is without the family."""
        self._require(f"the model {name}")
        loaded: Loaded = import_module(self.module).load(name, weights)
        return loaded

    def make_encoder(self, request: ModelRequest, run: RunOptions) -> Encoder:
        """Makes an encoder without a torch network; without the request's head."""
        self._require(f"the model {request.model}")
        encoder: Encoder = import_module(self.module).make_encoder(request, run)
        return encoder

    def _require(self, what: str) -> None:
        if self.extra is not None:
            require_extra(self.extra, what)

    def deciding_versions(self, weights: str) -> dict[str, str]:
        """Package -> version of those that decide what a name of weights stands for."""
        self._require(f"a model with {weights} weights")
        return {name: version(name) for name in self.deciding.get(weights, ())}


_MOST_SHOWN = 5  # of a family's models, in an error

RESNETS: Final = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Those of torchvision's that the whole of can be trained, and that CPUs run fused."""

_TORCHVISION: Final = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
    densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
    efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l
    efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75
    mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
    regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf
    regnet_y_800mf regnet_y_8gf resnext101_32x8d resnext101_64x4d resnext50_32x4d
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
    squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
    vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32
    wide_resnet101_2 wide_resnet50_2
""".split()  # noqa: SIM905 - names besides the ResNets; here because only torch could tell them

LITE: Final = Preprocess(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""Of efficientnet_lite0: from -1 to 1."""

FAMILIES: Mapping[str, Family] = {
    "torchvision": Family(
        module="lookalike.models.torchvision",
        models={**dict.fromkeys(RESNETS, Preprocess()), **dict.fromkeys(_TORCHVISION)},
        weights="IMAGENET1K_V1",
        deciding={"random": ("torch", "torchvision"), "DEFAULT": ("torchvision",)},
    ),
    "efficientnet_lite": Family(
        module="lookalike.models.efficientnet_lite",
        models={"efficientnet_lite0": LITE},
        weights="IMAGENET1K_V1",
    ),
    "timm": Family(
        module="lookalike.models.timm",
        has_others=True,
        deciding={"random": ("torch", "timm"), "pretrained": ("timm",)},
        extra="timm",
    ),
    "color": Family(
        module="lookalike.models.color",
        models={"color": None},
        has_network=False,
        has_text=True,
        weights="none",
    ),
    "open_clip": Family(
        module="lookalike.models.open_clip",
        has_others=True,
        has_text=True,
        separator=":",
        extra="clip",
        deciding={
            "random": ("torch", "open-clip-torch"),
            "pretrained": ("open-clip-torch",),
        },
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
    nearest = difflib.get_close_matches((name or model).lower(), by_name, n=3)
    others = [each for each, family in FAMILIES.items() if family.has_others]
    if slash and prefix not in FAMILIES:
        nearest = [f"{each}/{name}" for each in difflib.get_close_matches(prefix, others)] + nearest
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    known = [shown for each, family in FAMILIES.items() for shown in _shown(each, family)]
    raise ConfigurationError(f"Unknown model {model!r}.{hint} Known models: {', '.join(known)}")


def _shown(name: str, family: Family) -> list[str]:
    """A family's models in few words."""
    models = list(family.models)
    more = len(models) - _MOST_SHOWN
    return [
        *models[:_MOST_SHOWN],
        *([f"{more} more of {name} (docs/models.md)"] if more > 0 else []),
        *([f"{name}/NAME"] if family.has_others else []),
    ]


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
        shown
        for name, family in FAMILIES.items()
        if family.has_text
        for shown in _shown(name, family)
    ]
