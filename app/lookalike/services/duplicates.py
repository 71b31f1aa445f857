"""Finding duplicates: what a caller asks, the search in the background, and the groups."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from itertools import count
from typing import BinaryIO

import numpy as np
from PIL import Image

from lookalike.errors import (
    ClientGoneError,
    ImageNotFoundError,
    InvalidParameterError,
    NotReadyError,
)
from lookalike.media.comparison import Sameness, from_camera
from lookalike.progress import Caller, Progress, caller
from lookalike.records import (
    DEFAULT_COLLECTION,
    MAX_COPIES,
    DuplicateKind,
    ImageRecord,
    ModelSpec,
    Why,
    check_collection_name,
)
from lookalike.services.neighbor_graph import (
    MAX_K,
    NO_SEARCH,
    Edges,
    NeighborGraph,
    PixelComparer,
    Snapshot,
)
from lookalike.services.pictures import THUMBNAIL_SIZE, PictureService
from lookalike.store.base import Store, count_of, real_name, spec_of, unknown_collection

THRESHOLD = 0.95  # the lowest cosine of two duplicates, unless the caller says otherwise
MIN_THRESHOLD = 0.5  # below it everything is like everything
MAX_LIMIT = 1000  # groups in one answer
STRICTNESS = {kind: position for position, kind in enumerate(DuplicateKind)}  # 0: the strictest

_SCORE_STEPS = 20  # a graph's min_score is a multiple of 1/20, so that few graphs are made
_STALE = 2  # a graph is made anew once most of its ids may be gone
_WAITING = 2  # requests that wait for a search; others are told at once that it runs
_CURSOR = re.compile(r"([1-9][0-9]{0,9})\.([A-Za-z0-9][A-Za-z0-9._~-]{0,127})")


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateOptions:
    """What to look for; raises `InvalidParameterError` if a number is out of range."""

    collection: str = DEFAULT_COLLECTION
    kind: DuplicateKind = DuplicateKind.NEAR  # the weakest kind; stricter ones are included
    threshold: float = THRESHOLD  # the lowest cosine, 0.5 to 1; the same bytes need none
    limit: int = 100  # most groups in the answer, 1 to 1000
    cursor: str | None = None  # `next_cursor` of the answer before

    def __post_init__(self) -> None:
        check_collection_name(self.collection)
        if not MIN_THRESHOLD <= self.threshold <= 1.0:
            raise InvalidParameterError(
                f"threshold is {self.threshold}; choose a cosine from {MIN_THRESHOLD} to 1"
            )
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InvalidParameterError(f"limit is {self.limit}; choose from 1 to {MAX_LIMIT}")
        self.after()

    @property
    def min_score(self) -> float:
        """The lowest score that has to be searched for."""
        return NO_SEARCH if self.kind is DuplicateKind.EXACT else self.threshold

    def after(self) -> tuple[int, str]:
        """The position of the cursor: the first group comes after it."""
        if self.cursor is None:
            return (-(10**10), "")
        found = _CURSOR.fullmatch(self.cursor)
        if found is None:
            raise InvalidParameterError(
                "cursor is none that this call gave; send next_cursor of the answer before, or none"
            )
        return (-int(found[1]), found[2])


@dataclass(frozen=True, slots=True)
class Unfinished:
    """How far the search for duplicates is, in pictures."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """A page of groups, those of most files first, equal ones by the id of the picture to keep.

    The totals are of all pages. Pictures are truncated that have more neighbors than are looked
    at: their groups may lack some.
    """

    options: DuplicateOptions
    groups: list[DuplicateGroup]
    total_groups: int
    total_duplicates: int  # pictures of all groups but those to keep
    total_copies: int  # other paths of the same bytes, of all pictures of all groups
    bytes_saved: int  # see `DuplicateGroup.bytes_saved`
    truncated: int
    next_cursor: str | None


class _Work(Progress):
    """One collection's neighbor graph, and the progress of the job that updates it."""

    def __init__(self, graph: NeighborGraph, stop: threading.Event) -> None:
        super().__init__()
        self.graph = graph
        self.job: Future[NeighborGraph] | None = None
        self.state = Unfinished(0, 0)
        self._stop = stop

    def check(self) -> None:
        if self._stop.is_set():
            raise NotReadyError("The service is shutting down; ask again when it runs")

    def report(self, done: int, total: int, *, stage: str = "") -> None:  # noqa: ARG002
        self.state = Unfinished(done, total)


