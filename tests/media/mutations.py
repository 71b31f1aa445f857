"""Pictures in every format that is read, and damage of many kinds done to them."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from lookalike.media.decode import register_heif
from tests.media import tiffs
from tests.media.bombs import bmp_runs, jpeg_arithmetic, jpeg_scans, png, ppm_text, tiff
from tests.models.pictures import draw

_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def originals() -> dict[str, bytes]:
    """Whole pictures by name, a few kilobytes each."""
    register_heif()
    color, other = draw(1, (72, 54)), draw(2, (72, 54))
    gray, alpha = color.convert("L"), color.convert("RGBA")
    alpha.putalpha(other.convert("L"))
    deep = Image.new("I;16", (40, 30), 20_000)
    several: dict[str, Any] = {"save_all": True, "append_images": [other, color]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    made = {
        "jpeg": _saved(color, "JPEG", exif=exif),
        "progressive": _saved(color, "JPEG", progressive=True),
        "restarts": _saved(color, "JPEG", restart_marker_blocks=1),
        "gray jpeg": _saved(gray, "JPEG", comment=b"a comment"),
        "cmyk": _saved(color.convert("CMYK"), "JPEG"),
        "mpo": _saved(color, "MPO", **several),
        "png": _saved(alpha, "PNG", exif=exif),
        "palette png": _saved(color.quantize(), "PNG", transparency=1),
        "deep png": _saved(deep, "PNG"),
        "bits": _saved(color.convert("1"), "PNG"),
        "apng": _saved(color, "PNG", **several),
        "interlaced": png(40, 30, interlaced=True),
        "gif": _saved(color, "GIF", **several),
        "webp": _saved(color, "WEBP", exif=exif),
        "lossless": _saved(alpha, "WEBP", lossless=True),
        "animated": _saved(color, "WEBP", **several),
        "bmp": _saved(color, "BMP"),
        "runs": bmp_runs(40, run=5),
        "avif": _saved(alpha, "AVIF", speed=10),
        "avif sequence": _saved(color, "AVIF", speed=10, **several),
        "heic": _saved(color, "HEIF"),
        "icon": _saved(alpha, "ICO", sizes=[(16, 16), (48, 48)]),
        "icon of bitmaps": _saved(alpha, "ICO", sizes=[(32, 32)], bitmap_format="bmp"),
        "ppm": _saved(color, "PPM"),
        "pgm": _saved(gray, "PPM"),
        "text": ppm_text(20),
        "jp2": _saved(color, "JPEG2000", num_resolutions=3),
        "j2k": _saved(color, "JPEG2000", no_jp2=True, tile_size=(32, 32)),
        "qoi": _saved(alpha, "QOI"),
        "arithmetic": jpeg_arithmetic(40, 3),
        "scans": jpeg_scans(40, 5),
        "strips": tiff(30, 40),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made[f"tiff {compression}"] = _saved(color, "TIFF", compression=compression)
    made["pages"] = _saved(color, "TIFF", **several)
    made["deep tiff"] = _saved(deep, "TIFF")
    values = np.asarray(draw(3, (40, 30))).astype(np.uint16) * 257
    made["tiles"] = tiffs.made(values, photometric=2, packing=5, predictor=2, tile=(16, 16))
    made["twelve bits"] = tiffs.made(values[..., 0] >> 4, bits=12, packing=32773, rows=4)
    made["parts"] = tiffs.made(values / np.float32(65535), photometric=2, packing=8, predictor=3)
    preview = tiffs.page(np.asarray(other), photometric=2, tags={254: [1]})
    made["preview"] = tiffs.tiff(preview, tiffs.page(values, photometric=2), big=True)
    made["float tiff"] = _saved(gray.convert("F"), "TIFF")
    return made


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    if several := options.get("append_images"):
        options["append_images"] = [one.copy() for one in several]
    image.copy().save(target, kind, **options)  # the saved object keeps what a format set
    return target.getvalue()


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The picture after one to four damages; `others` are what it may be mixed with."""
    for _ in range(chance.randint(1, 4)):
        if data:
            data = chance.choice(_DAMAGES)(data, others, chance)
    return _checked(data) if chance.random() < 0.7 else data


def _checked(data: bytes) -> bytes:
    """A PNG whose checksums are right, so that its damage is met behind them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    made, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        made[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(made[: len(data)])


Damage = Callable[[bytes, list[bytes], random.Random], bytes]


def _spot(data: bytes, chance: random.Random) -> int:
    """A position, more often than not in what may be a header."""
    return chance.randrange(min(len(data), chance.choice((32, 200, len(data)))))


def _flip(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _bit in range(chance.choice((1, 1, 3, 30))):
        changed[_spot(data, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _number(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    """A length, a size, an offset or a count becomes an extreme one."""
    size, order = chance.choice((1, 2, 2, 4, 4)), chance.choice(("big", "little"))
    value = (chance.choice(_EXTREMES) + chance.choice((-1, 0, 0, 1))) % 256**size
    at = _spot(data, chance)
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def _cut(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _remove(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    at = _spot(data, chance)
    return data[:at] + data[at + chance.choice((1, 4, 12, 100)) :]


def _insert(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    at = _spot(data, chance)
    return data[:at] + chance.randbytes(chance.choice((1, 4, 12, 100))) + data[at:]


def _repeat(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    """A part comes again and again, as chunks, blocks and scans do."""
    at, length = _spot(data, chance), chance.choice((2, 12, 40, 400))
    return data[:at] + data[at : at + length] * chance.choice((2, 10, 500)) + data[at + length :]


def _splice(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    other = chance.choice(others)
    return data[: _spot(data, chance)] + other[_spot(other, chance) :]


def _head(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Another picture's beginning over ours."""
    length = chance.choice((4, 12, 30, 60))
    return chance.choice(others)[:length] + data[length:]


def _blank(data: bytes, _: list[bytes], chance: random.Random) -> bytes:
    at, length = _spot(data, chance), chance.choice((1, 8, 64, 1000))
    return data[:at] + bytes([chance.choice((0, 255))]) * length + data[at + length :]


_DAMAGES: tuple[Damage, ...] = (
    _flip,
    _flip,
    _number,
    _number,
    _cut,
    _remove,
    _insert,
    _repeat,
    _splice,
    _head,
    _blank,
)
