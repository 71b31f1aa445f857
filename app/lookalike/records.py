"""What crosses the borders between the parts: frozen, plain, validated where built.

Ids, collection names and cursors are checked here, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlencode

from lookalike.errors import InvalidCollectionNameError, InvalidIdError, InvalidParameterError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Metadata = Mapping[str, Any]
"""A JSON object: what the caller stores with a picture."""


class Access(StrEnum):
    """What a key may do. Each scope includes those before it."""

    READ = "read"  # search, and look at everything but jobs and keys
    WRITE = "write"  # also index, change and delete pictures
    ADMIN = "admin"  # also what concerns whole collections, and the service itself

    def includes(self, other: Access) -> bool:
        """Whether a key of this scope may do what needs another."""
        scopes = list(Access)
        return scopes.index(self) >= scopes.index(other)


DEFAULT_COLLECTION = "default"
MOST_CHANGED = 1000  # pictures that one call changes or deletes
SHOWN = 10  # of them, in a dry run


def without_defaults(instance: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default.

    Digests and keys are made of these alone, so that adding a field with a default changes none.
    """
    values = {each: getattr(instance, each.name) for each in fields(instance)}
    return {each.name: value for each, value in values.items() if value != each.default}


MOST_RESIZED = 16_000_000
"""Pixels; a picture that `crop` would enlarge beyond is cut before it is resized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How a picture becomes a network's input. Never change a default: digests leave it out.

    A raised `version` says that the same file comes out as other pixels; JSON and errors call it
    `preprocessing`.
    """

    input_size: int = 224  # side of the square input, in pixels
    resize: str = "squash"  # ignores proportions; `crop`: the center square; `pad`: adds a border
    crop_share: float = 0.875  # with `crop`: `input_size` by the shorter side before cutting
    interpolation: str = "bilinear"  # Pillow's name of the resampling filter, in lower case
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # subtracted, red first, on a scale of 0 to 1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)  # what each channel is then divided by
    padding: tuple[int, ...] = (0, 0, 0)  # color of the border: red, green, blue, 0 to 255
    version: int = 1

    def __post_init__(self) -> None:
        """Brings equal numbers to one type, so that they have one digest."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "padding", tuple(self.padding))
        object.__setattr__(self, "crop_share", float(self.crop_share))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that a picture is resized to, before `crop` cuts and `pad` adds."""
        if self.resize == "squash":
            return self.input_size, self.input_size
        if self.resize == "pad":
            width, height = (max(1, round(self.input_size * one / max(size))) for one in size)
        else:
            short = round(self.input_size / self.crop_share)
            width, height = (int(short * one / min(size)) for one in size)
        return width, height

    def seen(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of a picture that fills the input: left, top, right, bottom by its size.

        All from 0 to 1 but for the border of `pad`, which lies outside of the picture.
        """
        width, height = self.resized(size)
        side = self.input_size
        if self.resize == "pad":
            left, top = -((side - width) // 2), -((side - height) // 2)
        else:
            left, top = round((width - side) / 2), round((height - side) / 2)
        return left / width, top / height, (left + side) / width, (top + side) / height


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
        if self == other:  # at every search
            return {}
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
        given = {_FIELDS.get(name, name): value for name, value in values.items()}

        def of(kind: type[DataclassInstance]) -> dict[str, Any]:
            return {each.name: given[each.name] for each in fields(kind) if each.name in given}

        return cls(**of(cls), preprocess=Preprocess(**of(Preprocess)))

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return _canonical(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Reads what `to_json` wrote; fields that are not known are ignored."""
        return _read_spec(text)

    @property
    def digest(self) -> str:
        """16 hex digits over everything that must agree; a field at its default is left out."""
        return _digest_of(self)


@lru_cache(maxsize=256)  # every search reads its collection's spec
def _read_spec(text: str) -> ModelSpec:
    spec = ModelSpec.from_dict(json.loads(text))
    hash(spec)  # raises TypeError where a field holds a list or an object
    return spec


@lru_cache(maxsize=256)
def _digest_of(spec: ModelSpec) -> str:
    given = _flat(without_defaults(spec), without_defaults(spec.preprocess))
    given.pop("weights")
    return hashlib.sha256(_canonical(given).encode()).hexdigest()[:16]


_FIELDS = {"preprocessing": "version"}
"""Names in JSON that are not those of the fields."""


def _flat(spec: dict[str, Any], preprocess: dict[str, Any]) -> dict[str, Any]:
    """One JSON object of a spec's fields and its preprocessing's."""
    names = {field: name for name, field in _FIELDS.items()}
    merged = spec | {names.get(name, name): value for name, value in preprocess.items()}
    merged.pop("preprocess", None)
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in merged.items()
    }


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def nfc(text: str) -> str:
    """A text in composed Unicode (NFC): the one form of names, labels and metadata."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def composed(value: Any) -> Any:
    """A JSON value, all of whose texts and keys are in composed Unicode (NFC)."""
    if isinstance(value, str):
        return nfc(value)
    if isinstance(value, list):
        return [composed(item) for item in value]
    if isinstance(value, Mapping):
        return {nfc(key): composed(item) for key, item in value.items()}
    return value


def canonical_json(metadata: Metadata) -> str:
    """One text for equal metadata: sorted keys, no spaces; true and 1 stay apart."""
    return json.dumps(
        metadata, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture's bytes were seen: a file below a folder or inside an archive.

    Two places are the same file if their `location` agrees, whatever root each was indexed from.
    """

    root: str  # absolute folder that was indexed, or the archive's name; empty if nobody said
    path: str  # below the root, with `/`

    @property
    def location(self) -> str:
        """Root and path together."""
        return f"{self.root.rstrip('/')}/{self.path}"


