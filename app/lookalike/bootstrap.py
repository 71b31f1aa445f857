"""The one place that names concrete classes and puts the parts together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.backbones import build_backbone, put_head
from lookalike.config import Settings
from lookalike.cores import available_cores, limit_openmp
from lookalike.errors import ConfigurationError
from lookalike.files.blobs import LocalFiles
from lookalike.files.data_folder import require_data_folder
from lookalike.media.decode import ImageDecoder, ImageLimits
from lookalike.media.fetch_guard import FetchGuard
from lookalike.media.fetching import Fetcher
from lookalike.model_recipes import keep_head, quantized_of, recipe_of, settings_of
from lookalike.models.base import Encoder
from lookalike.models.encoders import Encoders
from lookalike.progress import Progress
from lookalike.services.collection_models import CollectionModels
from lookalike.services.collections import CollectionService
from lookalike.services.duplicates import DuplicateService
from lookalike.services.importing import ImportService, parse_dirs
from lookalike.services.indexing import IndexingService
from lookalike.services.jobs import JobService
from lookalike.services.pictures import Originals, PictureService, file_sweeper
from lookalike.services.readiness import Canary
from lookalike.services.recall_meter import RecallMeter
from lookalike.services.reembedding import REEMBED_KIND, ReembeddingService
from lookalike.services.search import SearchService
from lookalike.services.switching import PutGate
from lookalike.services.vector_set import sample_vectors
from lookalike.store.base import Store
from lookalike.store.effort import Effort
from lookalike.store.embedding_sets import Recipe
from lookalike.store.filters import parse_field_names
from lookalike.store.jobs import JobStore
from lookalike.store.sqlite_jobs import SqliteJobs
from lookalike.worker import Worker

if TYPE_CHECKING:
    from lookalike.store.local.index.policy import Plan
    from lookalike.store.tuning import Tuning

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the shells call; `close` lets go of it all."""

    settings: Settings
    encoders: Encoders
    store: Store
    job_store: JobStore
    files: LocalFiles
    search: SearchService
    indexing: IndexingService
    imports: ImportService
    pictures: PictureService
    collections: CollectionService
    duplicates: DuplicateService
    reembedding: ReembeddingService
    jobs: JobService
    canary: Canary
    recall_meter: RecallMeter
    maintenance: Worker | None

    def close(self) -> None:
        """Finishes what waits, saves, and lets go of the data folder."""
        with contextlib.ExitStack() as parts:  # from the last to the first, whatever one raises
            parts.callback(self.store.close)
            parts.callback(self.job_store.close)
            parts.callback(self.encoders.close)
            parts.callback(self.indexing.close)
            parts.callback(self.recall_meter.close)
            if self.maintenance is not None:
                parts.callback(self.maintenance.close)
            parts.callback(self.duplicates.close)
            parts.callback(self.jobs.close)


def build_services(
    settings: Settings,
    *,
    encoders: Encoders | None = None,
    store: Store | None = None,
    read_only: bool = False,
    on_batch: Callable[[int, float], None] | None = None,
) -> Services:
    """Puts the parts together.

    Args:
        settings: What was asked for.
        encoders: Used instead of what the settings name; the caller's to describe, ours to close.
        store: Used instead of the local store.
        read_only: Change nothing in the data folder, which another process may own.
        on_batch: Told the size and the seconds of every batch that was embedded.

    Raises:
        DataFolderInUseError: Another process owns the data folder.
        WeightsError: The weights cannot be used.
        ConfigurationError: A setting cannot work.
    """
    limit_openmp()
    cores = settings.threads or available_cores()
    with contextlib.ExitStack() as undo:
        if store is None:
            store = open_store(settings, read_only=read_only)
            undo.callback(store.close)
        jobs = open_jobs(settings, read_only=read_only)
        undo.callback(jobs.close)
        store.load()
        if encoders is None:
            encoders = build_encoders(settings, keep=not read_only, on_batch=on_batch)
            undo.callback(encoders.close)
        models = _models(settings, encoders, store, cores=cores, keep=not read_only)
        models.restore()
        services = _assemble(
            settings, encoders, store, jobs, models=models, cores=cores, tidy=not read_only
        )
        undo.pop_all()
    return services


def open_store(settings: Settings, *, read_only: bool = False) -> Store:
    """Opens the local store in the data folder; its owner, unless it is to be read only.

    Raises:
        ConfigurationError: It is to be read only, and nothing is there; or there is no such index
            type.
    """
    if read_only:
        require_data_folder(settings.data_dir)
    from lookalike.store.local.index.faiss_calls import use_at_most  # noqa: PLC0415 - imports faiss
    from lookalike.store.local.index.policy import IndexPolicy  # noqa: PLC0415
    from lookalike.store.local.store import LocalStore  # noqa: PLC0415

    use_at_most(settings.threads or available_cores())
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


def tune_collection(
    settings: Settings,
    collection: str,
    *,
    candidates: Sequence[str],
    k: int,
    queries: int,
    sample: int,
    seed: int,
    progress: Progress,
) -> Tuning:
    """Tries index types on the vectors of a collection.

    Args:
        settings: Name the data folder and the threads.
        collection: Which collection.
        candidates: Index types; several are chosen if there are none.
        k: Matches asked for.
        queries: How many queries at most.
        sample: Vectors that are read at most.
        seed: Chooses vectors and queries.
        progress: Told what is done.
    """
    limit_openmp()
    from lookalike.store.local.index.calibration import tune  # noqa: PLC0415 - imports faiss

    with closing(open_store(settings, read_only=True)) as store:
        vectors = sample_vectors(
            store,
            collection,
            most=sample,
            seed=seed,
            progress=progress.stage("reading vectors"),
        )
        rows = store.count(collection)
    return tune(
        vectors,
        rows=rows,
        candidates=candidates,
        k=k,
        queries=queries,
        seed=seed,
        threads=settings.threads or available_cores(),
        progress=progress,
    )


