"""What a training leaves behind: files that others can read."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import StorageError, WeightsError
from lookalike.models.head import Head, load_head
from lookalike.services.vector_set import Skipped
from lookalike.training.comparison import Compared, compare, with_head
from lookalike.training.files import QUERIES, before_after_sheet, draw_curves, write_training
from lookalike.training.plan import TrainingOptions
from lookalike.training.trainer import TrainingResult, train_head
from tests.evaluation.made import clouds, drawn_set, vector_set

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawn():
    classes = ["mug", "car", "fish", "leaf", "lamp", "clock", "house", "chair", "flower", "bottle"]
    return drawn_set(classes=classes, instances=3, views=2)


@pytest.fixture(scope="module")
def result(drawn) -> TrainingResult:
    return train_head(drawn, options=TrainingOptions(epochs=3, dim=24))


@pytest.fixture(scope="module")
def compared(drawn, result) -> tuple[Compared, ...]:
    return compare(drawn, with_head(drawn, result.head), result.split)


def test_three_lines_of_the_documentation_load_it(
    drawn, result, compared, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    write_training(result, with_head(drawn, result.head), compared, tmp_path / "head")
    (lines,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL
    )
    assert len(lines.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    space: dict = {"np": np, "load_head": load_head}
    exec(lines, space)  # what the page tells people to run
    assert isinstance(space["model"], Head)
    np.testing.assert_array_equal(space["model"].apply(drawn.vectors), space["embeddings"])
    assert space["labels"].tolist() == list(drawn.labels)
    assert np.load("head/ids.npy").tolist() == list(drawn.ids)
    assert space["embeddings"].shape == (60, 24)
    assert space["embeddings"].dtype == np.float32


def test_metrics_are_complete_and_are_json(drawn, result, compared, tmp_path):
    write_training(result, with_head(drawn, result.head), compared, tmp_path)
    text = (tmp_path / "metrics.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["head"]["sha256"] == result.head.digest
    assert found["options"]["loss"] == "triplet"
    assert [epoch["number"] for epoch in found["training"]["epochs"]] == [1, 2, 3]
    for part, own in zip(found["parts"], compared, strict=True):
        assert part["before"][0]["value"] == own.before.metrics[0].value
        assert part["after"][0]["high"] == own.after.metrics[0].high
        assert part["change"][0]["low"] == own.changes[0].low
    described = json.loads((tmp_path / "head.json").read_text())["trained"]
    after = described["metrics"]["unseen"]["after"]["MAP@R"]
    assert after == pytest.approx(compared[0].after.metric("map_at_r").value, abs=1e-4)


def test_sheets_have_the_same_queries_and_right_matches_framed(compared):
    sheet = before_after_sheet(compared[0], seed=0)
    assert before_after_sheet(compared[0], seed=0).tobytes() == sheet.tobytes()
    classes = len(set(compared[0].plain.labels))
    rows = 2 * min(QUERIES, classes)
    assert sheet.height % rows == 0
    height = sheet.height // rows
    queries = [
        np.asarray(sheet.crop((24, row * height + 40, 190, row * height + 200)))
        for row in range(rows)
    ]
    for before, after in zip(queries[::2], queries[1::2], strict=True):
        np.testing.assert_array_equal(before[30:], after[30:])
    pixels = np.asarray(sheet).reshape(-1, 3)
    green, red = ((pixels == color).all(axis=1).any() for color in ((22, 128, 60), (198, 40, 40)))
    assert green
    assert red


def test_curves_are_a_picture_with_and_without_validation(result):
    with Image.open(io.BytesIO(draw_curves(result))) as picture:
        assert picture.format == "PNG"
        assert picture.size == (1080, 780)
    rows, labels = clouds([2, 2, 3])
    without = train_head(vector_set(rows, labels), options=TrainingOptions(epochs=2, dim=8))
    assert draw_curves(without) != draw_curves(result)


def test_a_set_without_anything_to_measure(tmp_path):
    rows, labels = clouds([2, 2, 3])
    vectors = vector_set(rows, labels, skipped=[Skipped("bad.jpg", "no picture")])
    result = train_head(vectors, options=TrainingOptions(epochs=2, dim=8))
    compared = compare(vectors, with_head(vectors, result.head), result.split)
    assert compared == ()
    paths = write_training(result, with_head(vectors, result.head), compared, tmp_path)
    assert not (tmp_path / "contact-sheet.png").exists()
    assert all(path.is_file() for path in paths)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["parts"] == []
    assert found["dataset"]["skipped"] == [{"name": "bad.jpg", "reason": "no picture"}]


def test_a_folder_that_cannot_be_written(drawn, result, compared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, WeightsError), match="cannot be written"):
        write_training(result, with_head(drawn, result.head), compared, tmp_path / "file")
