"""One verdict that people delete by: the same picture, or another one that is like it."""

from __future__ import annotations

import io
import os
import random
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageDraw

from benchmarks.duplicate_traps import DRAWN, TRAPS, saved, scene
from lookalike.errors import UnreadableImageError
from lookalike.media.comparison import Sameness, from_camera, same_picture
from lookalike.media.decode import ImageLimits

LIMITS = ImageLimits()
ALL_PAIRS = "LOOKALIKE_TEST_TRAPS" in os.environ
LANCZOS, BICUBIC, BOX = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX


def same(one: bytes, other: bytes, limits: ImageLimits = LIMITS) -> bool:
    return bool(same_picture(io.BytesIO(one), io.BytesIO(other), limits=limits))


@cache
def pair_of(name: str) -> list[bytes]:
    """The first two pictures of a set."""
    return [saved(image, "PNG") for image in DRAWN[name]()[:2]]


def files_of(name: str) -> list[tuple[str, bytes]]:
    if ALL_PAIRS:
        return TRAPS[name]()
    return list(zip("ab", pair_of(name), strict=True)) if name in DRAWN else TRAPS[name]()[:2]


@pytest.mark.parametrize("name", TRAPS)
def test_different_pictures_are_not_the_same(name):
    files = files_of(name)
    assert len({data for _, data in files}) == len(files)
    wrong = [
        (a, b)
        for (a, one), (b, other) in combinations(files, 2)
        if same_picture(io.BytesIO(one), io.BytesIO(other), limits=LIMITS)
    ]
    assert not wrong


def re_encoded(image: Image.Image, *, scale: float = 1.0, kind: str = "JPEG",
               filter: Image.Resampling = LANCZOS, **options: Any) -> bytes:  # fmt: skip
    if scale != 1:
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize((size[0], size[1]), filter)
    return saved(image, kind, **options)


