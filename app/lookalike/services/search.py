"""Finding the pictures that look most like a query."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    EmbeddingSetNotFoundError,
    ImageNotFoundError,
    InvalidParameterError,
    NotReadyError,
    SpecMismatchError,
)
from lookalike.media.decode import ImageDecoder
from lookalike.media.sources import sha256_of
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.records import DEFAULT_COLLECTION, Match, ModelSpec
from lookalike.services.recall_meter import RecallMeter
from lookalike.services.switching import ATTEMPTS, live_encoder
from lookalike.services.timing import Stopwatch
from lookalike.store.base import Store, unknown_collection
from lookalike.store.effort import Effort
from lookalike.store.filters import Condition, Filter
from lookalike.store.names import check_collection_name, check_id

MAX_K = 1000

_MOST_GROUPED = 16_384  # matches that one search by groups looks at, at most, in its last round


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What to look for, beside the query itself.

    Attributes:
        collection: Where to search.
        k: How many matches, 1 to 1000.
        min_score: Matches below this cosine are left out, in [-1, 1].
        where: Only pictures that pass.
        group_by: A metadata field: only the best match of each of its values.
        effort: How hard to look, where the index is not exact; what is not given is the
            index's own. None where nothing is given: such searches can be done together.
    """

    collection: str = DEFAULT_COLLECTION
    k: int = 10
    min_score: float | None = None
    where: Filter | None = None
    group_by: str | None = None
    effort: Effort | None = None

    def __post_init__(self) -> None:
        """Checks the ranges; raises `InvalidParameterError`."""
        check_collection_name(self.collection)
        if not 1 <= self.k <= MAX_K:
            raise InvalidParameterError(f"k is {self.k}; choose a number from 1 to {MAX_K}")
        if self.min_score is not None and not -1.0 <= self.min_score <= 1.0:
            raise InvalidParameterError(
                f"min_score is {self.min_score}; scores are cosines, choose from -1 to 1"
            )
        if self.group_by == "":
            raise InvalidParameterError("group_by is empty; name a metadata field or leave it out")
        if self.effort == Effort():
            object.__setattr__(self, "effort", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The picture that was asked about; width and height in pixels, EXIF orientation applied."""

    width: int
    height: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Matches, best first, with what produced them and milliseconds by stage."""

    collection: str
    spec: ModelSpec
    query: Query
    matches: list[Match]
    took_ms: dict[str, float]


class SearchService:
    """Searches by a new picture or by a stored one.

    Args:
        encoders: Turn pictures into vectors.
        store: Where to search.
        decoder: Reads pictures.
        meter: Told of every search, to measure what the index finds; None for no such measuring.
    """

    def __init__(
        self,
        encoders: Encoders,
        store: Store,
        decoder: ImageDecoder,
        *,
        meter: RecallMeter | None = None,
    ) -> None:
        self._encoders = encoders
        self._store = store
        self._decoder = decoder
        self._meter = meter

    def search(self, picture: BinaryIO, options: SearchOptions) -> SearchResult:
        """Finds the pictures most like a new one.

        Raises:
            InvalidImageError: The picture cannot be read.
            CollectionNotFoundError: There is no such collection.
            SpecMismatchError: The collection was made by a model that is not live.
            QueueFullError: Too many pictures wait already.
        """
        watch = Stopwatch()
        for attempt in range(1, ATTEMPTS + 1):
            live = self._live_encoder(options.collection)
            try:
                return self._search_with(live, picture, options, watch)
            except SpecMismatchError:  # the collection moved to another set meanwhile
                if attempt == ATTEMPTS:
                    raise
            except NotReadyError:  # as above, and the encoder was retired
                if attempt == ATTEMPTS or self._live_encoder(options.collection) is live:
                    raise
        raise AssertionError("unreachable")

    def _search_with(
        self, live: LiveEncoder, picture: BinaryIO, options: SearchOptions, watch: Stopwatch
    ) -> SearchResult:
        with watch.stage("decode"):
            picture.seek(0)
            sha256 = sha256_of(picture)
            picture.seek(0)
            decoded = self._decoder.decode(picture, decode_size=live.encoder.decode_size)
            prepared = live.encoder.prepare(decoded.image)
        with watch.stage("embed"):
            vector = live.batcher.embed(prepared)
        with watch.stage("search"):
            matches = self._matches(vector, live.spec, options, exclude=())
        query = Query(width=decoded.width, height=decoded.height, sha256=sha256)
        return SearchResult(
            collection=options.collection,
            spec=live.spec,
            query=query,
            matches=matches,
            took_ms=watch.took_ms(),
        )

    def similar(self, image_id: str, options: SearchOptions) -> SearchResult:
        """Finds the pictures most like a stored one, itself left out; embeds nothing.

        Raises:
            ImageNotFoundError: No picture has this id.
        """
        check_id(image_id)
        watch = Stopwatch()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._similar_now(image_id, options, watch)
            except (SpecMismatchError, ImageNotFoundError, EmbeddingSetNotFoundError):
                # A switch in between; or the picture is not there, which the next look confirms.
                if attempt == ATTEMPTS:
                    raise
                self._store.get(options.collection, image_id)
        raise AssertionError("unreachable")

    def _similar_now(self, image_id: str, options: SearchOptions, watch: Stopwatch) -> SearchResult:
        """Takes the stored vector from the very set that is searched."""
        record = self._store.get(options.collection, image_id)
        spec = self._store.spec(options.collection)
        if spec is None:
            raise unknown_collection(options.collection)
        with watch.stage("search"):
            held = self._store.sets.vectors(options.collection, spec, [record])
            if image_id not in held:
                raise ImageNotFoundError(f"{image_id!r} was replaced or deleted meanwhile")
            matches = self._matches(held[image_id], spec, options, exclude=(image_id,))
        query = Query(width=record.width, height=record.height, sha256=record.sha256)
        return SearchResult(
            collection=options.collection,
            spec=spec,
            query=query,
            matches=matches,
            took_ms=watch.took_ms(),
        )

    def _live_encoder(self, collection: str) -> LiveEncoder:
        """The encoder whose vectors the collection holds; the default one where it is empty."""
        live = live_encoder(self._encoders, self._store, collection)
        if live is None and collection != DEFAULT_COLLECTION:
            raise unknown_collection(collection)
        return live or self._encoders.default

    def _matches(
        self,
        vector: NDArray[np.float32],
        spec: ModelSpec,
        options: SearchOptions,
        exclude: Sequence[str],
    ) -> list[Match]:
        def ranked(k: int, where: Filter | None) -> list[Match]:
            return self._store.search(
                options.collection,
                vector[np.newaxis, :],  # (1, dim)
                k=k,
                spec=spec,
                where=where,
                exclude=exclude,
                effort=options.effort,
            )[0]

        if options.group_by is None:
            matches = ranked(options.k, options.where)
        else:
            matches = _best_of_groups(ranked, options.group_by, options)
        if self._meter is not None:
            self._meter.offer(
                options.collection,
                vector,
                k=options.k,
                spec=spec,
                where=options.where,
                exclude=exclude,
                effort=options.effort,
            )
        if options.min_score is not None:
            matches = [match for match in matches if match.score >= options.min_score]
        return matches


def _best_of_groups(
    ranked: Callable[[int, Filter | None], list[Match]], field: str, options: SearchOptions
) -> list[Match]:
    """Searches again beside the groups that were seen, until there are k or no more.

    So a few large groups do not hide the others: what was seen is filtered away. Only values that
    are lists or objects cannot be; for their sake each search asks for more than the one before,
    up to a bound.
    """
    best: dict[str, Match] = {}
    wanted, where = options.k * 4, options.where
    while True:
        matches = ranked(wanted, where)
        for match in matches:
            if field in match.record.metadata:
                best.setdefault(group_key(match.record.metadata[field]), match)
        ended = len(matches) < wanted or matches[-1].score < (options.min_score or -1.0)
        if len(best) >= options.k or ended or wanted == _MOST_GROUPED:
            break
        values = (match.record.metadata[field] for match in best.values())
        seen = tuple(value for value in values if not isinstance(value, list | dict))
        conditions = options.where.conditions if options.where else ()
        where = Filter((*conditions, Condition(field, "nin", seen)))
        wanted = min(4 * wanted, _MOST_GROUPED)
    top = sorted(best.values(), key=lambda match: -match.score)[: options.k]
    return [replace(match, rank=rank) for rank, match in enumerate(top, start=1)]


def group_key(value: Any) -> str:
    """A text that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)
