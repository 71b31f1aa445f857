"""What crosses the borders between the parts: frozen, plain, validated where built."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Metadata = Mapping[str, Any]
"""A JSON object: what the caller stores with a picture."""

DEFAULT_COLLECTION = "default"


def without_defaults(instance: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default.

    Digests and keys are made of these alone, so that adding a field with a default changes none.
    """
    values = {each: getattr(instance, each.name) for each in fields(instance)}
    return {each.name: value for each, value in values.items() if value != each.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How a picture becomes a network's input. Never change a default: digests leave it out.

    Attributes:
        input_size: Side of the square input, in pixels.
        resize: `squash` ignores proportions; `crop` takes the center square; `pad` shows the
            whole picture with a border around it.
        crop_share: With `crop`, `input_size` divided by the shorter side before cutting.
        interpolation: Pillow's name of the resampling filter, in lower case.
        mean: Subtracted from each channel, red first, on a scale of 0 to 1.
        std: What each channel is then divided by.
        padding: With `pad`, the border's color: red, green, blue, 0 to 255.
        version: Raised whenever the same file would come out as other pixels; `preprocessing` in
            JSON and in errors.
    """

    input_size: int = 224
    resize: str = "squash"
    crop_share: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    padding: tuple[int, ...] = (0, 0, 0)
    version: int = 1

    def __post_init__(self) -> None:
        """Brings equal numbers to one type, so that they have one digest."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "padding", tuple(self.padding))
        object.__setattr__(self, "crop_share", float(self.crop_share))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What made a set of vectors; two sets can be compared only if it agrees.

    Attributes:
        model: The network's name: `resnet50`, or the family before it, as in `timm/NAME`.
        weights: The weights' name (`IMAGENET1K_V1`, `random`) or file name. A label only: the
            same tensors under another name are the same weights, `weights_sha256` decides.
        weights_sha256: Hex digest over the state dict that is in use, without classifier; with
            `int8`, over that digest and the pictures that it was calibrated on.
        head: The embedding head's digest, or None.
        pooling: `avg` or `flatten`.
        preprocess: What happens to a picture before the network.
        dim: Numbers in a vector.
        int8: Whether the network was quantized to 8-bit integers.
    """

    model: str
    weights: str
    weights_sha256: str
    head: str | None = None
    pooling: str = "avg"
    preprocess: Preprocess = Preprocess()
    dim: int
    int8: bool = False

    def differences(self, other: ModelSpec) -> dict[str, tuple[Any, Any]]:
        """Names what keeps two specs apart: field -> (own value, other's value).

        Empty means that the vectors can be compared. `weights` alone never differs; if the
        digests do, both names are given beside them.
        """
        own, others = self.to_dict(), other.to_dict()
        apart = {
            name: (value, others.get(name))
            for name, value in own.items()
            if name != "weights" and value != others.get(name)
        }
        if "weights_sha256" in apart and self.weights != other.weights:
            apart = {"weights": (self.weights, other.weights), **apart}
        return apart

    def to_dict(self) -> dict[str, Any]:
        """All fields as one flat JSON object, those of `preprocess` among them."""
        return _flat(asdict(self), asdict(self.preprocess))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Reads what `to_dict` wrote; fields that are not known are ignored."""
        given = {_JSON_NAMES.get(each.name, each.name): each.name for each in fields(Preprocess)}
        own = {each.name for each in fields(cls)} - {"preprocess"}
        return cls(
            **{name: value for name, value in values.items() if name in own},
            preprocess=Preprocess(
                **{given[name]: value for name, value in values.items() if name in given}
            ),
        )

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return _canonical(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Reads what `to_json` wrote; fields that are not known are ignored."""
        return cls.from_dict(json.loads(text))

    @property
    def digest(self) -> str:
        """16 hex digits over everything that must agree; a field at its default is left out."""
        given = _flat(without_defaults(self), without_defaults(self.preprocess))
        given.pop("weights")
        return hashlib.sha256(_canonical(given).encode()).hexdigest()[:16]


_JSON_NAMES = {"version": "preprocessing"}


def _flat(spec: dict[str, Any], preprocess: dict[str, Any]) -> dict[str, Any]:
    """One JSON object of a spec's fields and its preprocessing's."""
    merged = {name: value for name, value in spec.items() if name != "preprocess"}
    merged |= {_JSON_NAMES.get(name, name): value for name, value in preprocess.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in merged.items()
    }


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


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
        exact: Whether searches score every image, so that none of the k best can be missed.
    """

    name: str
    count: int
    spec: ModelSpec
    provenance: Mapping[str, str]
    index: str
    created_at: str
    exact: bool = True
