"""A small collection whose duplicates are known, and the plain definition of its groups."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.files.disk import LocalFiles
from lookalike.media.decode import make_thumbnail
from lookalike.media.decoder import ImageDecoder
from lookalike.records import DuplicateKind, ImageRecord
from lookalike.services.duplicates import DuplicateOptions, Duplicates, DuplicateService, keep_order
from lookalike.services.pictures import PictureService
from lookalike.store.base import Store, exact_scores
from scripts.samples import Sample, draw
from tests.store.helpers import DIM, new_image, put

CONTENTS = 10
"""Pictures there can be; 2 n and 2 n + 1 show the same."""

KINDS = list(DuplicateKind)
Group = tuple[str, list[tuple[str, str, float]]]


def pool() -> np.ndarray:
    """(CONTENTS, dim) float32 vectors along a bow, with cosines from 0.8 to 1."""
    angles = np.array([0, 4, 9, 11, 16, 18, 25, 26, 33, 40]) * np.pi / 180
    rows = np.zeros((CONTENTS, DIM))
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    return rows.astype(np.float32)


POOL = pool()


def _files(number: int) -> tuple[bytes, bytes]:
    """An original and its thumbnail: 2 n and 2 n + 1 show the same."""
    image = draw(Sample("mug", number // 2, 0), size=(96, 72))
    file = BytesIO()
    image.save(file, "JPEG" if number % 2 else "PNG")
    return file.getvalue(), make_thumbnail(image)


FILES = [_files(n) for n in range(CONTENTS)]
DIGESTS = [hashlib.sha256(original).hexdigest() for original, _ in FILES]
VECTORS = dict(zip(DIGESTS, POOL, strict=True))
SHOWS = {sha256: n // 2 for n, sha256 in enumerate(DIGESTS)}


def write_files(files: LocalFiles) -> None:
    """The original and the thumbnail of each content."""
    for sha256, (original, thumbnail) in zip(DIGESTS, FILES, strict=True):
        files.put(BytesIO(original), sha256, "image/jpeg")
        files.put_thumbnail(sha256, thumbnail)


def add(store: Store, image_id: str, content: int, **options: Any) -> None:
    """Puts one picture; contents differ in pixels and bytes."""
    size = content % 3 + 1
    image = replace(
        new_image(image_id),
        sha256=DIGESTS[content],
        media_type="image/jpeg",
        width=8 * size,
        height=6 * size,
        bytes=100 + content // 4,
    )
    put(store, [image], POOL[content : content + 1], **options)


def picture_service(store: Store, folder: Path) -> PictureService:
    files = LocalFiles(folder)
    write_files(files)
    return PictureService(store, files, ImageDecoder(), max_metadata_bytes=1000)


def groups_of(found: Duplicates) -> list[Group]:
    return [
        (group.keep.id, [(m.record.id, m.kind.value, m.score) for m in group.members])
        for group in found.groups
    ]


def ready(service: DuplicateService, **options: Any) -> Duplicates:
    found = service.find(DuplicateOptions(**options))
    assert isinstance(found, Duplicates)
    return found


def kind_of(one: ImageRecord, other: ImageRecord) -> tuple[DuplicateKind, float]:
    if one.sha256 == other.sha256:
        return DuplicateKind.EXACT, 1.0
    score = float(exact_scores(VECTORS[other.sha256][None], VECTORS[one.sha256])[0])
    same = SHOWS[one.sha256] == SHOWS[other.sha256]
    return (DuplicateKind.REENCODED if same else DuplicateKind.NEAR), score


def plain_groups(
    records: list[ImageRecord], *, kind: DuplicateKind, threshold: float
) -> list[Group]:
    """The definition, picture by picture: the first one left takes all that are like it."""
    left = sorted(records, key=keep_order)
    groups = []
    while left:
        keep, *others = left
        members = []
        for other in others:
            own, score = kind_of(keep, other)
            if KINDS.index(own) <= KINDS.index(kind) and (
                own is DuplicateKind.EXACT or score >= threshold
            ):
                members.append((other.id, own.value, score))
        taken = {keep.id} | {image_id for image_id, _, _ in members}
        left = [record for record in left if record.id not in taken]
        members.sort(key=lambda m: (KINDS.index(DuplicateKind(m[1])), -m[2], m[0]))
        if members:
            groups.append((keep.id, members))
    return sorted(groups, key=lambda group: (-len(group[1]), group[0]))
