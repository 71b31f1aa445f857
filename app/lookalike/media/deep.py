"""Scales samples of more than 8 bits down to 8. See 0031-what-deep-samples-mean.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # few pictures need numpy: processes that decode start sooner without it
    import numpy as np
    from numpy.typing import NDArray

_CUT = (0.1, 99.9)  # percentiles that count as the least and the greatest value
_INTEGERS = (255, 1023, 4095, 16383, 65535)  # the greatest of 8, 10, 12, 14 and 16 bits
_FLOATS = (1.0, 255.0, 65535.0)
_FAINT = 1 / 16  # of a range: less contrast than that would be next to nothing in 8 bits
_FILLS = (-9999, -99999, -32767, -32768, -(2**31))  # what instruments write where they saw nothing
_BEYOND = 1e30  # floats beyond that are such, too
_SAMPLE = 2_000_000  # values, at most, that percentiles are taken of
_SLAB = 1_000_000  # values that are scaled at once


def to_8_bits(values: NDArray[np.generic], *, nodata: float | None = None) -> NDArray[np.uint8]:
    """Maps the range in which values seem to be meant onto 0 to 255; any shape.

    That is from 0 to the greatest value of 8, 10, 12, 14 or 16 bits, for floats from 0 to 1, 255 or
    65,535, if nearly all values lie within and differ by more than a sixteenth of it. Else it is
    from their least to their greatest, one in a thousand not counted at either end. `nodata`, NaN,
    infinity and the usual fill values do not count, and become 0.
    """
    import numpy as np  # noqa: PLC0415 - see the top

    flat = np.ascontiguousarray(values).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
    fill = float(flat.min()) if flat.size and flat.dtype.kind == "i" else None

    def known(some: NDArray[np.generic]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.isfinite(some)
        if some.dtype.itemsize > 2:
            found &= np.abs(some) < _BEYOND
        for one in (nodata, fill):
            if one is not None:
                found &= some != one
        return found

    if flat.dtype.kind == "f":
        fill = float(np.min(flat, where=known(flat), initial=np.inf))
    if fill not in _FILLS:
        fill = None
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    sample = sample[known(sample)]
    if not sample.size:
        return np.zeros(values.shape, np.uint8)
    low, high = _range(*np.percentile(sample, _CUT), is_float=flat.dtype.kind == "f")

    def scaled(some: NDArray[np.generic]) -> NDArray[np.uint8]:
        numbers = np.where(known(some), some, low).astype(np.float64)
        share = (numbers - low) / max(high - low, 1e-300)
        return np.asarray((share.clip(0, 1) * 255).round(), np.uint8)

    if flat.dtype.itemsize == 2:
        table = scaled(np.arange(65536, dtype=np.uint16).view(flat.dtype))
        return table[flat.view(np.uint16)].reshape(values.shape)
    slabs = [scaled(flat[at : at + _SLAB]) for at in range(0, flat.size, _SLAB)]
    return np.concatenate(slabs).reshape(values.shape)


def _range(low: float, high: float, *, is_float: bool) -> tuple[float, float]:
    for full in _FLOATS if is_float else _INTEGERS:
        if low >= 0 and high <= full and (high - low > _FAINT * full or high == low):
            return 0.0, float(full)
    return float(low), float(high)
