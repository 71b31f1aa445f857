"""Zero-shot labels: the texts that fit each picture best, written into its metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import (
    CollectionNotFoundError,
    InvalidParameterError,
    LookalikeError,
    NotReadyError,
    SpecMismatchError,
)
from lookalike.models.base import Vectors, normalize
from lookalike.models.encoders import ATTEMPTS, Encoders, LiveEncoder
from lookalike.progress import Progress
from lookalike.records import DEFAULT_COLLECTION, Metadata, check_collection_name, nfc
from lookalike.store.base import Page, Store, real_name, scan, spec_of, unknown_collection

MAX_LABELS: Final = 1000
MAX_LABEL: Final = 200
"""Characters of a label; facets list no longer ones."""

MAX_TEXTS: Final = 10_000
"""Labels times templates."""

MAX_BEST: Final = 20
_GROUP = 500  # pictures whose metadata is written together
_NAMED = 5  # labels in the sentence at the end
_DIGITS = 4  # of a score


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagging:
    """Which labels, and where they go; raises `InvalidParameterError` if that cannot be.

    Attributes:
        labels: 1 to 1,000 texts of at most 200 characters; the same one counts once.
        collection: Whose pictures.
        field: The metadata field that is written: an object of `labels`, best first, and their
            `scores`.
        templates: Texts with `{}` in the place of the label, at most 10,000 with all labels; a
            label's vector is the mean of theirs, scaled to length 1.
        k: Labels of one picture, 1 to 20.
        min_score: Labels below this cosine are left out; a picture without any loses the field.
    """

    labels: Sequence[str]
    collection: str = DEFAULT_COLLECTION
    field: str = "tags"
    templates: Sequence[str] = ("{}",)
    k: int = 1
    min_score: float | None = None

    def __post_init__(self) -> None:
        """Checks it, and brings texts to one form."""
        check_collection_name(self.collection)
        labels = tuple(dict.fromkeys(nfc(label).strip() for label in self.labels))
        templates = tuple(dict.fromkeys(map(nfc, self.templates)))
        if not 1 <= len(labels) <= MAX_LABELS:
            raise InvalidParameterError(
                f"{len(labels):,} labels are named; name from 1 to {MAX_LABELS:,}"
            )
        for label in labels:
            if not 1 <= len(label) <= MAX_LABEL:
                raise InvalidParameterError(
                    f"The label {label[:40]!r} has {len(label):,} characters; "
                    f"write from 1 to {MAX_LABEL}"
                )
        if not templates or len(templates) * len(labels) > MAX_TEXTS:
            raise InvalidParameterError(
                f"{len(templates):,} templates are named; name at least one, and so many that "
                f"with every label they are at most {MAX_TEXTS:,} texts"
            )
        for template in templates:
            if "{}" not in template:
                raise InvalidParameterError(
                    f"The template {template[:40]!r} lacks {{}}, the place of the label, as in "
                    "'a photo of a {}'"
                )
        if not 1 <= len(self.field) <= MAX_LABEL or "." in self.field:
            raise InvalidParameterError(
                f"The field {self.field[:40]!r} cannot be written: name a metadata field without "
                f"a dot, of 1 to {MAX_LABEL} characters"
            )
        if not 1 <= self.k <= MAX_BEST:
            raise InvalidParameterError(f"k is {self.k}; choose a number from 1 to {MAX_BEST}")
        if self.min_score is not None and not -1.0 <= self.min_score <= 1.0:
            raise InvalidParameterError(
                f"min_score is {self.min_score}; scores are cosines, choose from -1 to 1"
            )
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "templates", templates)
        object.__setattr__(self, "field", nfc(self.field))

    @property
    def texts(self) -> list[str]:
        """All templates of the first label, then of the next."""
        return [one.replace("{}", label) for label in self.labels for one in self.templates]


@dataclass(eq=False)
class TaggingService:
    """Labels the pictures of a collection by their stored vectors; the pictures are not read.

    What is written already is left as it is, so work that was interrupted goes on where it was.
    """

    encoders: Encoders
    store: Store
    max_metadata_bytes: int

    def parameters(self, tagging: Tagging) -> dict[str, Any]:
        """What a job needs to know.

        Raises:
            CollectionNotFoundError: There is no such collection.
            InvalidParameterError: The collection's model takes no texts, or not one of these.
        """
        tagging = self._settled(tagging)
        live = self._live(tagging.collection)
        for text in tagging.texts:
            live.encoder.prepare(text)
        info = self.store.collection(tagging.collection)
        created_at = info.created_at if info else None
        listed = {"labels": list(tagging.labels), "templates": list(tagging.templates)}
        return {**asdict(tagging), **listed, "created_at": created_at}

    def as_job(self, parameters: Mapping[str, Any], progress: Progress) -> str:
        """Calls `run` with what `parameters` returned."""
        given = dict(parameters)
        created_at = given.pop("created_at")
        tagging = Tagging(**given)
        info = self.store.collection(tagging.collection)
        if info is not None and info.created_at != created_at:
            raise CollectionNotFoundError(
                f"The collection {tagging.collection!r} was deleted and made anew since this was "
                "asked for"
            )
        return self.run(tagging, progress)

    def run(self, tagging: Tagging, progress: Progress) -> str:
        """Writes the labels; returns a sentence on how it ended.

        A picture whose metadata would be too large is an error of `progress`; the others go on.
        Raises as `parameters`, and `SpecMismatchError` if the collection's model is not live.
        """
        tagging = self._settled(tagging)
        for left in reversed(range(ATTEMPTS)):
            live = self._live(tagging.collection)
            try:
                labels = _label_vectors(tagging, live)
                return self._tag(tagging, live, labels, progress)
            except (SpecMismatchError, NotReadyError):  # perhaps it switched to another model
                if not left or self._live(tagging.collection) is live:
                    raise
        raise AssertionError("unreachable")

    def _settled(self, tagging: Tagging) -> Tagging:
        return replace(tagging, collection=real_name(self.store, tagging.collection))

    def _live(self, collection: str) -> LiveEncoder:
        live = self.encoders.following(partial(spec_of, self.store, collection))
        if live is None:
            raise unknown_collection(collection)
        return live

    def _tag(self, tagging: Tagging, live: LiveEncoder, labels: Vectors, progress: Progress) -> str:
        """Goes through the collection once; raises `SpecMismatchError` if its model changes."""
        info = self.store.collection(tagging.collection)
        total, seen, written = info.count if info else 0, 0, 0
        best: Counter[str] = Counter()
        progress.check()
        for page in scan(self.store, tagging.collection):
            self._require_unmoved(tagging, live)
            for start in range(0, len(page.records), _GROUP):
                progress.check()
                found = _found(page, slice(start, start + _GROUP), labels, tagging)
                best.update(tags["labels"][0] if tags else "" for _, tags in found.values())
                written += self._write(
                    tagging,
                    {
                        image_id: {tagging.field: tags}
                        for image_id, (old, tags) in found.items()
                        if old != tags
                    },
                    progress,
                )
                seen += len(found)
                progress.report(seen, max(total, seen))
        self._require_unmoved(tagging, live)  # or the last page has labels by the one before
        without = best.pop("", 0)
        named = ", ".join(f"{label} {count:,}" for label, count in best.most_common(_NAMED))
        more = f" and {len(best) - _NAMED:,} more labels" if len(best) > _NAMED else ""
        return (
            f"{seen:,} pictures of {tagging.collection!r} were labeled in {tagging.field!r}, "
            f"{written:,} of them changed"
            + (f": {named}{more}" if named else "")
            + (f"; {without:,} without a label" if without else "")
        )

    def _require_unmoved(self, tagging: Tagging, live: LiveEncoder) -> None:
        if spec_of(self.store, tagging.collection) != live.spec:
            raise SpecMismatchError("The collection moved to another model meanwhile")

    def _write(self, tagging: Tagging, patches: Mapping[str, Metadata], progress: Progress) -> int:
        """Merges into the metadata of pictures; returns how many were changed."""
        if not patches:
            return 0
        changed = self.store.update_each(
            tagging.collection, patches, max_bytes=self.max_metadata_bytes
        )
        failed = {key: one for key, one in changed.items() if isinstance(one, LookalikeError)}
        for image_id, error in failed.items():
            progress.error(f"{image_id}: {error}")
        return len(changed) - len(failed)


def _label_vectors(tagging: Tagging, live: LiveEncoder) -> Vectors:
    """One unit vector for each label: (L, dim) float32."""
    texts = [live.encoder.prepare(text) for text in tagging.texts]
    vectors = np.stack([one.result() for one in [live.submit(text, wait=True) for text in texts]])
    per_label = vectors.reshape(len(tagging.labels), len(tagging.templates), -1)
    return normalize(per_label.mean(axis=1))


Tags = dict[str, list[Any]] | None
"""What is written of a picture: its labels and their scores; None for none."""


def _found(
    page: Page, rows: slice, labels: Vectors, tagging: Tagging
) -> dict[str, tuple[Any, Tags]]:
    """By id, what stands in the field and what should."""
    scores: NDArray[np.float32] = page.vectors[rows] @ labels.T  # (N, L)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : tagging.k]
    found: dict[str, tuple[Any, Tags]] = {}
    for record, own, at in zip(page.records[rows], scores, order, strict=True):
        least = -np.inf if tagging.min_score is None else tagging.min_score
        kept = [int(label) for label in at if own[label] >= least]
        tags: Tags = {
            "labels": [tagging.labels[label] for label in kept],
            "scores": [round(float(own[label]), _DIGITS) for label in kept],
        }
        found[record.id] = (record.metadata.get(tagging.field), tags if kept else None)
    return found
