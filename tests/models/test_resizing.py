import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import center_crop, resize

from lookalike.models.base import least_decode_size, resize_image
from lookalike.records import Preprocess
from tests.models.pictures import draw


@pytest.mark.parametrize("size", [(160, 120), (120, 161), (333, 77), (64, 64), (1000, 301)])
@pytest.mark.parametrize("input_size", [64, 96, 224])
def test_resizing_is_torchvisions(size, input_size):
    image = draw(4, size)
    squashed = resize_image(image, Preprocess(input_size=input_size, resize="squash"))
    assert np.array_equal(squashed, np.asarray(resize(image, [input_size, input_size])))
    cropped = resize_image(image, Preprocess(input_size=input_size, resize="crop"))
    larger = resize(image, [round(256 / 224 * input_size)])
    assert np.array_equal(cropped, np.asarray(center_crop(larger, [input_size, input_size])))
    assert cropped.dtype == np.uint8
    assert cropped.flags.writeable
    transform = v2.Compose([v2.Resize(round(256 / 224 * input_size)), v2.CenterCrop(input_size)])
    assert np.array_equal(cropped, np.asarray(transform(image)))


def test_a_strip_is_cropped_without_enlarging_all_of_it():
    image = draw(4, (640, 80)).resize((80_000, 300))  # more than is resized at once
    whole = np.asarray(center_crop(resize(image, [256]), [224, 224]))
    part = resize_image(image, Preprocess(input_size=224, resize="crop"))
    assert np.abs(part.astype(int) - whole).max() <= 1
    strip = Image.new("RGB", (60_000, 1), (9, 8, 7))
    assert (resize_image(strip, Preprocess(input_size=224, resize="crop")) == [9, 8, 7]).all()


def test_a_padded_picture_is_whole_and_has_its_border():
    image = Image.new("RGB", (80, 40), (9, 8, 7))
    padded = resize_image(image, Preprocess(input_size=32, resize="pad", padding=(1, 2, 3)))
    assert (padded[8:24] == [9, 8, 7]).all()
    assert (padded[:8] == [1, 2, 3]).all()
    assert (padded[24:] == [1, 2, 3]).all()


def test_interpolation_and_crop_share_are_the_specs():
    image = draw(4, (300, 200))
    bicubic = Preprocess(input_size=64, resize="crop", crop_share=1, interpolation="bicubic")
    larger = resize(image, [64], InterpolationMode.BICUBIC)
    assert np.array_equal(resize_image(image, bicubic), np.asarray(center_crop(larger, [64, 64])))
    assert (least_decode_size(bicubic), least_decode_size(Preprocess())) == (73, 256)
    narrow = Preprocess(resize="crop", crop_share=0.5)
    assert least_decode_size(narrow) == 448
