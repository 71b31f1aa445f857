"""`lookalike cluster`."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image


@pytest.fixture
def place(lookalike, pictures, tmp_path):
    place = ["--data-dir", str(tmp_path / "data"), "--collection", "things"]
    lookalike("index", str(pictures), "--folder-field", "label", *place)
    return place


def test_files_are_written_for_every_group(lookalike, place, tmp_path):
    out = tmp_path / "out"
    words = ["--clusters", "3", "--label-field", "label", "--out", str(out), *place]
    done = lookalike("cluster", *words)
    assert done.exit_code == 0, done.output
    assert "purity" in done.stdout
    assert str(out / "index.html") in done.stdout
    rows = list(csv.DictReader((out / "groups.csv").read_text().splitlines()))
    assert len(rows) == 18
    assert {row["group"] for row in rows} == {"1", "2", "3"}
    page = (out / "index.html").read_text()
    for number in (1, 2, 3):
        assert f'src="group-00{number}.png"' in page
        with Image.open(out / f"group-00{number}.png") as sheet:
            assert sheet.width > 100
    assert "purity" in page


def test_sheets_of_an_earlier_run_do_not_stay(lookalike, place, tmp_path):
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    (out / "mine" / "group-003.png").write_bytes(b"not ours")
    for count in ("4", "2"):
        assert lookalike("cluster", "--clusters", count, "--out", str(out), *place).exit_code == 0
    assert sorted(path.name for path in out.glob("*.png")) == ["group-001.png", "group-002.png"]
    assert (out / "mine" / "group-003.png").exists()


def test_json_has_every_id(lookalike, place):
    found = json.loads(lookalike("cluster", "--json", *place).stdout)
    assert found["count"] == 18
    assert len({i for group in found["groups"] for i in group["ids"]}) == 18
    sizes = [len(group["ids"]) for group in found["groups"]]
    assert sizes == sorted(sizes, reverse=True)
    assert found["silhouettes"]
    assert found["purity"] is None


def test_a_dataset_without_an_index(lookalike, pictures, tmp_path):
    words = ["--clusters", "2", "--cache-dir", str(tmp_path / "cache"), "--json"]
    done = lookalike("cluster", str(pictures), *words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["count"], len(found["groups"])) == (18, 2)
    assert 0 < found["purity"] <= 1


def test_a_number_of_groups_that_cannot_be(lookalike, place):
    assert "clusters is 19" in str(lookalike("cluster", "--clusters", "19", *place).exception)
