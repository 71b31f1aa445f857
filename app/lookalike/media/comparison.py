"""Whether two picture files show the same picture, re-encoded or resized.

People delete by this verdict, so it is yes only if one file can be made out of the other: the
program makes it, and compares. See 0024-one-file-can-be-made-of-the-other.md.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin

from lookalike.media.decode import (
    ALPHA_MODES,
    DEEP_MODES,
    ImageLimits,
    expected_seconds,
    laid_on,
    open_image,
    to_rgb,
    turn_of,
    with_alpha,
)

MAX_FRAMES = 256  # that are compared; longer animations are never the same
MIN_SIDE = 32  # pixels: smaller pictures are the same only if every pixel is
LEAST_SCALE = 0.4  # of a smaller copy's sides: what it cannot show is not known to be the same
PACE_MS = 20.0  # by which the time of a frame may differ

ERROR, LEFT = 1.15, 0.4  # limits of `Evidence.error` and `Evidence.left`
SHIFT = 1.25  # most that a region of 32 pixels may differ by on average, of 255
LOST = 0.5  # most of what the picture shows that the copy's encoding may have erased, as a share
LOST_BY_SIZE = 0.8  # the same, of what the copy's size may have erased
FLAT = 0.1  # most of the picture that may be flat and of another color than before
EVEN = 0.05  # by which `Evidence.left` may differ both ways before it says which file came first
COARSER = 1.25  # times the divisors of the other file, from which on one surely is the coarser
COARSEST, LEAST_QUALITY = 36.0, 60  # of smaller copies: the mean of a JPEG file's first table
LEAST_STRUCTURE = 12  # windows of 8 pixels that show anything

_SHOWS = 25.0  # the variance of a window that shows something
_BY_CONTRAST, _FLOOR = 0.01, 4.0  # error that is always allowed: a share of the variance, and more
_TILE, _OVERLAP = 1024, 32  # multiples of 16, so that the blocks of JPEG lie as in the whole
_PATCHES, _PATCH = 4, 128  # a sample of a picture: so many patches each way, and their sides
_WORST = 30  # the lowest quality that is tried, of formats that do not say it

_FILTERS = (
    Image.Resampling.LANCZOS,
    Image.Resampling.BICUBIC,
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
    Image.Resampling.NEAREST,
)
_INVERSE = {
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}
_LOSSLESS = frozenset(("PNG", "BMP", "GIF", "ICO", "PPM", "QOI", "TIFF"))
_SRGB = ("sRGB".encode("ascii"), "sRGB".encode("utf-16-be"))

Pixels = NDArray[np.float32]
"""(H, W, 3) float32: luma and two chroma channels, 0 to 255."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a file, upright and at full size.

    Attributes:
        rgb: Laid on white where it is transparent.
        alpha: Its opacity; None if it is opaque everywhere.
        exact: Its values where they have more than 8 bits.
        format: Pillow's name of the file's format.
        tables: Of a JPEG file: what its coefficients were divided by; `sampling` likewise.
        duration: Milliseconds.
        turn: What was done to the stored pixels to show the picture upright.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    exact: NDArray[Any] | None
    format: str
    tables: dict[int, list[int]] | None = None
    sampling: int = 0
    duration: float = 0.0
    turn: Image.Transpose | None = None

    @property
    def lossless(self) -> bool:
        """Whether the file keeps every pixel as it was."""
        return self.tables is None and self.format in _LOSSLESS

    @property
    def divisor(self) -> float:
        """The mean of a JPEG file's first table; 0 for other files."""
        return float(np.mean(next(iter((self.tables or {}).values()), [0])))


class Sameness(IntEnum):
    """What two files are to each other; false if they are not known to show the same.

    FIRST: The second file was made of the first.
    SECOND: The first file was made of the second.
    """

    NO = 0
    YES = 1
    FIRST = 2
    SECOND = 3

    @property
    def reversed(self) -> Sameness:
        """The same of the files in the other order."""
        return _REVERSED.get(self, self)


_REVERSED = {Sameness.FIRST: Sameness.SECOND, Sameness.SECOND: Sameness.FIRST}


