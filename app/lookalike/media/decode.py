"""Decodes picture files to upright RGB pictures.

Pillow's errors become ours here and nowhere else.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from PIL import (
    ExifTags,
    IcoImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    ImageStat,
    UnidentifiedImageError,
)

from lookalike.errors import (
    DecodeTimeoutError,
    ImageTooLargeError,
    InvalidImageError,
    InvalidParameterError,
    NotAnImageError,
    OutOfMemoryError,
    TooManyPixelsError,
    UnreadableImageError,
    UnsupportedImageError,
    lacks_memory,
)
from lookalike.media import jpeg, tiff
from lookalike.media.deep import to_8_bits
from lookalike.media.jpeg import MOST_SCANS, count_scans
from lookalike.media.mending import mended
from lookalike.records import MOST_RESIZED, Preprocess

# Pillow warns of small damage that it passes over. Nobody could do anything with its lines.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

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
"""Pillow's format -> media type; no other format is read.

Formats whose readers start other programs, follow references or recognize a file by next to
nothing (EPS, PDF, WMF, FITS, TGA, ...) are left out on purpose.
"""

# MPO is opened as JPEG, HEIF by a package of its own, TIFF by a reader of ours.
_OPENED: tuple[str, ...] = tuple(
    name for name in MEDIA_TYPES if name not in ("MPO", "HEIF", "TIFF")
)

_SIGNATURES = (
    jpeg.START,
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    *tiff.SIGNATURES,
    b"\x00\x00\x00\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"qoif",
)
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_GENERIC_BRANDS = frozenset((b"mif1", b"msf1"))

_heif_lock = threading.Lock()
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_NEEDED_PER_PIXEL = 20  # bytes that the hungriest format (JPEG 2000) takes while it is decoded
_SPARE_BYTES = 2**24
_NO_MEMORY = (
    "There is too little memory to decode this picture: try again in a moment, or send a smaller "
    "version of it"
)
_UNSUPPORTED = re.compile(r"(?i)unsupported|not (yet )?supported|cannot handle")  # Pillow's words
_UNKNOWN_PIXELS = 2**23  # taken for a picture whose header could not be read
DEEP_MODES = frozenset(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"))
ALPHA_MODES = frozenset(("RGBA", "LA", "PA", "La", "RGBa"))
_SECONDS = {"jpeg2k": 0.5, "qoi": 1.0, "bmp_rle": 0.3, "ppm": 1.2, "ppm_plain": 1.0, "samples": 0.1}
"""What a megapixel takes at most, by Pillow's name of the codec; others take `_USUAL_S`."""
_USUAL_S = 0.03
Crop = tuple[float, float, float, float]
"""A part of a picture, in fractions of its upright width and height: left, top, width, height."""

_ROUNDED = 1e-6  # that sums of fractions may be above 1
_FAINT = 16.0  # contrast with the background, of 255: below it a picture is nearly blank


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How large a picture may be, and how long it may take.

    Attributes:
        max_bytes: Of the file.
        max_pixels: Width times height, as the header claims. Above 178,956,970 Pillow's own
            bound holds.
        max_seconds: Of CPU time to decode it in; `ImageDecoder` sees to it.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    max_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A picture ready to be resized.

    Attributes:
        image: RGB, upright; perhaps at reduced size.
        width: Of the original in pixels, EXIF orientation applied; `height` likewise.
        media_type: E.g. `image/jpeg`, read from the bytes.
        thumbnail: A small JPEG file, if one was asked for.
    """

    image: Image.Image
    width: int
    height: int
    media_type: str
    thumbnail: bytes | None = None


def check_bytes(source: bytes | BinaryIO, *, limits: ImageLimits) -> None:
    """Raises `ImageTooLargeError` for too many bytes, and `NotAnImageError` for none at all."""
    size = len(source) if isinstance(source, bytes) else source.seek(0, io.SEEK_END)
    if size > limits.max_bytes:
        raise ImageTooLargeError(
            f"The file has {size:,} bytes and the limit is {limits.max_bytes:,}: "
            "send a smaller version of the picture"
        )
    if size == 0:
        raise NotAnImageError("The file is empty; send the bytes of a picture")


def check_crop(crop: Crop) -> Crop:
    """Gives a part of a picture back. Raises `InvalidParameterError` if it is none."""
    left, top, width, height = crop
    ends = (left + width, top + height)
    inside = min(left, top) >= 0 and max(ends) <= 1 + _ROUNDED
    if not (all(map(math.isfinite, crop)) and inside and min(width, height) > 0):
        shown = ",".join(f"{one:g}" for one in crop)
        raise InvalidParameterError(
            f"crop is {shown}, which is no part of a picture; give left, top, width and height in "
            "fractions of it, e.g. 0.25,0,0.5,1 for the middle half"
        )
    return crop


def crop_box(crop: Crop, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a part of a picture of a size: left, top, right, bottom; at least one."""
    box = []
    for start, share, pixels in zip(crop[:2], crop[2:], size, strict=True):
        first = min(round(start * pixels), pixels - 1)
        box.append((first, min(max(first + 1, round((start + share) * pixels)), pixels)))
    (left, right), (top, bottom) = box
    return left, top, right, bottom