WAYS: dict[str, dict[str, Any]] = {
    "PNG": {"kind": "PNG"},
    "BMP": {"kind": "BMP"},
    **{f"JPEG {quality}": {"quality": quality} for quality in (30, 50, 75, 95)},
    "JPEG 4:4:4": {"quality": 80, "subsampling": 0},
    "progressive": {"quality": 80, "progressive": True, "subsampling": 1},
    "WebP": {"kind": "WEBP", "quality": 75},
    "WebP, lossless": {"kind": "WEBP", "lossless": True},
    "AVIF": {"kind": "AVIF", "quality": 60},
    "half": {"scale": 0.5, "quality": 85},
    "half, box": {"scale": 0.5, "quality": 75, "filter": BOX},
    "half, PNG": {"scale": 0.5, "kind": "PNG", "filter": BICUBIC},
    "two thirds": {"scale": 0.66, "quality": 85},
    "double": {"scale": 2, "quality": 80},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("original", ["JPEG", "PNG"])
def test_the_same_picture_re_encoded_is_the_same(way, original):
    first = saved(scene(5, (240, 180)), original)
    with Image.open(io.BytesIO(first)) as image:
        second = re_encoded(image, **WAYS[way])
        assert same(first, second)
        assert same(second, first)


@pytest.mark.parametrize("way", ["JPEG 50", "JPEG 75", "JPEG 95", "PNG", "WebP"])
@pytest.mark.parametrize("original", [{"quality": 75}, {"quality": 95}, {"kind": "PNG"}])
def test_which_file_was_there_first(way, original):
    first = re_encoded(scene(5, (240, 180)), **original)
    with Image.open(io.BytesIO(first)) as image:
        second = re_encoded(image, **WAYS[way])
    files = io.BytesIO(first), io.BytesIO(second)
    expected = Sameness.YES if first == second else Sameness.FIRST
    assert same_picture(*files, limits=LIMITS) is expected
    assert same_picture(*reversed(files), limits=LIMITS) is expected.reversed


def test_which_file_was_there_first_is_not_always_known():
    image = scene(5, (240, 180))
    plain, small = saved(image, "PNG"), re_encoded(image, scale=0.5, quality=85)
    for other in (saved(image, "BMP"), saved(image, "WEBP", lossless=True), small):
        files = io.BytesIO(plain), io.BytesIO(other)
        assert same_picture(*files, limits=LIMITS) is Sameness.YES


def taken(kind: str, *, make: str = "Canon", software: str = "", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = make
    exif[ExifTags.Base.Software] = software
    return saved(scene(5, (64, 48)), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "AVIF"])
def test_a_camera_is_known_by_its_name(kind):
    assert from_camera(io.BytesIO(taken(kind, software="HDR+ 1.0.34")))
    for other in (taken(kind, software="Adobe Photoshop 25.0"), taken(kind, make=" ")):
        assert not from_camera(io.BytesIO(other))
    assert not from_camera(io.BytesIO(saved(scene(5, (64, 48)), kind)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_file_that_no_camera_writes_is_from_none(kind):  # what it says of one was copied there
    assert not from_camera(io.BytesIO(taken(kind)))


def test_broken_exif_data_name_no_camera():
    data = taken("JPEG")
    start = data.index(b"Exif")
    for end in range(start, start + 40):
        assert not from_camera(io.BytesIO(data[:end]))
    chance = random.Random(7)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(4):
            broken[start + chance.randrange(6, 80)] = chance.randrange(256)
        assert from_camera(io.BytesIO(bytes(broken))) in (True, False)


@pytest.mark.parametrize("way", ["JPEG 75", "JPEG 50", "half", "WebP"])
@pytest.mark.parametrize("name", ["tables, one digit", "signatures", "chess", "pages, one word"])
def test_a_copy_of_another_picture_of_a_set_is_not_the_same(name, way):
    one, other = pair_of(name)
    with Image.open(io.BytesIO(other)) as image:
        assert not same(one, re_encoded(image, **WAYS[way]))


def test_turned_by_exif_and_upright():
    image = scene(5)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=92, exif=exif)
    assert same(saved(image, "PNG"), turned)


def test_a_picture_that_shows_too_little_is_not_decided():
    sheet = Image.new("RGB", (300, 300), (120, 130, 140))
    assert same(saved(sheet, "PNG"), saved(sheet, "BMP"))  # every pixel agrees
    assert not same(saved(sheet, "PNG"), saved(sheet, "JPEG", quality=40))
    tiny = scene(5, (24, 20))
    assert not same(saved(tiny, "PNG"), saved(tiny, "JPEG"))


def test_a_small_copy_cannot_vouch_for_what_it_does_not_show():
    assert not same(saved(scene(5), "PNG"), re_encoded(scene(5), scale=0.25, quality=90))
    assert not same(saved(scene(5), "PNG"), re_encoded(scene(5), scale=0.5, quality=40))


def test_opacity_is_compared():
    image = scene(5).convert("RGBA")
    hole = Image.new("L", image.size, 255)
    ImageDraw.Draw(hole).ellipse((100, 100, 300, 250), fill=0)
    image.putalpha(hole)
    flattened = Image.new("RGB", image.size, (255, 255, 255))
    flattened.paste(image, mask=hole)
    assert same(saved(image, "PNG"), saved(image, "WEBP", lossless=True))
    assert not same(saved(image, "PNG"), saved(flattened, "PNG"))


def test_an_animation_in_another_format_is_the_same():
    pictures = [scene(seed, (160, 120)) for seed in (1, 2, 3)]

    def film(kind: str, **options: Any) -> bytes:
        return saved(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=100,
                     **options)  # fmt: skip

    assert same(film("PNG"), film("WEBP", lossless=True))
    assert not same(film("PNG"), saved(pictures[0], "PNG"))
    assert not same(film("PNG"), film("WEBP", lossless=True), ImageLimits(max_pixels=50_000))


def test_the_same_icon_of_one_size():
    icon = scene(5, (128, 128))
    assert same(saved(icon, "ICO", sizes=[(128, 128)]), saved(icon, "PNG"))


def test_color_profiles_have_to_agree():
    image = scene(5)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain = saved(image, "JPEG", quality=90)
    assert same(plain, saved(image, "PNG", icc_profile=srgb)) is same(plain, saved(image, "PNG"))
    assert same(saved(image, "PNG", icc_profile=lab), saved(image, "BMP")) is False


def test_sixteen_bits_are_compared_as_they_are():
    values = np.arange(200 * 300).reshape(200, 300).astype(np.uint16)
    deep = Image.fromarray(values)
    assert same(saved(deep, "PNG"), saved(deep, "TIFF"))
    assert not same(saved(deep, "PNG"), saved(Image.fromarray(values ^ 1), "PNG"))
    assert not same(
        saved(deep, "PNG"), saved(Image.fromarray((values >> 8).astype(np.uint8)), "PNG")
    )


def test_a_large_picture_is_compared_everywhere():
    large = scene(5, (1500, 300))
    edited = large.copy()
    ImageDraw.Draw(edited).text((1450, 280), "8", fill=(255, 255, 255))
    assert same(saved(large, "PNG"), saved(large, "JPEG", quality=85))
    assert not same(saved(large, "PNG"), saved(edited, "JPEG", quality=85))


def test_a_file_that_is_broken_is_an_error():
    file = saved(scene(5), "JPEG")
    with pytest.raises(UnreadableImageError):
        same(file, file[: len(file) // 2])
