"""Builds an approximate index of a file of vectors, in a process of its own where that takes long.

So it slows the service down no more than one busy core does, can be ended at any moment, and gives
its memory back. As a program it reads a request from its input, and ends when that is closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lookalike.store.local.index.ann_index import AnnIndex
from lookalike.store.local.index.flat_rows import MappedRows, said_by, use_at_most
from lookalike.store.local.index.generation_files import digest_of, sync_file

_INLINE_NUMBERS = 500_000  # so many are built within a few seconds, without a process
_WAIT_S = 0.1
_NICE = 10  # other work goes first
_SAID_BYTES = 2000  # of what the process wrote before it ended

log = logging.getLogger(__name__)

Stage = tuple[str, int, int]
"""What is being done (`read`, or what `Progress` says), how far, of how many."""


class BuildError(Exception):
    """An index was not built; the text says why."""


class BuildInterruptedError(Exception):
    """Something came between that may be gone the next time; the text says what."""


class BuildStoppedError(Exception):
    """Whoever asked for an index wants none any more."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build.

    Attributes:
        stem: The generation: `.vectors` is there, `.ann` is made.
        dim: Numbers in a vector.
        factory: A factory string of FAISS.
        recall: What its search parameters are to reach.
    """

    stem: str
    dim: int
    factory: str
    recall: float


def build_files(
    request: BuildRequest, *, stop: threading.Event, tell: Callable[[Stage], None]
) -> dict[str, Any]:
    """Builds and calibrates; gives what a manifest says of it.

    Args:
        request: What to build.
        stop: Set when nobody wants it any more.
        tell: Told how far it is.

    Raises:
        BuildError: FAISS cannot build this type of these vectors.
        BuildInterruptedError: Memory ran short, or the process was ended.
        BuildStoppedError: `stop` was set.
    """
    ann = Path(request.stem).with_suffix(".ann")
    vectors = Path(request.stem).with_suffix(".vectors")
    if vectors.stat().st_size <= 4 * _INLINE_NUMBERS:
        calibration = _build(request, tell)
    else:
        calibration = _build_apart(request, stop, tell)
    sync_file(ann)
    return {"index": request.factory, "ann": digest_of(ann), "calibration": calibration}


def _build(request: BuildRequest, tell: Callable[[Stage], None]) -> dict[str, Any]:
    stem = Path(request.stem)
    rows = MappedRows.open(stem.with_suffix(".vectors"), dim=request.dim).array
    try:
        index = AnnIndex.build(
            request.factory,
            rows,
            recall=request.recall,
            on_progress=lambda *stage: tell(stage),
        )
        index.ann.write(stem.with_suffix(".ann"))
    except MemoryError as exc:
        raise BuildInterruptedError("memory ran short") from exc
    except (RuntimeError, ValueError, AssertionError) as exc:  # of FAISS's bindings
        raise BuildError(said_by(exc)) from exc
    return index.calibration.to_json()


def _build_apart(
    request: BuildRequest, stop: threading.Event, tell: Callable[[Stage], None]
) -> dict[str, Any]:
    """Runs this module as a program."""
    with tempfile.TemporaryFile() as errors:
        process = _start(errors)
        answers = _ask(process, request, stop, tell)
        errors.seek(0, os.SEEK_END)
        errors.seek(max(0, errors.tell() - _SAID_BYTES))
        said = errors.read().decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
    if stop.is_set():
        raise BuildStoppedError
    if not answers:
        why = f"the process that builds it ended with status {process.returncode}"
        raise BuildInterruptedError(f"{why}: {said}" if said else why)
    answer = answers[-1]
    if "error" in answer:
        raise BuildError(answer["error"])
    if "interrupted" in answer:
        raise BuildInterruptedError(answer["interrupted"])
    calibration: dict[str, Any] = answer["calibration"]
    return calibration


def _start(errors: IO[bytes]) -> subprocess.Popen[str]:
    """This module as a program; -P: not what lies in the working folder."""
    return subprocess.Popen(
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


def _ask(
    process: subprocess.Popen[str],
    request: BuildRequest,
    stop: threading.Event,
    tell: Callable[[Stage], None],
) -> list[dict[str, Any]]:
    """Waits for the end, and gives what was answered but for the progress."""
    answers: list[dict[str, Any]] = []
    reader = threading.Thread(target=_read_answers, args=(process, answers, tell), daemon=True)
    reader.start()
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(request)) + "\n")
        process.stdin.flush()
        while process.poll() is None and not stop.wait(_WAIT_S):
            pass
    except BrokenPipeError:
        pass
    finally:
        process.kill()
        process.wait()
        reader.join()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what was written is not wanted
                    stream.close()
    return answers


def _read_answers(
    process: subprocess.Popen[str],
    answers: list[dict[str, Any]],
    tell: Callable[[Stage], None],
) -> None:
    for line in process.stdout or ():
        try:
            answer = json.loads(line)
        except ValueError:  # something else that was printed
            continue
        if "stage" in answer:
            tell(tuple(answer["stage"]))
        else:
            answers.append(answer)


def main() -> None:
    """The program: one request, lines of progress, one answer."""
    os.nice(_NICE)
    use_at_most(1)
    request = BuildRequest(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    try:
        say({"calibration": _build(request, lambda stage: say({"stage": stage}))})
    except BuildError as exc:
        say({"error": str(exc)})
    except BuildInterruptedError as exc:
        say({"interrupted": str(exc)})


def _end_with_parent() -> None:
    """Whoever asked has ended where the input is closed: then the work is for nobody."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
