"""Which files are taken for pictures.

An allow-list: formats whose readers start other programs, follow references or recognize a file
by next to nothing (EPS, PDF, WMF, FITS, TGA, ...) are left out on purpose.
"""

from __future__ import annotations

import struct
import threading
from typing import BinaryIO

from PIL import IcoImagePlugin, Image

from lookalike.errors import NotAnImageError

MEDIA_TYPES: dict[str, str] = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG file with further pictures behind the first
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
    "ICO": "image/x-icon",
    "PPM": "image/x-portable-anymap",
    "JPEG2000": "image/jp2",
    "QOI": "image/qoi",
}
"""Pillow's format -> media type."""

# MPO is opened as JPEG, HEIF by a package of its own.
OPENED: tuple[str, ...] = tuple(name for name in MEDIA_TYPES if name not in ("MPO", "HEIF"))

_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"qoif",
)
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_GENERIC_BRANDS = frozenset((b"mif1", b"msf1"))

_heif_lock = threading.Lock()


def read_head(stream: BinaryIO) -> bytes:
    """Reads the first 64 bytes, and goes back to the start."""
    stream.seek(0)
    head = stream.read(64)
    stream.seek(0)
    return head


def starts_like_a_picture(head: bytes) -> bool:
    """Whether the first bytes are a picture's signature, so that the rest must be damaged."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(_SIGNATURES) or webp or (head[4:8] == b"ftyp" and b"avif" in head)


def is_heif(head: bytes) -> bool:
    """Whether the first bytes announce a HEIC file; AVIF files use the same container."""
    if head[4:8] != b"ftyp":
        return False
    brand = head[8:12]
    return brand in _HEIC_BRANDS or (
        brand in _GENERIC_BRANDS and b"avif" not in head and b"avis" not in head
    )


def icon_size(stream: BinaryIO) -> tuple[int, int] | None:
    """Reads how large the picture inside an icon claims to be, in pixels.

    Pillow decodes icons while it opens them, and their directory says 256 pixels at most,
    whatever the picture inside claims.

    Returns:
        Width and height of the largest entry, or None where the file is no icon.

    Raises:
        IndexError, struct.error: The directory or the entry is truncated.
    """
    stream.seek(0)
    if stream.read(4) != b"\x00\x00\x01\x00":
        return None
    stream.seek(0)
    stream.seek(IcoImagePlugin.IcoFile(stream).entry[0].offset)
    header = stream.read(24)
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", header[16:24])
    else:
        width, height = struct.unpack("<ii", header[4:12])
        height //= 2  # a mask of the same size follows
    return abs(width), abs(height)


def register_heif() -> None:
    """Teaches Pillow to read HEIC, the first time that a HEIC file comes.

    Raises:
        NotAnImageError: The package that reads HEIC is not installed.
    """
    with _heif_lock:
        if "HEIF" in Image.OPEN:
            return
        try:
            from pillow_heif import register_heif_opener  # noqa: PLC0415  # an optional extra
        except ImportError as exc:
            raise NotAnImageError(
                "This is a HEIC picture, which the service cannot read: install the extra "
                "`heic` (pip install 'lookalike[heic]'), or send it as JPEG"
            ) from exc
        register_heif_opener()
