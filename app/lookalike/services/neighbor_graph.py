"""Which contents of a collection are alike: searched for once, and compared by their pixels."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import ClientGoneError, LookalikeError, OriginalNotKeptError
from lookalike.media.comparison import Sameness
from lookalike.progress import Progress
from lookalike.records import ImageRecord, Match, ModelSpec
from lookalike.store.base import Store, Vectors, scan

MAX_K = 256  # most neighbors that are looked at for one content
NO_SEARCH = math.inf  # a min_score: only the same bytes are found, nothing is searched

SIDE = 16  # pictures are compared as SIDE x SIDE cells of mean color
MAX_CELL = 25.0  # most that a channel of a cell may differ by, of 255: more is a local edit
MAX_RMS = 5.0  # most that all cells together may differ by, as a root mean square, of 255
MAX_RELATIVE = 0.12  # the same as a part of the standard deviation: pages differ by little
FLAT_RMS = 2.2  # what re-encoding alone changes in a picture of one color; always allowed

Reduced = NDArray[np.uint8]
"""A picture's cells: (SIDE, SIDE, 3) uint8."""

PictureOpener = Callable[[str, str], Image.Image]
"""Opens a stored picture by its id and sha256; raises `LookalikeError` if it cannot."""

FileComparer = Callable[[ImageRecord, ImageRecord], Sameness]
"""Whether two originals show the same picture; raises `LookalikeError` if it cannot tell."""

CameraTeller = Callable[[ImageRecord], bool]
"""Whether an original is as a camera wrote it; raises `LookalikeError` if it cannot be opened."""

_REMEMBERED = 2**16  # reductions, of 768 bytes each

log = logging.getLogger(__name__)

EDGE = np.dtype([("left", "i4"), ("right", "i4"), ("score", "f8"), ("same", "i1")])
"""Two contents that are alike: their numbers, their cosine, and their `Sameness`."""

Edges = NDArray[np.void]
"""(E,) of the dtype `EDGE`. A pair may come twice, in either direction."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The contents that may belong to a group, at one moment."""

    ids: list[str]  # those that had these contents when they were last seen; some may be gone
    numbers: dict[str, int]  # of each content, by sha256
    edges: Edges
    truncated: set[int]  # contents with more neighbors than are looked at
    camera: set[int]  # contents that are as a camera wrote them, of those that have rivals


