"""Moving a collection to another model: new vectors beside the old ones, then one switch."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from lookalike.errors import (
    CollectionNotFoundError,
    ReembeddingIncompleteError,
)
from lookalike.media.decode import ImageDecoder
from lookalike.services.collection_models import CollectionModels
from lookalike.services.job_run import Watch
from lookalike.services.pictures import PictureService
from lookalike.services.reembedding_walk import Vectorizer, Walk
from lookalike.services.search import unknown_collection
from lookalike.services.switching import PutGate
from lookalike.store.base import Store
from lookalike.store.embedding_sets import Recipe
from lookalike.store.names import check_collection_name

_SLICE_S = 2.0  # that puts wait at a stretch, at least, where the last pictures do not end
_OPENING_S = 0.25  # that puts have between two such stretches
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
        gate: Holds puts back while the last few vectors are made.
        models: Makes the encoders, and keeps them live as long as they are needed.
        cores: Threads that decode.
        batch: Pictures embedded and committed together.
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
    ) -> None:
        self._store = store
        self._pictures = pictures
        self._decoder = decoder
        self._gate = gate
        self._models = models
        self._cores = cores
        self._batch = batch

    def require(self, collection: str) -> None:
        """Raises `CollectionNotFoundError` where there is nothing to re-embed."""
        if self._store.spec(check_collection_name(collection)) is None:
            raise unknown_collection(collection)

    def as_job(self, parameters: Mapping[str, Any], watch: Watch) -> str:
        """`run` with the parameters that `parameters` gave."""
        collection = parameters["collection"]
        self.require(collection)
        if parameters.get("created_at", self._created_at(collection)) != self._created_at(
            collection
        ):
            raise CollectionNotFoundError(
                f"The collection {collection!r} was deleted and made anew since this was asked for"
            )
        return self.run(collection, parameters["recipe"], watch)

    def parameters(self, collection: str, recipe: Recipe) -> dict[str, Any]:
        """What a job needs to know. Raises `CollectionNotFoundError`."""
        self.require(collection)
        return {
            "collection": collection,
            "created_at": self._created_at(collection),
            "recipe": dict(recipe),
        }

    def run(self, collection: str, recipe: Recipe, watch: Watch) -> str:
        """Moves a collection to the model of a recipe; gives a sentence on how it ended.

        Raises:
            CollectionNotFoundError: There is no such collection.
            ConfigurationError: The recipe's model cannot be made.
            ReembeddingIncompleteError: Some pictures have no vector, so the collection stays on
                its old model; the vectors that were made are kept.
            LookalikeError: The disk refuses, or the service shuts down; likewise.
        """
        self.require(collection)
        try:
            return self._run(collection, recipe, watch)
        finally:
            self._models.retire()

    def _run(self, collection: str, recipe: Recipe, watch: Watch) -> str:
        target = self._models.live(recipe)
        active = self._models.active(collection)
        recipe = self._models.lasting(recipe, target.encoder)
        self._store.sets.begin(
            collection, target.spec, provenance=target.encoder.provenance, recipe=recipe
        )
        if active.spec.digest == target.spec.digest:
            return f"The collection {collection!r} is on this model already"
        self._models.keep_live(collection, recipe)
        pool = ThreadPoolExecutor(self._cores, thread_name_prefix="reembed")
        try:
            vectorizer = Vectorizer(
                self._store,
                collection,
                target,
                pictures=self._pictures,
                decoder=self._decoder,
                pool=pool,
            )
            walk = Walk(self._store, vectorizer, watch, batch=self._batch)
            self._catch_up(walk)
            with self._store.sets.prepared(collection, target.spec):
                self._switch(walk)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        walk.tell()
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

    # The walk and the switch

    def _catch_up(self, walk: Walk) -> None:
        """Walks while that shrinks what is left: indexing beside it may be as fast as this."""
        left = walk.backlog()
        walk.tell()
        while True:
            goal = walk.met + left
            if walk.run(lambda goal=goal: walk.met >= goal):  # type: ignore[misc]
                return
            before, left = left, walk.backlog()
            if left <= self._batch or left > before // 2:
                return

    def _switch(self, walk: Walk) -> None:
        """Makes the last vectors while puts wait, and switches.

        Where there are many, puts wait for a stretch at a time, each long enough for twice as many
        pictures as came between the last two, so that it comes to an end.
        """
        came = 0
        while True:
            with self._gate.closed(walk.collection):
                at_end = self._stretch(walk, at_least=2 * came)
                if at_end and self._store.sets.activate(walk.collection, walk.live.spec):
                    return
                left = walk.backlog()
            if at_end:
                self._require_more(walk)
            time.sleep(_OPENING_S)
            came = max(0, walk.backlog() - left)

    def _stretch(self, walk: Walk, *, at_least: int) -> bool:
        end, enough = time.monotonic() + _SLICE_S, walk.met + at_least
        return walk.run(lambda: time.monotonic() >= end and walk.met >= enough)

    def _require_more(self, walk: Walk) -> None:
        """Starts over where something is left to do; raises where all that is left has failed."""
        if not walk.failed or walk.unexplained():
            walk.start_over()
            return
        missing = self._store.sets.missing(walk.collection, walk.live.spec, limit=1)
        if missing.records:
            raise ReembeddingIncompleteError(_incomplete(walk))


def _incomplete(walk: Walk) -> str:
    named = "; ".join(f"{key}: {text}" for key, text in islice(walk.errors.items(), _NAMED))
    return (
        f"{len(walk.failed)} pictures of the collection {walk.collection!r} have no vector by the "
        f"new model, so it stays on the old one ({named}). Index these pictures again or delete "
        "them, then re-embed once more: what is done is kept"
    )
