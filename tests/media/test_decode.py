import importlib.util
import io
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, ImageFile

from lookalike.errors import (
    ImageTooLargeError,
    InvalidImageError,
    NotAnImageError,
    TooManyPixelsError,
    UnreadableImageError,
)
from lookalike.media import decode as decoding
from lookalike.media.decode import ImageLimits, decode_image, make_thumbnail, to_rgb
from lookalike.models.base import resize_image
from lookalike.records import Preprocess
from tests.media.mutations import originals
from tests.models.pictures import draw, encode

LIMITS = ImageLimits()
PICTURE = draw(1)
LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "PPM": {},
    "QOI": {},
    "WEBP": {"lossless": True},
    "JPEG2000": {"irreversible": False},
}
LOSSY = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95}, "GIF": {}, "HEIF": {"quality": 95}}


def decode(source, **changes):
    options: dict[str, Any] = {"limits": LIMITS, "decode_size": 64} | changes
    return decode_image(source, **options)


def make(kind, image=PICTURE, **options):
    if kind == "HEIF":
        decoding.register_heif()
    return encode(image, kind, **(LOSSLESS | LOSSY).get(kind, {}) | options)


def pixels(source, **options):
    return np.asarray(decode(source, **options).image)


def png_header(width, height, *, tail=b""):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"\x78\x9c") + tail


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_keep_every_pixel(kind):
    decoded = decode(make(kind))
    assert (decoded.width, decoded.height) == PICTURE.size
    assert decoded.media_type == decoding.MEDIA_TYPES[kind]
    assert np.array_equal(np.asarray(decoded.image), np.asarray(PICTURE))


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_come_close(kind):
    decoded = decode(make(kind))
    assert (decoded.width, decoded.height) == PICTURE.size
    assert decoded.media_type == decoding.MEDIA_TYPES[kind]
    apart = np.asarray(decoded.image, dtype=int) - np.asarray(PICTURE, dtype=int)
    assert np.abs(apart).mean() < 8


def test_every_accepted_format_is_tested():
    assert {*LOSSLESS, *LOSSY, "MPO", "ICO"} == set(decoding.MEDIA_TYPES)


def test_mpo_is_a_jpeg():
    decoded = decode(encode(PICTURE, "MPO", save_all=True, append_images=[draw(2)]))
    assert decoded.media_type == "image/jpeg"
    assert decoded.image.size == PICTURE.size


def test_icons_give_their_largest_picture():
    decoded = decode(encode(draw(1, (64, 64)), "ICO", sizes=[(16, 16), (48, 48)]))
    assert (decoded.width, decoded.height, decoded.media_type) == (48, 48, "image/x-icon")


def test_icons_with_bitmaps():
    decoded = decode(encode(draw(1, (32, 32)), "ICO", sizes=[(32, 32)], bitmap_format="bmp"))
    assert np.array_equal(np.asarray(decoded.image), np.asarray(draw(1, (32, 32))))


def test_an_icon_cannot_hide_a_huge_picture():
    inner = png_header(9000, 9000)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(TooManyPixelsError):
        decode(icon)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "TGA", "PCX", "SGI", "DDS", "ICNS", "XBM"])
def test_other_formats_are_refused(kind):
    image = PICTURE.convert("1") if kind == "XBM" else PICTURE
    with pytest.raises(NotAnImageError, match="JPEG"):
        decode(encode(image, kind))


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is no picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"PK\x03\x04" + bytes(60),
        b"\x00" * 400,
        b"\x00\x00\x00\x18ftypmp42" + bytes(50),
        b"x",
    ],
)
def test_other_files_are_no_pictures(data):
    with pytest.raises(NotAnImageError):
        decode(data)


def test_an_empty_file_is_named_so():
    with pytest.raises(NotAnImageError, match="empty"):
        decode(b"")
    with pytest.raises(NotAnImageError, match="empty"):
        decode(io.BytesIO())


def test_heic_without_its_package_names_the_extra(monkeypatch):
    data = make("HEIF")
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(NotAnImageError, match="`heic`"):
        decode(data)


def test_heic_is_registered_when_the_first_one_comes(monkeypatch):
    assert importlib.util.find_spec("pillow_heif") is not None
    data = make("HEIF")
    monkeypatch.delitem(Image.OPEN, "HEIF")
    assert decode(data).media_type == "image/heic"


