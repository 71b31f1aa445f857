import importlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from lookalike.cores import available_cores
from lookalike.errors import (
    ConfigurationError,
    EmbeddingFailedError,
    InvalidParameterError,
    NotReadyError,
    SpecMismatchError,
)
from lookalike.models import building, registry
from lookalike.models.base import ImageEncoder, Modality, normalize
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.models.head import Head, HeadedEncoder, HeadSpec
from lookalike.models.registry import FAMILIES, Family, find_family
from lookalike.models.spec import ModelRequest, RunOptions
from tests.models.pictures import draw

COLOR = ColorEncoder()


def test_color_vectors_can_be_computed_by_hand():
    batch = np.zeros((2, 32, 32, 3), np.uint8)
    batch[1, :8, 8:16] = (255, 127, 0)
    vectors = COLOR.encode(list(batch))
    assert np.allclose(vectors[0], 1 / np.sqrt(48))
    expected = np.ones((4, 4, 3))
    expected[0, 1] = (256, 128, 1)
    assert np.allclose(vectors[1], expected.ravel() / np.linalg.norm(expected))
    assert vectors.dtype == np.float32
    assert COLOR.spec.dim == 48
    assert COLOR.spec.model == "color"
    assert COLOR.decode_size == 64
    assert COLOR.provenance["runtime"] == "numpy"


def test_different_pictures_get_different_colors():
    vectors = COLOR.encode([COLOR.prepare(draw(seed)) for seed in range(30)])
    scores = vectors @ vectors.T - 2 * np.eye(30)
    assert scores.max() < 0.999
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 31, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
    ],
)
def test_other_batches_are_refused(batch):
    with pytest.raises(EmbeddingFailedError, match=r"(?i)expected pictures of"):
        COLOR.encode(list(batch))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vectors_without_a_direction_are_refused(bad):
    features = np.ones((3, 4), np.float32)
    features[1] = bad
    with pytest.raises(EmbeddingFailedError, match="NaN"):
        normalize(features)


def test_encoders_are_found_by_spec():
    other = ColorEncoder(grid=2)
    encoders = Encoders(COLOR)
    encoders.add(other)
    assert encoders.default.encoder is COLOR
    assert encoders.for_spec(COLOR.spec) is encoders.default
    live = encoders.for_spec(other.spec)
    assert live.spec == other.spec
    picture = other.prepare(draw(1))
    assert np.array_equal(live.embed(picture), other.encode([picture])[0])
    assert [one.encoder for one in encoders.live] == [COLOR, other]
    encoders.close()
    encoders.close()
    with pytest.raises(NotReadyError):
        live.embed(picture)
    with pytest.raises(ConfigurationError, match="closed"):
        encoders.add(COLOR)


def test_a_mismatch_names_every_difference_and_what_to_do():
    encoders = Encoders(COLOR)
    with pytest.raises(SpecMismatchError) as caught:
        encoders.for_spec(ColorEncoder(grid=2, resize="crop").spec)
    text = str(caught.value)
    for part in (
        "resize is crop there and squash here",
        "dim is 12 there and 48 here",
        "input_size is 16 there and 32 here",
        "lookalike reembed",
        "start the service with the collection's",
    ):
        assert part in text
    encoders.close()


def test_encoders_come_and_go():
    before = threading.active_count()
    encoders = Encoders(COLOR, max_batch=2, queue_size=3)
    other = ColorEncoder(grid=2)
    live = encoders.add(other)
    assert encoders.add(ColorEncoder(grid=2)) is live
    assert live.queue_size == 3
    encoders.remove(other.spec)
    encoders.remove(other.spec)
    with pytest.raises(SpecMismatchError):
        encoders.for_spec(other.spec)
    with pytest.raises(ConfigurationError, match="default"):
        encoders.remove(COLOR.spec)
    encoders.close()
    assert threading.active_count() == before


def test_the_registry_names_what_it_knows():
    with pytest.raises(ConfigurationError, match=r"Did you mean 'resnet50'.*resnet152"):
        find_family("ResNet-50")
    with pytest.raises(ConfigurationError, match="Known models"):
        find_family("vgg")


def test_cores_respect_the_containers_quota(tmp_path):
    quota = tmp_path / "cpu.max"
    everything = available_cores(tmp_path / "none")
    assert everything >= 1
    quota.write_text("max 100000\n")
    assert available_cores(quota) == everything
    quota.write_text("50000 100000\n")
    assert available_cores(quota) == 1
    quota.write_text("99900000 100000\n")
    assert available_cores(quota) == everything


