"""The one place that names concrete classes and puts the parts together."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.config import Settings, parse_dirs
from lookalike.cores import limit_openmp
from lookalike.errors import ConfigurationError, InvalidParameterError
from lookalike.files.audit import AuditLog
from lookalike.files.data_folder import (
    REBUILT,
    lock_folder,
    require_data_folder,
    require_whole,
    take_rebuilt,
)
from lookalike.files.disk import LocalFiles
from lookalike.media.decode import ImageLimits
from lookalike.media.decoder import ImageDecoder
from lookalike.media.fetch_guard import FetchGuard
from lookalike.media.fetching import Fetcher
from lookalike.models import building
from lookalike.models.base import Encoder
from lookalike.models.encoders import Encoders
from lookalike.models.head import Head, save_head
from lookalike.models.registry import find_family, split_weights
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.progress import Progress, Worker
from lookalike.records import Effort, Finding, ImageRecord
from lookalike.services.access import AccessService
from lookalike.services.backup import BackupService
from lookalike.services.backup_format import Backup
from lookalike.services.calibrating import CalibrationService, Recalibration
from lookalike.services.checks import Canary, OriginalsCheck, RecallMeter
from lookalike.services.duplicates import DuplicateService
from lookalike.services.exchange import read_rows
from lookalike.services.explaining import ExplainService
from lookalike.services.feedback import FeedbackService
from lookalike.services.feeds import FETCHES
from lookalike.services.importing import ImportService
from lookalike.services.indexing import IndexingService, Originals
from lookalike.services.jobs import (
    BACKUP_KIND,
    CALIBRATE_KIND,
    REEMBED_KIND,
    TAG_KIND,
    JobService,
)
from lookalike.services.pictures import CollectionService, PictureService, file_sweeper
from lookalike.services.pipeline import PutGate
from lookalike.services.rebuilding import Rebuild, Rebuilt, salvaged
from lookalike.services.reembedding import CollectionModels, ReembeddingService
from lookalike.services.restoring import restore
from lookalike.services.search import SearchService
from lookalike.services.tagging import TaggingService
from lookalike.services.vector_set import sample_vectors
from lookalike.services.verification import VerificationService
from lookalike.store.access import AccessStore
from lookalike.store.base import Store, count_of
from lookalike.store.filters import parse_field_names
from lookalike.store.jobs import Job, JobStore
from lookalike.store.sqlite import find_damage

if TYPE_CHECKING:
    from lookalike.store.local.index.policy import Plan
    from lookalike.store.tuning import Tuning


class Services:
    """Everything that the shells call; `close` lets go of it all."""

    def __init__(
        self,
        settings: Settings,
        encoders: Encoders,
        store: Store,
        job_store: JobStore,
        *,
        read_only: bool,
    ) -> None:
        models = _models(settings, encoders, store)
        models.restore()
        decoder, gate, files = build_decoder(settings), PutGate(), LocalFiles(settings.data_dir)
        cores, batch = settings.cores, settings.max_batch
        most_metadata = settings.max_metadata_bytes
        self.settings, self.files = settings, files
        self.encoders, self.store, self.job_store = encoders, store, job_store
        self.pictures = PictureService(store, files, decoder, max_metadata_bytes=most_metadata)
        self.duplicates = DuplicateService(store, self.pictures)
        self.recall_meter = RecallMeter(store, share=0.0 if read_only else settings.recall_sample)
        fetcher = _fetcher(settings, files.tmp, places=settings.max_fetches)
        self.search = SearchService(
            encoders, store, decoder, meter=self.recall_meter, fetcher=fetcher
        )
        self.explaining = ExplainService(
            encoders,
            store,
            self.pictures,
            request_of=models.request_of,
            make=partial(_build_beside, settings),
        )
        self.reembedding = ReembeddingService(
            store, self.pictures, gate=gate, models=models, cores=cores, batch=batch
        )
        self.indexing = _indexing(settings, encoders, store, files, decoder=decoder, gate=gate)
        self.imports = ImportService(
            indexing=self.indexing,
            folder=settings.data_dir / "imports",
            tmp=files.tmp,
            take=files.trash.take,
            max_archive_bytes=settings.max_archive_bytes,
            max_file_bytes=settings.max_file_bytes,
            max_metadata_bytes=most_metadata,
            dirs=parse_dirs(settings.import_dirs),
            fetcher=_fetcher(settings, files.tmp, places=FETCHES),
        )
        self.tagging = TaggingService(encoders, store, max_metadata_bytes=most_metadata)
        self.backups = build_backups(settings)
        self.calibrations = CalibrationService(
            store,
            encoders,
            self.pictures,
            comparer=self.duplicates.comparer,
            cores=cores,
            batch=batch,
        )
        self.feedback = FeedbackService(store, decoder, lambda: encoders)
        handlers = {
            REEMBED_KIND: self.reembedding.as_job,
            BACKUP_KIND: self.backups.as_job,
            TAG_KIND: self.tagging.as_job,
            CALIBRATE_KIND: self.calibrations.as_job,
            **self.imports.handlers,
        }
        self.audit = open_audit(settings)
        self.jobs = JobService(job_store, handlers, ended=self._job_ended)
        self._recalibration = Recalibration(self.calibrations, self.jobs)
        self.collections = CollectionService(store, self.jobs, gate)
        self.canary = Canary(encoders, store, decoder, timeout_s=settings.ready_timeout)
        self.originals_check = OriginalsCheck(files)
        self._sweeper: Worker | None = None
        if not read_only:
            self.imports.sweep(job_store.unfinished())
            self._sweeper = file_sweeper(store, files, trash_days=settings.trash_days)
            self.originals_check.begin()

    def resume(self) -> None:
        """Starts to work on jobs, those that an earlier service left first."""
        self.jobs.resume()
        if self.settings.recalibrate:
            self._recalibration.wake()

    def _job_ended(self, job: Job) -> None:
        details = {
            "job": job.id,
            "collection": job.parameters.get("collection"),
            "done": job.done,
            "errors": job.errors,
            "message": job.message,
        }
        self.audit.append(job.kind, who="job", outcome=job.state, details=details)
        self.imports.ended(job)
        if self.settings.recalibrate and job.kind != CALIBRATE_KIND:
            self._recalibration.wake()

    def close(self) -> None:
        """Finishes what waits, saves, and lets go of the data folder."""
        closes = [self.store.close, self.job_store.close, self.encoders.close]
        closes += [self.indexing.close, self.recall_meter.close, self.originals_check.close]
        closes += [] if self._sweeper is None else [self._sweeper.close]
        with ExitStack() as parts:  # from the last to the first, whatever one raises
            for close in (
                *closes,
                self.duplicates.close,
                self.jobs.close,
                self._recalibration.close,
            ):
                parts.callback(close)


def build_services(
    settings: Settings,
    *,
    encoders: Encoders | None = None,
    store: Store | None = None,
    read_only: bool = False,
    on_batch: Callable[[int, float], None] | None = None,
) -> Services:
    """Puts the parts together, with `encoders` and `store` instead of what the settings name.

    Those are closed with the services. `read_only` changes nothing in the data folder, which
    another process may own. `on_batch` is told the size and the seconds of every batch.

    Raises:
        DataFolderInUseError: Another process owns the data folder.
        ConfigurationError: A setting cannot work, or the weights cannot be used.
    """
    limit_openmp()
    with ExitStack() as undo:
        if store is None:
            store = open_store(settings, read_only=read_only)
            undo.callback(store.close)
        jobs = JobStore(settings.data_dir / "jobs.db", read_only=read_only)
        undo.callback(jobs.close)
        store.load()
        if encoders is None:
            encoders = build_encoders(settings, on_batch=on_batch)
            undo.callback(encoders.close)
        services = Services(settings, encoders, store, jobs, read_only=read_only)
        undo.pop_all()
    return services


def open_store(settings: Settings, *, read_only: bool = False) -> Store:
    """Opens the local store in the data folder; its owner, unless it is to be read only.

    Raises:
        ConfigurationError: Nothing is there to be read only, or there is no such index type.
    """
    require_whole(settings.data_dir)
    if read_only:
        require_data_folder(settings.data_dir)
    from lookalike.store.local.index.policy import IndexPolicy  # noqa: PLC0415
    from lookalike.store.local.index.segments import use_at_most  # noqa: PLC0415 - imports faiss
    from lookalike.store.local.store import LocalStore  # noqa: PLC0415

    use_at_most(settings.cores)
    try:
        policy = IndexPolicy(
            index_type=settings.index,
            memory=settings.index_memory,
            recall=settings.index_recall,
            effort=Effort.parse(settings.index_parameters),
        )
    except ConfigurationError as exc:
        raise ConfigurationError(f"LOOKALIKE_INDEX: {exc}") from exc
    return LocalStore(
        settings.data_dir,
        policy=policy,
        filter_fields=parse_field_names(settings.filter_fields),
        filter_s=settings.filter_timeout,
        read_only=read_only,
    )


def open_access(settings: Settings) -> AccessService:
    """Opens the keys of the data folder, also beside the service that owns it."""
    return AccessService(AccessStore(settings.data_dir / "access.db"))


def open_audit(settings: Settings) -> AuditLog:
    """Opens the audit log of the data folder; nothing is written before the first change."""
    return AuditLog(settings.data_dir / "audit", max_bytes=settings.max_audit_bytes)


def tune_collection(
    settings: Settings, collection: str, *, sample: int, seed: int, progress: Progress, **more: Any
) -> Tuning:
    """Tries index types on at most `sample` vectors of a collection; the rest is as of `tune`."""
    limit_openmp()
    from lookalike.store.local.index.calibration import tune  # noqa: PLC0415 - imports faiss

    with closing(open_store(settings, read_only=True)) as store:
        reading = progress.stage("reading vectors")
        vectors = sample_vectors(store, collection, most=sample, seed=seed, progress=reading)
        rows = count_of(store, collection)
    cores = settings.cores
    return tune(vectors, rows=rows, seed=seed, threads=cores, progress=progress, **more)


def plan_index(index_type: str, rows: int, dim: int) -> Plan:
    """What the service builds of an index type for so many images."""
    from lookalike.store.local.index.policy import IndexPolicy  # noqa: PLC0415 - imports faiss

    return IndexPolicy(index_type=index_type).plan(rows, dim)


def build_encoders(
    settings: Settings, *, on_batch: Callable[[int, float], None] | None = None
) -> Encoders:
    """Loads the network that the settings name, behind its queue."""
    return Encoders(
        build_encoder(settings),
        max_batch=settings.max_batch,
        queue_size=settings.queue_size,
        on_batch=on_batch,
    )


def build_encoder(settings: Settings, request: ModelRequest | None = None) -> Encoder:
    """Loads the network and the head of `request`, or those that the settings name."""
    if request is None:
        request = model_request(settings)
        _check_network(settings)
    return building.build_encoder(request, run_options(settings))


def _build_beside(settings: Settings, request: ModelRequest) -> Encoder:
    """Loads a network for a few calls beside the live ones, which compiling would not pay for."""
    return building.build_encoder(request, replace(run_options(settings), compiled=False))


def model_request(
    settings: Settings, model: str | None = None, weights: str | None = None
) -> ModelRequest:
    """The model that the settings name, or another one with these settings.

    Raises `ConfigurationError` for an unknown model, or one that needs weights and has none.
    """
    if model is None:
        model, weights = settings.model, weights or settings.weights
    model, weights = split_weights(model, weights)
    weights = weights or settings.weights or find_family(model).weights
    if not weights:
        raise ConfigurationError(f"The model {model} needs a file: name it as {model}/FILE")
    return ModelRequest(
        model=model,
        weights=weights,
        pooling=settings.pooling,
        resize=settings.resize,
        input_size=settings.input_size,
        head=None if settings.head is None else str(settings.head),
        int8=settings.precision == "int8",
    )


def move_request(settings: Settings, given: Mapping[str, Any] | None = None) -> ModelRequest:
    """The model to move a collection to, its paths absolute.

    `given` are some fields of `ModelRequest`, `head` None for no head; others are the settings'.
    Raises `InvalidParameterError` if there is no such model.
    """
    more = dict(given or {})
    try:
        named = model_request(settings, more.pop("model", None), more.pop("weights", None))
        request = replace(named, **more)
    except ConfigurationError as exc:
        raise InvalidParameterError(str(exc)) from exc
    return replace(
        request,
        weights=_absolute(request.weights),
        head=None if request.head is None else _absolute(str(request.head)),
        int8=request.int8 if find_family(request.model).has_network else False,
    )


def run_options(settings: Settings) -> RunOptions:
    """How models run on this machine."""
    return RunOptions(
        device=settings.device,
        runtime=settings.runtime,
        precision="auto" if settings.precision == "int8" else settings.precision,
        threads=settings.threads,
        compiled=settings.compile,
        networks=settings.data_dir / "models",
        cache=settings.cache_dir / "networks",
    )


def _check_network(settings: Settings) -> None:
    """Refuses settings that only a network can have, if the model has none."""
    if find_family(settings.model).has_network:
        return
    int8 = settings.precision == "int8"
    asked = {"LOOKALIKE_COMPILE": settings.compile, "LOOKALIKE_PRECISION=int8": int8}
    if names := [name for name, is_asked in asked.items() if is_asked]:
        raise ConfigurationError(
            f"{names[0]} is for networks of torch, and the model {settings.model} has no network "
            "of torch: unset it"
        )


def _absolute(text: str) -> str:
    """A path that leads to the same file from everywhere; a name of weights stays a name."""
    path = os.path.expanduser(text)  # noqa: PTH111 - Path refuses texts that are no paths
    return os.path.realpath(path) if os.path.exists(path) else text  # noqa: PTH110


def build_pictures(settings: Settings, store: Store) -> PictureService:
    """What reads and deletes; needs no network."""
    files = LocalFiles(settings.data_dir)
    return PictureService(
        store, files, build_decoder(settings), max_metadata_bytes=settings.max_metadata_bytes
    )


def build_backups(settings: Settings) -> BackupService:
    """Makes backups of the data folder, which any process may own."""
    from lookalike.store.local.snapshot import LocalSnapshots  # noqa: PLC0415 - as `LocalStore`

    folder = settings.data_dir
    require_whole(folder)
    snapshots = LocalSnapshots(folder / "catalog.db")
    to, keep = settings.backup_dir, settings.backup_keep
    return BackupService(folder, LocalFiles(folder), snapshots, to=to, keep=keep)


def restore_backup(source: Path, folder: Path, *, at: str | None, progress: Progress) -> Backup:
    """Restores a backup into a new data folder; see `restore`."""
    from lookalike.store.local.snapshot import LocalSnapshots  # noqa: PLC0415 - as `LocalStore`

    snapshots = LocalSnapshots(folder / "catalog.db")
    return restore(source, folder, snapshots=snapshots, at=at, progress=progress)


def rebuild(settings: Settings, exports: Sequence[Path], progress: Progress) -> Rebuilt:
    """Makes rows for originals that have none, in a new catalog if the one there is unusable.

    Ids, collections, metadata and times are those of the exports, see `read_rows`, or else those
    that can still be read in the old catalog, which is kept under another name. An interrupted
    rebuild goes on.

    Raises:
        ConfigurationError: There are no originals, or a setting cannot work.
        DataFolderInUseError: Another process owns the data folder.
        BackupError: An export is broken.
        StorageError: The disk refuses.
    """
    from lookalike.store.local.fit import is_usable  # noqa: PLC0415 - as `LocalStore`
    from lookalike.store.local.salvage import salvage  # noqa: PLC0415

    limit_openmp()
    folder = settings.data_dir
    require_whole(folder)
    if not (folder / "images").is_dir():
        raise ConfigurationError(f"There are no originals in {folder}; name another --data-dir")
    whole = is_usable(folder)
    records: Callable[[], Iterable[ImageRecord]] = partial(iter, ())
    if exports:
        records = partial(_all_records, exports)
    elif not whole:
        records = partial(salvaged, partial(salvage, folder / "catalog.db"))
    with ExitStack() as undo:
        if not whole:
            undo.callback(lock_folder(folder).release)
        made_in = folder if whole else folder / REBUILT
        noted = undo.enter_context(open_audit(settings).noting_long("rebuild"))
        with ExitStack() as parts:
            store = open_store(settings.model_copy(update={"data_dir": made_in}))
            parts.callback(store.close)
            encoders = build_encoders(settings)
            parts.callback(encoders.close)
            files = LocalFiles(folder)
            how: dict[str, Any] = {"decoder": build_decoder(settings), "gate": PutGate()}
            indexing = _indexing(settings, encoders, store, files, **how)
            parts.callback(indexing.close)
            how = {"original": files.path, "originals": files.originals}
            work = Rebuild(store, indexing, progress=progress, **how)
            # What a whole catalog notes for a sweep are pictures that were deleted.
            rebuilt = work.run(records, left_out=set(store.noted()) if whole else set())
        if not whole:
            rebuilt.replaced = take_rebuilt(folder)
        noted |= {"named": rebuilt.named, "unnamed": rebuilt.unnamed, "failed": rebuilt.failed}
    return rebuilt


def _all_records(exports: Sequence[Path]) -> Iterator[ImageRecord]:
    for path in exports:
        yield from read_rows(path)


def _indexing(
    settings: Settings,
    encoders: Encoders,
    store: Store,
    files: LocalFiles,
    *,
    decoder: ImageDecoder,
    gate: PutGate,
) -> IndexingService:
    return IndexingService(
        encoders,
        store,
        files,
        decoder,
        originals=Originals(settings.originals),
        max_metadata_bytes=settings.max_metadata_bytes,
        cores=settings.cores,
        group=settings.max_batch,
        gate=gate,
    )


def build_verification(
    settings: Settings, store: Store, pictures: PictureService
) -> VerificationService:
    """What checks a data folder; needs no network."""
    folder = settings.data_dir

    def databases(quick: bool) -> Iterator[Finding]:
        for path in (folder / "jobs.db", folder / "access.db"):
            for text in find_damage(path, quick=quick) if path.exists() else ():
                remedy = "restore it from a backup, or move it away"
                yield Finding(kind="database", text=f"{path.name}: {text}; {remedy}")

    return VerificationService(
        store,
        pictures.files,
        pictures,
        folder=folder,
        databases=databases,
        keeps_originals=settings.originals != "none",
        cores=settings.cores,
    )


def build_decoder(settings: Settings) -> ImageDecoder:
    """Decodes within the limits that the settings name."""
    limits = ImageLimits(
        max_bytes=settings.max_file_bytes,
        max_pixels=settings.max_pixels,
        max_seconds=settings.decode_timeout,
    )
    return ImageDecoder(limits, slots=settings.cores)


def _fetcher(settings: Settings, folder: Path, *, places: int) -> Fetcher | None:
    if not settings.fetch_urls:
        return None
    return Fetcher(
        FetchGuard.parse(ports=settings.fetch_ports, allow=settings.fetch_allow or ""),
        folder=folder,
        max_bytes=settings.max_file_bytes,
        timeout_s=settings.fetch_timeout,
        places=places,
    )


def _models(settings: Settings, encoders: Encoders, store: Store) -> CollectionModels:
    def make(request: ModelRequest) -> Encoder:
        if request.head is not None:  # the path of one that `_keep_head` keeps is not absolute
            request = replace(request, head=str(settings.data_dir / request.head))
        return build_encoder(settings, request)

    keep_head = partial(_keep_head, settings.data_dir)
    default = move_request(settings)
    return CollectionModels(encoders, store, make=make, default=default, keep_head=keep_head)


def _keep_head(folder: Path, head: Head) -> str:
    """Keeps a head in the data folder, under its digest; returns its path below that folder."""
    kept = f"heads/{head.digest}.safetensors"
    if not (folder / kept).with_suffix(".json").is_file():  # written last
        save_head(head, folder / kept)
    return kept
