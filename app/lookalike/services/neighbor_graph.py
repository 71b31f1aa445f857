"""Which contents of a collection are alike: searched for once, and compared by their pixels."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import LookalikeError
from lookalike.progress import Progress
from lookalike.records import ImageRecord, Match, ModelSpec
from lookalike.store.base import Page, Store, Vectors, scan

FIRST_K = 16
MAX_K = 256
"""Most neighbors that are looked at for one content."""

NO_SEARCH = math.inf
"""A min_score that no score reaches: only the same bytes are found, nothing is searched."""

SIDE = 16
"""Pictures are compared as SIDE x SIDE cells of mean color."""

MAX_CELL = 25.0
"""Most that one channel of one cell may differ by, of 255: a larger difference is a local edit."""

MAX_RMS = 5.0
"""Most that all cells together may differ by, as a root mean square, of 255."""

MAX_RELATIVE = 0.12
"""The same as a part of the picture's own standard deviation: pages of text differ by little."""

FLAT_RMS = 2.2
"""What re-encoding alone changes in a picture of one color; allowed in every picture."""

Reduced = NDArray[np.uint8]
"""A picture's cells: (SIDE, SIDE, 3) uint8."""

PictureOpener = Callable[[str, str], Image.Image]
"""Opens a stored picture by its id and sha256; raises `LookalikeError` if it cannot."""

_TOGETHER = 64  # queries in one search
_REMEMBERED = 2**16  # reductions, of 768 bytes each

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class _Found:
    """What one content's search found: numbers, scores and sameness, each (n,).

    `cutoff` is the score at which the list was cut off, or minus infinity if it is complete.
    """

    nodes: NDArray[np.int32]
    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    cutoff: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The contents that may belong to a group, at one moment.

    Attributes:
        ids: The ids that had each content when they were last seen; some may be gone.
        edges: Which contents are alike.
        sha256s: The content that a number stands for.
        truncated: Contents with more neighbors than are looked at.
    """

    ids: dict[int, list[str]]
    edges: Edges
    sha256s: Sequence[str]
    truncated: set[int]


class NeighborGraph:
    """The neighbors of every content of one collection under one spec.

    A content (a sha256) always has the same vector and pixels, so its neighbors stay right
    whatever is added, replaced or deleted; rows that are gone drop out when groups are made.
    `update` searches for every row that came since. Of any two rows, the search for the later
    one finds the earlier one. Memory grows by at most `max_k` neighbors for each picture.

    Args:
        min_score: The lowest score of a neighbor, or `NO_SEARCH`.
        first_k: Neighbors that are asked for at first.
        max_k: Most neighbors that are looked at for one content.
        together: Queries in one search.
    """

    def __init__(
        self,
        min_score: float,
        *,
        first_k: int = FIRST_K,
        max_k: int = MAX_K,
        together: int = _TOGETHER,
    ) -> None:
        self.min_score = min_score
        self._first_k = first_k
        self._max_k = max_k
        self._together = together
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
        progress: Progress,
        total: int,
    ) -> None:
        """Takes in what came since the last call; one call at a time.

        Args:
            store: Where the pictures are.
            collection: Which collection.
            spec: What made its vectors.
            comparer: Compares pixels.
            progress: Told how many pictures were taken in; may end the work, and what was done is
                kept.
            total: Pictures that are expected.

        Raises:
            SpecMismatchError: The collection was made anew by another model meanwhile.
        """

        def search(queries: Vectors, k: int) -> list[list[Match]]:
            progress.check()
            return store.search(collection, queries, k=k, spec=spec)

        done = 0
        for block in scan(store, collection, cursor=self._cursor):
            progress.check()
            with self._lock:
                for record in block.records:
                    self._node_of_id[record.id] = self._node(record.sha256)
            for count in self._search_all(block, search, comparer):
                done += count
                progress.report(done, max(done, total))
            self._cursor = block.end

    def _search_all(
        self,
        block: Page,
        search: Callable[[Vectors, int], list[list[Match]]],
        comparer: PixelComparer,
    ) -> Iterator[int]:
        """Searches each content of a block once; yields how many pictures that settled."""
        held = Counter(record.sha256 for record in block.records)
        first = {
            record.sha256: position for position, record in reversed([*enumerate(block.records)])
        }
        positions = sorted(first.values())
        for chosen in _chunks(positions, self._together):
            records = [block.records[position] for position in chosen]
            if self.min_score != NO_SEARCH:
                neighbors = self._neighbors(search, block.vectors[chosen])
                for record, (matches, cutoff) in zip(records, neighbors, strict=True):
                    self._keep(record, matches, cutoff, comparer)
            yield sum(held[record.sha256] for record in records)

    def _neighbors(
        self, search: Callable[[Vectors, int], list[list[Match]]], queries: Vectors
    ) -> list[tuple[list[Match], float]]:
        """All matches of each query that reach the min_score, up to `max_k`, and the cutoff score.

        Most queries have few; those whose last match still reaches the min_score are asked again.
        """
        results: list[tuple[list[Match], float]] = [([], -math.inf)] * len(queries)
        waiting, k = list(range(len(queries))), self._first_k
        while waiting and k <= self._max_k:
            more = []
            for position, matches in zip(waiting, search(queries[waiting], k), strict=True):
                passing = [match for match in matches if match.score >= self.min_score]
                full = len(passing) == k
                results[position] = (passing, passing[-1].score if full else -math.inf)
                if full:
                    more.append(position)
            waiting, k = more, k * 4
        return results

    def _keep(
        self, record: ImageRecord, matches: list[Match], cutoff: float, comparer: PixelComparer
    ) -> None:
        best: dict[str, Match] = {}
        for match in matches:
            if match.record.sha256 != record.sha256:
                best.setdefault(match.record.sha256, match)
        same = comparer.same(record, [match.record for match in best.values()])
        scores = np.array([match.score for match in best.values()], dtype=np.float64)
        with self._lock:
            nodes = np.array([self._node(sha256) for sha256 in best], dtype=np.int32)
            self._found[self._node(record.sha256)] = _Found(nodes, scores, same, cutoff)

    def _node(self, sha256: str) -> int:
        node = self._node_of.setdefault(sha256, len(self._sha256s))
        if node == len(self._sha256s):
            self._sha256s.append(sha256)
        return node

    def snapshot(self, threshold: float, *, confirmed: bool) -> Snapshot:
        """What belongs together at a threshold that is not below the min_score.

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
            truncated = {node for node, found in self._found.items() if found.cutoff >= threshold}
            return Snapshot(ids=ids, edges=edges, sha256s=list(self._sha256s), truncated=truncated)

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


