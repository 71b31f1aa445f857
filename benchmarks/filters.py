"""The time to evaluate a filter by columns, against a look at every row.

`python -m benchmarks.filters [COUNT]` from the repository's root; COUNT rows (100,000 by default)
with vectors of 8 numbers, written through the local store in groups.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import announce, paired, report
from lookalike.records import ModelSpec, NewImage
from lookalike.store.filters import Filter
from lookalike.store.local.rows import CollectionRow
from lookalike.store.local.store import LocalStore

SHARES = {"0.1 %": 0.001, "1 %": 0.01, "10 %": 0.1, "50 %": 0.5}
FIELDS = ("label", "price", "shop")
SPEC = ModelSpec(model="none", weights="random", weights_sha256="0" * 64, dim=8)
GROUP = 1000
PUT = 64


def main() -> None:
    """Prints milliseconds and their ratios for each share of the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rows = 10_000 if arguments.quick else arguments.count
    announce(f"Filters over {rows:,} rows")
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        path = Path(folder) / "data"
        fill(path, rows, group=GROUP)
        with closing(LocalStore(path, filter_fields=FIELDS)) as store:
            row = store._catalog.collection("default")
            assert row is not None
            started = time.perf_counter()
            store._filtering.load(row)
            took = time.perf_counter() - started
            columns = store._filtering._get(row)
            report("read the columns of three fields, once", f"{took:.2f} s", "", None, "")
            each = len(pickle.dumps([columns._seqs, columns._alive, columns._columns])) / rows
            report(
                "memory for each row, three fields and the seqs", f"{each:.1f} bytes", "", None, ""
            )
            for name, where in filters():
                by_columns = median_of_calls(partial(store._filtering.passing, row, where))
                by_rows = median_of_calls(partial(row_by_row, store, row, where), times=1)
                compare(f"evaluate {name}", by_columns, by_rows)
            for name, fields in (("three fields", FIELDS), ("all fields", None)):
                facets = partial(store.facets, "default", fields=fields)
                report(f"facets of {name}", f"{median_of_calls(facets):.0f} ms", "", None, "")
            for name, where in filters():
                page = partial(store.scroll, "default", limit=100, where=where)
                report(f"first page of {name}", f"{median_of_calls(page):.2f} ms", "", None, "")
            took = median_of_calls(store.collections)
            report("count the pictures of every collection", f"{took:.2f} ms", "", None, "")
        numbers = count()
        with_, without, ratio = paired(
            lambda: rate_of_puts(Path(folder) / f"{next(numbers)}", FIELDS),
            lambda: rate_of_puts(Path(folder) / f"{next(numbers)}", ()),
        )
        report(f"rows written in groups of {PUT}, three columns against none",
               f"{with_:,.0f}/s", f"{without:,.0f}/s", ratio, "")  # fmt: skip


def row_by_row(store: LocalStore, row: CollectionRow, where: Filter) -> list[int]:
    """What passes, by the definition."""
    rows = store._catalog.metadata(row, 0, 2**62)
    return [seq for seq, described in rows if where.matches(described)]


def filters() -> list[tuple[str, Filter]]:
    """A filter on few values, on many values, and on two fields, for each share of the rows."""
    found = []
    for name, share in SHARES.items():
        price = {"price": {"gte": 10, "lt": 10 + 100 * share}}
        found += [
            (f"a label, {name}", Filter.parse({"label": name})),
            (f"a range of prices, {name}", Filter.parse(price)),
            (f"a label, {name}, and half of the prices",
             Filter.parse({"label": name, "price": {"lt": 50}})),
            (f"a label, {name}, and a field that no setting names",
             Filter.parse({"label": name, "note": {"ne": "none"}})),
            (f"a label, {name}, or a hundredth of the prices, and not a shop",
             Filter.parse({"or": [{"label": name}, {"price": {"lt": 1}}],
                           "not": {"shop": "shop 7"}})),
            (f"an item of a list, {name}", Filter.parse({"tags": name})),
            (f"a field inside of an object, {name}",
             Filter.parse({"size.w": {"lt": 1000 * share}})),
        ]  # fmt: skip
    return found


def metadata(rows: int) -> list[dict[str, Any]]:
    """A label, a price that hardly repeats, one of 1,000 shops, a note, a list, an object."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(list(SHARES.values()))
    labels = [*SHARES, "other"]
    return [
        {
            "label": labels[place],
            "price": price,
            "shop": f"shop {shop}",
            "note": "as it came",
            "tags": [labels[place], f"tag {shop % 50}"],
            "size": {"w": shop},
        }
        for place, price, shop in zip(
            np.searchsorted(ends, rng.random(rows), side="right").tolist(),
            (100 * rng.random(rows)).tolist(),
            rng.integers(1000, size=rows).tolist(),
            strict=True,
        )
    ]


def fill(path: Path, rows: int, *, group: int, fields: Sequence[str] = ()) -> float:
    """Writes a collection and gives the rows per second."""
    described = metadata(rows)
    vectors = np.full((group, 8), 8**-0.5, np.float32)
    with closing(LocalStore(path, filter_fields=fields)) as store:
        started = time.perf_counter()
        for start in range(0, rows, group):
            images = [
                NewImage(id=f"i{n:08}", sha256=f"{n:064x}", filename=f"{n}.jpg", width=500,
                         height=375, media_type="image/jpeg", bytes=40_000, metadata=described[n])
                for n in range(start, min(start + group, rows))
            ]  # fmt: skip
            store.upsert("default", images, vectors[: len(images)], spec=SPEC, provenance={})
        return rows / (time.perf_counter() - started)


def rate_of_puts(path: Path, fields: Sequence[str]) -> float:
    """Rows per second in groups as a request brings them."""
    return fill(path, 100 * PUT, group=PUT, fields=fields)


def median_of_calls(work: Callable[[], object], *, times: int = 5) -> float:
    """The median of some calls, ms."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def compare(name: str, ours: float, theirs: float) -> None:
    """Reports how many times faster columns are."""
    report(f"{name}: by columns against row by row", f"{ours:.2f} ms", f"{theirs:.2f} ms",
           theirs / ours, "")  # fmt: skip


if __name__ == "__main__":
    main()
