"""What a change comes to: the rules by which every store decides about the row under an id."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from lookalike.errors import InvalidMetadataError, LookalikeError, MetadataTooLargeError
from lookalike.records import (
    MAX_COPIES,
    ImageRecord,
    Metadata,
    NewImage,
    OnConflict,
    PutOutcome,
    PutStatus,
    canonical_json,
)
from lookalike.store.filters import check_metadata, merge_patch


def decide(existing: ImageRecord | None, image: NewImage, on_conflict: OnConflict) -> PutStatus:
    """What an `upsert` of `image` has to do, given the row that stands under its id.

    The same bytes with no or equal metadata are `unchanged`, with other metadata `updated`; other
    bytes are `replaced`. `skip` leaves whatever exists alone. `error` refuses every change, but
    sending the very same again is no change. The same bytes at another place than the first are a
    copy, whose metadata is not taken: `unchanged`.
    """
    if existing is None:
        return PutStatus.CREATED
    if on_conflict is OnConflict.SKIP:
        return PutStatus.SKIPPED
    same_bytes = existing.sha256 == image.sha256
    if same_bytes and _same_metadata(existing, image):
        return PutStatus.UNCHANGED
    if on_conflict is OnConflict.ERROR:
        return PutStatus.CONFLICT
    if not same_bytes:
        return PutStatus.REPLACED
    return PutStatus.UNCHANGED if is_copy(existing, image) else PutStatus.UPDATED


def _same_metadata(existing: ImageRecord, image: NewImage) -> bool:
    """Whether the metadata that was sent changes nothing."""
    sent = image.metadata
    return sent is None or canonical_json(sent) == canonical_json(existing.metadata)


def is_copy(record: ImageRecord, image: NewImage) -> bool:
    """Whether an image has a record's bytes and another place than its first."""
    if record.place is None or image.place is None or record.sha256 != image.sha256:
        return False
    return record.place.location != image.place.location


def is_upload(record: ImageRecord, image: NewImage, status: PutStatus) -> bool:
    """Whether somebody sent the bytes that a row has by now, without saying where they lie."""
    kept = status not in {PutStatus.SKIPPED, PutStatus.CONFLICT}
    return image.place is None and kept and record.sha256 == image.sha256


def put_outcome(
    collection: str,
    existing: ImageRecord | None,
    image: NewImage,
    *,
    on_conflict: OnConflict,
    now: str,
) -> PutOutcome:
    """What an `upsert` of `image` comes to, and the row that stands under its id afterwards.

    A replaced picture keeps the day it was created, and its metadata where none was sent. Times
    that the image brings are those of a new row only. Where nothing changes, the record is
    `existing` itself.
    """
    status = decide(existing, image, on_conflict)
    if existing is None or status is PutStatus.REPLACED:
        kept = existing.metadata if existing else {}
        sent = {one.name: getattr(image, one.name) for one in fields(image)}
        metadata = dict(kept if image.metadata is None else image.metadata)
        times = {"created_at": image.created_at or now, "updated_at": image.updated_at or now}
        if existing is not None:
            times = {"created_at": existing.created_at, "updated_at": now}
        record = ImageRecord(collection=collection, **sent | times | {"metadata": metadata})
        return PutOutcome(status, record)
    record = existing
    if status is PutStatus.UPDATED:
        record = replace(existing, metadata=dict(image.metadata or {}), updated_at=now)
    kept_metadata = status is PutStatus.UNCHANGED and not _same_metadata(existing, image)
    return PutOutcome(status, _seen(record, status, image), kept_metadata=kept_metadata)


def _seen(record: ImageRecord, status: PutStatus, image: NewImage) -> ImageRecord:
    """The record with one more place, if the image's bytes and place count."""
    if image.place is None or status is PutStatus.CONFLICT or record.sha256 != image.sha256:
        return record
    if any(image.place.location == place.location for place in record.places):
        return record
    if record.place is None:
        return replace(record, place=image.place)
    return replace(record, others=(*record.others, image.place)[:MAX_COPIES])


def without_places(record: ImageRecord, locations: Collection[str]) -> ImageRecord:
    """The record without those of its places; itself if it has none of them."""
    left = tuple(place for place in record.places if place.location not in locations)
    if len(left) == len(record.places):
        return record
    return replace(record, place=left[0] if left else None, others=left[1:])


def changed_metadata(
    old: Metadata, patch: Metadata, *, replace: bool, max_bytes: int
) -> dict[str, Any] | LookalikeError:
    """Metadata with a patch, or with `replace` the patch itself; or why it cannot be stored."""
    try:
        return check_metadata(patch if replace else merge_patch(old, patch), max_bytes)
    except (InvalidMetadataError, MetadataTooLargeError) as exc:
        return exc
