"""`lookalike compare`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import lookalike as package
from lookalike.cli import compare
from lookalike.errors import LookalikeError
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processes that measure, too."""
    monkeypatch.setenv("LOOKALIKE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parent.parent))


def test_models_are_measured_and_the_one_that_fails_is_named(
    lookalike: Run, pictures: Path
) -> None:
    models = ["color", "color,resize=crop", "color,head=gone.safetensors"]
    flags = [word for model in models for word in ("--model", model)]
    done = lookalike("compare", "pictures", "-k", "3", *flags)
    assert done.exit_code == 1, done.exception
    assert "18 pictures, 18 queries" in done.stdout
    assert "color,head=gone.safetensors: There is no file" in done.stderr
    report = json.loads(Path("compared/comparison.json").read_text())
    assert [one["name"] for one in report["models"]] == models[:2]
    assert [one["name"] for one in report["failed"]] == models[2:]
    assert report["dataset"]["pictures"] == 18
    for one in report["models"]:
        cost = one["cost"]
        assert cost["timed"] == 18
        assert cost["load_s"] > 0
        assert cost["cpu_ms"] > 0
        assert cost["peak_bytes"] > 10_000_000
        assert len(one["differences"]) == len(one["metrics"])
    assert "same model" in done.stdout  # color has one way to resize
    page = Path("compared/comparison.html").read_text()
    assert page.startswith("<!doctype html>")
    lookalike("evaluate", "pictures", "-k", "3")
    alone = json.loads(Path("output/report.json").read_text())
    assert report["models"][0]["metrics"] == alone["metrics"]
    assert report["dataset"]["sha256"] == alone["dataset"]["sha256"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--model", "color"], "two models or more"),
        (["--model", "color", "--model", "color"], "named twice"),
        (["--model", "color", "--model", "resnt18"], "Did you mean 'resnet18'"),
        (["--model", "color", "--model", "resnet18,size=3"], "'size=3' is no setting"),
        (["--model", "color", "--model", "resnet18,crop"], "'crop' is no setting"),
        (["--model", "color", "--model", "resnet18,input_size=x"], "INPUT_SIZE"),
        (["--kind", "flat", "--model", "color", "--model", "resnet18"], "no labels"),
    ],
)
def test_what_cannot_be_compared(
    lookalike: Run, pictures: Path, words: list[str], why: str
) -> None:
    refused = lookalike("compare", "pictures", *words)
    assert isinstance(refused.exception, LookalikeError)
    assert why in str(refused.exception)
    assert not Path("compared").exists()


def test_a_collection_has_its_vectors_already(lookalike: Run) -> None:
    models = ("--model", "color", "--model", "resnet18")
    refused = lookalike("compare", "--collection", "shop", *models)
    assert "Name a DATASET" in str(refused.exception)


def test_a_process_that_is_killed_is_named(
    lookalike: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_MEASURE", "import os; os.kill(os.getpid(), 9)")
    done = lookalike("compare", "pictures", "--model", "color", "--model", "resnet18")
    assert "No model could be measured" in str(done.exception)
    if os.name == "posix":
        assert "SIGKILL" in str(done.exception)
