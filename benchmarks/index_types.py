"""Index types at growing sizes, beside `IndexFlatIP` and, up to 100,000 vectors, other libraries.

`python -m benchmarks.index_types [SIZE...] [--types auto ...] [--work FOLDER] [--quick]` from the
repository's root; 100,000 vectors of 2,048 numbers unless said otherwise. They are synthetic (see
`benchmarks.vectors`) and lie in one file under --work, which longer runs make longer: 8.2 GB for
a million. Queries are of the same distribution and none of the rows. Each step has a process of
its own; memory is the growth of RssAnon in it, what no file stands behind.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import announce, draw, report, show
from benchmarks.contestants import factory_of, is_ours
from benchmarks.index_task import Task, run
from benchmarks.memory import available_bytes
from benchmarks.results import Chart, Table
from lookalike.cores import available_cores

LIBRARIES = ("hnswlib", "usearch")
_LIBRARIES_UP_TO = 100_000
_FASTER_FROM = 1_000_000  # the goal is set for this size
DIM = 2048
MB = 1e6

Figures = dict[str, Any]


def main() -> None:
    """Measures all sizes and reports them."""
    options = parse()
    announce(f"Index types, {options.dim} numbers a vector")
    results: dict[int, dict[str, Figures]] = {}
    for count in sorted(options.sizes):
        task = Task(str(options.work), count, options.dim, threads=options.threads)
        lacking = task.file.lacking(count) or lacking_memory(count, options.dim)
        if lacking:
            print(f"{count:,} vectors are left out: {lacking}")
            continue
        task.file.vectors(count)
        results[count] = {"exact": run("exact", task)}
        for name in [*types(count, options), *libraries(count, options)]:
            named = replace(task, name=name)
            results[count][name] = contest(named, results[count]["exact"])
            if is_ours(name):
                report_filters(named, results[count][name]["about"])
            shutil.rmtree(named.folder)
    if results:
        show_sizes(results, options)
    if len(results) > 1:
        draw_growth(results, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, metavar="SIZE")
    parser.add_argument("--types", nargs="+", default=["auto"], help="of our index")
    parser.add_argument("--dim", type=int, default=DIM, help="numbers in a vector")
    parser.add_argument("--threads", type=int, default=available_cores(), help="to build with")
    parser.add_argument("--work", type=Path, help="folder of the vectors, kept for other runs")
    parser.add_argument("--no-libraries", action="store_true", help="ours alone")
    parser.add_argument("--quick", action="store_true", help="20,000 vectors")
    options = parser.parse_args()
    options.sizes = options.sizes or ([20_000] if options.quick else [100_000])
    options.work = options.work or Path(tempfile.gettempdir()) / "lookalike-bench"
    return options


def lacking_memory(count: int, dim: int) -> str:
    """Why `IndexFlatIP` cannot hold so many vectors beside the mapped file; empty if it can."""
    needed, there = 1.5 * count * dim * 4, available_bytes()
    if there is None or needed <= there:
        return ""
    return f"they need {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are available"


def types(count: int, options: argparse.Namespace) -> list[str]:
    """The types of ours that are more than exact search at this size."""
    found = []
    for name in options.types:
        if factory_of(name, count, options.dim):
            found.append(name)
        else:
            print(f"{name} is left out: exact search at {count:,} vectors")
    return found


def libraries(count: int, options: argparse.Namespace) -> list[str]:
    """Those that are measured, too, at this size."""
    if options.no_libraries or count > _LIBRARIES_UP_TO:
        return []
    found = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    for name in set(LIBRARIES) - set(found):
        print(f"{name} is left out: not installed (uv pip install --group bench)")
    return found


def contest(task: Task, exact: Figures) -> Figures:
    """Builds, measures and reports one contestant."""
    built = run("build", task)
    figures = {**run("search", task), **{f"build_{key}": built[key] for key in built}}
    own, raw = is_ours(task.name), task.count * task.dim * 4
    what = f"{task.count:,} vectors, {figures['about']}"
    report(
        f"{what}: one query, p50, IndexFlatIP against it",
        f"{figures['p50']:.2f} ms (p99 {figures['p99']:.2f}), recall@10 {figures['recall']:.4f}",
        f"{exact['p50']:.2f} ms",
        exact["p50"] / figures["p50"],
        "at least 30" if own and task.count >= _FASTER_FROM else "",
        arguments=alone(task),
    )
    report(
        f"{what}: recall@10 on queries that are no rows",
        f"{figures['recall']:.4f}",
        "1",
        figures["recall"],
        "at least 0.99" if own else "",
        arguments=alone(task),
    )
    report(
        f"{what}: memory once loaded (beyond mapped files) against the float32 vectors",
        f"{megabytes(figures['memory'])} (building {megabytes(figures['build_peak'])})",
        megabytes(raw),
        figures["memory"] / raw,
        "at most 0.25" if own else "",
        arguments=alone(task),
    )
    report(
        f"{what}: a batch of 400 on all cores, against IndexFlatIP",
        f"{figures['per_second']:.0f}/s",
        f"{exact['per_second']:.0f}/s",
        figures["per_second"] / exact["per_second"],
        "",
        arguments=alone(task),
    )
    report(
        f"{what}: build on {task.threads} threads, and load",
        f"{built_in(figures)}, {figures['load_seconds']:.2f} s; file "
        f"{megabytes(figures['build_file'])}",
        "",
        None,
        "",
        arguments=alone(task),
    )
    return figures


def alone(task: Task) -> list[str]:
    """The arguments that measure one contestant at one size."""
    named = is_ours(task.name) and task.name != "auto"
    dim = [] if task.dim == DIM else ["--dim", str(task.dim)]
    return [str(task.count), *dim, *(["--types", task.name] if named else [])]


def built_in(figures: Figures) -> str:
    """How long building took, and what of it went into choosing search parameters."""
    calibrating = figures["build_calibrating"]
    part = f" ({calibrating:.1f} s of it calibration)" if calibrating else ""
    return f"{figures['build_seconds']:.1f} s{part}"


def megabytes(size: float) -> str:
    """Bytes as a text."""
    return f"{size / MB:.{0 if size >= 10 * MB else 1}f} MB"


def report_filters(task: Task, about: str) -> None:
    """Measures and reports filters of one of our types."""
    what = f"{task.count:,} vectors, {about}"
    found = run("filters", task)["filters"]
    for one in found:
        numpy = f" (NumPy alone {one['numpy_ms']:.2f} ms)" if one["numpy_ms"] else ""
        report(
            f"{what}, filter keeps {one['share']:.1%} {one['kind']}: one query against exact "
            "search over what it keeps",
            f"{one['ours_ms']:.2f} ms, recall@10 {one['recall']:.4f}",
            f"{one['exact_ms']:.2f} ms{numpy}",
            one["ours_ms"] / one["exact_ms"],
            "at most 1.2",
            arguments=alone(task),
        )
    lowest = min(found, key=lambda one: float(one["recall"]))
    report(
        f"{what}: recall@10 of the filter with the lowest",
        f"{lowest['recall']:.4f} ({lowest['share']:.1%} {lowest['kind']})",
        "1",
        lowest["recall"],
        "at least 0.99",
        arguments=alone(task),
    )


def show_sizes(results: dict[int, dict[str, Figures]], options: argparse.Namespace) -> None:
    """A table with the sizes side by side."""
    rows: list[list[str]] = []

    def add(label: str, name: str, text: Callable[[Figures], str]) -> None:
        found = [figures.get(name) for figures in results.values()]
        rows.append([label, *("" if one is None else text(one) for one in found)])

    add("IndexFlatIP: one query, p50", "exact", lambda x: f"{x['p50']:.1f} ms")
    add("IndexFlatIP: memory", "exact", lambda x: megabytes(x["memory"]))
    for name in [*options.types, *LIBRARIES]:
        if not any(name in figures for figures in results.values()):
            continue
        add(f"{name}: what", name, lambda x: x["about"])
        add(f"{name}: recall@10", name, lambda x: f"{x['recall']:.4f}")
        add(f"{name}: one query, p50 / p99", name, lambda x: f"{x['p50']:.2f} / {x['p99']:.2f} ms")
        add(f"{name}: a batch, on all cores", name, lambda x: f"{x['per_second']:.0f}/s")
        add(f"{name}: memory once loaded", name, lambda x: megabytes(x["memory"]))
        add(f"{name}: file", name, lambda x: megabytes(x["build_file"]))
        add(f"{name}: build", name, built_in)
        add(f"{name}: memory to build", name, lambda x: megabytes(x["build_peak"]))
        add(f"{name}: load", name, lambda x: f"{x['load_seconds']:.2f} s")
    title = f"Index types by number of vectors, {options.dim} numbers each"
    show(Table(title, ["", *(f"{count:,}" for count in results)], rows))


def draw_growth(results: dict[int, dict[str, Figures]], options: argparse.Namespace) -> None:
    """Charts of time and memory against the size."""
    size = f"vectors of {options.dim} numbers"
    raw = {"float32 vectors": [(float(n), n * options.dim * 4 / MB) for n in results]}
    exact = {"IndexFlatIP": [(float(n), float(x["exact"]["p50"])) for n, x in results.items()]}
    lines = {
        key: {
            name: [(float(n), x[name][key] / unit) for n, x in results.items() if name in x]
            for name in [*options.types, *LIBRARIES]
            if any(name in x for x in results.values())
        }
        for key, unit in (("p50", 1.0), ("memory", MB), ("build_seconds", 1.0))
    }
    draw(Chart("index-time", "One query on one core", size, "milliseconds, p50",
               exact | lines["p50"], "log"))  # fmt: skip
    draw(Chart("index-memory", "Memory once loaded, beyond mapped files", size, "MB",
               raw | lines["memory"], "log"))  # fmt: skip
    draw(Chart("index-build", f"Building on {options.threads} threads", size, "seconds",
               lines["build_seconds"], "log"))  # fmt: skip


if __name__ == "__main__":
    main()
