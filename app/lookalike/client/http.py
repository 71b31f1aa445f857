"""`HttpClient`: a running service from Python."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, Unpack
from urllib.parse import quote

import httpx2

from lookalike.client import (
    BaseClient,
    ImportArguments,
    Outcome,
    Outcomes,
    SearchArguments,
)
from lookalike.client.parts import Picture, batch_of, form_of, name_of, open_picture, sent_as
from lookalike.client.scores import HttpScores
from lookalike.errors import (
    CollectionNotFoundError,
    ConfigurationError,
    ImageExistsError,
    LookalikeError,
    ServerError,
    UnreadableImageError,
)
from lookalike.files.disk import atomic_write, disk_errors
from lookalike.media.manifests import is_manifest
from lookalike.media.sources import PictureSource, root_of
from lookalike.models.encoders import Vector
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import (
    DEFAULT_COLLECTION,
    MOST_CHANGED,
    Access,
    DuplicateKind,
    OnConflict,
    canonical_json,
    check_collection_name,
    check_id,
    composed,
    key_id,
    utc_text,
)
from lookalike.schemas import (
    Answer,
    AuditEntryOut,
    AuditOut,
    BatchOut,
    ChangedOut,
    CollectionOut,
    CollectionsOut,
    CountOut,
    DuplicatesOut,
    DuplicatesRunning,
    EmbedOut,
    ExplanationOut,
    FacetsOut,
    ForgottenOut,
    ImageOut,
    ImagesOut,
    JobOut,
    JobsOut,
    KeyOut,
    KeysOut,
    NewKeyOut,
    PathsOut,
    SearchOut,
    VectorSetOut,
    VectorSetsOut,
)
from lookalike.services.backup_format import is_tar, require_end, require_no_other
from lookalike.services.pipeline import grouped
from lookalike.services.queries import Part, Query, vector_of
from lookalike.services.syncing import UNKNOWN

ATTEMPTS = 8  # of a call while the service says that it is busy
PARALLEL = 4  # uploads at a time
TIMEOUT_S = 120.0
ARCHIVE_TIMEOUT_S = 900.0  # until an archive that was sent is on the service's disk
BACKUP_TIMEOUT_S = 900.0  # between two blocks: before the first, the catalog is copied
BATCH_FILES = 16
BATCH_BYTES = 16_000_000
PAGE = 1000

_EMBEDDED = ("file", "text")  # fields of POST /embed, in the order of its answer
_FATAL = {401, 403, 404, 405, 409, 429}  # answers to an upload that the next one would get, too
_MB = 1_000_000
_T = TypeVar("_T", bound=Answer)


class HttpClient(HttpScores, BaseClient):
    """A running service.

    Args:
        server: Its address, e.g. `http://localhost:8000`.
        api_key: A key whose scope includes the calls to be made.

    Raises:
        ServerError: `server` is no address.
    """

    def __init__(self, server: str, api_key: str | None = None) -> None:
        headers = {"X-API-Key": api_key} if api_key else {}
        if not server.startswith(("http://", "https://")):
            raise ServerError(f"{server!r} is no address; write http://{server}")
        try:
            self._http = httpx2.Client(base_url=server, headers=headers, timeout=TIMEOUT_S)
        except (httpx2.InvalidURL, ValueError) as exc:
            raise ServerError(f"{server!r} is no address: {exc}") from exc
        self._server = server
        self._met: set[str] = set()  # digests of files that the present `index` came by
        # During a sync: the paths below its root, with the ids of their pictures.
        self._before: Mapping[str, str] | None = None

    def close(self) -> None:
        self._http.close()

    # Indexing

    def _index(
        self, sources: Iterable[PictureSource], collection: str, on_conflict: OnConflict
    ) -> Iterator[Outcome]:
        """Sends files in small batches, several at a time; what is there already is not sent."""
        self._met.clear()
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="send") as pool:
            sent: deque[Future[list[Outcome]]] = deque()
            for batch in _batches(sources):
                sent.append(pool.submit(self._send, batch, collection, on_conflict))
                if len(sent) > 2 * PARALLEL:
                    yield from sent.popleft().result()
            while sent:
                yield from sent.popleft().result()

    def _send(
        self, batch: Sequence[PictureSource], collection: str, on_conflict: OnConflict
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        fresh: list[tuple[PictureSource, bytes]] = []
        for source in batch:
            try:
                content = _read(source)
            except UnreadableImageError as exc:
                outcomes.append(Outcome.failure(_path(source), exc))
                continue
            if (known := self._known(source, content, collection)) is not None:
                outcomes.append(known)
            else:
                fresh.append((source, content))
        return outcomes + (self._upload(fresh, collection, on_conflict) if fresh else [])

    def _known(self, source: PictureSource, content: bytes, collection: str) -> Outcome | None:
        """What became of a file whose bytes stand there already, its path with them, if so."""
        digest = hashlib.sha256(content).hexdigest()
        is_met = digest in self._met
        self._met.add(digest)
        answer = self._request("GET", f"/images/{digest[:16]}", params={"collection": collection})
        if answer.status_code != 200:
            return None
        stored = _json(answer)
        wanted = stored["metadata"] if source.metadata is None else source.metadata
        same = canonical_json(composed(wanted)) == canonical_json(stored["metadata"])
        if not same or stored["sha256"] != digest:
            return None
        copy_of = None
        if "path" in stored and source.place is not None:  # not an older service
            paths = [stored["path"], *stored["copies"]]
            if is_met or source.place.path not in paths:  # equal paths may be of two folders
                return None
            if self._before is not None and self._before.get(source.place.path) != stored["id"]:
                return None
            copy_of = None if source.place.path == paths[0] else paths[0]
        known = str(stored["id"])
        return Outcome(path=_path(source), status="unchanged", id=known, copy_of=copy_of)

    def _upload(
        self, fresh: Sequence[tuple[PictureSource, bytes]], collection: str, on_conflict: OnConflict
    ) -> list[Outcome]:
        data = {"collection": collection, "on_conflict": on_conflict.value}
        if any(source.metadata is not None for source, _ in fresh):
            data["metadata"] = json.dumps([source.metadata for source, _ in fresh])
        places = [source.place for source, _ in fresh if source.place is not None]
        if len(places) == len(fresh):
            data["root"] = places[0].root
            data["paths"] = json.dumps([place.path for place in places])
        files = [("files", (source.filename, content)) for source, content in fresh]
        answer = self._request("POST", "/index", data=data, files=files)
        body = _json(answer)
        if "items" in body:
            pairs = zip(fresh, body["items"], strict=True)
            return [_outcome(_path(source), item) for (source, _), item in pairs]
        error = _error(answer)
        fatal = answer.status_code in _FATAL and not isinstance(error, ImageExistsError)
        if fatal or answer.is_server_error or answer.is_success:
            raise error
        if len(fresh) == 1:
            return [Outcome.failure(_path(fresh[0][0]), error)]
        # One of them was too much for all: each is sent on its own.
        return [self._upload([one], collection, on_conflict)[0] for one in fresh]

    def index_archive(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Progress = NO_PROGRESS,
        **options: Unpack[ImportArguments],
    ) -> JobOut:
        """Sends a zip or tar file, whose pictures the service indexes in the background: as a job.

        `progress` is told how many megabytes were sent; other options are as for `index`.
        """
        return self._send_file("/index/archive", Path(path), progress, options)

    def _send_file(
        self, call: str, path: Path, progress: Progress, options: ImportArguments, **more: str
    ) -> JobOut:
        form = {**_given(options), **more}
        if "metadata" in form:
            form["metadata"] = json.dumps(form["metadata"])
        with open_picture(path) as opened:
            file = _Reported(opened.fileno(), path.name, progress)
            sent = {"data": form, "files": {"file": (path.name, file)}}
            return self._ask(JobOut, "POST", call, timeout=ARCHIVE_TIMEOUT_S, **sent)

    def index_folder(self, path: str, **options: Unpack[ImportArguments]) -> JobOut:
        """Has the service index a folder of its own machine; options as for `index`.

        Raises `ImportsDisabledError` or `PathNotAllowedError` if the service may not read it.
        """
        return self._ask(JobOut, "POST", "/index/folder", json={"path": path, **_given(options)})

    def index_manifest(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Progress = NO_PROGRESS,
        **options: Unpack[ImportArguments],
    ) -> JobOut:
        """Sends a manifest; the service fetches what it names in the background: as a job.

        It fetches addresses if it may, and reads files of its own machine below its
        `LOOKALIKE_IMPORT_DIRS`. `progress` and options are as for `index_archive`, but `exclude`.
        """
        root = root_of(Path(path))
        return self._send_file("/index/manifest", Path(path), progress, options, root=root)

    def _seen(self, collection: str, root: str) -> Mapping[str, str]:
        path = f"/collections/{check_collection_name(collection)}/paths"
        try:
            return self._ask(PathsOut, "GET", path, params={"root": root}).paths
        except CollectionNotFoundError:
            return {}

    def _lacking(self, collection: str, ids: Sequence[str]) -> set[str]:
        given = {one for one in ids if not one.startswith(UNKNOWN)}
        try:
            found = self.delete_many(given, collection=collection, dry_run=True) if given else None
        except CollectionNotFoundError:
            return set(ids)
        failed = {one.id for one in found.items} if found else set()
        return failed | (set(ids) - given)

    def _bring(
        self, top: Path, before: Mapping[str, str], progress: Progress, arguments: ImportArguments
    ) -> tuple[Outcomes, JobOut | None]:
        if not is_manifest(top):
            self._before = before
            try:
                return self.index(top, progress=progress, **arguments), None
            finally:
                self._before = None
        begun = self.index_manifest(top, progress=progress, **arguments)
        job = self.wait_for_job(begun.id, progress=progress)
        if job.state in {"failed", "canceled"}:
            raise ServerError(f"Job {job.id} is {job.state}: {job.message}; nothing was deleted")
        texts = [*job.error_texts, *["see the service's log"] * (job.errors - len(job.error_texts))]
        return Outcomes(Outcome.failure(top, ServerError(text)) for text in texts), job

    def _let_go(
        self, collection: str, root: str, ids: Iterable[str], paths: Sequence[str], *, dry_run: bool
    ) -> Sequence[str]:
        body = {"collection": collection, "root": root, "dry_run": dry_run}
        going: list[str] = []
        for name, some in (("ids", ids), ("paths", paths)):
            for part in grouped(some, MOST_CHANGED):
                asked = body | {name: part}
                going += self._ask(ForgottenOut, "POST", "/images/forget", json=asked).deleted
        return going

    # Searching

    def _search(self, query: Query, **arguments: Unpack[SearchArguments]) -> SearchOut:
        fields, sent = form_of(query)
        form = {**_form(arguments), **fields}
        return self._ask(SearchOut, "POST", "/search", data=form, files=sent)

    def _search_batch(
        self, queries: Sequence[Query], **arguments: Unpack[SearchArguments]
    ) -> Sequence[SearchOut | LookalikeError]:
        asked, sent = batch_of(queries)
        options = _fields(arguments)
        asked = [{**options, **one} for one in asked]
        form = {"queries": (None, json.dumps({"queries": asked}))}
        answer = self._ask(BatchOut, "POST", "/search/batch", files=[*form.items(), *sent])
        return [
            one if isinstance(one, SearchOut) else _kind(one.error.code)(one.error.detail)
            for one in answer.results
        ]

    def _embed(self, parts: Sequence[Part], collection: str) -> Sequence[Vector]:
        sent = [("file" if part.text is None else "text", sent_as(part)) for part in parts]
        form = {"collection": collection, "encoding": "base64"}
        found = self._ask(EmbedOut, "POST", "/embed", data=form, files=sent)
        kinds = [_EMBEDDED.index(name) for name, _ in sent]
        answered = sorted(range(len(sent)), key=kinds.__getitem__)
        made = {
            place: vector_of(str(one)) for place, one in zip(answered, found.vectors, strict=True)
        }
        return [made[place] for place in range(len(sent))]

    def search_url(
        self,
        url: str,
        *,
        keep: Callable[[BinaryIO], object] = lambda _: None,  # noqa: ARG002 - the service fetches
        **arguments: Unpack[SearchArguments],
    ) -> SearchOut:
        content = json.dumps({"url": url, **_fields(arguments)})  # ASCII, whatever the address is
        headers = {"Content-Type": "application/json"}
        return self._ask(SearchOut, "POST", "/search/url", content=content, headers=headers)

    def similar(self, image_id: str, **arguments: Unpack[SearchArguments]) -> SearchOut:
        path = f"/images/{check_id(image_id)}/similar"
        return self._ask(SearchOut, "GET", path, params=_form(arguments))

    def _explain(
        self, match: str, query: Picture, collection: str, *, is_file: bool = False
    ) -> ExplanationOut:
        asked = {"match": match, "collection": collection}
        if not is_file:
            return self._ask(ExplanationOut, "GET", "/explain", params=asked | {"query": query})
        with open_picture(query) as file:
            sent = {"file": (name_of(query), file.read())}
        return self._ask(ExplanationOut, "POST", "/explain", data=asked, files=sent)

    # Pictures

    def get(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> ImageOut:
        return ImageOut.read(self._image("GET", image_id, collection))

    def list(
        self, collection: str = DEFAULT_COLLECTION, *, filter: Mapping[str, Any] | None = None
    ) -> Iterator[ImageOut]:
        query = {"collection": collection, "limit": PAGE, **_form({"filter": filter})}
        while True:
            page = self._ask(ImagesOut, "GET", "/images", params=query)
            yield from page.images
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def count(
        self, collection: str = DEFAULT_COLLECTION, *, filter: Mapping[str, Any] | None = None
    ) -> CountOut:
        path = f"/collections/{check_collection_name(collection)}/count"
        return self._ask(CountOut, "GET", path, params=_form({"filter": filter}))

    def facets(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        fields: Sequence[str] | None = None,
        filter: Mapping[str, Any] | None = None,
        limit: int = 10,
    ) -> FacetsOut:
        path = f"/collections/{check_collection_name(collection)}/facets"
        query = {"field": fields, "limit": limit, **_form({"filter": filter})}
        return self._ask(FacetsOut, "GET", path, params=_given(query))

    def update(
        self, image_id: str, metadata: Mapping[str, Any], *, collection: str = DEFAULT_COLLECTION
    ) -> ImageOut:
        body = {"metadata": dict(metadata)}
        return ImageOut.read(self._image("PATCH", image_id, collection, json=body))

    def delete(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        self._image("DELETE", image_id, collection)

    def _change_many(self, call: str, asked: dict[str, Any]) -> ChangedOut:
        return self._ask(ChangedOut, "POST", f"/images/{call}", json=_given(asked))

    def _image(self, method: str, image_id: str, collection: str, **options: Any) -> Any:
        path, query = f"/images/{check_id(image_id)}", {"collection": collection}
        return self._call(method, path, params=query, **options)

    def thumbnail(self, image_id: str, *, collection: str = DEFAULT_COLLECTION) -> bytes:
        path = f"/images/{check_id(image_id)}/thumbnail"
        return self._answer("GET", path, params={"collection": collection}).content

    def _duplicates_page(
        self, collection: str, kind: DuplicateKind, threshold: float | None, cursor: str | None
    ) -> DuplicatesOut | DuplicatesRunning:
        query = {
            "collection": collection,
            "kind": kind.value,
            "threshold": threshold,
            "cursor": cursor,
            "limit": PAGE,
        }
        answer = self._call("GET", "/duplicates", params=_given(query))
        if answer["state"] == "running":
            return DuplicatesRunning.read(answer)
        return DuplicatesOut.read(answer)

    # Collections and jobs

    def collections(self) -> Sequence[CollectionOut]:
        return self._ask(CollectionsOut, "GET", "/collections").collections

    def make(self, collection: str) -> CollectionOut:
        path = f"/collections/{check_collection_name(collection)}"
        return self._ask(CollectionOut, "PUT", path)

    def rename(self, collection: str, new: str) -> None:
        path = f"/collections/{check_collection_name(collection)}/rename"
        self._call("POST", path, json={"to": check_collection_name(new)})

    def alias(self, alias: str, collection: str) -> None:
        path = f"/aliases/{check_collection_name(alias)}"
        self._call("PUT", path, json={"collection": check_collection_name(collection)})

    def unalias(self, alias: str) -> None:
        self._call("DELETE", f"/aliases/{check_collection_name(alias)}")

    def drop(self, collection: str) -> None:
        self._call("DELETE", f"/collections/{check_collection_name(collection)}")

    def vectors(self, collection: str = DEFAULT_COLLECTION) -> Sequence[VectorSetOut]:
        path = f"/collections/{check_collection_name(collection)}/vectors"
        return self._ask(VectorSetsOut, "GET", path).vectors

    def discard_vectors(self, digest: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        path = f"/collections/{check_collection_name(collection)}/vectors/{check_id(digest)}"
        self._call("DELETE", path)

    def reembed(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        model: Mapping[str, Any] | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        return self._ended(self.begin_reembed(collection, model=model), progress)

    def _ended(self, job: JobOut, progress: Progress) -> str:
        """Waits for a job's end; returns its message. Raises `ServerError` if it failed."""
        job = self.wait_for_job(job.id, progress=progress)
        for text in job.error_texts:
            progress.error(text)
        if job.state in {"failed", "canceled"}:
            raise ServerError(f"Job {job.id} is {job.state}: {job.message}")
        return job.message

    def begin_reembed(
        self, collection: str = DEFAULT_COLLECTION, *, model: Mapping[str, Any] | None = None
    ) -> JobOut:
        """Has the service begin to move a collection to another model; returns the job."""
        path = f"/collections/{check_collection_name(collection)}/reembed"
        return self._ask(JobOut, "POST", path, json=dict(model or {}))

    def tag(self, labels: Sequence[str], *, progress: Progress = NO_PROGRESS, **how: Any) -> str:
        return self._ended(self.begin_tag(labels, **how), progress)

    def begin_tag(
        self,
        labels: Sequence[str],
        *,
        collection: str = DEFAULT_COLLECTION,
        field: str = "tags",
        templates: Sequence[str] = ("{}",),
        k: int = 1,
        min_score: float | None = None,
    ) -> JobOut:
        """As `tag`, without waiting; returns the job."""
        asked = {"labels": list(labels), "field": field, "templates": list(templates), "k": k}
        path = f"/collections/{check_collection_name(collection)}/tag"
        return self._ask(JobOut, "POST", path, json=_given(asked | {"min_score": min_score}))

    def backup(
        self,
        to: str | os.PathLike[str],
        *,
        keys: bool = False,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        path = Path(to)
        if not is_tar(path):
            raise ConfigurationError(
                f"{path} must end in .tar or .tar.gz: a service sends its backup as one file. "
                "`begin_backup` (lookalike backup --server URL) updates the service's own folder"
            )
        with disk_errors(f"read {path}"):
            require_no_other(path)
        query = {"keys": keys, "packed": not path.name.endswith(".tar")}
        timeout = httpx2.Timeout(TIMEOUT_S, read=BACKUP_TIMEOUT_S)
        with (
            disk_errors(f"write {path}"),
            atomic_write(path) as file,
            _connected(self._server),
            self._http.stream("GET", "/backup", params=query, timeout=timeout) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise _error(answer)
            total = max(1, int(answer.headers.get("X-Backup-Bytes", 0)) // _MB)
            for block in answer.iter_raw(2**20):
                file.write(block)
                progress.report(min(file.tell() // _MB, total), total)
                progress.check()
            file.flush()
            require_end(Path(file.name))
            return f"{file.tell():,} bytes in {path}"

    def begin_backup(self, *, keys: bool = False) -> JobOut:
        """Has the service bring its backup folder up to date; returns the job.

        Raises `BackupsDisabledError` if the service has none.
        """
        return self._ask(JobOut, "POST", "/backup", json={"keys": keys})

    def jobs(self, *, limit: int = 100) -> Sequence[JobOut]:
        return self._ask(JobsOut, "GET", "/jobs", params={"limit": limit}).jobs

    def job(self, job_id: str) -> JobOut:
        return self._ask(JobOut, "GET", f"/jobs/{check_id(job_id)}")

    def cancel_job(self, job_id: str) -> JobOut:
        return self._ask(JobOut, "POST", f"/jobs/{check_id(job_id)}/cancel")

    def create_key(
        self, name: str, scope: Access, *, expires_at: datetime | None = None
    ) -> NewKeyOut:
        expires = None if expires_at is None else utc_text(expires_at)
        asked = {"name": name, "scope": scope, "expires_at": expires}
        return self._ask(NewKeyOut, "POST", "/keys", json=asked)

    def access_keys(self) -> Sequence[KeyOut]:
        return self._ask(KeysOut, "GET", "/keys").keys

    def revoke_key(self, key: str) -> None:
        self._call("DELETE", f"/keys/{quote(key_id(key), safe='')}")

    def audit(self, *, limit: int = 100) -> Sequence[AuditEntryOut]:
        entries: list[AuditEntryOut] = []
        cursor = None
        while len(entries) < limit:
            query = _given({"limit": min(PAGE, limit - len(entries)), "cursor": cursor})
            page = self._ask(AuditOut, "GET", "/audit", params=query)
            entries += page.entries
            if (cursor := page.next_cursor) is None:
                break
        return entries

    def info(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._call("GET", "/info")
        return answer

    # The connection

    def _ask(self, kind: type[_T], method: str, path: str, **options: Any) -> _T:
        return kind.read(self._call(method, path, **options))

    def _call(self, method: str, path: str, **options: Any) -> Any:
        answer = self._answer(method, path, **options)
        return _json(answer) if answer.content else None

    def _answer(self, method: str, path: str, **options: Any) -> httpx2.Response:
        answer = self._request(method, path, **options)
        if answer.is_error:
            raise _error(answer)
        return answer

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Makes one call, again while the service says that it is busy."""
        for attempt in range(ATTEMPTS):
            with _connected(self._server):
                answer = self._http.request(method, path, **options)
            if answer.status_code != 503 or attempt == ATTEMPTS - 1:
                return answer
            time.sleep(float(answer.headers.get("Retry-After", 1)) * (1 + attempt / 2))
        raise AssertionError  # pragma: no cover - the loop always returns


@contextmanager
def _connected(server: str) -> Iterator[None]:
    """Turns errors of the connection into ours."""
    try:
        yield
    except httpx2.HTTPError as exc:
        raise ServerError(
            f"{server} does not answer ({exc}); is it running there?", passing=True
        ) from exc


def _path(source: PictureSource) -> Path:
    assert source.path is not None
    return source.path


def _read(source: PictureSource) -> bytes:
    """Reads a file. Raises `UnreadableImageError`."""
    try:
        with source.open() as opened:
            return opened.read()
    except OSError as exc:
        raise UnreadableImageError(f"{source.path} cannot be read: {exc.strerror}") from exc


def _batches(sources: Iterable[PictureSource]) -> Iterator[list[PictureSource]]:
    """Splits files into batches that are small in number and in bytes, each of one root."""
    batch: list[PictureSource] = []
    size = 0
    for source in sources:
        size += source.size
        is_full = len(batch) >= BATCH_FILES or size > BATCH_BYTES
        if batch and (is_full or _root(source) != _root(batch[0])):
            yield batch
            batch, size = [], source.size
        batch.append(source)
    if batch:
        yield batch


def _root(source: PictureSource) -> str | None:
    return None if source.place is None else source.place.root


class _Reported(io.FileIO):
    """An open file that reports how many megabytes of it were read."""

    def __init__(self, number: int, name: str, progress: Progress) -> None:
        super().__init__(number, closefd=False)
        self._megabytes = os.fstat(number).st_size // _MB
        self._progress = progress.stage(f"sending {name} (MB)")

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._progress.report(self.tell() // _MB, self._megabytes)
        return data


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None, for JSON: it takes no mapping but a dict."""
    given = ((name, value) for name, value in values.items() if value is not None)
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in given}


def _fields(arguments: SearchArguments) -> dict[str, Any]:
    """The arguments that were given: an older service may not know the others."""
    if unknown := arguments.keys() - SearchArguments.__annotations__.keys():
        raise TypeError(f"Searches take no argument {', '.join(sorted(unknown))}")
    values = _given(arguments)
    if (effort := values.pop("effort", None)) is not None:
        values |= {name: value for name, value in asdict(effort).items() if value}
    return values


def _form(arguments: SearchArguments) -> dict[str, Any]:
    """The arguments as form fields or query parameters."""
    fields = _fields(arguments)
    if "filter" in fields:
        fields["filter"] = json.dumps(fields["filter"])
    return fields


def _outcome(path: Path, item: Mapping[str, Any]) -> Outcome:
    if (error := item.get("error")) is not None:
        error = _kind(error["code"])(error["detail"])
    copied: dict[str, Any] = {"copy_of": item.get("copy_of")}
    copied["kept_metadata"] = bool(item.get("metadata_kept"))
    return Outcome(path=path, status=item["status"], id=item.get("id"), error=error, **copied)


def _json(answer: httpx2.Response) -> Any:
    try:
        return answer.json()
    except ValueError as exc:
        raise _error(answer) from exc


def _error(answer: httpx2.Response) -> ServerError:
    """The error for an answer, of the class that its code names."""
    passing = answer.is_server_error
    try:
        problem = answer.json()
        text, code = f"{problem['detail']} ({problem['code']})", problem["code"]
    except (ValueError, KeyError, TypeError):
        text = f"{answer.request.url} answered {answer.status_code}; is it a Lookalike service?"
        return ServerError(text, passing=passing)
    return _kind(code)(text, passing=passing)


@cache
def _kind(code: str) -> type[ServerError]:
    """The class for a code: a `ServerError` that is also what a data folder would raise."""
    kinds = [LookalikeError]
    for kind in kinds:  # grows while it is walked
        if kind.code == code and not issubclass(kind, ServerError) and kind is not LookalikeError:
            return type(kind.__name__, (ServerError, kind), {"__doc__": kind.__doc__}, code=code)
        kinds += kind.__subclasses__()
    return ServerError
