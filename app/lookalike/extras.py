"""Dependencies that are installed on request, such as the extra `clip`."""

from __future__ import annotations

import importlib.util
from typing import Final, Literal

from lookalike.errors import ConfigurationError

Extra = Literal["clip", "parquet", "timm", "train", "viz"]

MODULES: Final[dict[Extra, tuple[str, ...]]] = {
    "clip": ("open_clip",),
    "parquet": ("pyarrow",),
    "timm": ("timm",),
    "train": ("matplotlib", "pytorch_metric_learning"),
    "viz": ("matplotlib", "openTSNE", "scipy", "sklearn"),
}  # the modules that each extra brings and that are imported from here


def require_extra(extra: Extra, doing: str) -> None:
    """Checks that an extra's modules are installed, without importing them, for `doing`: `a map`.

    Raises:
        ConfigurationError: A module is missing; the text says what to install.
    """
    missing = [name for name in MODULES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"{doing[0].upper()}{doing[1:]} needs {' and '.join(missing)}: not installed. Run "
            f'pip install "lookalike[{extra}]"'
        )
