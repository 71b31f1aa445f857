"""A walk over the pictures that lack a vector in an embedding set, making those vectors."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    EmbeddingFailedError,
    EmbeddingSetNotFoundError,
    ImageNotFoundError,
    InvalidImageError,
    LookalikeError,
    NotFoundError,
    UnreadableImageError,
)
from lookalike.media.decode import ImageDecoder
from lookalike.models.encoders import LiveEncoder
from lookalike.models.headed_encoder import HeadedEncoder
from lookalike.records import ImageRecord
from lookalike.services.job_run import Watch
from lookalike.services.pictures import PictureService
from lookalike.store.base import Store
from lookalike.store.embedding_sets import Missing

Vector = NDArray[np.float32]
"""One unit vector: (dim,) float32."""

_TOLD_EVERY_S = 0.5
_PAGE = 1000  # pictures that are read together
_TEXTS = 20  # errors whose text is kept
_OF_ONE_PICTURE = (InvalidImageError, NotFoundError, EmbeddingFailedError)
"""Errors that are one picture's own; any other ends the walk."""


@dataclass(slots=True)
class _Batch:
    """Pictures on their way: vectors from below the head, or decoded and waiting."""

    records: Sequence[ImageRecord]
    below: dict[str, Vector]
    sent: dict[str, Future[Future[Vector] | None]]


@dataclass(slots=True)
class Made:
    """What became of a batch, by id: vectors, and errors. Pictures that are gone are in neither."""

    vectors: dict[str, Vector] = field(default_factory=dict)
    errors: dict[str, LookalikeError] = field(default_factory=dict)


