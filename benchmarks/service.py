"""The service against a plain server, against extraction alone, and against direct calls.

`python -m benchmarks.service [web] [camera] [library]`; ResNet-50 with random weights.
"""

from __future__ import annotations

import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.bootstrap import Services, build_services
from app.config import load_settings
from app.services.search import SearchOptions
from app.services.sources import PictureSource
from benchmarks.common import (
    CAMERA,
    WEB,
    announce,
    environment,
    paired,
    pictures,
    prepared,
    rate,
    report,
)

CLIENTS = 32
GALLERY = 64
HERE = Path(__file__).parent


def main() -> None:
    """Runs the parts that are named, or all, and prints the ratios."""
    parts = sys.argv[1:] or ["web", "camera", "library"]
    announce("The service, ResNet-50 with random weights")
    with environment(weights="random", log_level="warning") as folder:
        if "web" in parts:
            bound = "at least 2 with bfloat16, 1.1 without"
            against_a_plain_server(folder, "web-size photos (500x375)", WEB, 192, bound)
        if "camera" in parts:
            bound = "at least 3 with bfloat16"
            against_a_plain_server(folder, "12-megapixel photos", CAMERA, 96, bound)
        if "library" in parts:
            against_the_library(folder, write(folder, WEB))


def against_a_plain_server(
    folder: Path, name: str, size: tuple[int, int], requests: int, bound: str
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
           f"{fast:.1f}/s", f"{slow:.1f}/s", ratio, bound)  # fmt: skip


def against_the_library(folder: Path, files: list[Path]) -> None:
    """The service against the same parts called directly, without HTTP."""
    port = free_port()
    services = build_services(load_settings(data_dir=folder / "direct"))
    fill(services, files)
    extractor = services.extractors.default.extractor
    batch = prepared(extractor, files[:CLIENTS])
    with service(folder / "data-library", files, port):
        served, alone, ratio = paired(
            lambda: load(port, CLIENTS, 480, files)["per_second"],
            lambda: rate(480, lambda: [extractor.extract(batch) for _ in range(480 // CLIENTS)]),
        )
        report(f"{CLIENTS} clients, service against batched extraction alone",
               f"{served:.1f}/s", f"{alone:.1f}/s", ratio, "at least 0.85")  # fmt: skip
        over_http, direct, ratio = paired(
            lambda: load(port, 1, 64, files)["p50_ms"],
            lambda: direct_p50(services, files),
            rounds=5,
        )
        report("one client, p50 of /search against the same called directly",
               f"{over_http:.1f} ms", f"{direct:.1f} ms", ratio, "at most 1.15")  # fmt: skip
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
    if any(item.failed for item in items):
        raise SystemExit("a picture of the benchmark could not be indexed")


def write(top: Path, size: tuple[int, int]) -> list[Path]:
    """Draws the pictures of a size once."""
    folder = top / f"pictures-{size[0]}"
    if not folder.is_dir():
        folder.mkdir()
        for number, data in enumerate(pictures(GALLERY, size)):
            (folder / f"{number:03}.jpg").write_bytes(data)
    return sorted(folder.iterdir())


@contextmanager
def service(data: Path, files: list[Path], port: int) -> Iterator[None]:
    """Our service with the files indexed."""
    lookalike = Path(sys.executable).with_name("lookalike")
    where = ["--data-dir", str(data)]
    subprocess.run([lookalike, "index", *files, *where], check=True, stdout=subprocess.DEVNULL)
    with server([lookalike, "serve", "--port", str(port), *where], port, python=False):
        yield


@contextmanager
def server(words: list[str | Path], port: int, *, python: bool = True) -> Iterator[None]:
    """A server in a process of its own, warm."""
    command = [sys.executable, *words] if python else words
    # Without what this process set for itself: each server chooses its own threads.
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("OMP_")}
    process = subprocess.Popen(command, env=inherited, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{words[0]} does not start")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def load(port: int, clients: int, requests: int, files: list[Path]) -> dict[str, float]:
    """Runs the load generator in a process of its own."""
    words: list[str | Path] = [
        sys.executable,
        HERE / "load.py",
        str(port),
        str(clients),
        str(requests),
        *files,
    ]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
