"""`lookalike tune`."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.cli.tune import _json, _print
from lookalike.errors import CollectionNotFoundError, ConfigurationError
from lookalike.progress import Progress
from lookalike.records import Effort
from lookalike.services.vector_set import sample_vectors
from lookalike.store.local.store import LocalStore
from lookalike.store.tuning import Goal, Point, Trial, Tuning
from lookalike.visualization.tuning_plot import draw_tuning
from tests.memory_store import MemoryStore
from tests.store.helpers import fill

TYPES = ["--index", "IVF4,Flat", "--index", "SQ8"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    store = LocalStore(tmp_path / "data")
    fill(store, 300)
    store.close()
    return tmp_path / "data"


def test_the_table_marks_the_best_and_gives_the_setting(lookalike, data):
    shown = lookalike("tune", *TYPES, "--queries", "40")
    assert shown.exit_code == 0, shown.output
    assert (
        "default: 300 pictures of 8 numbers; 40 queries beside them ask for 10 matches"
        in shown.stdout
    )
    rows = [line.split() for line in shown.stdout.splitlines() if " MB " in line or " KB " in line]
    assert {row[-7] for row in rows} == {"Flat", "IVF4,Flat", "SQ8"}
    (best,) = [row[1] for row in rows if row[0] == "best"]
    assert f"LOOKALIKE_INDEX={best}\n" in shown.stdout
    assert "Measured on" not in shown.stdout


def test_json_has_everything_that_was_measured(lookalike, data):
    shown = lookalike("tune", *TYPES, "--json", "--queries", "40", "--memory", "9KB", "-k", "5")
    facts = json.loads(shown.stdout)
    assert (facts["collection"], facts["rows"], facts["measured"]) == ("default", 300, 300)
    assert (facts["dim"], facts["k"], facts["queries"]) == (8, 5, 40)
    assert facts["goal"] == {"recall": 0.99, "memory": 9000}
    flat, ivf, sq8 = facts["trials"]
    assert flat["points"][0]["parameters"]["exact"] is True
    assert [point["recall"] for point in ivf["points"]][-1] == 1.0
    assert (flat["bytes"], ivf["bytes"] > 9000, sq8["bytes"] < 9000) == (300 * 32, True, True)
    assert facts["recommended"] == "SQ8"
    again = json.loads(lookalike("tune", *TYPES, "--json", "--queries", "40", "-k", "5").stdout)
    assert [[p["recall"] for p in t["points"]] for t in again["trials"]] == [
        [p["recall"] for p in t["points"]] for t in facts["trials"]
    ]


def test_what_the_service_needs_to_build_it(lookalike, tmp_path):
    store = LocalStore(tmp_path / "data")
    fill(store, 10_000)
    store.close()
    words = ["tune", "--index", "IVF32,SQ8", "--memory", "200KB", "--queries", "20"]
    shown = lookalike(*words, "--recall", "0.95").stdout
    assert "LOOKALIKE_INDEX=IVF32,SQ8\nLOOKALIKE_INDEX_RECALL=0.95\nWhen it is built" in shown
    assert "LOOKALIKE_INDEX=IVF32,SQ8\nWhen it is built" in lookalike(*words).stdout


def test_goals_come_from_the_settings(lookalike, data, monkeypatch):
    monkeypatch.setenv("LOOKALIKE_INDEX_RECALL", "0.75")
    monkeypatch.setenv("LOOKALIKE_INDEX_MEMORY", "9KB")
    shown = lookalike("tune", *TYPES, "--json", "--queries", "20")
    assert json.loads(shown.stdout)["goal"] == {"recall": 0.75, "memory": 9000}


def test_a_plot_is_written(lookalike, data, tmp_path):
    shown = lookalike("tune", *TYPES, "--queries", "20", "--out", str(tmp_path / "new" / "a.png"))
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[-1] == str(tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as plot:
        assert plot.size == (1650, 975)
        assert plot.convert("RGB").getpixel((1640, 970)) == (255, 255, 255)


def test_a_sample_says_so(lookalike, data):
    shown = lookalike("tune", "--sample", "100", "--queries", "20")
    assert shown.exit_code == 0, shown.output
    assert "Measured on 100 of 300 pictures" in shown.stdout
    assert "The ms of Flat, SQ8 are 3.0 times what was measured" in shown.stdout
    assert "SQ8" in shown.stdout  # one of those tried when none is named


def test_what_cannot_be_reached_or_built_is_said(lookalike, data):
    words = ["tune", "--index", "SQ8", "--memory", "1KB", "--queries", "20"]
    shown = lookalike(*words, "--out", "a.png")
    assert shown.exit_code == 1
    last = "No index type reaches a recall of 0.99 within 1 KB. Ask for less"
    assert shown.stdout.splitlines()[-1].startswith(last)
    assert shown.stdout.count("too large") == 2
    assert "LOOKALIKE_INDEX" not in shown.stdout
    as_json = lookalike(*words, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["recommended"] is None
    assert as_json.stderr.startswith(last)
    broken = lookalike("tune", "--index", "IVF4096,SQ8", "--queries", "20")
    assert broken.exit_code == 0
    assert "not built" in broken.stdout
    assert "LOOKALIKE_INDEX=Flat" in broken.stdout


@pytest.fixture
def measured() -> Tuning:
    """5,000 of 16,000 pictures, on which exact search is fastest."""

    def trial(index: str, setting: str, ms: float, effort: Effort) -> Trial:
        point = Point(effort=effort, recall=1.0, ms=ms)
        return Trial(index=index, setting=setting, bytes=10**9, points=(point,))

    looks = Effort(nprobe=16, k_factor=16)
    graph = Effort(ef_search=512, k_factor=64)
    trials = (
        trial("Flat", "Flat", 1.0, Effort(exact=True)),
        trial("PCAR256,IVF64,PQ128x4fs", "PCAR256,IVF256,PQ128x4fs", 1.5, looks),
        trial("IVF64,SQ8", "IVF64,SQ8", 1.2, looks),
        trial("PCAR256,HNSW32,SQ8", "PCAR256,HNSW32,SQ8", 2.0, graph),
        trial("PCAR256,SQ8", "PCAR256,SQ8", 1.1, looks),
        Trial(index="IVF999,SQ8", setting="IVF999,SQ8", problem="too few points to train " * 5),
    )
    return Tuning(rows=16_000, measured=5_000, dim=512, k=10, queries=9, trials=trials)


def test_times_that_grow_with_the_collection_are_extrapolated(measured):
    assert measured.recommended(Goal()).setting == "Flat"
    whole = measured.for_all()
    assert [trial.points[0].ms for trial in whole.trials[:5]] == pytest.approx(
        [3.2, 1.5, 3.84, 2.0, 3.52]
    )
    assert whole.exact_ms == pytest.approx(3.2)
    assert whole.recommended(Goal()).setting == "PCAR256,IVF256,PQ128x4fs"
    facts = json.loads(_json(whole, Goal(), "default"))
    assert facts["extrapolated"] == ["Flat", "IVF64,SQ8", "PCAR256,SQ8"]
    assert replace(measured, rows=5_000).for_all() == replace(measured, rows=5_000)


@pytest.mark.parametrize("columns", [80, 60, 120])
def test_no_word_of_the_table_is_broken(measured, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    _print(measured.for_all(), Goal(), "default")
    shown = capsys.readouterr().out
    table = shown[: shown.index("Measured on")]
    for trial in measured.trials:
        assert trial.setting in table.split()
        assert all(str(point.effort) in table.split() for point in trial.points)
    assert table.split().count("few") == 5
    if columns >= 80:
        assert max(map(len, table.splitlines()[1:])) <= columns


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--index", "Tree7"], "is no index type: FAISS says 'could not parse index string Tree7'"),
        (["--index", "AUTO"], "auto is the service's own choice"),
        (["--memory", "lots"], "LOOKALIKE_INDEX_MEMORY"),
        (["--recall", "1.5"], "LOOKALIKE_INDEX_RECALL"),
        (["--out", "plot.jpg"], "has to end in .png"),
        (["--data-dir", "nowhere"], "There is no collection in"),
        (["-k", "200"], "too few to measure recall@200"),
    ],
)
def test_what_was_asked_wrongly(lookalike, data, words, text):
    shown = lookalike("tune", *words)
    assert isinstance(shown.exception, ConfigurationError)
    assert text in str(shown.exception)


def test_a_service_may_own_the_folder_and_nothing_changes(lookalike, data):
    def files() -> dict[Path, bytes]:
        found = (path for path in data.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in found if path.suffix != ".db-shm"}

    with closing(LocalStore(data)):
        before = files()
        assert lookalike("tune", *TYPES, "--queries", "20").exit_code == 0
        assert files() == before


def test_a_sample_of_vectors_is_theirs():
    store = MemoryStore()
    vectors = fill(store, 50)
    steps: list[tuple[int, int]] = []
    seen = Progress(lambda _, *at: steps.append(at))
    whole = sample_vectors(store, "default", most=50, progress=seen)
    assert np.array_equal(whole, vectors)
    assert steps[-1] == (50, 50)
    some = sample_vectors(store, "default", most=20, seed=3)
    places = [int(np.flatnonzero((vectors == row).all(axis=1))[0]) for row in some]
    assert places == sorted(set(places))
    assert len(places) == 20
    assert np.array_equal(some, sample_vectors(store, "default", most=20, seed=3))
    assert not np.array_equal(some, sample_vectors(store, "default", most=20, seed=4))
    with pytest.raises(CollectionNotFoundError):
        sample_vectors(store, "none", most=5)


def test_the_plot_shows_the_line_wanted_the_types_and_the_one_to_use():
    def trial(name: str, *points: tuple[float, float]) -> Trial:
        made = [Point(effort=Effort(), recall=r, ms=ms) for r, ms in points]
        return Trial(index=name, setting=name, bytes=10**9, points=tuple(made))

    trials = (trial("Flat", (1.0, 50.0)), trial("$IVF$", (0.2, 0.2), (0.9, 1.0), (0.995, 3.0)))
    tuning = Tuning(rows=9, measured=9, dim=2, k=1, queries=3, trials=trials)

    def pixels(goal: Goal) -> set[tuple[int, ...]]:
        image = Image.open(io.BytesIO(draw_tuning(tuning, goal, name="a\nb")))
        counted: Any = image.convert("RGB").getcolors(2_000_000)
        return {color for _, color in counted}

    for goal in (Goal(), Goal(memory=5)):
        assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0xDD, 0xE1, 0xE6)} <= pixels(goal)