def same_picture(one: BinaryIO, other: BinaryIO, *, limits: ImageLimits) -> Sameness:
    """Whether one file is the other one re-encoded or resized, and which one was there first.

    Frames and pages, opacity, color profiles and fine detail have to agree. No, if that cannot be
    decided: too little to see, too small, too strongly compressed, more bits than are compared, or
    more pixels of all frames than the limit. A pixel takes about 24 bytes and a microsecond.

    Raises `InvalidImageError` if a file cannot be decoded.
    """
    with open_image(one, limits=limits) as first, open_image(other, limits=limits) as second:
        count = _frames(first)
        if count is None or count != _frames(second) or _profile(first) != _profile(second):
            return Sameness.NO
        seconds = expected_seconds(first, one) + expected_seconds(second, other)
        pixels = count * max(image.width * image.height for image in (first, second))
        too_many = count > MAX_FRAMES or pixels > limits.max_pixels
        if too_many or count * seconds > limits.max_seconds:
            return Sameness.NO
        found = Sameness.YES
        for number in [None] if count == 1 else range(count):
            own = _same_frame(_frame(first, number), _frame(second, number))
            if own is Sameness.NO:
                return own
            found = own if found is Sameness.YES else found
        return found


# Reading


def _frames(image: Image.Image) -> int | None:
    """How many frames or pages there are; None for an icon of several sizes."""
    if image.format == "ICO":
        return 1 if len(image.info.get("sizes", ())) == 1 else None
    return int(getattr(image, "n_frames", 1))


def _profile(image: Image.Image) -> bytes | None:
    """The color profile; None for sRGB, which is also what none means."""
    profile: bytes | None = image.info.get("icc_profile")
    return None if not profile or any(name in profile for name in _SRGB) else profile


def _frame(image: Image.Image, number: int | None) -> Frame:
    """One frame; None says that there is no other."""
    if number is not None:
        image.seek(number)
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    tables = getattr(image, "quantization", None) if image.format in ("JPEG", "MPO") else None
    sampling = max(0, JpegImagePlugin.get_sampling(image)) if tables else 0
    kind = image.format or ""
    duration = 0.0 if number is None else float(image.info.get("duration") or 0)
    if kind == "TIFF" and image.info.get("compression") in ("jpeg", "webp"):
        kind = "JPEG"
    exact = None
    if (samples := getattr(image, "samples", None)) is not None:
        exact = samples.squeeze()
    elif image.mode in DEEP_MODES:
        exact = np.asarray(image)
    elif deep:
        exact = np.empty(0)  # Pillow has dropped the lower bits
    turn = turn_of(image)
    upright = image.copy() if turn is None else image.transpose(turn)
    alpha = None
    if exact is None and (upright.mode in ALPHA_MODES or "transparency" in upright.info):
        upright = with_alpha(upright)
        alpha = upright.getchannel("A")
        upright = laid_on(upright, 255)
        if alpha.getextrema() == (255, 255):
            alpha = None
    rgb = to_rgb(upright)
    return Frame(rgb, alpha, exact, kind, tables, sampling, duration, turn)


# Metadata

_EXIF = re.compile(rb"(?:^|Exif\0\0)(?=II\*\0|MM\0\*)")
_EXIF_IS_WITHIN, _MOST_EXIF = 2**18, 2**16  # bytes
_EDITORS = re.compile(
    r"acdsee|adobe|affinity|aperture|canva|capture one|corel|darktable|digikam|dxo|facebook|"
    r"faststone|gimp|graphicsmagick|gthumb|imagemagick|instagram|iphoto|irfanview|krita|lightroom|"
    r"luminar|nik |paint|photo ?(?:edit|gallery|scape|shop|viewer)|photos \d|picasa|pixelmator|"
    r"polarr|rawtherapee|shotwell|snapseed|topaz|vsco|xnview|zoner",
    re.IGNORECASE,
)


def from_camera(file: BinaryIO) -> bool:
    """Whether a file's EXIF data name a camera, and no program that cameras' files are edited in.

    Reads the beginning of a JPEG, TIFF, HEIC or AVIF file, and decodes nothing. False for other
    formats, and if the data are broken or are not where cameras write them.
    """
    file.seek(0)
    head = file.read(_EXIF_IS_WITHIN)
    if (found := _EXIF.search(head)) is None:
        return False
    exif = Image.Exif()
    try:
        exif.load(head[found.end() : found.end() + _MOST_EXIF])
        tags = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software)
        make, model, software = (str(exif.get(tag, "")).strip("\0 ") for tag in tags)
    except Exception:
        return False
    return bool(make or model) and _EDITORS.search(software) is None