def test_every_family_offers_what_the_registry_says_and_is_light():
    code = (
        "import sys; from lookalike.models import building, registry; "
        "[registry.find_family(model) for each in registry.FAMILIES.values() "
        "for model in each.models]; "
        "assert not {'torch', 'openvino', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for family in FAMILIES.values():
        module = importlib.import_module(family.module)
        assert hasattr(module, "load" if family.has_network else "make_encoder")
        assert all(find_family(model) is family for model in family.models)


def test_a_family_is_one_line(monkeypatch):
    class Toy:
        @staticmethod
        def make_encoder(request, run):
            return ColorEncoder(grid=int(request.model.partition("/")[2] or 3))

    monkeypatch.setitem(sys.modules, "toy_family", Toy)
    toy = Family(
        module="toy_family",
        models={"toy": None},
        has_others=True,
        has_network=False,
        has_text=True,
    )
    monkeypatch.setattr(registry, "FAMILIES", {**FAMILIES, "toy": toy})
    for name, dim in (("toy", 27), ("toy/2", 12)):
        request = ModelRequest(model=name, weights="none")
        assert building.build_encoder(request, RunOptions()).spec.dim == dim
    with pytest.raises(ConfigurationError, match="has no network"):
        registry.find_network_family("toy/2")
    assert registry.models_with_text() == ["color", "open_clip/NAME", "toy", "toy/NAME"]
    for name, nearest in (
        ("torchvision/resnet18", "resnet18"),
        ("toy/toy", "toy"),
        ("color/x", ""),
    ):
        with pytest.raises(ConfigurationError, match=f"Unknown model '{name}'") as caught:
            registry.find_family(name)
        assert not nearest or f"Did you mean '{nearest}'" in str(caught.value)


class PicturesAlone(ImageEncoder):
    """Like every encoder of pictures that does not say otherwise."""


def test_an_encoder_of_pictures_refuses_texts_and_names_models_that_take_them():
    encoder = PicturesAlone(COLOR.spec)
    assert encoder.modalities == {Modality.IMAGE}
    with pytest.raises(InvalidParameterError, match=r"takes pictures, not texts.*: color"):
        encoder.prepare("a red mug")
    with pytest.raises(InvalidParameterError, match="empty"):
        encoder.prepare("  ")


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ("red", (255, 0, 0)),
        (" Light Blue\n", (173, 216, 230)),
        ("#0f0", (0, 255, 0)),
        ("#0000FF80", (0, 0, 255)),
        ("hsl(0, 100%, 50%)", (255, 0, 0)),
        ("rgb(300, 0, 0)", (255, 0, 0)),
    ],
)
def test_the_color_model_takes_colors_as_words(text, color):
    plain = COLOR.prepare(Image.new("RGB", (50, 40), color))
    assert np.array_equal(COLOR.prepare(text), plain)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("red car", "such as red or #ff0000, not 'red car'"),
        ("\U0001f697", "such as red"),
        (f"rgb({'9' * 900},0,0)", "such as red"),
        ("r\0d", "such as red"),
        ("", "The text is empty"),
        ("\t\u3000\n", "The text is empty"),
        ("red" * 400, "1,200 characters; write at most 1,000"),
        ("r\ud800d", "half of a character"),
    ],
)
def test_texts_that_cannot_be_used_say_why(text, wrong):
    with pytest.raises(InvalidParameterError, match=wrong):
        COLOR.prepare(text)


def head_over(spec):
    layers = HeadSpec(dim_in=spec.dim, dim_out=8)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in layers.shapes().items()
    }
    return Head(layers, tensors, backbone=spec, trained={})


@pytest.mark.parametrize("headed", [False, True])
def test_pictures_and_texts_share_a_batch_and_a_space(headed):
    encoder = HeadedEncoder(COLOR, head_over(COLOR.spec)) if headed else COLOR
    assert encoder.modalities == {Modality.IMAGE, Modality.TEXT}
    live = LiveEncoder(encoder, max_batch=8)
    items = ["red", draw(1), Image.new("RGB", (9, 9), "red"), "blue", draw(2)]
    futures = [live.submit(encoder.prepare(item)) for item in items]
    vectors = np.stack([future.result() for future in futures])
    live.close()
    alone = np.concatenate([encoder.encode([encoder.prepare(item)]) for item in items])
    assert np.allclose(vectors, alone, atol=1e-6)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6)
    assert not np.allclose(vectors[0], vectors[3], atol=1e-3)