@dataclass(eq=False)
class DuplicateService:
    """Finds duplicates, in the background: at most one job for each collection at a time.

    What was found is kept, so that later calls search only for what came since.
    """

    store: Store
    pictures: PictureService
    _: KW_ONLY
    wait_s: float = 5.0  # before `find` tells how far the work is
    first_k: int = 16  # neighbors that are looked at first
    max_neighbors: int = MAX_K  # most neighbors that are looked at for one picture
    together: int = 64  # pictures in one search
    stale_spare: int = 1000  # deleted pictures that are remembered, beside as many as there are

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._caller = Caller()  # leaves when the service closes, which ends a comparison
        self._works: dict[tuple[str, str, str], _Work] = {}
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="duplicates")

    def close(self) -> None:
        """Ends the current work within one search or comparison; may be called twice."""
        with self._lock:
            self._stop.set()
        self._caller.leave()
        self._threads.shutdown()  # what had not begun ends at its first step

    def find(self, options: DuplicateOptions) -> Duplicates | Unfinished:
        """Groups as of now, or how far the search for them is where it takes longer.

        Raises:
            CollectionNotFoundError: There is no such collection.
            NotReadyError: The service is shutting down.
            LookalikeError: What ended the work, perhaps work that an earlier call began.
        """
        options = replace(options, collection=real_name(self.store, options.collection))
        spec = spec_of(self.store, options.collection)
        if spec is None:
            if options.collection != DEFAULT_COLLECTION:
                raise unknown_collection(options.collection)
            return _page(options, [], truncated=0)
        patient = self._waiting.acquire(blocking=False)
        try:
            deadline = time.monotonic() + (self.wait_s if patient else 0.0)
            found = self._up_to_date(options, spec, deadline)
        finally:
            if patient:
                self._waiting.release()
        return found if isinstance(found, Unfinished) else self._answer(found, options)

    def _up_to_date(
        self, options: DuplicateOptions, spec: ModelSpec, deadline: float
    ) -> NeighborGraph | Unfinished:
        """The graph of what was stored before the call: of a job that began after it."""
        ours = None
        while True:
            with self._lock:
                work = self._work(options, spec)
                if work.job is not None and work.job.done() and work.job.exception() is not None:
                    failed, work.job = work.job, None  # told once; the next call tries again
                    return failed.result()
                if work.job is None or (work.job.done() and work.job is not ours):
                    work.check()
                    work.job = ours = self._threads.submit(self._update, work, options)
                job = work.job
            wait([job], timeout=max(0.0, deadline - time.monotonic()))
            if not job.done():
                return work.state
            if job is ours and job.exception() is None:
                return job.result()

    def _work(self, options: DuplicateOptions, spec: ModelSpec) -> _Work:
        found = self.store.collection(options.collection)
        # With the time: another collection may have this name by now, by a renaming.
        key = (options.collection, found.created_at if found else "", spec.digest)
        if key not in self._works:
            here = {
                (info.name, info.created_at, info.spec.digest) for info in self.store.collections()
            }
            self._works = {known: work for known, work in self._works.items() if known in here}
            graph = NeighborGraph(
                self.store,
                options.collection,
                spec,
                first_k=self.first_k,
                max_k=self.max_neighbors,
                together=self.together,
            )
            self._works[key] = _Work(graph, self._stop)
        return self._works[key]

    def _update(self, work: _Work, options: DuplicateOptions) -> NeighborGraph:
        """Runs in the background; requests may read the old graph meanwhile."""
        caller.set(self._caller)
        here = count_of(self.store, options.collection)
        graph = work.graph
        if options.min_score < graph.min_score or len(graph) > _STALE * here + self.stale_spare:
            min_score = min(options.min_score, graph.min_score)
            if min_score != NO_SEARCH:
                min_score = math.floor(min_score * _SCORE_STEPS) / _SCORE_STEPS
            graph = replace(graph, min_score=min_score)
        total = max(0, here - len(graph))
        work.report(0, total)
        try:
            graph.update(self.comparer(options.collection), work, total=total)
        except ClientGoneError:
            work.check()
            raise
        work.graph = graph
        return graph

    def comparer(self, collection: str) -> PixelComparer:
        """What says whether two pictures of a collection are the same."""
        return PixelComparer(
            partial(self._open, collection),
            partial(self._same_files, collection),
            partial(self._from_camera, collection),
        )

    def _open(self, collection: str, image_id: str, sha256: str) -> Image.Image:
        """The whole thumbnail: a decode at reduced size would blur the cells unevenly."""
        record, file = self.pictures.thumbnail(collection, image_id)
        with file:
            if record.sha256 != sha256:
                raise ImageNotFoundError(f"{image_id!r} was replaced meanwhile")
            return self.pictures.decode(file, size=THUMBNAIL_SIZE)

    def _same_files(self, collection: str, one: ImageRecord, other: ImageRecord) -> Sameness:
        with self._original(collection, one) as first, self._original(collection, other) as second:
            return Sameness(self.pictures.decoder.compare(first, second))

    def _from_camera(self, collection: str, one: ImageRecord) -> bool:
        with self._original(collection, one) as file:
            return from_camera(file)

    @contextmanager
    def _original(self, collection: str, wanted: ImageRecord) -> Iterator[BinaryIO]:
        record, file = self.pictures.original(collection, wanted.id)
        with file:
            if record.sha256 != wanted.sha256:
                raise ImageNotFoundError(f"{wanted.id!r} was replaced meanwhile")
            yield file

    def _answer(self, graph: NeighborGraph, options: DuplicateOptions) -> Duplicates:
        """Groups of those pictures that are still here."""
        known = graph.snapshot(options.min_score, confirmed=options.kind is DuplicateKind.REENCODED)
        copied = self.store.copied(options.collection)
        ids = list(dict.fromkeys([*known.ids, *copied]))
        numbers = dict(known.numbers)
        free = count(max([*numbers.values(), *known.truncated], default=-1) + 1)
        contents: dict[int, list[ImageRecord]] = {}
        for record in self._with_all_places(options.collection, ids):
            if record.others and record.sha256 not in numbers:
                numbers[record.sha256] = next(free)  # like no other, but copied
            number = numbers.get(record.sha256)
            if number is not None:  # replaced meanwhile otherwise
                contents.setdefault(number, []).append(record)
        groups = stars(contents, known.edges)
        page = _page(options, groups, truncated=len(known.truncated & contents.keys()))
        return self._with_best_kept(page, known)

    def _with_best_kept(self, page: Duplicates, known: Snapshot) -> Duplicates:
        """Chooses the pictures to keep; positions of groups, and so cursors, stay as they were."""
        groups = keep_best(page.groups, known, self.pictures.files.changed_at)
        more = sum(group.bytes_saved for group in groups)
        less = sum(group.bytes_saved for group in page.groups)
        return replace(page, groups=groups, bytes_saved=page.bytes_saved + more - less)

    def _with_all_places(self, collection: str, ids: list[str]) -> list[ImageRecord]:
        """Those of the pictures that are here, with every path of each."""
        found = self.store.find(collection, ids)
        short = [one.id for one in found.values() if len(one.others) >= MAX_COPIES]
        for image_id, places in (self.store.places(collection, short) if short else {}).items():
            found[image_id] = replace(found[image_id], others=tuple(places[1:]))
        return list(found.values())


