import threading

import numpy as np
import pytest

from lookalike.cores import available_cores
from lookalike.errors import (
    ConfigurationError,
    EmbeddingFailedError,
    NotReadyError,
    PassportMismatchError,
)
from lookalike.models.color_extractor import ColorExtractor
from lookalike.models.extractors import Extractors
from lookalike.models.registry import SPECS, get_spec
from lookalike.models.vectors import normalize
from tests.models.pictures import draw

COLOR = ColorExtractor()


def test_color_vectors_can_be_computed_by_hand():
    batch = np.zeros((2, 32, 32, 3), np.uint8)
    batch[1, :8, 8:16] = (255, 127, 0)
    vectors = COLOR.extract(batch)
    assert np.allclose(vectors[0], 1 / np.sqrt(48))
    expected = np.ones((4, 4, 3))
    expected[0, 1] = (256, 128, 1)
    assert np.allclose(vectors[1], expected.ravel() / np.linalg.norm(expected))
    assert vectors.dtype == np.float32
    assert COLOR.dim == COLOR.passport.dim == 48
    assert COLOR.passport.model == "color"
    assert COLOR.decode_size == 64
    assert COLOR.provenance["runtime"] == "numpy"


def test_different_pictures_get_different_colors():
    vectors = COLOR.extract(np.stack([COLOR.prepare(draw(seed)) for seed in range(30)]))
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
        COLOR.extract(batch)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vectors_without_a_direction_are_refused(bad):
    features = np.ones((3, 4), np.float32)
    features[1] = bad
    with pytest.raises(EmbeddingFailedError, match="NaN"):
        normalize(features)


def test_extractors_are_found_by_passport():
    other = ColorExtractor(grid=2)
    extractors = Extractors(COLOR, other)
    assert extractors.default.extractor is COLOR
    assert extractors.for_passport(COLOR.passport) is extractors.default
    live = extractors.for_passport(other.passport)
    assert live.passport == other.passport
    picture = other.prepare(draw(1))
    assert np.array_equal(live.batcher.embed(picture), other.extract(picture[None])[0])
    assert [one.extractor for one in extractors.live] == [COLOR, other]
    extractors.close()
    extractors.close()
    with pytest.raises(NotReadyError):
        live.batcher.embed(picture)
    with pytest.raises(ConfigurationError, match="closed"):
        extractors.add(COLOR)


def test_a_mismatch_names_every_difference_and_what_to_do():
    extractors = Extractors(COLOR)
    with pytest.raises(PassportMismatchError) as caught:
        extractors.for_passport(ColorExtractor(grid=2, resize="crop").passport)
    text = str(caught.value)
    for part in (
        "resize is crop there and squash here",
        "dim is 12 there and 48 here",
        "input_size is 16 there and 32 here",
        "lookalike reembed",
        "start the service with the collection's",
    ):
        assert part in text
    extractors.close()


def test_extractors_come_and_go():
    before = threading.active_count()
    extractors = Extractors(COLOR, max_batch=2, queue_size=3)
    other = ColorExtractor(grid=2)
    live = extractors.add(other)
    assert extractors.add(ColorExtractor(grid=2)) is live
    assert live.batcher.queue_size == 3
    extractors.remove(other.passport)
    extractors.remove(other.passport)
    with pytest.raises(PassportMismatchError):
        extractors.for_passport(other.passport)
    with pytest.raises(ConfigurationError, match="default"):
        extractors.remove(COLOR.passport)
    extractors.close()
    assert threading.active_count() == before


def test_the_registry_names_what_it_knows():
    assert [(s.name, s.channels) for s in SPECS.values()] == [
        ("resnet18", 512),
        ("resnet34", 512),
        ("resnet50", 2048),
        ("resnet101", 2048),
        ("resnet152", 2048),
    ]
    assert get_spec("resnet50").dim(pooling="flatten", input_size=224) == 100_352
    with pytest.raises(ConfigurationError, match=r"Did you mean 'resnet50'.*resnet152"):
        get_spec("ResNet-50")
    with pytest.raises(ConfigurationError, match="Known models"):
        get_spec("vgg")


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
