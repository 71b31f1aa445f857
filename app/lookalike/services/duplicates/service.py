"""Finding duplicates: what a caller asks, and the work in the background that answers it."""

from __future__ import annotations

import math
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from lookalike.errors import ImageNotFoundError, InvalidParameterError
from lookalike.records import DEFAULT_COLLECTION, DuplicateKind, ModelSpec
from lookalike.services.duplicates.links import NO_SEARCH, Links, stopped
from lookalike.services.duplicates.pixels import PixelComparer
from lookalike.services.duplicates.stars import DuplicateGroup, stars
from lookalike.services.pictures import THUMBNAIL_SIZE, PictureService
from lookalike.store.base import Store, unknown_collection
from lookalike.store.names import check_collection_name

THRESHOLD = 0.95
"""The lowest cosine of two duplicates, unless the caller says otherwise."""

MIN_THRESHOLD = 0.5
"""Below it everything is like everything."""

MAX_LIMIT = 1000
"""Most groups in one answer."""

_FLOOR_STEPS = 20  # a new floor is rounded down to 1/20, so that it is lowered a few times at most
_STALE = 2  # links are made anew once most of the ids in them may be gone
_STALE_SPARE = 1000
_WAITING = 8  # requests that wait for work; more are told at once that it runs
_CURSOR = re.compile(r"([1-9][0-9]{0,9})\.([A-Za-z0-9][A-Za-z0-9._~-]{0,127})")


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateOptions:
    """What to look for.

    Attributes:
        collection: Where.
        kind: The weakest kind of duplicates; stricter ones are included.
        threshold: The lowest cosine of two duplicates, 0.5 to 1; the same bytes need none.
        limit: Most groups in the answer, 1 to 1000.
        cursor: `next_cursor` of the answer before, or None.
    """

    collection: str = DEFAULT_COLLECTION
    kind: DuplicateKind = DuplicateKind.NEAR
    threshold: float = THRESHOLD
    limit: int = 100
    cursor: str | None = None

    def __post_init__(self) -> None:
        """Checks the ranges; raises `InvalidParameterError`."""
        check_collection_name(self.collection)
        if not MIN_THRESHOLD <= self.threshold <= 1.0:
            raise InvalidParameterError(
                f"threshold is {self.threshold}; choose a cosine from {MIN_THRESHOLD} to 1"
            )
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InvalidParameterError(f"limit is {self.limit}; choose from 1 to {MAX_LIMIT}")
        self.after()

    @property
    def floor(self) -> float:
        """The lowest score that has to be searched for."""
        return NO_SEARCH if self.kind is DuplicateKind.EXACT else self.threshold

    def after(self) -> tuple[int, str]:
        """What the first group must come behind in the order of answers."""
        if self.cursor is None:
            return (-(10**10), "")
        found = _CURSOR.fullmatch(self.cursor)
        if found is None:
            raise InvalidParameterError(
                "cursor is none that this call gave; send next_cursor of the answer before, or none"
            )
        return (-int(found[1]), found[2])


@dataclass(slots=True)
class Unfinished:
    """How far the search for duplicates is, in pictures."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Groups, the largest first, equal ones by the id of the picture to keep.

    Attributes:
        options: What was asked.
        groups: This page of them.
        total_groups: Of all pages.
        total_duplicates: Pictures of all groups but those to keep.
        bytes_saved: Of all groups, see `DuplicateGroup.bytes_saved`.
        truncated: Pictures with more neighbors than are looked at: their groups may lack some.
        next_cursor: Where the next page starts; None at the end.
    """

    options: DuplicateOptions
    groups: list[DuplicateGroup]
    total_groups: int
    total_duplicates: int
    bytes_saved: int
    truncated: int
    next_cursor: str | None


@dataclass(slots=True)
class _Work:
    """What is known of one collection, and the job that brings it up to date."""

    links: Links
    progress: Unfinished = field(default_factory=Unfinished)
    job: Future[Links] | None = None