# Limits


def test_too_many_bytes():
    data = make("PNG")
    decode(data, limits=ImageLimits(max_bytes=len(data)))
    with pytest.raises(ImageTooLargeError, match="limit"):
        decode(data, limits=ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageTooLargeError):
        decode(io.BytesIO(data), limits=ImageLimits(max_bytes=len(data) - 1))


def test_too_many_pixels():
    data = make("PNG")
    decode(data, limits=ImageLimits(max_pixels=160 * 120))
    with pytest.raises(TooManyPixelsError, match="limit"):
        decode(data, limits=ImageLimits(max_pixels=160 * 120 - 1))


@pytest.mark.parametrize("side", [8001, 11000, 60000, 2**31 - 1])
def test_a_header_that_claims_too_much_costs_no_memory(side):
    tracemalloc.start()
    with pytest.raises(TooManyPixelsError):
        decode(png_header(side, side))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


# Orientation


def transposed_for(orientation):
    """The pixels which, with this EXIF orientation, show PICTURE upright."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return PICTURE.transpose(inverse[orientation]) if orientation in inverse else PICTURE


def exif(orientation):
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_gives_the_same_pixels(kind, orientation):
    decoded = decode(make(kind, transposed_for(orientation), exif=exif(orientation)))
    assert (decoded.width, decoded.height) == PICTURE.size
    assert np.array_equal(np.asarray(decoded.image), np.asarray(PICTURE))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_is_turned_once(compression, orientation):
    image = transposed_for(orientation)
    data = make("TIFF", image, compression=compression, tiffinfo={274: orientation})
    assert np.array_equal(pixels(data), np.asarray(PICTURE))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "HEIF"])
def test_orientation_of_lossy_formats(kind, orientation):
    decoded = decode(make(kind, transposed_for(orientation), exif=exif(orientation).tobytes()))
    assert (decoded.width, decoded.height) == decoded.image.size == PICTURE.size
    apart = np.asarray(decoded.image, dtype=int) - np.asarray(PICTURE, dtype=int)
    assert np.abs(apart).mean() < 8


def test_broken_or_odd_exif_counts_as_upright():
    for data in (b"Exif\x00\x00garbage", exif(9).tobytes(), exif(0).tobytes()):
        assert np.array_equal(pixels(make("PNG", exif=data)), np.asarray(PICTURE))


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode):
    image = PICTURE.convert(mode)
    decoded = decode(encode(image, "TIFF"))
    assert decoded.image.mode == "RGB"
    assert np.array_equal(np.asarray(decoded.image), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg():
    apart = pixels(make("JPEG", PICTURE.convert("CMYK"))).astype(int) - np.asarray(PICTURE)
    assert np.abs(apart).mean() < 8


def test_transparency_is_laid_on_white():
    image = PICTURE.copy()
    image.putalpha(Image.new("L", PICTURE.size, 0))
    for variant in (image, image.convert("LA")):
        assert (pixels(make("PNG", variant)) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (pixels(make("PNG", half)) == 127).all()


def shaped(color, *, ground=(0, 0, 0, 0), outline=None, size=(96, 96)):
    """A ring in one color with another alpha around it."""
    image = Image.new("RGBA", size, ground)
    ImageDraw.Draw(image).ellipse((8, 8, 88, 88), fill=None, outline=outline or color, width=20)
    return image


def laid_on(level, image):
    ground = Image.new("RGBA", image.size, (level, level, level, 255))
    ground.alpha_composite(image)
    return np.asarray(ground.convert("RGB"))


WHITE = (255, 255, 255, 255)
INVISIBLE = {
    "white": shaped(WHITE),
    "white with white around": shaped(WHITE, ground=(255, 255, 255, 0)),
    "cream": shaped((250, 248, 242, 255)),
    "half transparent white": shaped((255, 255, 255, 100)),
    "smooth edges": shaped(WHITE, size=(96, 96)).resize((200, 200), Image.Resampling.LANCZOS),
    "a hole": shaped((255, 255, 255, 0), ground=WHITE),
    "in a haze": shaped(WHITE, ground=(255, 255, 255, 3)),
}


@pytest.mark.parametrize("image", INVISIBLE.values(), ids=INVISIBLE)
def test_what_white_would_hide_is_laid_on_black(image):
    shown = pixels(make("PNG", image))
    assert np.ptp(shown.astype(int)) > 90
    assert np.array_equal(shown, pixels(make("WEBP", image, exact=True)))


def test_white_in_a_palette_and_in_gray_is_laid_on_black():
    ring = shaped(WHITE).getchannel("A").point(lambda value: value // 255)
    palette = ring.convert("P")
    palette.putpalette([255, 0, 255, 255, 255, 255])
    for kind in ("GIF", "PNG"):
        shown = pixels(encode(palette, kind, transparency=0))
        assert (shown.min(), shown.max()) == (0, 255)
    deep = Image.fromarray(np.asarray(ring).astype(np.uint16) * 65535)
    shown = pixels(encode(deep, "PNG", transparency=0))
    assert (shown.min(), shown.max()) == (0, 255)


VISIBLE = {
    "black": shaped((0, 0, 0, 255)),
    "a faint shadow": shaped((0, 0, 0, 9)),
    "a fainter shadow": shaped((0, 0, 0, 2), ground=(255, 255, 255, 0)),
    "pale yellow": shaped((255, 255, 215, 255)),
    "light gray": shaped((230, 230, 230, 255)),
    "white with a black dot": shaped(WHITE, ground=(0, 0, 0, 0)),
    "nothing": Image.new("RGBA", (9, 9), (255, 255, 255, 0)),
    "an opaque white sheet": Image.new("RGBA", (9, 9), WHITE),
    "a photograph": PICTURE.convert("RGBA"),
}
ImageDraw.Draw(VISIBLE["white with a black dot"]).rectangle((10, 40, 20, 44), fill=(0, 0, 0, 255))


@pytest.mark.parametrize("image", VISIBLE.values(), ids=VISIBLE)
def test_what_white_shows_stays_on_white(image):
    assert np.array_equal(pixels(make("PNG", image)), laid_on(255, image))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.tuples(*[st.integers(0, 255)] * 4), st.tuples(*[st.integers(0, 255)] * 4), st.booleans())
def test_the_background_is_white_or_black_and_black_only_where_white_hides(color, ground, opaque):
    image = shaped(color, ground=(*ground[:3], 255 if opaque else ground[3]))
    shown, white = np.asarray(to_rgb(image.copy())), laid_on(255, image)
    if not np.array_equal(shown, white):
        assert np.array_equal(shown, laid_on(0, image))
        assert np.ptp(shown) > np.ptp(white)


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
def test_rare_modes_with_transparency(mode):
    base = "LA" if mode == "La" else "RGBA"
    image = Image.new(base, (4, 4), (0, 0) if base == "LA" else (0, 0, 0, 0)).convert(mode)
    assert (np.asarray(to_rgb(image)) == 255).all()


def test_transparent_colors():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert (pixels(encode(palette, "PNG", transparency=1)) == 255).all()
    assert (pixels(encode(palette, "GIF", transparency=1)) == 255).all()
    assert (pixels(encode(palette, "PNG", transparency=0))[0, 0] == [0, 255, 0]).all()
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert (pixels(encode(red, "PNG", transparency=(255, 0, 0))) == 255).all()
    gray = Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16))
    assert (pixels(encode(gray, "PNG", transparency=1000)) == 255).all()


def test_deep_transparent_colors():
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    color = struct.pack(">HHH", 65535, 0, 4660)
    data += (
        chunk(b"tRNS", color) + chunk(b"IDAT", zlib.compress(b"\0" + color)) + chunk(b"IEND", b"")
    )
    assert pixels(data).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_scaled_not_clipped(kind):
    gray = np.asarray(PICTURE.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    assert np.array_equal(pixels(encode(deep, kind, **options))[..., 0], gray)


def test_32_bits_are_scaled():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    for values in (ramp, ramp * 255, ramp * 65535, ramp * 1e6, ramp * 20 - 10):
        data = encode(Image.fromarray(values), "TIFF")
        assert np.abs(pixels(data)[..., 1].astype(int) - expected).max() <= 1
    for values in (ramp * 65535, ramp * 4e8 - 2e8):
        data = encode(Image.fromarray(values.astype(np.int32)), "TIFF")
        assert np.abs(pixels(data)[..., 1].astype(int) - expected).max() <= 1
    data = encode(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "TIFF")
    assert (pixels(data) == 0).all()
    assert (pixels(encode(Image.fromarray(np.full((4, 4), -3, np.int32)), "TIFF")) == 0).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    options = {"save_all": True, "append_images": [draw(5), draw(6)]}
    alone = pixels(make(kind))
    assert np.array_equal(pixels(make(kind, **options)), alone)


# Damage


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("kept", [0.1, 0.4, 0.7, 0.95])
def test_truncated_files_are_unreadable(kind, kept):
    data = make(kind)
    with pytest.raises(UnreadableImageError):
        decode(data[: int(len(data) * kept)])


def test_a_header_alone_is_a_broken_picture():
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        with pytest.raises(UnreadableImageError):
            decode(make(kind)[:20])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_ours_or_nothing(data):
    _decode_or_refuse(data)


SMALL = [make(name, draw(3, (24, 16))) for name in (*LOSSLESS, *LOSSY)]
SMALL.append(encode(draw(3, (24, 24)), "ICO"))
SMALL.append(encode(draw(3, (24, 16)), "TIFF", compression="tiff_lzw", exif=exif(6)))
SMALL.append(encode(draw(3, (24, 16)), "JPEG", exif=exif(6)))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SMALL),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_damaged_files_raise_ours_or_nothing(data, changes, kept):
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    _decode_or_refuse(bytes(damaged) if kept > 0.5 else bytes(damaged[: int(len(data) * kept * 2)]))


DECODE = """
import sys
from pathlib import Path
from lookalike.media.decode import ImageLimits, decode_image
data = Path(sys.argv[1]).read_bytes()
print(decode_image(data, limits=ImageLimits(), decode_size=32).media_type)
"""


def test_small_damage_that_is_passed_over_is_not_told(tmp_path):
    """Pillow takes a file whose list of further pictures is damaged for a plain JPEG, and warns."""
    data = originals()["mpo"].replace(b"MPF\0II", b"MPF\0XX")
    (tmp_path / "a.jpg").write_bytes(data)
    command = [sys.executable, "-c", DECODE, tmp_path / "a.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("image/jpeg\n", "")


def _decode_or_refuse(data):
    try:
        decoded = decode(data, limits=ImageLimits(max_pixels=1_000_000))
    except InvalidImageError:
        return
    assert decoded.image.mode == "RGB"


# Draft mode, slots, streams


@pytest.mark.parametrize("size", [(1600, 1203), (901, 2000), (700, 700), (3000, 200)])
def test_reduced_decoding_keeps_both_sides_long_enough(size):
    data = encode(draw(7, size), "JPEG", exif=exif(6))
    decoded = decode(data, decode_size=200)
    assert (decoded.width, decoded.height) == size[::-1]
    assert min(decoded.image.size) >= 200
    if min(size) >= 400:
        assert decoded.image.width < decoded.width


def test_reduced_decoding_changes_the_input_little():
    data = encode(draw(8, (1600, 1200)), "JPEG", quality=92)
    reduced = decode(data, decode_size=448)
    full = decode(data, decode_size=1200)
    assert reduced.image.size == (800, 600)
    small, large = (resize_image(d.image, Preprocess()).astype(int) for d in (reduced, full))
    assert np.abs(small - large).mean() < 1


def test_sources_are_equal():
    data = make("PNG")
    stream = io.BytesIO(data)
    stream.seek(17)
    assert np.array_equal(pixels(stream), pixels(data))
    with tempfile.SpooledTemporaryFile(max_size=100) as spooled:
        spooled.write(data)
        assert np.array_equal(pixels(spooled), pixels(data))


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_the_callers_stream_stays_open(kind):
    stream = io.BytesIO(make(kind))
    decode(stream)
    assert not stream.closed


def test_decoded_pictures_carry_no_metadata():
    data = make("JPEG", exif=exif(1), comment="secret")
    image = decode(data).image
    assert image.info == {}
    assert b"secret" not in make_thumbnail(image)


# Thumbnails and resizing


def test_thumbnails():
    for size, expected in (((600, 300), (256, 128)), ((90, 40), (90, 40)), ((2000, 1), (256, 1))):
        thumbnail = Image.open(io.BytesIO(make_thumbnail(draw(1).resize(size))))
        assert (thumbnail.format, thumbnail.size) == ("JPEG", expected)
