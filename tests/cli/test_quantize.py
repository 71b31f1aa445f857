"""`lookalike quantize`, with a small network and drawn pictures."""

import os

import pytest

from lookalike.bootstrap import build_encoder
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError
from scripts.samples import write_samples

MODEL = ("--model", "resnet18", "--weights", "random", "--input-size", "32")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize") / "pictures"
    write_samples(folder, instances=3, views=2, size=(64, 48))
    assert len(list(folder.rglob("*.jpg"))) >= 72
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def built(precision):
    return build_encoder(
        load_settings(model="resnet18", weights="random", input_size=32, precision=precision)
    )


def test_quantizing_reports_then_saves(lookalike, many, monkeypatch):
    monkeypatch.setenv("LOOKALIKE_RUNTIME", "openvino")
    with pytest.raises(ConfigurationError, match="lookalike quantize PATH"):
        built("int8")
    refused = lookalike("quantize", str(many), *MODEL, "--pictures", "36", "--min-overlap", "1")
    assert refused.exit_code == 1
    assert "overlap of the ten nearest: 0." in refused.stdout
    assert "not saved: the overlap is below 1. Calibrate on more pictures" in refused.stderr
    assert "broken.jpg" in refused.stderr
    with pytest.raises(ConfigurationError, match="lookalike quantize PATH"):
        built("int8")

    saved = lookalike("quantize", str(many), *MODEL, "--pictures", "36", "--min-overlap", "0")
    assert saved.exit_code == 0, saved.output
    assert "calibrated on 36 pictures, compared with float32 on" in saved.stdout
    assert saved.stdout.index("cosine: least 0.9") < saved.stdout.index("saved in data/models/")
    quantized, plain = built("int8"), built("float32")
    assert quantized.spec.int8
    assert set(quantized.spec.differences(plain.spec)) == {"int8", "weights_sha256"}
    assert quantized.provenance["precision"] == "int8"
    pictures = _prepared(many, plain)
    apart = 1 - (quantized.encode(pictures) * plain.encode(pictures)).sum(axis=1)
    assert 0 < apart.max() < 0.01

    again = lookalike("quantize", str(many), *MODEL, "--pictures", "35", "--min-overlap", "0")
    assert again.exit_code == 0, again.output
    newer = built("int8").spec
    assert set(newer.differences(quantized.spec)) == {"weights_sha256"}


def _prepared(folder, encoder):
    import numpy as np
    from PIL import Image

    files = sorted(folder.rglob("*.jpg"))
    opened = (Image.open(file).convert("RGB") for file in files if file.name != "broken.jpg")
    return np.stack([encoder.prepare(image) for image, _ in zip(opened, range(8), strict=False)])


def test_too_few_pictures(lookalike, pictures):
    few = lookalike("quantize", str(pictures), *MODEL)
    assert isinstance(few.exception, ConfigurationError)
    assert "Only 18 pictures can be read there, and 60 are needed" in str(few.exception)


def test_what_is_no_file_is_not_waited_for(lookalike, tmp_path):
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    few = lookalike("quantize", str(pipe), *MODEL)
    assert "Only 0 pictures can be read there" in str(few.exception)
    assert f"; {pipe} cannot be read: it is no regular file" in str(few.exception)


def test_color_has_no_network(lookalike, pictures):
    color = lookalike("quantize", str(pictures))
    assert "color has no network" in str(color.exception)
