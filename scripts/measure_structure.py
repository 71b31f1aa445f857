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
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any

import lookalike
from lookalike import Client
from lookalike.bootstrap import build_services
from lookalike.config import load_settings
from lookalike.evaluation.runner import evaluate
from lookalike.media.sources import PictureSource
from lookalike.records import Match
from lookalike.services.search import SearchOptions
from lookalike.store.filters import Filter, parse_filter
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
        query = next(photos.rglob("*.jpg")).read_bytes()
        extra.write_bytes(query + b"\0")
        data = Path(folder) / "data"
        with Client(data, model="color") as client:
            client.index(photos, folder_field="label")
            vectors = client.vector_set(label_field="label")
        services = build_services(load_settings(data_dir=data, model="color"))
        try:
            label = parse_filter('{"label": "mug"}')

            def search(where: Filter | None = None) -> list[Match]:
                options = SearchOptions(k=3, where=where)
                return services.search.search(BytesIO(query), options).matches

            first = search(label)[0].record.id  # what loads once has loaded
            sources = [PictureSource.from_path(extra)]
            yield "one search", search
            yield "one filtered search", lambda: search(label)
            yield "one indexed picture", lambda: list(services.indexing.index(sources))
            yield "one delete", lambda: services.pictures.delete("default", first)
            yield "one evaluation", lambda: evaluate(vectors, ks=(1, 5))
        finally:
            services.close()


if __name__ == "__main__":
    main()
