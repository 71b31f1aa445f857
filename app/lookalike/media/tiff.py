"""TIFF pages as scanners, cameras and instruments write them.

Pillow reads samples of up to 8 bits and a few of 16. `TiffPage` reads the others: integers of up to
64 bits and floats, of any number of channels. See 0031-what-deep-samples-mean.md.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from PIL import ExifTags, Image, ImageFile
from PIL import TiffImagePlugin as Tiff

from lookalike.errors import UnsupportedImageError
from lookalike.media.deep import to_8_bits

if TYPE_CHECKING:  # few pictures need numpy: processes that decode start sooner without it
    import numpy as np
    from numpy.typing import NDArray

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FORMAT = "TIFF PAGE"
"""Pillow's name for what opens a `TiffPage`."""

_MOST_PAGES = 64  # that are looked at for the main one
_MOST_SAMPLES = 4096  # of one pixel
_MOST_PADDING = 2**24  # bytes of a strip or tile beyond the pixels of the page

_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _DNG_VERSION, _GDAL_NODATA = 254, 255, 50706, 42113
_SMALLER, _MASK = 1, 4  # of the subfile type
_GRAYS, _RGB, _CMYK, _LAB = (0, 1), 2, 5, 8  # of the photometric interpretation
_WHITE_IS_ZERO = 0
_COLORS = {0: 1, 1: 1, _RGB: 3, _CMYK: 4, _LAB: 3}
_RAW_COLORS = {32803, 34892}  # what a camera's sensor saw
_RAW_PACKING = {32767, 32769, 32770, 34713, 65000, 65535}  # as camera makers pack it
_STORED, _OLD_JPEG, _JPEG, _DEFLATE, _OLD_DEFLATE = 1, 6, 7, 8, 32946
_UNPACKED = {_STORED, 5, _DEFLATE, _OLD_DEFLATE, 32773, 34925, 50000}  # the others by libtiff
_OF_PILLOW = {*_UNPACKED, 2, 3, 4, _OLD_JPEG, _JPEG, 32771, 50001}
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # sample format -> kind of number
_SIZES = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
_ASSOCIATED, _UNASSOCIATED = 1, 2  # of extra samples that are opacity
_DIFFERENCES, _FLOAT_DIFFERENCES = 2, 3  # predictors


class TiffPage(Tiff.TiffImageFile):
    """Pillow's reader, and what it does not read.

    Attributes:
        samples: (H, W, C) as they were, of a loaded page that has more than 8 bits; not turned.
    """

    format = "TIFF"
    samples: NDArray[np.generic] | None = None
    _layout: _Layout | None = None

    def _setup(self) -> None:
        """Reads what the tags say of a page. Raises `UnsupportedImageError`."""
        tags = self.tag_v2
        _check_packing(tags)
        self.samples = self._layout = None
        if _number(tags, Tiff.SAMPLESPERPIXEL, 1) == 1:
            tags[Tiff.PLANAR_CONFIGURATION] = 1  # else Pillow does not invert what it should
        apart = _number(tags, Tiff.PLANAR_CONFIGURATION, 1) == 2
        is_lab = _number(tags, Tiff.PHOTOMETRIC_INTERPRETATION, 0) == _LAB
        if not (_is_deep(tags) or _is_sparse(tags) or (is_lab and apart)):
            try:
                super()._setup()
            except SyntaxError:  # "unknown pixel mode", not for broken tags
                pass
            else:
                self._have_libtiff_read_colors()
                return
        self._layout = layout = _Layout.of(tags)
        self._tile_size = width, height = layout.width, layout.height
        on_its_side = tags.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        self._size = (height, width) if on_its_side else (width, height)
        self._mode = layout.mode
        self.palette = None
        self.use_load_libtiff = False
        self.tile = [ImageFile._Tile("samples", (0, 0, *self._tile_size), 0, None)]
        if Tiff.ICCPROFILE in tags:
            self.info["icc_profile"] = tags[Tiff.ICCPROFILE]

    def _have_libtiff_read_colors(self) -> None:
        """For YCbCr whose channels lie apart, or have two sizes: Pillow expects whole pixels."""
        coarser = _numbers(self.tag_v2, Tiff.YCBCRSUBSAMPLING, 2, 2) != (1, 1)
        apart = _number(self.tag_v2, Tiff.PLANAR_CONFIGURATION, 1) == 2
        if self.mode == "YCbCr" and (coarser or apart):
            self.use_load_libtiff = True
            self._mode = "RGB"
            args = ("RGBX", False, self.tag_v2.offset)
            self.tile = [ImageFile._Tile("libtiff", (0, 0, *self._tile_size), 0, args)]

    def load(self) -> Any:
        """Reads the pixels, and scales them to 8 bits."""
        if self._layout is not None and self.tile:
            assert self.fp is not None
            self.samples = self._layout.read(cast("BinaryIO", self.fp))
            self.im = self._layout.picture(self.samples).im
            self.tile = []
            self.load_end()
        return super().load()


