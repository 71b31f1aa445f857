"""Making the vectors that a collection lacks by one model, while it is in use."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from lookalike.errors import (
    EmbeddingFailedError,
    EmbeddingSetNotFoundError,
    ImageNotFoundError,
    InvalidImageError,
    LookalikeError,
    NotFoundError,
)
from lookalike.media.decode import ImageDecoder
from lookalike.models.encoders import LiveEncoder
from lookalike.progress import Progress
from lookalike.records import ImageRecord
from lookalike.services.pictures import PictureService
from lookalike.services.pipeline import Pipeline, Prepared, Result, Vector, grouped, reading
from lookalike.store.base import Missing, Store, count_of

_REPORT_EVERY_S = 0.5
_TEXTS = 20  # errors whose text is kept
_OF_ONE_PICTURE = (InvalidImageError, NotFoundError, EmbeddingFailedError)
"""Errors that concern one picture alone; any other ends the work."""


@dataclass(slots=True)
class Made:
    """What became of some pictures, by id. Pictures that are gone have neither."""

    records: Sequence[ImageRecord]
    vectors: dict[str, Vector] = field(default_factory=dict)
    errors: dict[str, LookalikeError] = field(default_factory=dict)


_Item = tuple[ImageRecord, Vector | None]
"""A picture, and its vector from below the encoder's head if that is stored."""


class Vectorizer:
    """Makes vectors of stored pictures by another encoder than the one they were indexed with.

    If that one only puts a head on vectors which the collection has already, the pictures
    themselves are not needed; otherwise the originals are decoded.

    Args:
        store: Where the pictures are.
        collection: Which ones.
        live: Makes the vectors.
        pictures: Finds the originals.
        decoder: Decodes within the limits.
        pipeline: Decodes ahead of the network.
        batch: Most pictures in one `Made`.
    """

    def __init__(
        self,
        store: Store,
        collection: str,
        live: LiveEncoder,
        *,
        pictures: PictureService,
        decoder: ImageDecoder,
        pipeline: Pipeline,
        batch: int,
    ) -> None:
        self._store = store
        self.collection = collection
        self.live = live
        self._pictures = pictures
        self._decoder = decoder
        self._pipeline = pipeline
        self._batch = batch

    def run(self, batches: Iterable[Sequence[ImageRecord]]) -> Generator[Made, None, None]:
        """Makes the vectors of pictures; batches are taken as there is room.

        Raises:
            LookalikeError: One that does not concern a single picture: the service shuts down.
        """
        with closing(self._pipeline.run(self._items(batches), self._prepare)) as results:
            for group in grouped(results, self._batch):
                yield self._made(group)

    def _items(self, batches: Iterable[Sequence[ImageRecord]]) -> Iterator[_Item]:
        for records in batches:
            below = self._below(records)
            yield from ((record, below.get(record.id)) for record in records)

    def _below(self, records: Sequence[ImageRecord]) -> dict[str, Vector]:
        """The stored vectors that the encoder's head takes, if it has one."""
        head = self.live.encoder.head
        if head is None or not records:
            return {}
        try:
            return self._store.spaces.vectors(self.collection, head.backbone, records)
        except EmbeddingSetNotFoundError:
            return {}

    def _prepare(self, item: _Item) -> Prepared[Vector | None]:
        """Decodes an original and queues it, unless the picture is gone or needs only the head."""
        record, below = item
        if below is not None:
            return below, None
        try:
            with reading("its original"):
                now, original = self._pictures.original(self.collection, record.id)
                with original:
                    if now.sha256 != record.sha256:
                        return None, None  # replaced: it will be met again
                    decoded = self._decoder.decode(
                        original, decode_size=self.live.encoder.decode_size
                    )
        except ImageNotFoundError:
            return None, None
        prepared = self.live.encoder.prepare(decoded.image)
        return None, self.live.submit(prepared, wait=True)

    def _made(self, group: Sequence[Result[_Item, Vector | None]]) -> Made:
        records = [result.item[0] for result in group]
        below = {one.item[0].id: one.value for one in group if one.value is not None}
        made = Made(records, *self._through_head(below))
        for record, result in zip(records, group, strict=True):
            if isinstance(result.error, _OF_ONE_PICTURE):
                made.errors[record.id] = result.error
            elif result.error is not None:
                raise result.error
            elif result.vector is not None:
                made.vectors[record.id] = result.vector
        return made

    def _through_head(
        self, below: dict[str, Vector]
    ) -> tuple[dict[str, Vector], dict[str, LookalikeError]]:
        """Vectors by the head, and the errors of those that it fails on."""
        head = self.live.encoder.head
        if head is None or not below:
            return {}, {}
        try:
            rows = head.apply(np.stack(list(below.values())))  # (N, dim)
            return dict(zip(below, rows, strict=True)), {}
        except EmbeddingFailedError as exc:
            if len(below) == 1:
                return {}, dict.fromkeys(below, exc)
        vectors: dict[str, Vector] = {}
        errors: dict[str, LookalikeError] = {}
        for image_id, vector in below.items():  # one of them alone is to blame
            made, failed = self._through_head({image_id: vector})
            vectors |= made
            errors |= failed
        return vectors, errors