def decode_image(
    source: bytes | BinaryIO,
    *,
    limits: ImageLimits,
    decode_size: int,
    preprocess: Preprocess | None = None,
    thumbnail: bool = False,
    crop: Crop | None = None,
) -> DecodedImage:
    """Decodes one picture: upright, RGB, transparency on a background, the first frame.

    Args:
        source: The file's bytes, or a seekable stream of them that is read from its start.
        limits: How large a picture may be.
        decode_size: In pixels; a JPEG file may be decoded at a reduced size whose sides are both
            at least this long.
        preprocess: If given, a larger picture is resized to the size that this names, which is
            the first step of what `Encoder.prepare` does and leaves its result as it is.
        thumbnail: Whether one is made, too.
        crop: The part of the picture that is wanted, its sides at least `decode_size` long if the
            file has as many pixels; the answer's width and height stay those of the whole picture.

    Raises:
        ImageTooLargeError: More bytes than the limit allows.
        TooManyPixelsError: The header claims more pixels than the limit allows.
        DecodeTimeoutError: The file says itself that decoding it would take very long.
        NotAnImageError: Not a picture in a format that is read here.
        UnreadableImageError: A picture, but truncated or broken.
        OutOfMemoryError: Too little memory; the picture may be fine.
    """
    decoded = decode_if_quick(
        source,
        limits=limits,
        decode_size=decode_size,
        preprocess=preprocess,
        thumbnail=thumbnail,
        crop=crop,
        expected_s=math.inf,
    )
    assert decoded is not None
    return decoded


def decode_if_quick(
    source: bytes | BinaryIO,
    *,
    limits: ImageLimits,
    decode_size: int,
    preprocess: Preprocess | None = None,
    thumbnail: bool = False,
    crop: Crop | None = None,
    expected_s: float,
) -> DecodedImage | None:
    """As `decode_image`; None if by its header the picture takes more than `expected_s`."""
    check_bytes(source, limits=limits)
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    decode = partial(
        _decode_opened,
        limits=limits,
        decode_size=decode_size,
        preprocess=preprocess,
        thumbnail=thumbnail,
        crop=crop,
        expected_s=expected_s,
    )
    while True:
        try:
            return decode(stream)
        except (NotAnImageError, UnreadableImageError):
            if (another := mended(stream)) is None:
                raise
            stream = another


def _decode_opened(
    stream: BinaryIO,
    *,
    limits: ImageLimits,
    decode_size: int,
    preprocess: Preprocess | None,
    thumbnail: bool,
    crop: Crop | None,
    expected_s: float,
) -> DecodedImage | None:
    with open_image(stream, limits=limits) as image:
        media_type = MEDIA_TYPES[image.format or ""]
        if expected_seconds(image, stream) > expected_s:
            return None
        width, height = image.size  # TIFF is turned here already
        if crop is not None:
            decode_size = math.ceil(decode_size / min(crop[2:]))
        image.draft(None, (decode_size, decode_size))
        image.load()
        turn = turn_of(image)
        rgb = to_rgb(image if turn is None else image.transpose(turn))
        if crop is not None:
            rgb = rgb.crop(crop_box(crop, rgb.size))
        small = make_thumbnail(rgb) if thumbnail else None
        if preprocess is not None:
            rgb = _reduced(rgb, preprocess)
    if turn in _ON_ITS_SIDE:
        width, height = height, width
    return DecodedImage(
        image=rgb, width=width, height=height, media_type=media_type, thumbnail=small
    )


