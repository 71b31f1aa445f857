"""The service against a plain server, against extraction alone, and against direct calls.

`python -m benchmarks.service [web] [camera] [library] [--quick]`; ResNet-50 with random weights.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

from benchmarks.common import (
    CAMERA,
    WEB,
    announce,
    environment,
    paired,
    prepared,
    rate,
    report,
)
from benchmarks.machine import machine
from benchmarks.servers import HERE, free_port, load, server, service, write
from lookalike.bootstrap import Services, build_services
from lookalike.config import load_settings
from lookalike.media.sources import PictureSource
from lookalike.services.search import SearchOptions

CLIENTS = 32
PARTS = ("web", "camera", "library")


def main() -> None:
    """Runs the parts that are named, or all, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="few requests")
    options = parser.parse_args()
    quick = options.quick
    fast = machine()["bfloat16"] == "yes"
    announce("The service, ResNet-50 with random weights")
    with environment(weights="random", log_level="warning") as folder:
        for part in options.parts or PARTS:
            if part == "web":
                goal = "at least 2" if fast else "at least 1.1"
                name = "web-size photos (500x375)"
                against_a_plain_server(folder, name, WEB, 64 if quick else 192, goal)
            elif part == "camera":
                goal = "at least 3" if fast else ""
                against_a_plain_server(
                    folder, "12-megapixel photos", CAMERA, 32 if quick else 96, goal
                )
            else:
                against_the_library(folder, write(folder, WEB), 96 if quick else 480)


def against_a_plain_server(
    folder: Path, name: str, size: tuple[int, int], requests: int, goal: str
) -> None:
    """Pictures per second of both under the same load."""
    files = write(folder, size)
    ours, plain = free_port(), free_port()
    with (
        service(folder / f"data-{size[0]}", files, ours),
        server([HERE / "plain_server.py", str(plain), *map(str, files)], plain),
    ):
        fast, slow, ratio = paired(
            lambda: load(ours, CLIENTS, requests, files)["per_second"],
            lambda: load(plain, CLIENTS, requests, files)["per_second"],
        )
    report(f"{CLIENTS} clients, {name}, service against plain server",
           f"{fast:.1f}/s", f"{slow:.1f}/s", ratio, goal,
           arguments=("web" if size == WEB else "camera",))  # fmt: skip


def against_the_library(folder: Path, files: list[Path], requests: int) -> None:
    """The service against the same parts called directly, without HTTP."""
    port = free_port()
    services = build_services(load_settings(data_dir=folder / "direct"))
    fill(services, files)
    encoder = services.encoders.default.encoder
    batch = prepared(encoder, files[:CLIENTS])
    with service(folder / "data-library", files, port):
        served, alone, ratio = paired(
            lambda: load(port, CLIENTS, requests, files)["per_second"],
            lambda: rate(
                requests, lambda: [encoder.encode(batch) for _ in range(requests // CLIENTS)]
            ),
        )
        report(f"{CLIENTS} clients, service against batched extraction alone",
               f"{served:.1f}/s", f"{alone:.1f}/s", ratio, "at least 0.85",
               arguments=("library",))  # fmt: skip
        over_http, direct, ratio = paired(
            lambda: load(port, 1, 64, files)["p50_ms"],
            lambda: direct_p50(services, files),
            rounds=5,
        )
        report("one client, p50 of /search against the same called directly",
               f"{over_http:.1f} ms", f"{direct:.1f} ms", ratio, "at most 1.15",
               arguments=("library",))  # fmt: skip
    services.close()


def direct_p50(services: Services, files: list[Path]) -> float:
    """Milliseconds of decode, extract and search, called directly."""
    took = []
    for file in files:
        data = file.read_bytes()
        started = time.perf_counter()
        services.search.search(io.BytesIO(data), SearchOptions())
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def fill(services: Services, files: list[Path]) -> None:
    """Indexes the files."""
    items = list(services.indexing.index([PictureSource.from_path(file) for file in files]))
    if any(item.error for item in items):
        raise SystemExit("a picture of the benchmark could not be indexed")


if __name__ == "__main__":
    main()
