"""Builds indexes and saves them.

A saved index is an artifact folder that is whole and fits the catalog, or not used. It holds
`seqs`, (N,) little-endian int64; `vectors`, (N, dim) little-endian float32, which are mapped; and
`candidates` in FAISS's own format, if the index is approximate. It is only a cache.

An approximate index that takes long is built in a process of its own, which takes no more than one
core from the service, can be ended at any moment, and gives its memory back. This module is its
program: it exits when its input is closed, and prints progress and answer as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lookalike.cores import end_with_parent, start_module
from lookalike.errors import StorageFullError
from lookalike.files.artifacts import (
    Artifact,
    BrokenArtifactError,
    read_artifact,
    remove_artifact,
    remove_leftovers,
    save_artifact,
)
from lookalike.files.disk import disk_errors
from lookalike.progress import Progress, TaskEndedError
from lookalike.store.base import Seqs, Vectors
from lookalike.store.local.index.approximate import ApproximateSegment, CandidateIndex
from lookalike.store.local.index.calibration import Calibration, build_segment
from lookalike.store.local.index.policy import EXACT, VERSION, IndexPolicy, Limits, error_text
from lookalike.store.local.index.segments import (
    ExactSegment,
    Segments,
    in_memory,
    map_vectors,
    use_at_most,
    watch,
)
from lookalike.store.local.rows import CollectionRow

_KIND, _FORMAT = "index", 3
_SIZE_SHARE = 1.25  # of the vectors' bytes; most types take far less than the vectors
_SPARE_BYTES = 2**30
_SPARE_SHARE = 20  # of a small disk
_CHECKED_BYTES = 2**28  # up to which a mapped file is read as a whole before it is used
_IN_USE = "in-use"  # a file that lies beside the manifest while a process maps the others
_READ_BYTES = 8 * 2**20
_MORE_ROWS = 1.5
_MAX_RETRY_S = 6 * 3600.0
_POLL_S = 0.1
_NICE = 10  # other work goes first
_PRINTED_BYTES = 8000  # of what the process printed last; an answer takes far less

_BROKEN = (BrokenArtifactError, OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What reading a saved index may raise, those of FAISS included."""

log = logging.getLogger(__name__)


