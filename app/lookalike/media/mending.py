"""Another try at a file that Pillow does not read, without what is damaged beside its pixels."""

from __future__ import annotations

import io
import re
import zlib
from typing import BinaryIO

from lookalike.errors import NotAnImageError, UnsupportedImageError
from lookalike.media import jpeg

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_WEBP_PIXELS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF"))
_WEBP_ALPHA_AND_ANIMATION, _WEBP_EXIF = 0x12, 0x08  # flags of VP8X
_MOST_BEFORE = 4096  # bytes before a JPEG file

_OTHER_KINDS = (
    ("a Photoshop file", rb"8BPS"),
    ("a PDF document", rb"%PDF"),
    ("a PostScript drawing", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("an SVG drawing", rb"(?i:.{0,400}<svg[\s>])"),
    ("a web page", rb"(?i:\s*<(!doctype html|html|head))"),
    ("a JPEG XL picture", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("a JPEG XR picture", rb"II\xbc"),
    ("a JPEG-LS picture", rb"\xff\xd8\xff\xf7"),
    (
        "the raw file of a camera",
        rb"FUJIFILMCCD-RAW|\0MR[IM]|FOVb|II(RO|RS|U\0)|II\x1a\0\0\0HEAPCCDR|....ftypcrx ",
    ),
    (
        "a video",
        rb"....ftyp(isom|iso\d|mp4\d|avc1|qt  |M4V|3g|dash)|\x1aE\xdf\xa3|RIFF....AVI "
        rb"|\0\0\x01[\xb3\xba]",
    ),
    ("a DICOM file", rb".{128}DICM"),
    ("a FITS file", rb"SIMPLE  ="),
    ("an OpenEXR picture", rb"v/1\x01"),
    ("a Radiance HDR picture", rb"#\?(RADIANCE|RGBE)"),
    ("a GIMP file", rb"gimp xcf"),
    ("a DjVu document", rb"AT&TFORM"),
    ("a DirectDraw surface", rb"DDS "),
    ("an Apple icon", rb"icns"),
    ("a Windows cursor", rb"\0\0\x02\0[^\0]\0"),
    ("a Windows metafile", rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF"),
    ("a PAM or PFM picture", rb"P7\n|PF\n"),
    ("a zip file", rb"PK\x03\x04"),
)


def mended(stream: BinaryIO) -> BinaryIO | None:
    """The file without the metadata of a PNG or WebP, or the bytes before a JPEG, or with its end.

    None if there is nothing to leave out or to add. An end is added only if no pixel is missing.

    Raises:
        NotAnImageError: It is known what the file is, and that is not read here.
        UnsupportedImageError: Likewise for a kind of JPEG or PNG.
    """
    stream.seek(0)
    data = stream.read()
    if data[12:16] == b"CgBI":
        raise UnsupportedImageError(
            "This is a PNG file made for iPhones, which is not read here: save it again as PNG"
        )
    if data.startswith(_PNG) or data[8:12] == b"WEBP":
        kept = _png_pixels(data) if data.startswith(_PNG) else _webp_pixels(data)
        return None if kept == data else io.BytesIO(kept)
    for what, pattern in _OTHER_KINDS:
        if re.match(pattern, data[:512], re.DOTALL):
            raise NotAnImageError(
                f"This is {what}, which is not read here: save the picture in it as JPEG or PNG"
            )
    if data[4:8] == b"ftyp" or data[:4] == b"RIFF":  # which may hold JPEG files
        return None
    start = data.find(jpeg.START, 0, _MOST_BEFORE + len(jpeg.START))
    if start < 0:
        return None
    if start > 0:
        return io.BytesIO(data[start:])
    jpeg.check_kind(data)
    whole = jpeg.with_end(data)
    return None if whole is None else io.BytesIO(whole)


def _png_pixels(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 4 : end - 4]
        sound = data[end - 4 : end] == zlib.crc32(body).to_bytes(4)
        if name in _PNG_PIXELS or (name == b"eXIf" and sound):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _webp_pixels(data: bytes) -> bytes:
    """The chunks of pixels that are there as a whole, and EXIF data if they are."""
    kept, at, flags = [b"WEBP"], 12, 0
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        end += end % 2
        name = data[at : at + 4]
        if name in _WEBP_PIXELS and end <= len(data) + 1:
            kept.append(data[at:end].ljust(end - at, b"\0"))
            flags |= _WEBP_EXIF if name == b"EXIF" else 0
        at = end
    if len(kept) > 1 and kept[1].startswith(b"VP8X") and len(kept[1]) > 8:
        kept[1] = (
            kept[1][:8] + bytes([kept[1][8] & _WEBP_ALPHA_AND_ANIMATION | flags]) + kept[1][9:]
        )
    whole = b"".join(kept)
    return b"RIFF" + len(whole).to_bytes(4, "little") + whole
