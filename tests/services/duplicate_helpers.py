"""A small collection whose duplicates are known, and the plain definition of its groups."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

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


CAMERA = {1, 7}
"""Contents that a camera wrote, by their EXIF data."""


def _files(number: int) -> tuple[bytes, bytes]:
    """An original and its thumbnail: 2 n and 2 n + 1 show the same, and the latter was saved again.

    Such pairs have as many pixels, and the one that was saved again has more bytes.
    """
    image = draw(Sample("mug", number // 2, 0), size=(96, 72))
    exif = Image.Exif()
    if number in CAMERA:
        exif[ExifTags.Base.Make] = "Canon"
    file = BytesIO()
    image.save(file, "JPEG" if number % 2 else "PNG", exif=exif)
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
    size = content // 2 % 3 + 1
    image = replace(
        new_image(image_id),
        sha256=DIGESTS[content],
        media_type="image/jpeg",
        width=8 * size,
        height=6 * size,
        bytes=100 + content % 2,
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

    def alike(one: ImageRecord, other: ImageRecord) -> bool:
        own, score = kind_of(one, other)
        enough = own is DuplicateKind.EXACT or score >= threshold
        return enough and KINDS.index(own) <= KINDS.index(kind)

    left = sorted(records, key=keep_order)
    stars = []
    while left:
        star, *others = left
        group = [star, *(other for other in others if alike(star, other))]
        left = [record for record in others if record not in group]
        if len(group) > 1:
            stars.append(group)
    groups = []
    for star, *others in sorted(stars, key=lambda group: (-len(group), group[0].id)):
        keep = plain_best([star, *others], alike)
        members = []
        for one in (star, *others):
            if one.id != keep.id:
                own, score = kind_of(keep, one)
                members.append((one.id, own.value, score))
        members.sort(key=lambda m: (KINDS.index(DuplicateKind(m[1])), -m[2], m[0]))
        groups.append((keep.id, members))
    return groups


def plain_best(
    group: list[ImageRecord], alike: Callable[[ImageRecord, ImageRecord], bool]
) -> ImageRecord:
    """The definition of what is kept: the best of those that may stand for the whole group."""
    star = group[0]

    def same(one: ImageRecord) -> int:
        return len({o.sha256 for o in group if SHOWS[o.sha256] == SHOWS[one.sha256]})

    def is_made(one: ImageRecord) -> bool:
        number = DIGESTS.index(one.sha256)
        return number % 2 == 1 and DIGESTS[number - 1] in {other.sha256 for other in group}

    def rank(one: ImageRecord) -> tuple[object, ...]:
        copies = [other for other in group if other.sha256 == one.sha256]
        content_age = min(other.created_at for other in copies)
        first_id = min(copies, key=keep_order).id
        is_camera = DIGESTS.index(one.sha256) in CAMERA
        facts = (is_made(one), not is_camera, content_age, -one.bytes, first_id)
        return (*facts, one.created_at, one.id)

    rivals = [
        one
        for one in group
        if one.pixels == star.pixels and all(alike(one, other) for other in group)
        if same(one) >= same(star)
    ]
    return min(rivals, key=rank)