def _page(options: DuplicateOptions, groups: list[DuplicateGroup], *, truncated: int) -> Duplicates:
    after = options.after()
    behind = sorted((g for g in groups if _order(g) > after), key=_order)
    page = behind[: options.limit]
    more = len(behind) > options.limit
    return Duplicates(
        options=options,
        groups=page,
        total_groups=len(groups),
        total_duplicates=sum(len(group.members) for group in groups),
        total_copies=sum(group.total_copies for group in groups),
        bytes_saved=sum(group.bytes_saved for group in groups),
        truncated=truncated,
        next_cursor=f"{page[-1].files_beside}.{page[-1].keep.id}" if more else None,
    )


def _order(group: DuplicateGroup) -> tuple[int, str]:
    """Where a group stands in the order of answers."""
    return (-group.files_beside, group.keep.id)


@dataclass(frozen=True, slots=True)
class Member:
    """A duplicate of the picture to keep, and its cosine with that one (1 for the same bytes)."""

    record: ImageRecord
    kind: DuplicateKind
    score: float


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """One picture to keep, and its duplicates: the strictest kinds first, then the best scores.

    Without members, the picture to keep has copies: the same bytes under other paths.

    Attributes:
        why: What decided which picture is kept; None while the strongest star is, or without
            members.
    """

    keep: ImageRecord
    members: list[Member]
    why: Why | None = None

    @property
    def records(self) -> list[ImageRecord]:
        """All pictures, the one to keep first."""
        return [self.keep, *(member.record for member in self.members)]

    @property
    def kind(self) -> DuplicateKind:
        """The weakest kind among the members; `exact` if there is none."""
        kinds = (member.kind for member in self.members)
        return max(kinds, key=STRICTNESS.__getitem__, default=DuplicateKind.EXACT)

    @property
    def total_copies(self) -> int:
        """Other paths of the same bytes, of all pictures of the group."""
        return sum(len(one.others) for one in self.records)

    @property
    def files_beside(self) -> int:
        """Members, and copies."""
        return len(self.members) + self.total_copies

    @property
    def bytes_saved(self) -> int:
        """Bytes of all files but the one of the picture to keep.

        A service's own folder keeps the same bytes once, whatever ids and paths they have. Where
        files are referred to in place, each path is a file.
        """
        files = {_file(member.record): member.record.bytes for member in self.members}
        files.pop(_file(self.keep), None)
        copies = sum(len(one.others) * one.bytes for one in self.records if one.source is not None)
        return sum(files.values()) + copies


