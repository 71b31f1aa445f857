"""Latency of the service at arrival rates up to nearly all that it can do.

`python -m benchmarks.arrivals [--quick]` from the repository's root; ResNet-50 with random
weights. The most that it can do is measured with a closed loop of 32 clients; requests then arrive
as a Poisson process at shares of that, and latency counts from the scheduled arrival.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.common import WEB, announce, draw, environment, report
from benchmarks.open_loop import Summary
from benchmarks.results import Chart
from benchmarks.servers import free_port, load, service, write

CLIENTS = 32
SHARES = (0.25, 0.5, 0.75, 0.9)
SECONDS = 60.0


def main() -> None:
    """Prints latencies at each rate beside those of one client alone, and keeps a chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds for each rate, not a minute")
    quick = parser.parse_args().quick
    announce("Latency against arrival rate, ResNet-50 with random weights")
    with environment(weights="random", log_level="warning") as folder:
        files, port = write(folder, WEB), free_port()
        with service(folder / "data", files, port):
            load(port, CLIENTS, 64, files)  # what the first batches alone do
            alone = load(port, 1, 16 if quick else 64, files)["p50_ms"]
            most = load(port, CLIENTS, 96 if quick else 480, files)["per_second"]
            print(f"closed loop: {most:.1f}/s with {CLIENTS} clients, p50 of one {alone:.1f} ms")
            sweep(port, files, most, alone=alone, seconds=5.0 if quick else SECONDS)


def sweep(port: int, files: list[Path], most: float, *, alone: float, seconds: float) -> None:
    """Measures each rate.

    Args:
        port: Of the service.
        files: What is sent.
        most: Pictures per second in the closed loop.
        alone: Milliseconds that one client waits, with nobody else there.
        seconds: For each rate.
    """
    lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p95": [], "p99": []}
    for share in SHARES:
        found = open_loop(port, files, rate=share * most, seconds=seconds)
        for name, value in zip(lines, (found.p50_ms, found.p95_ms, found.p99_ms), strict=True):
            lines[name].append((share * most, value))
        errors = f", {found.errors} errors" if found.errors else ""
        report(
            f"requests arrive at {share:.0%} of the most that the service can do "
            f"({share * most:.1f}/s): p99 against the p50 of one client alone",
            f"p50 {found.p50_ms:.0f}, p95 {found.p95_ms:.0f}, p99 {found.p99_ms:.0f} ms; "
            f"{found.achieved_rate:.1f}/s{errors}",
            f"{alone:.0f} ms",
            found.p99_ms / alone,
            "",
        )
    draw(
        Chart(
            name="arrivals",
            title="Latency from the scheduled arrival, against the arrival rate",
            x_label=f"requests per second, Poisson (closed-loop maximum {most:.1f})",
            y_label="milliseconds",
            lines=lines,
        )
    )


def open_loop(port: int, files: list[Path], *, rate: float, seconds: float) -> Summary:
    """Runs the generator in a process of its own."""
    words = ["--url", f"http://127.0.0.1:{port}", "--rate", str(rate), "--seconds", str(seconds)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.open_loop", *words, *map(str, files)],
        check=True,
        stdout=subprocess.PIPE,
    )
    return Summary(**json.loads(done.stdout))


if __name__ == "__main__":
    main()
