"""Lookalike from Python: one interface, on a data folder or on a running service.

```python
from lookalike import Client, HttpClient

with Client("data", model="resnet18", weights="random") as client:  # or HttpClient("http://...")
    client.index("photos", folder_field="label")
    for match in client.search("query.jpg", k=5).matches:
        print(match.rank, f"{match.score:.4f}", match.filename)
```

`BaseClient` is the interface. `Client` (in `local`) and `HttpClient` (in `http`) implement it, and
return the types of `lookalike.schemas`.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from lookalike.client.parts import Picture, parts_of
from lookalike.client.scores import ScoresClient
from lookalike.errors import InvalidParameterError, LookalikeError, ServerError
from lookalike.media.sources import Found, PictureSource, Selection, walk
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import (
    DEFAULT_COLLECTION,
    MOST_CHANGED,
    SHOWN,
    Access,
    DuplicateKind,
    Effort,
    OnConflict,
    check_id,
)
from lookalike.schemas import (
    AuditEntryOut,
    ChangedOut,
    CollectionOut,
    CountOut,
    DuplicatesOut,
    DuplicatesRunning,
    ExplanationOut,
    FacetsOut,
    ImageOut,
    JobOut,
    KeyOut,
    NewKeyOut,
    SearchOut,
    VectorSetOut,
)
from lookalike.services.queries import Part, Query
from lookalike.services.syncing import Listed, find_gone

Describe = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
"""Metadata for every file, or a function that gives each file its own."""

PATIENCE_S = 60.0  # that `wait_for_job` asks a service that does not answer: it may restart
EMBEDDED = 16  # pictures and texts of one call
_BATCH = 4  # queries of one call: as many parts as a call may have files and texts
_JOB_POLL_S = 0.5
_RUNNING_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one file."""

    # Of an archive's picture, the archive's path with the picture's inside; of a row of a manifest,
    # the manifest's path with the row's line: `catalog.csv:17`.
    path: Path
    status: str  # `created`, `replaced`, `updated`, `unchanged`, `skipped` or `failed`
    id: str | None = None  # the picture's, where it is known
    error: LookalikeError | None = None  # why it failed
    # The path of another file that has the same bytes and was seen first, if there is one; and
    # whether this one came with other metadata, which was not taken.
    copy_of: str | None = None
    kept_metadata: bool = False
    given: str | None = None  # the path or address in a row of a manifest

    @classmethod
    def failure(cls, path: Path, error: LookalikeError) -> Outcome:
        """The outcome of a file that failed."""
        return cls(path=path, status="failed", error=error)

    @property
    def failed(self) -> bool:
        """Whether the picture is not in the collection as it was given."""
        return self.error is not None


class SearchArguments(TypedDict, total=False):
    """What every search takes beside its query, by keyword."""

    k: int  # how many matches, 1 to 1000; 10 if not given
    offset: int  # matches to leave out before them; 0 if not given, with k at most 10,000
    collection: str  # where to search
    min_score: float | None  # leave out matches below this cosine
    filter: Mapping[str, Any] | None  # only pictures that match: `{"label": "cat"}`
    group_by: str | None  # a metadata field: only the best match of each of its values
    effort: Effort | None  # how hard to look in an approximate index, e.g. `Effort(exact=True)`


class ImportArguments(TypedDict, total=False):
    """What an import of an archive or a folder takes, by keyword; see `BaseClient.index`."""

    collection: str
    metadata: Mapping[str, Any] | None
    folder_field: str | None
    on_conflict: OnConflict
    exclude: Sequence[str]


