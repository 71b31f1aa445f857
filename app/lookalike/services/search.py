"""Finding the pictures that look most like a query."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

from PIL import Image

from lookalike.errors import (
    FetchingDisabledError,
    ImageNotFoundError,
    InvalidImageError,
    InvalidParameterError,
    NotReadyError,
    SpecMismatchError,
    VectorSpaceNotFoundError,
)
from lookalike.media.decode import Crop
from lookalike.media.decoder import ImageDecoder
from lookalike.media.fetching import Fetcher
from lookalike.models.base import Features, Vectors
from lookalike.models.encoders import ATTEMPTS, Encoders, LiveEncoder, Vector
from lookalike.records import (
    DEFAULT_COLLECTION,
    Effort,
    ImageRecord,
    Match,
    ModelSpec,
    check_collection_name,
    nfc,
    sha256_of,
)
from lookalike.services.checks import RecallMeter
from lookalike.services.pictures import warnings_of
from lookalike.services.queries import Combine, Part, Query, combined
from lookalike.services.scores import Verdict, calibration_of
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
MAX_FOUND = 10_000  # matches down to the last one of a page

_MOST_ROUNDS = 16  # of a search by groups


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What to look for, beside the query; raises `InvalidParameterError` if that cannot be."""

    collection: str = DEFAULT_COLLECTION
    k: int = 10  # matches, 1 to 1000
    offset: int = 0  # matches that are left out before them; with k at most 10,000
    min_score: float | None = None  # a cosine: matches below it are left out
    where: Filter | None = None
    group_by: str | None = None  # a metadata field: only the best match of each of its values
    effort: Effort | None = None  # None leaves it to the index: such searches are done together

    def __post_init__(self) -> None:
        check_collection_name(self.collection)
        if not 1 <= self.k <= MAX_K:
            raise InvalidParameterError(f"k is {self.k}; choose a number from 1 to {MAX_K}")
        if not 0 <= self.offset <= MAX_FOUND - self.k:
            raise InvalidParameterError(
                f"offset is {self.offset}; with k it may be 0 to {MAX_FOUND:,} (with this k, at "
                f"most {MAX_FOUND - self.k:,}). A filter, or GET /images, leads further"
            )
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
class AskedPart:
    """One part of a query that was answered; pixels of the picture, EXIF orientation applied."""

    kind: str  # `picture`, `text`, `id` or `vector`
    weight: float
    text: str | None = None
    id: str | None = None
    crop: Crop | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The query that was answered."""

    parts: list[AskedPart]
    combine: Combine
    flip: bool

    @property
    def is_one_picture(self) -> bool:
        """Whether it is one whole picture; scores are calibrated on such queries."""
        (first, *others) = self.parts
        whole = first.crop is None and not self.flip and first.weight > 0
        return not others and whole and first.kind in {"picture", "id"}

    @property
    def width(self) -> int | None:
        """Of the picture, if the query was one, new or stored; None if not."""
        return self.parts[0].width if len(self.parts) == 1 else None

    @property
    def height(self) -> int | None:
        """As `width`."""
        return self.parts[0].height if len(self.parts) == 1 else None

    @property
    def sha256(self) -> str | None:
        """As `width`."""
        return self.parts[0].sha256 if len(self.parts) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Matches, best first, with what produced them and milliseconds by stage."""

    collection: str
    spec: ModelSpec
    query: Asked
    offset: int  # matches that stand before these
    matches: list[Match]
    took_ms: dict[str, float]
    warnings: list[str]  # fields that no picture has, see `warnings_of`
    verdict: Verdict | None = None  # None where the scores are not calibrated for the query


