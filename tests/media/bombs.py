"""Pictures that are small as files, or plain by their headers, and costly to decode.

Each function returns the bytes of one file, whose cost grows with its arguments.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Final

from PIL import Image


class _Bits:
    """Huffman-coded data of a JPEG scan."""

    def __init__(self) -> None:
        self._left, self._count, self.bytes = 0, 0, bytearray()

    def put(self, value: int, bits: int) -> None:
        self._left, self._count = (self._left << bits) | value, self._count + bits
        while self._count >= 8:
            self._count -= 8
            byte = self._left >> self._count & 255
            self.bytes += b"\xff\0" if byte == 255 else bytes([byte])
        self._left &= (1 << self._count) - 1

    def finish(self) -> bytes:
        if self._count:
            self.put((1 << (8 - self._count)) - 1, 8 - self._count)
        return bytes(self.bytes)


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _jpeg_head(frame: int, side: int) -> bytes:
    tables = _segment(0xDB, b"\0" + bytes([16] * 64))
    tables += _segment(frame, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    if frame in (0xC9, 0xCA):  # arithmetic coding has no Huffman tables
        return b"\xff\xd8" + tables
    dc = _segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00")  # code 0: no difference
    ac = _segment(0xC4, b"\x10" + bytes([1, 1] + [0] * 14) + b"\xe0\x00")  # long runs, end of block
    return b"\xff\xd8" + tables + dc + ac


def jpeg_scans(side: int = 2000, scans: int = 2000) -> bytes:
    """A progressive JPEG whose scans say nothing; each visits every block."""
    blocks = ((side + 7) // 8) ** 2
    first = _Bits()
    for _ in range(blocks):
        first.put(0, 1)
    empty, left = _Bits(), blocks
    while left > 0:
        if left >= 2**14:
            run = min(left, 2**15 - 1)
            empty.put(0, 1)
            empty.put(run - 2**14, 14)
            left -= run
        else:
            empty.put(2, 2)
            left -= 1
    scan = _segment(0xDA, b"\1\1\0\1\x3f\0") + empty.finish()
    begin = _jpeg_head(0xC2, side) + _segment(0xDA, b"\1\1\0\0\0\0") + first.finish()
    return begin + scan * scans + b"\xff\xd9"


def jpeg_arithmetic(side: int = 2000, scans: int = 100) -> bytes:
    """As `jpeg_scans`, with arithmetic coding: a few bytes a scan."""
    first = _segment(0xDA, b"\1\1\0\0\0\0") + b"\0\0"
    scan = _segment(0xDA, b"\1\1\0\1\x3f\0") + b"\0\0"
    return _jpeg_head(0xCA, side) + first + scan * scans + b"\xff\xd9"


def jpeg_repeats(side: int = 2000, scans: int = 200) -> bytes:
    """A baseline JPEG of two components, whose scans come again and again."""
    frame = struct.pack(">BHHB", 8, side, side, 2) + b"\1\x11\0\2\x11\0"
    data = b"\0" * ((((side + 7) // 8) ** 2 * 3 + 7) // 8)
    head = _jpeg_head(0xC0, side).replace(
        _segment(0xC0, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"),
        _segment(0xC0, frame),
    )
    # The code 10 of the table above ends a block at once; 0, 10 for each block.
    bits = _Bits()
    for _ in range(((side + 7) // 8) ** 2):
        bits.put(0b010, 3)
    scan = bits.finish() or data
    one, two = (_segment(0xDA, bytes([1, which, 0, 0, 63, 0])) for which in (1, 2))
    return head + (one + scan + two + scan) * (scans // 2) + b"\xff\xd9"


def jpeg_plain(side: int = 8000) -> bytes:
    """A large gray JPEG of a few bits a block."""
    bits = _Bits()
    for _ in range(((side + 7) // 8) ** 2):
        bits.put(0b010, 3)
    return _jpeg_head(0xC0, side) + _segment(0xDA, b"\1\1\0\0\x3f\0") + bits.finish() + b"\xff\xd9"


def qoi_literals(megapixels: float = 4) -> bytes:
    """A QOI of one chunk a pixel; its decoder is Python."""
    side = int((megapixels * 1e6) ** 0.5)
    return struct.pack(">4sIIBB", b"qoif", side, side, 3, 0) + b"\x6a" * side**2 + b"\0" * 7 + b"\1"


def qoi_runs(side: int = 8000) -> bytes:
    """A QOI of 62 pixels a byte."""
    body = b"\xfd" * (side * side // 62 + 1)
    return struct.pack(">4sIIBB", b"qoif", side, side, 3, 0) + body + b"\0" * 7 + b"\1"


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    color: int = 2,
    interlaced: bool = False,
    before: bytes = b"",
    split: int | None = None,
) -> bytes:
    """A black PNG; `before` are chunks in front of its data, which come in parts of `split`."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = bytes(1 + (width * channels * depth + 7) // 8)
    pack = zlib.compressobj(1)
    rows = max(1, 4_000_000 // len(row))
    data = b"".join(pack.compress(row * min(rows, height - at)) for at in range(0, height, rows))
    data += pack.compress(bytes(2 * height + width) if interlaced else b"") + pack.flush()
    parts = [data] if split is None else [data[n : n + split] for n in range(0, len(data), split)]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            png_chunk(b"PLTE", b"\0\0\0") if color == 3 else b"",
            before,
            *(png_chunk(b"IDAT", part) for part in parts),
            png_chunk(b"IEND", b""),
        )
    )