class DuplicateService:
    """Finds duplicates, in the background: at most one job for each collection at a time.

    What was found is kept, so that later calls search only for what came since.

    Args:
        store: Where the pictures are.
        pictures: Opens them.
        wait_s: Seconds that `find` waits before it tells how far the work is.
    """

    def __init__(self, store: Store, pictures: PictureService, *, wait_s: float = 5.0) -> None:
        self._store = store
        self._pictures = pictures
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._works: dict[tuple[str, str], _Work] = {}
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="duplicates")

    def close(self) -> None:
        """Ends the work that is under way within one search; may be called twice."""
        with self._lock:
            self._stop.set()
        self._threads.shutdown()  # what had not begun ends at its first step

    def find(self, options: DuplicateOptions) -> Duplicates | Unfinished:
        """Groups as of now, or how far the search for them is where it takes longer.

        Raises:
            CollectionNotFoundError: There is no such collection.
            NotReadyError: The service is shutting down.
            LookalikeError: What ended the work, perhaps work that an earlier call began.
        """
        spec = self._store.spec(options.collection)
        if spec is None:
            if options.collection != DEFAULT_COLLECTION:
                raise unknown_collection(options.collection)
            return _page(options, [], truncated=0)
        patient = self._waiting.acquire(blocking=False)
        try:
            deadline = time.monotonic() + (self._wait_s if patient else 0.0)
            found = self._up_to_date(options, spec, deadline)
        finally:
            if patient:
                self._waiting.release()
        return found if isinstance(found, Unfinished) else self._answer(found, options)

    def _up_to_date(
        self, options: DuplicateOptions, spec: ModelSpec, deadline: float
    ) -> Links | Unfinished:
        """Links that know what was stored before the call: by a job that began after it."""
        ours = None
        while True:
            with self._lock:
                work = self._work(options, spec)
                if work.job is not None and work.job.done() and work.job.exception() is not None:
                    failed, work.job = work.job, None  # told once; the next call tries again
                    return failed.result()
                if work.job is None or (work.job.done() and work.job is not ours):
                    work.job = ours = self._start(work, options, spec)
                job = work.job
            wait([job], timeout=max(0.0, deadline - time.monotonic()))
            if not job.done():
                return Unfinished(work.progress.done, work.progress.total)
            if job is ours and job.exception() is None:
                return job.result()

    def _work(self, options: DuplicateOptions, spec: ModelSpec) -> _Work:
        key = (options.collection, spec.digest)
        if key not in self._works:
            here = {(info.name, info.spec.digest) for info in self._store.collections()}
            self._works = {known: work for known, work in self._works.items() if known in here}
            self._works[key] = _Work(Links(NO_SEARCH))
        return self._works[key]

    def _start(self, work: _Work, options: DuplicateOptions, spec: ModelSpec) -> Future[Links]:
        if self._stop.is_set():
            raise stopped()
        return self._threads.submit(self._update, work, options, spec)

    def _update(self, work: _Work, options: DuplicateOptions, spec: ModelSpec) -> Links:
        """Runs in the background; others may read the links meanwhile, so new ones replace them."""
        count = self._store.count(options.collection)
        links = work.links
        if options.floor < links.floor or len(links) > _STALE * count + _STALE_SPARE:
            links = Links(_rounded(min(options.floor, links.floor)))
        work.progress = progress = Unfinished(total=max(0, count - len(links)))

        def advance(pictures: int) -> None:
            progress.done += pictures
            progress.total = max(progress.total, progress.done)

        links.update(
            self._store,
            options.collection,
            spec=spec,
            comparer=PixelComparer(partial(self._open, options.collection)),
            stop=self._stop,
            advance=advance,
        )
        work.links = links
        return links

    def _open(self, collection: str, image_id: str, sha256: str) -> Image.Image:
        """The whole thumbnail: a decode at reduced size would blur the cells unevenly."""
        with self._pictures.thumbnail(collection, image_id).open("rb") as file:
            image = self._pictures.decode(file, size=THUMBNAIL_SIZE)
        if self._store.get(collection, image_id).sha256 != sha256:
            raise ImageNotFoundError(f"{image_id!r} was replaced meanwhile")
        return image

    def _answer(self, links: Links, options: DuplicateOptions) -> Duplicates:
        """Groups of those pictures that are still here."""
        known = links.snapshot(options.floor, confirmed=options.kind is DuplicateKind.REENCODED)
        ids = [image_id for held in known.ids.values() for image_id in held]
        rows = self._store.find(options.collection, ids)
        contents = {
            node: [
                rows[image_id]
                for image_id in held
                if image_id in rows and rows[image_id].sha256 == known.sha256s[node]
            ]
            for node, held in known.ids.items()
        }
        contents = {node: records for node, records in contents.items() if records}
        groups = stars(contents, known.edges)
        return _page(options, groups, truncated=len(known.cut_short & contents.keys()))


def _page(options: DuplicateOptions, groups: list[DuplicateGroup], *, truncated: int) -> Duplicates:
    after = options.after()
    behind = sorted((g for g in groups if _place(g) > after), key=_place)
    page = behind[: options.limit]
    more = len(behind) > options.limit
    return Duplicates(
        options=options,
        groups=page,
        total_groups=len(groups),
        total_duplicates=sum(len(group.members) for group in groups),
        bytes_saved=sum(group.bytes_saved for group in groups),
        truncated=truncated,
        next_cursor=f"{len(page[-1].members)}.{page[-1].keep.id}" if more else None,
    )


def _place(group: DuplicateGroup) -> tuple[int, str]:
    """Where a group stands in the order of answers."""
    return (-len(group.members), group.keep.id)


def _rounded(floor: float) -> float:
    return floor if floor == NO_SEARCH else math.floor(floor * _FLOOR_STEPS) / _FLOOR_STEPS