MAX_COPIES = 100
"""Most other places that a record lists; `Store.places` gives all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """A picture on its way into a store."""

    id: str  # unique within the collection
    sha256: str  # hex digest of the file's bytes as sent
    filename: str  # as sent, for display only; never used as a path
    media_type: str  # e.g. `image/jpeg`, read from the bytes
    width: int  # in pixels, EXIF orientation applied
    height: int
    bytes: int  # size of the file as sent
    metadata: Metadata | None = None  # None keeps what is stored under the id already
    source: str | None = None  # absolute path of a file that is referred to in place
    place: Place | None = None  # where these bytes were seen, where that is known
    created_at: str | None = None  # of a new row that was one before, elsewhere; None is now
    updated_at: str | None = None

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord(NewImage):
    """One stored picture, without its vector; `place` is where its bytes were seen first."""

    others: tuple[Place, ...] = ()  # where they were seen later, at most `MAX_COPIES`
    collection: str  # the collection's name
    metadata: Metadata = field(default_factory=dict)
    created_at: str  # ISO 8601 in UTC, when the id first appeared
    updated_at: str  # ISO 8601 in UTC, the last change of picture or metadata

    @property
    def path(self) -> str | None:
        """The path of its first place; None if no place is known."""
        return None if self.place is None else self.place.path

    @property
    def copies(self) -> list[str]:
        """The paths of its other places."""
        return [place.path for place in self.others]

    @property
    def places(self) -> tuple[Place, ...]:
        """All places that are listed here, the first one first."""
        return () if self.place is None else (self.place, *self.others)

    @property
    def version(self) -> str:
        """What names its content in links."""
        return self.sha256[:16]

    @property
    def image_url(self) -> str:
        """Where a service answers its file, below the service's root."""
        return self._url("file")

    @property
    def thumbnail_url(self) -> str:
        """Where a service answers its thumbnail, below the service's root."""
        return self._url("thumbnail")

    def _url(self, part: str) -> str:
        query = urlencode({"collection": self.collection, "v": self.version})
        return f"/images/{quote(self.id)}/{part}?{query}"


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