def png_many_chunks(count: int = 1_000_000) -> bytes:
    """A small PNG behind empty chunks that mean nothing."""
    return png(8, 8, before=png_chunk(b"quIz", b"") * count)


def png_many_texts(count: int = 500_000) -> bytes:
    """A small PNG behind short texts."""
    return png(8, 8, before=png_chunk(b"tEXt", b"k\0v") * count)


def png_split(side: int = 3000, split: int = 1) -> bytes:
    """A PNG whose data come a byte a chunk."""
    return png(side, side, split=split)


def gif_comments(count: int = 2_000_000) -> bytes:
    """A GIF with a comment of many blocks before its first frame."""
    small = io.BytesIO()
    Image.new("P", (8, 8)).save(small, "GIF")
    data = small.getvalue()
    at = data.index(b"\x2c\0\0\0\0\x08\0\x08\0")
    return data[:at] + b"\x21\xfe" + b"\x01a" * count + b"\0" + data[at:]


def gif_extensions(count: int = 1_000_000) -> bytes:
    """A GIF with many extensions before its first frame."""
    small = io.BytesIO()
    Image.new("P", (8, 8)).save(small, "GIF")
    data = small.getvalue()
    at = data.index(b"\x2c\0\0\0\0\x08\0\x08\0")
    return data[:at] + b"\x21\xf9\x04\0\0\0\0\0" * count + data[at:]


def bmp_runs(side: int = 3000, *, run: int = 1) -> bytes:
    """A run-length encoded BMP of short runs; its decoder is Python."""
    row = bytes([run, 7]) * (side // run) + b"\0\0"
    body = row * side + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    palette = bytes(1024)
    offset = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset) + header + palette + body


def ppm_text(side: int = 1800) -> bytes:
    """A PPM written as text; its decoder is Python."""
    return b"P3 %d %d 255\n" % (side, side) + b"7 " * (side * side * 3)


def ppm_scaled(side: int = 2500) -> bytes:
    """A PPM of values up to 254, each of which Python scales."""
    return b"P6 %d %d 254\n" % (side, side) + b"\7" * (side * side * 3)


def pgm_bits(side: int = 4000) -> bytes:
    """A PBM written as text."""
    return b"P1 %d %d\n" % (side, side) + b"1" * (side * side)


