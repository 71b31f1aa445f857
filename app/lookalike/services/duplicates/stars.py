"""Groups of duplicates as stars: one picture to keep, and those that are directly like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.records import DuplicateKind, ImageRecord

STRICTNESS = {kind: place for place, kind in enumerate(DuplicateKind)}
"""0 for the strictest kind."""


@dataclass(frozen=True, slots=True)
class Member:
    """A picture that is a duplicate of the one to keep.

    Attributes:
        record: The picture.
        kind: What it is to the one to keep.
        score: Its cosine with the one to keep; 1 for the same bytes.
    """

    record: ImageRecord
    kind: DuplicateKind
    score: float


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """One picture to keep, and its duplicates: the strictest kinds first, then the best scores."""

    keep: ImageRecord
    members: list[Member]

    @property
    def kind(self) -> DuplicateKind:
        """The weakest kind among the members."""
        return max((member.kind for member in self.members), key=STRICTNESS.__getitem__)

    @property
    def bytes_saved(self) -> int:
        """Bytes of the files that nobody in the group needs once the members are deleted.

        Files as the service keeps them: the same bytes under two ids are one file, except where
        files are referred to in place.
        """
        files = {_file(member.record): member.record.bytes for member in self.members}
        files.pop(_file(self.keep), None)
        return sum(files.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Pairs of contents that are alike, each (E,); a pair may come twice, in either direction.

    Attributes:
        left: One content's number.
        right: The other's.
        scores: Their cosine.
        same: Whether their pixels are the same.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    scores: NDArray[np.float64]
    same: NDArray[np.bool_]


def keep_order(record: ImageRecord) -> tuple[int, int, str, str]:
    """Sorts the best picture to keep first: more pixels, larger file, older, lower id."""
    return (-record.width * record.height, -record.bytes, record.created_at, record.id)


def stars(contents: dict[int, list[ImageRecord]], edges: Edges) -> list[DuplicateGroup]:
    """Groups contents that are alike around the best of them.

    In keep-best order, the first content that is in no group yet is kept, and takes all that are
    in none and have an edge with it. So every member is directly like the one to keep, which
    connected components do not promise. No group has one picture only.

    Args:
        contents: The pictures that have each content, by number; at least one each.
        edges: Which contents are alike; those with a content that is not there are passed over.
    """
    copies = {node: sorted(records, key=keep_order) for node, records in contents.items()}
    order = sorted(copies, key=lambda node: keep_order(copies[node][0]))
    place, later, scores, same = _by_rank(order, edges)
    taken = np.zeros(len(order), dtype=np.bool_)
    groups = []
    for rank, node in enumerate(order):
        if taken[rank]:
            continue
        own = np.arange(place[rank], place[rank + 1])
        own = own[~taken[later[own]]]
        taken[later[own]] = True
        alike = [
            (copies[order[later[edge]]], bool(same[edge]), float(scores[edge])) for edge in own
        ]
        if alike or len(copies[node]) > 1:
            groups.append(_group(copies[node], alike))
    return groups


def _group(
    own: Sequence[ImageRecord], alike: Sequence[tuple[list[ImageRecord], bool, float]]
) -> DuplicateGroup:
    members = [Member(record, DuplicateKind.EXACT, 1.0) for record in own[1:]]
    for records, same, score in alike:
        kind = DuplicateKind.REENCODED if same else DuplicateKind.NEAR
        members += [Member(record, kind, score) for record in records]
    members.sort(key=lambda member: (STRICTNESS[member.kind], -member.score, member.record.id))
    return DuplicateGroup(own[0], members)


def _by_rank(
    order: Sequence[int], edges: Edges
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Each pair once, from the better rank to the other, sorted by both.

    Returns:
        Where the edges of each rank begin, (R + 1,); the other's rank, score and sameness, (E,).
    """
    numbers = [np.asarray(order, dtype=np.int64), edges.left, edges.right]
    rank = np.full(max(part.max(initial=-1) for part in numbers) + 1, -1, dtype=np.int64)
    rank[numbers[0]] = np.arange(len(order))
    ends = np.sort(np.stack([rank[edges.left], rank[edges.right]]), axis=0)  # (2, E)
    kept = np.flatnonzero((ends[0] >= 0) & (ends[0] != ends[1]))
    kept = kept[np.lexsort((ends[1, kept], ends[0, kept]))]
    ends, scores, same = ends[:, kept], edges.scores[kept], edges.same[kept]
    first = np.flatnonzero(np.any(np.diff(ends, axis=1, prepend=-1) != 0, axis=0))
    if len(first):
        scores, same = np.maximum.reduceat(scores, first), np.logical_or.reduceat(same, first)
    begins = np.searchsorted(ends[0, first], np.arange(len(order) + 1))
    return begins, ends[1, first], scores, same


def _file(record: ImageRecord) -> str:
    return record.source or record.sha256