# Comparing


def _same_frame(one: Frame, other: Frame) -> Sameness:
    if abs(one.duration - other.duration) > PACE_MS or (one.alpha is None) != (other.alpha is None):
        return Sameness.NO
    if one.exact is not None or other.exact is not None:
        if one.exact is None or other.exact is None or one.exact.size == 0:
            return Sameness.NO
        equal = np.array_equal(one.exact, other.exact)
        return Sameness(equal and np.array_equal(np.asarray(one.rgb), np.asarray(other.rgb)))
    if one.alpha is not None and other.alpha is not None:
        opacities = (
            replace(frame, rgb=alpha.convert("RGB"), tables=None)
            for frame, alpha in ((one, one.alpha), (other, other.alpha))
        )
        if not _same_pixels(*opacities):
            return Sameness.NO
    return _same_pixels(one, other)


def _same_pixels(one: Frame, other: Frame) -> Sameness:
    """Whether one of two opaque pictures can be made of the other, and of which the other was."""
    if one.rgb.size == other.rgb.size:
        if one.rgb.tobytes() == other.rgb.tobytes():
            return _coarser(one, other)
        return _which_was_first(one, other)
    small, large = sorted((one, other), key=lambda frame: frame.rgb.width * frame.rgb.height)
    if min(small.rgb.size) < MIN_SIDE or small.rgb.width < LEAST_SCALE * large.rgb.width:
        return Sameness.NO
    pairs = ((large, small), (small, large))
    return Sameness(any(examine(source, target).convincing for source, target in pairs))


def _which_was_first(one: Frame, other: Frame) -> Sameness:
    """Compares pictures of one size: can each be made of the other, and how well?

    If both can, neither lost what the other one has. So the coarser one was there first: a finer
    file that was there first would show more. Where neither is, that of which the other can be
    made better.
    """
    if min(one.rgb.size) < MIN_SIDE:
        return Sameness.NO
    forth, back = examine(one, other), examine(other, one)
    if not (forth.convincing and back.convincing):
        if forth.convincing:
            return Sameness.FIRST
        return Sameness.SECOND if back.convincing else Sameness.NO
    found = _coarser(one, other)
    if found is Sameness.YES and abs(forth.left - back.left) > EVEN:
        return Sameness.FIRST if forth.left < back.left else Sameness.SECOND
    return found


def _coarser(one: Frame, other: Frame) -> Sameness:
    """Which of two files keeps less of its pixels, by what a JPEG file says; YES if unknown."""
    divisors = [
        frame.divisor if frame.tables else 1.0 if frame.lossless else None for frame in (one, other)
    ]
    first, second = divisors
    if first is None or second is None or max(first, second) <= COARSER * min(first, second):
        return Sameness.YES
    return Sameness.FIRST if first > second else Sameness.SECOND


@dataclass
class Evidence:
    """What was found when a picture was made of another one as the target was.

    `error` and `left` are the largest of all windows of 8, 16 and 32 pixels.

    Attributes:
        error: The difference between source and target, as a share of the difference between the
            source and what is made of it. 1 is what encoding alone does.
        left: The difference between what is made and the target, as the same share.
        shift: Most that the color of a region of 32 pixels differs from what is made, 0 to 255.
        flat: Share of the picture that shows nothing, and whose color the encoding changes.
        lost: Share of what the source shows that the encoding erases.
        lost_by_size: Share of what the source shows that the size erases.
        structure: Windows of 8 pixels that show something.
        coarse: Whether the target is smaller and strongly compressed, so that small things of two
            different sources can come out alike.
    """

    error: float = 0.0
    left: float = 0.0
    shift: float = 0.0
    flat: float = 0.0
    lost: float = 0.0
    lost_by_size: float = 0.0
    structure: int = 0
    coarse: bool = False

    @property
    def convincing(self) -> bool:
        """Whether the target was made of the source, and nothing else could have been."""
        return (
            self.structure >= LEAST_STRUCTURE
            and not self.coarse
            and self.error <= ERROR
            and self.left <= LEFT
            and self.shift <= SHIFT
            and self.flat <= FLAT
            and self.lost <= LOST
            and self.lost_by_size <= LOST_BY_SIZE
        )


