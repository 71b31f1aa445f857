"""The drawn pictures: labels, determinism, and that the same thing seen twice is found."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.samples import CLASSES, Sample, draw, jpeg_bytes, samples, write_samples

SMALL = (160, 120)


def pixels(sample: Sample, **options: int) -> np.ndarray:
    return np.asarray(draw(sample, size=SMALL, **options), dtype=np.float32)


def test_there_are_enough_classes_and_their_names_are_plain_words():
    assert len(CLASSES) >= 12
    assert len(set(CLASSES)) == len(CLASSES)
    assert all(label.isascii() and label.isalpha() and label.islower() for label in CLASSES)


def test_samples_are_classes_times_instances_times_views():
    listed = list(samples(instances=3, views=2))
    assert len(listed) == len(CLASSES) * 3 * 2
    assert len({sample.filename for sample in listed}) == len(listed)
    assert len({sample.instance_id for sample in listed}) == len(CLASSES) * 3
    assert listed[:2] == [Sample(CLASSES[0], 0, 0), Sample(CLASSES[0], 0, 1)]


def test_samples_of_some_classes_only():
    assert {sample.label for sample in samples(classes=["car", "mug"])} == {"car", "mug"}
    assert list(samples(instances=0)) == []


def test_names_of_a_sample():
    sample = Sample("mug", 3, 1)
    assert sample.instance_id == "mug-03"
    assert sample.filename == "mug-03-1.jpg"


@pytest.mark.parametrize("wrong", [("cup", 0, 0), ("mug", -1, 0), ("mug", 0, -1)])
def test_a_sample_that_cannot_be_is_refused(wrong: tuple[str, int, int]):
    with pytest.raises(ValueError, match=r"there are: mug|below 0"):
        Sample(*wrong)


@pytest.mark.parametrize("label", CLASSES)
def test_every_class_draws_several_instances(label: str):
    drawn = [draw(Sample(label, instance, instance), size=SMALL) for instance in range(6)]
    assert all(picture.mode == "RGB" and picture.size == SMALL for picture in drawn)
    assert len({picture.tobytes() for picture in drawn}) == 6


@pytest.mark.parametrize("size", [(400, 300), (500, 375), (97, 131), (16, 12), (1500, 1200)])
def test_any_size(size: tuple[int, int]):
    assert draw(Sample("house", 1, 2), size=size).size == size


def test_a_larger_picture_shows_the_same_scene():
    sample = Sample("fish", 2, 1)
    large = draw(sample, size=(640, 480)).resize(SMALL, Image.Resampling.BOX)
    assert np.abs(np.asarray(large, dtype=np.float32) - pixels(sample)).mean() < 6


def test_the_same_bytes_every_time():
    sample = Sample("umbrella", 4, 2)
    assert jpeg_bytes(sample) == jpeg_bytes(sample)


def test_the_same_bytes_in_another_process():
    chosen = [Sample("teapot", 1, 0), Sample("leaf", 7, 3)]
    code = (
        "import hashlib; from scripts.samples import Sample, jpeg_bytes\n"
        "for label, i, v in (('teapot', 1, 0), ('leaf', 7, 3)):\n"
        "    print(hashlib.sha256(jpeg_bytes(Sample(label, i, v))).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hashlib.sha256(jpeg_bytes(s)).hexdigest() for s in chosen]


def test_order_and_selection_change_nothing():
    alone = jpeg_bytes(Sample("clock", 1, 1), size=SMALL)
    chosen = samples(classes=["lamp", "clock"], instances=2, views=2)
    drawn = {sample: jpeg_bytes(sample, size=SMALL) for sample in reversed(list(chosen))}
    assert drawn[Sample("clock", 1, 1)] == alone


def test_another_seed_draws_other_things():
    assert np.abs(pixels(Sample("mug", 0, 0)) - pixels(Sample("mug", 0, 0), seed=1)).mean() > 8


def test_views_of_one_instance_differ():
    views = [pixels(Sample("backpack", 2, view)) for view in range(5)]
    for i, one in enumerate(views):
        assert all(np.abs(one - other).mean() > 8 for other in views[:i])


def test_jpeg_bytes_are_a_jpeg_file_of_the_size_and_quality_asked_for():
    sample = Sample("guitar", 0, 0)
    fine, coarse = (jpeg_bytes(sample, size=SMALL, quality=q) for q in (95, 40))
    with Image.open(io.BytesIO(fine)) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", SMALL, "RGB")
    assert len(coarse) < len(fine)


def test_write_samples_makes_a_folder_for_each_class(tmp_path: Path):
    folder = tmp_path / "new"
    paths = write_samples(folder, classes=["car", "fish"], instances=2, views=2, size=SMALL)
    assert len(paths) == 8
    assert sorted(paths) == sorted(folder.rglob("*.jpg"))
    assert paths[0] == folder / "car" / "car-00-0.jpg"
    assert paths[0].read_bytes() == jpeg_bytes(Sample("car", 0, 0), size=SMALL)


def colors(sample: Sample) -> np.ndarray:
    """A histogram of colors, 6 steps for each channel, of the picture's middle; unit length."""
    middle = pixels(sample)[20:100, 35:125].reshape(-1, 3)
    bins, _ = np.histogramdd(middle, bins=(6, 6, 6), range=((0, 256),) * 3)
    counts = np.sqrt(bins.ravel())
    return counts / np.linalg.norm(counts)


def test_the_same_thing_seen_twice_is_found_by_its_colors():
    classes = ["mug", "car", "butterfly", "umbrella"]
    indexed = [s for s in samples(classes=classes, instances=6, views=4) if s.view]
    queries = [Sample(label, instance, 0) for label in classes for instance in range(6)]
    scores = np.stack([colors(s) for s in queries]) @ np.stack([colors(s) for s in indexed]).T
    best = [indexed[i] for i in scores.argmax(axis=1)]
    found = [a.instance_id == b.instance_id for a, b in zip(queries, best, strict=True)]
    assert np.mean(found) > 0.6  # by chance: 0.04


def border(sample: Sample) -> np.ndarray:
    """The mean color of the picture's four corners: background only."""
    picture = pixels(sample)
    corners = (picture[:8, :8], picture[:8, -8:], picture[-8:, :8], picture[-8:, -8:])
    return np.concatenate([corner.mean(axis=(0, 1)) for corner in corners])


def test_the_background_does_not_tell_the_instance():
    drawn = list(samples(classes=["mug", "teapot"], instances=10, views=4))
    edges = np.stack([border(s) for s in drawn])
    apart = np.linalg.norm(edges[:, None] - edges[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    best = [drawn[i] for i in apart.argmin(axis=1)]
    found = [a.instance_id == b.instance_id for a, b in zip(drawn, best, strict=True)]
    assert np.mean(found) < 0.15  # by chance: 0.04
