"""Builds an approximate index, and says when a build that failed is tried again.

One that takes long is built in a process of its own, which takes no more than one core from the
service, can be ended at any moment, and gives its memory back. This module is that process's
program: it exits when its input is closed, and prints its progress and its answer as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lookalike.progress import Progress, TaskEndedError
from lookalike.store.local.index.calibration import build_segment
from lookalike.store.local.index.policy import Limits, error_text
from lookalike.store.local.index.segments import ExactSegment, use_at_most

_MORE_ROWS = 1.5
_MAX_RETRY_S = 6 * 3600.0
_POLL_S = 0.1
_NICE = 10  # other work goes first
_READ_BYTES = 8000  # of what the process printed last; an answer takes far less


class Retries:
    """When a build that failed is tried again.

    A type that FAISS cannot build waits for more rows. What may pass by itself, such as a full
    disk, waits for some time, and longer each time.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._rows, self._at, self._pause = 0, 0.0, first_s

    def allowed(self, rows: int) -> bool:
        """True if a build of so many rows may be tried now."""
        return rows >= self._rows and time.monotonic() >= self._at

    def failed(self, rows: int) -> None:
        """FAISS cannot build the type of so many rows; half as many more may do."""
        self._rows = int(rows * _MORE_ROWS) + 1

    def interrupted(self) -> None:
        """The disk was full, memory was short, or a process was ended."""
        self._at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _MAX_RETRY_S)

    def succeeded(self) -> None:
        """Allows the next build at once."""
        self._rows, self._at, self._pause = 0, 0.0, self._first_s


class BuildProgress(Progress):
    """How far a build is.

    Attributes:
        now: The stage, what is done and of how many; None while nothing is built.
        stopped: Set once nobody needs the index any more, to end the build.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: tuple[str, int, int] | None = None
        self.stopped = threading.Event()

    def check(self) -> None:
        """Raises `TaskEndedError` once nobody needs the index any more."""
        if self.stopped.is_set():
            raise TaskEndedError

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        """Remembers how far the build is."""
        self.now = stage, done, total


class BuildError(Exception):
    """FAISS cannot build this type of these vectors; the text says why."""


class BuildInterruptedError(Exception):
    """The process that builds was ended, perhaps for want of memory."""


def build(
    folder: Path, *, dim: int, factory: str, recall: float, limits: Limits, progress: Progress
) -> dict[str, Any]:
    """Builds an index of `vectors` in a folder as `candidates`; gives its calibration as JSON.

    Raises:
        BuildError: FAISS cannot build this type of these vectors.
        BuildInterruptedError: The process that builds was ended.
        MemoryError: Memory ran short.
        TaskEndedError: `progress` ended it.
    """
    request = {"folder": str(folder), "dim": dim, "factory": factory, "recall": recall}
    request["calibrated_k"] = limits.calibrated_k
    if (folder / "vectors").stat().st_size <= 4 * limits.inline_numbers:
        return build_here(request, progress)
    return _build_apart(request, progress)


def build_here(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Builds in this process, see `build`."""
    folder = Path(request["folder"])
    limits = Limits(calibrated_k=tuple(request["calibrated_k"]))
    rows = ExactSegment.map(folder / "vectors", request["dim"], limits=limits)
    try:
        index = build_segment(request["factory"], rows, recall=request["recall"], progress=progress)
        index.candidates.write(folder / "candidates")
    except (RuntimeError, ValueError, AssertionError) as exc:  # of FAISS's bindings
        raise BuildError(error_text(exc)) from exc
    return index.calibration.to_json()


def _build_apart(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Builds in a process of its own, see `build`."""
    # -P keeps it from importing from the working folder.
    program = [sys.executable, "-P", "-m", "lookalike.store.local.index.building"]
    paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(  # noqa: S603 - this program itself
            [*program, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        ) as process,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                progress.check()
                _, answer = _printed(output)
                if "stage" in answer:
                    progress.report(answer["done"], answer["total"], stage=answer["stage"])
        finally:
            process.kill()
        status = process.wait()
        last_line, answer = _printed(output)
    if "error" in answer:
        raise BuildError(answer["error"])
    if "calibration" not in answer:
        why = f": {last_line}" if last_line else ""
        raise BuildInterruptedError(f"the process that builds it ended with status {status}{why}")
    calibration: dict[str, Any] = answer["calibration"]
    return calibration


def _printed(output: IO[bytes]) -> tuple[str, dict[str, Any]]:
    """The last line that a process printed into a file, and the last one that is a JSON object."""
    size = os.fstat(output.fileno()).st_size
    text = os.pread(output.fileno(), _READ_BYTES, max(0, size - _READ_BYTES))
    lines = text.decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # something else that was printed
            if isinstance(answer := json.loads(line), dict):
                return lines[-1], answer
    return "".join(lines[-1:]), {}


def main() -> None:
    """The program; its argument is a request as JSON."""
    os.nice(_NICE)
    use_at_most(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def say(**answer: Any) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    progress = Progress(lambda stage, done, total: say(stage=stage, done=done, total=total))
    try:
        say(calibration=build_here(json.loads(sys.argv[1]), progress))
    except BuildError as exc:
        say(error=str(exc))


def _exit_with_parent() -> None:
    """Exits when the parent process closes our input, or ends."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
