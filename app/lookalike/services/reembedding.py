"""Moving a collection to another model: new vectors beside the old ones, then one switch."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from lookalike.errors import CollectionNotFoundError, ReembeddingIncompleteError
from lookalike.media.decode import ImageDecoder
from lookalike.models.spec import ModelRequest
from lookalike.progress import Progress
from lookalike.records import check_collection_name
from lookalike.services.backfill import Backfill, Vectorizer
from lookalike.services.collections import CollectionModels
from lookalike.services.pictures import PictureService
from lookalike.services.pipeline import Pipeline, PutGate
from lookalike.store.base import Store, spec_of, unknown_collection

_OPENING_S = 0.25  # that indexing has between two stretches in which it waits
_NAMED = 3  # pictures without a vector that the error names

log = logging.getLogger(__name__)


class ReembeddingService:
    """Gives collections the vectors of another model while searches go on with the old ones.

    Nothing is remembered beside the vectors themselves: work that was interrupted goes on with
    those that are missing. One call of `run` at a time.

    Args:
        store: Where the collections are.
        pictures: Finds the originals.
        decoder: Decodes within the limits.
        gate: Holds indexing back while the last few vectors are made.
        models: Makes the encoders, and keeps them live as long as they are needed.
        cores: Threads that decode.
        batch: Pictures embedded and committed together.
        slice_s: Seconds that indexing waits at a stretch, at least, if the last pictures keep
            coming.
    """

    def __init__(
        self,
        store: Store,
        pictures: PictureService,
        decoder: ImageDecoder,
        *,
        gate: PutGate,
        models: CollectionModels,
        cores: int = 2,
        batch: int = 32,
        slice_s: float = 2.0,
    ) -> None:
        self._store = store
        self._pictures = pictures
        self._decoder = decoder
        self._gate = gate
        self._models = models
        self._cores = cores
        self._batch = batch
        self._slice_s = slice_s

    def require(self, collection: str) -> None:
        """Raises `CollectionNotFoundError` if there is nothing to re-embed."""
        if spec_of(self._store, check_collection_name(collection)) is None:
            raise unknown_collection(collection)

    def as_job(self, parameters: Mapping[str, Any], progress: Progress) -> str:
        """Calls `run` with what `parameters` returned."""
        collection = parameters["collection"]
        self.require(collection)
        created_at = self._created_at(collection)
        if parameters.get("created_at", created_at) != created_at:
            raise CollectionNotFoundError(
                f"The collection {collection!r} was deleted and made anew since this was asked for"
            )
        return self.run(collection, ModelRequest.from_dict(parameters["recipe"]), progress)

    def parameters(self, collection: str, request: ModelRequest) -> dict[str, Any]:
        """What a job needs to know. Raises `CollectionNotFoundError`."""
        self.require(collection)
        return {
            "collection": collection,
            "created_at": self._created_at(collection),
            "recipe": request.to_dict(),
        }

    def run(self, collection: str, request: ModelRequest, progress: Progress) -> str:
        """Moves a collection to another model; returns a sentence on how it ended.

        Raises:
            CollectionNotFoundError: There is no such collection.
            ConfigurationError: The model cannot be built.
            ReembeddingIncompleteError: Some pictures have no vector, so the collection stays on
                its old model; the vectors that were made are kept.
            LookalikeError: The disk refuses, or the service shuts down; likewise.
        """
        self.require(collection)
        try:
            return self._run(collection, request, progress)
        finally:
            self._models.retire()

    def _run(self, collection: str, request: ModelRequest, progress: Progress) -> str:
        target = self._models.live(request)
        active = self._models.active(collection)
        request = self._models.lasting(request, target.encoder)
        self._store.spaces.begin(
            collection, target.spec, provenance=target.encoder.provenance, recipe=request.to_dict()
        )
        if active.spec.digest == target.spec.digest:
            return f"The collection {collection!r} is on this model already"
        self._models.keep_live(collection, request)
        with Pipeline(threads=self._cores, window=self._batch + self._cores) as pipeline:
            vectorizer = Vectorizer(
                self._store,
                collection,
                target,
                pictures=self._pictures,
                decoder=self._decoder,
                pipeline=pipeline,
                batch=self._batch,
            )
            backfill = Backfill(self._store, vectorizer, progress, batch=self._batch)
            self._catch_up(backfill)
            with self._store.spaces.prepared(collection, target.spec):
                self._switch(backfill)
        backfill.report()
        spec = target.spec
        head = f" with head {spec.head[:16]}" if spec.head else ""
        return (
            f"The collection {collection!r} is on {spec.model}{head} now: {spec.dim} "
            f"numbers a picture, spec {spec.digest}. The old vectors are kept for the way "
            "back"
        )

    def _created_at(self, collection: str) -> str:
        infos = self._store.collections()
        return next((info.created_at for info in infos if info.name == collection), "")

    def _catch_up(self, backfill: Backfill) -> None:
        """Makes vectors while that shrinks the backlog: indexing beside it may be as fast."""
        left = backfill.backlog()
        backfill.report()
        while True:
            if backfill.run(goal=backfill.met + left):
                return
            before, left = left, backfill.backlog()
            if left <= self._batch or left > before // 2:
                return

    def _switch(self, backfill: Backfill) -> None:
        """Makes the last vectors while indexing waits, and switches.

        If there are many, indexing waits for a stretch at a time, each long enough for twice as
        many pictures as came between the last two, so that this comes to an end.
        """
        came = 0
        while True:
            with self._gate.closed(backfill.collection):
                at_end = backfill.run(
                    goal=backfill.met + 2 * came, deadline=time.monotonic() + self._slice_s
                )
                if at_end and self._store.spaces.activate(backfill.collection, backfill.live.spec):
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
        missing = self._store.spaces.missing(backfill.collection, backfill.live.spec, limit=1)
        if missing.records:
            raise ReembeddingIncompleteError(_incomplete(backfill))


def _incomplete(backfill: Backfill) -> str:
    named = "; ".join(f"{key}: {text}" for key, text in islice(backfill.errors.items(), _NAMED))
    return (
        f"{len(backfill.failed)} pictures of the collection {backfill.collection!r} have no vector "
        f"by the new model, so it stays on the old one ({named}). Index these pictures again or "
        "delete them, then re-embed once more: what is done is kept"
    )
