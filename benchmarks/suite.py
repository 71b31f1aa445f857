"""Runs the benchmarks, each in a process of its own, and writes one folder of results.

`scripts/bench [NAME...] [--quick] [--out FOLDER]`: without names all of them, for hours; --quick
takes small sizes, minutes in total, and its figures only show that everything runs. The folder
gets results.json, table.md and PNG files. A benchmark that fails is named, and the others go on;
the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.charts import draw_charts
from benchmarks.machine import machine, machine_line, versions, versions_line
from benchmarks.results import RECORD, Record, read, table

DEFAULT_OUT = Path("benchmarks/results")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How a module of this folder is called; words like {pictures} stand for options of the suite.

    Where an option is not given, a benchmark that needs it is left out.

    Attributes:
        full: Arguments of the full run.
        quick: Those of the quick one.
        optional: More for both, where the command line gives all that they stand for.
    """

    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    optional: tuple[str, ...] = ()


WEIGHTS = ("--model", "{model}", "--weights", "{weights}", "--input-size", "{input_size}")
SIZES = ("10000", "30000", "100000", "300000", "1000000")
SUITE = {
    "service": Benchmark(),
    "arrivals": Benchmark(),
    "indexing": Benchmark(),
    "decoding": Benchmark(),
    "runtimes": Benchmark(optional=("--pictures", "{pictures}", *WEIGHTS)),
    "bulk": Benchmark(),
    "training": Benchmark(quick=("24",)),
    "filters": Benchmark(),
    "index_types": Benchmark(
        full=(*SIZES, "--work", "{work}"), quick=("--quick", "--work", "{work}")
    ),
    "rebuild": Benchmark(full=("--work", "{work}"), quick=("--quick", "--work", "{work}")),
    "large_store": Benchmark(
        full=("--work", "{work}"), quick=("--count", "20000", "--work", "{work}")
    ),
    "likeness": Benchmark(*[("{pictures}", *WEIGHTS)] * 2),
    "duplicates": Benchmark(full=("{pictures}",), quick=("{pictures}", "--count", "40")),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one benchmark ended.

    Attributes:
        name: Of the module.
        command: As a person would type it; empty if it was not started.
        seconds: How long it took.
        problem: Why it was left out, or how it failed; empty where all is well.
        record: What it measured.
    """

    name: str
    command: str = ""
    seconds: float = 0.0
    problem: str = ""
    record: Record = field(default_factory=Record)

    @property
    def failed(self) -> bool:
        """Whether it was started and did not end well."""
        return bool(self.command and self.problem)


def main() -> int:
    """Runs what the command line names, and returns the exit status."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{machine_line()}\n{versions_line()}", flush=True)
    outcomes: list[Outcome] = []
    for name in options.names or SUITE:
        outcomes.append(run(name, arguments(name, options)))
        write(outcomes, options.out, quick=options.quick)  # so that an interrupted run leaves some
    for outcome in outcomes:
        if outcome.problem:
            how = "FAILED" if outcome.failed else "left out"
            print(f"{outcome.name}: {how}: {outcome.problem}")
    print(f"results: {options.out}")
    return int(any(outcome.failed for outcome in outcomes))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(SUITE)}; all if none")
    parser.add_argument("--quick", action="store_true", help="small sizes, minutes in total")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for large files, kept from run to run")
    parser.add_argument("--pictures", help="folder of photographs")
    parser.add_argument("--model", default="resnet50", help="network for likeness, runtimes")
    parser.add_argument("--weights", help="its trained weights")
    parser.add_argument("--input-size", default="224", help="its input size")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SUITE]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(SUITE)}")
    return options


def arguments(name: str, options: argparse.Namespace) -> list[str] | str:
    """The arguments of a benchmark, or which option it would need."""
    benchmark = SUITE[name]
    values = {
        **vars(options),
        "work": options.work or Path(tempfile.gettempdir()) / "lookalike-bench",
    }
    known = {f"{{{key}}}" for key, value in values.items() if value is not None}

    def lacking(words: Iterable[str]) -> list[str]:
        return [word for word in words if word.startswith("{") and word not in known]

    words = benchmark.quick if options.quick else benchmark.full
    if lacking(words):
        return f"needs --{lacking(words)[0].strip('{}').replace('_', '-')}"
    more = () if lacking(benchmark.optional) else benchmark.optional
    return [word.format(**values) for word in (*words, *more)]


def run(name: str, words: list[str] | str) -> Outcome:
    """Runs one benchmark; its output goes where ours goes."""
    if isinstance(words, str):
        return Outcome(name, problem=words)
    command = ["-m", f"benchmarks.{name}", *words]
    typed = shlex.join(["python", *command])
    print(f"\n$ {typed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        record = Path(folder) / "record.jsonl"
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, *command], env=os.environ | {RECORD: str(record)}, check=False
        )
        seconds = time.monotonic() - started
        kept = read(record)
    problem = f"exit status {done.returncode}" if done.returncode else ""
    return Outcome(name, typed, seconds, problem, kept)


def write(outcomes: Iterable[Outcome], folder: Path, *, quick: bool) -> None:
    """Writes results.json, table.md and the charts of what is done so far."""
    outcomes = list(outcomes)
    rows = [row for outcome in outcomes for row in outcome.record.rows]
    charts = [chart for outcome in outcomes for chart in outcome.record.charts]
    about = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": machine(),
        "versions": versions(),
        "benchmarks": [asdict(outcome) for outcome in outcomes],
    }
    (folder / "results.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    files = draw_charts(charts, rows, folder)
    (folder / "table.md").write_text(page(outcomes, files, quick=quick), encoding="utf-8")


def page(outcomes: list[Outcome], files: list[Path], *, quick: bool) -> str:
    """The table, what it was measured on, what is missing, and the charts."""
    rows = [row for outcome in outcomes for row in outcome.record.rows]
    tables = "".join(
        f"\n**{one.title}**\n\n{one.markdown()}"
        for outcome in outcomes
        for one in outcome.record.tables
    )
    warning = "**A quick run: small sizes, which say nothing about speed.**\n\n" if quick else ""
    missing = [f"- {outcome.name}: {outcome.problem}\n" for outcome in outcomes if outcome.problem]
    gaps = f"\nNot measured:\n\n{''.join(missing)}" if missing else ""
    pictures = "".join(f"\n![{file.stem}]({file.name})\n" for file in files)
    about = f"Measured on {machine_line()}, with {versions_line()}.\n\n"
    return f"# Benchmarks\n\n{warning}{about}{table(rows)}{gaps}{tables}{pictures}"


if __name__ == "__main__":
    sys.exit(main())
