"""Training on cached features: what it learns, that it repeats, survives, stops and refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lookalike.errors import ConfigurationError, InvalidParameterError
from lookalike.evaluation.runner import evaluate
from lookalike.services.vector_set import VectorSet
from lookalike.training.comparison import compare, with_head
from lookalike.training.plan import TrainingOptions
from lookalike.training.task import build_loss
from lookalike.training.trainer import (
    STUCK_EPOCHS,
    Epoch,
    TrainingResult,
    check_collapse,
    spread,
    train_head,
)
from tests.evaluation.made import clouds, vector_set

QUICK = TrainingOptions(epochs=8, dim=32, learning_rate=1e-3)


def tangled(*, classes: int = 15, each: int = 12, dim: int = 48, seed: int = 5) -> VectorSet:
    """Classes that lie apart in 8 directions, under noise in the 40 others that is stronger."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(classes), each)
    rows = rng.normal(size=(len(codes), dim))
    rows[:, :8] = rng.normal(size=(classes, 8))[codes] + 0.35 * rng.normal(size=(len(codes), 8))
    mixed = rows @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return vector_set(mixed.astype(np.float32), [f"class {code:02d}" for code in codes])


@pytest.fixture(scope="module")
def data() -> VectorSet:
    return tangled()


@pytest.fixture(scope="module")
def trained(data) -> TrainingResult:
    return train_head(data, options=QUICK)


def test_a_head_finds_what_tells_classes_apart():
    vectors = tangled(classes=30, each=30)
    result = train_head(vectors, options=TrainingOptions(dim=96, learning_rate=1e-3, epochs=12))
    unseen, held_out = compare(vectors, with_head(vectors, result.head), result.split)
    for part in (unseen, held_out):
        before, after = part.before.metric("map_at_r"), part.after.metric("map_at_r")
        assert after.low > before.high, part.title
    assert result.validation_before is not None
    best = result.history[result.best_epoch - 1]
    assert best.validation is not None
    assert best.validation > result.validation_before
    assert best.validation == max(epoch.validation or 0 for epoch in result.history)


def test_the_two_parts_are_measured_as_they_are(data, trained):
    unseen, held_out = compare(data, with_head(data, trained.head), trained.split)
    labels = np.array(data.labels)
    for part, positions in (
        (unseen, trained.split.unseen),
        (held_out, trained.split.held_out),
    ):
        assert list(part.plain.ids) == [data.ids[position] for position in positions]
        assert list(part.plain.labels or ()) == list(labels[positions])
        np.testing.assert_array_equal(part.plain.vectors, data.vectors[positions])
        np.testing.assert_array_equal(
            part.headed.vectors, trained.head.apply(data.vectors[positions])
        )
        assert part.headed.spec.head == trained.head.digest
        assert part.after.metrics == evaluate(part.headed).metrics
        assert part.before.metrics == evaluate(part.plain).metrics
        for before, after, change in zip(
            part.before.metrics, part.after.metrics, part.changes, strict=True
        ):
            assert change.value == pytest.approx(after.value - before.value, abs=1e-12)
            assert change.low <= change.value <= change.high
            width = max(after.high - after.low, before.high - before.low)
            assert change.high - change.low < 2 * width + 1e-9
    assert unseen.plain.picture(0, size=8).getpixel((0, 0)) == data.picture(
        int(trained.split.unseen[0]), size=8
    ).getpixel((0, 0))


def test_the_head_is_the_best_epoch_and_says_what_it_is(data, trained):
    head = trained.head
    assert (head.spec.dim_in, head.spec.dim_out, head.backbone) == (48, 32, data.spec)
    assert head.trained["options"]["seed"] == 0
    assert head.trained["epoch"] == trained.best_epoch
    watched = head.apply(data.vectors[trained.split.validation])
    labels = [data.labels[position] for position in trained.split.validation]
    measured = evaluate(vector_set(watched, labels)).metric("map_at_r").value
    best = trained.history[trained.best_epoch - 1]
    assert measured == pytest.approx(best.validation, abs=1e-6)


def test_the_same_seed_gives_the_same_head_and_another_another(data, trained):
    torch.manual_seed(77)
    np.random.seed(77)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    again = train_head(data, options=QUICK)
    assert again.head.digest == trained.head.digest
    assert again.history == trained.history
    assert (
        np.random.get_state(legacy=False)["state"]["key"] == state
    ).all()  # nobody else's chance is touched
    assert torch.initial_seed() == 77
    assert train_head(data, options=replace(QUICK, seed=1)).head.digest != trained.head.digest


def test_multi_similarity_trains_too(data, trained):
    result = train_head(data, options=replace(QUICK, loss="multi_similarity"))
    assert result.head.digest != trained.head.digest
    assert result.history[-1].loss < result.history[0].loss


