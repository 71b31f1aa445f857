"""Deleting what a folder or a manifest no longer has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.errors import LookalikeError
from lookalike.media.manifests import Manifest, is_manifest
from lookalike.media.sources import PictureSource, Selection, root_of, walk
from lookalike.records import Place, counted
from lookalike.services.indexing import ID_LENGTH
from lookalike.store.base import Store

_BATCH = 1000  # pictures that are looked up at once


@dataclass(frozen=True, slots=True)
class Listed:
    """What a folder or a manifest names now.

    Attributes:
        root: What the places of its pictures are below.
        files: By the path of each place: the id that is given, and the file if it is one.
        doubt: Why it may name more than could be seen; None if it was read whole.
    """

    root: str
    files: Mapping[str, tuple[str | None, Path | None]]
    doubt: str | None

    @classmethod
    def of(cls, path: Path, exclude: Sequence[str] = ()) -> Listed:
        """Reads a manifest's rows, or walks a folder; raises as `Manifest` and `walk` do."""
        files: dict[str, tuple[str | None, Path | None]] = {}
        doubt = None
        if is_manifest(path):
            for row in Manifest(path).rows():
                if row.error is None:
                    files[row.name] = row.id, row.path
                elif row.name:  # it fails, and its picture stays
                    files.setdefault(row.name, (None, None))
                else:
                    doubt = doubt or f"line {row.line} cannot be read ({row.error})"
        else:
            for found in walk([path], selection=Selection(exclude)):
                if found.error is None:
                    files[found.place.path] = None, found.path
                else:
                    doubt = doubt or f"{found.path} cannot be read ({found.error})"
        if not files:
            doubt = doubt or "no picture is named there, as if a disk were not mounted"
        return cls(root_of(path), files, doubt)

    def expected(self, before: Mapping[str, str]) -> dict[str, str]:
        """What `Store.seen` would say once all of it was indexed; an address keeps its picture."""
        after = dict(before)
        for name, (image_id, path) in self.files.items():
            try:
                made = None if path is None else PictureSource.from_path(path).sha256()[:ID_LENGTH]
            except LookalikeError:  # it fails, and its picture stays
                made = None
            after[name] = image_id or made or before.get(name) or name
        return after


@dataclass(frozen=True, slots=True)
class Gone:
    """Pictures to delete, by id with a path each, and places of others to forget."""

    pictures: dict[str, str] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    known: int = 0  # pictures that earlier runs brought from there

    def refusal(self, listed: Listed, most: float, *, dry_run: bool = False) -> str | None:
        """Why nothing is deleted; None if all is well, or nothing is gone."""
        if not self.pictures and not self.places:
            return None
        nothing = "nothing would be deleted" if dry_run else "nothing was deleted"
        if listed.doubt is not None:
            return f"{nothing}, because {listed.doubt}"
        if len(self.pictures) > most * self.known:
            return (
                f"{nothing}: {counted(len(self.pictures), 'picture')} of {self.known:,} would go; "
                "--delete-most deletes them"
            )
        return None


def find_gone(
    store: Store,
    collection: str,
    listed: Listed,
    before: Mapping[str, str],
    after: Mapping[str, str],
) -> Gone:
    """What was brought from there and is not there any more.

    `before` and `after` are what `Store.seen` says before the run and after it. A picture that was
    seen elsewhere, too, or was sent without a path, only loses its places there.
    """
    gone = Gone(known=len(set(before.values())))
    left = {path: image_id for path, image_id in after.items() if path not in listed.files}
    moved = {
        path: image_id for path, image_id in before.items() if after.get(path, image_id) != image_id
    }
    kept = {image_id for path, image_id in after.items() if path in listed.files}
    paths = {image_id: path for path, image_id in (*moved.items(), *left.items())}
    gone.places.extend(Place(listed.root, path) for path in left)
    for ids in _batches([image_id for image_id in paths if image_id not in kept]):
        places, found = store.places(collection, ids), store.find(collection, ids)
        sent = store.uploaded(collection, ids)
        for image_id in found:
            elsewhere = any(place.root != listed.root for place in places.get(image_id, ()))
            if image_id not in sent and not elsewhere:
                gone.pictures[image_id] = paths[image_id]
    return gone


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))
