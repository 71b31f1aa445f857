"""Finding the pictures that look most like a query."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from lookalike.errors import (
    FetchingDisabledError,
    ImageNotFoundError,
    InvalidParameterError,
    NotReadyError,
    SpecMismatchError,
    VectorSpaceNotFoundError,
)
from lookalike.media.decoder import ImageDecoder
from lookalike.media.fetching import Fetcher
from lookalike.models.encoders import ATTEMPTS, Encoders, LiveEncoder, Vector
from lookalike.records import (
    DEFAULT_COLLECTION,
    Effort,
    Match,
    ModelSpec,
    check_collection_name,
    check_id,
    nfc,
    sha256_of,
)
from lookalike.services.checks import RecallMeter
from lookalike.services.pictures import warnings_of
from lookalike.store.base import Store, spec_of, unknown_collection
from lookalike.store.filters import (
    DIFFERS,
    MISSING,
    Condition,
    Filter,
    Operation,
    field_name,
    value_of,
)

MAX_K = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What to look for, beside the query; raises `InvalidParameterError` if that cannot be."""

    collection: str = DEFAULT_COLLECTION
    k: int = 10  # matches, 1 to 1000
    min_score: float | None = None  # a cosine: matches below it are left out
    where: Filter | None = None
    group_by: str | None = None  # a metadata field: only the best match of each of its values
    effort: Effort | None = None  # None leaves it to the index: such searches are done together

    def __post_init__(self) -> None:
        check_collection_name(self.collection)
        if not 1 <= self.k <= MAX_K:
            raise InvalidParameterError(f"k is {self.k}; choose a number from 1 to {MAX_K}")
        if self.min_score is not None and not -1.0 <= self.min_score <= 1.0:
            raise InvalidParameterError(
                f"min_score is {self.min_score}; scores are cosines, choose from -1 to 1"
            )
        if self.group_by == "":
            raise InvalidParameterError("group_by is empty; name a metadata field or leave it out")
        if self.group_by is not None:
            object.__setattr__(self, "group_by", field_name(self.group_by))
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
    warnings: list[str]  # fields that no picture has, see `warnings_of`