def tiff(
    width: int,
    height: int,
    *,
    strip: int = 1,
    compression: int = 1,
    data: bytes | None = None,
    tags: int = 0,
) -> bytes:
    """A gray TIFF of one strip for `strip` rows, or all strips with the same `data`."""
    strips = -(-height // strip)
    body = bytes(width * strip) if data is None else data
    rows = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8]),
        (259, 3, [compression]),
        (262, 3, [1]),
        (273, 4, [8] * strips),
        (277, 3, [1]),
        (278, 4, [strip]),
        (279, 4, [len(body)] * strips),
    ]
    rows += [(40_000 + n, 4, [n]) for n in range(tags)]
    at = 8 + len(body)
    values, entries = b"", b""
    for tag, kind, numbers in rows:
        packed = struct.pack(f"<{len(numbers)}{'I' if kind == 4 else 'H'}", *numbers)
        if len(packed) <= 4:
            held = packed.ljust(4, b"\0")
        else:
            held = struct.pack("<I", at + len(values))
            values += packed
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + held
    directory = struct.pack("<H", len(rows)) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", at + len(values)) + body + values + directory


def tiff_strips(count: int = 1_000_000) -> bytes:
    """A TIFF of strips of one pixel."""
    return tiff(1, count)


def icon_entries(count: int = 60_000) -> bytes:
    """An icon whose directory names one picture many times."""
    inner = png(16, 16)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 6 + 16 * count)
    return struct.pack("<HHH", 0, 1, count) + entry * count + inner


def jpeg2000(side: int = 4000, **options: object) -> bytes:
    """A JPEG 2000 of noise; give `tile_size`, `quality_layers`, `num_resolutions`."""
    return encoded("JPEG2000", side, irreversible=False, **options)


def encoded(kind: str, side: int = 2000, **options: object) -> bytes:
    """Noise in a format that Pillow writes."""
    target = io.BytesIO()
    noise = Image.effect_noise((side, side), 90).convert("RGB")
    noise.save(target, kind, **options)
    return target.getvalue()


def flat(kind: str, width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    """One color in a format that Pillow writes."""
    target = io.BytesIO()
    Image.new(mode, (width, height)).save(target, kind, **options)
    return target.getvalue()


BOMBS: Final[dict[str, Callable[[], bytes]]] = {
    "JPEG of 2,000 scans": jpeg_scans,
    "JPEG of 99 scans": lambda: jpeg_scans(8000, 99),
    "arithmetic JPEG of 99 scans": lambda: jpeg_arithmetic(8000, 99),
    "baseline JPEG of 200 scans": jpeg_repeats,
    "JPEG of 64 megapixels": jpeg_plain,
    "QOI of literals": qoi_literals,
    "QOI of runs": qoi_runs,
    "PNG of many chunks": png_many_chunks,
    "PNG of many texts": png_many_texts,
    "PNG in bytes": png_split,
    "PNG of 64 megapixels": lambda: png(8000, 8000),
    "interlaced PNG of 64 megapixels": lambda: png(8000, 8000, interlaced=True),
    "deep PNG of 64 megapixels": lambda: png(8000, 8000, depth=16, color=6),
    "PNG of one column": lambda: png(1, 60_000_000, color=0),
    "PNG of one row": lambda: png(60_000_000, 1),
    "GIF of comments": gif_comments,
    "GIF of extensions": gif_extensions,
    "GIF of 64 megapixels": lambda: flat("GIF", 8000, 8000, "P"),
    "BMP of runs": bmp_runs,
    "PPM as text": ppm_text,
    "PPM to scale": ppm_scaled,
    "PBM as text": pgm_bits,
    "TIFF of strips": tiff_strips,
    "TIFF of tags": lambda: tiff(8, 8, tags=25_000),
    "icon of entries": icon_entries,
    "JPEG 2000": lambda: jpeg2000(2000),
    "JPEG 2000 of tiles": lambda: jpeg2000(1500, tile_size=(8, 8)),
    "WebP of 64 megapixels": lambda: flat("WEBP", 16000, 4000, lossless=True, method=0),
    "WebP of noise": lambda: encoded("WEBP", 2000, lossless=True, method=0),
    "AVIF": lambda: encoded("AVIF", 1500, speed=10),
}
"""Name -> file; seconds to minutes each."""