class Outcomes(list[Outcome]):
    """One outcome for each file, and what was passed over: how many files and folders, by kind."""

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        super().__init__(outcomes)
        self.passed: Counter[str] = Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a sync did, or would do."""

    outcomes: Outcomes  # of what was indexed; empty after a dry run
    added: list[str]  # paths of what a dry run would add
    deleted: dict[str, str]  # ids of pictures that are gone, each with the path it was seen at
    refused: str | None  # why nothing was deleted although something is gone
    job: JobOut | None = None  # in which a service indexed a manifest; `outcomes` are its failures


class BaseClient(ScoresClient):
    """What can be done with collections of pictures; see `Client` and `HttpClient`.

    Every method raises a `LookalikeError`: the same class on a data folder and on a service, where
    it is a `ServerError` as well.
    """

    def __enter__(self) -> Self:
        """Returns the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the client."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything; the client cannot be used afterwards."""

    def index(
        self,
        *paths: str | os.PathLike[str],
        collection: str = DEFAULT_COLLECTION,
        metadata: Describe | None = None,
        folder_field: str | None = None,
        on_conflict: OnConflict = OnConflict.REPLACE,
        exclude: Sequence[str] = (),
        progress: Progress = NO_PROGRESS,
    ) -> Outcomes:
        """Adds picture files, and all picture files below folders.

        Args:
            *paths: Files and folders.
            collection: Made if it does not exist.
            metadata: A JSON object for every picture, or a function from a path to one.
            folder_field: Stores the name of a picture's folder under this metadata field.
            on_conflict: What to do with ids that exist.
            exclude: Globs of files and folders that are passed over, see `Selection` in
                `lookalike.media.sources`.
            progress: Told after each file.

        Returns:
            One outcome for each file, and for each folder that cannot be read. None harms another.
            `passed` counts what was passed over.

        Raises:
            MissingFileError: A path does not exist.
            ConfigurationError: A path lies in a folder of Lookalike's own.
            InvalidParameterError: `exclude` has no glob.
            SpecMismatchError: The collection's vectors were made by another model.
        """
        selection, outcomes = Selection(exclude), Outcomes()
        found = list(walk((Path(path) for path in paths), selection=selection))
        sources = [_source(one, metadata, folder_field) for one in found]
        outcomes.passed = selection.passed
        for outcome in self._index(sources, collection, on_conflict) if found else ():
            outcomes.append(outcome)
            progress.report(len(outcomes), len(found))
            progress.check()
        return outcomes

    @abstractmethod
    def _index(
        self, sources: Iterable[PictureSource], collection: str, on_conflict: OnConflict
    ) -> Iterator[Outcome]: ...

    def sync(
        self,
        path: str | os.PathLike[str],
        *,
        dry_run: bool = False,
        most: float = 0.5,
        progress: Progress = NO_PROGRESS,
        **arguments: Unpack[ImportArguments],
    ) -> Synced:
        """Indexes a folder or a manifest, then deletes what earlier runs brought and is gone.

        Args:
            path: The folder or the manifest. A service indexes a manifest itself, see
                `HttpClient.index_manifest`.
            dry_run: Change nothing, and fetch nothing: only say what would be added and deleted.
            most: Largest share of the pictures from there that may be deleted, 0 to 1.
            progress: Told after each file.
            **arguments: As for `index`.

        Nothing is deleted, and `refused` says why, if `path` cannot be read whole or names no
        picture, or if too many pictures would go; a dry run names these all the same. Pictures
        that lie elsewhere, too, or were sent without a path, stay. Raises as `index` and
        `index_manifest`.
        """
        top, collection = Path(path), arguments.get("collection", DEFAULT_COLLECTION)
        listed = Listed.of(top, arguments.get("exclude", ()))
        where, outcomes, job = (collection, listed.root), Outcomes(), None
        before, added = self._seen(*where), list[str]()
        if dry_run:
            after: Mapping[str, str] = listed.expected(before)
            lacking = self._lacking(collection, [after[name] for name in listed.files])
            added = [name for name in listed.files if after[name] in lacking]
        else:
            outcomes, job = self._bring(top, before, progress, arguments)
            after = self._seen(*where)
        gone = find_gone(listed, before, after)
        going = self._let_go(*where, gone.pictures, (), dry_run=True)
        refused = gone.refusal(listed, len(going), most, dry_run=dry_run)
        if refused is None and not dry_run and (going or gone.paths):
            going = self._let_go(*where, going, gone.paths, dry_run=False)
        # A dry run names what is too much, but not what may only be unseen.
        named = refused is None or (dry_run and listed.doubt is None)
        deleted = {one: gone.pictures[one] for one in going} if named else {}
        return Synced(outcomes=outcomes, added=added, deleted=deleted, refused=refused, job=job)

    @abstractmethod
    def _seen(self, collection: str, root: str) -> Mapping[str, str]:
        """The paths of pictures below a root, with their ids."""

    @abstractmethod
    def _lacking(self, collection: str, ids: Sequence[str]) -> set[str]:
        """Those of the ids that do not exist."""

    @abstractmethod
    def _bring(
        self, top: Path, before: Mapping[str, str], progress: Progress, arguments: ImportArguments
    ) -> tuple[Outcomes, JobOut | None]:
        """Indexes a folder or a manifest, whose pictures lay at the paths `before`."""

    @abstractmethod
    def _let_go(
        self, collection: str, root: str, ids: Iterable[str], paths: Sequence[str], *, dry_run: bool
    ) -> Sequence[str]:
        """Does what `syncing.let_go` does; returns the ids of what is deleted."""

    def search(
        self,
        picture: Picture | Part,
        *more: Picture | Part,
        combine: str = "mean",
        flip: bool = False,
        **arguments: Unpack[SearchArguments],
    ) -> SearchOut:
        """Finds the pictures most like one, or like several things together.

        Args:
            picture: A picture; or a `Part`, which may also be a text, the id of a stored picture
                or a vector, and have a weight: `Part(text="red car")`,
                `Part(picture="other.jpg", weight=-0.25)`.
            *more: Others that count, too; 16 in all. Stored pictures among them are no matches.
            combine: `mean` for the weighted sum, or `any` for what is like any of them.
            flip: Whether the mirror image of each picture counts as much as the picture itself.
            **arguments: Those of `SearchArguments`.

        Raises:
            MissingFileError: There is no such file.
            InvalidImageError: The picture cannot be read.
            InvalidParameterError: The parts make no query, or the model knows no words.
            ImageNotFoundError: No stored picture has an id.
            CollectionNotFoundError: There is no such collection.
            InvalidFilterError: `filter` is not in the filter language.
        """
        query = Query.parse(parts_of((picture, *more)), combine=combine, flip=flip)
        return self._search(query, **arguments)

    def search_batch(
        self,
        queries: Iterable[Sequence[Picture | Part]],
        *,
        combine: str = "mean",
        flip: bool = False,
        **arguments: Unpack[SearchArguments],
    ) -> Sequence[SearchOut | LookalikeError]:
        """Answers many queries: `[["a.jpg"], ["b.jpg", Part(text="red")]]`, as `search` does.

        Returns what `search` would return for each, in their order, or the error that it would
        raise. Raises what is wrong with `arguments` or with a part, and `MissingFileError`.
        """
        given = [Query.parse(parts_of(one), combine=combine, flip=flip) for one in queries]
        found: deque[SearchOut | LookalikeError] = deque()
        for start in range(0, len(given), _BATCH):
            found += self._search_batch(given[start : start + _BATCH], **arguments)
        return [*found]

    @abstractmethod
    def _search_batch(
        self, queries: Sequence[Query], **arguments: Unpack[SearchArguments]
    ) -> Sequence[SearchOut | LookalikeError]: ...

    @abstractmethod
    def _search(self, query: Query, **arguments: Unpack[SearchArguments]) -> SearchOut: ...

    @abstractmethod
    def search_url(
        self,
        url: str,
        *,
        keep: Callable[[BinaryIO], object] = lambda _: None,
        **arguments: Unpack[SearchArguments],
    ) -> SearchOut:
        """Finds the pictures most like the one at an address; other arguments as for `search`.

        `Client` fetches the picture itself and passes its bytes to `keep`. With `HttpClient` the
        service fetches it, and `keep` is never called.

        Raises:
            FetchingDisabledError: The setting `fetch_urls` is off.
            FetchError: The picture cannot be fetched.
        """

    @abstractmethod
    def similar(self, image_id: str, **arguments: Unpack[SearchArguments]) -> SearchOut:
        """Finds the pictures most like a stored one, which is left out; arguments as for `search`.

        Raises `ImageNotFoundError`.
        """

    def explain(
        self,
        match: str,
        *,
        query: str | None = None,
        picture: Picture | None = None,
        collection: str = DEFAULT_COLLECTION,
    ) -> ExplanationOut:
        """Says which parts of a stored picture, and of what was asked, make their score.

        Args:
            match: The id of a picture of the collection.
            query: The id of another one.
            picture: Instead of `query`, a picture that need not be stored.
            collection: Which one.

        Raises:
            ImageNotFoundError: There is no picture with one of the ids.
            OriginalNotKeptError: The original of one is not here.
            InvalidImageError: The picture cannot be read.
            NotExplainableError: The model's vectors are no means over positions.
            InvalidParameterError: Not one of `query` and `picture` is given.
        """
        check_id(match)
        if query is not None and picture is None:
            return self._explain(match, check_id(query), collection)
        if picture is not None and query is None:
            return self._explain(match, picture, collection, is_file=True)
        raise InvalidParameterError("Give either query, the id of a picture, or picture")

    @abstractmethod
    def _explain(
        self, match: str, query: Picture, collection: str, *, is_file: bool = False
    ) -> ExplanationOut: ...

    def embed(
        self, *items: Picture | Part, collection: str = DEFAULT_COLLECTION
    ) -> NDArray[np.float32]:
        """Returns the vectors of pictures and texts by a collection's model; stores nothing.

        Args:
            *items: Pictures, or parts with a `picture` or a `text`; weights do not count.
            collection: Whose model makes the vectors.

        Returns:
            One row of length 1 for each item: (N, dim).

        Raises:
            InvalidParameterError: An item is something else, or the model knows no words.
            CollectionNotFoundError: There is no such collection.
        """
        parts = parts_of(items)
        if any(part.kind not in {"picture", "text"} or part.crop for part in parts):
            raise InvalidParameterError("Only pictures and texts are embedded, without a crop")
        rows: list[NDArray[np.float32]] = []
        for start in range(0, len(parts), EMBEDDED):
            rows += self._embed(parts[start : start + EMBEDDED], collection)
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    @abstractmethod
    def _embed(self, parts: Sequence[Part], collection: str) -> Sequence[NDArray[np.float32]]: ...

    @abstractmethod
    def get(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> ImageOut:
        """Returns what is stored about one picture. Raises `ImageNotFoundError`."""

    @abstractmethod
    def list(
        self, collection: str = DEFAULT_COLLECTION, *, filter: Mapping[str, Any] | None = None
    ) -> Iterator[ImageOut]:
        """Yields the pictures of a collection, oldest first. Raises `CollectionNotFoundError`."""

    @abstractmethod
    def count(
        self, collection: str = DEFAULT_COLLECTION, *, filter: Mapping[str, Any] | None = None
    ) -> CountOut:
        """Counts the pictures that pass a filter. Raises `CollectionNotFoundError`."""

    @abstractmethod
    def facets(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        fields: Sequence[str] | None = None,
        filter: Mapping[str, Any] | None = None,
        limit: int = 10,
    ) -> FacetsOut:
        """Counts the values that the pictures that pass a filter have under metadata fields.

        Args:
            collection: Which one.
            fields: At most 64, e.g. `["label", "size.w"]`; None for the 32 that most pictures have.
            filter: Only pictures that match; None for all.
            limit: Most values of a field, 1 to 100.

        Raises:
            CollectionNotFoundError: There is no such collection.
            InvalidFilterError: `filter` is not in the filter language.
        """

    @abstractmethod
    def update(
        self, image_id: str, metadata: Mapping[str, Any], *, collection: str = DEFAULT_COLLECTION
    ) -> ImageOut:
        """Changes a picture's metadata: sets the keys that are given; None removes one.

        Raises `ImageNotFoundError`, or `InvalidMetadataError` if the result cannot be stored.
        """

    @abstractmethod
    def delete(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        """Deletes one picture. Raises `ImageNotFoundError`."""

    def delete_many(
        self,
        ids: Iterable[str] | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        everything: bool = False,
        collection: str = DEFAULT_COLLECTION,
        dry_run: bool = False,
    ) -> ChangedOut:
        """Deletes pictures by ids, those that pass a filter, or everything: one of the three.

        Ids that do not exist fail in the answer, and the others are deleted. Each 1,000 pictures
        go in one step. A dry run says how many would be deleted and shows the first 10.

        Raises:
            CollectionNotFoundError: There is no such collection.
            InvalidFilterError: `filter` is not in the filter language.
            InvalidParameterError: None or several of the three are given, or the filter is empty.
        """
        chosen = {"filter": filter, "all": everything, "collection": collection}
        return self._change_all("delete", ids, {**chosen, "dry_run": dry_run})

    def update_many(
        self,
        metadata: Mapping[str, Any],
        ids: Iterable[str] | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        everything: bool = False,
        replace: bool = False,
        collection: str = DEFAULT_COLLECTION,
        dry_run: bool = False,
    ) -> ChangedOut:
        """Changes the metadata of pictures as `update` does, chosen as for `delete_many`.

        With `replace`, `metadata` takes the place of all that is there. A picture whose metadata
        would be too large fails in the answer. Raises as `delete_many`, and `InvalidMetadataError`.
        """
        chosen = {"filter": filter, "all": everything, "collection": collection}
        how = {"dry_run": dry_run, "replace": replace, "metadata": dict(metadata)}
        return self._change_all("update", ids, chosen | how)

    def _change_all(
        self, call: str, ids: Iterable[str] | None, asked: dict[str, Any]
    ) -> ChangedOut:
        """Makes the calls that a change of many pictures takes, and puts the answers together."""
        named = None if ids is None else [*dict.fromkeys(ids)]
        starts = range(0, max(1, len(named or ())), MOST_CHANGED)
        parts: deque[ChangedOut] = deque()
        for start in starts:
            if named is not None:
                asked["ids"] = named[start : start + MOST_CHANGED]
            parts.append(self._change_many(call, asked))
            while (cursor := parts[-1].next_cursor) is not None:
                parts.append(self._change_many(call, asked | {"cursor": cursor}))
        total = parts.popleft().model_copy(update={"next_cursor": None})
        for part in parts:
            total.matched += part.matched if named is not None else 0
            total.changed += part.changed
            total.failed += part.failed
            total.items += part.items
            total.images = (total.images + part.images)[:SHOWN]
        return total

    @abstractmethod
    def _change_many(self, call: str, asked: dict[str, Any]) -> ChangedOut:
        """Makes one change of at most `MOST_CHANGED` pictures, asked for as over HTTP."""

    @abstractmethod
    def thumbnail(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> bytes:
        """Returns a JPEG of at most 256 pixels a side.

        Raises `ImageNotFoundError`, or `OriginalNotKeptError` if the picture's file is not here.
        """

    def duplicates(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        kind: DuplicateKind = DuplicateKind.NEAR,
        threshold: float | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> DuplicatesOut:
        """Finds pictures that are stored more than once: waits for all groups, the largest first.

        `kind` is the weakest kind to find; stricter ones are included. `threshold` is the lowest
        cosine of two duplicates, 0.5 to 1; 0.95 if None.
        """
        found: DuplicatesOut | DuplicatesRunning
        groups, cursor = [], None
        while True:
            found = self._duplicates_page(collection, kind, threshold, cursor)
            if isinstance(found, DuplicatesRunning):
                progress.report(found.done, found.total)
                progress.check()
                time.sleep(_RUNNING_POLL_S)
                continue
            groups += found.groups
            if (cursor := found.next_cursor) is None:
                return found.model_copy(update={"groups": groups})

    @abstractmethod
    def _duplicates_page(
        self, collection: str, kind: DuplicateKind, threshold: float | None, cursor: str | None
    ) -> DuplicatesOut | DuplicatesRunning: ...

    @abstractmethod
    def collections(self) -> Sequence[CollectionOut]:
        """Returns all collections, by name."""

    @abstractmethod
    def make(self, collection: str) -> CollectionOut:
        """Makes an empty collection; one that is there already is left as it is.

        Raises `InvalidCollectionNameError`.
        """

    @abstractmethod
    def rename(self, collection: str, new: str) -> None:
        """Gives a collection another name, in one step.

        Raises `CollectionNotFoundError`, or `ConflictError` if another collection has that name,
        or a job works on one of the two.
        """

    @abstractmethod
    def alias(self, alias: str, collection: str) -> None:
        """Makes `alias` another name of a collection, or moves it there, in one step.

        Raises `CollectionNotFoundError`, or `ConflictError` if a collection has that very name.
        """

    @abstractmethod
    def unalias(self, alias: str) -> None:
        """Removes an alias; its collection stays. Raises `CollectionNotFoundError`."""

    @abstractmethod
    def drop(self, collection: str) -> None:
        """Deletes a collection with its pictures.

        Raises `CollectionNotFoundError`, or `ConflictError` if it has aliases, or is one.
        """

    @abstractmethod
    def vectors(self, collection: str = DEFAULT_COLLECTION) -> Sequence[VectorSetOut]:
        """Returns a collection's vector sets, one for each model that it was embedded with.

        Raises `CollectionNotFoundError`.
        """

    @abstractmethod
    def discard_vectors(self, digest: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        """Deletes vectors that the collection no longer uses, by their set's `passport.digest`.

        Raises `VectorSpaceNotFoundError`, or `ConflictError` if searches use these vectors or a
        job may be making them.
        """

    @abstractmethod
    def reembed(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        model: Mapping[str, Any] | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        """Moves a collection to another model, and waits until it has moved.

        Args:
            collection: Which one.
            model: Model settings by name (`model`, `weights`, `pooling`, `resize`, `input_size`,
                `head`, `int8`); others are those of the client or of the service. `head` None
                means no head.
            progress: Told how far it is, and of pictures that cannot be embedded.

        Returns:
            A sentence on how it ended.

        Raises:
            LookalikeError: It stays on its old model; the text says why.
        """

    @abstractmethod
    def tag(
        self,
        labels: Sequence[str],
        *,
        collection: str = DEFAULT_COLLECTION,
        field: str = "tags",
        templates: Sequence[str] = ("{}",),
        k: int = 1,
        min_score: float | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        """Writes the labels that fit each picture best into its metadata, and waits for the end.

        Args:
            labels: 1 to 1,000 texts.
            collection: Whose pictures; its model must take texts.
            field: The metadata field that is written: `{"labels": [...], "scores": [...]}`, the
                best first.
            templates: Texts with `{}` in the place of the label, as in `a photo of a {}`.
            k: Labels of one picture, 1 to 20.
            min_score: Labels below this cosine are left out; a picture without any loses the
                field.
            progress: Told how far it is, and of pictures whose metadata would be too large.

        Returns:
            A sentence on how it ended.
        """

    @abstractmethod
    def backup(
        self,
        to: str | os.PathLike[str],
        *,
        keys: bool = False,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        """Makes a backup: of all collections, originals, heads and int8 networks.

        Args:
            to: A file whose name ends in `.tar`, `.tar.gz` or `.tgz`, replaced if it is there; or,
                for `Client`, a folder, to which another version is added.
            keys: Whether the service's keys are in it.
            progress: Told of each file or megabyte, and of originals that are damaged.

        Returns:
            A sentence on what is in it.

        Raises:
            ConfigurationError: `to` cannot be used.
            StorageFullError: There is no room.
            ConflictError: Another one into the same place is under way.
        """

    @abstractmethod
    def jobs(self, *, limit: int = 100) -> Sequence[JobOut]:
        """Returns the newest jobs (imports and re-embeddings in the background), newest first."""

    @abstractmethod
    def job(self, job_id: str) -> JobOut:
        """Returns one job as it stands. Raises `JobNotFoundError`."""

    @abstractmethod
    def cancel_job(self, job_id: str) -> JobOut:
        """Ends a job at its next step; what it did is kept. Raises `JobNotFoundError`."""

    def wait_for_job(self, job_id: str, *, progress: Progress = NO_PROGRESS) -> JobOut:
        """Waits until a job has ended; the `check` of `progress` may end the waiting, not the job.

        Raises `JobNotFoundError`, or `ServerError` if the service does not answer for `PATIENCE_S`.
        """
        answered = time.monotonic()
        while True:
            try:
                job = self.job(job_id)
            except ServerError as exc:
                if not exc.passing:
                    raise
                if time.monotonic() >= answered + PATIENCE_S:
                    raise ServerError(
                        f"{exc} Job {job_id} goes on where it was: GET /jobs/{job_id} says how far"
                    ) from exc
            else:
                if job.state.finished:
                    return job
                answered = time.monotonic()
                if job.total is not None:
                    progress.report(job.done, job.total)
            progress.check()
            time.sleep(_JOB_POLL_S)

    @abstractmethod
    def create_key(
        self, name: str, scope: Access, *, expires_at: datetime | None = None
    ) -> NewKeyOut:
        """Makes a key for a service's calls; the answer is the only place that holds it.

        Raises `ConflictError` if the name is taken, or `InvalidParameterError`.
        """

    @abstractmethod
    def access_keys(self) -> Sequence[KeyOut]:
        """Returns the keys that were made and not revoked, in the order made."""

    @abstractmethod
    def revoke_key(self, key: str) -> None:
        """Revokes a key by its name, its id or itself. Raises `KeyNotFoundError`."""

    @abstractmethod
    def audit(self, *, limit: int = 100) -> Sequence[AuditEntryOut]:
        """Returns the newest entries of the audit log, newest first."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Returns what `GET /info` answers; a data folder says nothing of models and limits."""


def _source(found: Found, metadata: Describe | None, folder_field: str | None) -> PictureSource:
    """A file with its metadata. The folder's name wins over what all files share."""
    if metadata is None and folder_field is None:
        return PictureSource.found(found)
    folder = {} if folder_field is None else {folder_field: found.folder}
    if callable(metadata):
        own = {} if found.error else metadata(found.path)
        return PictureSource.found(found, metadata={**folder, **own})
    return PictureSource.found(found, metadata={**(metadata or {}), **folder})
