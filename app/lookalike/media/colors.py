"""Whatever pixels a file holds, as 8-bit RGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_DEEP_MODES = frozenset(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"))
_ALPHA_MODES = frozenset(("RGBA", "LA", "PA", "La", "RGBa"))


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns a loaded picture of any mode into RGB.

    Transparency is laid on white; more than 8 bits are scaled down to 8, not clipped. Color
    profiles are not applied.

    Raises:
        ValueError: Pillow knows no way from this mode to RGB.
    """
    if image.mode in _DEEP_MODES:
        return _deep_to_rgb(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return _on_white(_with_alpha(image))
    if image.mode != "RGB":
        image = image.convert("RGB")
    image.info = {}
    return image


def _with_alpha(image: Image.Image) -> Image.Image:
    """The same picture in RGBA."""
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # A 16-bit PNG: its pixels were read down to 8 bits, its transparent color was not.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _on_white(image: Image.Image) -> Image.Image:
    """Lays an RGBA picture on white."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return white.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Scales grayscale of 16 or 32 bits, integer or float, down to 8 bits."""
    values = np.asarray(image)
    gray = _to_8_bits(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray = np.where(values == transparent, np.uint8(255), gray)
    return Image.fromarray(gray).convert("RGB")


def _to_8_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Maps the range that the values seem to be meant in onto 0 to 255.

    Integers from 0 to 65,535 are 16-bit gray. Floats from 0 to 1, to 255 and to 65,535 are taken
    as such. Anything else is stretched from its least to its greatest value.
    """
    if values.dtype.itemsize == 2:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    floats = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(floats.min()), float(floats.max())
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    full = next((bound for bound in ranges if low >= 0.0 and high <= bound), None)
    if full is not None:
        return (floats * (255.0 / full)).round().astype(np.uint8)
    return ((floats - low) * (255.0 / max(high - low, 1e-300))).round().astype(np.uint8)
