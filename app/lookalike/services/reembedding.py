"""Moving a collection to another model: new vectors beside the old ones, then one switch."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import KW_ONLY, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from lookalike.errors import (
    CollectionNotFoundError,
    ConfigurationError,
    EmbeddingFailedError,
    ImageNotFoundError,
    InvalidImageError,
    InvalidParameterError,
    LookalikeError,
    NotFoundError,
    ReembeddingIncompleteError,
    SpecMismatchError,
    StorageError,
    UnreadableImageError,
    VectorSpaceNotFoundError,
)
from lookalike.models.base import Encoder
from lookalike.models.encoders import Encoders, LiveEncoder, Vector
from lookalike.models.head import Head
from lookalike.models.spec import ModelRequest
from lookalike.progress import Progress
from lookalike.records import CollectionInfo, ImageRecord, ModelSpec, check_collection_name
from lookalike.services.pictures import PictureService
from lookalike.services.pipeline import Pipeline, Prepared, PutGate, Result, grouped, reading
from lookalike.store.base import Missing, Store, VectorSpace, count_of, unknown_collection

_OPENING_S = 0.25  # that indexing has between two stretches in which it waits
_NAMED = 3  # pictures without a vector that the error names
_REPORT_EVERY_S = 0.5
_TEXTS = 20  # errors whose text is kept
_OF_ONE_PICTURE = (InvalidImageError, NotFoundError, EmbeddingFailedError)
"""Errors that concern one picture alone; any other ends the work."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ReembeddingService:
    """Gives collections the vectors of another model while searches go on with the old ones.

    Nothing is remembered beside the vectors themselves: work that was interrupted goes on with
    those that are missing. One call of `run` at a time.
    """

    store: Store
    pictures: PictureService
    _: KW_ONLY
    gate: PutGate  # holds indexing back while the last few vectors are made
    models: CollectionModels
    cores: int = 2
    batch: int = 32
    slice_s: float = 2.0  # that indexing waits at a stretch, at least, if pictures keep coming

    def require(self, collection: str) -> CollectionInfo:
        """The collection; raises `CollectionNotFoundError` if there is nothing to re-embed."""
        found = self.store.collection(check_collection_name(collection))
        if found is None:
            raise unknown_collection(collection)
        return found

    def as_job(self, parameters: Mapping[str, Any], progress: Progress) -> str:
        """Calls `run` with what `parameters` returned."""
        collection = parameters["collection"]
        created_at = self.require(collection).created_at
        if parameters.get("created_at", created_at) != created_at:
            raise CollectionNotFoundError(
                f"The collection {collection!r} was deleted and made anew since this was asked for"
            )
        return self.run(collection, ModelRequest.from_dict(parameters["recipe"]), progress)

    def parameters(self, collection: str, request: ModelRequest) -> dict[str, Any]:
        """What a job needs to know. Raises `CollectionNotFoundError`."""
        found, recipe = self.require(collection), request.to_dict()
        return {"collection": found.name, "created_at": found.created_at, "recipe": recipe}

    def run(self, collection: str, request: ModelRequest, progress: Progress) -> str:
        """Moves a collection to another model; returns a sentence on how it ended.

        If an error ends this, the collection stays on its model and the new vectors are kept.

        Raises:
            CollectionNotFoundError: There is no such collection.
            ConfigurationError: The model cannot be built.
            ReembeddingIncompleteError: Some pictures have no vector.
        """
        name = self.require(collection).name
        try:
            return self._run(name, request, progress)
        finally:
            self.models.retire()

    def way_back(self, collection: str, digest: str | None = None) -> ModelRequest:
        """The model of vectors that a collection has kept: of those named, or of the only others.

        Raises:
            CollectionNotFoundError: There is no such collection.
            VectorSpaceNotFoundError: It has no such vectors, or no others.
            InvalidParameterError: It has several others, and none is named.
            ConfigurationError: It was not recorded how to make the model again.
        """
        self.require(collection)
        spaces = self.store.spaces.all(collection)
        if digest is None:
            found = [one for one in spaces if one.count and not one.active]
        else:
            found = [one for one in spaces if one.spec.digest == digest]
        if not found:
            raise VectorSpaceNotFoundError(
                f"The collection {collection!r} has no vectors under {digest!r}"
                if digest
                else f"The collection {collection!r} has kept no vectors of another model"
            )
        if len(found) > 1:
            listed = ", ".join(f"{one.spec.digest} ({one.spec.model})" for one in found)
            raise InvalidParameterError(
                f"The collection {collection!r} has kept the vectors of several models: name one "
                f"of {listed}"
            )
        return self.models.recorded(found[0])

    def complete(self, collection: str, progress: Progress) -> None:
        """Makes the vectors that pictures lack for the model that the collection is on.

        Errors of single pictures are told to `progress`. Raises `SpecMismatchError` if the encoder
        of these vectors is not live.
        """
        spec = self.models.active(collection).spec
        live = next((one for one in self.models.encoders.live if one.spec == spec), None)
        if live is None:
            raise SpecMismatchError(
                f"The vectors of {collection!r} were made by {spec.model} ({spec.digest}), which "
                "the settings do not name: name it, or re-embed the collection"
            )
        with Pipeline(threads=self.cores, window=self.batch + self.cores) as pipeline:
            how: dict[str, Any] = {"pictures": self.pictures, "pipeline": pipeline}
            Backfill(self.store, collection, live, progress=progress, batch=self.batch, **how).run()

    def _run(self, collection: str, request: ModelRequest, progress: Progress) -> str:
        target = self.models.live(request)
        active = self.models.active(collection)
        request = self.models.lasting(request, target.encoder)
        self.store.spaces.begin(
            collection, target.spec, provenance=target.encoder.provenance, recipe=request.to_dict()
        )
        if active.spec.digest == target.spec.digest:
            return f"The collection {collection!r} is on this model already"
        self.models.keep_live(collection, request)
        with Pipeline(threads=self.cores, window=self.batch + self.cores) as pipeline:
            backfill = Backfill(
                self.store,
                collection,
                target,
                pictures=self.pictures,
                pipeline=pipeline,
                progress=progress,
                batch=self.batch,
            )
            self._catch_up(backfill)
            with self.store.spaces.prepared(collection, target.spec):
                self._switch(backfill)
        backfill.report()
        spec = target.spec
        head = f" with head {spec.head[:16]}" if spec.head else ""
        return (
            f"The collection {collection!r} is on {spec.model}{head} now: {spec.dim} numbers a "
            f"picture, spec {spec.digest}. The old vectors are kept for the way back"
        )

    def _catch_up(self, backfill: Backfill) -> None:
        """Makes vectors while that shrinks the backlog: indexing beside it may be as fast."""
        left = backfill.backlog()
        backfill.report()
        while True:
            if backfill.run(goal=backfill.met + left):
                return
            before, left = left, backfill.backlog()
            if left <= self.batch or left > before // 2:
                return

    def _switch(self, backfill: Backfill) -> None:
        """Makes the last vectors while indexing waits, and switches.

        If there are many, indexing waits for a stretch at a time, each long enough for twice as
        many pictures as came between the last two, so that this comes to an end.
        """
        came = 0
        while True:
            with self.gate.closed(backfill.collection):
                at_end = backfill.run(
                    goal=backfill.met + 2 * came, deadline=time.monotonic() + self.slice_s
                )
                if at_end and self.store.spaces.activate(backfill.collection, backfill.live.spec):
                    return
                left = backfill.backlog()
            if at_end:
                self._require_more(backfill)
            time.sleep(_OPENING_S)
            came = max(0, backfill.backlog() - left)

    def _require_more(self, backfill: Backfill) -> None:
        """Starts over if something is left to do; raises if all that is left has failed."""
        if not backfill.failed or backfill.unexplained():
            backfill.start_over()
            return
        missing = self.store.spaces.missing(backfill.collection, backfill.live.spec, limit=1)
        if missing.records:
            listed = islice(backfill.errors.items(), _NAMED)
            named = "; ".join(f"{key}: {text}" for key, text in listed)
            raise ReembeddingIncompleteError(
                f"{len(backfill.failed)} pictures of the collection {backfill.collection!r} have "
                f"no vector by the new model, so it stays on the old one ({named}). Index these "
                "pictures again or delete them, then re-embed once more: what is done is kept"
            )