def plain_semi_hard(vectors: np.ndarray, labels: list[int], margin: float) -> tuple[float, int]:
    """The definition, triplet by triplet: mean of those losses that are above zero."""
    cosines = vectors @ vectors.T
    losses = []
    for a, own in enumerate(labels):
        for p, other in enumerate(labels):
            for n, third in enumerate(labels):
                if a != p and own == other and own != third:
                    lead = cosines[a, p] - cosines[a, n]
                    if 0 < lead <= margin:
                        losses.append(margin - lead)
    return float(np.mean([loss for loss in losses if loss > 0])), len(losses)


def test_the_triplet_loss_is_its_definition():
    rows, names = clouds([5, 4, 6], dim=6)
    labels = [int(name[-3:]) for name in names]
    loss, count = build_loss(TrainingOptions(margin=0.3))(
        torch.from_numpy(rows), torch.tensor(labels)
    )
    wanted, triplets = plain_semi_hard(rows.astype(np.float64), labels, 0.3)
    assert count == triplets
    assert float(loss) == pytest.approx(wanted, abs=1e-6)


def test_the_first_head_is_near_the_features_as_they_are():
    from lookalike.models.head import HeadSpec
    from lookalike.training.task import HeadNetwork

    square = HeadNetwork(HeadSpec(dim_in=6, dim_out=6), seed=0).layers[0]
    assert isinstance(square, nn.Linear)
    assert torch.equal(square.weight, torch.eye(6))
    wide = HeadNetwork(HeadSpec(dim_in=9, dim_out=6), seed=0).layers[0]
    assert isinstance(wide, nn.Linear)
    torch.testing.assert_close(wide.weight @ wide.weight.T, torch.eye(6))


def test_the_means_and_variances_are_those_of_all_that_was_trained_on():
    from lookalike.models.head import HeadSpec
    from lookalike.training.task import HeadNetwork

    network = HeadNetwork(HeadSpec(dim_in=16, dim_out=16, hidden=(12,)), seed=0)
    rows = torch.from_numpy(clouds([40, 30])[0])
    network(rows + 5)  # whatever was seen before
    network.settle(rows)
    settled = network.embed(rows)
    network.train()
    with torch.no_grad():
        as_one_batch = network(rows).numpy()
    np.testing.assert_allclose(settled, as_one_batch, atol=0.02)  # n - 1 in place of n


def test_a_trained_head_has_the_statistics_of_what_it_was_trained_on(data, trained):
    tensors = trained.head.tensors
    rows = data.vectors[trained.split.train]
    hidden = np.maximum(rows @ tensors["0.weight"].T + tensors["0.bias"], 0)
    np.testing.assert_allclose(tensors["2.running_mean"], hidden.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(tensors["2.running_var"], hidden.var(axis=0, ddof=1), atol=1e-6)


def test_it_stops_early_and_keeps_the_best():
    rows, _ = clouds([120], dim=16)
    labels = [f"{n % 12}" for n in range(120)]  # nothing to learn
    options = TrainingOptions(epochs=60, patience=3, dim=16, learning_rate=1e-3)
    result = train_head(vector_set(rows, labels), options=options)
    assert result.stopped == "early"
    assert len(result.history) == result.best_epoch + 3 < 60
    assert max(result.history, key=lambda epoch: epoch.validation or 0).number == result.best_epoch


def test_a_head_that_does_not_help_says_so():
    rows, _ = clouds([10] * 15, dim=16, spread=0.15)  # nothing is left to improve
    labels = [f"{n:03d}" for n in range(15) for _ in range(10)]
    order = np.argsort([int(name[-3:]) for name in clouds([10] * 15, dim=16, spread=0.15)[1]])
    result = train_head(vector_set(rows[order], labels), options=replace(QUICK, epochs=2))
    assert any("does not help" in note for note in result.notes)


CHILD = """
import sys, time
from pathlib import Path
from lookalike.training.trainer import train_head
from tests.training.test_training import QUICK, tangled

def tell(epoch, epochs):
    print(epoch.number, flush=True)
    time.sleep(60 if epoch.number == 6 else 0.1)  # to be killed before its last epoch

train_head(tangled(), options=QUICK, on_progress=tell, checkpoint=Path(sys.argv[1]))
"""


def test_killed_and_resumed_is_as_if_nothing_had_happened(data, trained, tmp_path):
    path = tmp_path / "out" / "checkpoint.pt"
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    seen = []
    result = train_head(
        data,
        options=QUICK,
        checkpoint=path,
        on_progress=lambda epoch, _: seen.append(epoch.number),
    )
    assert 3 <= result.resumed_after < 8
    assert seen == list(range(result.resumed_after + 1, 9))
    assert result.head.digest == trained.head.digest
    assert result.history == trained.history
    assert result.best_epoch == trained.best_epoch
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_interrupted_between_writing_and_telling(data, trained, tmp_path):
    path = tmp_path / "checkpoint.pt"

    def stop(epoch, _):
        if epoch.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_head(data, options=QUICK, checkpoint=path, on_progress=stop)
    result = train_head(data, options=QUICK, checkpoint=path)
    assert result.resumed_after == 3
    assert result.head.digest == trained.head.digest
    done = train_head(data, options=QUICK, checkpoint=path)  # nothing left to do
    assert (done.resumed_after, done.head.digest) == (8, trained.head.digest)


def test_another_or_a_damaged_checkpoint_starts_anew(data, trained, tmp_path):
    path = tmp_path / "checkpoint.pt"
    train_head(data, options=replace(QUICK, margin=0.1), checkpoint=path)
    result = train_head(data, options=QUICK, checkpoint=path)
    assert result.resumed_after == 0
    assert any("another training" in note for note in result.notes)
    assert result.head.digest == trained.head.digest
    path.write_bytes(path.read_bytes()[:1000])
    result = train_head(data, options=QUICK, checkpoint=path)
    assert any("damaged" in note for note in result.notes)
    moved = replace(data, vectors=np.roll(data.vectors, 1, axis=0))
    assert train_head(moved, options=QUICK, checkpoint=path).resumed_after == 0


def test_a_broken_dataset_is_refused(data):
    labels = list(data.labels)
    with pytest.raises(InvalidParameterError, match="no labels"):
        train_head(replace(data, labels=None))
    with pytest.raises(ConfigurationError, match="All pictures have the label 'x'"):
        train_head(replace(data, labels=["x"] * len(labels)))
    with pytest.raises(ConfigurationError, match="two such classes"):
        train_head(replace(data, labels=[str(n) for n in range(len(labels))]))
    with pytest.raises(ConfigurationError, match="come from a head already"):
        train_head(replace(data, spec=replace(data.spec, head="f" * 64)))
    for value in (np.nan, np.inf, 0.5):
        vectors = data.vectors.copy()
        vectors[7, 3] = value
        with pytest.raises(ConfigurationError, match="id7 has NaN"):
            train_head(replace(data, vectors=vectors))


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 0},
        {"margin": -0.1},
        {"margin": float("nan")},
        {"margin": 2},
        {"loss": "arcface"},
        {"epochs": 0},
        {"patience": 0},
        {"dim": 0},
        {"hidden": (0,)},
        {"dim": 10**11},
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"weight_decay": -1},
        {"pictures_per_class": 1},
        {"classes_per_batch": 1},
        {"hold_out_classes": 1},
        {"hold_out_classes": -0.1},
        {"hold_out_classes": 2.5},
        {"hold_out_pictures": 1},
        {"validation": -0.2},
        {"seed": -1},
    ],
)
def test_an_option_out_of_its_range_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=name.replace("_", " ")):
        TrainingOptions(**wrong)