Image.register_open(FORMAT, TiffPage)


def at_main_page(stream: BinaryIO) -> BinaryIO:
    """The file, so that its first page is the main one.

    That is the first page that does not say that it is a smaller copy or a mask, among those in
    turn and those within them, else the largest.

    Raises `UnsupportedImageError` for the raw file of a camera.
    """
    stream.seek(0)
    header = stream.read(16)
    if header.startswith(b"MM\0+"):
        raise _unsupported("of a big-endian BigTIFF file, which is not read here")
    if header[8:10] == b"CR":
        raise _raw()
    header = header[: 16 if header[2:4] == b"+\0" else 8]
    found: list[tuple[bool, int, int]] = []
    first = Tiff.ImageFileDirectory_v2(header).next
    waiting, seen = [first], set[int]()
    while waiting and len(seen) < _MOST_PAGES:
        at = waiting.pop(0)
        if at in seen or at == 0:
            continue
        seen.add(at)
        page = Tiff.ImageFileDirectory_v2(header)
        stream.seek(at)
        page.load(stream)
        _refuse_raw(page)
        pixels = math.prod(_number(page, tag, 0) for tag in (Tiff.IMAGEWIDTH, Tiff.IMAGELENGTH))
        found.append((not _is_copy(page), pixels, at))
        if not _is_copy(page):
            break
        waiting += [*_numbers(page, Tiff.SUBIFD), page.next]
    _, _, main = max(found, key=lambda one: one[:2], default=(True, 0, first))
    if main == first:
        return stream
    stream.seek(len(header))
    order = "<" if header[:1] == b"I" else ">"
    offset = struct.pack(order + ("Q" if len(header) == 16 else "I"), main)
    return io.BytesIO(header[: -len(offset)] + offset + stream.read())


def _is_copy(tags: Tiff.ImageFileDirectory_v2) -> bool:
    kind = _number(tags, _SUBFILE_TYPE, 0)
    return bool(kind & (_SMALLER | _MASK)) or _number(tags, _OLD_SUBFILE_TYPE, 1) == 2


def _refuse_raw(tags: Tiff.ImageFileDirectory_v2) -> None:
    raw = _number(tags, Tiff.PHOTOMETRIC_INTERPRETATION, 0) in _RAW_COLORS
    if raw or _DNG_VERSION in tags or _number(tags, Tiff.COMPRESSION, 1) in _RAW_PACKING:
        raise _raw()


def _raw() -> UnsupportedImageError:
    return UnsupportedImageError(
        "This is the raw file of a camera, which is not read here: export it as JPEG or TIFF"
    )


def _check_packing(tags: Tiff.ImageFileDirectory_v2) -> None:
    packing = _number(tags, Tiff.COMPRESSION, 1)
    if packing not in _OF_PILLOW:
        raise _unsupported(f"packed by a method that is not read here (number {packing})")


def _unsupported(what: str) -> UnsupportedImageError:
    return UnsupportedImageError(
        f"The TIFF page is {what}: save it as PNG, or as TIFF with LZW and 8 or 16 bits a channel"
    )


