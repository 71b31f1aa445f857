"""The suite: what is kept of a benchmark, how a goal is judged, that a failure stops nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.charts import draw_charts
from benchmarks.common import draw, report, show
from benchmarks.machine import machine, machine_line, versions
from benchmarks.results import (
    HEAD,
    RECORD,
    Chart,
    Row,
    Table,
    is_met,
    own_command,
    read,
    short,
    table,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ratio", "goal", "met"),
    [
        (5.0, "at least 5", True),
        (4.99, "at least 5", False),
        (1.2, "at most 1.2", True),
        (1.21, "at most 1.2 of the other", False),
        (0.5, "what can be reached", None),
        (0.5, "", None),
        (None, "at least 5", None),
    ],
)
def test_goals_are_read_from_their_words(ratio: float | None, goal: str, met: bool | None) -> None:
    assert is_met(ratio, goal) is met


def test_a_margin_is_one_where_the_goal_is_just_met() -> None:
    assert a_row(ratio=6.0, goal="at least 4").margin == pytest.approx(1.5)
    assert a_row(ratio=0.5, goal="at most 0.25").margin == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no goal"):
        _ = a_row(ratio=1.0, goal="").margin


def test_ratios_have_two_decimals_or_three_digits() -> None:
    assert [short(value) for value in (472.3, 58.61, 7.846, 0.893, 0.00634)] == [
        "472",
        "58.6",
        "7.85",
        "0.89",
        "0.0063",
    ]


def test_the_table_is_that_of_the_documentation() -> None:
    assert HEAD.splitlines()[0] in (ROOT / "docs/performance.md").read_text()
    lines = table([a_row(ratio=2.06, goal="at least 5")]).splitlines()
    assert (
        lines[2] == "| it | `python -m benchmarks.it` | 1 ms | 2 ms | 2.06 | at least 5: missed |"
    )
    assert a_row(ratio=None, goal="", what="a | b").markdown() == (
        "| a \\| b | `python -m benchmarks.it` | 1 ms | 2 ms |  |  |"
    )


def test_what_is_reported_is_kept_where_the_suite_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.jsonl"
    report("before", "1 s", "2 s", 2.0, "at least 3")
    monkeypatch.setenv(RECORD, str(file))
    monkeypatch.setattr(sys, "argv", ["it", "web", "--quick"])
    report("it", "1 s", "2 s", 2.0, "at least 3", arguments=("camera",))
    report("plain", "1 s", "", None, "")
    draw(a_chart())
    show(Table("more", ["a", "b"], [["1", "2"]]))
    record = read(file)
    assert [row.what for row in record.rows] == ["it", "plain"]
    assert record.rows[0].met is False
    assert record.rows[0].command.endswith("camera --quick")
    assert record.charts == [Chart(**json.loads(file.read_text().splitlines()[2])["chart"])]
    assert record.tables[0].markdown() == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    said = capsys.readouterr().out
    assert "it: 1 s against 2 s: ratio 2.00 (at least 3: MISSED)\n" in said
    assert "plain: 1 s\n" in said


def test_a_command_is_what_a_person_would_type(monkeypatch: pytest.MonkeyPatch) -> None:
    class Main:
        class __spec__:  # noqa: N801 - as the import system calls it
            name = "benchmarks.duplicates"

    monkeypatch.setitem(sys.modules, "__main__", Main)
    monkeypatch.setattr(sys, "argv", ["/x/duplicates.py", "my photos"])
    assert own_command() == "python -m benchmarks.duplicates 'my photos'"


def test_a_benchmark_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    chosen = {
        "broken": suite.Benchmark(),
        "duplicates": suite.Benchmark(("{pictures}",), ("{pictures}",)),
        "machine": suite.Benchmark((), ()),
    }
    monkeypatch.setattr(suite, "SUITE", chosen)
    monkeypatch.setattr(sys, "argv", ["scripts/bench", "--quick", "--out", str(tmp_path)])
    assert suite.main() == 1
    said = capfd.readouterr().out
    assert "broken: FAILED: exit status 1" in said
    assert "duplicates: left out: needs --pictures" in said
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["problem"] for one in results["benchmarks"]] == [
        "exit status 1",
        "needs --pictures",
        "",
    ]
    assert results["quick"] is True
    assert results["machine"] == machine()
    page = (tmp_path / "table.md").read_text()
    assert "- broken: exit status 1" in page
    assert "quick run" in page


def test_a_name_that_is_no_benchmark_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/bench", "nothing"])
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 2


def test_every_benchmark_is_there() -> None:
    for name in suite.SUITE:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_charts_are_pictures(tmp_path: Path) -> None:
    rows = [a_row(ratio=6.0, goal="at least 4"), a_row(ratio=0.5, goal="at least 4")]
    files = draw_charts([a_chart()], [*rows, a_row(ratio=1.0, goal="")], tmp_path)
    assert [file.name for file in files] == ["goals.png", "growth.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert draw_charts([], [a_row(ratio=1.0, goal="")], tmp_path) == []


def test_the_machine_is_described() -> None:
    assert {"processor", "cores", "memory", "bfloat16", "vnni"} <= set(machine())
    assert "cores" in machine_line()
    assert {"Python", "numpy", "faiss-cpu"} <= set(versions())


def a_row(*, ratio: float | None, goal: str, what: str = "it") -> Row:
    command = "python -m benchmarks.it"
    return Row(what, command, "1 ms", "2 ms", ratio, goal, is_met(ratio, goal))


def a_chart() -> Chart:
    lines = {"ours": [(1.0, 2.0), (10.0, 3.0)], "theirs": [(1.0, 4.0)]}
    return Chart("growth", "Growth", "vectors", "ms", lines, "log")
