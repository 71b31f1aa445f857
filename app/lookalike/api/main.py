"""Makes the FastAPI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import iter_route_contexts
from fastapi_offline import FastAPIOffline

from lookalike import __version__
from lookalike.api import errors
from lookalike.api.addresses import Proxies
from lookalike.api.admission import Admission, Bodies, InTurn
from lookalike.api.audit import Audit
from lookalike.api.caching import Caching
from lookalike.api.deps import Parts, known_query
from lookalike.api.links import Links
from lookalike.api.monitoring import Metrics, Observe
from lookalike.api.openapi import complete
from lookalike.api.routers import (
    embedding,
    explaining,
    images,
    indexing,
    keys,
    scores,
    search,
    service,
)
from lookalike.api.security import Keys, load_admin_key, load_link_secret
from lookalike.api.uploads import ARCHIVE_BODY_S, ARCHIVES_AT_ONCE, OTHER_FIELDS, UploadLimits
from lookalike.bootstrap import Services, build_services, open_access
from lookalike.config import Settings, parse_networks, parse_origins
from lookalike.errors import ConfigurationError
from lookalike.files.data_folder import make_data_folder
from lookalike.media.decoder import warm_up
from lookalike.models.encoders import Encoders
from lookalike.services.access import AccessService
from lookalike.services.queries import MAX_PARTS
from lookalike.store.base import Store

DESCRIPTION = """
Image similarity search: send a picture, get the most similar pictures of your collection back.

