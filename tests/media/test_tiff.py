import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookalike.errors import TooManyPixelsError, UnreadableImageError, UnsupportedImageError
from lookalike.media.comparison import same_picture
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.media.deep import to_8_bits
from tests.media.tiffs import made, page, tiff
from tests.models.pictures import draw

PICTURE = draw(4, (34, 21))
PIXELS = np.asarray(PICTURE)
GRAY = np.asarray(PICTURE.convert("L"))
KINDS = {
    "u2": (PIXELS.astype("u2") * 257, 2, PIXELS),
    "u4": (GRAY.astype("u4"), 1, GRAY[..., None]),
    "i2": (GRAY.astype("i2"), 1, GRAY[..., None]),
    "f2": ((GRAY / 255).astype("f2"), 1, GRAY[..., None]),
    "f4": ((PIXELS / 255).astype("f4"), 2, PIXELS),
    "f8": ((GRAY / 255).astype("f8"), 1, GRAY[..., None]),
}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"rows": 7},
    {"tile": (16, 32)},
    {"planar": True},
    {"planar": True, "tile": (32, 16)},
]


def read(data):
    return np.asarray(decode_image(data, limits=ImageLimits(), decode_size=64).image, dtype=int)


@pytest.mark.parametrize("packing", [1, 5, 8, 32773, 50000])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_pixels(kind, order, packing):
    values, photometric, shown = KINDS[kind]
    predictors = [1, 2] if packing in (5, 8, 50000) and kind != "f8" else [1]
    predictors += [3] if packing in (5, 8, 50000) and kind[0] == "f" else []
    for layout in LAYOUTS:
        for predictor in predictors:
            options: dict[str, Any] = {
                "photometric": photometric,
                "packing": packing,
                "predictor": predictor,
            }
            data = made(values, order=order, **options, **layout)
            assert np.abs(read(data) - shown).max() <= 1, (layout, predictor)


@pytest.mark.parametrize("packing", [32946, 34925])
def test_rare_packings_give_the_same_pixels(packing):
    values, photometric, shown = KINDS["u2"]
    assert np.array_equal(read(made(values, photometric=photometric, packing=packing)), shown)


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
def test_samples_that_are_no_whole_bytes(bits):
    values = GRAY.astype(np.uint16) << (bits - 8)
    data = made(values, bits=bits, rows=5)
    full = {9: 1023, 10: 1023, 12: 4095, 14: 16383, 15: 65535}[bits]
    assert np.abs(read(data)[..., 0] - values * (255 / full)).max() <= 1


RANGES: dict[str, tuple[Any, float]] = {
    "8 bits in 16": (np.arange(256, dtype=np.uint16), 255),
    "10 bits": (np.arange(1024, dtype=np.uint16), 1023),
    "12 bits": (np.arange(4096, dtype=np.uint16), 4095),
    "14 bits": (np.arange(16384, dtype=np.int32), 16383),
    "16 bits": (np.arange(65536, dtype=np.uint16), 65535),
    "8 bits in 64": (np.arange(256, dtype=np.int64), 255),
    "floats to 1": (np.linspace(0, 1, 5000, dtype=np.float32), 1),
    "floats to 255": (np.linspace(0, 255, 5000, dtype=np.float64), 255),
    "12 bits with a hot pixel": (np.array([*range(4096)] * 2 + [65535], np.uint16), 4095),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_range_is_that_of_the_bits_in_use(name):
    values, full = RANGES[name]
    expected = np.minimum(values * (255 / full), 255)
    assert np.abs(to_8_bits(values) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "i8", "f4", "f8"])
def test_a_small_part_of_the_range_is_stretched(kind):
    values = np.linspace(20_000, 22_000, 10_000).astype(kind)
    shown = to_8_bits(values)
    assert (shown.min(), shown.max()) == (0, 255)
    assert (np.diff(shown.astype(int)) >= 0).all()


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 3.4e38, -3.4028235e38, -9999, -32768])
def test_fill_values_do_not_count(fill):
    values = np.linspace(100, 900, 10_000).astype(np.float32)
    known = np.arange(10_000) % 3 > 0
    shown = to_8_bits(np.where(known, values, np.float32(fill)))
    assert (shown[~known] == 0).all()
    assert np.abs(shown[known].astype(int) - to_8_bits(values)[known]).max() <= 1


def test_values_that_say_nothing_are_black_or_gray():
    assert (to_8_bits(np.full(9, np.nan, np.float32)) == 0).all()
    assert (to_8_bits(np.full(9, 77.0), nodata=77.0) == 0).all()
    assert (to_8_bits(np.full(9, 32896, np.uint16)) == 128).all()
    assert to_8_bits(np.empty(0, np.float32)).size == 0


