"""The embedding pipeline: decode ahead on threads, queue for the network, keep the order."""

from __future__ import annotations

import errno
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Self, TypeVar

from lookalike.errors import (
    LookalikeError,
    OutOfMemoryError,
    UnavailableError,
    UnreadableImageError,
    lacks_memory,
)
from lookalike.models.encoders import Vector

_NO_MEMORY = "There is too little memory for this picture: try again in a moment"
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Result(Generic[Item, Value]):
    """What became of one item: `value` is what `prepare` returned beside the vector, if it did."""

    item: Item
    value: Value | None = None
    vector: Vector | None = None
    error: LookalikeError | None = None


Prepared = tuple[Value, Future[Vector] | None]
"""What `prepare` returns: a value, and the vector that the network is making, if one is needed."""


class Pipeline:
    """Embeds many pictures; several runs may share its threads.

    At most `window` items of one run are between its input and its output.
    """

    def __init__(self, *, threads: int, window: int) -> None:
        self._window = window
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads after what they are doing; may be called twice."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, items: Iterable[Item], prepare: Callable[[Item], Prepared[Value]]
    ) -> Generator[Result[Item, Value], None, None]:
        """Yields one result for each item, in order.

        An item that raises a `LookalikeError`, or lacks memory, carries that error in its result
        and affects no other. Any other exception ends the run. Closing the generator cancels what
        has not begun and waits for what has. Items are taken as there is room, on the caller's
        thread; `prepare` is called on the pipeline's threads.
        """
        window: deque[tuple[Item, Future[Prepared[Value]]]] = deque()
        left = iter(items)
        try:
            while True:
                for item in islice(left, self._window - len(window)):
                    window.append((item, self._pool.submit(prepare, item)))
                if not window:
                    return
                item, begun = window.popleft()
                value = None
                try:
                    value, vector = begun.result()
                    result = Result(item, value, None if vector is None else vector.result())
                except LookalikeError as exc:
                    result = Result(item, value, error=exc)
                except MemoryError:
                    result = Result(item, value, error=OutOfMemoryError(_NO_MEMORY))
                yield result
        finally:
            for _, begun in window:
                begun.cancel()
            wait([begun for _, begun in window])


def grouped(results: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` results; the last one may be shorter."""
    left = iter(results)
    while group := list(islice(left, size)):
        yield group


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Translates an `OSError` inside the block into `UnreadableImageError`.

    Where memory or descriptors lack, into an `UnavailableError`: that says nothing of the picture.
    """
    try:
        yield
    except OSError as exc:
        if lacks_memory(exc):
            raise OutOfMemoryError(_NO_MEMORY) from exc
        if exc.errno in {errno.EMFILE, errno.ENFILE}:
            raise UnavailableError(
                f"{name} cannot be opened now: too many files are open; try again in a moment"
            ) from exc
        raise UnreadableImageError(f"{name} cannot be read: {exc.strerror}") from exc


class PutGate:
    """A gate for each collection: commits pass it together, and wait while it is closed.

    Re-embedding closes it to make the last few vectors and switch.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[str] = Counter()
        self._closed: set[str] = set()

    @contextmanager
    def passing(self, collection: str) -> Iterator[None]:
        """Waits until the gate is open, and keeps it open inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: collection not in self._closed)
            self._inside[collection] += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[collection] -= 1
                self._inside += Counter()  # forgets what is zero
                self._changed.notify_all()

    @contextmanager
    def closed(self, collection: str) -> Iterator[None]:
        """Closes the gate once those inside have left; one caller at a time."""
        with self._changed:
            self._changed.wait_for(lambda: collection not in self._closed)
            self._closed.add(collection)
            self._changed.wait_for(lambda: not self._inside[collection])
        try:
            yield
        finally:
            with self._changed:
                self._closed.discard(collection)
                self._changed.notify_all()
