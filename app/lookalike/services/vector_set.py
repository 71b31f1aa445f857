"""Pictures with their vectors in memory: those of a dataset, a collection or a sample of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import InvalidParameterError, LookalikeError
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import ImageRecord, ModelSpec, nfc
from lookalike.services.pictures import PictureService, warnings_of
from lookalike.services.search import group_key
from lookalike.store.base import Store, Vectors, scan, unknown_collection
from lookalike.store.filters import MISSING, Filter, value_of


class PictureReader(Protocol):
    """Opens a picture of a set by its position; many threads may call it at once."""

    def __call__(self, position: int, *, size: int) -> Image.Image:
        """An upright RGB picture; no side is reduced below `size` pixels.

        Raises `LookalikeError` if the file is gone, or cannot be read any more.
        """


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that is not in the set, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSet:
    """N pictures and their vectors; position i is the same picture everywhere."""

    name: str  # of the dataset or the collection, for titles
    spec: ModelSpec
    provenance: Mapping[str, str]  # recorded beside the spec: precision, runtime, device
    vectors: NDArray[np.float32]  # (N, dim), rows of length 1; perhaps a read-only memory map
    ids: Sequence[str]  # each different: the path in the dataset, or the id
    names: Sequence[str]  # for display
    labels: Sequence[str] | None
    sha256s: Sequence[str]  # of the files
    picture: PictureReader
    skipped: Sequence[Skipped] = ()  # pictures that could not be read

    def __post_init__(self) -> None:
        lengths = {len(self.vectors), len(self.ids), len(self.names), len(self.sha256s)}
        if self.labels is not None:
            lengths.add(len(self.labels))
        if len(lengths) != 1:
            raise ValueError(f"the parts of a vector set have different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.vectors)

    def part(self, positions: NDArray[np.int64], *, name: str | None = None) -> VectorSet:
        """Some pictures of the set, in the order of their positions."""
        chosen: list[int] = positions.tolist()

        def picture(position: int, *, size: int) -> Image.Image:
            return self.picture(chosen[position], size=size)

        return replace(
            self,
            name=name or self.name,
            vectors=np.array(self.vectors[positions], dtype=np.float32),
            ids=[self.ids[position] for position in chosen],
            names=[self.names[position] for position in chosen],
            labels=None if self.labels is None else [self.labels[position] for position in chosen],
            sha256s=[self.sha256s[position] for position in chosen],
            picture=picture,
            skipped=(),
        )

    def picture_or_none(self, position: int, *, size: int) -> Image.Image | None:
        """As `picture`; None for one that cannot be read any more."""
        try:
            return self.picture(position, size=size)
        except LookalikeError:
            return None


def stored_vectors(
    store: Store,
    pictures: PictureService,
    collection: str,
    *,
    label_field: str | None = None,
    where: Filter | None = None,
) -> VectorSet:
    """Reads the rows and vectors of those pictures of a collection that pass a filter into memory.

    `label_field` names the metadata field that says what a picture shows; pictures without it are
    skipped. None for no labels.

    Raises:
        CollectionNotFoundError: There is no such collection.
        InvalidParameterError: No picture has the field, or none passes.
    """
    info = store.collection(collection)
    if info is None:
        raise unknown_collection(collection)
    label_field = label_field and nfc(label_field)
    records: list[ImageRecord] = []
    skipped: list[Skipped] = []
    fields: Counter[str] = Counter()
    vectors = np.empty((info.count, info.spec.dim), dtype=np.float32)
    for block in scan(store, collection, where=where):
        for record, vector in zip(block.records, block.vectors, strict=True):
            fields.update(record.metadata.keys())
            if label_field is not None and value_of(record.metadata, label_field) is MISSING:
                skipped.append(Skipped(record.id, f"has no metadata field {label_field!r}"))
            elif len(records) < len(vectors):  # what came since it was counted is left out
                vectors[len(records)] = vector
                records.append(record)
    if not records:
        known = ", ".join(name for name, _ in fields.most_common(10)) or "none"
        if where is not None and not skipped:
            text = f"No picture of the collection {collection!r} passes the filter; widen it"
            text = "; ".join([text, *warnings_of(store, collection, where)])
        elif label_field is None:
            text = f"The collection {collection!r} is empty; index some pictures first"
        else:
            text = (
                f"No picture of the collection {collection!r} has the metadata field "
                f"{label_field!r}; the fields there are: {known}"
            )
        raise InvalidParameterError(text)
    ids = [record.id for record in records]

    def picture(position: int, *, size: int) -> Image.Image:
        return pictures.open(collection, ids[position], size=size)

    return VectorSet(
        name=collection,
        spec=info.spec,
        provenance=info.provenance,
        vectors=vectors[: len(records)],
        ids=ids,
        names=[record.filename for record in records],
        labels=None
        if label_field is None
        else [_label(value_of(record.metadata, label_field)) for record in records],
        sha256s=[record.sha256 for record in records],
        picture=picture,
        skipped=skipped,
    )


def _label(value: Any) -> str:
    return nfc(value) if isinstance(value, str) else group_key(value)


def sample_records(
    store: Store,
    collection: str,
    *,
    most: int,
    seed: int = 0,
    where: Filter | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[ImageRecord]:
    """At most `most` pictures that pass, chosen by the seed, in random order; each as likely.

    Reads every row that passes (Vitter's algorithm R), and holds no more than the sample.
    """
    rng = np.random.default_rng(seed)
    chosen: list[ImageRecord] = []
    seen = 0
    for page in scan(store, collection, where=where, vectors=False):
        progress.check()
        for record in page.records:
            seen += 1
            if len(chosen) < most:
                chosen.append(record)
            elif (place := int(rng.integers(seen))) < most:
                chosen[place] = record
    return [chosen[place] for place in rng.permutation(len(chosen))]


def sample_vectors(
    store: Store,
    collection: str,
    *,
    most: int,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Vectors:
    """At most `most` vectors of a collection, chosen by the seed, oldest first.

    Returns (N, dim) float32, C-contiguous, rows of length 1. Raises `CollectionNotFoundError`.
    """
    info = store.collection(collection)
    if info is None:
        raise unknown_collection(collection)
    count = info.count
    wanted = np.zeros(count, dtype=np.bool_)
    wanted[np.random.default_rng(seed).permutation(count)[:most]] = True
    vectors = np.empty((int(wanted.sum()), info.spec.dim), dtype=np.float32)
    passed = filled = 0
    for block in scan(store, collection):
        here = wanted[passed : passed + len(block.vectors)]  # what came since is left out
        chosen = block.vectors[: len(here)][here]
        vectors[filled : filled + len(chosen)] = chosen
        passed, filled = passed + len(here), filled + len(chosen)
        progress.report(passed, count)
        progress.check()
    return vectors[:filled]
