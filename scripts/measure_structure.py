"""Counts the package's files, lines and functions, and the files that each use case passes through.

    .venv/bin/python -m scripts.measure_structure

The use cases run below HTTP and the command line, on a real data folder with the `color` model. A
file counts for a use case when one of its functions is called while that use case runs.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lookalike
from lookalike import Client
from lookalike.evaluation.runner import evaluate
from scripts.samples import write_samples

ROOT = Path(lookalike.__file__).parent


def main() -> None:
    """Prints the figures as the rows of a Markdown table."""
    files = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    code = [path for path in files if path.suffix == ".py"]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    lengths = [length for path in code for length in function_lengths(path)]
    deciles = statistics.quantiles(lengths, n=10)
    print("| figure | value |\n|---|---|")
    print(f"| files | {len(files)} |")
    print(f"| lines | {lines:,} |")
    print(f"| functions | {len(lengths):,} |")
    print(f"| lines of a function, median | {statistics.median(lengths):.0f} |")
    print(f"| lines of a function, 90th percentile | {deciles[8]:.0f} |")
    for name, passed in trips().items():
        print(f"| files that {name} passes through | {len(passed)} |")


def function_lengths(path: Path) -> Iterator[int]:
    """Lines of each function's body in a file, its docstring left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield 1 + (node.end_lineno or 0) - body[0].lineno if body else 1


def trips() -> dict[str, set[str]]:
    """The files that each use case passes through: those with a function that is called in it."""
    called: set[str] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(frame.f_code.co_filename)

    threading.setprofile(profile)  # before the threads that a data folder starts
    sys.setprofile(profile)
    try:
        passed: dict[str, set[str]] = {}
        for name, case in use_cases():
            called.clear()
            case()
            inside = (Path(path) for path in called.copy() if path.startswith(f"{ROOT}/"))
            passed[name] = {path.relative_to(ROOT).as_posix() for path in inside}
        return passed
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def use_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Opens a data folder with some pictures, and gives each use case to be called at once."""
    with tempfile.TemporaryDirectory() as folder:
        photos, extra = Path(folder) / "photos", Path(folder) / "extra.jpg"
        write_samples(photos, classes=["mug", "fish"], instances=6, views=3, size=(96, 72))
        query = next(photos.rglob("*.jpg"))
        extra.write_bytes(query.read_bytes() + b"\0")
        with Client(Path(folder) / "data", model="color") as opened:
            items = opened.index(photos, folder_field="label")
            opened.search(query, k=3, filter={"label": "mug"})  # what loads once has loaded
            vectors = opened.vector_set(label_field="label")
            yield "one search", lambda: opened.search(query, k=3)
            yield "one filtered search", lambda: opened.search(query, k=3, filter={"label": "mug"})
            yield "one indexed picture", lambda: opened.index(extra)
            yield "one delete", lambda: opened.delete(str(items[0].id))
            yield "one evaluation", lambda: evaluate(vectors, ks=(1, 5))


if __name__ == "__main__":
    main()