class Why(StrEnum):
    """What decided that a picture is the one of its group to keep; the strongest reason first.

    `MADE_FROM` means that another file was saved again from this one, as the pixels show.
    """

    PIXELS = "most pixels"
    CENTER = "like all others"
    MADE_FROM = "not saved again"
    CAMERA = "from a camera"
    OLDER = "oldest"
    BYTES = "most bytes"
    PATH = "shortest path"
    ID = "first id"


@dataclass(frozen=True, slots=True)
class PutOutcome:
    """What became of one picture, and the row that now stands under its id."""

    status: PutStatus
    record: ImageRecord
    # Other metadata was sent with the same bytes at another place; what was stored first stays.
    kept_metadata: bool = False


MAX_FACETS = 32  # fields that `Store.facets` takes by itself
MAX_LISTED = 256  # characters of a text that a facet lists


@dataclass(frozen=True, slots=True)
class FacetValue:
    """A value of a field, and how many pictures have it; 1.0 is 1, and text is in NFC."""

    value: str | float | bool | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """What pictures have under a field. A picture with a list has each of its items."""

    field: str
    count: int  # pictures that have the field
    distinct: int  # different texts, numbers, truth values and null
    # The most frequent ones; of equally frequent ones texts, then numbers, then false, true and
    # null, the smallest first. Texts of more than `MAX_LISTED` characters are left out.
    values: tuple[FacetValue, ...]
    numbers: tuple[float, float] | None  # the smallest and the largest number
    dates: tuple[str, str] | None  # the first and the last date, if all texts are dates


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """What some pictures have under some fields."""

    count: int  # pictures that pass
    fields: int  # fields that these have in all, or that were asked for
    facets: list[Facet]


@dataclass(frozen=True, slots=True)
class Match:
    """One answer to a query."""

    rank: int  # 1 for the best
    score: float  # cosine similarity in [-1, 1]; higher is better
    record: ImageRecord
    copy_probability: float | None = None  # None where the scores are not calibrated

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
    """A collection as `GET /collections` shows it."""

    name: str
    count: int  # pictures in it
    spec: ModelSpec  # what made its active vectors
    provenance: Mapping[str, str]  # beside the spec: precision, runtime, library versions
    index: str  # the index type, e.g. `Flat`
    created_at: str  # ISO 8601 in UTC
    exact: bool = True  # whether searches score every picture, so that no match can be missed
    aliases: Sequence[str] = ()  # its other names


def sha256_of(file: BinaryIO, step: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of everything from where the file stands, as hex digits.

    `step` is called for each block that is read; it may raise to end the reading.
    """
    digest = hashlib.sha256()
    while block := file.read(2**18):
        step()
        digest.update(block)
    return digest.hexdigest()


def file_sha256(path: Path, step: Callable[[], None] = lambda: None) -> str:
    """As `sha256_of` of a whole file. Raises `OSError`."""
    with path.open("rb") as file:
        return sha256_of(file, step)


def is_digest(text: str) -> bool:
    """Whether a text may be what `sha256_of` gives, as the name of an original is."""
    return bool(_DIGEST.fullmatch(text))


MAX_SEQ = 2**63 - 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
_COLLECTION = re.compile(r"[a-z][a-z0-9_]{0,62}")
_CURSOR = re.compile(r"c([0-9a-f]{1,16})")


def check_id(value: str) -> str:
    """Gives a picture's id back; raises `InvalidIdError` where it cannot be one."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidIdError(
            f"{_shown(value)} is no id: use 1 to 128 letters, digits or . _ ~ -, "
            "starting with a letter or digit"
        )
    return value


def check_collection_name(value: str) -> str:
    """Gives a collection's name back; raises `InvalidCollectionNameError` where it is none."""
    if not isinstance(value, str) or not _COLLECTION.fullmatch(value):
        raise InvalidCollectionNameError(
            f"{_shown(value)} is no collection name: use 1 to 63 lower-case letters, digits "
            "or _, starting with a letter"
        )
    return value


