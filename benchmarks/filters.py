"""The time to evaluate a filter, with the fields indexed in the catalog and without.

`python -m benchmarks.filters [COUNT]` from the repository's root; COUNT rows (100,000 by default)
with vectors of 8 numbers, written through the catalog in groups.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import announce, paired, report
from lookalike.records import Metadata, ModelSpec, NewImage, OnConflict
from lookalike.store.filters import Filter
from lookalike.store.local.catalog.catalog import Catalog

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
        path = Path(folder) / "catalog.db"
        fill(path, rows, group=GROUP)
        plain = Catalog(path, read_only=True)
        times = {name: milliseconds(plain, where) for name, where in filters()}
        pages = {name: milliseconds(plain, where, page=True) for name, where in filters()}
        plain.close()
        whole, waited = build(path)
        report("three fields indexed afterwards: the whole time, and the longest that a write took",
               whole, waited, None, "")  # fmt: skip
        indexed = Catalog(path, read_only=True)
        for name, where in filters():
            compare(f"evaluate {name}", milliseconds(indexed, where), times[name])
        for name, where in filters():
            compare(f"first page of {name}", milliseconds(indexed, where, page=True), pages[name])
        took = median_of_calls(indexed.collections)
        report("count the pictures of every collection", f"{took:.2f} ms", "", None, "")
        indexed.close()
        numbers = count()
        with_, without, ratio = paired(
            lambda: rate_of_puts(Path(folder) / f"{next(numbers)}.db", FIELDS),
            lambda: rate_of_puts(Path(folder) / f"{next(numbers)}.db", ()),
        )
        report(f"rows written in groups of {PUT}, three fields indexed against none",
               f"{with_:,.0f}/s", f"{without:,.0f}/s", ratio, "")  # fmt: skip


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
            (f"a label, {name}, and a field without an index",
             Filter.parse({"label": name, "note": {"ne": "none"}})),
        ]  # fmt: skip
    return found


def metadata(rows: int) -> list[dict[str, Any]]:
    """One of a few labels, a price that hardly repeats, one of 1,000 shops, and a note."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(list(SHARES.values()))
    labels = [*SHARES, "other"]
    return [
        {"label": labels[place], "price": price, "shop": f"shop {shop}", "note": "as it came"}
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
    catalog = Catalog(path, fields=fields)
    started = time.perf_counter()
    for start in range(0, rows, group):
        images = [
            NewImage(id=f"i{n:08}", sha256=f"{n:064x}", filename=f"{n}.jpg", width=500, height=375,
                     media_type="image/jpeg", bytes=40_000, metadata=described[n])
            for n in range(start, min(start + group, rows))
        ]  # fmt: skip
        catalog.put("default", images, vectors[: len(images)], spec=SPEC, provenance={},
                    on_conflict=OnConflict.REPLACE)  # fmt: skip
    took = time.perf_counter() - started
    catalog.close()
    return rows / took


def rate_of_puts(path: Path, fields: Sequence[str]) -> float:
    """Rows per second in groups as a request brings them."""
    return fill(path, 100 * PUT, group=PUT, fields=fields)


def build(path: Path) -> tuple[str, str]:
    """Indexes the fields of a collection while a picture is changed again and again."""
    catalog = Catalog(path, fields=FIELDS)
    row = catalog.collection("default")
    assert row is not None
    started, waited = time.perf_counter(), [0.0]
    for number in count():
        if "building" not in catalog.fields.states(row).values():
            break
        before = time.perf_counter()
        catalog.change_metadata("default", "i00000007", partial(touched, number=number))
        waited.append(time.perf_counter() - before)
        time.sleep(0.05)
    took = time.perf_counter() - started
    catalog.close()
    return f"{took:.1f} s", f"{max(waited) * 1000:.0f} ms"


def touched(old: Metadata, *, number: int) -> Metadata:
    """The metadata with a change in a field that is not indexed."""
    return {**old, "touched": number}


def milliseconds(catalog: Catalog, where: Filter, *, page: bool = False) -> float:
    """The median time to evaluate a filter, or to read the first page of 100 that pass."""
    row = catalog.collection("default")
    assert row is not None
    if page:
        return median_of_calls(lambda: catalog.page("default", after=0, limit=100, where=where))
    return median_of_calls(lambda: catalog.passing(row, where))


def median_of_calls(work: Callable[[], object]) -> float:
    """The median of five calls, ms."""
    took = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def compare(name: str, ours: float, theirs: float) -> None:
    """Reports how many times faster the index is."""
    report(f"{name}: indexed against row by row", f"{ours:.2f} ms", f"{theirs:.2f} ms",
           theirs / ours, "")  # fmt: skip


if __name__ == "__main__":
    main()
