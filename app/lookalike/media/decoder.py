"""The door through which every picture is decoded, in processes that can be ended."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from lookalike.cores import available_cores
from lookalike.errors import (
    ClientGoneError,
    DecodeTimeoutError,
    QueueFullError,
    UnavailableError,
)
from lookalike.media.decode import (
    Crop,
    DecodedImage,
    ImageLimits,
    check_bytes,
    decode_image,
)
from lookalike.media.decode_process import DecodeProcess, TakesLongError
from lookalike.media.jpeg import is_plain_jpeg
from lookalike.progress import caller
from lookalike.records import Preprocess

QUICK_S = 0.3  # of CPU time, after which a picture is no quick one
EXPECTED_S = 0.1  # by its header, up to which one is tried as a quick one
COMPARING = 6  # times the CPU time of decoding one picture, for comparing two
_SLOW_WAITING = 8  # pictures for each place among the slow ones
_PATIENCE_S = 60.0


class ImageDecoder:
    """Decodes pictures within limits, in processes that all decoders of this process share.

    Only plain JPEG files are decoded in this one: their time is bounded by their headers.

    Pictures that take long have places of their own, and processes that go behind all others, so
    that those which take milliseconds never wait for them. There are as many such places as
    `slots`, one for each core unless given, and one more for quick pictures.
    See 0026-pictures-are-decoded-in-processes.md.
    """

    def __init__(self, limits: ImageLimits | None = None, *, slots: int | None = None) -> None:
        self.limits = limits or ImageLimits()
        slots = slots or available_cores()
        self._quick = Lane(slots + 1)
        self._slow = Lane(slots, most_waiting=_SLOW_WAITING * slots)
        self._comparing = Lane(1)

    def decode(
        self,
        source: bytes | BinaryIO,
        *,
        decode_size: int,
        preprocess: Preprocess | None = None,
        thumbnail: bool = False,
        crop: Crop | None = None,
        urgent_s: float | None = None,
        bulk: bool = False,
    ) -> DecodedImage:
        """As `decode_image`, once there is a free place.

        With `urgent_s` the picture goes before others, and waits at most so long for its place,
        and again for its process. With `bulk` it waits in turn for as long as it takes: bulk work
        has few threads, and must not end because others send many slow pictures.

        Raises:
            InvalidImageError: As `decode_image`.
            DecodeTimeoutError: It took more CPU time than the limit allows.
            QueueFullError: Too many pictures wait, or this one has waited for too long.
            UnavailableError: The machine has too little memory, or is too busy.
            ClientGoneError: The caller has left.
        """
        check_bytes(source, limits=self.limits)
        if not isinstance(source, bytes):
            source.seek(0)
        quick_s = min(QUICK_S, self.limits.max_seconds)
        options: dict[str, Any] = {
            "decode_size": decode_size,
            "preprocess": preprocess,
            "thumbnail": thumbnail,
            "crop": crop,
        }
        with self._quick.place(urgent_s=urgent_s, bulk=bulk):
            data = source if isinstance(source, bytes) else source.read()
            if is_plain_jpeg(data):
                return decode_image(data, limits=self.limits, **options)
            try:
                with _pool.process(slow=False) as process:
                    return process.decode(
                        data,
                        limits=self.limits,
                        seconds=quick_s,
                        expected_s=min(EXPECTED_S, quick_s),
                        wall_s=urgent_s,
                        **options,
                    )
            except TakesLongError:
                pass
        with self._slow.place(bulk=bulk), _pool.process(slow=True) as process:
            seconds = self.limits.max_seconds
            try:
                with caller.get().on_leave(process.give_up):
                    return process.decode(
                        data, limits=self.limits, seconds=seconds, expected_s=1e9, **options
                    )
            except TakesLongError:
                raise DecodeTimeoutError(
                    f"Decoding the picture takes more than {seconds:g} s of CPU time, which is the "
                    "limit: save it again as an ordinary JPEG or PNG, or in a smaller size"
                ) from None

    def compare(self, one: BinaryIO, other: BinaryIO) -> int:
        """A `Sameness` as `same_picture` gives it: one pair at a time, behind all other pictures.

        Raises:
            InvalidImageError: As `same_picture`.
            DecodeTimeoutError: It took more than six times the CPU time of decoding one picture.
            UnavailableError: The machine has too little memory, or is too busy.
            ClientGoneError: The caller has left.
        """
        seconds = COMPARING * self.limits.max_seconds
        with self._comparing.place(bulk=True), _pool.process(slow=True) as process:
            files = []
            for file in (one, other):
                check_bytes(file, limits=self.limits)
                file.seek(0)
                files.append(file.read())
            try:
                with caller.get().on_leave(process.give_up):
                    return process.compare(*files, limits=self.limits, seconds=seconds)
            except TakesLongError:
                raise DecodeTimeoutError(
                    f"Comparing the pictures takes more than {seconds:g} s of CPU time, which is "
                    "the limit"
                ) from None


class Lane:
    """Places to decode in. Those who wait for one get it in turn, urgent ones first."""

    def __init__(
        self, places: int, *, most_waiting: int | None = None, patience_s: float = _PATIENCE_S
    ) -> None:
        self._lock = threading.Lock()
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._most_waiting = most_waiting
        self._patience_s = patience_s

    @contextmanager
    def place(self, *, urgent_s: float | None = None, bulk: bool = False) -> Iterator[None]:
        """Holds a place in the block; `urgent_s` says that it is urgent and how long to wait.

        With `bulk` it waits without a bound. Raises `QueueFullError`, or `ClientGoneError` if the
        caller leaves meanwhile.
        """
        self._enter(urgent_s, bulk)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, urgent_s: float | None, bulk: bool) -> None:
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            is_full = self._most_waiting is not None and len(self._waiting) >= self._most_waiting
            if is_full and not bulk:
                raise QueueFullError(
                    "Too many pictures that take long to decode wait already; try again in a "
                    "moment, or send an ordinary JPEG"
                )
            (self._waiting.append if urgent_s is None else self._waiting.appendleft)(turn)
        patience_s = self._patience_s if urgent_s is None else urgent_s
        wait_s = None if bulk else patience_s
        try:
            with caller.get().on_leave(turn.set):
                turn.wait(wait_s)
        except ClientGoneError:
            if not self._withdraw(turn):
                self._leave()
            raise
        if self._withdraw(turn):
            raise QueueFullError(
                f"The picture was not decoded within {patience_s:g} s, because so many wait; try "
                "again in a moment"
            )

    def _withdraw(self, turn: threading.Event) -> bool:
        """Stops waiting; False if there is a place already."""
        with self._lock:
            if turn not in self._waiting:
                return False
            self._waiting.remove(turn)
            return True

    def _leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class _Pool:
    """The processes, quick and slow; those that are idle are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[DecodeProcess] = []
        self._idle: list[DecodeProcess] = []
        self._pid = os.getpid()

    @contextmanager
    def process(self, *, slow: bool) -> Iterator[DecodeProcess]:
        """An idle process, or a new one; if it ends in the block, another takes its place."""
        process = self._take(slow) or self._start(slow)
        usable = False
        try:
            yield process
            usable = True
        except Exception:
            usable = process.alive
            raise
        finally:
            if usable:
                self._put(process)
            else:
                self._end(process)
                if not slow:  # so that the next one need not wait for the start of a process
                    self.warm_up(spare=2)

    def warm_up(self, *, spare: int = 1) -> None:
        """Starts a process that decodes what is quick, unless so many are idle."""
        with self._lock:
            if sum(not process.slow for process in self._idle) >= spare:
                return
        with contextlib.suppress(UnavailableError):  # the next picture says so
            process = self._start(slow=False)
            with self._lock:
                self._idle.insert(0, process)  # used last: it takes a moment to start

    def close(self) -> None:
        """Ends all processes, those that decode too."""
        with self._lock:
            self._forget_after_fork()
            processes, self._processes, self._idle = self._processes, [], []
        for process in processes:
            process.give_up()
            process.close()

    def _start(self, slow: bool) -> DecodeProcess:
        process = DecodeProcess(slow=slow)
        with self._lock:
            self._processes.append(process)
        return process

    def _end(self, process: DecodeProcess) -> None:
        with self._lock:
            if process not in self._processes:  # closed meanwhile
                return
            self._processes.remove(process)
        process.close()

    def _take(self, slow: bool) -> DecodeProcess | None:
        with self._lock:
            self._forget_after_fork()
            found = next((one for one in reversed(self._idle) if one.slow is slow), None)
            if found is not None:
                self._idle.remove(found)
        if found is None or found.alive:
            return found
        self._end(found)
        return self._take(slow)

    def _forget_after_fork(self) -> None:
        """Lets go of what belongs to the process that we were forked from."""
        if self._pid != os.getpid():
            self._pid, self._processes, self._idle = os.getpid(), [], []

    def _put(self, process: DecodeProcess) -> None:
        with self._lock:
            self._idle.append(process)


_pool = _Pool()
atexit.register(_pool.close)


def warm_up() -> None:
    """Starts the first process, unless there is one, and does not wait for it."""
    _pool.warm_up()