def _numbers(tags: Tiff.ImageFileDirectory_v2, tag: int, *default: int) -> tuple[int, ...]:
    """The integers of a tag; ValueError if it holds something else."""
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(one, int) for one in values):
        raise ValueError(f"the tag {tag} is no number")
    return values


def _number(tags: Tiff.ImageFileDirectory_v2, tag: int, default: int) -> int:
    return _numbers(tags, tag, default)[0]


def _is_deep(tags: Tiff.ImageFileDirectory_v2) -> bool:
    """Whether there are more than 8 bits, or numbers that may be negative."""
    kinds = _numbers(tags, Tiff.SAMPLEFORMAT, 1)
    return max(_numbers(tags, Tiff.BITSPERSAMPLE, 1)) > 8 or not {1, 4}.issuperset(kinds)


def _is_sparse(tags: Tiff.ImageFileDirectory_v2) -> bool:
    """Whether strips or tiles are left out on purpose, as GDAL does."""
    tag = Tiff.TILEOFFSETS if Tiff.TILEOFFSETS in tags else Tiff.STRIPOFFSETS
    return 0 in _numbers(tags, tag) and _number(tags, Tiff.COMPRESSION, 1) in _UNPACKED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How the samples of a page lie in the file."""

    tags: Tiff.ImageFileDirectory_v2
    width: int
    height: int
    bits: int
    kind: str  # of number: u, i or f
    samples: int  # of each pixel
    colors: int  # how many of them are color
    alpha: int  # what the next one is: 0 for no opacity
    photometric: int

    @classmethod
    def of(cls, tags: Tiff.ImageFileDirectory_v2) -> _Layout:
        """Raises `UnsupportedImageError`; KeyError or ValueError where tags are broken."""
        photometric = _number(tags, Tiff.PHOTOMETRIC_INTERPRETATION, 0)
        samples = _number(tags, Tiff.SAMPLESPERPIXEL, 1)
        bits, kinds = (
            set(_numbers(tags, tag, 1)[:samples]) for tag in (Tiff.BITSPERSAMPLE, Tiff.SAMPLEFORMAT)
        )
        kind = _KINDS.get(min(kinds), "")
        if photometric not in _COLORS or (photometric == _LAB and kind == "f"):
            raise _unsupported(f"in colors that are not read here (number {photometric})")
        most = max(bits)
        odd = kind == "u" and 0 < most < 16
        if len(bits) > 1 or len(kinds) > 1 or not (odd or most in _SIZES.get(kind, ())):
            raise _unsupported("of numbers that are not read here, such as complex or mixed ones")
        if _number(tags, Tiff.COMPRESSION, 1) not in _UNPACKED:
            raise _unsupported(f"packed in a way that is not read here with {most} bits a channel")
        if _number(tags, Tiff.FILLORDER, 1) != 1:
            raise _unsupported("written with its bits in reverse order")
        colors = _COLORS[photometric]
        if not colors <= samples <= _MOST_SAMPLES:
            raise ValueError(f"{samples} samples cannot be {colors} colors")
        extra = _numbers(tags, Tiff.EXTRASAMPLES)
        if not extra and (photometric, samples) == (_RGB, 4):
            extra = (_UNASSOCIATED,)  # as Pillow takes it
        return cls(
            tags=tags,
            width=_positive(tags, Tiff.IMAGEWIDTH),
            height=_positive(tags, Tiff.IMAGELENGTH),
            bits=most,
            kind=kind,
            samples=samples,
            colors=colors,
            alpha=extra[0] if extra[:1] in ((_ASSOCIATED,), (_UNASSOCIATED,)) else 0,
            photometric=photometric,
        )

    @property
    def mode(self) -> str:
        """Pillow's, of what `picture` gives."""
        if self.photometric == _CMYK:
            return "CMYK"
        if self.photometric == _LAB:
            return "LAB"
        return ("L" if self.colors == 1 else "RGB") + ("A" if self.has_alpha else "")

    @property
    def has_alpha(self) -> bool:
        """Whether the sample behind the colors is opacity."""
        return self.alpha > 0 and self.samples > self.colors and self.photometric in (*_GRAYS, _RGB)

    def read(self, file: BinaryIO) -> NDArray[np.generic]:
        """The colors, and the opacity if there is one: (H, W, C). OSError if some are missing."""
        import numpy as np  # noqa: PLC0415 - see the top

        kept = self.colors + self.has_alpha
        order = "<" if self.tags.prefix == b"II" else ">"
        stored = np.dtype(f"{order}{self.kind}{self.bits // 8}" if self.is_whole else "u2")
        pixels = np.zeros((self.height, self.width, kept), stored.newbyteorder("="))
        for x, y, channel, data, (rows, columns, channels) in self._blocks(file):
            if channel >= kept:
                break
            target = pixels[y : y + rows, x : x + columns, channel : channel + channels]
            if data is None:  # where a sparse file holds nothing
                with contextlib.suppress(ValueError, OverflowError):  # no integer can be that
                    target[...] = self.nodata or 0
                continue
            block = self._values(data, (rows, columns, channels), stored)
            target[...] = block[: target.shape[0], : target.shape[1], : target.shape[2]]
        return pixels

    @property
    def is_whole(self) -> bool:
        """Whether each sample is whole bytes."""
        return self.bits in (8, 16, 32, 64)

    @property
    def nodata(self) -> float | None:
        """The value that says that nothing is known."""
        try:
            return float(str(self.tags.get(_GDAL_NODATA, "")).strip("\0 "))
        except ValueError:
            return None

    def _blocks(
        self, file: BinaryIO
    ) -> Iterator[tuple[int, int, int, bytes | None, tuple[int, int, int]]]:
        """Strips or tiles: left, top, first channel, bytes, and how many rows, columns, channels.

        The bytes are None for one that is not in the file on purpose.
        """
        tags = self.tags
        tiled = Tiff.TILEOFFSETS in tags
        columns = _positive(tags, Tiff.TILEWIDTH) if tiled else self.width
        rows = _positive(tags, Tiff.TILELENGTH if tiled else Tiff.ROWSPERSTRIP, 2**32 - 1)
        if not tiled:
            rows = min(rows, self.height)
        offsets = _numbers(tags, Tiff.TILEOFFSETS if tiled else Tiff.STRIPOFFSETS)
        counts = _numbers(tags, Tiff.TILEBYTECOUNTS if tiled else Tiff.STRIPBYTECOUNTS)
        apart = _number(tags, Tiff.PLANAR_CONFIGURATION, 1) == 2
        channels = 1 if apart else self.samples
        row = math.ceil(columns * channels * self.bits / 8)
        if (
            rows * row
            > self.height * math.ceil(self.width * channels * self.bits / 8) + _MOST_PADDING
        ):
            raise ValueError("its tiles are larger than the page")
        tops, lefts = range(0, self.height, rows), range(0, self.width, columns)
        planes = range(self.samples) if apart else (0,)
        spots = ((x, y, channel) for channel in planes for y in tops for x in lefts)
        for number, (x, y, channel) in enumerate(spots):
            if number >= len(offsets):
                raise OSError("the TIFF file is truncated: strips or tiles are missing")
            height = rows if tiled else min(rows, self.height - y)
            count = counts[number] if number < len(counts) else height * row
            shape = (height, columns, channels)
            if offsets[number] == count == 0:
                yield x, y, channel, None, shape
                continue
            file.seek(offsets[number])
            yield x, y, channel, self._unpacked(file, count, height * row), shape

    def _unpacked(self, file: BinaryIO, count: int, size: int) -> bytes:
        packing = _number(self.tags, Tiff.COMPRESSION, 1)
        packed = file.read(size if packing == _STORED else count)
        if packing == _STORED:
            data = packed
        elif packing in (_DEFLATE, _OLD_DEFLATE):
            data = zlib.decompressobj().decompress(packed, size)
        else:
            with Image.open(io.BytesIO(_as_file(packed, packing, size)), formats=("TIFF",)) as row:
                data = row.tobytes()
        if len(data) < size:
            raise OSError("the TIFF file is truncated: a strip or tile is cut short")
        return data

    def _values(
        self, data: bytes, shape: tuple[int, int, int], stored: np.dtype[Any]
    ) -> NDArray[np.generic]:
        import numpy as np  # noqa: PLC0415 - see the top

        rows, columns, channels = shape
        predictor = _number(self.tags, Tiff.PREDICTOR, 1)
        if _number(self.tags, Tiff.COMPRESSION, 1) in (_STORED, 32773):
            predictor = 1
        if not self.is_whole:
            bits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(rows, -1), axis=1)
            bits = bits[:, : columns * channels * self.bits].reshape(*shape, self.bits)
            return bits @ (1 << np.arange(self.bits - 1, -1, -1)).astype(np.uint16)
        if predictor == _FLOAT_DIFFERENCES:
            parts = np.frombuffer(data, np.uint8).reshape(rows, -1, channels)
            parts = parts.cumsum(axis=1, dtype=np.uint8).reshape(rows, self.bits // 8, -1)
            whole = np.ascontiguousarray(parts.transpose(0, 2, 1))
            return whole.view(stored.newbyteorder(">")).reshape(shape)
        values = np.frombuffer(data, stored).reshape(shape)
        if predictor == _DIFFERENCES:
            unsigned = f"u{self.bits // 8}"
            whole = values.view(stored.str[0] + unsigned).astype(unsigned)
            values = whole.cumsum(axis=1, dtype=whole.dtype).view(stored.newbyteorder("="))
        return values

    def picture(self, samples: NDArray[np.generic]) -> Image.Image:
        """Scales what `read` gave to 8 bits a channel."""
        import numpy as np  # noqa: PLC0415 - see the top

        if self.mode == "LAB":
            lab = (samples.astype(f"u{self.bits // 8}") >> (self.bits - 8)).astype(np.uint8)
            lab[..., 1:] ^= 128  # signed in the file, and not in Pillow
            return Image.merge("LAB", _bands(lab))
        colors = to_8_bits(samples[..., : self.colors], nodata=self.nodata)
        if self.photometric == _WHITE_IS_ZERO:
            colors = 255 - colors
        if self.has_alpha:
            full = 1.0 if self.kind == "f" else 2.0**self.bits - 1
            alpha = (samples[..., self.colors :].astype(np.float32) / full).clip(0, 1) * 255
            colors = np.concatenate([colors, alpha.round().astype(np.uint8)], axis=2)
        bands = _bands(colors)
        if len(bands) == 1:
            return bands[0]
        if self.has_alpha and self.alpha == _ASSOCIATED:
            return Image.merge("La" if self.colors == 1 else "RGBa", bands).convert(self.mode)
        return Image.merge(self.mode, bands)


def _bands(pixels: NDArray[np.uint8]) -> list[Image.Image]:
    import numpy as np  # noqa: PLC0415 - see the top

    return [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0)]


def _positive(tags: Tiff.ImageFileDirectory_v2, tag: int, *default: int) -> int:
    value = _numbers(tags, tag, *default)
    if len(value) != 1 or value[0] < 1:
        raise ValueError(f"the tag {tag} is missing or broken")
    return value[0]


def _as_file(packed: bytes, packing: int, size: int) -> bytes:
    """A TIFF file of one row of `size` bytes, so that libtiff unpacks it."""
    tags = {
        Tiff.IMAGEWIDTH: size,
        Tiff.IMAGELENGTH: 1,
        Tiff.BITSPERSAMPLE: 8,
        Tiff.COMPRESSION: packing,
        Tiff.PHOTOMETRIC_INTERPRETATION: 1,
        Tiff.STRIPOFFSETS: 8,
        Tiff.ROWSPERSTRIP: 1,
        Tiff.STRIPBYTECOUNTS: len(packed),
    }
    page = struct.pack("<H", len(tags))
    page += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    packed += bytes(len(packed) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + page + bytes(4)
