"""Builds an approximate index of a file of vectors, in a process of its own if that takes long.

Such a process takes no more than one core from the service, can be ended at any moment, and gives
its memory back. The program reads a request from its input, and exits when that is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lookalike.progress import Progress
from lookalike.store.local.index.calibration import build_segment
from lookalike.store.local.index.exact import ExactSegment
from lookalike.store.local.index.faiss_calls import error_text, use_at_most
from lookalike.store.local.index.policy import Limits

_POLL_S = 0.1
_NICE = 10  # other work goes first
_ERROR_BYTES = 2000  # of what the process wrote before it ended


class BuildError(Exception):
    """FAISS cannot build this type of these vectors; the text says why."""


class BuildInterruptedError(Exception):
    """A build ended for a reason that may have passed the next time; the text says which."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build.

    Attributes:
        folder: Holds `vectors`; `candidates` is made there.
        dim: Numbers in a vector.
        factory: A factory string of FAISS.
        recall: What its calibrated effort is to reach.
        calibrated_k: Numbers of matches to calibrate for.
    """

    folder: str
    dim: int
    factory: str
    recall: float
    calibrated_k: tuple[int, ...]


def build(request: BuildRequest, progress: Progress, *, inline_numbers: int) -> dict[str, Any]:
    """Builds and calibrates; returns the calibration as JSON.

    Args:
        request: What to build.
        progress: Told how far it is; ends the build.
        inline_numbers: So many numbers are built in this process.

    Raises:
        BuildError: FAISS cannot build this type of these vectors.
        BuildInterruptedError: Memory ran short, or the process was ended.
        TaskEndedError: `progress` ended it.
    """
    vectors = Path(request.folder) / "vectors"
    if vectors.stat().st_size <= 4 * inline_numbers:
        return build_here(request, progress)
    return _build_apart(request, progress)


def build_here(request: BuildRequest, progress: Progress) -> dict[str, Any]:
    """Builds and calibrates in this process, see `build`."""
    folder, limits = Path(request.folder), Limits(calibrated_k=tuple(request.calibrated_k))
    rows = ExactSegment.map(folder / "vectors", request.dim, limits=limits)
    try:
        index = build_segment(request.factory, rows, recall=request.recall, progress=progress)
        index.candidates.write(folder / "candidates")
    except MemoryError as exc:
        raise BuildInterruptedError("memory ran short") from exc
    except (RuntimeError, ValueError, AssertionError) as exc:  # of FAISS's bindings
        raise BuildError(error_text(exc)) from exc
    return index.calibration.to_json()


def _build_apart(request: BuildRequest, progress: Progress) -> dict[str, Any]:
    """Runs this module as a program."""
    answers: list[dict[str, Any]] = []
    with tempfile.TemporaryFile() as errors:
        with _program(errors) as process:
            reader = threading.Thread(
                target=_read_answers, args=(process, answers, progress), daemon=True
            )
            reader.start()
            try:
                _wait(process, request, progress)
            finally:
                process.kill()
                process.wait()
                reader.join()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _ERROR_BYTES))
        last_line = errors.read().decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
    answer = answers[-1] if answers else {}
    if "error" in answer:
        raise BuildError(answer["error"])
    if "calibration" not in answer:
        why = f"the process that builds it ended with status {process.returncode}"
        why = f"{why}: {last_line}" if last_line else why
        raise BuildInterruptedError(answer.get("interrupted", why))
    calibration: dict[str, Any] = answer["calibration"]
    return calibration


@contextlib.contextmanager
def _program(errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """This module as a program; -P keeps it from importing from the working folder."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lookalike.store.local.index.build_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
            "OMP_NUM_THREADS": "1",
        },
    )
    try:
        yield process
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # the request, unread
                    stream.close()


def _wait(process: subprocess.Popen[str], request: BuildRequest, progress: Progress) -> None:
    """Sends the request, and waits until the process ends or the task does."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once
        process.stdin.write(json.dumps(asdict(request)) + "\n")
        process.stdin.flush()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
            break
        progress.check()
    progress.check()


def _read_answers(
    process: subprocess.Popen[str], answers: list[dict[str, Any]], progress: Progress
) -> None:
    """Passes progress on, and collects what else is answered."""
    for line in process.stdout or ():
        try:
            answer = json.loads(line)
        except ValueError:  # something else that was printed
            continue
        if "stage" in answer:
            progress.report(answer["done"], answer["total"], stage=answer["stage"])
        else:
            answers.append(answer)


def main() -> None:
    """The program: one request, lines of progress, one answer."""
    os.nice(_NICE)
    use_at_most(1)
    request = BuildRequest(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def say(**answer: Any) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    progress = Progress(lambda stage, done, total: say(stage=stage, done=done, total=total))
    try:
        say(calibration=build_here(request, progress))
    except BuildError as exc:
        say(error=str(exc))
    except BuildInterruptedError as exc:
        say(interrupted=str(exc))


def _exit_with_parent() -> None:
    """Exits when the parent process closes our input, or ends."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