@dataclass(eq=False)
class SearchService:
    """Searches by pictures, texts, stored pictures and vectors, or by the picture at an address."""

    encoders: Encoders
    store: Store
    decoder: ImageDecoder
    _: KW_ONLY
    meter: RecallMeter | None = None  # told of a share of the searches
    fetcher: Fetcher | None = None  # None if fetching is not turned on
    most_grouped: int = 16_384  # matches that the last round of a search by groups looks at

    def search(self, query: Query | BinaryIO, options: SearchOptions) -> SearchResult:
        """Finds the pictures most like a query, or like one picture.

        Stored pictures that the query names are no matches.

        Raises:
            InvalidImageError: A picture cannot be read.
            ImageNotFoundError: No picture has an id that the query names.
            InvalidParameterError: The model takes no texts, or makes vectors of another length.
            CollectionNotFoundError: There is no such collection.
            SpecMismatchError: The collection was made by a model that is not live.
            QueueFullError: Too many pictures wait already.
        """
        watch = Stopwatch()
        query = query if isinstance(query, Query) else Query.of(query)
        for left in reversed(range(ATTEMPTS)):
            known = self._known(query, options.collection)
            live = self.live_encoder(options.collection) if query.embeds else None
            try:
                return self._search_now(query, options, known, live, watch)
            except (SpecMismatchError, VectorSpaceNotFoundError, ImageNotFoundError):
                # The collection switched to another model meanwhile, or a stored picture changed.
                if not left:
                    raise
            except NotReadyError:  # likewise, and its encoder was retired
                if not left or self.live_encoder(options.collection) is live:
                    raise
        raise AssertionError("unreachable")

    def _search_now(
        self,
        query: Query,
        options: SearchOptions,
        known: Mapping[str, ImageRecord],
        live: LiveEncoder | None,
        watch: Stopwatch,
    ) -> SearchResult:
        spec = live.spec if live else self._spec(options.collection)
        held = self._held(options.collection, spec, known, watch) if known else {}
        asked: list[AskedPart] = []
        taken: list[tuple[Vector | None, list[Features]]] = []  # either: a vector, or to embed
        pictures = sum(part.picture is not None for part in query.parts)
        for number, part in enumerate(query.parts, start=1):
            facts, features, vector = dict[str, Any](), list[Features](), None
            if part.id is not None:
                record, vector = known[part.id], held[part.id]
                facts = {"width": record.width, "height": record.height, "sha256": record.sha256}
            elif part.vector is not None:
                vector = _require_length(part.vector, spec, options.collection)
            elif live is not None:
                stage = "decode" if part.text is None else "embed"
                with watch.stage(stage), naming(number if pictures > 1 else None):
                    facts, features = self.prepare(part, live, flip=query.flip)
            same = {name: getattr(part, name) for name in ("weight", "text", "id", "crop")}
            asked.append(AskedPart(kind=part.kind or "", **same, **facts))
            taken.append((vector, features))
        if live is None:
            vectors = [vector for vector, _ in taken if vector is not None]
        else:
            with watch.stage("embed"):
                made = iter(_embedded([one for _, features in taken for one in features], live))
            vectors = [
                one if one is not None else _middle([next(made) for _ in features])
                for one, features in taken
            ]
        sought = combined(vectors, [part.weight for part in query.parts], query.combine)
        result = Asked(parts=asked, combine=query.combine, flip=query.flip)
        return self._answer(result, sought, spec, options, watch=watch, exclude=query.ids)

    def prepare(
        self, part: Part, live: LiveEncoder, *, flip: bool = False
    ) -> tuple[dict[str, Any], list[Features]]:
        """What to embed for a picture or a text: facts of the picture, and one item.

        With `flip`, a picture's mirror image is a second one. Raises as `search`.
        """
        encoder = live.encoder
        if part.text is not None:
            return {}, [encoder.prepare(part.text)]
        part.picture.seek(0)
        sha256 = sha256_of(part.picture)
        part.picture.seek(0)
        decoded = self.decoder.decode(
            part.picture,
            decode_size=encoder.decode_size,
            preprocess=live.spec.preprocess,
            crop=part.crop,
        )
        images = [decoded.image]
        if flip:
            images.append(decoded.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        facts = {"width": decoded.width, "height": decoded.height, "sha256": sha256}
        return facts, [encoder.prepare(image) for image in images]

    def embed(self, parts: Sequence[Part], collection: str) -> tuple[ModelSpec, list[Vector]]:
        """The vectors of pictures and texts by the model of a collection, (dim,) float32 each.

        They wait in the queue as bulk work does. Raises as `search`.
        """
        for left in reversed(range(ATTEMPTS)):
            live, waiting = self.live_encoder(collection), list[Future[Vector]]()
            try:
                for number, part in enumerate(parts, start=1):
                    with naming(number if len(parts) > 1 else None):
                        _, (item,) = self.prepare(part, live)
                    waiting.append(live.submit(item, wait=True))
                return live.spec, [one.result() for one in waiting]
            except NotReadyError:  # the collection switched, and its encoder was retired
                if not left or self.live_encoder(collection) is live:
                    raise
            finally:
                for one in waiting:
                    one.cancel()
        raise AssertionError("unreachable")

    def _known(self, query: Query, collection: str) -> dict[str, ImageRecord]:
        """The rows of a query's stored pictures; raises `ImageNotFoundError`, which names one."""
        known = self.store.find(collection, query.ids) if query.ids else {}
        for one in query.ids:
            if one not in known:
                known[one] = self.store.get(collection, one)
        return known

    def _held(
        self,
        collection: str,
        spec: ModelSpec,
        known: Mapping[str, ImageRecord],
        watch: Stopwatch,
    ) -> dict[str, Vector]:
        """The vectors of stored pictures in the space that is searched."""
        with watch.stage("search"):
            held = self.store.spaces.vectors(collection, spec, [*known.values()])
        for one in known:
            if one not in held:
                raise ImageNotFoundError(f"{one!r} was replaced or deleted meanwhile")
        return held

    def _spec(self, collection: str) -> ModelSpec:
        """What made the collection's vectors; of one that is to be made, what would make them."""
        spec = spec_of(self.store, collection)
        if spec is None and collection != DEFAULT_COLLECTION:
            raise unknown_collection(collection)
        return spec or self.encoders.default.spec

    def search_url(
        self,
        address: str,
        options: SearchOptions,
        *,
        crop: Crop | None = None,
        flip: bool = False,
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
            query = Query(parts=(Part(picture=picture, crop=crop),), flip=flip)
            with slot():
                result = self.search(query, options)
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
        return self.search(Query(parts=(Part(id=image_id),)), options)

    def live_encoder(self, collection: str) -> LiveEncoder:
        """The encoder that made the collection's vectors; the default one if it is empty.

        Raises `CollectionNotFoundError` or `SpecMismatchError`.
        """
        live = self.encoders.following(partial(spec_of, self.store, collection))
        if live is None and collection != DEFAULT_COLLECTION:
            raise unknown_collection(collection)
        return live or self.encoders.default

    def _answer(
        self,
        query: Asked,
        vectors: Vectors,
        spec: ModelSpec,
        options: SearchOptions,
        *,
        watch: Stopwatch,
        exclude: Sequence[str],
    ) -> SearchResult:
        """Searches with (Q, dim) vectors; of a match that several find, the best score counts."""
        asked: dict[str, Any] = {"spec": spec, "exclude": exclude, "effort": options.effort}
        search = partial(self.store.search, options.collection, vectors, **asked)

        def find(k: int, where: Filter | None = options.where) -> list[Match]:
            found = search(k=k, where=where)
            return found[0] if len(found) == 1 else _merged(found, k)

        field = options.group_by
        with watch.stage("search"):
            if field is None:
                matches = self._page(find, lambda match: match.record.id, options)
            else:
                grouped = partial(self._best_of_groups, find, options, field)
                matches = self._page(grouped, partial(_group_of, field), options)
            if self.meter is not None and random.random() < self.meter.share:  # noqa: S311 - no secret
                self.meter.offer(
                    options.collection, vectors[0], k=options.k, where=options.where, **asked
                )
            fields = () if field is None else (field,)
            seen = [match.record for match in matches]
            how: dict[str, Any] = {"fields": fields, "seen": seen}
            warnings = warnings_of(self.store, options.collection, options.where, **how)
        if options.min_score is not None:
            matches = [match for match in matches if match.score >= options.min_score]
        verdict = None
        if query.is_one_picture:
            matches, verdict = self._with_meaning(matches, spec, options)
        return SearchResult(
            collection=options.collection,
            spec=spec,
            query=query,
            offset=options.offset,
            matches=matches,
            took_ms=watch.took_ms(),
            warnings=warnings,
            verdict=verdict,
        )

    def _with_meaning(
        self, matches: list[Match], spec: ModelSpec, options: SearchOptions
    ) -> tuple[list[Match], Verdict | None]:
        """The matches with what their scores mean, and the verdict of the first page."""
        calibration = calibration_of(self.store, options.collection, spec)
        if calibration is None:
            return matches, None
        best = matches[0].score if matches else None
        verdict = None if options.offset else calibration.verdict(best)
        probability = calibration.copy_model.probability
        return [replace(m, copy_probability=probability(m.score)) for m in matches], verdict

    def _page(
        self,
        find: Callable[[int], list[Match]],
        key: Callable[[Match], str],
        options: SearchOptions,
    ) -> list[Match]:
        """The matches behind the first `offset`, so that no page repeats what an earlier one had.

        An approximate index that looks for more may find what it missed before. So pages are cut
        from one order that depends on `k` alone: the first k, then what is new among the first
        2 k, and so on.
        """
        first, last = options.offset, options.offset + options.k
        if not first:
            return find(last)
        info = self.store.collection(options.collection)
        if info is None or info.exact or (options.effort and options.effort.exact):
            matches = find(last)
            return matches[first:]
        depth, found = options.k, dict[str, Match]()
        while True:
            matches = find(depth)
            for match in matches:
                found.setdefault(key(match), match)
            if depth >= last or len(matches) < depth:
                break
            depth = min(2 * depth, MAX_FOUND)
        page = list(found.values())[first:last]
        return [replace(match, rank=rank) for rank, match in enumerate(page, start=first + 1)]

    def _best_of_groups(
        self,
        find: Callable[[int, Filter | None], list[Match]],
        options: SearchOptions,
        field: str,
        k: int,
    ) -> list[Match]:
        """Searches for further groups until there are k or no more.

        Each round filters the groups away that were seen, so that a few large ones do not hide
        the others. Values that are lists or objects cannot be filtered away: for their sake each
        round asks for more matches than the one before, up to a bound. Such a round may ask for
        more than `MAX_K`, so its options are not checked again.
        """
        best: dict[str, Match] = {}
        wanted, where = min(4 * k, max(k, self.most_grouped)), options.where
        for _ in range(_MOST_ROUNDS):
            matches, before = find(wanted, where), len(best)
            for match in matches:
                if value_of(match.record.metadata, field) is not MISSING:
                    best.setdefault(_group_of(field, match), match)
            ended = len(matches) < wanted or matches[-1].score < (options.min_score or -1.0)
            widest = wanted >= self.most_grouped and len(best) == before
            if len(best) >= k or ended or widest:
                break
            values = (value_of(match.record.metadata, field) for match in best.values())
            seen = tuple(value for value in values if not isinstance(value, list | dict))
            conditions = options.where.conditions if options.where else ()
            others = Condition(field, (Operation(DIFFERS, seen),))
            where = Filter((*conditions, others))
            wanted = min(4 * wanted, max(wanted, self.most_grouped))
        top = sorted(best.values(), key=lambda match: -match.score)[:k]
        return [replace(match, rank=rank) for rank, match in enumerate(top, start=1)]


@contextmanager
def naming(number: int | None) -> Iterator[None]:
    """Says in an error of the block which picture it is about, if there are several."""
    try:
        yield
    except InvalidImageError as exc:
        if number is None:
            raise
        raise type(exc)(f"Picture {number}: {exc}") from exc


def _embedded(features: Sequence[Features], live: LiveEncoder) -> list[Vector]:
    return [live.embed(features[0])] if len(features) == 1 else live.embed_all(features)


def _middle(vectors: Sequence[Vector]) -> Vector:
    """The direction between some vectors."""
    middle: Vector = combined(vectors, [1.0] * len(vectors), Combine.MEAN)[0]
    return middle


def _require_length(vector: Vector, spec: ModelSpec, collection: str) -> Vector:
    if len(vector) != spec.dim:
        raise InvalidParameterError(
            f"The vector has {len(vector):,} numbers, and those of {collection!r} have "
            f"{spec.dim:,}: {spec.model} made them; send one that the same model made"
        )
    return vector


def _merged(found: Sequence[Sequence[Match]], k: int) -> list[Match]:
    """The k best of several answers, each match once; equal scores by their ranks there."""
    best: dict[str, Match] = {}
    for match in sorted(chain(*found), key=lambda match: (-match.score, match.rank)):
        best.setdefault(match.record.id, match)
    return [replace(one, rank=rank) for rank, one in enumerate(list(best.values())[:k], start=1)]


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


def _group_of(field: str, match: Match) -> str:
    return group_key(value_of(match.record.metadata, field))


def group_key(value: Any) -> str:
    """A text that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return nfc(json.dumps(value, sort_keys=True, ensure_ascii=False))
