"""Servers in processes of their own, with pictures indexed, and a closed-loop load on them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import pictures

GALLERY = 64
HERE = Path(__file__).parent


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
        deadline = time.monotonic() + 600
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