class Vectorizer:
    """Makes vectors of stored pictures by another encoder than the one they were indexed with.

    Where that one only puts a head on vectors which the collection has already, the pictures
    themselves are not needed; otherwise the originals are decoded, on the threads of `pool`.

    Args:
        store: Where the pictures are.
        collection: Which ones.
        live: Makes the vectors.
        pictures: Finds the originals.
        decoder: Decodes within the limits.
        pool: Threads that decode.
    """

    def __init__(
        self,
        store: Store,
        collection: str,
        live: LiveEncoder,
        *,
        pictures: PictureService,
        decoder: ImageDecoder,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._store = store
        self.collection = collection
        self.live = live
        self._pictures = pictures
        self._decoder = decoder
        self._pool = pool

    def begin(self, records: Sequence[ImageRecord]) -> _Batch:
        """Sends pictures off; `finish` waits for them."""
        below = self._below(records)
        sent = {
            record.id: self._pool.submit(self._send, record)
            for record in records
            if record.id not in below
        }
        return _Batch(records, below, sent)

    def finish(self, batch: _Batch) -> Made:
        """Waits for what `begin` sent off.

        Raises:
            LookalikeError: One that is not a single picture's own: the service shuts down.
        """
        made = self._through_head(batch.below)
        for image_id, sent in batch.sent.items():
            try:
                waiting = sent.result()
                if waiting is not None:
                    made.vectors[image_id] = waiting.result()
            except _OF_ONE_PICTURE as exc:
                made.errors[image_id] = exc
        return made

    def _below(self, records: Sequence[ImageRecord]) -> dict[str, Vector]:
        """The stored vectors that the encoder's head takes, where it has one."""
        encoder = self.live.encoder
        if not isinstance(encoder, HeadedEncoder):
            return {}
        try:
            spec = encoder.encoder.spec
            return self._store.sets.vectors(self.collection, spec, records)
        except EmbeddingSetNotFoundError:
            return {}

    def _through_head(self, below: dict[str, Vector]) -> Made:
        encoder = self.live.encoder
        made = Made()
        if not below or not isinstance(encoder, HeadedEncoder):
            return made
        try:
            rows = encoder.head.apply(np.stack(list(below.values())))  # (N, dim)
            made.vectors = dict(zip(below, rows, strict=True))
        except EmbeddingFailedError as exc:
            if len(below) == 1:
                return Made(errors=dict.fromkeys(below, exc))
            for image_id, vector in below.items():  # one of them alone is to blame
                alone = self._through_head({image_id: vector})
                made.vectors |= alone.vectors
                made.errors |= alone.errors
        return made

    def _send(self, record: ImageRecord) -> Future[Vector] | None:
        """Decodes an original and puts it in the queue; None where the picture is gone."""
        try:
            now, path = self._pictures.original(self.collection, record.id)
            if now.sha256 != record.sha256:
                return None  # replaced: the walk meets it again
            with path.open("rb") as file:
                decoded = self._decoder.decode(file, decode_size=self.live.encoder.decode_size)
        except ImageNotFoundError:
            return None
        except OSError as exc:
            raise UnreadableImageError(f"its original cannot be read: {exc.strerror}") from exc
        return self.live.batcher.submit(self.live.encoder.prepare(decoded.image), wait=True)


class Walk:
    """Meets every picture that lacks a vector, oldest first, and those that come meanwhile.

    Attributes:
        met: Pictures that were met, those that are known to fail too.
        failed: Those without a vector because of an error of their own: id -> sha256.
        errors: Their first few errors: id -> text.
    """

    def __init__(self, store: Store, vectorizer: Vectorizer, watch: Watch, *, batch: int) -> None:
        self._store = store
        self._vectorizer = vectorizer
        self._watch = watch
        self._batch = batch
        self._cursor: str | None = None
        self._page: deque[ImageRecord] = deque()
        self._told = float("-inf")
        self.collection = vectorizer.collection
        self.live = vectorizer.live
        self.met = 0
        self.failed: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def run(self, until: Callable[[], bool]) -> bool:
        """Goes on to the end of what there is (True), or until told so (False).

        The next batch is decoded while the one before it is in the network. Between batches it can
        be ended, while it passes over what is known to fail too.
        """
        pending: deque[_Batch] = deque()
        while True:
            self._watch.step()
            stop = until()
            records = None if stop else self._next()
            if records is None:
                while pending:
                    self._finish(pending.popleft())
                return not stop
            if records:
                pending.append(self._vectorizer.begin(records))
            if len(pending) > 1:
                self._finish(pending.popleft())
                self._tell()

    def start_over(self) -> None:
        """Meets again whatever lacks a vector now, but what failed; long where much has failed."""
        done, total = self._counts()
        goal = self.met + total - done
        self._cursor = None
        self._page.clear()
        self.run(lambda: self.met >= goal)

    def unexplained(self) -> bool:
        """Whether a picture lacks a vector that did not fail."""
        cursor: str | None = None
        while True:
            self._watch.step()
            missing = self._missing(cursor)
            if not missing.records:
                return False
            if any(self._is_fresh(record) for record in missing.records):
                return True
            cursor = missing.cursor

    def backlog(self) -> int:
        """Pictures that lack a vector and did not fail."""
        done, total = self._counts()
        return max(0, total - done - len(self.failed))

    def tell(self) -> None:
        """Tells how far it is."""
        self._watch.progress(*self._counts())

    def _tell(self) -> None:
        """`tell`, at once after the first batch and then now and again."""
        if time.monotonic() - self._told >= _TOLD_EVERY_S:
            self._told = time.monotonic()
            self.tell()

    def _counts(self) -> tuple[int, int]:
        """Pictures with a vector, and all."""
        total = self._store.count(self.collection)
        digest = self.live.spec.digest
        sets = self._store.sets.all(self.collection)
        done = next((one.count for one in sets if one.spec.digest == digest), 0)
        return done, max(done, total)

    def _missing(self, cursor: str | None) -> Missing:
        return self._store.sets.missing(self.collection, self.live.spec, limit=_PAGE, cursor=cursor)

    def _is_fresh(self, record: ImageRecord) -> bool:
        """Whether a picture is not known to fail."""
        return self.failed.get(record.id) != record.sha256

    def _next(self) -> list[ImageRecord] | None:
        """The next pictures but those that are known to fail, perhaps none; None at the end."""
        if not self._page:
            missing = self._missing(self._cursor)
            self._cursor = missing.cursor
            self._page.extend(missing.records)
        if not self._page:
            return None
        records = [self._page.popleft() for _ in range(min(self._batch, len(self._page)))]
        self.met += len(records)
        return [record for record in records if self._is_fresh(record)]

    def _finish(self, batch: _Batch) -> None:
        made = self._vectorizer.finish(batch)
        done = [record for record in batch.records if record.id in made.vectors]
        if done:
            vectors = np.stack([made.vectors[record.id] for record in done])  # (N, dim)
            self._store.sets.add(self.collection, self.live.spec, done, vectors)
        here = self._store.find(self.collection, list(made.errors))
        for record in batch.records:
            error, now = made.errors.get(record.id), here.get(record.id)
            if error is not None and now is not None and now.sha256 == record.sha256:
                self.failed[record.id] = record.sha256
                if len(self.errors) < _TEXTS:
                    self.errors[record.id] = str(error)
                self._watch.error(f"{record.id}: {error}")
