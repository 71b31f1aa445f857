"""`lookalike index` of a folder against batched extraction alone.

`python -m benchmarks.indexing [--quick]` from the repository's root; ResNet-50 with random weights.
"""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path

from benchmarks.common import WEB, announce, environment, paired, pictures, prepared, rate, report
from lookalike import Client
from lookalike.bootstrap import build_encoder
from lookalike.config import load_settings

COUNT = 320
BATCH = 32


def main() -> None:
    """Prints the ratio of pictures per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pictures")
    total = BATCH * 2 if parser.parse_args().quick else COUNT
    announce("Indexing a folder, ResNet-50 with random weights")
    with environment(weights="random") as folder:
        files = [folder / f"{number:03}.jpg" for number in range(total)]
        for file, data in zip(files, pictures(total, WEB), strict=True):
            file.write_bytes(data)
        encoder = build_encoder(load_settings())
        batch = prepared(encoder, files[:BATCH])
        runs = count()
        ours, alone, ratio = paired(
            lambda: index(folder / f"data-{next(runs)}", files),
            lambda: rate(total, lambda: [encoder.encode(batch) for _ in range(total // BATCH)]),
        )
    report("index a folder of web-size photos against batched extraction alone",
           f"{ours:.1f}/s", f"{alone:.1f}/s", ratio, "at least 0.85")  # fmt: skip


def index(data: Path, files: list[Path]) -> float:
    """Pictures per second through everything that the command does once its network is loaded."""
    with Client(data) as client:
        client.index(*files[:BATCH], collection="warm")
        return rate(len(files), lambda: client.index(*files))


if __name__ == "__main__":
    main()
