"""What an `upsert` comes to: decided here for every store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lookalike.records import ImageRecord, Metadata, NewImage, OnConflict, PutOutcome, PutStatus
from lookalike.store.metadata import canonical_json


def settle_known(
    existing: ImageRecord | None,
    image: NewImage,
    on_conflict: OnConflict,
    write: Callable[[Metadata], ImageRecord],
) -> PutOutcome | None:
    """`Store.upsert_known`, given the row under the image's id; `write` replaces its metadata."""
    status = decide(existing, image, on_conflict)
    if existing is None or status is PutStatus.REPLACED:
        return None
    if status is PutStatus.UPDATED and image.metadata is not None:
        existing = write(image.metadata)
    return PutOutcome(status, existing)


def decide(existing: ImageRecord | None, image: NewImage, on_conflict: OnConflict) -> PutStatus:
    """What an `upsert` of `image` has to do, given the row that stands under its id.

    The same bytes with no or equal metadata are `unchanged`, with other metadata `updated`; other
    bytes are `replaced`. `skip` leaves whatever exists alone. `error` refuses every change, but
    sending the very same again is no change.
    """
    if existing is None:
        return PutStatus.CREATED
    if on_conflict is OnConflict.SKIP:
        return PutStatus.SKIPPED
    same_bytes = existing.sha256 == image.sha256
    if same_bytes and (image.metadata is None or _equal(image.metadata, existing.metadata)):
        return PutStatus.UNCHANGED
    if on_conflict is OnConflict.ERROR:
        return PutStatus.CONFLICT
    return PutStatus.UPDATED if same_bytes else PutStatus.REPLACED


def put_outcome(
    collection: str,
    existing: ImageRecord | None,
    image: NewImage,
    *,
    on_conflict: OnConflict,
    now: str,
) -> PutOutcome:
    """What an `upsert` of `image` comes to, and the row that stands under its id afterwards.

    A replaced picture keeps the day it was created, and its metadata where none was sent.
    """
    status = decide(existing, image, on_conflict)
    if existing is None or status is PutStatus.REPLACED:
        kept = existing.metadata if existing else {}
        record = ImageRecord(
            collection=collection,
            id=image.id,
            sha256=image.sha256,
            filename=image.filename,
            media_type=image.media_type,
            width=image.width,
            height=image.height,
            bytes=image.bytes,
            metadata=dict(kept if image.metadata is None else image.metadata),
            created_at=existing.created_at if existing else now,
            updated_at=now,
            source=image.source,
        )
    elif status is PutStatus.UPDATED:
        record = replace(existing, metadata=dict(image.metadata or {}), updated_at=now)
    else:
        record = existing
    return PutOutcome(status, record)


def _equal(left: Metadata, right: Metadata) -> bool:
    return canonical_json(left) == canonical_json(right)
