"""What the markers of a JPEG file say, read without decoding it."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image

from lookalike.errors import UnsupportedImageError

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
MOST_SCANS = 128  # of a file; those that programs write have at most a few dozen

_PLAIN_PIXELS = 16_000_000
_PLAIN_BYTES = 8_000_000
_PLAIN_HEADER_BYTES = 131_072
_PLAIN_SEGMENTS = 100
_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))  # and metadata
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_BARE = frozenset((0x01, 0xD8, 0xD9))  # markers that bring nothing with them
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_PROGRESSIVE = frozenset((0xC2, 0xCA))
_READ_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))  # the others: lossless and hierarchical
_FILLERS = (bytes(range(1, 251)), bytes(range(250, 0, -1)))


def is_plain_jpeg(data: bytes) -> bool:
    """Whether this is a baseline JPEG file of one scan and of moderate size, as cameras write it.

    It takes no more than a few tenths of a second to decode, whatever is behind its header.
    """
    if not data.startswith(b"\xff\xd8") or len(data) > _PLAIN_BYTES:
        return False
    at, components = 2, 0
    for _ in range(_PLAIN_SEGMENTS):
        segment = data[at : at + 12]
        if len(segment) < 12 or segment[0] != 0xFF or at > _PLAIN_HEADER_BYTES:
            return False
        marker, length = segment[1], int.from_bytes(segment[2:4])
        if marker == _SCAN[1]:  # all components together, so libjpeg reads no other scan
            return segment[4] == components > 0
        if marker == 0xC0 and not components:
            height, width, components = struct.unpack(">HHB", segment[5:10])
            if width * height > _PLAIN_PIXELS:
                return False
        elif marker not in _TABLES or length < 2:
            return False
        at += 2 + length
    return False


def count_scans(data: bytes) -> int:
    """How many scans there are, each of which visits every block; `MOST_SCANS` + 1 at most.

    Thumbnails inside of the file may be counted, unless that makes too many.
    """
    scans = data.count(_SCAN)
    if scans <= MOST_SCANS:
        return scans
    scans = 0
    for marker, _ in _segments(data):
        scans += marker == _SCAN[1]
        if scans > MOST_SCANS:
            break
    return scans


def check_kind(data: bytes) -> None:
    """Raises `UnsupportedImageError` for a kind of JPEG that is not read."""
    for marker, body in _segments(data):
        if marker in _FRAMES:
            bits, components = body[:1], body[5:6]
            if marker not in _READ_FRAMES:
                kind = "that is lossless or hierarchical"
            elif bits != b"\x08":
                kind = "of more than 8 bits"
            elif components not in (b"\1", b"\3", b"\4"):
                kind = "of an unusual number of channels"
            else:
                return
            raise UnsupportedImageError(
                f"This is a JPEG file {kind}, which is not read here: save it again as an ordinary "
                "JPEG, or as PNG"
            )


def with_end(data: bytes) -> bytes | None:
    """The file with the end that it lacks; None if it has one, or lacks more than that.

    Whether every block is there is found by decoding it twice, with something else behind it.
    """
    if data.rfind(END) > data.rfind(_SCAN) or not _has_all_scans(data):
        return None
    data = data.rstrip(b"\0\xff")  # what a download that broke off was filled up with
    pictures = set()
    try:
        for filler in _FILLERS:
            with Image.open(io.BytesIO(data + filler + END), formats=("JPEG",)) as image:
                pictures.add(image.tobytes())
    except OSError:
        return None
    return data + END if len(pictures) == 1 else None


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans say that they bring every bit of every coefficient."""
    components, progressive = 0, False
    left: dict[tuple[int, int], int] = {}  # bits of a component's coefficient that are to come
    for marker, body in _segments(data):
        if marker in _FRAMES and len(body) > 5:
            components, progressive = body[5], marker in _PROGRESSIVE
        if marker == _SCAN[1] and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] :][:3] if progressive else (0, 63, 0)
            for component in body[1 : 1 + 2 * body[0] : 2]:
                for coefficient in range(first, last + 1):
                    left[component, coefficient] = bits & 15
    return len(left) == 64 * components > 0 and not any(left.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment, to the end of the picture."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = found[0][-1], found.end()
        if marker == END[1]:
            return
        length = 0 if marker in _BARE else int.from_bytes(data[at : at + 2])
        yield marker, data[at + 2 : at + length]
        at += length