@dataclass(eq=False)
class SearchService:
    """Searches by a new picture, by the one at an address, or by a stored one."""

    encoders: Encoders
    store: Store
    decoder: ImageDecoder
    _: KW_ONLY
    meter: RecallMeter | None = None  # told of a share of the searches
    fetcher: Fetcher | None = None  # None if fetching is not turned on
    most_grouped: int = 16_384  # matches that the last round of a search by groups looks at

    def search(self, picture: BinaryIO, options: SearchOptions) -> SearchResult:
        """Finds the pictures most like a new one.

        Raises:
            InvalidImageError: The picture cannot be read.
            CollectionNotFoundError: There is no such collection.
            SpecMismatchError: The collection was made by a model that is not live.
            QueueFullError: Too many pictures wait already.
        """
        watch = Stopwatch()
        for _ in range(ATTEMPTS - 1):
            live = self._live_encoder(options.collection)
            try:
                return self._search_now(picture, options, live, watch)
            except SpecMismatchError:  # the collection switched to another model meanwhile
                continue
            except NotReadyError:  # likewise, and its encoder was retired
                if self._live_encoder(options.collection) is live:
                    raise
        return self._search_now(picture, options, self._live_encoder(options.collection), watch)

    def _search_now(
        self, picture: BinaryIO, options: SearchOptions, live: LiveEncoder, watch: Stopwatch
    ) -> SearchResult:
        with watch.stage("decode"):
            picture.seek(0)
            sha256 = sha256_of(picture)
            picture.seek(0)
            decoded = self.decoder.decode(
                picture, decode_size=live.encoder.decode_size, preprocess=live.spec.preprocess
            )
            prepared = live.encoder.prepare(decoded.image)
        with watch.stage("embed"):
            vector = live.embed(prepared)
        query = Query(width=decoded.width, height=decoded.height, sha256=sha256)
        return self._answer(query, vector, live.spec, options, watch=watch)

    def search_url(
        self,
        address: str,
        options: SearchOptions,
        *,
        slot: Callable[[], AbstractContextManager[None]] = nullcontext,
        keep: Callable[[BinaryIO], object] | None = None,
    ) -> SearchResult:
        """Fetches a picture and finds the pictures most like it; raises as `search` does.

        The slot is entered once the picture is here, so that a slow address takes no slot. `keep`
        is called with the picture after the search, before it is gone.

        Raises:
            FetchingDisabledError: Fetching is not turned on.
            FetchError: The picture cannot be had; `Fetcher.fetch` says more.
        """
        watch = Stopwatch()
        with self.require_fetcher().fetch(address) as picture:
            fetched = watch.took_ms()["total"]
            with slot():
                result = self.search(picture, options)
            if keep is not None:
                picture.seek(0)
                keep(picture)
        took_ms = {"fetch": fetched, **result.took_ms, "total": watch.took_ms()["total"]}
        return replace(result, took_ms=took_ms)

    def require_fetcher(self) -> Fetcher:
        """The fetcher. Raises `FetchingDisabledError` if fetching is not turned on."""
        if self.fetcher is None:
            raise FetchingDisabledError
        return self.fetcher

    def similar(self, image_id: str, options: SearchOptions) -> SearchResult:
        """Finds the pictures most like a stored one, itself left out; embeds nothing.

        Raises `ImageNotFoundError`.
        """
        check_id(image_id)
        watch = Stopwatch()
        for _ in range(ATTEMPTS - 1):
            try:
                return self._similar_now(image_id, options, watch)
            except (SpecMismatchError, ImageNotFoundError, VectorSpaceNotFoundError):
                # The collection switched meanwhile, or the picture does not exist: see which.
                self.store.get(options.collection, image_id)
        return self._similar_now(image_id, options, watch)

    def _similar_now(self, image_id: str, options: SearchOptions, watch: Stopwatch) -> SearchResult:
        """Searches with the picture's stored vector, taken from the set that is searched."""
        record = self.store.get(options.collection, image_id)
        spec = spec_of(self.store, options.collection)
        if spec is None:
            raise unknown_collection(options.collection)
        with watch.stage("search"):
            held = self.store.spaces.vectors(options.collection, spec, [record])
        if image_id not in held:
            raise ImageNotFoundError(f"{image_id!r} was replaced or deleted meanwhile")
        query = Query(width=record.width, height=record.height, sha256=record.sha256)
        return self._answer(query, held[image_id], spec, options, watch=watch, exclude=(image_id,))

    def _live_encoder(self, collection: str) -> LiveEncoder:
        """The encoder that made the collection's vectors; the default one if it is empty."""
        live = self.encoders.following(partial(spec_of, self.store, collection))
        if live is None and collection != DEFAULT_COLLECTION:
            raise unknown_collection(collection)
        return live or self.encoders.default

    def _answer(
        self,
        query: Query,
        vector: Vector,
        spec: ModelSpec,
        options: SearchOptions,
        *,
        watch: Stopwatch,
        exclude: Sequence[str] = (),
    ) -> SearchResult:
        asked: dict[str, Any] = {"spec": spec, "exclude": exclude, "effort": options.effort}
        with watch.stage("search"):
            find = partial(self.store.search, options.collection, vector[np.newaxis, :], **asked)
            if options.group_by is None:
                (matches,) = find(k=options.k, where=options.where)
            else:
                matches = self._best_of_groups(find, options, options.group_by)
            if self.meter is not None and random.random() < self.meter.share:  # noqa: S311 - no secret
                self.meter.offer(
                    options.collection, vector, k=options.k, where=options.where, **asked
                )
            fields = () if options.group_by is None else (options.group_by,)
            seen = [match.record for match in matches]
            how: dict[str, Any] = {"fields": fields, "seen": seen}
            warnings = warnings_of(self.store, options.collection, options.where, **how)
        if options.min_score is not None:
            matches = [match for match in matches if match.score >= options.min_score]
        return SearchResult(
            collection=options.collection,
            spec=spec,
            query=query,
            matches=matches,
            took_ms=watch.took_ms(),
            warnings=warnings,
        )

    def _best_of_groups(
        self, find: Callable[..., list[list[Match]]], options: SearchOptions, field: str
    ) -> list[Match]:
        """Searches for further groups until there are k or no more.

        Each round filters the groups away that were seen, so that a few large ones do not hide
        the others. Values that are lists or objects cannot be filtered away: for their sake each
        round asks for more matches than the one before, up to a bound. Such a round may ask for
        more than `MAX_K`, so its options are not checked again.
        """
        best: dict[str, Match] = {}
        wanted, where = options.k * 4, options.where
        while True:
            (matches,) = find(k=wanted, where=where)
            for match in matches:
                if (value := value_of(match.record.metadata, field)) is not MISSING:
                    best.setdefault(group_key(value), match)
            ended = len(matches) < wanted or matches[-1].score < (options.min_score or -1.0)
            if len(best) >= options.k or ended or wanted == self.most_grouped:
                break
            values = (value_of(match.record.metadata, field) for match in best.values())
            seen = tuple(value for value in values if not isinstance(value, list | dict))
            conditions = options.where.conditions if options.where else ()
            others = Condition(field, (Operation(DIFFERS, seen),))
            where = Filter((*conditions, others))
            wanted = min(4 * wanted, self.most_grouped)
        top = sorted(best.values(), key=lambda match: -match.score)[: options.k]
        return [replace(match, rank=rank) for rank, match in enumerate(top, start=1)]


class Stopwatch:
    """Adds up milliseconds by stage; `total` runs from its making."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside the block towards `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + time.perf_counter() - started

    def took_ms(self) -> dict[str, float]:
        """Milliseconds by stage so far, in order of first use, then `total`."""
        total = time.perf_counter() - self._started
        return {name: round(s * 1000, 3) for name, s in {**self._stages, "total": total}.items()}


def group_key(value: Any) -> str:
    """A text that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return nfc(json.dumps(value, sort_keys=True, ensure_ascii=False))
