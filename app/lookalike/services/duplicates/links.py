"""Which contents of a collection are alike: searched once, brought up to date with each ask."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import NotReadyError
from lookalike.records import ImageRecord, Match, ModelSpec
from lookalike.services.duplicates.pixels import PixelComparer
from lookalike.services.duplicates.stars import Edges
from lookalike.store.base import ScanBlock, Store
from lookalike.store.vectors import Vectors

FIRST_K = 16
MAX_K = 256
"""Most neighbors that are looked at for one content."""

NO_SEARCH = math.inf
"""A floor that no score reaches: only the same bytes are found, nothing is searched."""

_TOGETHER = 64  # queries in one search


@dataclass(frozen=True, slots=True)
class _Found:
    """What one content's search found: numbers, scores and sameness, each (n,).

    `cut` is the score at which the list had to end; below every score where it is complete.
    """

    nodes: NDArray[np.int32]
    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    cut: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known at one moment, of those contents that may belong to a group.

    Attributes:
        ids: The ids that had each content when they were last seen; some may be gone.
        edges: Which contents are alike.
        sha256s: The content that a number stands for.
        cut_short: Contents with more neighbors than are looked at.
    """

    ids: dict[int, list[str]]
    edges: Edges
    sha256s: Sequence[str]
    cut_short: set[int]


class Links:
    """The neighbors of every content of one collection under one spec.

    A content (a sha256) always has the same vector and pixels, so what was found of it stays
    right whatever is added, replaced or deleted: a row that is gone drops out when groups are
    made. Every row that comes later is searched for when `update` meets it; of two rows that are
    both there, the later one's search met the earlier one. Memory grows with the pictures, by at
    most `MAX_K` neighbors each.

    Args:
        floor: The lowest score of a neighbor, or `NO_SEARCH`.
    """

    def __init__(self, floor: float) -> None:
        self.floor = floor
        self._lock = threading.Lock()
        self._cursor: str | None = None
        self._node_of_id: dict[str, int] = {}
        self._node_of: dict[str, int] = {}
        self._sha256s: list[str] = []
        self._found: dict[int, _Found] = {}

    def __len__(self) -> int:
        """Ids that were seen, those that are gone included."""
        return len(self._node_of_id)

    def update(
        self,
        store: Store,
        collection: str,
        *,
        spec: ModelSpec,
        comparer: PixelComparer,
        stop: threading.Event,
        advance: Callable[[int], None],
    ) -> None:
        """Takes in what came since the last call; one call at a time.

        Args:
            store: Where the pictures are.
            collection: Which collection.
            spec: What made its vectors.
            comparer: Compares pixels.
            stop: Ends the work soon after it is set; what was done is kept.
            advance: Told how many pictures were taken in.

        Raises:
            NotReadyError: `stop` was set.
            SpecMismatchError: The collection was made anew by another model meanwhile.
        """

        def search(queries: Vectors, k: int) -> list[list[Match]]:
            if stop.is_set():
                raise stopped()
            return store.search(collection, queries, k=k, spec=spec)

        for block in store.scan(collection, cursor=self._cursor):
            if stop.is_set():
                raise stopped()
            with self._lock:
                for record in block.records:
                    self._node_of_id[record.id] = self._node(record.sha256)
            self._search_all(block, search, comparer, advance)
            self._cursor = block.cursor

    def _search_all(
        self,
        block: ScanBlock,
        search: Callable[[Vectors, int], list[list[Match]]],
        comparer: PixelComparer,
        advance: Callable[[int], None],
    ) -> None:
        """Searches each content of a block once."""
        held = Counter(record.sha256 for record in block.records)
        first = {record.sha256: place for place, record in reversed([*enumerate(block.records)])}
        places = sorted(first.values())
        for chosen in _chunks(places, _TOGETHER):
            records = [block.records[place] for place in chosen]
            if self.floor != NO_SEARCH:
                neighbors = _neighbors(search, block.vectors[chosen], self.floor)
                for record, (matches, cut) in zip(records, neighbors, strict=True):
                    self._keep(record, matches, cut, comparer)
            advance(sum(held[record.sha256] for record in records))

    def _keep(
        self, record: ImageRecord, matches: list[Match], cut: float, comparer: PixelComparer
    ) -> None:
        best: dict[str, Match] = {}
        for match in matches:
            if match.record.sha256 != record.sha256:
                best.setdefault(match.record.sha256, match)
        same = comparer.same(record, [match.record for match in best.values()])
        scores = np.array([match.score for match in best.values()], dtype=np.float64)
        with self._lock:
            nodes = np.array([self._node(sha256) for sha256 in best], dtype=np.int32)
            self._found[self._node(record.sha256)] = _Found(nodes, scores, same, cut)

    def _node(self, sha256: str) -> int:
        node = self._node_of.setdefault(sha256, len(self._sha256s))
        if node == len(self._sha256s):
            self._sha256s.append(sha256)
        return node

    def snapshot(self, threshold: float, *, confirmed: bool) -> Snapshot:
        """What belongs together at a threshold that is not below the floor.

        Args:
            threshold: The lowest score of a pair.
            confirmed: Only pairs whose pixels are the same.
        """
        with self._lock:
            edges = self._edges(threshold, confirmed=confirmed)
            linked = set(np.concatenate([edges.left, edges.right]).tolist())
            held = Counter(self._node_of_id.values())
            ids: dict[int, list[str]] = {}
            for image_id, node in self._node_of_id.items():
                if node in linked or held[node] > 1:
                    ids.setdefault(node, []).append(image_id)
            cut_short = {node for node, found in self._found.items() if found.cut >= threshold}
            return Snapshot(ids=ids, edges=edges, sha256s=list(self._sha256s), cut_short=cut_short)

    def _edges(self, threshold: float, *, confirmed: bool) -> Edges:
        found = self._found
        sizes = [len(one.nodes) for one in found.values()]
        left = np.repeat(np.array(list(found), dtype=np.int64), sizes)
        right = np.concatenate([*(one.nodes for one in found.values()), _none(np.int64)])
        scores = np.concatenate([*(one.scores for one in found.values()), _none(np.float64)])
        same = np.concatenate([*(one.same for one in found.values()), _none(np.bool_)])
        passing = scores >= threshold
        if confirmed:
            passing &= same
        return Edges(
            left=left[passing],
            right=right[passing].astype(np.int64),
            scores=scores[passing],
            same=same[passing],
        )


def stopped() -> NotReadyError:
    """The error for work that ends because the service does."""
    return NotReadyError("The service is shutting down; ask again when it runs")


def _neighbors(
    search: Callable[[Vectors, int], list[list[Match]]], queries: Vectors, floor: float
) -> list[tuple[list[Match], float]]:
    """All matches of each query that reach the floor, or the best `MAX_K`; and where that cut is.

    Most queries have few; those whose last match still reaches the floor are asked again for more.
    """
    results: list[tuple[list[Match], float]] = [([], -math.inf)] * len(queries)
    waiting, k = list(range(len(queries))), FIRST_K
    while waiting and k <= MAX_K:
        more = []
        for place, matches in zip(waiting, search(queries[waiting], k), strict=True):
            passing = [match for match in matches if match.score >= floor]
            full = len(passing) == k
            results[place] = (passing, passing[-1].score if full else -math.inf)
            if full:
                more.append(place)
        waiting, k = more, k * 4
    return results


def _chunks(places: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _none(kind: type[np.generic]) -> NDArray[np.generic]:
    return np.empty(0, dtype=kind)