class Backfill:
    """Meets every picture that lacks a vector, oldest first, and those that come meanwhile.

    Args:
        store: Where the pictures are.
        vectorizer: Makes the vectors.
        progress: Told how far it is; may end the work.
        batch: Pictures sent to the vectorizer together.
        page: Pictures read together.

    Attributes:
        met: Pictures that were met, including those that are known to fail.
        failed: Those without a vector because of an error of their own: id -> sha256.
        errors: The first few of these errors: id -> text.
    """

    def __init__(
        self,
        store: Store,
        vectorizer: Vectorizer,
        progress: Progress,
        *,
        batch: int,
        page: int = 1000,
    ) -> None:
        self._store = store
        self._vectorizer = vectorizer
        self._progress = progress
        self._batch = batch
        self._page_size = page
        self._cursor: str | None = None
        self._page: deque[ImageRecord] = deque()
        self._at_end = False
        self._reported = float("-inf")
        self.collection = vectorizer.collection
        self.live = vectorizer.live
        self.met = 0
        self.failed: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def run(self, *, goal: float = math.inf, deadline: float = -math.inf) -> bool:
        """Makes vectors until there is nothing left (True), or up to a goal (False).

        Args:
            goal: Stops once so many pictures were met ...
            deadline: ... and this time has come, by `time.monotonic`.
        """
        with closing(self._vectorizer.run(self._batches(goal, deadline))) as made:
            for one in made:
                self._add(one)
                self._report()
        return self._at_end

    def start_over(self) -> None:
        """Restarts from the oldest picture and skips known failures; slow if there are many."""
        done, total = self._counts()
        self._cursor = None
        self._page.clear()
        self.run(goal=self.met + total - done)

    def unexplained(self) -> bool:
        """Whether a picture lacks a vector that did not fail."""
        cursor: str | None = None
        while True:
            self._progress.check()
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

    def report(self) -> None:
        """Reports how far it is."""
        self._progress.report(*self._counts())

    def _report(self) -> None:
        """Reports after the first batch, and then now and again."""
        if time.monotonic() - self._reported >= _REPORT_EVERY_S:
            self._reported = time.monotonic()
            self.report()

    def _counts(self) -> tuple[int, int]:
        """Pictures with a vector, and all."""
        total = count_of(self._store, self.collection)
        digest = self.live.spec.digest
        sets = self._store.spaces.all(self.collection)
        done = next((one.count for one in sets if one.spec.digest == digest), 0)
        return done, max(done, total)

    def _missing(self, cursor: str | None) -> Missing:
        return self._store.spaces.missing(
            self.collection, self.live.spec, limit=self._page_size, cursor=cursor
        )

    def _is_fresh(self, record: ImageRecord) -> bool:
        """Whether a picture is not known to fail."""
        return self.failed.get(record.id) != record.sha256

    def _batches(self, goal: float, deadline: float) -> Iterator[list[ImageRecord]]:
        """The next pictures without those that are known to fail; a batch may be empty."""
        self._at_end = False
        while True:
            self._progress.check()
            if self.met >= goal and time.monotonic() >= deadline:
                return
            if not self._page:
                missing = self._missing(self._cursor)
                self._cursor = missing.cursor
                self._page.extend(missing.records)
            if not self._page:
                self._at_end = True
                return
            records = [self._page.popleft() for _ in range(min(self._batch, len(self._page)))]
            self.met += len(records)
            yield [record for record in records if self._is_fresh(record)]

    def _add(self, made: Made) -> None:
        """Stores vectors, and notes which pictures failed."""
        done = [record for record in made.records if record.id in made.vectors]
        if done:
            vectors = np.stack([made.vectors[record.id] for record in done])  # (N, dim)
            self._store.spaces.add(self.collection, self.live.spec, done, vectors)
        here = self._store.find(self.collection, list(made.errors))
        for record in made.records:
            error, now = made.errors.get(record.id), here.get(record.id)
            if error is not None and now is not None and now.sha256 == record.sha256:
                self.failed[record.id] = record.sha256
                if len(self.errors) < _TEXTS:
                    self.errors[record.id] = str(error)
                self._progress.error(f"{record.id}: {error}")
