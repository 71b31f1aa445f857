"""`lookalike train`, on a dataset and a collection, and the head that it makes in use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import ConfigurationError, WeightsMismatchError
from lookalike.models.head import load_head
from scripts.samples import CLASSES, write_samples


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve classes of four things in two views."""
    folder = tmp_path / "many"
    write_samples(folder, classes=CLASSES[:12], instances=4, views=2, size=(48, 36))
    return folder


QUICK = ("--epochs", "4", "--dim", "24", "--learning-rate", "0.001")


def test_a_folder_is_trained_on_and_its_head_served(lookalike, many, tmp_path):
    done = lookalike("train", "many", *QUICK, "--hold-out-classes", "3")
    assert done.exit_code == 0, done.exception
    out = tmp_path / "head"
    assert {path.name for path in out.iterdir()} == {
        ".lookalike",
        "head.safetensors",
        "head.json",
        "embeddings.npy",
        "labels.npy",
        "ids.npy",
        "metrics.json",
        "curves.png",
        "contact-sheet.png",
    }  # the checkpoint is gone
    metrics = json.loads((out / "metrics.json").read_text())
    names = [part["name"] for part in metrics["parts"]]
    assert names == ["unseen", "held_out"]
    assert metrics["split"]["unseen"]["pictures"] == 24
    for part in metrics["parts"]:
        rows = zip(part["before"], part["after"], part["change"], strict=True)
        for before, after, change in rows:
            if before["title"] == "Hit rate@5":
                cells = f"{before['value']:.4f} │ {after['value']:.4f} │ {change['value']:+.4f}"
                assert cells in done.stdout
                assert f"{change['low']:+.3f} to {change['high']:+.3f}" in done.stdout
    for title in ("Top-1 accuracy", "Top-5 accuracy", "Top-10 accuracy", "R-precision"):
        assert done.stdout.count(title) == 2
    assert "epoch 4/4  loss 0." in done.stderr
    assert "validation MAP@R 0." in done.stderr
    with Image.open(out / "contact-sheet.png") as sheet, Image.open(out / "curves.png") as curves:
        assert sheet.height > 6 * 160  # three queries, before and after
        assert curves.width > 500
    head = load_head(out)
    assert head.trained["metrics"]["unseen"]["after"].keys() >= {"Hit rate@1", "MAP@R"}
    measured = lookalike("evaluate", "many", "--head", "head", "-k", "3")
    assert measured.exit_code == 0, measured.exception
    assert "24 numbers" in measured.stdout
    assert f"with head {head.digest[:8]}, " in measured.stdout
    assert lookalike("index", "many", "--head", "head").exit_code == 0
    picture = next(many.rglob("*.jpg"))
    found = lookalike("search", str(picture), "--head", "head", "-k", "1", "--json")
    assert json.loads(found.stdout)["matches"][0]["score"] == pytest.approx(1, abs=1e-6)
    again = lookalike("train", "-c", "default", "--label-field", "x")
    assert again.exit_code != 0


def test_a_collection_is_trained_on(lookalike, many, tmp_path):
    assert lookalike("index", "many", "--folder-field", "kind").exit_code == 0
    words = ("train", "-c", "default", "--label-field", "kind", *QUICK, "--out", "made/here")
    done = lookalike(*words, "--loss", "multi_similarity", "--hidden", "40", "--hidden", "30")
    assert done.exit_code == 0, done.exception
    head = load_head(tmp_path / "made" / "here")
    assert head.spec.widths == (48, 40, 30, 24)
    labels = np.load(tmp_path / "made" / "here" / "labels.npy")
    assert sorted(set(labels.tolist())) == sorted(CLASSES[:12])
    unlabeled = lookalike("train", "-c", "default")
    assert isinstance(unlabeled.exception, ConfigurationError)
    assert "--label-field" in str(unlabeled.exception)
    asked = ("evaluate", "many", "--head", "made/here")
    other = lookalike(*asked, "--model", "resnet18", "--weights", "random", "--input-size", "32")
    assert isinstance(other.exception, WeightsMismatchError)
    assert "model is color in the head's and resnet18 here" in str(other.exception)


def test_few_classes_go_without_what_they_are_too_few_for(lookalike, pictures, tmp_path):
    (pictures / "lonely").mkdir()
    (pictures / "fish" / "fish-00-0.jpg").rename(pictures / "lonely" / "one.jpg")
    done = lookalike("train", "pictures", *QUICK)
    assert done.exit_code == 0, done.exception
    text = " ".join(done.stdout.split())
    assert "1 pictures are left out: no other picture has their label" in text
    assert "No classes are held out" in text
    assert "other pictures of the classes that are trained on" in text
    assert [part["name"] for part in metrics_of(tmp_path)["parts"]] == ["held_out"]


def metrics_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "head" / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--margin", "0"], "margin is 0"),
        (["--hold-out-classes", "1"], "hold out classes"),
        (["--hold-out-classes", "2"], "2 of 3 classes cannot be held out"),
        (["--epochs", "0"], "epochs"),
    ],
)
def test_asked_for_wrongly(lookalike, pictures, words, text):
    done = lookalike("train", "pictures", *words)
    assert isinstance(done.exception, ConfigurationError)
    assert text in str(done.exception)


def test_one_class_is_refused(lookalike, pictures, tmp_path):
    (tmp_path / "one").mkdir()
    (pictures / "mug").rename(tmp_path / "one" / "mug")
    done = lookalike("train", "one", "--kind", "folder")
    assert isinstance(done.exception, ConfigurationError)
    assert "All pictures have the label 'mug'" in str(done.exception)


def test_the_whole_network_is_trained_and_served(lookalike, pictures, tmp_path):
    model = ("--model", "resnet18", "--input-size", "32", "--device", "cpu")
    words = ("train", "pictures", "--full", "--epochs", "1", "--dim", "16", *model)
    done = lookalike(*words, "--weights", "random", "--gradient-checkpointing")
    assert done.exit_code == 0, done.exception
    weights = "head/backbone.safetensors"
    served = f"LOOKALIKE_WEIGHTS={weights} LOOKALIKE_HEAD=head/head.safetensors"
    assert served in " ".join(done.stdout.split())
    asked = ("evaluate", "pictures", "--weights", weights, "--head", "head", "-k", "3", *model)
    assert "16 numbers" in lookalike(*asked).stdout
    other = lookalike("train", "-c", "default", "--label-field", "x", "--full")
    assert "--full belongs to a DATASET" in str(other.exception)


def test_interrupted_by_hand_it_goes_on(lookalike, many, tmp_path):
    words = ["train", "many", *QUICK, "--epochs", "40", "--patience", "40"]
    command = [sys.executable, "-c", "from lookalike.cli.main import run; run()", *words]

    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # A shell in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as child:
        assert child.stderr is not None
        line = child.stderr.readline()
        while line and "epoch 3/" not in line:
            line = child.stderr.readline()
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
    assert child.returncode == 130
    assert "head/checkpoint.pt is kept, the same command goes on" in rest
    done = lookalike(*words)
    assert done.exit_code == 0, done.exception
    assert "of an interrupted run" in done.stdout
    resumed = load_head(tmp_path / "head").digest
    whole = lookalike(*words, "--out", "whole")
    assert whole.exit_code == 0, whole.exception
    assert load_head(tmp_path / "whole").digest == resumed
