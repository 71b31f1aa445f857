"""Deleting what a folder or a manifest no longer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.errors import LookalikeError
from lookalike.media.manifests import Manifest, is_manifest
from lookalike.media.sources import PictureSource, Selection, root_of, walk
from lookalike.records import Place, counted
from lookalike.services.indexing import ID_LENGTH
from lookalike.store.base import Store

UNKNOWN = "?"  # no id begins with it


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
        """What `Store.seen` would say once all of it was indexed; an address keeps its picture.

        What begins with `UNKNOWN` stands for the id of a picture that only indexing can tell.
        """
        after = dict(before)
        for name, (image_id, path) in self.files.items():
            try:
                made = None if path is None else PictureSource.from_path(path).sha256()[:ID_LENGTH]
            except LookalikeError:  # it fails, and its picture stays
                made = None
            after[name] = image_id or made or before.get(name) or f"{UNKNOWN}{name}"
        return after


@dataclass(frozen=True, slots=True)
class Gone:
    """What a folder or a manifest no longer has.

    Attributes:
        pictures: Ids of pictures that lie at none of its paths any more, with a path each. Those
            that lie elsewhere, too, or were sent without a path, stay.
        paths: Paths below its root where they lay.
        known: How many pictures earlier runs brought from there.
    """

    pictures: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    known: int = 0

    def refusal(self, listed: Listed, count: int, most: float, *, dry_run: bool) -> str | None:
        """Why nothing is deleted, if `count` pictures would be; None if all is well."""
        if not count and not self.paths:
            return None
        nothing = "nothing would be deleted" if dry_run else "nothing was deleted"
        if listed.doubt is not None:
            return f"{nothing}, because {listed.doubt}"
        if count > most * self.known:
            return (
                f"{nothing}: {counted(count, 'picture')} of {self.known:,} would go; "
                "--delete-most deletes them"
            )
        return None


def find_gone(listed: Listed, before: Mapping[str, str], after: Mapping[str, str]) -> Gone:
    """Compares what `Store.seen` says before a run and after it with what is there now."""
    gone = Gone(known=len(set(before.values())))
    left = {path: image_id for path, image_id in after.items() if path not in listed.files}
    moved = {
        path: image_id for path, image_id in before.items() if after.get(path, image_id) != image_id
    }
    kept = {image_id for path, image_id in after.items() if path in listed.files}
    gone.paths.extend(left)
    for path, image_id in (*moved.items(), *left.items()):
        if image_id not in kept:
            gone.pictures[image_id] = path
    return gone


def let_go(
    store: Store,
    collection: str,
    root: str,
    *,
    ids: Sequence[str] = (),
    paths: Sequence[str] = (),
    dry_run: bool = False,
) -> list[str]:
    """Forgets paths below a root, and deletes those of the pictures that only lay there.

    A picture that lies elsewhere, too, or was sent without a path, stays. Returns the ids of those
    that are deleted; a dry run only says which would be.
    """
    places, sent = store.places(collection, ids), store.uploaded(collection, ids)
    here = [
        image_id
        for image_id in store.find(collection, ids)
        if image_id not in sent and all(one.root == root for one in places.get(image_id, ()))
    ]
    if not dry_run:
        if here:
            store.delete_many(collection, here)
        if paths:
            store.forget(collection, [Place(root, path) for path in paths])
    return here