def keep_order(record: ImageRecord) -> tuple[int, int, str, str]:
    """Sorts the best picture to keep first: more pixels, larger file, older, lower id."""
    return (-record.width * record.height, -record.bytes, record.created_at, record.id)


def stars(contents: dict[int, list[ImageRecord]], edges: Edges) -> list[DuplicateGroup]:
    """Groups contents that are alike around the best of them.

    In keep-best order, the first content that is in no group yet is kept, and takes all that are
    in none and have an edge with it. So every member is directly like the one to keep, which
    connected components do not promise. A group of one picture has copies of it.

    `contents` are the pictures of each content, by number. Edges with other contents are ignored.
    """
    copies = {node: sorted(records, key=keep_order) for node, records in contents.items()}
    order = sorted(copies, key=lambda node: keep_order(copies[node][0]))
    ranked = _by_rank(order, edges)
    begins = np.searchsorted(ranked["left"], np.arange(len(order) + 1))
    taken = np.zeros(len(order), dtype=np.bool_)
    groups = []
    for rank, node in enumerate(order):
        if taken[rank]:
            continue
        own = ranked[begins[rank] : begins[rank + 1]]
        alike: dict[int, tuple[bool, float]] = {}
        for _, other, score, same in own[~taken[own["right"]]].tolist():
            known, best = alike.get(other, (False, score))
            alike[other] = known or same, max(best, score)
        taken[list(alike)] = True
        members = [Member(record, DuplicateKind.EXACT, 1.0) for record in copies[node][1:]]
        for other, (same, score) in alike.items():
            kind = DuplicateKind.REENCODED if same else DuplicateKind.NEAR
            members += [Member(record, kind, score) for record in copies[order[other]]]
        if members or copies[node][0].others:
            members.sort(key=_member_order)
            groups.append(DuplicateGroup(copies[node][0], members))
    return groups


def _by_rank(order: Sequence[int], edges: Edges) -> Edges:
    """The edges between ranks in an order, sorted by `left`, which is the better rank."""
    nodes = np.concatenate([np.array(order, np.int64), edges["left"], edges["right"]])
    rank = np.full(nodes.max(initial=-1) + 1, -1)
    rank[order] = np.arange(len(order))
    ends = np.sort([rank[edges["left"]], rank[edges["right"]]], axis=0)  # (2, E)
    kept = np.flatnonzero((ends[0] >= 0) & (ends[0] != ends[1]))
    kept = kept[np.argsort(ends[0, kept])]
    ranked: Edges = edges[kept]
    ranked["left"], ranked["right"] = ends[:, kept]
    return ranked


@dataclass(frozen=True, slots=True)
class _Link:
    """What two contents of a group are to each other."""

    score: float
    same: bool
    earlier: int | None  # the one of which the other was made

    def merged(self, other: _Link | None) -> _Link:
        """Of a pair that was compared twice."""
        if other is None:
            return self
        earlier = self.earlier if other.earlier is None else other.earlier
        return _Link(max(self.score, other.score), self.same or other.same, earlier)


_CRITERIA = (Why.MADE_FROM, Why.CAMERA, Why.OLDER, Why.BYTES, Why.ID)


