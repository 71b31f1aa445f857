"""A process that decodes and compares pictures: both ends of it.

A picture that has taken its CPU time is given up between two steps of Python code. A codec cannot
be interrupted, but its process can be ended: by the system, a little later; by us, when nobody
waits for the picture any more. A picture on which a codec crashes or takes too much memory fails
alone. This module is the process's program. It exits when its input is closed, so it never outlives
the process that started it.

Requests and answers are JSON lines over a pair of sockets. A file's bytes go in, and pixels come
back, through a file in memory that both ends have open.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from lookalike.cores import memory_bytes, start_module
from lookalike.errors import (
    InvalidImageError,
    LookalikeError,
    OutOfMemoryError,
    QueueFullError,
    UnavailableError,
    UnreadableImageError,
    lacks_memory,
)
from lookalike.media.decode import DecodedImage, ImageLimits, decode_if_quick
from lookalike.records import Preprocess

SLOW_NICE = 10  # of processes that decode what takes long: others get nine tenths of a core first
_WALL = 6.0  # times the CPU time: how long a picture may take on a machine that is busy
_LEAST_WALL_S = 60.0
_KEPT_BYTES = 16_000_000  # of shared memory between two pictures
_ALLOWED_PER_PIXEL = 48  # bytes that a picture may take; codecs need less than half of it
_SPARE_BYTES = 256_000_000
_OOM_SCORE = 800  # of 1000: these go first when memory is short


Answer = TypeVar("Answer")

_GRACE = 1.2  # times the CPU time, after which the system ends the process


class TakesLongError(Exception):
    """Decoding the picture takes longer than the request allows."""


class DecodeProcess:
    """Our end: one process, which decodes one picture at a time.

    Raises `UnavailableError` if it cannot be started.
    """

    def __init__(self, *, slow: bool) -> None:
        self.slow = slow
        self._ended = False  # by us
        try:
            with contextlib.ExitStack() as opened:
                self._shared = _open_shared()
                opened.callback(os.close, self._shared)
                self._socket, theirs = socket.socketpair()
                opened.enter_context(self._socket)
                with theirs:
                    # In a process group of its own, so that Ctrl-C does not reach it.
                    self._process = start_module(
                        __name__,
                        str(self._shared),
                        str(SLOW_NICE if slow else 0),
                        stdin=theirs,
                        stdout=subprocess.DEVNULL,
                        pass_fds=[self._shared],
                        process_group=0,
                    )
                opened.pop_all()  # `close` does it
        except OSError as exc:
            raise UnavailableError(
                f"No process to decode the picture in can be started ({exc.strerror}); try again "
                "in a moment"
            ) from exc

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def decode(
        self,
        data: bytes,
        *,
        limits: ImageLimits,
        seconds: float,
        expected_s: float,
        wall_s: float | None = None,
        **options: Any,
    ) -> DecodedImage:
        """As `decode_image`, with its `options`, in at most so many seconds of CPU time.

        `wall_s` bounds the time until the answer; six times the CPU time, or a minute, if None.

        After an error that is not an `InvalidImageError`, or a `TakesLongError` of which `alive`
        is false, the process is of no use.

        Raises:
            TakesLongError: It takes longer, or by the header longer than `expected_s`.
            UnavailableError: The machine is too busy, or has too little memory.
        """
        if (preprocess := options.get("preprocess")) is not None:
            options["preprocess"] = _fields(preprocess)
        how = {"expected_s": expected_s, **options}
        return self._ask(
            self._decoded, data, limits=limits, seconds=seconds, wall_s=wall_s, how=how
        )

    def compare(self, one: bytes, other: bytes, *, limits: ImageLimits, seconds: float) -> int:
        """A `Sameness` as `same_picture` gives it, in at most so many seconds; as `decode`."""

        def verdict(*, same: int) -> int:
            return same

        return self._ask(verdict, one, other, limits=limits, seconds=seconds)

    def _ask(
        self,
        answered: Callable[..., Answer],
        *files: bytes,
        limits: ImageLimits,
        seconds: float,
        wall_s: float | None = None,
        **request: Any,
    ) -> Answer:
        """Has the process do something with files; passes the fields of its answer on."""
        sizes = [len(data) for data in files]
        request |= {"sizes": sizes, "limits": _fields(limits), "seconds": seconds}
        try:
            for place, data in enumerate(files):
                _write(self._shared, data, sum(sizes[:place]))
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._receive(wall_s or max(_LEAST_WALL_S, _WALL * seconds))
            answer = json.loads(line)
            if "slow" in answer:
                raise TakesLongError
            if "error" in answer:
                raise _error(answer["error"], answer["text"])
            return answered(**answer)
        except TimeoutError:
            self.end()
            raise QueueFullError(
                "The machine is too busy to decode this picture; try again in a moment"
            ) from None
        except (OSError, EOFError, ValueError, TypeError) as exc:
            self.end()
            raise self._why() from exc
        finally:
            self._trim()

    def _receive(self, timeout_s: float) -> bytes:
        """The answer, a line. Raises `EOFError` if the process ends before, or `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        answer = b""
        while not answer.endswith(b"\n"):
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            part = self._socket.recv(65_536)
            if not part:
                raise EOFError
            answer += part
        return answer

    def _decoded(
        self, *, shape: tuple[int, int], thumbnail: int | None, **facts: Any
    ) -> DecodedImage:
        width, height = shape
        pixels = os.pread(self._shared, width * height * 3, 0)
        image = Image.frombytes("RGB", (width, height), pixels)
        small = None if thumbnail is None else os.pread(self._shared, thumbnail, len(pixels))
        return DecodedImage(image=image, thumbnail=small, **facts)

    def _why(self) -> Exception:
        """Why the process ended during a picture."""
        status = self._process.returncode
        if self._ended:
            return UnavailableError("The picture was given up; try again in a moment")
        if status == -signal.SIGVTALRM:
            return TakesLongError()
        if status == -signal.SIGKILL:
            return OutOfMemoryError(
                "The process that decoded the picture was ended, probably because memory is "
                "short: try again in a moment, or send a smaller picture"
            )
        if status < 0:
            return UnreadableImageError(
                f"The picture made its decoder crash ({signal.Signals(-status).name}): it is "
                "broken, or uses a feature that is not supported"
            )
        return UnavailableError(
            f"The process that decodes pictures ended with status {status}: try again in a moment"
        )

    def _trim(self) -> None:
        """Gives the memory of a large picture back."""
        with contextlib.suppress(OSError):
            if os.fstat(self._shared).st_size > _KEPT_BYTES:
                os.ftruncate(self._shared, 0)

    @property
    def alive(self) -> bool:
        """Whether it can decode another picture."""
        return not self._ended and self._process.poll() is None

    def give_up(self) -> None:
        """Ends the process while another thread waits for its answer."""
        self._ended = True
        self._process.kill()

    def end(self) -> None:
        """Ends the process, if it has not, and waits for that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # it may be about to say why
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the process and lets go of what is shared with it."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        os.close(self._shared)


def _open_shared() -> int:
    """A file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("lookalike-decode")
    with tempfile.TemporaryFile() as file:  # pragma: no cover  # macOS
        return os.dup(file.fileno())


@functools.lru_cache(64)
def _fields(record: ImageLimits | Preprocess) -> dict[str, Any]:
    return asdict(record)


def _write(file: int, data: bytes, at: int = 0) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def _error(code: str, text: str) -> LookalikeError:
    """The error of a code, as the process met it."""
    kinds = (*InvalidImageError.__subclasses__(), *UnavailableError.__subclasses__())
    kind = next((kind for kind in kinds if kind.code == code), UnavailableError)
    return kind.__new__(kind, text)  # a constructor may take something else than the text


# The other end


def main() -> None:
    """The program; its arguments are the number of the shared file and how nice it is."""
    shared, nice = int(sys.argv[1]), int(sys.argv[2])
    connection = socket.socket(fileno=0)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _settle(nice)
    base = _address_space()
    time_limit = _TimeLimit()
    for line in connection.makefile("rb"):
        request = json.loads(line)
        limits, sizes = ImageLimits(**request["limits"]), request["sizes"]
        _limit_memory(base, limits, pictures=len(sizes))
        try:
            if len(sizes) > 1:  # numpy too; an import that is interrupted cannot be done again
                importlib.import_module("lookalike.media.comparison")
            with time_limit.of(request["seconds"]):
                files = _read(shared, sizes)
                if len(files) == 1:
                    answer = _decode(shared, *files, limits=limits, **request["how"])
                else:
                    answer = _compare(*files, limits=limits)
        except _OverTimeError:
            answer = {"slow": True}
        except LookalikeError as exc:
            answer = {"error": exc.code, "text": str(exc)}
        except Exception as exc:
            kind = OutOfMemoryError if lacks_memory(exc) else UnavailableError
            text = f"The picture could not be decoded now ({exc or type(exc).__name__})"
            answer = {"error": kind.code, "text": f"{text}: try again in a moment"}
        connection.sendall(json.dumps(answer).encode() + b"\n")


class _OverTimeError(BaseException):
    """The picture has taken its time. No `Exception`: Pillow would take it for a broken file."""


class _TimeLimit:
    """Bounds the CPU time of a block; a codec that does not come back ends this process."""

    def __init__(self) -> None:
        self._inside = False
        signal.signal(signal.SIGPROF, self._interrupt)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)

    @contextlib.contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """Raises `_OverTimeError` once the block has taken so many seconds of CPU time."""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, _GRACE * seconds)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _interrupt(self, *_: object) -> None:
        if self._inside:
            self._inside = False
            raise _OverTimeError


def _read(shared: int, sizes: list[int]) -> list[bytes]:
    """The files that lie one behind the other in the shared file."""
    return [os.pread(shared, size, sum(sizes[:place])) for place, size in enumerate(sizes)]


def _compare(one: bytes, other: bytes, *, limits: ImageLimits) -> Mapping[str, Any]:
    from lookalike.media.comparison import same_picture  # noqa: PLC0415 - numpy, which few need

    return {"same": same_picture(io.BytesIO(one), io.BytesIO(other), limits=limits)}


def _decode(
    shared: int, data: bytes, *, limits: ImageLimits, expected_s: float, **options: Any
) -> Mapping[str, Any]:
    """Decodes a picture and puts pixels, then thumbnail, into the shared file."""
    if options.get("preprocess") is not None:
        options["preprocess"] = Preprocess(**options["preprocess"])
    decoded = decode_if_quick(data, limits=limits, expected_s=expected_s, **options)
    if decoded is None:
        return {"slow": True}
    pixels = decoded.image.tobytes()
    _write(shared, pixels)
    if decoded.thumbnail is not None:
        _write(shared, decoded.thumbnail, len(pixels))
    return {
        "shape": decoded.image.size,
        "thumbnail": None if decoded.thumbnail is None else len(decoded.thumbnail),
        "width": decoded.width,
        "height": decoded.height,
        "media_type": decoded.media_type,
    }


def _exit_with_parent() -> None:
    """Exits when the other end of our input is closed, whatever is being decoded."""
    hangup = select.poll()
    hangup.register(0, 0)
    hangup.poll()
    os._exit(0)


def _settle(nice: int) -> None:
    """Makes this process one that may be ended, and that others go before."""
    os.nice(nice)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF, signal.SIGVTALRM])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # no Linux
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    Image.init()
    _one_thread_each()
    with Path(os.devnull).open("wb") as nowhere:  # codecs print what they think of a picture
        os.dup2(nowhere.fileno(), 2)


def _one_thread_each() -> None:
    """Keeps codecs from taking more than one core each."""
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin  # noqa: PLC0415

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with contextlib.suppress(ImportError):
        import pillow_heif  # noqa: PLC0415  # an optional extra

        pillow_heif.options.DECODE_THREADS = 1


def _address_space() -> int | None:
    """Bytes of address space in use; None where that is not known."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # pragma: no cover  # macOS
        return None
    return pages * resource.getpagesize()


def _limit_memory(base: int | None, limits: ImageLimits, *, pictures: int) -> None:
    """Bounds what so many pictures may take: as codecs need, and half of the machine's memory."""
    if base is None:  # pragma: no cover  # macOS
        return
    each = _ALLOWED_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes + _SPARE_BYTES
    soft = base + min(pictures * each, max(memory_bytes() // 2, _SPARE_BYTES))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