@dataclass(eq=False)
class Backfill:
    """Makes the vectors that pictures lack, oldest first, and of those that come meanwhile.

    If the encoder only puts a head on vectors which the collection has already, the pictures
    themselves are not needed; otherwise the originals are decoded.
    """

    store: Store
    collection: str
    live: LiveEncoder
    _: KW_ONLY
    pictures: PictureService
    pipeline: Pipeline
    progress: Progress
    batch: int  # pictures embedded and stored together
    page: int = 1000  # rows read together

    def __post_init__(self) -> None:
        self.met = 0  # pictures, including those that are known to fail
        self.failed: dict[str, str] = {}  # by an error of their own: id -> sha256
        self.errors: dict[str, str] = {}  # the first few: id -> text
        self._cursor: str | None = None
        self._left: deque[ImageRecord] = deque()  # of the page that was read last
        self._at_end = False
        self._reported = float("-inf")

    def run(self, *, goal: float = math.inf, deadline: float = -math.inf) -> bool:
        """Makes vectors until there is nothing left (True).

        Ends earlier (False) once so many pictures were met and the deadline has come, by
        `time.monotonic`.
        """
        with closing(self.vectors(self._batches(goal, deadline))) as made:
            for one in made:
                self._add(one)
                if time.monotonic() - self._reported >= _REPORT_EVERY_S:
                    self._reported = time.monotonic()
                    self.report()
        return self._at_end

    def start_over(self) -> None:
        """Restarts from the oldest picture and skips known failures; slow if there are many."""
        done, total = self._counts()
        self._cursor = None
        self._left.clear()
        self.run(goal=self.met + total - done)

    def unexplained(self) -> bool:
        """Whether a picture lacks a vector that did not fail."""
        cursor: str | None = None
        while True:
            self.progress.check()
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
        self.progress.report(*self._counts())

    def _counts(self) -> tuple[int, int]:
        """Pictures with a vector, and all."""
        total = count_of(self.store, self.collection)
        digest = self.live.spec.digest
        sets = self.store.spaces.all(self.collection)
        done = next((one.count for one in sets if one.spec.digest == digest), 0)
        return done, max(done, total)

    def _missing(self, cursor: str | None) -> Missing:
        return self.store.spaces.missing(
            self.collection, self.live.spec, limit=self.page, cursor=cursor
        )

    def _is_fresh(self, record: ImageRecord) -> bool:
        """Whether a picture is not known to fail."""
        return self.failed.get(record.id) != record.sha256

    def _batches(self, goal: float, deadline: float) -> Iterator[list[ImageRecord]]:
        """The next pictures without those that are known to fail; a batch may be empty."""
        self._at_end = False
        while True:
            self.progress.check()
            if self.met >= goal and time.monotonic() >= deadline:
                return
            if not self._left:
                missing = self._missing(self._cursor)
                self._cursor = missing.cursor
                self._left.extend(missing.records)
            if not self._left:
                self._at_end = True
                return
            records = [self._left.popleft() for _ in range(min(self.batch, len(self._left)))]
            self.met += len(records)
            yield [record for record in records if self._is_fresh(record)]

    def _add(self, made: Sequence[Item]) -> None:
        """Stores vectors, and notes which pictures failed."""
        vectors = [(record, one) for record, one in made if isinstance(one, np.ndarray)]
        if vectors:
            records = [record for record, _ in vectors]
            rows = np.stack([vector for _, vector in vectors])  # (N, dim)
            self.store.spaces.add(self.collection, self.live.spec, records, rows)
        errors = [(record, one) for record, one in made if isinstance(one, LookalikeError)]
        here = self.store.find(self.collection, [record.id for record, _ in errors])
        for record, error in errors:
            now = here.get(record.id)
            if now is not None and now.sha256 == record.sha256:
                self.failed[record.id] = record.sha256
                if len(self.errors) < _TEXTS:
                    self.errors[record.id] = str(error)
                self.progress.error(f"{record.id}: {error}")

    def vectors(
        self, batches: Iterable[Sequence[ImageRecord]]
    ) -> Generator[list[Item], None, None]:
        """Makes the vectors of pictures; batches are taken as there is room.

        Raises errors that do not concern a single picture, as when the service shuts down.
        """
        with closing(self.pipeline.run(self._items(batches), self._prepare)) as results:
            for group in grouped(results, self.batch):
                yield [(result.item[0], _made(result)) for result in group]

    def _items(self, batches: Iterable[Sequence[ImageRecord]]) -> Iterator[Item]:
        """The pictures, with what the encoder's head makes of their stored vectors, if it can."""
        head = self.live.encoder.head
        for records in batches:
            done: dict[str, Vector | LookalikeError] = {}
            if head is not None and records:
                with suppress(VectorSpaceNotFoundError):
                    below = self.store.spaces.vectors(self.collection, head.backbone, records)
                    done = _apply(head, below)
            yield from ((record, done.get(record.id)) for record in records)

    def _prepare(self, item: Item) -> Prepared[Vector | None]:
        """Decodes an original and queues it, unless the picture is gone or needs only the head."""
        record, done = item
        if isinstance(done, LookalikeError):
            raise done
        if done is not None:
            return done, None
        encoder = self.live.encoder
        size, preprocess = encoder.decode_size, encoder.spec.preprocess
        try:
            with reading("its original"):
                now, original = self.pictures.original(self.collection, record.id)
                with original:
                    if now.sha256 != record.sha256:
                        return None, None  # replaced: it will be met again
                    image = self.pictures.decode(
                        original, size=size, preprocess=preprocess, bulk=True
                    )
        except ImageNotFoundError:
            return None, None
        except StorageError as exc:
            if isinstance(exc.__cause__, PermissionError):  # of this file, not of the data folder
                raise UnreadableImageError(str(exc)) from exc
            raise
        return None, self.live.submit(encoder.prepare(image), wait=True)