def test_the_main_page_is_the_first_that_is_no_copy():
    small, other = np.asarray(draw(2, (20, 15))), np.asarray(draw(3, (64, 48)))
    copy = page(small, photometric=2, tags={254: [1]})
    old = page(small, photometric=2, tags={255: [2]})
    mask = page(np.zeros((21, 34), np.uint8), tags={254: [4]})
    main, second = page(PIXELS, photometric=2), page(other, photometric=2)
    for pages in ([main, second], [copy, main, second], [old, mask, copy, main], [main, copy]):
        for big in (False, True):
            assert np.array_equal(read(tiff(*pages, big=big)), PIXELS)
    assert read(tiff(copy)).shape == small.shape  # there is nothing else
    large = page(PIXELS, photometric=2, tags={254: [1]})
    assert np.array_equal(read(tiff(copy, large)), PIXELS)


@pytest.mark.parametrize("tags", [{50706: [1]}, {262: [32803]}, {262: [34892]}, {259: [34713]}])
def test_raw_files_are_called_so(tags):
    with pytest.raises(UnsupportedImageError, match="raw file of a camera"):
        read(made(GRAY, tags=tags))
    preview = page(PIXELS, photometric=2, tags={254: [1]}, subpages=[page(GRAY, tags=tags)])
    with pytest.raises(UnsupportedImageError, match="raw file of a camera"):
        read(tiff(preview))
    canon = made(PIXELS, photometric=2)
    with pytest.raises(UnsupportedImageError, match="raw file of a camera"):
        read(canon[:8] + b"CR\2\0" + canon[12:])


@pytest.mark.parametrize("nodata", [b"nan\0", b"inf\0", b"-9999\0", b"1e30\0", b"77\0"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
def test_what_a_sparse_file_leaves_out_is_black_whatever_no_data_is(kind, nodata):
    values = np.full((16, 32), 200, "u1").astype(kind)
    whole = page(values, tile=(16, 16), packing=8, tags={42113: nodata})
    offset, size = 8, len(whole.blocks[0])
    shown = read(tiff(replace(whole, tags=whole.tags | {324: [offset, 0], 325: [size, 0]})))
    assert (shown[:, :16] > 0).all()
    assert (shown[:, 16:] == 0).all()


def test_claims_beyond_the_file_cost_nothing():
    deep = PIXELS.astype(np.uint16)
    with pytest.raises(TooManyPixelsError):
        read(made(deep, photometric=2, tags={256: [60_000], 257: [60_000]}))
    for tags in ({322: [2**31], 323: [2**31]}, {322: [0], 323: [16]}, {277: [2**31]}, {258: [0]}):
        with pytest.raises((UnreadableImageError, UnsupportedImageError)):
            read(made(deep, photometric=2, tile=(16, 16), tags=tags))
    with pytest.raises(UnreadableImageError):
        read(made(deep, photometric=2, rows=7)[: deep.nbytes // 2])
    for at in (10**9, 2**32 - 1):
        with pytest.raises(UnreadableImageError):
            read(made(deep, photometric=2, tags={273: [at]}))


def test_pages_in_a_circle_end():
    data = bytearray(tiff(page(GRAY, tags={254: [1]})))
    data[-4:] = data[4:8]
    assert np.array_equal(read(bytes(data))[..., 0], GRAY)


def test_deep_pages_are_the_same_only_if_all_samples_are(tmp_path):
    deep = PIXELS.astype(np.uint16) * 257
    changed = deep.copy()
    changed[3, 3, 0] ^= 1

    def same(*sides):
        files = []
        for number, side in enumerate(sides):
            file = tmp_path / f"{number}.tif"
            file.write_bytes(side)
            files.append(file.open("rb"))
        with files[0], files[1]:
            return same_picture(*files, limits=ImageLimits())

    assert same(made(deep, photometric=2), made(deep, photometric=2, packing=5, rows=3))
    assert not same(made(deep, photometric=2), made(changed, photometric=2))
    assert not same(made(deep, photometric=2), made(deep, photometric=2, tags={274: [3]}))
    assert not same(made(deep, photometric=2), made(PIXELS, photometric=2))


def test_deep_pages_of_several_are_all_compared():
    first, second = PIXELS.astype(np.uint16) * 257, PIXELS[::-1].astype(np.uint16) * 257
    pages = [page(one, photometric=2) for one in (first, second, first)]

    def same(*sides):
        return same_picture(*(io.BytesIO(tiff(*one)) for one in sides), limits=ImageLimits())

    assert same(pages[:2], [pages[0], page(second, photometric=2, packing=5)])
    assert not same(pages[:2], [pages[0], pages[2]])
    assert not same(pages[:2], pages[:1])