def encode_cursor(seq: int) -> str:
    """The cursor that continues after the row `seq`."""
    return f"c{seq:x}"


def decode_cursor(cursor: str | None) -> int:
    """The row to continue after; 0 at the start. Raises `InvalidParameterError`."""
    if cursor is None:
        return 0
    found = _CURSOR.fullmatch(cursor)
    seq = int(found[1], 16) if found else MAX_SEQ + 1
    if seq > MAX_SEQ:
        raise InvalidParameterError(
            f"{_shown(cursor)} is no cursor: use the one that the previous page gave, or none"
        )
    return seq


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


LIMITS = {"nprobe": 65_536, "ef_search": 65_536, "k_factor": 1_000}
"""The parameters that are numbers, each with its maximum; the minimum is 1."""

_PAIR = re.compile(r"\s*([a-z_]+)\s*=\s*(\d{1,9})\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Search parameters. None leaves the choice to the index; a type ignores those it lacks.

    Raises `InvalidParameterError` if a number is out of range.
    """

    nprobe: int | None = None  # lists of an inverted file (IVF) that are visited
    ef_search: int | None = None  # candidates that an HNSW graph keeps while it searches
    k_factor: int | None = None  # candidates that are scored exactly, for each match wanted
    exact: bool = False  # score every picture; the other parameters then do nothing

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise InvalidParameterError(f"{name} is {value}; choose a number from 1 to {most}")

    @classmethod
    def parse(cls, text: str | None) -> Effort:
        """Parses `nprobe=16,k_factor=4`, or an empty text. Raises `InvalidParameterError`."""
        values: dict[str, Any] = {}
        for pair in text.split(",") if text and text.strip() else []:
            found = _PAIR.fullmatch(pair)
            if not found or found[1] not in LIMITS or found[1] in values:
                raise InvalidParameterError(
                    f"{ascii(pair)[:80]} is no search parameter: write each of "
                    f"{', '.join(LIMITS)} at most once, e.g. nprobe=16,k_factor=4"
                )
            values[found[1]] = int(found[2])
        return cls(**values)

    def over(self, defaults: Effort) -> Effort:
        """These parameters, with those not given taken from `defaults`."""
        mine = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(defaults, **{name: v for name, v in mine.items() if v is not None})

    def __str__(self) -> str:
        """The text that `parse` reads, or `exact`."""
        if self.exact:
            return "exact"
        given = ((name, getattr(self, name)) for name in LIMITS)
        return ",".join(f"{name}={value}" for name, value in given if value is not None)


_KEY = re.compile(r"lk_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")  # of `AccessService`: id and secret


def key_id(text: str) -> str:
    """The id in a key; another text stays as it is."""
    found = _KEY.fullmatch(text)
    return found[1] if found else text


def redacted(text: str) -> str:
    """A text without the secret of any key in it."""
    return _KEY.sub(r"lk_\1_...", text) if "lk_" in text else text


def counted(count: int, one: str) -> str:
    """A count with its noun: `1 group`, `2,000 groups`."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def utc_text(moment: datetime) -> str:
    """A moment as rows record it: ISO 8601 in UTC, milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_now() -> str:
    """This moment as rows record it."""
    return utc_text(datetime.now(UTC))


def read_utc(text: str) -> str:
    """A moment in any form of ISO 8601 as rows record it; UTC if it names no zone.

    Raises ValueError.
    """
    moment = datetime.fromisoformat(text)
    try:
        return utc_text(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except OverflowError as exc:
        raise ValueError(f"{text} is out of range") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong with what is stored."""

    kind: str  # database, counter, vector, index, head, original, thumbnail or orphan
    text: str  # what is wrong, and what to do if a repair cannot mend it
    collection: str | None = None
    id: str | None = None  # a picture's; of an orphan, the digest that names its files