@dataclass(eq=False)
class NeighborGraph:
    """The neighbors of every content of one collection under one spec.

    A content (a sha256) always has the same vector and pixels, so its neighbors stay right
    whatever is added, replaced or deleted; rows that are gone drop out when groups are made.
    `update` searches for every row that came since. Of any two rows, the search for the later
    one finds the earlier one. Memory grows by at most `max_k` neighbors for each picture.
    """

    store: Store
    collection: str
    spec: ModelSpec
    _: KW_ONLY
    min_score: float = NO_SEARCH  # of a neighbor
    first_k: int = 16  # neighbors that are asked for at first
    max_k: int = MAX_K
    together: int = 64  # contents in one search

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._cursor: str | None = None
        self._number_of_id: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._edges: dict[int, Edges] = {}
        self._cutoffs: dict[int, float] = {}  # where a list was cut off: its last score
        self._camera: dict[int, bool] = {}

    def __len__(self) -> int:
        """Ids that were seen, those that are gone included."""
        return len(self._number_of_id)

    def update(self, comparer: PixelComparer, progress: Progress, *, total: int) -> None:
        """Takes in what came since the last call; one call at a time.

        `total` is how many pictures are expected. If the progress ends the work, what was done is
        kept. Raises `SpecMismatchError` if the collection was made anew by another model meanwhile.
        """
        done = 0
        for block in scan(self.store, self.collection, cursor=self._cursor):
            copies: Counter[str] = Counter()
            first: dict[str, int] = {}
            with self._lock:
                for position, record in enumerate(block.records):
                    self._number_of_id[record.id] = self._number(record.sha256)
                    copies[record.sha256] += 1
                    first.setdefault(record.sha256, position)
            positions = list(first.values())
            for start in range(0, len(positions), self.together):
                progress.check()
                chosen = positions[start : start + self.together]
                records = [block.records[position] for position in chosen]
                if self.min_score != NO_SEARCH:
                    self._search(records, block.vectors[chosen], comparer, progress)
                done += sum(copies[record.sha256] for record in records)
                progress.report(done, max(done, total))
            self._cursor = block.end

    def _search(
        self,
        records: list[ImageRecord],
        queries: Vectors,
        comparer: PixelComparer,
        progress: Progress,
    ) -> None:
        """Keeps all matches of each content that reach the min_score, up to `max_k`.

        Most contents have few; those whose last match still reaches the min_score are asked again.
        """
        found: list[list[Match]] = [[] for _ in records]
        waiting, k = list(range(len(records))), self.first_k
        while waiting and k <= self.max_k:
            progress.check()
            results = self.store.search(self.collection, queries[waiting], k=k, spec=self.spec)
            for position, matches in zip(waiting, results, strict=True):
                found[position] = [match for match in matches if match.score >= self.min_score]
            waiting, k = [position for position in waiting if len(found[position]) == k], k * 4
        for position, (record, matches) in enumerate(zip(records, found, strict=True)):
            cutoff = matches[-1].score if position in waiting else None
            self._keep(record, matches, cutoff, comparer)

    def _keep(
        self,
        record: ImageRecord,
        matches: list[Match],
        cutoff: float | None,
        comparer: PixelComparer,
    ) -> None:
        best: dict[str, Match] = {}
        for match in matches:
            if match.record.sha256 != record.sha256:
                best.setdefault(match.record.sha256, match)
        edges = np.zeros(len(best), EDGE)
        edges["score"] = [match.score for match in best.values()]
        others = [match.record for match in best.values()]
        edges["same"] = comparer.same(record, others)
        self._look_for_cameras(record, others, comparer)
        with self._lock:
            number = edges["left"] = self._number(record.sha256)
            edges["right"] = [self._number(sha256) for sha256 in best]
            self._edges[number] = edges
            if cutoff is None:
                self._cutoffs.pop(number, None)
            else:
                self._cutoffs[number] = cutoff

    def _look_for_cameras(
        self, record: ImageRecord, others: list[ImageRecord], comparer: PixelComparer
    ) -> None:
        """Learns which of a picture and its rivals, those with as many pixels, a camera wrote."""
        rivals = [one for one in others if one.pixels == record.pixels]
        for one in [record, *rivals] if rivals else ():
            with self._lock:
                number = self._number(one.sha256)
            if number not in self._camera:
                from_camera = comparer.from_camera(one)
                with self._lock:
                    self._camera[number] = from_camera

    def _number(self, sha256: str) -> int:
        return self._numbers.setdefault(sha256, len(self._numbers))

    def snapshot(self, threshold: float, *, confirmed: bool) -> Snapshot:
        """What belongs together at a threshold that is not below the min_score.

        With `confirmed`, only pairs whose pixels are the same.
        """
        with self._lock:
            edges: Edges = np.concatenate([np.empty(0, EDGE), *self._edges.values()])
            passing = edges["score"] >= threshold
            if confirmed:
                passing &= edges["same"] != Sameness.NO
            edges = edges[passing]
            copies = Counter(self._number_of_id.values())
            several = {number for number, count in copies.items() if count > 1}
            several.update(edges["left"].tolist(), edges["right"].tolist())
            ids = [one for one, number in self._number_of_id.items() if number in several]
            numbers = {key: number for key, number in self._numbers.items() if number in several}
            truncated = {n for n, cutoff in self._cutoffs.items() if cutoff >= threshold}
            camera = {number for number, found in self._camera.items() if found}
            return Snapshot(ids, numbers, edges, truncated, camera)


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

    `one` is (SIDE, SIDE, 3) uint8, `others` are (N, SIDE, SIDE, 3) uint8; returns (N,) bool.
    """
    wide = others.astype(np.float32)
    apart = wide - one.astype(np.float32)  # (N, SIDE, SIDE, 3)
    rms = np.sqrt(np.square(apart).mean(axis=(1, 2, 3)))  # (N,)
    spread = np.minimum(wide.std(axis=(1, 2)).mean(axis=1), one.std(axis=(0, 1)).mean())  # (N,)
    allowed = np.clip(MAX_RELATIVE * spread, FLAT_RMS, MAX_RMS)
    same: NDArray[np.bool_] = (rms <= allowed) & (np.abs(apart).max(axis=(1, 2, 3)) <= MAX_CELL)
    return same


def same_shape(one: ImageRecord, other: ImageRecord) -> bool:
    """Whether one size is the other's scaled, with each side off by up to one pixel.

    With the smaller one (w, h) = s (W, H) + (e, f), |e| and |f| at most 1: |W h - w H| <= W + H.
    """
    small, large = sorted((one, other), key=lambda record: record.pixels)
    apart = abs(large.width * small.height - small.width * large.height)
    return apart <= large.width + large.height


class PixelComparer:
    """Compares stored pictures: by their cells, which it remembers meanwhile, then in detail."""

    def __init__(
        self, open_picture: PictureOpener, same_files: FileComparer, from_camera: CameraTeller
    ) -> None:
        self._open = open_picture
        self._same_files = same_files
        self._from_camera = from_camera
        self._reduced = lru_cache(maxsize=_REMEMBERED)(self._read)

    def same(self, one: ImageRecord, others: Sequence[ImageRecord]) -> NDArray[np.int8]:
        """What each of the others is to this picture: (N,) int8 of `Sameness`.

        A picture that cannot be opened, or whose original is not kept, is the same as none.
        """
        verdicts = np.zeros(len(others), dtype=np.int8)
        asked = [place for place, other in enumerate(others) if same_shape(one, other)]
        own = self._reduced(one.id, one.sha256) if asked else None
        if own is None:
            return verdicts
        found = {place: self._reduced(others[place].id, others[place].sha256) for place in asked}
        cells = {place: cell for place, cell in found.items() if cell is not None}
        if cells:
            verdicts[list(cells)] = same_pixels(own, np.stack(list(cells.values())))
        for place in np.flatnonzero(verdicts).tolist():
            verdicts[place] = self._confirmed(one, others[place])
        return verdicts

    def from_camera(self, one: ImageRecord) -> bool:
        """Whether a picture is as a camera wrote it; false if its original cannot be opened."""
        try:
            return self._from_camera(one)
        except (LookalikeError, OSError):
            return False

    def _confirmed(self, one: ImageRecord, other: ImageRecord) -> Sameness:
        try:
            return self._same_files(one, other)
        except ClientGoneError:
            raise
        except OriginalNotKeptError:
            return Sameness.NO
        except (LookalikeError, OSError) as exc:
            log.warning("%s and %s cannot be compared in detail: %s", one.id, other.id, exc)
            return Sameness.NO

    def _read(self, image_id: str, sha256: str) -> Reduced | None:
        try:
            return reduced(self._open(image_id, sha256))
        except (LookalikeError, OSError) as exc:
            log.warning("%s cannot be compared by its pixels: %s", image_id, exc)
            return None
