"""How to make an encoder again: the settings that decide its spec, as JSON."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from typing import Any

from lookalike.config import Settings
from lookalike.errors import InvalidParameterError
from lookalike.models.head import Head
from lookalike.models.heads import save_head
from lookalike.models.registry import ARCHITECTURES
from lookalike.services.collection_models import INT8, RECIPE_SETTINGS


def recipe_of(settings: Settings, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What settings say of the model, and what differs from them.

    Args:
        settings: The service's own.
        given: Some of `RECIPE_SETTINGS` and `INT8`; `head` None for no head.

    Returns:
        A JSON object of all of them; paths are absolute.

    Raises:
        InvalidParameterError: There is no such model.
    """
    values = {name: getattr(settings, name) for name in RECIPE_SETTINGS}
    values |= {INT8: settings.precision == INT8} | dict(given or {})
    known = {*ARCHITECTURES, "color"}
    if values["model"] not in known:
        raise InvalidParameterError(
            f"There is no model {values['model']!r}; choose from {', '.join(sorted(ARCHITECTURES))}"
        )
    values[INT8] = values[INT8] if values["model"] in ARCHITECTURES else False
    for name in ("weights", "head"):
        if values[name] is not None:
            values[name] = _absolute(str(values[name]))
    return values


def settings_of(settings: Settings, recipe: Mapping[str, Any]) -> Settings:
    """The service's settings with a recipe's model."""
    values = {name: recipe[name] for name in RECIPE_SETTINGS if name in recipe}
    if values.get("head") is not None:
        # Not absolute: one that `keep_head` keeps.
        values["head"] = settings.data_dir / values["head"]
    if recipe.get(INT8):
        values["precision"] = INT8
    elif settings.precision == INT8:
        values["precision"] = "auto"
    if values.get("model", settings.model) == "color":  # beside a network's own, or an old recipe's
        values |= {"precision": "auto", "compile": False}
    return settings.model_copy(update=values)


def quantized_of(recipe: Mapping[str, Any]) -> str | None:
    """The int8 network that a recipe names by its spec's digest; None where it names none."""
    named = recipe.get(INT8)
    return named if isinstance(named, str) else None


def keep_head(settings: Settings, head: Head) -> str:
    """Keeps a head in the data folder, under its digest; gives its path below that folder.

    Raises:
        WeightsError: It cannot be written.
    """
    kept = f"heads/{head.digest}.safetensors"
    if not (settings.data_dir / kept).with_suffix(".json").is_file():  # written last
        save_head(head, settings.data_dir / kept)
    return kept


def _absolute(text: str) -> str:
    """A path that leads to the same file from everywhere; a name of weights stays a name."""
    path = os.path.expanduser(text)  # noqa: PTH111 - Path refuses texts that are no paths
    return os.path.realpath(path) if os.path.exists(path) else text  # noqa: PTH110