Try it: **POST /search** with any picture. To add pictures with **POST /index**, press *Authorize*
and paste the admin key: it is what `LOOKALIKE_ADMIN_KEY` says, or else lies in the data folder
as `admin.key`.
"""

log = logging.getLogger(__name__)

# What pages of other origins may send, and read.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SENT = "Authorization Content-Type If-None-Match If-Range Range X-API-Key X-Request-ID"
_ANSWERED = (
    "Accept-Ranges Content-Disposition Content-Range ETag Location Retry-After WWW-Authenticate "
    "X-Backup-Bytes X-Request-ID"
)

SPARE_THREADS = 32  # beyond the queue's places: cheap calls are answered while it is full
BODIES_BYTES = 2_000_000_000  # of all bodies that are coming, unless one alone may have more
VECTOR_BYTES = 1_000_000  # of a vector in a form, as JSON or base64
BATCH_BYTES = 4_000_000  # of the queries of a batch, as JSON
FULL_FILES = 4  # files of the largest size that the pictures of a query may have together
FIELD_OVERHEAD_BYTES = 64_000  # of a field beside the metadata of its pictures


def create_app(
    settings: Settings, *, encoders: Encoders | None = None, store: Store | None = None
) -> FastAPI:
    """Makes the application. Its services are built when it starts.

    `encoders` and `store` are used instead of what the settings name.
    """
    metrics = Metrics()
    root_path = settings.root_path or ""
    proxies = Proxies(parse_networks(settings.trusted_proxies))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        make_data_folder(settings.data_dir)
        limiter = to_thread.current_default_thread_limiter()
        limiter.total_tokens = settings.queue_size + SPARE_THREADS
        services = await to_thread.run_sync(build)
        try:
            metrics.watch(services)
            with closing(await to_thread.run_sync(open_access, settings)) as access:
                access.follow()
                app.state.parts = _parts(settings, services, access, metrics, proxies)
                _log_what_runs(services)
                services.resume()
                yield
        finally:
            await to_thread.run_sync(services.close)

    def build() -> Services:
        warm_up()
        return build_services(settings, encoders=encoders, store=store, on_batch=metrics.batch)

    app = FastAPIOffline(
        title="Lookalike",
        summary="Self-hosted image similarity search",
        description=DESCRIPTION,
        version=__version__,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        dependencies=[Depends(known_query)],
        lifespan=lifespan,
        swagger_ui_parameters={"displayRequestDuration": True, "tryItOutEnabled": True},
    )
    errors.install(app)
    app.add_middleware(InTurn, proxies=proxies, is_busy=lambda: app.state.parts.admission.is_busy)
    app.add_middleware(Caching, guarded=_reads_need_key(settings))
    app.add_middleware(Audit)
    _allow_origins(app, parse_origins(settings.cors_origins))
    app.add_middleware(Observe, metrics=metrics, proxies=proxies, root_path=root_path)
    for router in (search, embedding, explaining, indexing, images, service, scores, keys):
        app.include_router(router.router)
    _require_distinct(app, root_path)
    complete(app)
    return app


def _parts(
    settings: Settings,
    services: Services,
    access: AccessService,
    metrics: Metrics,
    proxies: Proxies,
) -> Parts:
    admin, read = settings.admin_key, settings.read_key
    guarded = _reads_need_key(settings)
    live = services.encoders.default
    metadata = settings.max_metadata_bytes
    one_picture = UploadLimits(
        file_bytes=settings.max_file_bytes,
        field_bytes=metadata + FIELD_OVERHEAD_BYTES,
        files=1,
        folder=services.files.tmp,
    )
    query = replace(
        one_picture,
        field_bytes=max(one_picture.field_bytes, VECTOR_BYTES),
        files=MAX_PARTS,
        fields=2 * MAX_PARTS + 2 * OTHER_FIELDS,
        all_bytes=FULL_FILES * settings.max_file_bytes,
        passing=True,
    )
    many = replace(
        one_picture,
        field_bytes=settings.max_files * metadata + FIELD_OVERHEAD_BYTES,
        files=settings.max_files,
        asked="the pictures as files; e.g. curl -F files=@photo.jpg",
    )
    archive = replace(
        one_picture,
        file_bytes=settings.max_archive_bytes,
        body_s=ARCHIVE_BODY_S,
        asked="the archive as a file; e.g. curl -F file=@photos.zip",
        archive=True,
    )
    return Parts(
        services=services,
        keys=Keys(
            admin=admin.get_secret_value() if admin else load_admin_key(settings.data_dir),
            read=read.get_secret_value() if read else None,
            made=access,
            guard_reading=settings.require_key,
            count_wrong=metrics.wrong_keys.inc,
        ),
        links=Links(
            root_path=settings.root_path or "",
            secret=load_link_secret(settings.data_dir, read.get_secret_value() if read else None)
            if guarded and settings.link_lifetime
            else None,
            lifetime_s=settings.link_lifetime,
            guarded=guarded,
        ),
        metrics=metrics,
        proxies=proxies,
        admission=Admission(settings.queue_size, lambda: live.queue_length),
        bodies=Bodies(2 * settings.queue_size, max(BODIES_BYTES, many.body_bytes)),
        archive_admission=Admission(ARCHIVES_AT_ONCE, what="archives"),
        archives=Bodies(ARCHIVES_AT_ONCE, ARCHIVES_AT_ONCE * archive.body_bytes),
        search_limits=one_picture,
        query_limits=query,
        batch_limits=replace(query, files=settings.max_files, field_bytes=BATCH_BYTES),
        index_limits=many,
        archive_limits=archive,
        canary_threads=CapacityLimiter(2),
        metrics_threads=CapacityLimiter(2),
    )


def _reads_need_key(settings: Settings) -> bool:
    return settings.read_key is not None or settings.require_key


def _allow_origins(app: FastAPI, origins: list[str]) -> None:
    """Lets pages of other origins call the service, and read what a front end needs."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_SENT.split(),
            expose_headers=_ANSWERED.split(),
            # A page that `*` allows may be anybody's: it gets no answer that cookies opened.
            allow_credentials="*" not in origins,
        )


def _require_distinct(app: FastAPI, root: str) -> None:
    """Refuses a root path that begins a call's own path: who could tell what a proxy took away?"""
    paths = (context.path for context in iter_route_contexts(app.routes))
    if root and any(f"{path}/".startswith(f"{root}/") for path in paths):
        raise ConfigurationError(
            f"LOOKALIKE_ROOT_PATH: {root} is a path of the service itself; choose another"
        )


def _log_what_runs(services: Services) -> None:
    live = services.encoders.default
    runs = [live.encoder.provenance.get(name) for name in ("device", "precision")]
    facts = (live.spec.model, live.spec.weights, live.spec.dim, *runs)
    log.info("%s with %s weights: %d numbers a picture, %s, %s", *facts)
    for info in services.store.collections():
        log.info("collection %s: %d pictures", info.name, info.count)
