"""`lookalike evaluate` and `lookalike map`, on datasets and collections."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import ConfigurationError, InvalidParameterError, LookalikeError
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.models.color import ColorEncoder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def precision(pictures: Path, k: int) -> float:
    """Written out plainly: the mean share of the k nearest others that have the same folder."""
    paths = sorted(pictures.rglob("*.jpg"))
    encoder = ColorEncoder()
    images = [
        decode_image(path.read_bytes(), limits=ImageLimits(), decode_size=encoder.decode_size)
        for path in paths
    ]
    vectors = encoder.encode([encoder.prepare(one.image) for one in images])
    scores = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(scores, -2)
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    labels = np.array([path.parent.name for path in paths])
    return float((labels[nearest] == labels[:, None]).mean())


@pytest.mark.parametrize("index", ["auto", "HNSW32,SQ8"])
def test_it_is_exact_whatever_index_is_set(lookalike, pictures, tmp_path, monkeypatch, index):
    monkeypatch.setenv("LOOKALIKE_INDEX", index)
    done = lookalike("evaluate", "pictures", "-k", "3")
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    measured = {(m["name"], m["k"]): m["value"] for m in report["metrics"]}
    assert measured["precision", 3] == pytest.approx(precision(pictures, 3), abs=1e-12)


def test_a_folder_is_evaluated(lookalike, pictures, tmp_path):
    done = lookalike("evaluate", "pictures", "-k", "3")
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    measured = {(m["name"], m["k"]): m["value"] for m in report["metrics"]}
    assert measured["precision", 3] == pytest.approx(precision(pictures, 3), abs=1e-12)
    assert f"{measured['precision', 3]:.4f}" in done.stdout
    assert "18 pictures, 3 classes" in done.stdout
    page = (tmp_path / "output" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "data:image/jpeg;base64," in page
    again = lookalike("evaluate", "pictures", "-k", "3", "--json", "--out", "elsewhere")
    metrics = json.loads(again.stdout)["metrics"]
    assert metrics == report["metrics"]


GREEN, RED = (22, 128, 60), (198, 40, 40)


def colors(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    return {tuple(color) for color in np.unique(pixels, axis=0)}


def test_one_query_is_shown(lookalike, pictures, tmp_path):
    done = lookalike("evaluate", "pictures", "--query-index", "4", "-k", "5")
    assert done.exit_code == 0, done.exception
    first, second, third = done.stdout.splitlines()
    assert first.startswith("Query 4: ")
    assert second in {f"Precision@5: {n / 5:.2f}" for n in range(6)}
    assert third == "Saved output/query-4.png"
    with Image.open(tmp_path / "output" / "query-4.png") as sheet:
        assert sheet.width > 5 * 160
    assert {GREEN, RED} & colors(tmp_path / "output" / "query-4.png")
    plain = lookalike("evaluate", "pictures", "--query-index", "4", "-k", "5", "--json")
    assert f"Precision@5: {json.loads(plain.stdout)['precision']:.2f}" == second
    assert json.loads(plain.stdout)["sheet"] == "output/query-4.png"
    beyond = lookalike("evaluate", "pictures", "--query-index", "18")
    assert isinstance(beyond.exception, InvalidParameterError)


def test_a_collection_is_evaluated_and_drawn(lookalike, pictures, tmp_path):
    assert lookalike("index", "pictures", "--folder-field", "kind").exit_code == 0
    done = lookalike("evaluate", "-c", "default", "--label-field", "kind", "-k", "3", "--json")
    assert done.exit_code == 0, done.exception
    measured = {(m["name"], m["k"]): m["value"] for m in json.loads(done.stdout)["metrics"]}
    assert measured["precision", 3] == pytest.approx(precision(pictures, 3), abs=1e-12)
    some = lookalike("map", "-c", "default", "--label-field", "kind", "--filter", '{"kind": "mug"}')
    assert some.exit_code == 0, some.exception
    assert "6 pictures" in some.stdout
    unlabeled = lookalike("evaluate", "-c", "default")
    assert isinstance(unlabeled.exception, ConfigurationError)
    assert "--label-field" in str(unlabeled.exception)


def test_a_map_is_drawn(lookalike, pictures, tmp_path):
    done = lookalike("map", "pictures", "--out", "drawn")
    assert done.exit_code == 0, done.exception
    assert "18 pictures; PCA kept 100.0% of the variance" in done.stdout
    files = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert files == {".lookalike", "map.html", "scatter.png", "grid.png", "places.csv"}
    with (tmp_path / "drawn" / "places.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 18
    for name in files - {".lookalike"}:
        assert f"drawn/{name}" in done.stdout


def test_what_cannot_be_read_is_counted(lookalike, pictures):
    (pictures / "mug" / "middle.jpg").write_bytes(b"\xff\xd8\xff no picture")
    done = lookalike("evaluate", "pictures")
    assert done.exit_code == 0, done.exception
    assert "18 pictures" in done.stdout
    assert "1 skipped" in done.stdout


def test_a_class_of_one_is_left_out_and_counted(lookalike, pictures):
    (pictures / "lonely").mkdir()
    (pictures / "fish" / "fish-00-0.jpg").rename(pictures / "lonely" / "one.jpg")
    done = lookalike("evaluate", "pictures", "-k", "3")
    assert done.exit_code == 0, done.exception
    assert "17 queries" in done.stdout
    assert "1 left out" in done.stdout


def test_k_beyond_the_dataset(lookalike, pictures):
    done = lookalike("evaluate", "pictures", "-k", "18")
    assert isinstance(done.exception, InvalidParameterError)
    assert "17" in str(done.exception)


def test_a_dataset_without_labels_or_pictures(lookalike, pictures, tmp_path):
    done = lookalike("evaluate", "pictures/mug")
    assert isinstance(done.exception, LookalikeError)
    assert "label" in str(done.exception)
    assert lookalike("map", "pictures/mug").exit_code == 0
    (tmp_path / "empty").mkdir()
    assert isinstance(lookalike("evaluate", "empty").exception, ConfigurationError)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["pictures", "-c", "default"],
        ["pictures", "--label-field", "kind"],
        ["pictures", "--filter", "{}"],
        ["-c", "default", "--limit", "5"],
        ["-c", "default", "--split", "train"],
        ["-c", "default", "--kind", "csv"],
        ["-c", "default", "--model", "resnet18"],
        ["nowhere"],
        ["-c", "default"],
    ],
)
def test_asked_for_wrongly(lookalike, pictures, words):
    assert isinstance(lookalike("evaluate", *words).exception, ConfigurationError)
    assert isinstance(lookalike("map", *words).exception, ConfigurationError)


def test_vectors_are_made_once(lookalike, pictures, cache):
    assert lookalike("evaluate", "pictures").exit_code == 0
    (saved,) = cache.rglob("vectors.npy")
    before = saved.stat()
    assert lookalike("evaluate", "pictures").exit_code == 0
    assert saved.stat().st_mtime_ns == before.st_mtime_ns
    assert saved.stat().st_ino == before.st_ino


def test_the_choice_of_queries_is_said_by_count_and_seed(lookalike, pictures):
    def report(*words: str) -> Any:
        done = lookalike("evaluate", "pictures", "-k", "2", "--json", *words)
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)

    first = report("--queries", "5", "--seed", "1")
    assert first["queries"]["asked"] == 5
    assert first["metrics"] == report("--queries", "5", "--seed", "1")["metrics"]
    others = [report("--queries", "5", "--seed", str(seed))["metrics"] for seed in range(2, 6)]
    assert any(first["metrics"] != other for other in others)


def test_a_map_takes_its_numbers(lookalike, pictures, tmp_path):
    few = lookalike("map", "pictures", "--components", "2")
    assert "PCA kept 100.0%" not in few.stdout
    places = (tmp_path / "output" / "places.csv").read_text()
    lookalike("map", "pictures", "--perplexity", "2")
    assert (tmp_path / "output" / "places.csv").read_text() != places


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "pictures", "--out", "taken"],
        ["map", "pictures", "--out", "taken"],
        ["cluster", "pictures", "--out", "taken"],
        ["search", "pictures/mug/mug-00-0.jpg", "--save", "taken/sheet.png"],
        ["duplicates", "--html", "taken/page.html"],
        ["duplicates", "--html", "pictures"],
    ],
)
def test_a_place_that_cannot_be_written_is_told_first(lookalike, pictures, tmp_path, cache, words):
    assert lookalike("index", "pictures").exit_code == 0
    (tmp_path / "taken").write_text("a file")
    done = lookalike(*words)
    assert isinstance(done.exception, ConfigurationError)
    assert "cannot be written" in str(done.exception)
    assert not cache.exists(), "before any work"
    assert not list(tmp_path.glob(".*.part"))


def test_pictures_without_the_label_are_skipped_and_not_called_broken(lookalike, pictures):
    assert (
        lookalike("index", "pictures/mug", "pictures/fish", "--folder-field", "kind").exit_code == 0
    )
    assert lookalike("index", "pictures/car").exit_code == 0
    done = lookalike("evaluate", "-c", "default", "--label-field", "kind", "-k", "3")
    assert done.exit_code == 0, done.exception
    assert "6 skipped; report.json names them and says why" in done.stdout


def test_no_labels_is_said_as_it_is(lookalike, pictures):
    done = lookalike("evaluate", "pictures/mug", "--query-index", "0", "-k", "3")
    assert "Precision@3: not known, there are no labels" in done.stdout


def test_splits_are_not_taken_for_classes_in_silence(lookalike, pictures, tmp_path):
    (tmp_path / "nest").mkdir()
    (pictures).rename(tmp_path / "nest" / "train")
    (tmp_path / "nest" / "test").mkdir()
    first = next((tmp_path / "nest" / "train").rglob("*.jpg"))
    first.rename(tmp_path / "nest" / "test" / "one.jpg")
    done = lookalike("evaluate", "nest", "-k", "3")
    assert "The classes are test, train: name one of these folders" in done.stderr


def test_a_limit_is_a_random_part(lookalike, pictures):
    done = lookalike("evaluate", "pictures", "--limit", "12", "-k", "2", "--seed", "3")
    assert done.exit_code == 0, done.exception
    assert "12 pictures" in done.stdout

    def names(seed: int) -> str:
        lookalike("map", "pictures", "--limit", "5", "--seed", str(seed))
        with Path("output/places.csv").open(newline="") as file:
            return ",".join(row["id"] for row in csv.DictReader(file))

    assert names(3) == names(3)
    assert len({names(seed) for seed in range(4)}) > 1
