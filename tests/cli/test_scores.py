"""`lookalike feedback` and `lookalike calibrate`, and what searches show then."""

from __future__ import annotations

import json
import re

import pytest

from scripts.samples import write_samples


@pytest.fixture
def ids(lookalike, pictures):
    lookalike("index", str(pictures), "--folder-field", "label")
    return [one["id"] for one in json.loads(lookalike("list", "--json").stdout)]


def test_feedback_is_given_listed_whole_and_taken_back(lookalike, pictures, ids):
    photo = str(pictures / "fish" / "fish-01-1.jpg")
    said = [
        lookalike("feedback", "add", ids[1], "wrong", "--query", ids[0]).stdout,
        lookalike("feedback", "add", ids[2], "right", "--image", photo).stdout,
    ]
    names = [one.partition(":")[0] for one in said]
    table = lookalike("feedback", "list", env={"COLUMNS": "80"}).stdout
    assert all(one in table for one in [*names, *ids[:3]])
    assert lookalike("feedback", "delete", *names).stdout == "deleted 2\n"
    assert json.loads(lookalike("feedback", "list", "--json").stdout) == []


def test_a_calibrated_search_says_what_its_scores_mean(lookalike, tmp_path):
    folder = tmp_path / "many"
    write_samples(folder, classes=["mug", "fish", "car"], instances=7, views=2, size=(96, 72))
    lookalike("index", str(folder), "--folder-field", "label")
    search = ["search", str(folder / "mug" / "mug-00-0.jpg"), "-k", "2"]
    before = lookalike(*search).stdout
    assert "verdict" not in before
    assert "copy" not in before
    done = lookalike("calibrate", "--label-field", "label", "--out", "calibration")
    assert done.exit_code == 0, done.output
    found = json.loads(lookalike(*search, "--json").stdout)
    after = lookalike(*search).stdout
    assert f"verdict: {found['verdict']}" in after
    assert re.search(r"\brank .* score .* copy\b", after)
    for match in found["matches"]:
        assert f" {match['copy_probability']:.2f} " in after