def examine(source: Frame, target: Frame) -> Evidence:
    """Makes a picture of the source as the target seems to be made, and compares."""
    if target.turn is not None:  # as it is stored, where the blocks of its encoding are
        back = _INVERSE.get(target.turn, target.turn)
        source, target = (
            replace(frame, rgb=frame.rgb.transpose(back), turn=None) for frame in (source, target)
        )
    resized, quality = _as_made(source, target)
    found = _Windows()
    for x in range(0, max(1, target.rgb.width - _OVERLAP), _TILE):
        for y in range(0, max(1, target.rgb.height - _OVERLAP), _TILE):
            box = _box(x, y, target.rgb.size, _TILE + _OVERLAP)
            tile = resized.crop(box)
            found.take(tile, target.rgb.crop(box), _encoded(tile, target, quality))
    if source.rgb.width <= target.rgb.width:
        return found.evidence()
    coarse = target.divisor > COARSEST or (quality or 100) < LEAST_QUALITY
    lost_by_size = _lost_by_size(source.rgb, resized)
    return replace(found.evidence(), lost_by_size=lost_by_size, coarse=coarse)


def _as_made(source: Frame, target: Frame) -> tuple[Image.Image, int | None]:
    """The source at the target's size, by the filter that fits best, and the quality."""
    goal = _sample(target.rgb)
    wanted = _planes(goal)
    if source.rgb.size == target.rgb.size:
        return source.rgb, _settled(_sample(source.rgb), goal, target)[0]
    choices = [source.rgb.resize(target.rgb.size, filter) for filter in _FILTERS]
    choices.sort(key=lambda one: float(np.square(_planes(_sample(one)) - wanted).mean()))
    best, best_quality, least = choices[0], None, np.inf
    for one in choices[:3]:
        quality, left = _settled(_sample(one), goal, target)
        if left < least:
            best, best_quality, least = one, quality, left
        if left < 0.1:
            break
    return best, best_quality


def _settled(source: Image.Image, goal: Image.Image, target: Frame) -> tuple[int | None, float]:
    """The quality at which the goal was made of the source, and what differs then.

    None where the target says it itself. The quality is looked for where as much is lost as between
    the two; there, the one that comes closest is taken.
    """
    own, wanted = _planes(source), _planes(goal)

    def made(quality: int | None) -> Pixels:
        return _planes(_encoded(source, target, quality))

    if target.lossless or target.tables:
        return None, _usual(np.square(wanted - made(None)))
    error = _usual(np.square(own - wanted))
    low, high = _WORST, 101
    while high - low > 1:
        middle = (low + high) // 2
        more = _usual(np.square(own - made(middle))) >= error
        low, high = (middle, high) if more else (low, middle)
    around = range(max(_WORST, low - 2), min(100, low + 2) + 1)
    left, quality = min((_usual(np.square(wanted - made(each))), each) for each in around)
    return quality, left


def _encoded(image: Image.Image, target: Frame, quality: int | None) -> Image.Image:
    """The picture after it was saved as the target was, at a quality where it does not say it."""
    if target.lossless:
        return image
    file = io.BytesIO()
    if target.tables:
        image.save(file, "JPEG", qtables=target.tables, subsampling=target.sampling)
    elif target.format in ("AVIF", "WEBP"):
        image.save(file, target.format, quality=quality)
    else:
        image.save(file, "JPEG", quality=min(95, quality or 95))
    with Image.open(file) as made:
        return made.convert("RGB")


