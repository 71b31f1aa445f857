"""What a benchmark leaves behind: rows of the table, charts and other tables, as JSON lines.

`scripts/bench` names a file in the environment; without it nothing is kept, only printed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

RECORD = "BENCHMARK_RECORD"
HEAD = "| what | command | ours | against | ratio | goal |\n|---|---|---|---|---|---|\n"
_GOAL = re.compile(r"at (least|most) (\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        what: What is compared.
        command: What a reader pastes to measure it again.
        ours: Our figure, with its unit.
        against: The other one.
        ratio: Of the two, in the direction that `what` says; None where there is none.
        goal: What the ratio should be, in words; empty without a goal.
        met: Whether it is; None without a goal.
    """

    what: str
    command: str
    ours: str
    against: str
    ratio: float | None
    goal: str
    met: bool | None

    @property
    def margin(self) -> float:
        """How many times better than its goal the ratio is: 1 is just met, below 1 missed.

        Raises:
            ValueError: There is no goal, or no ratio.
        """
        found = _GOAL.match(self.goal)
        if self.ratio is None or found is None:
            raise ValueError(f"no goal for: {self.what}")
        bound = float(found[2])
        return self.ratio / bound if found[1] == "least" else bound / self.ratio

    def markdown(self) -> str:
        """The line, without its end."""
        ratio = "" if self.ratio is None else short(self.ratio)
        goal = f"{self.goal}: missed" if self.met is False else self.goal
        cells = (self.what, f"`{self.command}`", self.ours, self.against, ratio, goal)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over numbers, to be drawn.

    Attributes:
        name: Of the file, without its ending.
        title: What is to be seen, in one line.
        x_label: With the unit.
        y_label: With the unit.
        lines: Name -> points (x, y).
        scale: `linear`; `log_x`, `log_y` or `log` for both.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]
    scale: Literal["linear", "log_x", "log_y", "log"] = "linear"


@dataclass(frozen=True, slots=True)
class Table:
    """Figures that are no ratios.

    Attributes:
        title: What is to be seen.
        columns: Their names.
        rows: The cells, as many in each as there are columns.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table without its title, ending in a line break."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@dataclass(slots=True)
class Record:
    """Everything that a benchmark kept."""

    rows: list[Row] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def short(value: float) -> str:
    """A ratio as the table shows it: two decimals, or three digits."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def is_met(ratio: float | None, goal: str) -> bool | None:
    """Whether a ratio is what a text such as `at least 5` or `at most 0.10 of ...` asks for.

    Returns:
        None where there is no ratio, or the text does not begin like these.
    """
    found = _GOAL.match(goal)
    if ratio is None or found is None:
        return None
    bound = float(found[2])
    return ratio >= bound if found[1] == "least" else ratio <= bound


def own_command(arguments: Sequence[str] | None = None) -> str:
    """How this process was started, as a person would type it.

    Args:
        arguments: Others than it was given; `--quick` stays, where it was given.
    """
    words = sys.argv[1:]
    if arguments is not None:
        words = [*arguments, *(word for word in words if word == "--quick")]
    spec = sys.modules["__main__"].__spec__
    start = [sys.argv[0]] if spec is None else ["-m", spec.name]
    return shlex.join(["python", *start, *words])


def keep(entry: Row | Chart | Table) -> None:
    """Appends to the file that the environment names, if it names one."""
    path = os.environ.get(RECORD)
    if path is not None:
        line = json.dumps({type(entry).__name__.lower(): asdict(entry)})
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read(path: Path) -> Record:
    """What was kept; nothing where there is no such file."""
    record = Record()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        [(kind, entry)] = json.loads(line).items()
        if kind == "row":
            record.rows.append(Row(**entry))
        elif kind == "chart":
            record.charts.append(Chart(**entry))
        else:
            record.tables.append(Table(**entry))
    return record


def table(rows: list[Row]) -> str:
    """The Markdown table."""
    return HEAD + "".join(row.markdown() + "\n" for row in rows)