def keep_best(
    groups: Sequence[DuplicateGroup],
    known: Snapshot,
    changed_at: Callable[[ImageRecord], str | None],
) -> list[DuplicateGroup]:
    """Chooses the pictures to keep anew, and says what decided.

    The rivals of a star are the members that have as many pixels, are like all others of the group,
    and are the same as no fewer of them. Of these, in this order, it is better not to be made of
    another, to be as a camera wrote it, to be older, to have more bytes, and to have the lower id.
    See 0030-which-duplicate-is-kept.md.

    Args:
        groups: Stars, of any of the known contents.
        known: The contents, and what they are to each other.
        changed_at: When a file that is referred to was last changed, see `BlobStore`.
    """
    links = _links(groups, known)
    return [_with_best(group, known, links, changed_at) for group in groups]


def _links(groups: Sequence[DuplicateGroup], known: Snapshot) -> dict[tuple[int, int], _Link]:
    """Between the contents of each group, in both orders."""
    group_of = np.full(max(known.numbers.values(), default=-1) + 2, -1)  # the last: no number
    for position, group in enumerate(groups):
        for record in group.records:
            group_of[known.numbers.get(record.sha256, -1)] = position
    group_of[-1] = -1
    ends = group_of[known.edges["left"]], group_of[known.edges["right"]]
    links: dict[tuple[int, int], _Link] = {}
    for left, right, score, same in known.edges[(ends[0] == ends[1]) & (ends[0] >= 0)].tolist():
        earlier = {Sameness.FIRST: left, Sameness.SECOND: right}.get(same)
        link = _Link(score, same != Sameness.NO, earlier).merged(links.get((left, right)))
        links[left, right] = links[right, left] = link
    return links


def _with_best(
    group: DuplicateGroup,
    known: Snapshot,
    links: Mapping[tuple[int, int], _Link],
    changed_at: Callable[[ImageRecord], str | None],
) -> DuplicateGroup:
    contents: dict[int, list[ImageRecord]] = {}
    for record in sorted(group.records, key=keep_order):
        contents.setdefault(known.numbers.get(record.sha256, -1), []).append(record)
    best = {number: records[0] for number, records in contents.items()}
    star = known.numbers.get(group.keep.sha256, -1)
    if len(contents) == 1:
        if not group.members:
            return group
        is_older = group.keep.created_at < contents[star][1].created_at
        return replace(group, why=Why.OLDER if is_older else Why.ID)

    def alike(number: int) -> list[_Link | None]:
        return [links.get((number, other)) for other in contents if other != number]

    def same(number: int) -> int:
        return sum(link is not None and link.same for link in alike(number))

    equals = [number for number, one in best.items() if one.pixels == group.keep.pixels]
    rivals = [one for one in equals if None not in alike(one) and same(one) >= same(star)]

    def rank(number: int) -> tuple[bool, bool, str, int, str]:
        is_made = any(link and link.earlier not in (None, number) for link in alike(number))
        age = min(changed_at(record) or record.created_at for record in contents[number])
        first = best[number]
        return is_made, number not in known.camera, age, -first.bytes, first.id

    ranked = sorted((rank(number), number) for number in rivals)
    why = Why.PIXELS if len(equals) == 1 else Why.CENTER
    if len(ranked) > 1:
        apart = zip(_CRITERIA, ranked[0][0], ranked[1][0], strict=True)
        why = next(criterion for criterion, own, other in apart if own != other)
    return _around(ranked[0][1], contents, links, why)


def _around(
    number: int,
    contents: Mapping[int, list[ImageRecord]],
    links: Mapping[tuple[int, int], _Link],
    why: Why,
) -> DuplicateGroup:
    """The group of these contents with this one's first picture to keep."""
    keep, *copies = contents[number]
    members = [Member(record, DuplicateKind.EXACT, 1.0) for record in copies]
    for other in contents.keys() - {number}:
        link = links[number, other]
        kind = DuplicateKind.REENCODED if link.same else DuplicateKind.NEAR
        members += [Member(record, kind, link.score) for record in contents[other]]
    return DuplicateGroup(keep, sorted(members, key=_member_order), why)


def _member_order(one: Member) -> tuple[int, float, str]:
    return (STRICTNESS[one.kind], -one.score, one.record.id)


def _file(record: ImageRecord) -> str:
    return record.source or record.sha256
