"""Quantizing a small network with random weights."""

import numpy as np
import pytest

from lookalike.models.openvino_convert import convert
from lookalike.models.openvino_extractor import OpenVinoExtractor
from lookalike.models.openvino_quantize import quantize
from lookalike.models.torchvision_export import exportable


@pytest.fixture(scope="module")
def source():
    return exportable("resnet18", weights="random", pooling="avg", resize="squash", input_size=32)


def test_one_strong_picture_among_faint_ones_keeps_its_vector(source):
    rng = np.random.default_rng(0)
    faint = rng.integers(112, 120, (19, 32, 32, 3), dtype=np.uint8)
    strong = rng.integers(0, 2, (1, 32, 32, 3), dtype=np.uint8) * 255
    network = convert(source.network, input_size=32)
    plain = OpenVinoExtractor(network, passport=source.passport, precision="float32")
    before = plain.extract(strong)
    told = []
    quantized = quantize(
        network,
        np.concatenate([faint, strong]),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told[-20:] == [(number, 20) for number in range(1, 21)]
    after = OpenVinoExtractor(quantized, passport=source.passport, precision="float32")
    apart = 1 - float(after.extract(strong)[0] @ before[0])
    assert 0 < apart < 0.005
    again = OpenVinoExtractor(network, passport=source.passport, precision="float32")
    assert np.array_equal(again.extract(strong), before)