def _chunks(positions: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]


def _none(kind: type[np.generic]) -> NDArray[np.generic]:
    return np.empty(0, dtype=kind)


def reduced(image: Image.Image) -> Reduced:
    """The mean color of each cell of an upright RGB picture: (SIDE, SIDE, 3) uint8.

    Cells overlap (a triangle filter): Pillow's box filter counts whole pixels alone, so that its
    cells move where a picture is scaled.
    """
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.uint8)


def same_pixels(one: Reduced, others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether pictures show the same but for compression and size.

    With d the difference of the cells, and s the smaller of the two standard deviations over the
    cells (of each channel, averaged): max |d| <= MAX_CELL, and
    rms(d) <= min(MAX_RMS, max(FLAT_RMS, MAX_RELATIVE * s)). Calibrated on photographs and on
    pages of text, see `docs/decisions/0008-duplicates-are-stars.md`.

    Args:
        one: (SIDE, SIDE, 3) uint8.
        others: (N, SIDE, SIDE, 3) uint8.

    Returns:
        (N,) bool.
    """
    wide = others.astype(np.float32)
    apart = wide - one.astype(np.float32)  # (N, SIDE, SIDE, 3)
    rms = np.sqrt(np.square(apart).mean(axis=(1, 2, 3)))  # (N,)
    spread = np.minimum(wide.std(axis=(1, 2)).mean(axis=1), one.std(axis=(0, 1)).mean())  # (N,)
    allowed = np.clip(MAX_RELATIVE * spread, FLAT_RMS, MAX_RMS)
    same: NDArray[np.bool_] = (rms <= allowed) & (np.abs(apart).max(axis=(1, 2, 3)) <= MAX_CELL)
    return same


def same_shape(one: ImageRecord, other: ImageRecord) -> bool:
    """Whether one size can be the other's, scaled, with each side off by up to one pixel.

    With the smaller one (w, h) = s (W, H) + (e, f), |e| and |f| at most 1: |W h - w H| <= W + H.
    """
    small, large = sorted((one, other), key=lambda record: record.width * record.height)
    apart = abs(large.width * small.height - small.width * large.height)
    return apart <= large.width + large.height


class PixelComparer:
    """Compares stored pictures, and remembers their cells meanwhile.

    Args:
        open_picture: Opens a picture by id and sha256.
    """

    def __init__(self, open_picture: PictureOpener) -> None:
        self._open = open_picture
        self._reduced = lru_cache(maxsize=_REMEMBERED)(self._read)

    def same(self, one: ImageRecord, others: Sequence[ImageRecord]) -> NDArray[np.bool_]:
        """Which of the others are this picture re-encoded or resized: (N,) bool.

        A picture that cannot be opened is the same as none.
        """
        verdicts = np.zeros(len(others), dtype=np.bool_)
        asked = [position for position, other in enumerate(others) if same_shape(one, other)]
        own = self._reduced(one.id, one.sha256) if asked else None
        if own is None:
            return verdicts
        cells = [self._reduced(others[position].id, others[position].sha256) for position in asked]
        known = [position for position, cell in zip(asked, cells, strict=True) if cell is not None]
        if known:
            stacked = np.stack([cell for cell in cells if cell is not None])
            verdicts[known] = same_pixels(own, stacked)
        return verdicts

    def _read(self, image_id: str, sha256: str) -> Reduced | None:
        try:
            return reduced(self._open(image_id, sha256))
        except (LookalikeError, OSError) as exc:
            log.warning("%s cannot be compared by its pixels: %s", image_id, exc)
            return None