def test_pictures_that_are_all_alike_collapse():
    rows = np.zeros((60, 16), dtype=np.float32)
    rows[:, 0] = 1
    labels = [f"{n % 12}" for n in range(60)]
    with pytest.raises(ConfigurationError, match=r"collapsed.*--learning-rate"):
        train_head(vector_set(rows, labels), options=QUICK)


def epochs(*losses: float, spread: float = 0.5) -> list[Epoch]:
    """A history with these losses."""
    return [
        Epoch(number=n, loss=loss, mined=9, spread=spread, validation=None, learning_rate=1e-3)
        for n, loss in enumerate(losses, start=1)
    ]


def test_a_loss_that_stays_at_the_margin_is_stuck():
    near = [0.199] * (STUCK_EPOCHS - 1)
    history = epochs(*near, 0.15, *near, 0.199)  # it moved once: counted from there again
    for done in range(1, len(history)):
        check_collapse(history[:done], margin=0.2)
    with pytest.raises(ConfigurationError, match="for 5 epochs the loss has been at the margin"):
        check_collapse(history, margin=0.2)
    check_collapse(epochs(*[5.0] * 20), margin=None)


@pytest.mark.parametrize(("loss", "spread"), [(np.nan, 0.5), (np.inf, 0.5), (0.1, np.nan)])
def test_a_loss_that_is_no_number_stops(loss, spread):
    with pytest.raises(ConfigurationError, match="--learning-rate"):
        check_collapse(epochs(loss, spread=spread), margin=None)


def test_a_learning_rate_far_too_high_ends_with_advice(data):
    with pytest.raises(ConfigurationError, match="--learning-rate"):
        train_head(data, options=replace(QUICK, learning_rate=1e30))


def test_the_spread_is_the_mean_over_pairs():
    rows, _ = clouds([9, 8], dim=5)
    cosines = [rows[i] @ rows[j] for i in range(17) for j in range(17) if i != j]
    assert spread(rows) == pytest.approx(1 - np.mean(cosines), abs=1e-6)


def test_a_thread_number_is_put_back(data):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_head(data, options=replace(QUICK, epochs=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_that_cannot_be_written(data, tmp_path):
    from lookalike.errors import StorageError

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="checkpoint"):
        train_head(data, options=QUICK, checkpoint=Path(tmp_path / "file" / "checkpoint.pt"))
