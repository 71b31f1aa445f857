"""Quantizing a small network with random weights."""

import numpy as np
import pytest

from lookalike.models.network import build
from lookalike.models.openvino.runtime import OpenVinoEncoder, convert, quantize
from lookalike.progress import Progress
from tests.models.networks import request


@pytest.fixture(scope="module")
def source():
    return build(request(input_size=32))


def test_one_strong_picture_among_faint_ones_keeps_its_vector(source):
    rng = np.random.default_rng(0)
    faint = rng.integers(112, 120, (19, 32, 32, 3), dtype=np.uint8)
    strong = rng.integers(0, 2, (1, 32, 32, 3), dtype=np.uint8) * 255
    source_network, spec, _ = source
    network = convert(source_network, input_size=32)
    plain = OpenVinoEncoder(network, spec=spec, precision="float32")
    before = plain.encode(list(strong))
    told = []
    quantized = quantize(
        network,
        np.concatenate([faint, strong]),
        progress=Progress(lambda _, *at: told.append(at)),
    )
    assert told[-20:] == [(number, 20) for number in range(1, 21)]
    after = OpenVinoEncoder(quantized, spec=spec, precision="float32")
    apart = 1 - float(after.encode(list(strong))[0] @ before[0])
    assert 0 < apart < 0.005
    again = OpenVinoEncoder(network, spec=spec, precision="float32")
    assert np.array_equal(again.encode(list(strong)), before)
