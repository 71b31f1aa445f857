"""Writes TIFF files of every layout."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, TiffImagePlugin

_BY_PILLOW = {5: "tiff_lzw", 32773: "packbits", 34925: "lzma", 50000: "zstd"}
_FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}


@dataclass
class Page:
    """One page: its tags (integers, or ASCII), its strips or tiles, the pages within it."""

    tags: dict[int, Sequence[int] | bytes]
    blocks: list[bytes]
    tiled: bool = False
    subpages: list[Page] = field(default_factory=list)


def page(
    pixels,
    *,
    photometric=1,
    packing=1,
    order="<",
    planar=False,
    tile=None,
    rows=None,
    predictor=1,
    bits=None,
    tags=None,
    subpages=(),
):
    """A page of an array (H, W) or (H, W, C), packed as asked."""
    pixels = np.atleast_3d(np.asarray(pixels))
    height, width, samples = pixels.shape
    down, across = tile or (rows or height, width)
    kind = pixels.dtype.kind
    depth = bits or pixels.dtype.itemsize * 8
    blocks = []
    for part in [pixels[..., [one]] for one in range(samples)] if planar else [pixels]:
        for top in range(0, height, down):
            for left in range(0, width, across):
                block = part[top : top + down, left : left + across]
                if tile:
                    missing = (down - block.shape[0], across - block.shape[1])
                    block = np.pad(block, [(0, missing[0]), (0, missing[1]), (0, 0)])
                blocks.append(_packed(_bytes(block, order, predictor, bits), packing))
    found: dict[int, Sequence[int] | bytes] = {
        256: [width], 257: [height], 258: [depth] * samples, 259: [packing], 262: [photometric],
        277: [samples], 284: [2 if planar else 1], 339: [_FORMATS[kind]] * samples,
    }  # fmt: skip
    found |= {322: [across], 323: [down]} if tile else {278: [down]}
    if predictor > 1:
        found[317] = [predictor]
    return Page(found | (tags or {}), blocks, tile is not None, list(subpages))


def tiff(*pages, order="<", big=False):
    """A file of pages."""
    header = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8))
    )
    data = bytearray(header)
    _write(data, list(pages), order, big, len(header) - (8 if big else 4))
    return bytes(data)


def made(pixels, *, order="<", big=False, **options):
    """A file of one page."""
    return tiff(page(pixels, order=order, **options), order=order, big=big)


def _write(data, pages, order, big, pointer):
    """Adds pages, the first of which is noted at `pointer`."""
    number, size = ("Q", 8) if big else ("I", 4)
    for one in pages:
        offsets = []
        for block in one.blocks:
            data += bytes(len(data) % 2)
            offsets.append(len(data))
            data += block
        tags = dict(one.tags)
        tags.setdefault(324 if one.tiled else 273, offsets)
        tags.setdefault(325 if one.tiled else 279, [len(block) for block in one.blocks])
        within = []
        for child in one.subpages:
            data += bytes(len(data) % 2)
            spot = bytearray(size)
            at = len(data)
            data += spot
            _write(data, [child], order, big, at)
            within.append(struct.unpack_from(order + number, data, at)[0])
        if within:
            tags[330] = within
        entries = []
        for tag, value in sorted(tags.items()):
            if isinstance(value, bytes):
                kind, count, raw = 2, len(value), value
            else:
                kind, count = 4, len(value)
                raw = struct.pack(f"{order}{count}I", *value)
            if len(raw) > size:
                data += bytes(len(data) % 2)
                start = len(data)
                data += raw
                raw = struct.pack(order + number, start)
            entries.append(
                struct.pack(f"{order}HH{number}", tag, kind, count) + raw.ljust(size, b"\0")
            )
        data += bytes(len(data) % 2)
        struct.pack_into(order + number, data, pointer, len(data))
        data += struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries)
        pointer = len(data)
        data += bytes(size)


def _bytes(block, order, predictor, bits):
    rows, columns, channels = block.shape
    if bits:
        spread = (block[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        return np.packbits(spread.astype(np.uint8).reshape(rows, -1), axis=1).tobytes()
    if predictor == 2:
        whole = block.view(f"u{block.dtype.itemsize}")
        block = np.concatenate([whole[:, :1], np.diff(whole, axis=1)], axis=1)
    if predictor == 3:
        parts = np.ascontiguousarray(block.astype(block.dtype.newbyteorder(">"))).view(np.uint8)
        parts = (
            parts.reshape(rows, columns * channels, -1)
            .transpose(0, 2, 1)
            .reshape(rows, -1, channels)
        )
        return np.concatenate([parts[:, :1], np.diff(parts, axis=1)], axis=1).tobytes()
    return block.astype(block.dtype.newbyteorder(order)).tobytes()


def _packed(data, packing):
    if packing in (8, 32946):
        return zlib.compress(data)
    if packing not in _BY_PILLOW:
        return data
    target = io.BytesIO()
    row = Image.frombytes("L", (len(data), 1), data)
    row.save(target, "TIFF", compression=_BY_PILLOW[packing])
    target.seek(0)
    with TiffImagePlugin.TiffImageFile(target) as saved:
        start, size = saved.tag_v2[273][0], saved.tag_v2[279][0]
    return target.getvalue()[start : start + size]
