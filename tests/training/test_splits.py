"""Which pictures go where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import ConfigurationError
from lookalike.evaluation.metrics import encode_labels
from lookalike.training.plan import Split, TrainingOptions, make_split


def split_of(sizes: list[int], **options: Any) -> tuple[Split, np.ndarray]:
    labels = [f"c{number:03d}" for number, size in enumerate(sizes) for _ in range(size)]
    classes = encode_labels(labels)
    return make_split(classes, TrainingOptions(**options)), classes.codes


def classes_in(codes: np.ndarray, positions: np.ndarray) -> set[int]:
    return set(codes[positions].tolist())


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30),
    seed=st.integers(0, 5),
    share=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    validation=st.sampled_from([0.0, 0.2, 0.4]),
)
def test_nothing_is_lost_shared_or_alone(sizes, seed, share, validation):
    if sum(size >= 2 for size in sizes) < 2:
        with pytest.raises(ConfigurationError):
            split_of(sizes)
        return
    split, codes = split_of(sizes, seed=seed, hold_out_pictures=share, validation=validation)
    parts = [split.train, split.validation, split.held_out, split.unseen]
    together = np.concatenate(parts)
    assert len(set(together.tolist())) == len(together)
    assert len(together) + split.alone == sum(sizes)
    assert split.alone == sizes.count(1)
    for part in parts:  # what cannot be found within a part is no query, and teaches nothing
        assert (np.diff(part) > 0).all()
        assert all(count != 1 for count in np.bincount(codes[part], minlength=1))
    train, unseen = classes_in(codes, split.train), classes_in(codes, split.unseen)
    assert len(train) == split.train_classes >= 2
    assert not unseen & (train | classes_in(codes, split.validation))
    assert classes_in(codes, split.held_out) <= train
    assert len(unseen) == len(split.unseen_classes)
    assert split.unseen_classes == tuple(sorted(f"c{code:03d}" for code in unseen))
    shared = classes_in(codes, split.validation) & train
    assert (split.validation_by == "class") == (bool(len(split.validation)) and not shared)
    assert (split.validation_by == "none") == (not len(split.validation))


def test_caltech_as_in_the_protocol():
    split, _ = split_of([30] * 25, hold_out_classes=10)
    assert len(split.unseen_classes) == 10
    assert len(split.unseen) == 300
    assert (split.validation_by, split.validation_classes, split.train_classes) == ("class", 3, 12)
    assert (len(split.validation), len(split.held_out), len(split.train)) == (90, 72, 288)
    by_share, _ = split_of([30] * 25, hold_out_classes=0.4)
    np.testing.assert_array_equal(by_share.unseen, split.unseen)
    assert not split.notes
    other, _ = split_of([30] * 25, hold_out_classes=10, seed=1)
    assert other.unseen_classes != split.unseen_classes


def test_few_classes_are_validated_by_picture():
    split, codes = split_of([20] * 4)
    assert split.validation_by == "picture"
    assert classes_in(codes, split.validation) == classes_in(codes, split.train)
    assert any("other pictures of the classes" in note for note in split.notes)
    assert any("No classes are held out" in note for note in split.notes)
    assert len(split.unseen) == 0


def test_too_few_of_everything_goes_without_validation():
    split, _ = split_of([2, 2, 3])
    assert (split.validation_by, len(split.validation), len(split.held_out)) == ("none", 0, 0)
    assert len(split.train) == 7
    assert any("no validation" in note for note in split.notes)
    assert any("No pictures are held out" in note for note in split.notes)


def test_classes_of_one_are_counted():
    split, _ = split_of([1, 30, 1, 30, 1])
    assert split.alone == 3
    assert any(note.startswith("3 pictures are left out") for note in split.notes)


@pytest.mark.parametrize(("wanted", "count"), [(9, 9), (0.01, 0), (0.95, 10), (24, 24)])
def test_holding_out_too_many_or_too_few_is_refused(wanted, count):
    with pytest.raises(ConfigurationError, match=f"{count} of 10 classes cannot be held out"):
        split_of([5] * 10, hold_out_classes=wanted)
    split, _ = split_of([5] * 10, hold_out_classes=8)
    assert split.train_classes == 2
    split, _ = split_of([5] * 10, hold_out_classes=0)
    assert len(split.unseen) == 0
