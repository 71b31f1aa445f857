"""What the benchmarks share: pictures, paired rounds, and a line about the machine."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import machine_line, versions_line
from benchmarks.results import Chart, Row, Table, is_met, keep, own_command, short
from lookalike.cores import available_cores, limit_openmp
from lookalike.media.decode import ImageLimits, decode_image
from lookalike.models.base import Encoder, Features
from scripts.samples import jpeg_bytes, samples

WEB = (500, 375)
CAMERA = (4000, 3000)


def pictures(count: int, size: tuple[int, int]) -> list[bytes]:
    """Different drawn pictures as JPEG files."""
    chosen = [
        sample for sample, _ in zip(samples(instances=40, views=2), range(count), strict=False)
    ]
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(lambda sample: jpeg_bytes(sample, size=size), chosen))


def prepared(encoder: Encoder, files: list[Path]) -> list[Features]:
    """The files decoded and prepared, as one batch."""
    size = encoder.decode_size
    decoded = [
        decode_image(file.read_bytes(), limits=ImageLimits(), decode_size=size) for file in files
    ]
    return [encoder.prepare(one.image) for one in decoded]


def announce(title: str) -> None:
    """Prints what is measured, on what, with which versions."""
    limit_openmp()
    import faiss  # noqa: F401, PLC0415 - before torch, see lookalike.cores

    print(f"\n# {title}\n{machine_line()}\n{versions_line()}", flush=True)


def paired(
    ours: Callable[[], float], theirs: Callable[[], float], *, rounds: int = 3
) -> tuple[float, float, float]:
    """Runs both in turn and returns the medians of ours, of theirs, and of the ratios."""
    firsts, seconds = [], []
    for _ in range(rounds):
        firsts.append(ours())
        seconds.append(theirs())
    ratios = [first / second for first, second in zip(firsts, seconds, strict=True)]
    return statistics.median(firsts), statistics.median(seconds), statistics.median(ratios)


def report(
    name: str,
    ours: str,
    theirs: str,
    ratio: float | None,
    bound: str,
    *,
    arguments: Sequence[str] | None = None,
) -> None:
    """Prints one ratio beside what it should be, and keeps it for the suite's table.

    Args:
        name: What is compared.
        ours: Our figure, with its unit.
        theirs: The other one.
        ratio: Of the two; None where only the figures are of interest.
        bound: What the ratio should be; a goal where it begins like `at least 2` or `at most 1.2`.
        arguments: Those of the command line that measure it again; this process's own if None.
    """
    row = Row(
        what=name,
        command=own_command(arguments),
        ours=ours,
        against=theirs,
        ratio=ratio,
        goal=bound,
        met=is_met(ratio, bound),
    )
    verdict = {True: ": met", False: ": MISSED", None: ""}[row.met]
    told = "" if ratio is None else f": ratio {short(ratio)}"
    told += f" ({bound}{verdict})" if bound else ""
    print(f"{name}: {ours}{f' against {theirs}' if theirs else ''}{told}", flush=True)
    keep(row)


def draw(chart: Chart) -> None:
    """Keeps a chart for the suite, which draws it; printed as numbers otherwise."""
    print(f"{chart.title} ({chart.x_label}: {chart.y_label})")
    for name, points in chart.lines.items():
        print(f"  {name}: " + ", ".join(f"{x:g}: {y:.4g}" for x, y in points))
    keep(chart)


def show(table: Table) -> None:
    """Prints a table of other figures, and keeps it for the suite."""
    print(f"\n{table.title}\n\n{table.markdown()}", flush=True)
    keep(table)


def rate(count: int, work: Callable[[], object]) -> float:
    """Pictures per second."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


@contextmanager
def environment(**settings: str) -> Iterator[Path]:
    """A folder for data, with the settings given by name in the environment meanwhile."""
    names = {f"LOOKALIKE_{name.upper()}": value for name, value in settings.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
            yield Path(folder)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
