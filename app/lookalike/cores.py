"""How many cores this process may use, pools of threads that do not fight over them, processes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_FILE = Path("/sys/fs/cgroup/memory.max")


def available_cores(quota_file: Path = _QUOTA_FILE) -> int:
    """How many cores the scheduler and the container's quota leave to this process, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # pragma: no cover  # macOS
        cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or `max`: no quota
        return max(1, cores)


@functools.cache  # asked at every change of a collection
def memory_bytes() -> int:
    """The machine's memory, or the container's limit where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_MEMORY_FILE.read_text()))
    except (OSError, ValueError):  # no such file, or `max`: no limit
        return machine


def limit_openmp() -> None:
    """Keeps FAISS and torch from running two OpenMP pools against each other.

    Must run before either is imported. What the environment says already is left alone.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def end_with_parent() -> None:
    """From now on, this process ends when whoever started it closes its input, or ends."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def start_module(module: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Starts one of our modules as a program of its own, which knows none of our settings.

    `options` are those of `Popen`. Raises `OSError`.
    """
    # -P keeps it from importing from the working folder.
    program = [sys.executable, "-P", "-m", module, *arguments]
    paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109
    kept = {name: text for name, text in os.environ.items() if not name.startswith("LOOKALIKE_")}
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(program, env=kept | environment, **options)  # noqa: S603
