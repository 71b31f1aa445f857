"""The index of one vector space, made from the catalog: loaded, synced, or built anew.

An approximate index that takes long to build is built in a process of its own, which takes no more
than one core from the service, can be ended at any moment, and gives its memory back. This module
is that process's program: it reads a request from its input, and exits when that is closed.
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
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from lookalike.errors import StorageError
from lookalike.progress import Progress, TaskEndedError
from lookalike.store.base import Seqs, Vectors
from lookalike.store.local.catalog import Catalog, CollectionRow
from lookalike.store.local.index.calibration import build_segment
from lookalike.store.local.index.generations import Generations
from lookalike.store.local.index.policy import EXACT, IndexPolicy, Limits, Plan, error_text
from lookalike.store.local.index.segments import ExactSegment, Segments, in_memory, use_at_most

_PAUSE_S = 0.0005  # after each block that a build reads, so that searches run
_COMPARED = 16  # vectors that a saved index is compared with the catalog by
_MORE_ROWS = 1.5
_MAX_RETRY_S = 6 * 3600.0

log = logging.getLogger(__name__)


class Retries:
    """When a build that failed is tried again.

    A type that FAISS cannot build waits for more rows. What may pass by itself, such as a full
    disk, waits for some time, and longer each time.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._pause = first_s
        self._rows = 0
        self._at = 0.0

    def allowed(self, rows: int) -> bool:
        """True if a build of so many rows may be tried now."""
        return rows >= self._rows and not self.waiting

    @property
    def waiting(self) -> bool:
        """True if time alone will allow a build."""
        return time.monotonic() < self._at

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
    """How far a build is; `stop` ends it.

    Attributes:
        now: The stage, what is done and of how many; None while nothing is built.
        stopped: Set once nobody needs the index any more.
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


class IndexBuilding:
    """Makes the index of one vector space.

    Attributes:
        progress: How far a build is.
        retries: When a build that failed is tried again.
        failure: Why the last build failed; None if it did not.
    """

    def __init__(
        self, catalog: Catalog, row: CollectionRow, generations: Generations, policy: IndexPolicy
    ) -> None:
        self._catalog = catalog
        self._row = row
        self._generations = generations
        self._policy = policy
        self._limits = policy.limits
        self.progress = BuildProgress()
        self.retries = Retries(policy.limits.retry_s)
        self.failure: str | None = None

    def load(self) -> tuple[Segments, int]:
        """The saved index if it fits, else an exact one; and the changes since it was saved.

        What the policy wants beyond exact search is left to a later `build`.
        """
        name, held = self._row.name, self._catalog.embedded(self._row)
        index = self._generations.load(self._row, exact=self._policy.index_type == EXACT)
        if index and not self._agrees(index, held):
            log.warning("The saved index of %r is not of this catalog", name)
            self._generations.discard()
            index = None
        if index is None:
            if len(held):
                log.warning("Building the index of %r from %d stored vectors", name, len(held))
            index = self._exact(len(held))
        return index, self.sync(index)

    def make(self) -> tuple[Segments, int]:
        """An exact index of a set that nobody searches yet, and the changes that it followed.

        What the policy wants beyond that is left to a later `build`, which can be stopped.
        """
        self._generations.discard()
        index = self._exact(len(self._catalog.embedded(self._row)))
        return index, self.sync(index)

    def sync(self, index: Segments) -> int:
        """Brings an index up to date with the catalog; returns the number of changes."""
        held = self._catalog.embedded(self._row)
        gone = np.setdiff1d(index.seqs[index.alive], held, assume_unique=True)
        index.remove(gone)
        changes = len(gone)
        for seqs, vectors in self._catalog.vectors_after(self._row, index.last_seq):
            index.add(seqs, vectors)
            changes += len(seqs)
        return changes

    def due(self, index: Segments) -> Plan | None:
        """What to build now; None if the index serves well, or a build has just failed."""
        return self._policy.due(index) if self.retries.allowed(index.live_rows) else None

    def build(self, plan: Plan, rows: int) -> Segments | None:
        """Builds and saves an index of what is in the catalog; None if that fails.

        Takes minutes for a million rows, while searches and changes go on.

        Raises:
            TaskEndedError: Nobody needs the index any more.
        """
        self.progress.check()
        try:
            built = self._build(plan, rows)
        except TaskEndedError:
            raise
        except Exception as exc:  # whatever it is, it would fail again at once
            # If the collection was dropped, its folder went with it.
            self.progress.check()
            why = str(exc) or type(exc).__name__
            self.failure = f"{plan.factory or EXACT} was not built: {why}"
            if isinstance(exc, BuildError):
                self.retries.failed(rows)
            else:
                self.retries.interrupted()
            log.warning("The index of %r stays as it is: %s", self._row.name, self.failure)
            return None
        finally:
            self.progress.now = None
        self.failure = None
        self.retries.succeeded()
        return built

    def _build(self, plan: Plan, rows: int) -> Segments | None:
        self.progress.report(0, rows, stage="read")
        self._generations.require_room(rows, self._row.spec.dim)
        build = partial(self._build_candidates, plan.factory) if plan.factory else None
        if not self._generations.save(self._paced_blocks(rows), self._row, build=build):
            return None
        built = self._generations.load(self._row, exact=False)
        if built is None or built.factory != plan.factory:  # it would be due again at once
            raise BuildError("what was saved cannot be read")
        return built

    def _paced_blocks(self, rows: int) -> Iterator[tuple[Seqs, Vectors]]:
        """All vectors, with a pause after each block; ends the build if room gets short."""
        blocks = self._catalog.vectors_after(self._row, 0, block_bytes=self._limits.block_bytes)
        done = 0
        for number, block in enumerate(blocks):
            time.sleep(_PAUSE_S)
            self.progress.check()
            if number % self._limits.room_blocks == 0:
                self._generations.require_room(0, self._row.spec.dim)
            yield block
            done += len(block[0])
            self.progress.report(min(done, rows), rows, stage="read")
        self.progress.check()

    def _build_candidates(self, factory: str, folder: Path, dim: int) -> dict[str, Any]:
        """Builds an approximate index of a folder's vectors, see `generations.Build`."""
        request = BuildRequest(
            folder=str(folder),
            dim=dim,
            factory=factory,
            recall=self._policy.recall,
            calibrated_k=self._limits.calibrated_k,
        )
        calibration = build(request, self.progress, inline_numbers=self._limits.inline_numbers)
        return {
            "index": factory,
            "calibration": calibration,
            "built_with": self._policy.build_settings,
        }

    def _exact(self, rows: int) -> Segments:
        """An exact index; if its rows are many, they are written to a file that is mapped."""
        if 4 * rows * self._row.spec.dim >= self._limits.mapped_bytes:
            try:
                saved = self._generations.save(self._catalog.vectors_after(self._row, 0), self._row)
            except StorageError as exc:
                log.warning("The index of %r is kept in memory: %s", self._row.name, exc)
                saved = False
            index = self._generations.load(self._row, exact=True) if saved else None
            if index:
                return index
        return in_memory(ExactSegment(self._row.spec.dim, limits=self._limits))

    def _agrees(self, index: Segments, held: Seqs) -> bool:
        """True if a saved index was made from this catalog.

        A catalog restored from a backup gives seqs again that the index knows; comparing a few
        vectors shows it.
        """
        covered = held[held <= index.last_seq]
        in_catalog = index.last_seq <= self._catalog.last_seq()
        if not in_catalog or len(index.locate(covered)) != len(covered):
            return False
        picked = covered[:: max(1, len(covered) // _COMPARED)]
        seqs, vectors = self._catalog.vectors_at(self._row, picked.tolist())
        return np.array_equal(index.vectors(index.locate(seqs)), vectors)


_POLL_S = 0.1
_NICE = 10  # other work goes first
_ERROR_BYTES = 2000  # of what the process wrote before it ended


class BuildError(Exception):
    """FAISS cannot build this type of these vectors; the text says why."""


class BuildInterruptedError(Exception):
    """A build ended for a reason that may have passed the next time; the text says which."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build."""

    folder: str
    dim: int
    factory: str
    recall: float
    calibrated_k: tuple[int, ...]


def build(request: BuildRequest, progress: Progress, *, inline_numbers: int) -> dict[str, Any]:
    """Builds and calibrates; returns the calibration as JSON.

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
        [sys.executable, "-P", "-m", "lookalike.store.local.index.building"],
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
