"""`Client`: a data folder from Python."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Unpack

from PIL import Image

from lookalike import __version__, bootstrap
from lookalike.client import (
    BaseClient,
    ImportArguments,
    Outcome,
    Outcomes,
    SearchArguments,
)
from lookalike.client.parts import Picture, name_of, open_picture, opened
from lookalike.client.scores import LocalScores
from lookalike.config import load_settings
from lookalike.cores import limit_openmp
from lookalike.errors import FetchingDisabledError, LookalikeError, MissingFileError
from lookalike.files.audit import MOST_NOTED, AuditLog
from lookalike.files.data_folder import make_data_folder
from lookalike.files.disk import LocalFiles
from lookalike.media.archives import ArchiveLimits
from lookalike.media.manifests import Manifest, is_manifest
from lookalike.media.sources import PictureSource, root_of
from lookalike.models.encoders import Vector
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import (
    DEFAULT_COLLECTION,
    MOST_CHANGED,
    Access,
    DuplicateKind,
    Finding,
    OnConflict,
)
from lookalike.schemas import (
    AuditEntryOut,
    ChangedOut,
    CheckOut,
    CollectionOut,
    CountOut,
    DuplicatesOut,
    DuplicatesRunning,
    ExplanationOut,
    FacetsOut,
    FindingOut,
    ImageOut,
    JobOut,
    KeyOut,
    MatchOut,
    NewKeyOut,
    SearchOut,
    VectorSetOut,
)
from lookalike.services.access import AccessService
from lookalike.services.duplicates import (
    MAX_LIMIT,
    THRESHOLD,
    DuplicateOptions,
    DuplicateService,
    Unfinished,
)
from lookalike.services.exchange import (
    Exported,
    ExportForm,
    export_collection,
    import_collection,
)
from lookalike.services.feeds import ArchiveFeed, ImportOptions, ManifestFeed
from lookalike.services.feeds import Picture as FeedPicture
from lookalike.services.importing import index_feed
from lookalike.services.indexing import IndexItem
from lookalike.services.jobs import JobService
from lookalike.services.pictures import Chosen, CollectionService
from lookalike.services.pipeline import PutGate, grouped
from lookalike.services.queries import Part, Query
from lookalike.services.search import SearchOptions
from lookalike.services.syncing import let_go
from lookalike.services.tagging import Tagging
from lookalike.services.vector_set import VectorSet, stored_vectors
from lookalike.store.base import Store
from lookalike.store.filters import Filter
from lookalike.store.jobs import JobStore
from lookalike.visualization.contact_sheet import Tile, contact_sheet
from lookalike.visualization.heat import drawing

_PAGE = 1000  # pictures
_TILE = 160  # pixels


class Client(LocalScores, BaseClient):
    """A data folder. The network is loaded by the first call that needs it.

    Args:
        data_dir: The folder that holds everything stored, made if it is missing; the setting
            `data_dir` if None.
        read_only: Change nothing but keys; then a service may own the folder meanwhile.
        **settings: Any setting by its name, e.g. `model="resnet18"`, `weights="random"`; others
            come from the environment and `.env`, as for the service.

    Raises:
        ConfigurationError: A setting cannot be used.
        DataFolderInUseError: Another process owns the folder.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        read_only: bool = False,
        **settings: Any,
    ) -> None:
        folder = None if data_dir is None else Path(data_dir)
        self._settings = load_settings(data_dir=folder, **settings)
        self._read_only = read_only
        limit_openmp()
        if not read_only:
            make_data_folder(self._settings.data_dir)
        self._store: Store = bootstrap.open_store(self._settings, read_only=read_only)
        self._pictures = bootstrap.build_pictures(self._settings, self._store)
        self._duplicates = DuplicateService(self._store, self._pictures, wait_s=0.2)
        self._loading = threading.Lock()
        self._loaded: bootstrap.Services | None = None

    def close(self) -> None:
        """Finishes what waits, saves, and lets go of the data folder."""
        self._duplicates.close()
        if self._loaded is not None:
            self._loaded.close()
        if "_job_store" in self.__dict__:
            self._job_store.close()
        if "_access" in self.__dict__:
            self._access.close()
        self._store.close()

    @property
    def _services(self) -> bootstrap.Services:
        """What needs the network, which is loaded for the first caller."""
        with self._loading:
            if self._loaded is None:
                self._loaded = bootstrap.build_services(
                    self._settings, store=self._store, read_only=self._read_only
                )
            return self._loaded

    @cached_property
    def _job_store(self) -> JobStore:
        return JobStore(self._settings.data_dir / "jobs.db", read_only=self._read_only)

    @cached_property
    def _audit(self) -> AuditLog:
        return bootstrap.open_audit(self._settings)

    @cached_property
    def _access(self) -> AccessService:
        return bootstrap.open_access(self._settings)

    @property
    def _jobs(self) -> JobService:
        """Reads and cancels jobs; a service runs them."""
        return JobService(self._job_store, {})

    @property
    def _collections(self) -> CollectionService:
        gate = PutGate() if self._loaded is None else self._loaded.indexing.gate
        return CollectionService(self._store, self._jobs, gate)

    def _index(
        self, sources: Iterable[PictureSource], collection: str, on_conflict: OnConflict
    ) -> Iterator[Outcome]:
        indexing = self._services.indexing
        with self._audit.noting_long("index", collection=collection) as noted:
            for item in indexing.index(sources, collection=collection, on_conflict=on_conflict):
                assert item.source.path is not None
                outcome = _outcome(item.source.path, item)
                noted[outcome.status] = noted.get(outcome.status, 0) + 1
                yield outcome

    def index_archive(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Progress = NO_PROGRESS,
        **arguments: Unpack[ImportArguments],
    ) -> Outcomes:
        """Adds the pictures of an archive; arguments and outcomes as for `index`.

        If the rest of the archive cannot be read, it has an outcome of its own.
        """
        archive, options, outcomes = Path(path), ImportOptions(**arguments), Outcomes()
        collection = options.collection
        with self._audit.noting_long(
            "index_archive", collection=collection, path=str(path)
        ) as noted:
            try:
                feed = ArchiveFeed(
                    archive,
                    ArchiveLimits(file_bytes=self._settings.max_file_bytes),
                    folder=self._services.files.tmp,
                    name=archive.name,
                    options=options,
                )
                self._index_feed(feed, archive, outcomes, progress)
            except LookalikeError as exc:
                outcomes.append(Outcome.failure(archive, exc))
            noted |= Counter(one.status for one in outcomes)
        return outcomes

    def index_manifest(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Progress = NO_PROGRESS,
        **arguments: Unpack[ImportArguments],
    ) -> Outcomes:
        """Adds the pictures that a manifest names; arguments as for `index`, but `exclude`.

        A manifest (CSV with a header, or JSON lines) has a path or a URL in each row, an id if it
        likes, and metadata.

        Returns:
            One outcome for each row. None harms another.

        Raises:
            MissingFileError: There is no such file.
            InvalidParameterError: It is no manifest.
            FetchingDisabledError: It names addresses, and the setting `fetch_urls` is off.
            SpecMismatchError: The collection's vectors were made by another model.
        """
        file, options, outcomes = Path(path), ImportOptions(**arguments), Outcomes()
        manifest = Manifest(file)
        if manifest.addresses and not self._settings.fetch_urls:
            raise FetchingDisabledError
        indexing, fetcher = self._services.indexing, self._services.imports.fetcher
        feed = ManifestFeed(manifest, root_of(file), options, indexing=indexing, fetcher=fetcher)
        with self._audit.noting_long(
            "index_manifest", collection=options.collection, path=str(path)
        ) as noted:
            try:
                self._index_feed(feed, file, outcomes, progress)
            finally:
                noted |= Counter(one.status for one in outcomes)
        return outcomes

    def _seen(self, collection: str, root: str) -> Mapping[str, str]:
        return self._store.seen(collection, root)

    def _lacking(self, collection: str, ids: Sequence[str]) -> set[str]:
        return set(ids) - self._store.find(collection, ids).keys()

    def _bring(
        self,
        top: Path,
        before: Mapping[str, str],  # noqa: ARG002 - what is there already is seen anyway
        progress: Progress,
        arguments: ImportArguments,
    ) -> tuple[Outcomes, None]:
        add = self.index_manifest if is_manifest(top) else self.index
        return add(top, progress=progress, **arguments), None

    def _let_go(
        self, collection: str, root: str, ids: Iterable[str], paths: Sequence[str], *, dry_run: bool
    ) -> Sequence[str]:
        how: dict[str, Any] = {"collection": collection, "root": root}
        if dry_run:
            return let_go(self._store, **how, ids=list(ids), dry_run=True)
        with self._audit.noting("forget_images", **how) as noted:
            going: list[str] = []
            for some in grouped(ids, MOST_CHANGED):
                going += let_go(self._store, **how, ids=some)
                noted |= {"deleted": len(going), "ids": going[:MOST_NOTED]}
            let_go(self._store, **how, paths=paths)
        return going

    def _index_feed(
        self, feed: ArchiveFeed | ManifestFeed, file: Path, outcomes: Outcomes, progress: Progress
    ) -> None:
        total = feed.count(progress)
        outcomes.passed = feed.passed
        groups = index_feed(self._services.indexing, feed.pictures(None), feed.options)
        with closing(groups):
            for picture, item in chain.from_iterable(groups):
                outcomes.append(_outcome_of(file, picture, item))
                progress.report(len(outcomes), total)
                progress.check()
        outcomes.passed = feed.passed

    def _search(self, query: Query, **arguments: Unpack[SearchArguments]) -> SearchOut:
        options = _options(**arguments)
        with opened(query.parts) as parts:
            ready = replace(query, parts=parts)
            return SearchOut.of(self._services.search.search(ready, options))

    def _search_batch(
        self, queries: Sequence[Query], **arguments: Unpack[SearchArguments]
    ) -> Sequence[SearchOut | LookalikeError]:
        return [self._found(query, **arguments) for query in queries]

    def _found(
        self, query: Query, **arguments: Unpack[SearchArguments]
    ) -> SearchOut | LookalikeError:
        try:
            return self._search(query, **arguments)
        except MissingFileError:
            raise
        except LookalikeError as exc:
            return exc

    def _embed(self, parts: Sequence[Part], collection: str) -> Sequence[Vector]:
        with opened(parts) as ready:
            return self._services.search.embed(ready, collection)[1]

    def search_url(
        self,
        url: str,
        *,
        keep: Callable[[BinaryIO], object] = lambda _: None,
        **arguments: Unpack[SearchArguments],
    ) -> SearchOut:
        options = _options(**arguments)
        if not self._settings.fetch_urls:  # the network need not be loaded
            raise FetchingDisabledError
        return SearchOut.of(self._services.search.search_url(url, options, keep=keep))

    def similar(self, image_id: str, **arguments: Unpack[SearchArguments]) -> SearchOut:
        options = _options(**arguments)
        return SearchOut.of(self._services.search.similar(image_id, options))

    def _explain(
        self, match: str, query: Picture, collection: str, *, is_file: bool = False
    ) -> ExplanationOut:
        explain = partial(self._services.explaining.explain, collection)
        if is_file:
            with open_picture(query) as file:
                explanation = explain(file, match)
        else:
            explanation = explain(str(query), match)
        return ExplanationOut.drawn(explanation, drawing(explanation))

    def get(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> ImageOut:
        return ImageOut.of(self._pictures.get(collection, image_id))

    def list(
        self, collection: str = DEFAULT_COLLECTION, *, filter: Mapping[str, Any] | None = None
    ) -> Iterator[ImageOut]:
        cursor: str | None = None
        while True:
            page = self._pictures.page(
                collection, cursor=cursor, limit=_PAGE, where=_filter(filter)
            )
            yield from map(ImageOut.of, page.records)
            if (cursor := page.next_cursor) is None:
                return

    def count(
        self, collection: str = DEFAULT_COLLECTION, *, filter: Mapping[str, Any] | None = None
    ) -> CountOut:
        where = _filter(filter)
        count = self._pictures.count(collection, where)
        warnings = self._pictures.warnings(collection, where)
        return CountOut(collection=collection, count=count, warnings=warnings)

    def facets(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        fields: Sequence[str] | None = None,
        filter: Mapping[str, Any] | None = None,
        limit: int = 10,
    ) -> FacetsOut:
        where = _filter(filter)
        found = self._pictures.facets(collection, fields=fields, where=where, limit=limit)
        warnings = self._pictures.warnings(collection, where, fields=fields or ())
        return FacetsOut.of_all(collection, found, warnings)

    def update(
        self, image_id: str, metadata: Mapping[str, Any], *, collection: str = DEFAULT_COLLECTION
    ) -> ImageOut:
        with self._audit.noting("patch_image", collection=collection, image_id=image_id):
            return ImageOut.of(self._pictures.patch_metadata(collection, image_id, metadata))

    def delete(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        with self._audit.noting("delete_image", collection=collection, image_id=image_id):
            self._pictures.delete(collection, image_id)

    def _change_many(self, call: str, asked: dict[str, Any]) -> ChangedOut:
        noted = {name: value for name, value in asked.items() if name not in {"ids", "metadata"}}
        with self._audit.noting(f"{call}_images", **noted) as details:
            chosen = Chosen(
                collection=asked["collection"],
                ids=asked.get("ids"),
                where=_filter(asked["filter"]),
                everything=asked["all"],
                cursor=asked.get("cursor"),
            )
            dry_run: bool = asked["dry_run"]
            if call == "delete":
                changed = self._pictures.delete_many(chosen, dry_run=dry_run)
            else:
                how = {"replace": asked["replace"], "dry_run": dry_run}
                changed = self._pictures.update_many(chosen, asked["metadata"], **how)
            details |= {"changed": len(changed.ids), "ids": changed.ids[:MOST_NOTED]}
        status: Any = f"{call}d"
        return ChangedOut.of_all(status, chosen, changed, dry_run=dry_run)

    def thumbnail(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> bytes:
        _, file = self._pictures.thumbnail(collection, image_id)
        with file:
            return file.read()

    def _duplicates_page(
        self, collection: str, kind: DuplicateKind, threshold: float | None, cursor: str | None
    ) -> DuplicatesOut | DuplicatesRunning:
        options = DuplicateOptions(
            collection=collection,
            kind=kind,
            threshold=THRESHOLD if threshold is None else threshold,
            limit=MAX_LIMIT,
            cursor=cursor,
        )
        found = self._duplicates.find(options)
        if isinstance(found, Unfinished):
            return DuplicatesRunning.of(found)
        return DuplicatesOut.of(found)

    def collections(self) -> Sequence[CollectionOut]:
        """Returns all collections, by name; loads the network to tell which can be searched."""
        return CollectionOut.of_all(self._store.collections(), self._services.encoders.live)

    def make(self, collection: str) -> CollectionOut:
        with self._audit.noting("make_collection", name=collection):
            self._collections.make(collection, self._services.encoders.default.encoder)
        return next(one for one in self.collections() if collection in {one.name, *one.aliases})

    def rename(self, collection: str, new: str) -> None:
        with self._audit.noting("rename_collection", name=collection, to=new):
            self._collections.rename(collection, new)

    def alias(self, alias: str, collection: str) -> None:
        with self._audit.noting("put_alias", name=alias, collection=collection):
            self._collections.alias(alias, collection)

    def unalias(self, alias: str) -> None:
        with self._audit.noting("delete_alias", name=alias):
            self._collections.unalias(alias)

    def drop(self, collection: str) -> None:
        """Deletes a collection, and cancels the imports into it that a service left."""
        # Waits, because what is done in the background might not be done by the end.
        with self._audit.noting("delete_collection", name=collection):
            self._collections.drop(collection, wait=True)

    def vectors(self, collection: str = DEFAULT_COLLECTION) -> Sequence[VectorSetOut]:
        return [VectorSetOut.of(one) for one in self._collections.vector_sets(collection)]

    def discard_vectors(self, digest: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        with self._audit.noting("delete_vectors", name=collection, digest=digest):
            self._collections.discard(collection, digest)

    def reembed(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        model: Mapping[str, Any] | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        """As `BaseClient.reembed`; if it is interrupted, the next call goes on where it was."""
        self._pictures.page(collection, limit=1)  # raises before the network is loaded
        request = bootstrap.move_request(self._settings, model)
        with self._audit.noting_long("reembed", name=collection):
            return self._services.reembedding.run(collection, request, progress)

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
        """As `BaseClient.tag`; if it is interrupted, the next call goes on where it was."""
        how: dict[str, Any] = {"field": field, "templates": templates, "k": k}
        tagging = Tagging(labels=labels, collection=collection, min_score=min_score, **how)
        self._pictures.page(collection, limit=1)  # raises before the network is loaded
        with self._audit.noting_long("tag", name=collection):
            return self._services.tagging.run(tagging, progress)

    def backup(
        self,
        to: str | os.PathLike[str],
        *,
        keys: bool = False,
        keep: int | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        """As `BaseClient.backup`; a folder keeps the newest `keep` versions, 7 if None."""
        backups = bootstrap.build_backups(self._settings)
        kept = self._settings.backup_keep if keep is None else keep
        with self._audit.noting("backup", to=str(to), keys=keys):
            return str(backups.write(Path(to), keys=keys, keep=kept, progress=progress))

    def jobs(self, *, limit: int = 100) -> Sequence[JobOut]:
        """Returns the newest jobs that a service left in the folder, newest first."""
        found, _ = self._jobs.page(limit=limit)
        return [JobOut.of(job) for job in found]

    def job(self, job_id: str) -> JobOut:
        return JobOut.of(self._jobs.get(job_id))

    def cancel_job(self, job_id: str) -> JobOut:
        """Ends a job; one that a service began ends when the service starts again."""
        with self._audit.noting("cancel_job", job_id=job_id):
            return JobOut.of(self._jobs.cancel(job_id))

    def create_key(
        self, name: str, scope: Access, *, expires_at: datetime | None = None
    ) -> NewKeyOut:
        with self._audit.noting("create_key", name=name, scope=scope) as noted:
            key, text = self._access.create(name, scope, expires_at=expires_at)
            noted |= {"id": key.id, "expires_at": key.expires_at}
        return NewKeyOut(**KeyOut.of(key).model_dump(), key=text)

    def access_keys(self) -> Sequence[KeyOut]:
        return [KeyOut.of(key) for key in self._access.list()]

    def revoke_key(self, key: str) -> None:
        with self._audit.noting("revoke_key", key=key) as noted:
            revoked = self._access.revoke(key)
            noted |= {"name": revoked.name, "id": revoked.id}

    def audit(self, *, limit: int = 100) -> Sequence[AuditEntryOut]:
        return [AuditEntryOut(**one) for one in self._audit.page(limit=limit)[0]]

    def info(self) -> dict[str, Any]:
        """Returns what is stored, in the shape of `GET /info`; loads no network."""
        return {
            "version": __version__,
            "collections": [
                one.model_dump(exclude={"searchable"})
                for one in CollectionOut.of_all(self._store.collections(), ())
            ],
            "store": self._store.describe(),
        }

    # What only a data folder can do

    def export_collection(
        self,
        collection: str,
        to: str | os.PathLike[str],
        *,
        form: ExportForm = ExportForm.PARQUET,
        originals: bool = True,
        progress: Progress = NO_PROGRESS,
    ) -> Exported:
        """Writes a collection as files for other programs; see `services.exchange`.

        Args:
            collection: Which one.
            to: A new or an empty folder, or that of an earlier export.
            form: Rows as Parquet with vectors, or as JSON lines without them.
            originals: Whether the files of the pictures are copied too.
            progress: Told of each picture, and of originals that are damaged.

        Raises:
            CollectionNotFoundError: There is no such collection.
            ConfigurationError: `to` holds something else, or the extra `parquet` is missing.
        """
        files = LocalFiles(self._settings.data_dir)
        return export_collection(
            self._store,
            files,
            collection,
            Path(to),
            form=form,
            originals=originals,
            progress=progress,
        )

    def import_collection(
        self,
        source: str | os.PathLike[str],
        *,
        collection: str | None = None,
        embed: bool = False,
        on_conflict: OnConflict = OnConflict.REPLACE,
        progress: Progress = NO_PROGRESS,
    ) -> Outcomes:
        """Adds the pictures of an export, under their ids.

        Args:
            source: The folder of an export, or its file with the rows.
            collection: Where to; the name that the export has if None.
            embed: Whether vectors are made anew from the originals, instead of taken over.
            on_conflict: What to do with ids that exist.
            progress: Told of each picture.

        Returns:
            One outcome for each picture.

        Raises:
            BackupError: It is no export, or it is damaged.
            SpecMismatchError: The vectors were made by another model.
        """
        indexing, path, outcomes = self._services.indexing, Path(source), Outcomes()
        how: dict[str, Any] = {"collection": collection, "embed": embed}
        with self._audit.noting_long("import_collection", source=str(path), **how) as noted:
            how |= {"on_conflict": on_conflict, "progress": progress}
            for item in import_collection(indexing, path, **how):
                outcomes.append(_outcome(Path(item.source.filename), item))
            noted |= Counter(one.status for one in outcomes)
        return outcomes

    def check(
        self, *, quick: bool = False, repair: bool = False, progress: Progress = NO_PROGRESS
    ) -> CheckOut:
        """Compares rows, files, digests, vectors and indexes with each other.

        Args:
            quick: Leaves out what reads every vector and every file.
            repair: Makes again what can be made, and checks once more.
            progress: Told how far it is, and what cannot be mended.

        Raises:
            StorageError: With `repair`, the disk refuses, or the folder was opened to read only.
        """
        verification = bootstrap.build_verification(self._settings, self._store, self._pictures)
        found, before = verification.find(progress, quick=quick), list[Finding]()
        if repair and found:
            before = found
            with self._audit.noting("repair", findings=len(found)):
                verification.mend(found, progress, complete=self._complete)
            found = verification.find(progress, quick=quick)
        return CheckOut(
            pictures=sum(one.count for one in self._store.collections()),
            findings=[FindingOut.of(one) for one in found],
            repaired=[FindingOut.of(one) for one in before if one not in found],
        )

    def _complete(self, collection: str, progress: Progress) -> None:
        self._services.reembedding.complete(collection, progress)

    def show(
        self,
        picture: Picture,
        *,
        k: int = 5,
        collection: str = DEFAULT_COLLECTION,
        label_field: str | None = None,
        label: Any = None,
    ) -> Image.Image:
        """Searches, and draws the picture beside its matches with rank, score and name: in RGB.

        Matches that hold `label` in the metadata field `label_field` are framed green, others red.
        """
        tiles = [
            Tile(
                image=self._picture_or_none(match, collection),
                name=match.filename,
                rank=match.rank,
                score=match.score,
                right=None if label_field is None else match.metadata.get(label_field) == label,
            )
            for match in self.search(picture, k=k, collection=collection).matches
        ]
        with open_picture(picture) as file:
            query = self._pictures.decode(file, size=_TILE)
        return contact_sheet(Tile(image=query, name=name_of(picture)), tiles, tile_size=_TILE)

    def picture(
        self, image_id: str, *, collection: str = DEFAULT_COLLECTION, size: int = 256
    ) -> Image.Image:
        """Returns a stored picture, upright RGB, no side reduced below `size` pixels.

        Raises `ImageNotFoundError`, or `OriginalNotKeptError` if the picture's file is not here.
        """
        return self._pictures.open(collection, image_id, size=size)

    def vector_set(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        label_field: str | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> VectorSet:
        """Returns the pictures that match with their vectors, for evaluation and maps.

        `label_field` is the metadata field that says what a picture shows. Raises
        `CollectionNotFoundError`, or `InvalidParameterError` if no picture matches or has it.
        """
        return stored_vectors(
            self._store, self._pictures, collection, label_field=label_field, where=_filter(filter)
        )

    def _picture_or_none(self, match: MatchOut, collection: str) -> Image.Image | None:
        try:
            return self.picture(match.id, collection=collection, size=_TILE)
        except LookalikeError:
            return None


def _outcome(path: Path, item: IndexItem) -> Outcome:
    status = "failed" if item.status is None else item.status.value
    copied: dict[str, Any] = {"copy_of": item.copy_of, "kept_metadata": item.kept_metadata}
    return Outcome(path=path, status=status, id=item.id, error=item.error, **copied)


def _outcome_of(file: Path, picture: FeedPicture, item: IndexItem) -> Outcome:
    """The outcome of a picture of an archive or a manifest."""
    if picture.given is None:
        return _outcome(file / picture.name, item)
    return replace(_outcome(Path(f"{file}:{picture.cursor}"), item), given=picture.given)


def _options(*, filter: Mapping[str, Any] | None = None, **others: Any) -> SearchOptions:
    return SearchOptions(where=_filter(filter), **others)


def _filter(given: Mapping[str, Any] | None) -> Filter | None:
    return None if given is None else Filter.parse(dict(given))
