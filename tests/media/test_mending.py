import contextlib
import io
import random

import numpy as np
import pytest

from lookalike.errors import InvalidImageError, NotAnImageError, UnreadableImageError
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.media.mending import mended
from tests.media.variants import PICTURE, SEVERAL, jpeg, png, webp
from tests.models.pictures import draw, encode

NOISY = draw(9, (90, 70))


def read(data):
    return np.asarray(decode_image(data, limits=ImageLimits(), decode_size=64).image)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_without_its_end_is_read_and_one_that_lacks_more_is_not(options, subsampling):
    data = jpeg(NOISY, subsampling=subsampling, **options)
    assert np.array_equal(read(data[:-2]), read(data))
    assert np.array_equal(read(data[:-1]), read(data))
    for missing in (30, 100, 400, 1000, len(data) // 2):
        with pytest.raises(UnreadableImageError):
            read(data[:-missing])


def test_each_progressive_scan_is_needed():
    data = jpeg(NOISY, progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 3
    for at in scans[1:]:
        with pytest.raises(UnreadableImageError):
            read(data[:at])


@pytest.mark.parametrize(
    "before", [b"\n", b"\xff", bytes(128), b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 4096]
)
def test_bytes_before_a_jpeg(before):
    data = jpeg()
    assert np.array_equal(read(before + data), read(data))


@pytest.mark.parametrize(
    "before",
    [b"FUJIFILMCCD-RAW ", b"8BPS\0\1", b"%PDF-1.4\n", b"PK\3\4", b"RIFF\0\0\0\0AVI ", b"y" * 4097],
)
def test_a_jpeg_within_another_file_is_not_that_file(before):
    with pytest.raises(NotAnImageError):
        read(before + jpeg())


def test_whole_files_are_left_alone():
    for data in (jpeg(), png(), webp(), encode(PICTURE, "GIF"), encode(PICTURE, "TIFF")):
        assert mended(io.BytesIO(data)) is None


def test_what_is_left_out_of_a_webp():
    for options in ({}, {"lossless": True}, SEVERAL):
        data = webp(exif=b"Exif\0\0" + bytes(100), **options)
        expected = read(webp(**options))
        assert np.array_equal(read(data[:-60]), expected)
        assert np.array_equal(read(data[:4] + bytes(4) + data[8:]), expected)


def test_a_webp_whose_header_chunk_is_empty_is_broken():
    data = bytearray(webp(exif=b"Exif\0\0" + bytes(100)))
    assert data[12:16] == b"VP8X"
    data[16:20] = bytes(4)
    with pytest.raises(UnreadableImageError):
        read(bytes(data))


def test_mending_ends_and_raises_ours_or_nothing():
    chance = random.Random(20)
    whole = [jpeg(NOISY), png(image=NOISY), webp(), jpeg(NOISY, progressive=True)]
    for _ in range(150):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(InvalidImageError):
            assert read(bytes(data[: len(data) - chance.randrange(40)])).shape[2] == 3