def _reduced(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    width, height = preprocess.resized(image.size)
    pixels = image.width * image.height
    if width * height > min(pixels, MOST_RESIZED) or image.size == (width, height):
        return image
    filter = Image.Resampling[preprocess.interpolation.upper()]
    return image.resize((width, height), filter)


def expected_seconds(image: Image.Image, stream: BinaryIO) -> float:
    """How long an opened picture takes at most to decode, roughly, on a core of today.

    Raises `DecodeTimeoutError` for a JPEG file of more scans than any program writes.
    """
    megapixels = image.width * image.height / 1e6
    if image.format not in ("JPEG", "MPO"):
        codec = image.tile[0][0] if isinstance(image, ImageFile.ImageFile) and image.tile else ""
        return megapixels * _SECONDS.get(codec, _USUAL_S)
    at = stream.tell()
    stream.seek(0)
    scans = count_scans(stream.read())
    stream.seek(at)
    if scans > MOST_SCANS:
        raise DecodeTimeoutError(
            f"The JPEG file has more than {MOST_SCANS} scans, which would take very long to "
            "decode: save it again as an ordinary JPEG"
        )
    return megapixels * (0.004 + (0.002 * scans if image.info.get("progressive") else 0.0))


@contextmanager
def open_image(stream: BinaryIO, *, limits: ImageLimits) -> Iterator[Image.Image]:
    """Opens a picture and closes it after the block, in which Pillow's errors become ours.

    Reads the header alone and refuses by it, before memory is taken for the pixels. Raises as
    `decode_image`.
    """
    stream.seek(0)
    head = stream.read(64)
    sizes: list[tuple[int, int]] = []
    with (
        _translated(head, sizes, limits=limits),
        _read_header(stream, head, limits=limits) as image,
    ):
        sizes.append(image.size)
        yield image


def _read_header(stream: BinaryIO, head: bytes, *, limits: ImageLimits) -> Image.Image:
    heif = _is_heif(head)
    if heif:
        register_heif()
    if head.startswith(b"\x00\x00\x01\x00"):
        _check_pixels(_icon_size(stream), limits=limits)
    if head.startswith(tiff.SIGNATURES):
        image = Image.open(tiff.at_main_page(stream), formats=(tiff.FORMAT,))
    else:
        image = Image.open(stream, formats=("HEIF",) if heif else _OPENED)
    _check_pixels(image.size, limits=limits)
    return image


@contextmanager
def _translated(
    head: bytes, sizes: list[tuple[int, int]], *, limits: ImageLimits
) -> Iterator[None]:
    """Turns Pillow's errors into ours; `sizes` holds the picture's size once that is known."""
    try:
        yield
    except InvalidImageError:
        raise
    except _BOMBS as exc:
        raise _too_many_pixels(limits) from exc
    except UnidentifiedImageError as exc:
        if _starts_like_a_picture(head):
            if _memory_is_short(sizes):
                raise OutOfMemoryError(_NO_MEMORY) from exc
            raise UnreadableImageError(
                "The file starts like a picture but its header is truncated or broken: "
                "send it again from an intact copy"
            ) from exc
        known = ", ".join(sorted(MEDIA_TYPES))
        raise NotAnImageError(
            f"The file is not a picture in a format that is read here ({known})"
        ) from exc
    except Exception as exc:
        if lacks_memory(exc) or _memory_is_short(sizes):
            raise OutOfMemoryError(_NO_MEMORY) from exc
        why = " ".join(str(exc).split()) or type(exc).__name__
        if _UNSUPPORTED.search(why):
            raise UnsupportedImageError(
                f"The picture is of a kind that is not read here ({why}), or its header is broken: "
                "save it again as ordinary JPEG or PNG"
            ) from exc
        raise UnreadableImageError(
            f"The picture cannot be decoded ({why}): it is truncated or broken; send it again from "
            "an intact copy"
        ) from exc


def _memory_is_short(sizes: list[tuple[int, int]]) -> bool:
    """Whether memory for decoding a picture cannot be had: libraries may call that broken data."""
    pixels = max((width * height for width, height in sizes), default=_UNKNOWN_PIXELS)
    try:
        mmap.mmap(-1, _NEEDED_PER_PIXEL * pixels + _SPARE_BYTES).close()  # reserved, not touched
    except OSError:
        return True
    return False


def _starts_like_a_picture(head: bytes) -> bool:
    """Whether the first bytes are a picture's signature, so that the rest must be damaged."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(_SIGNATURES) or webp or (head[4:8] == b"ftyp" and b"avif" in head)


def _is_heif(head: bytes) -> bool:
    """Whether the first bytes announce a HEIC file; AVIF files use the same container."""
    if head[4:8] != b"ftyp":
        return False
    brand = head[8:12]
    return brand in _HEIC_BRANDS or (
        brand in _GENERIC_BRANDS and b"avif" not in head and b"avis" not in head
    )


def _icon_size(stream: BinaryIO) -> tuple[int, int]:
    """Reads width and height of the largest picture inside an icon, as that picture claims.

    Pillow decodes icons while it opens them, and their directory says 256 pixels at most,
    whatever the picture inside claims.
    """
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
    """Teaches Pillow to read HEIC; raises `NotAnImageError` if no package that does is there."""
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


def _too_many_pixels(limits: ImageLimits) -> TooManyPixelsError:
    return TooManyPixelsError(
        f"The picture has more than {limits.max_pixels:,} pixels, which is the limit: "
        "send a smaller version of it"
    )


def _check_pixels(size: tuple[int, int], *, limits: ImageLimits) -> None:
    if size[0] * size[1] > limits.max_pixels:
        raise _too_many_pixels(limits)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What shows a loaded picture upright, by its EXIF data; None if it is, or they are broken."""
    if image.format == "TIFF":
        return None  # Pillow has turned it while loading
    try:
        return _TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:
        return None


def make_thumbnail(image: Image.Image, *, size: int = 256) -> bytes:
    """Draws a small JPEG of an RGB picture: at most `size` pixels long, never enlarged."""
    scale = size / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.HAMMING, reducing_gap=2.0)
    else:
        small = image.copy()
    small.info = {}
    target = io.BytesIO()
    small.save(target, "JPEG", quality=85)
    return target.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns a loaded picture of any mode into RGB; ValueError if Pillow knows no way.

    Transparency is laid on white, or on black if the picture would be nearly blank on white.
    More than 8 bits are scaled down to 8, not clipped. Color profiles are not applied.
    """
    if image.mode in DEEP_MODES:
        return _deep_to_rgb(image)
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return _on_background(with_alpha(image))
    if image.mode != "RGB":
        image = image.convert("RGB")
    image.info = {}
    return image


def _on_background(image: Image.Image) -> Image.Image:
    """Lays an RGBA picture on white, or on black, see 0023-the-background-of-transparency.md.

    Black is taken if the contrast with white is below `_FAINT` and that with black is more than
    twice as large.
    """
    alpha = image.getchannel("A")
    white = laid_on(image, 255)
    contrast = _contrast(ImageChops.invert(white), alpha)
    if contrast >= _FAINT:
        return white
    black = laid_on(image, 0)
    return black if _contrast(black, alpha) > 2 * contrast else white


def laid_on(image: Image.Image, level: int) -> Image.Image:
    """Lays an RGBA picture on gray of a level, 0 to 255; returns RGB."""
    ground = Image.new("RGBA", image.size, (level, level, level, 255))
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _contrast(difference: Image.Image, alpha: Image.Image) -> float:
    """The root mean square, where `alpha` is not 0, of the channel that differs most, 0 to 255."""
    red, green, blue = difference.split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    content = ImageStat.Stat(most, mask=alpha)
    return float(content.rms[0]) if content.count[0] else 0.0


def with_alpha(image: Image.Image) -> Image.Image:
    """Turns a picture of any mode that has transparency into RGBA."""
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # A 16-bit PNG: its pixels were read down to 8 bits, its transparent color was not.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Scales grayscale of 16 or 32 bits, integer or float, down to 8 bits."""
    import numpy as np  # noqa: PLC0415 - few pictures need it

    values = np.asarray(image)
    gray = to_8_bits(values)
    picture = Image.fromarray(gray)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return _on_background(picture)