class _Windows:
    """Collects evidence from parts of a picture."""

    def __init__(self) -> None:
        self._error = self._left = self._shift = 0.0
        self._structure = self._lost = self._regions = self._flat = 0

    def take(self, source: Image.Image, target: Image.Image, made: Image.Image) -> None:
        """Looks at one part, at the target's size: the source, the target, and what was made."""
        own, wanted, copy = (_planes(image) for image in (source, target, made))
        sums = [
            _cells(part, 4)
            for part in (
                np.square(own - wanted), np.square(copy - wanted), np.square(own - copy),
                copy - wanted, copy - own,
                own, np.square(own), wanted, np.square(wanted),
            )
        ]  # fmt: skip
        for side in (8, 16, 32):
            error, left, noise, off, change, *moments = (_windows(part) for part in sums)
            if error.size:
                mean, square, other_mean, other_square = moments
                shown = np.maximum(square - mean**2, other_square - other_mean**2).clip(0)
                allowed = noise + _BY_CONTRAST * shown + _FLOOR
                self._error = max(self._error, float(np.sqrt((error / allowed).max())))
                self._left = max(self._left, float(np.sqrt((left / allowed).max())))
                if side == 8:
                    shows = shown[..., 0] > _SHOWS
                    self._structure += int(shows.sum())
                    self._lost += int((shows & (noise[..., 0] > 0.5 * shown[..., 0])).sum())
                if side == 32:
                    self._shift = max(self._shift, float(np.abs(off).max()))
                    self._regions += shown[..., 0].size
                    moved = np.abs(change).max(axis=2) > 0.8
                    self._flat += int((moved & (shown[..., 0] < 4)).sum())
            sums = [_cells(part, 2) for part in sums]

    def evidence(self) -> Evidence:
        """All that was found."""
        return Evidence(
            error=self._error,
            left=self._left,
            shift=self._shift,
            flat=self._flat / max(1, self._regions),
            lost=self._lost / max(1, self._structure),
            structure=self._structure,
        )


def _lost_by_size(large: Image.Image, small: Image.Image) -> float:
    """The share of what the large picture shows that the small one cannot show."""
    again = small.resize(large.size, Image.Resampling.BICUBIC)
    shown = lost = 0
    for x in range(0, large.width, _TILE):
        for y in range(0, large.height, _TILE):
            box = _box(x, y, large.size, _TILE)
            own, other = (
                np.asarray(image.crop(box).convert("L"), np.float32)[..., None]
                for image in (large, again)
            )
            error = _windows(_cells(np.square(own - other), 4))
            variance = _windows(_cells(np.square(own), 4)) - _windows(_cells(own, 4)) ** 2
            shows = variance > _SHOWS
            shown += int(shows.sum())
            lost += int((shows & (error > 0.5 * variance)).sum())
    return lost / max(1, shown)


# Arithmetic


def _planes(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("YCbCr"), dtype=np.float32)


def _box(x: int, y: int, size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    return (x, y, min(size[0], x + side), min(size[1], y + side))


def _sample(image: Image.Image) -> Image.Image:
    """Parts of a picture from all over it, or the whole if it is small."""
    side = _PATCHES * _PATCH
    if max(image.size) <= side:
        return image
    width, height = (min(side, length) for length in image.size)
    sample = Image.new("RGB", (width, height))
    for left in range(0, width, _PATCH):
        for top in range(0, height, _PATCH):
            x, y = (
                (length - _PATCH) * at // max(1, part - _PATCH) // 16 * 16 if length > part else at
                for length, part, at in (
                    (image.width, width, left),
                    (image.height, height, top),
                )
            )
            sample.paste(image.crop(_box(x, y, image.size, _PATCH)), (left, top))
    return sample


def _cells(pixels: Pixels, side: int) -> Pixels:
    """The mean of each square of so many pixels; the last ones are filled up from the edge."""
    rows, columns = (-pixels.shape[0]) % side, (-pixels.shape[1]) % side
    if rows or columns:
        pixels = np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="edge")
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    squares = pixels.reshape(height, side, width, side, pixels.shape[2])
    means: Pixels = np.asarray(squares.mean(axis=(1, 3)), dtype=np.float32)
    return means


def _windows(cells: Pixels) -> Pixels:
    """The mean of each two by two cells; these overlap."""
    four = cells[:-1, :-1] + cells[1:, :-1] + cells[:-1, 1:] + cells[1:, 1:]
    return four / np.float32(4)


def _usual(errors: Pixels) -> float:
    """The mean over windows of which the largest are cut off, so that a local edit has no say."""
    means = _windows(_cells(errors, 4))
    return float(np.minimum(means, np.quantile(means, 0.98, axis=(0, 1))).mean())