def plan_index(index_type: str, rows: int, dim: int) -> Plan:
    """What the service builds of an index type for so many images."""
    from lookalike.store.local.index.policy import IndexPolicy  # noqa: PLC0415 - imports faiss

    return IndexPolicy(index_type=index_type).plan(rows, dim)


def open_jobs(settings: Settings, *, read_only: bool = False) -> SqliteJobs:
    """Opens the jobs in the data folder, which the caller owns unless it is to be read only."""
    return SqliteJobs(settings.data_dir / "jobs.db", read_only=read_only)


def build_encoders(
    settings: Settings,
    *,
    keep: bool = False,
    on_batch: Callable[[int, float], None] | None = None,
) -> Encoders:
    """Loads the network that the settings name, behind its queue; `keep` as `build_encoder`."""
    return Encoders(
        build_encoder(settings, cores=settings.threads or available_cores(), keep=keep),
        max_batch=settings.max_batch,
        queue_size=settings.queue_size,
        on_batch=on_batch,
    )


def build_encoder(
    settings: Settings, *, cores: int, keep: bool = False, quantized: str | None = None
) -> Encoder:
    """Loads the network that the settings name, and its head.

    Args:
        settings: What was asked for.
        cores: CPU threads of one call.
        keep: Whether a network that is converted is kept in the data folder, which is ours.
        quantized: Which int8 network, see `build_backbone`.
    """
    backbone = build_backbone(settings, cores=cores, keep=keep, quantized=quantized)
    return backbone if settings.head is None else put_head(backbone, settings.head)


def build_pictures(settings: Settings, store: Store) -> PictureService:
    """What reads and deletes; needs no network."""
    files = LocalFiles(settings.data_dir)
    return PictureService(
        store, files, build_decoder(settings), max_metadata_bytes=settings.max_metadata_bytes
    )


def build_decoder(settings: Settings) -> ImageDecoder:
    """Decodes within the limits that the settings name."""
    limits = ImageLimits(max_bytes=settings.max_file_bytes, max_pixels=settings.max_pixels)
    return ImageDecoder(limits, slots=settings.threads or available_cores())


def _fetcher(settings: Settings, folder: Path) -> Fetcher | None:
    if not settings.fetch_urls:
        return None
    return Fetcher(
        FetchGuard.parse(ports=settings.fetch_ports, allow=settings.fetch_allow or ""),
        folder=folder,
        max_bytes=settings.max_file_bytes,
        timeout_s=settings.fetch_timeout,
        places=settings.max_fetches,
    )


def _assemble(
    settings: Settings,
    encoders: Encoders,
    store: Store,
    job_store: JobStore,
    *,
    models: CollectionModels,
    cores: int,
    tidy: bool,
) -> Services:
    files, decoder = LocalFiles(settings.data_dir), build_decoder(settings)
    meter = RecallMeter(store, share=settings.recall_sample if tidy else 0.0)
    fetcher = _fetcher(settings, files.tmp)
    search = SearchService(encoders, store, decoder, meter=meter, fetcher=fetcher)
    pictures = PictureService(store, files, decoder, max_metadata_bytes=settings.max_metadata_bytes)
    gate = PutGate()
    reembedding = ReembeddingService(
        store,
        pictures,
        decoder,
        gate=gate,
        models=models,
        cores=cores,
        batch=settings.max_batch,
    )
    indexing = IndexingService(
        encoders,
        store,
        files,
        decoder,
        originals=Originals(settings.originals),
        max_metadata_bytes=settings.max_metadata_bytes,
        cores=cores,
        group=settings.max_batch,
        gate=gate,
    )
    imports = _imports(settings, indexing, files)
    if tidy:
        imports.sweep(job_store.unfinished())
    handlers = {REEMBED_KIND: reembedding.as_job, **imports.handlers}
    jobs = JobService(job_store, handlers, ended=imports.ended)
    return Services(
        settings=settings,
        encoders=encoders,
        store=store,
        job_store=job_store,
        files=files,
        search=search,
        indexing=indexing,
        imports=imports,
        pictures=pictures,
        duplicates=DuplicateService(store, pictures),
        reembedding=reembedding,
        jobs=jobs,
        collections=CollectionService(store, jobs, gate),
        canary=Canary(encoders, store, timeout_s=settings.ready_timeout),
        recall_meter=meter,
        maintenance=file_sweeper(store, files) if tidy else None,
    )


def _imports(settings: Settings, indexing: IndexingService, files: LocalFiles) -> ImportService:
    return ImportService(
        indexing,
        folder=settings.data_dir / "imports",
        tmp=files.tmp,
        max_archive_bytes=settings.max_archive_bytes,
        max_file_bytes=settings.max_file_bytes,
        max_metadata_bytes=settings.max_metadata_bytes,
        dirs=parse_dirs(settings.import_dirs),
    )


def _models(
    settings: Settings, encoders: Encoders, store: Store, *, cores: int, keep: bool
) -> CollectionModels:
    def make(recipe: Recipe) -> Encoder:
        own = settings_of(settings, recipe)
        return build_encoder(own, cores=cores, keep=keep, quantized=quantized_of(recipe))

    return CollectionModels(
        encoders,
        store,
        make=make,
        default_recipe=recipe_of(settings),
        keep_head=partial(keep_head, settings),
    )
