"""What crosses the borders between the parts: frozen, plain, validated where built."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

Metadata = Mapping[str, Any]
"""A JSON object: what the caller stores with a picture."""

DEFAULT_COLLECTION = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What made a set of vectors; two sets can be compared only where it agrees.

    Attributes:
        model: The network's name, e.g. `resnet50`.
        weights: The weights' name (`IMAGENET1K_V1`, `random`) or file name. A label only: the
            same tensors under another name are the same weights, `weights_sha256` decides.
        weights_sha256: Hex digest over the state dict that is in use, without classifier; with
            `int8`, over that digest and the pictures that it was calibrated on.
        head: The embedding head's digest, or None.
        pooling: `avg` or `flatten`.
        resize: `squash` or `crop`.
        input_size: Side of the network's square input, in pixels.
        dim: Numbers in a vector.
        preprocessing: Version of decoding, resizing and normalizing.
        int8: Whether the network was quantized to 8-bit integers.
    """

    model: str
    weights: str
    weights_sha256: str
    head: str | None = None
    pooling: str = "avg"
    resize: str = "squash"
    input_size: int = 224
    dim: int
    preprocessing: int = 1
    int8: bool = False

    def differences(self, other: ModelSpec) -> dict[str, tuple[Any, Any]]:
        """Names what keeps two specs apart: field -> (own value, other's value).

        Empty means that the vectors can be compared. `weights` alone never differs; where the
        digests do, both names are given beside them.
        """
        apart = {
            f.name: (getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)
            if f.name != "weights" and getattr(self, f.name) != getattr(other, f.name)
        }
        if "weights_sha256" in apart and self.weights != other.weights:
            apart = {"weights": (self.weights, other.weights), **apart}
        return apart

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Reads what `to_json` wrote; fields that are not known are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in json.loads(text).items() if key in known})

    @property
    def digest(self) -> str:
        """16 hex digits that stand for everything that must agree."""
        comparable = {key: value for key, value in asdict(self).items() if key != "weights"}
        text = json.dumps(comparable, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One stored picture, without its vector.

    Attributes:
        collection: The collection's name.
        id: Unique within the collection.
        sha256: Hex digest of the file's bytes as sent.
        filename: As sent, for display only; never used as a path.
        media_type: E.g. `image/jpeg`, read from the bytes.
        width: In pixels, EXIF orientation applied.
        height: In pixels, EXIF orientation applied.
        bytes: Size of the file as sent.
        metadata: The caller's JSON object.
        created_at: ISO 8601 in UTC, when the id first appeared.
        updated_at: ISO 8601 in UTC, the last change of picture or metadata.
        source: Absolute path of a file that is referred to in place, or None.
    """

    collection: str
    id: str
    sha256: str
    filename: str
    media_type: str
    width: int
    height: int
    bytes: int
    metadata: Metadata = field(default_factory=dict)
    created_at: str
    updated_at: str
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """A picture on its way into a store; fields as in `ImageRecord`.

    `metadata` None means that none was sent: what is stored under the id already is kept.
    """

    id: str
    sha256: str
    filename: str
    media_type: str
    width: int
    height: int
    bytes: int
    metadata: Metadata | None = None
    source: str | None = None


class OnConflict(StrEnum):
    """What to do with an id that exists."""

    REPLACE = "replace"
    SKIP = "skip"
    ERROR = "error"


class PutStatus(StrEnum):
    """What became of one picture that was put."""

    CREATED = "created"
    REPLACED = "replaced"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    CONFLICT = "conflict"


class DuplicateKind(StrEnum):
    """In what way pictures are duplicates, the strictest first.

    `exact`: the same bytes. `reencoded`: the same picture re-encoded or resized, which the pixels
    confirm. `near`: alike by their vectors, which says nothing about being the same picture.
    """

    EXACT = "exact"
    REENCODED = "reencoded"
    NEAR = "near"


@dataclass(frozen=True, slots=True)
class PutOutcome:
    """What became of one picture, and the row that now stands under its id."""

    status: PutStatus
    record: ImageRecord


@dataclass(frozen=True, slots=True)
class Match:
    """One answer to a query.

    Attributes:
        rank: 1 for the best.
        score: Cosine similarity in [-1, 1]; higher is better.
        record: The picture that was found.
    """

    rank: int
    score: float
    record: ImageRecord

    def __post_init__(self) -> None:
        """Checks the ranges; raises ValueError."""
        if self.rank < 1 or not -1.0 <= self.score <= 1.0:
            raise ValueError(f"rank {self.rank} or score {self.score} is out of range")

    @property
    def distance(self) -> float:
        """Euclidean distance of the two unit vectors: sqrt(2 - 2 score)."""
        return math.sqrt(max(0.0, 2.0 - 2.0 * self.score))


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a collection's pictures, and where the next one starts (None: at the end)."""

    records: list[ImageRecord]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionInfo:
    """A collection as `GET /collections` shows it.

    Attributes:
        name: The collection's name.
        count: Pictures in it.
        spec: What made its active vectors.
        provenance: Recorded beside the spec: precision, runtime, library versions.
        index: The index type, e.g. `Flat`.
        created_at: ISO 8601 in UTC.
    """

    name: str
    count: int
    spec: ModelSpec
    provenance: Mapping[str, str]
    index: str
    created_at: str
