"""What can be asked: pictures, texts, stored pictures and vectors, and how they become one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO

import numpy as np

from lookalike.errors import InvalidParameterError
from lookalike.media.decode import Crop, check_crop
from lookalike.models.base import Vectors, check_text
from lookalike.models.encoders import Vector
from lookalike.records import check_id, counted

MAX_PARTS = 16  # of a query
MAX_WEIGHT = 100

_NO_DIRECTION = 1e-4  # of the weights: a shorter sum of unit vectors is made of rounding


class Combine(StrEnum):
    """How the parts of a query become one."""

    MEAN = "mean"  # their weighted sum
    ANY = "any"  # each by itself; of a match, the best of its scores


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One thing that a query asks for: a picture, a text, a stored picture's id, or a vector.

    Raises `InvalidParameterError` unless exactly one of them is given, and can be asked for.
    """

    picture: Any = None  # an open file, or whatever else a client takes for a picture
    text: str | None = None
    id: str | None = None
    vector: Any = None  # numbers of any length but 0; kept as float32 of length 1
    weight: float = 1.0  # below 0: not like this; -100 to 100
    crop: Crop | None = None  # of a picture, the part that counts

    def __post_init__(self) -> None:
        if self.kind is None:
            raise InvalidParameterError(
                "Each part of a query is one of picture, text, id and vector; give one of them"
            )
        if not abs(self.weight) <= MAX_WEIGHT:
            raise InvalidParameterError(
                f"A weight is {self.weight}; choose a number from -{MAX_WEIGHT} to {MAX_WEIGHT}"
            )
        if self.crop is not None:
            if self.picture is None:
                raise InvalidParameterError(f"A crop needs a picture: {self.kind} has none")
            check_crop(self.crop)
        if self.id is not None:
            check_id(self.id)
        if self.text is not None:
            check_text(self.text)
        if self.vector is not None:
            object.__setattr__(self, "vector", _unit_vector(self.vector))

    @property
    def kind(self) -> str | None:
        """Which of the four it is; None if it is none, or several."""
        given = [name for name in KINDS if getattr(self, name) is not None]
        return given[0] if len(given) == 1 else None


KINDS = ("picture", "text", "id", "vector")


def numbers_of(text: str) -> list[float]:
    """Numbers that are separated by commas, perhaps in brackets as JSON has them."""
    texts = text.strip().removeprefix("[").removesuffix("]").split(",")
    try:
        return [float(one) for one in texts] if texts != [""] else []
    except ValueError as exc:
        raise InvalidParameterError(
            f"{ascii(text)[:100]} cannot be read as a number, or as several with commas between"
        ) from exc


def crop_of(numbers: Sequence[float]) -> Crop:
    """A crop from its four numbers. Raises `InvalidParameterError` for more or fewer."""
    if len(numbers) != 4:
        raise InvalidParameterError(
            f"crop has {counted(len(numbers), 'number')}; send left,top,width,height in fractions "
            "of the picture, e.g. 0.25,0,0.5,1"
        )
    left, top, width, height = numbers
    return check_crop((left, top, width, height))


def packed(vector: Vector) -> str:
    """A vector as float32, little endian, in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def vector_of(text: str) -> Vector:
    """Reads what `packed` writes. Raises `InvalidParameterError` for another text."""
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError as exc:
        raise InvalidParameterError(
            "A vector as a text is base64 of float32 numbers, little endian; this is none"
        ) from exc
    vector: Vector = numbers.astype(np.float32)
    return vector


def _unit_vector(numbers: Any) -> Vector:
    try:
        vector = np.asarray(numbers, np.float64)
    except (ValueError, TypeError, OverflowError) as exc:
        raise InvalidParameterError("A vector is a list of numbers; send it as one") from exc
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise InvalidParameterError("A vector is a list of numbers, each of them finite")
    largest = np.abs(vector).max()
    if largest == 0:
        raise InvalidParameterError("A vector of zeros has no direction; send another one")
    scaled = vector / largest  # so that no square is too large or too small
    unit: Vector = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    return unit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """What is asked: parts with weights, and how they become one.

    Raises `InvalidParameterError` for no part, too many, or none with a weight above 0.
    """

    parts: Sequence[Part]  # 1 to 16
    combine: Combine = Combine.MEAN
    flip: bool = False  # of each picture, its mirror image counts as much as itself

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= MAX_PARTS:
            raise InvalidParameterError(
                f"The query has {len(self.parts)} parts; send 1 to {MAX_PARTS} pictures, texts, "
                "ids and vectors, e.g. curl -F file=@photo.jpg"
            )
        if all(part.weight <= 0 for part in self.parts):
            raise InvalidParameterError(
                "No weight is above 0: say also what matches are to be like, not only what not"
            )
        if self.flip and all(part.picture is None for part in self.parts):
            raise InvalidParameterError("flip needs a picture: nothing else has a mirror image")

    @classmethod
    def of(cls, picture: BinaryIO) -> Query:
        """One picture, as it is."""
        return cls(parts=(Part(picture=picture),))

    @classmethod
    def parse(cls, parts: Sequence[Part], *, combine: str = "mean", flip: bool = False) -> Query:
        """A query with `combine` as a text."""
        if combine not in list(Combine):
            raise InvalidParameterError(f"combine is {combine!r}; choose {', '.join(Combine)}")
        return cls(parts=parts, combine=Combine(combine), flip=flip)

    @property
    def ids(self) -> list[str]:
        """Ids of the stored pictures among its parts."""
        return [part.id for part in self.parts if part.id is not None]

    @property
    def embeds(self) -> bool:
        """Whether a part needs an encoder."""
        return any(part.kind in {"picture", "text"} for part in self.parts)


def combined(vectors: Sequence[Vector], weights: Sequence[float], combine: Combine) -> Vectors:
    """The vectors to search with, (Q, dim) float32 of length 1, of N parts of length 1.

    `mean`: one, the weighted sum. `any`: one for each part with a weight above 0, to which those
    below 0 are added. Raises `InvalidParameterError` if parts cancel each other.
    """
    if len(vectors) == 1:
        return vectors[0][np.newaxis, :]
    rows, factors = np.stack(vectors).astype(np.float64), np.array(weights)
    likes = factors > 0
    sums = factors[likes, None] * rows[likes]  # (Q, dim)
    if combine is Combine.MEAN:
        sums = sums.sum(axis=0, keepdims=True)
    sums = sums + factors[~likes] @ rows[~likes]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)  # (Q, 1)
    if (lengths < _NO_DIRECTION * np.abs(factors).sum()).any():
        raise InvalidParameterError(
            "The parts of the query cancel each other, so that nothing is asked; change a weight"
        )
    asked: Vectors = (sums / lengths).astype(np.float32)
    return asked