class Generations:
    """The saved index of one vector space. Each save replaces the last one in one step."""

    def __init__(self, folder: Path, *, limits: Limits, read_only: bool = False) -> None:
        self._folder = folder
        self._limits = limits
        self._read_only = read_only
        self._unread: Artifact | None = None  # whose vectors nobody has read as a whole

    def save(
        self,
        blocks: Iterable[tuple[Seqs, Vectors]],
        row: CollectionRow,
        *,
        build: Callable[[Path], dict[str, Any]] | None = None,
    ) -> bool:
        """Saves a generation; False if nothing may be saved.

        `build` writes `candidates` beside `vectors`, and gives what to keep of them. Raises
        `StorageError` if the disk refuses; then the older generation stays.
        """
        if self._read_only:
            return False
        facts: dict[str, Any] = {"index": EXACT, "faiss": VERSION}

        def write(folder: Path) -> None:
            seqs = _write_rows(folder, blocks)
            facts.update(_identity(seqs, row))
            if build is not None:
                facts.update(build(folder))

        with disk_errors("save the index"):
            saved = save_artifact(
                self._folder, kind=_KIND, version=_FORMAT, facts=facts, write=write
            )
            remove_leftovers(saved, older_than_s=0)  # what is mapped stays readable
        return True

    def require_room(self, rows: int, dim: int) -> None:
        """Raises `StorageFullError` if the disk lacks room for a build and for images to come."""
        folder = next(one for one in (self._folder, *self._folder.parents) if one.is_dir())
        disk = shutil.disk_usage(folder)
        needed = int(4 * dim * rows * _SIZE_SHARE)
        left = min(_SPARE_BYTES, disk.total // _SPARE_SHARE)
        if disk.free < needed + left:
            raise StorageFullError(
                f"{disk.free / 1e6:,.0f} MB are free on the disk of the data folder; an index "
                f"needs {needed / 1e6:,.0f} MB, beside {left / 1e6:,.0f} MB that are left for "
                "pictures: make room"
            )

    def load(self, row: CollectionRow, *, exact: bool) -> Segments | None:
        """The saved index; None if there is none that is whole and fits.

        A broken one is removed, and the log says why; so is what a crash left.
        """
        try:
            artifact = read_artifact(self._folder, kind=_KIND, version=_FORMAT)
            if artifact is not None:
                found = self._open(artifact, row, exact=exact)
                if not self._read_only:
                    remove_leftovers(artifact, older_than_s=0)
                    self._use(found)
                return found
        except _BROKEN as exc:
            log.warning("The saved index of %r cannot be used: %s", row.name, exc)
        self.discard()
        return None

    def _use(self, found: Segments) -> None:
        """Notes that files are mapped: a process that dies of them finds the note next time."""
        if found.watched:
            with contextlib.suppress(OSError):
                (self._folder / _IN_USE).touch()

    def release(self) -> None:
        """Notes that this process ends in order."""
        if not self._read_only:
            with contextlib.suppress(OSError):
                (self._folder / _IN_USE).unlink()

    def read_rest(self, step: Callable[[], None]) -> None:
        """Reads what `load` took unread, because it is large; `step` is called for each block.

        Raises `BrokenArtifactError` or `OSError` if it is damaged, and what `step` raises.
        """
        if self._unread is not None:
            self._unread.verify("vectors", step)
        self._unread = None

    def verified(self, row: CollectionRow, *, quick: bool) -> Segments | None:
        """As `load`, with every file's digest checked unless `quick`; changes nothing.

        Raises `BrokenArtifactError`, whose text completes "it cannot be used: ...".
        """
        while True:
            artifact = read_artifact(self._folder, kind=_KIND, version=_FORMAT)
            if artifact is None:
                return None
            try:
                for name in () if quick else artifact.files:
                    artifact.verify(name)
                return self._open(artifact, row, exact=False)
            except _BROKEN as exc:
                now = read_artifact(self._folder, kind=_KIND, version=_FORMAT)
                if now is None or now.content == artifact.content:  # else it was just replaced
                    raise BrokenArtifactError(str(exc)) from exc

    def _open(self, artifact: Artifact, row: CollectionRow, *, exact: bool) -> Segments:
        facts, dim = artifact.facts, row.spec.dim
        seqs = np.frombuffer(artifact.verify("seqs").read_bytes(), "<i8").astype(np.int64)
        for key, wanted in _identity(seqs, row).items():
            if facts[key] != wanted:
                raise BrokenArtifactError(f"its {key} is {facts[key]!r}, not {wanted!r}")
        vectors = artifact.path("vectors")
        size = vectors.stat().st_size
        if size != 4 * dim * len(seqs):
            raise BrokenArtifactError("vectors has the wrong size")
        died = not self._read_only and (self._folder / _IN_USE).exists()
        if died and size > _CHECKED_BYTES:
            log.warning("The last process ended amid the index of %r: all is read", row.name)
        if died or size <= _CHECKED_BYTES:
            artifact.verify("vectors")
            self._unread = None
        else:
            self._unread = artifact
        growing = ExactSegment(dim, limits=self._limits)
        approximate = not exact and facts["index"] != EXACT
        if not approximate and size < self._limits.mapped_bytes:
            return in_memory(_read_rows(vectors, seqs, growing))
        rows = ExactSegment(dim, map_vectors(vectors, dim), seqs, limits=self._limits)
        if not approximate:
            return Segments(rows, growing, watched=watch(vectors))
        path = artifact.verify("candidates")
        candidates = CandidateIndex.read(path, factory=facts["index"])
        segment = ApproximateSegment(rows, candidates, Calibration.from_json(facts["calibration"]))
        watched, how = watch(vectors, path), facts["built_with"]
        return Segments(rows, growing, segment, built_with=how, watched=watched)

    def saved(self) -> dict[str, Any] | None:
        """Type, rows and bytes on the disk, as the manifest says; None if there is none."""
        try:
            found = read_artifact(self._folder, kind=_KIND, version=_FORMAT)
            if found is None:
                return None
            size = sum(file["bytes"] for file in found.files.values())
            return {"type": found.facts["index"], "count": found.facts["count"], "bytes": size}
        except (BrokenArtifactError, OSError, KeyError):  # damaged, or replaced meanwhile
            return None

    def discard(self) -> None:
        """Removes the saved index."""
        if not self._read_only:
            remove_artifact(self._folder)


def _write_rows(folder: Path, blocks: Iterable[tuple[Seqs, Vectors]]) -> Seqs:
    held: list[Seqs] = [np.empty(0, np.int64)]
    with (folder / "vectors").open("wb") as file:
        for seqs, vectors in blocks:
            held.append(seqs)
            file.write(vectors.astype("<f4").data)
    seqs = np.concatenate(held)
    (folder / "seqs").write_bytes(seqs.astype("<i8").tobytes())
    return seqs


def _read_rows(path: Path, seqs: Seqs, segment: ExactSegment) -> ExactSegment:
    """The segment with a copy of the rows, read block by block."""
    step = max(1, _READ_BYTES // (4 * segment.dim))
    with path.open("rb") as file:
        for start in range(0, len(seqs), step):
            block = seqs[start : start + step]
            rows = np.frombuffer(file.read(4 * segment.dim * len(block)), "<f4")
            segment = segment.added(block, rows.reshape(len(block), segment.dim))
    return segment


def _identity(seqs: Seqs, row: CollectionRow) -> dict[str, Any]:
    """What a generation of these rows must say of itself."""
    return {
        "embedding": row.space,
        "spec": row.spec.digest,
        "dim": row.spec.dim,
        "count": len(seqs),
        "last_seq": int(seqs[-1]) if len(seqs) else 0,
    }


class Retries:
    """When a build that failed is tried again: with more rows, or after ever longer pauses."""

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
    """How far a build is; setting `stopped` ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.now: tuple[str, int, int] | None = None  # the stage, what is done and of how many
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


def build(
    folder: Path, *, dim: int, factory: str, policy: IndexPolicy, progress: Progress
) -> dict[str, Any]:
    """Builds an index of `vectors` in a folder as `candidates`; gives what to keep of it as JSON.

    Raises `BuildError`, `TaskEndedError`, and RuntimeError or MemoryError for what may pass.
    """
    request = {"folder": str(folder), "dim": dim, "factory": factory, "recall": policy.recall}
    request["calibrated_k"] = policy.limits.calibrated_k
    small = (folder / "vectors").stat().st_size <= 4 * policy.limits.inline_numbers
    calibration = build_here(request, progress) if small else _build_apart(request, progress)
    return {"index": factory, "calibration": calibration, "built_with": policy.build_settings}


def build_here(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Builds in this process, see `build`; gives the calibration."""
    folder = Path(request["folder"])
    limits = Limits(calibrated_k=tuple(request["calibrated_k"]))
    vectors = map_vectors(folder / "vectors", request["dim"])
    rows = ExactSegment(request["dim"], vectors, np.arange(len(vectors)), limits=limits)
    try:
        index = build_segment(request["factory"], rows, recall=request["recall"], progress=progress)
        index.candidates.write(folder / "candidates")
    except (RuntimeError, ValueError, AssertionError) as exc:  # of FAISS's bindings
        raise BuildError(error_text(exc)) from exc
    return index.calibration.to_json()


def _build_apart(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Builds in a process of its own, see `build`."""
    with (
        tempfile.TemporaryFile() as output,
        start_module(
            __name__,
            json.dumps(request),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
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
        raise RuntimeError(f"the process that builds it ended with status {status}{why}")
    calibration: dict[str, Any] = answer["calibration"]
    return calibration


def _printed(output: IO[bytes]) -> tuple[str, dict[str, Any]]:
    """What a process printed last, unless it is JSON, and the last line that is a JSON object."""
    size = os.fstat(output.fileno()).st_size
    text = os.pread(output.fileno(), _PRINTED_BYTES, max(0, size - _PRINTED_BYTES))
    lines = text.decode("utf-8", "replace").splitlines()
    for number, line in enumerate(reversed(lines)):
        with contextlib.suppress(ValueError):  # something else that was printed
            if isinstance(answer := json.loads(line), dict):
                return lines[-1] if number else "", answer
    return "".join(lines[-1:]), {}


def main() -> None:
    """The program; its argument is a request as JSON."""
    os.nice(_NICE)
    use_at_most(1)
    end_with_parent()

    def say(**answer: Any) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    progress = Progress(lambda stage, done, total: say(stage=stage, done=done, total=total))
    try:
        say(calibration=build_here(json.loads(sys.argv[1]), progress))
    except BuildError as exc:
        say(error=str(exc))


if __name__ == "__main__":
    main()