Item = tuple[ImageRecord, "Vector | LookalikeError | None"]
"""A picture with its vector, (dim,) float32, or why it has none; None for one that is gone."""


def _apply(head: Head, below: Mapping[str, Vector]) -> dict[str, Vector | LookalikeError]:
    """Vectors by the head, or why it fails: one by one if it fails on all of them together."""
    if not below:
        return {}
    try:
        rows = head.apply(np.stack(list(below.values())))  # (N, dim)
        return dict(zip(below, rows, strict=True))
    except EmbeddingFailedError as exc:
        made: dict[str, Vector | LookalikeError] = dict.fromkeys(below, exc)
    if len(below) > 1:
        for image_id, vector in below.items():
            made |= _apply(head, {image_id: vector})
    return made


def _made(result: Result[Item, Vector | None]) -> Vector | LookalikeError | None:
    if result.error is not None and not isinstance(result.error, _OF_ONE_PICTURE):
        raise result.error
    return result.error or (result.value if result.vector is None else result.vector)


@dataclass(eq=False)
class CollectionModels:
    """Keeps encoders live as long as a collection needs them."""

    encoders: Encoders
    store: Store
    _: KW_ONLY
    make: Callable[[ModelRequest], Encoder]  # raises `ConfigurationError` if it cannot
    default: ModelRequest  # what the default encoder was built from
    keep_head: Callable[[Head], str]  # returns the path of what is kept, to ask for

    def restore(self) -> None:
        """Builds the encoders that active sets need, if it was recorded how; logs what fails."""
        for info in self.store.collections():
            active = self.active(info.name)
            spec, request = active.spec, _recorded(active)
            if request is None and spec.int8 and spec.head is None:  # it is kept under its spec
                request = ModelRequest.of(spec, weights=spec.weights, head=None)
            if request is None or self._is_live(spec):
                continue
            if not self._try_live(spec, request):
                log.warning("searches in the collection %s are refused", info.name)

    def live(self, request: ModelRequest) -> LiveEncoder:
        """Builds the encoder of a request; the same path may hold another head by now."""
        if request == self.default and request.head is None:
            return self.encoders.default
        return self.encoders.add(self.make(request))

    def recorded(self, one: VectorSpace) -> ModelRequest:
        """How a set was built; raises `ConfigurationError` if that was not recorded."""
        request = _recorded(one)
        if request is None and one.spec.digest == self.encoders.default.spec.digest:
            request = self.default
        if request is None:
            raise ConfigurationError(
                f"It was not recorded how to build {one.spec.model} ({one.spec.digest}) again: "
                "name it to lookalike reembed"
            )
        return request

    def lasting(self, request: ModelRequest, encoder: Encoder) -> ModelRequest:
        """The request with head and network as kept here: later training does not change it."""
        network = encoder.spec
        if encoder.head is not None:
            network = encoder.head.backbone
            request = replace(request, head=self.keep_head(encoder.head))
        return replace(request, int8=network.digest) if network.int8 else request

    def keep_live(self, collection: str, target: ModelRequest) -> None:
        """Keeps the active set's encoder live, so that searches go on during and after a move."""
        active = self.active(collection)
        spec = active.spec
        request = recorded = _recorded(active)
        if spec.digest == self.encoders.default.spec.digest:
            request = self.lasting(self.default, self.encoders.default.encoder)
        elif not self._is_live(spec):
            request = recorded or _likely(spec, target)
            if request is None or not self._try_live(spec, request):
                return
        if request is not None and request != recorded:
            self.store.spaces.begin(collection, spec, provenance={}, recipe=request.to_dict())

    def request_of(self, collection: str) -> ModelRequest | None:
        """What builds the model of a collection again; None if that was not recorded."""
        active = self.active(collection)
        is_default = active.spec.digest == self.encoders.default.spec.digest
        return self.default if is_default else _recorded(active)

    def retire(self) -> None:
        """Closes the encoders that no collection needs, but the default one."""
        needed = {info.spec.digest for info in self.store.collections()}
        needed.add(self.encoders.default.spec.digest)
        for live in self.encoders.live:
            if live.spec.digest not in needed:
                self.encoders.remove(live.spec)

    def active(self, collection: str) -> VectorSpace:
        """The set of a collection that is searched."""
        return next(one for one in self.store.spaces.all(collection) if one.active)

    def _is_live(self, spec: ModelSpec) -> bool:
        return any(live.spec.digest == spec.digest for live in self.encoders.live)

    def _try_live(self, spec: ModelSpec, request: ModelRequest) -> bool:
        """Builds an encoder, and makes it live if it still is what the spec says."""
        try:
            encoder = self.make(request)
        except Exception as exc:  # one collection's model must not keep a service from starting
            text = (
                f"the collection's model cannot be loaded: {exc}. Put its files back and start "
                "again, or move the collection to another model (lookalike reembed)"
            )
            self.encoders.failures[spec.digest] = text
            log.warning("%s: %s", spec.digest, text)
            return False
        apart = spec.differences(encoder.spec)
        if apart:
            log.warning("what built %s builds another model now: %s", spec.digest, apart)
            return False
        self.encoders.add(encoder)
        return True


def _recorded(one: VectorSpace) -> ModelRequest | None:
    return None if one.recipe is None else ModelRequest.from_dict(one.recipe)


def _likely(spec: ModelSpec, target: ModelRequest) -> ModelRequest | None:
    """What a set was probably built from that moves to `target` for its head or its int8."""
    without_head = target.head is not None and spec.head is None
    in_floats = bool(target.int8) and not spec.int8
    if not without_head and not in_floats:
        return None
    return ModelRequest.of(spec, weights=target.weights, head=target.head if spec.head else None)
