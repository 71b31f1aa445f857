"""Adding pictures: one, several, or a whole folder as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    ImageTooLargeError,
    LookalikeError,
    SpecMismatchError,
    UnreadableImageError,
)
from lookalike.files.blobs import LocalFiles
from lookalike.media.decode import ImageDecoder
from lookalike.media.sources import PictureSource
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.records import (
    DEFAULT_COLLECTION,
    OnConflict,
    PutOutcome,
    PutStatus,
)
from lookalike.services.index_embedding import IndexEmbedder, failed_items
from lookalike.services.index_items import (
    IndexItem,
    Known,
    Originals,
    Ready,
    Started,
    Task,
    Waiting,
    flat,
    item_of,
    known_image,
)
from lookalike.services.originals import OriginalKeeper
from lookalike.services.switching import ATTEMPTS, PutGate
from lookalike.store.base import Store
from lookalike.store.metadata import check_metadata
from lookalike.store.names import check_collection_name, check_id
from lookalike.store.outcomes import decide

ID_LENGTH = 16
"""Hex digits of the sha256 that make an id where the caller gives none."""

_KEEPERS = 8
"""Threads that keep files: they wait for the disk, which makes several files durable at once."""


class IndexingService:
    """Decodes, embeds, keeps and stores pictures.

    Decoding runs on `cores` threads while the network works on what came before, files are kept
    several at a time, and rows are committed in groups. A picture that fails answers with its own
    error and harms no other.

    Args:
        encoders: The live encoders.
        store: Where rows and vectors go.
        files: Where originals and thumbnails go.
        decoder: Decodes within the limits.
        originals: What becomes of the files themselves.
        max_metadata_bytes: Most bytes of one picture's metadata, as JSON.
        cores: Threads that decode.
        group: Most pictures embedded and committed together.
        gate: Held shut for a moment while a collection moves to another embedding set.
    """

    def __init__(
        self,
        encoders: Encoders,
        store: Store,
        files: LocalFiles,
        decoder: ImageDecoder,
        *,
        originals: Originals = Originals.KEEP,
        max_metadata_bytes: int = 16_384,
        cores: int = 2,
        group: int = 32,
        gate: PutGate | None = None,
    ) -> None:
        self._embedder = IndexEmbedder(encoders, store, decoder, originals)
        self._store = store
        self._files = files
        self._decoder = decoder
        self._keeper = OriginalKeeper(store, files, originals)
        self._max_metadata_bytes = max_metadata_bytes
        self._group = group
        self.gate = gate or PutGate()
        self._window = 3 * group + cores
        self._pool = ThreadPoolExecutor(cores, thread_name_prefix="decode")
        self._keepers = ThreadPoolExecutor(_KEEPERS, thread_name_prefix="keep")

    def index(
        self,
        sources: Iterable[PictureSource],
        *,
        collection: str = DEFAULT_COLLECTION,
        on_conflict: OnConflict = OnConflict.REPLACE,
    ) -> Iterator[IndexItem]:
        """Indexes pictures as a stream and yields what became of each, in order.

        What has been yielded as created, replaced or updated is on the disk.

        Raises:
            InvalidCollectionNameError: Before anything is read.
            SpecMismatchError: The collection was made by a model that is not live.
        """
        return flat(self.index_groups(sources, collection=collection, on_conflict=on_conflict))

    def index_groups(
        self,
        sources: Iterable[PictureSource],
        *,
        collection: str = DEFAULT_COLLECTION,
        on_conflict: OnConflict = OnConflict.REPLACE,
        check: Callable[[], None] = lambda: None,
    ) -> Generator[list[IndexItem], None, None]:
        """As `index`, but yields what was committed together as one list. Raises as it does.

        `check` is called right before each commit, and may raise to end the work.
        """
        self.require(collection)
        task = Task(collection, on_conflict, self._embedder.live(collection), check)
        return self._stream(iter(sources), task)

    def require(self, collection: str) -> None:
        """Checks that pictures can be added to a collection; raises as `index` does."""
        check_collection_name(collection)
        self._embedder.live(collection)

    def close(self) -> None:
        """Stops the threads after what they are doing."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._keepers.shutdown(wait=True)

    def _stream(
        self, sources: Iterator[PictureSource], task: Task
    ) -> Generator[list[IndexItem], None, None]:
        window: deque[Future[Started]] = deque()
        try:
            while True:
                for source in islice(sources, self._window - len(window)):
                    window.append(self._pool.submit(self._start, source, task))
                if not window:
                    return
                group = [window.popleft() for _ in range(min(self._group, len(window)))]
                yield self._finish([started.result() for started in group], task)
        finally:
            for started in window:
                started.cancel()

    def _start(self, source: PictureSource, task: Task) -> Started:
        """Everything before the network: returns an item where that settles the matter."""
        try:
            return self._prepare(source, task)
        except LookalikeError as exc:
            return IndexItem(source=source, id=source.id, error=exc)
        except OSError as exc:
            unreadable = UnreadableImageError(f"{source.filename} cannot be read: {exc.strerror}")
            return IndexItem(source=source, id=source.id, error=unreadable)

    def _prepare(self, source: PictureSource, task: Task) -> Started:
        if source.id is not None:
            check_id(source.id)
        metadata = source.metadata
        if metadata is not None:
            metadata = check_metadata(metadata, max_bytes=self._max_metadata_bytes)
        if source.size > (limit := self._decoder.limits.max_bytes):
            raise ImageTooLargeError(
                f"{source.filename} has {source.size:,} bytes; the limit is {limit:,}. "
                "Send a smaller file, or raise LOOKALIKE_MAX_FILE_BYTES"
            )
        sha256 = source.sha256()
        image_id = source.id or sha256[:ID_LENGTH]
        existing = self._store.find(task.collection, [image_id]).get(image_id)
        if existing is not None:
            same = existing.sha256 == sha256
            place = self._keeper.moved(source, existing) if same else None
            known = known_image(existing, sha256, metadata, source=place)
            if decide(existing, known, task.on_conflict) is not PutStatus.REPLACED:
                return Known(source, known)
        return self._embedder.embed(source, sha256, image_id, metadata, task)

    def _finish(self, started: list[Started], task: Task) -> list[IndexItem]:
        """Keeps the files of a group, commits its rows, and gives its items in order."""
        settled: dict[int, IndexItem] = {}
        ready: list[Ready] = []
        complete = [
            self._keepers.submit(self._complete, item) if isinstance(item, Waiting) else None
            for item in started
        ]
        for place, item in enumerate(started):
            if isinstance(item, IndexItem):
                settled[place] = item
                continue
            try:
                if isinstance(item, Known):
                    if any(one.waiting.image.id == item.image.id for one in ready):
                        settled.update(self._commit(ready, task))
                        ready.clear()
                    outcome = self._settle(item, task)
                    if outcome is not None:
                        settled[place] = item_of(item.source, outcome)
                        continue
                waiting = self._embed_now(item, task) if isinstance(item, Known) else item
                kept = complete[place]
                vector = kept.result() if kept is not None else self._complete(waiting)
                ready.append(Ready(place, waiting, vector))
            except LookalikeError as exc:
                settled[place] = IndexItem(source=item.source, id=item.image.id, error=exc)
        settled.update(self._commit(ready, task))
        return [settled[place] for place in range(len(started))]

    def _complete(self, waiting: Waiting) -> NDArray[np.float32]:
        """Waits for a picture's vector and keeps its files."""
        vector = waiting.vector.result()
        self._keeper.keep(waiting.source, waiting.image)
        self._files.put_thumbnail(waiting.image.sha256, waiting.thumbnail)
        return vector

    def _settle(self, item: Known, task: Task) -> PutOutcome | None:
        """A picture that needs no vector after all that came before it; None where it does."""
        outcome = self._store.put_known(task.collection, item.image, on_conflict=task.on_conflict)
        if outcome is not None and outcome.record.sha256 == item.image.sha256:
            self._keeper.keep_known(item.source, item.image, outcome.record)
        return outcome

    def _embed_now(self, item: Known, task: Task) -> Waiting:
        """A picture that was known when it was looked up, and no longer is."""
        image = item.image
        return self._embedder.embed(item.source, image.sha256, image.id, image.metadata, task)

    def _commit(self, ready: list[Ready], task: Task) -> dict[int, IndexItem]:
        """Stores a group; where the collection moved to another set, with new vectors."""
        settled: dict[int, IndexItem] = {}
        error = SpecMismatchError(
            f"The collection {task.collection!r} moves from model to model; try again in a moment"
        )
        for _ in range(ATTEMPTS):
            ready, failed = self._embedder.embed_again(ready, task)
            settled |= failed
            live = task.live
            if any(one.waiting.live is not live for one in ready):
                continue  # it changed again meanwhile
            try:
                return settled | (self._put(ready, task, live) if ready else {})
            except SpecMismatchError as exc:
                error = exc
            except LookalikeError as exc:
                return settled | failed_items(ready, exc)
            if not self._follow(task):
                break
        return settled | failed_items(ready, error)

    def _follow(self, task: Task) -> bool:
        """Goes over to the encoder whose turn it is now; False where it is not live."""
        try:
            task.live = self._embedder.live(task.collection)
        except SpecMismatchError:
            return False
        return True

    def _put(self, ready: list[Ready], task: Task, live: LiveEncoder) -> dict[int, IndexItem]:
        with self.gate.passing(task.collection):
            task.check()
            outcomes = self._store.put(
                task.collection,
                [one.waiting.image for one in ready],
                np.stack([one.vector for one in ready]),  # (N, dim)
                spec=live.spec,
                provenance=live.encoder.provenance,
                on_conflict=task.on_conflict,
            )
        return {
            one.place: item_of(one.waiting.source, outcome)
            for one, outcome in zip(ready, outcomes, strict=True)
        }
