"""Why a picture was found: which parts of the query and of the match make their score."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import (
    ConfigurationError,
    ImageNotFoundError,
    NotExplainableError,
    QueueFullError,
    WeightsError,
)
from lookalike.models.base import Encoder, Features
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.models.spec import ModelRequest
from lookalike.records import ImageRecord, ModelSpec, check_collection_name, sha256_of
from lookalike.services.pictures import PictureService
from lookalike.services.search import Stopwatch
from lookalike.store.base import Store, spec_of

Shares = NDArray[np.float64]
"""What each position adds to a score, (rows, columns), from the upper left."""

MOST_WAITING = 8  # explanations, of which one at a time uses the network
LOOKED_AT = 256  # pixels; no side of a picture to look at is reduced below
_SAME = 0.99  # cosine of a stored vector with the mean of its positions, at least
_NO_MEANS = (
    "The vectors of {} are no means over positions, so that no position has a share in a score: "
    "explanations are for networks that average over positions, such as resnet50"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explained:
    """One of the two pictures, and what its positions add to the score."""

    id: str | None  # None for a picture that is not stored
    width: int  # in pixels, EXIF orientation applied
    height: int
    sha256: str
    shares: Shares
    seen: tuple[float, float, float, float]  # where they lie, see `Preprocess.seen`
    image: Image.Image  # upright RGB, to draw on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """The score of two pictures, which is the sum of the shares of either."""

    collection: str
    spec: ModelSpec
    score: float
    query: Explained
    match: Explained
    took_ms: dict[str, float]


@dataclass(eq=False)
class ExplainService:
    """Splits the score of two pictures into shares of their positions.

    It is for models whose vector is the mean over the positions of the last feature map, scaled to
    length 1. With positions x_1 to x_n of one picture and the vector q of the other, the cosine is
    the sum of x_i . q / (n |mean x|). The same network with pooling `flatten` gives all x_i at
    once, scaled by one number, which the cosine does not notice. It is loaded by the first
    explanation, and one such network is kept: that of the collection that was asked about last.
    """

    encoders: Encoders
    store: Store
    pictures: PictureService
    _: KW_ONLY
    request_of: Callable[[str], ModelRequest | None]  # what builds a collection's model again
    make: Callable[[ModelRequest], Encoder]  # raises `ConfigurationError` if it cannot
    _turns: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MOST_WAITING), init=False
    )
    _using: threading.Lock = field(default_factory=threading.Lock, init=False)
    _kept: tuple[ModelRequest, Encoder] | None = field(default=None, init=False)

    def explain(self, collection: str, query: str | BinaryIO, match_id: str) -> Explanation:
        """Says which parts of two pictures make their score.

        Args:
            collection: Whose model is asked.
            query: The id of a picture of the collection, or a picture as a file.
            match_id: The id of a picture of the collection.

        Raises:
            ImageNotFoundError: There is no picture with one of the ids.
            OriginalNotKeptError: The original of one is not here.
            InvalidImageError: The query cannot be read.
            NotExplainableError: The model's vectors are no means over positions.
            SpecMismatchError: The collection was made by a model that is not live.
            QueueFullError: Too many explanations wait already.
        """
        check_collection_name(collection)
        record = self.pictures.get(collection, match_id)
        asked = self.pictures.get(collection, query) if isinstance(query, str) else None
        live = self.encoders.following(partial(spec_of, self.store, collection))
        if live is None:
            raise ImageNotFoundError(f"{match_id!r} was deleted meanwhile")
        request = _positions_request(live, self.request_of(collection))
        watch = Stopwatch()
        with self._turn():
            with watch.stage("decode"):
                one = self._read(collection, query, asked, live)
                other = self._read(collection, match_id, record, live)
            with watch.stage("embed"):
                x, y = self._positions(live.spec, request, [one.features, other.features])
            self._check(collection, live.spec, record, y)
        query_vector, match_vector = _unit(x.mean(axis=0)), _unit(y.mean(axis=0))
        return Explanation(
            collection=collection,
            spec=live.spec,
            score=float(np.clip(query_vector @ match_vector, -1, 1)),
            query=one.explained(_shares(x, match_vector), live.spec),
            match=other.explained(_shares(y, query_vector), live.spec),
            took_ms=watch.took_ms(),
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(blocking=False):
            raise QueueFullError(f"{MOST_WAITING} explanations wait already: try again in a moment")
        try:
            yield
        finally:
            self._turns.release()

    def _read(
        self,
        collection: str,
        picture: str | BinaryIO,
        record: ImageRecord | None,
        live: LiveEncoder,
    ) -> _Read:
        """Decodes a picture as a search does, and once more if that is too small to look at."""
        if isinstance(picture, str):
            record, file = self.pictures.original(collection, picture)
            with file:
                return self._read(collection, file, record, live)
        decoder, encoder = self.pictures.decoder, live.encoder
        picture.seek(0)
        sha256 = sha256_of(picture) if record is None else record.sha256
        size, preprocess = encoder.decode_size, live.spec.preprocess
        decoded = decoder.decode(picture, decode_size=size, preprocess=preprocess)
        image = decoded.image
        if size < LOOKED_AT:
            image = decoder.decode(picture, decode_size=LOOKED_AT).image
        return _Read(
            id=None if record is None else record.id,
            width=decoded.width,
            height=decoded.height,
            sha256=sha256,
            image=image,
            features=encoder.prepare(decoded.image),
        )

    def _positions(
        self, spec: ModelSpec, request: ModelRequest, features: list[Features]
    ) -> list[NDArray[np.float64]]:
        """The positions of each picture, (n, dim), n a square number; row by row."""
        with self._using:
            if self._kept is None or self._kept[0] != request:
                self._kept = None  # first, so that there are never two
                self._kept = (request, self._build(request))
            _, encoder = self._kept
            apart = replace(encoder.spec, pooling=spec.pooling, dim=spec.dim).differences(spec)
            if apart:
                raise NotExplainableError(
                    f"What built the model {spec.model} builds another one now: start the service "
                    "with the weights that the collection was made with"
                )
            count, rest = divmod(encoder.spec.dim, spec.dim)
            if encoder.spec.pooling != "flatten" or rest or math.isqrt(count) ** 2 != count:
                raise NotExplainableError(_NO_MEANS.format(spec.model))
            vectors = encoder.encode(features)
        maps = vectors.astype(np.float64).reshape(len(features), spec.dim, count)
        return list(maps.swapaxes(1, 2))

    def _build(self, request: ModelRequest) -> Encoder:
        try:
            return self.make(request)
        except WeightsError as exc:
            raise NotExplainableError(
                f"The model {request.model} cannot be loaded a second time: {exc}"
            ) from exc
        except ConfigurationError as exc:  # as of a network that pools its features itself
            raise NotExplainableError(_NO_MEANS.format(request.model)) from exc

    def _check(
        self, collection: str, spec: ModelSpec, record: ImageRecord, y: NDArray[np.float64]
    ) -> None:
        """Compares the mean over positions with the match's stored vector."""
        stored = self.store.spaces.vectors(collection, spec, [record]).get(record.id)
        if stored is not None and float(stored @ _unit(y.mean(axis=0))) < _SAME:
            raise NotExplainableError(_NO_MEANS.format(spec.model))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A picture that was read, before its shares are known."""

    id: str | None
    width: int
    height: int
    sha256: str
    image: Image.Image
    features: Features

    def explained(self, shares: Shares, spec: ModelSpec) -> Explained:
        """The same with its shares."""
        return Explained(
            id=self.id,
            width=self.width,
            height=self.height,
            sha256=self.sha256,
            shares=shares,
            seen=spec.preprocess.seen((self.width, self.height)),
            image=self.image,
        )


def _positions_request(live: LiveEncoder, request: ModelRequest | None) -> ModelRequest:
    """What builds the network that gives all positions; raises `NotExplainableError` if none."""
    spec = live.spec
    why = None
    if live.encoder.head is not None:
        why = "its head is not linear, so that a score is no sum over positions"
    elif spec.int8:
        why = "it is quantized to int8, and gives vectors alone; the same model in floats works"
    elif spec.pooling != "avg":
        why = f"its pooling is {spec.pooling}, not avg"
    elif request is None:
        why = "nothing says how to build it again; re-embed the collection"
    if why is None and request is not None:
        return replace(request, pooling="flatten", head=None, int8=False)
    raise NotExplainableError(
        f"Scores of this collection cannot be explained: its model is {spec.model}, and {why}. "
        "Explanations are for networks that average over positions, without a head"
    )


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return unit


def _shares(positions: NDArray[np.float64], other: NDArray[np.float64]) -> Shares:
    """Shares of (n, dim) positions in the cosine of their mean with the unit vector of another."""
    side = math.isqrt(len(positions))
    length = np.linalg.norm(positions.mean(axis=0))
    shares: Shares = (positions @ other / (len(positions) * length)).reshape(side, side)
    return shares
