"""The commands on a running service."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

import httpx2

from lookalike.cli.backends import Ask, DuplicatesAsk, Job, Line
from lookalike.cli.progress import Report
from lookalike.cli.sending import Archive, Loaded, batches, form, load
from lookalike.errors import ServerError, UnreadableImageError
from lookalike.records import OnConflict
from lookalike.schemas import DuplicatesOut, DuplicatesRunning, ImageOut, JobOut, SearchOut
from lookalike.services.importing import ImportOptions
from lookalike.store.filters import parse_filter
from lookalike.store.metadata import canonical_json
from lookalike.store.names import check_collection_name, check_id

ATTEMPTS = 8
PARALLEL = 4
TIMEOUT_S = 120.0
ARCHIVE_TIMEOUT_S = 900.0
"""Until an archive that was sent is on the service's disk."""
FATAL = {401, 404, 405, 409}
"""Answers to an upload that the next file would get, too."""


class RemoteBackend:
    """Talks to `server` with `key`, where one is known."""

    def __init__(self, server: str, key: str | None) -> None:
        headers = {"X-API-Key": key} if key else {}
        if not server.startswith(("http://", "https://")):
            raise ServerError(f"{server!r} is no address; write http://{server}")
        try:
            self._http = httpx2.Client(base_url=server, headers=headers, timeout=TIMEOUT_S)
        except (httpx2.InvalidURL, ValueError) as exc:
            raise ServerError(f"{server!r} is no address: {exc}") from exc
        self._server = server

    def __enter__(self) -> Self:
        """Ready to work."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self._http.close()

    def index(
        self, jobs: Sequence[Job], *, collection: str, on_conflict: OnConflict
    ) -> Iterator[Line]:
        """Sends files in small batches, several at a time; what is there already is not sent."""
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="send") as pool:
            under_way: deque[Future[list[Line]]] = deque()
            for batch in batches(jobs):
                under_way.append(pool.submit(self._send, batch, collection, on_conflict))
                if len(under_way) > 2 * PARALLEL:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()

    def search(self, image: Path, ask: Ask) -> SearchOut:
        """Searches with a picture file."""
        form = {
            "k": str(ask.k),
            "collection": ask.collection,
            "min_score": None if ask.min_score is None else str(ask.min_score),
            "filter": ask.filter,
            "group_by": ask.group_by,
            **_effort(ask),
        }
        data = {name: value for name, value in form.items() if value is not None}
        content = load(Job(path=image, metadata=None)).content
        answer = self._call("POST", "/search", data=data, files={"file": (image.name, content)})
        return SearchOut.model_validate(answer)

    def search_url(
        self,
        url: str,
        ask: Ask,
        *,
        keep: Callable[[BinaryIO], object],  # noqa: ARG002 - as in the protocol
    ) -> SearchOut:
        """Searches with the picture at an address, which the service fetches."""
        where = parse_filter(ask.filter)
        body = {
            "url": url,
            "k": ask.k,
            "collection": ask.collection,
            "min_score": ask.min_score,
            "filter": None if where is None else json.loads(ask.filter or ""),
            "group_by": ask.group_by,
            **_effort(ask),
        }
        given = {name: value for name, value in body.items() if value is not None}
        content = json.dumps(given)  # in ASCII, whatever bytes the address was typed in
        headers = {"Content-Type": "application/json"}
        answer = self._call("POST", "/search/url", content=content, headers=headers)
        return SearchOut.model_validate(answer)

    def info(self) -> dict[str, Any]:
        """What the service says of itself."""
        answer: dict[str, Any] = self._call("GET", "/info")
        return answer

    def images(self, collection: str, *, where: str | None) -> Iterator[ImageOut]:
        """All pictures of a collection, oldest first."""
        query: dict[str, Any] = {"collection": collection, "limit": 1000}
        if where is not None:
            query["filter"] = where
        while True:
            answer = self._call("GET", "/images", params=query)
            yield from (ImageOut.model_validate(image) for image in answer["images"])
            if answer["next_cursor"] is None:
                return
            query["cursor"] = answer["next_cursor"]

    def duplicates(self, ask: DuplicatesAsk) -> DuplicatesOut | DuplicatesRunning:
        """A page of groups, or how far the search for them is."""
        query = {**asdict(ask), "limit": 1000}
        given = {name: value for name, value in query.items() if value is not None}
        answer = self._call("GET", "/duplicates", params=given)
        if answer["state"] == "running":
            return DuplicatesRunning.model_validate(answer)
        return DuplicatesOut.model_validate(answer)

    def reembed(self, collection: str, model: Mapping[str, Any]) -> JobOut:
        """Has the service move a collection to another model; gives the job."""
        path = f"/collections/{check_collection_name(collection)}/reembed"
        return JobOut.model_validate(self._call("POST", path, json=dict(model)))

    def job(self, job_id: str) -> JobOut:
        """How far a job is."""
        return JobOut.model_validate(self._call("GET", f"/jobs/{job_id}"))

    def index_archive(self, path: Path, options: ImportOptions, report: Report) -> JobOut:
        """Sends an archive; gives the job that indexes its pictures."""
        with Archive(path, report) as file:
            answer = self._call(
                "POST",
                "/index/archive",
                data=form(options),
                files={"file": (path.name, file)},
                timeout=ARCHIVE_TIMEOUT_S,
            )
        return JobOut.model_validate(answer)

    def index_folder(self, path: str, options: ImportOptions) -> JobOut:
        """Has the service index a folder of its own machine; gives the job."""
        body = {**options.parameters(), "path": path}
        return JobOut.model_validate(self._call("POST", "/index/folder", json=body))

    def thumbnail(self, collection: str, image_id: str) -> bytes:
        """A small JPEG of a picture."""
        path = f"/images/{check_id(image_id)}/thumbnail"
        answer = self._request("GET", path, params={"collection": collection})
        if answer.is_error:
            raise ServerError(_why(answer))
        return answer.content

    def delete(self, collection: str, image_id: str) -> None:
        """Deletes one picture."""
        self._call("DELETE", f"/images/{check_id(image_id)}", params={"collection": collection})

    def drop(self, collection: str) -> None:
        """Deletes a collection."""
        self._call("DELETE", f"/collections/{check_collection_name(collection)}")

    def _send(self, batch: list[Job], collection: str, on_conflict: OnConflict) -> list[Line]:
        lines: list[Line] = []
        fresh: list[Loaded] = []
        for job in batch:
            try:
                loaded = load(job)
            except UnreadableImageError as exc:
                lines.append(Line(path=job.path, status="failed", reason=str(exc)))
                continue
            if (known := self._known(loaded, collection)) is not None:
                lines.append(Line(path=job.path, status="unchanged", id=known))
            else:
                fresh.append(loaded)
        return lines + (self._upload(fresh, collection, on_conflict) if fresh else [])

    def _known(self, loaded: Loaded, collection: str) -> str | None:
        """The id under which these bytes stand already with nothing to change, if they do."""
        digest = hashlib.sha256(loaded.content).hexdigest()
        path = f"/images/{digest[:16]}"
        answer = self._request("GET", path, params={"collection": collection})
        if answer.status_code != 200:
            return None
        stored = _json(answer)
        given = loaded.job.metadata
        wanted = stored["metadata"] if given is None else given
        same = stored["sha256"] == digest and canonical_json(wanted) == canonical_json(
            stored["metadata"]
        )
        return str(stored["id"]) if same else None

    def _upload(self, fresh: list[Loaded], collection: str, on_conflict: OnConflict) -> list[Line]:
        data = {"collection": collection, "on_conflict": on_conflict.value}
        if any(one.job.metadata is not None for one in fresh):
            data["metadata"] = json.dumps([one.job.metadata for one in fresh])
        files = [("files", (one.filename, one.content)) for one in fresh]
        answer = self._request("POST", "/index", data=data, files=files)
        body = _json(answer)
        if "items" not in body:
            if answer.status_code in FATAL or answer.is_server_error or answer.is_success:
                raise ServerError(_why(answer))
            if len(fresh) > 1:  # one of them was too much for all: each is sent for itself
                return [
                    line for one in fresh for line in self._upload([one], collection, on_conflict)
                ]
            body["items"] = [{"status": "failed", "error": {"detail": _why(answer)}}]
        return [
            Line(
                path=one.job.path,
                status=item["status"],
                id=item.get("id"),
                reason=item.get("error", {}).get("detail"),
            )
            for one, item in zip(fresh, body["items"], strict=True)
        ]

    def _call(self, method: str, path: str, **options: Any) -> Any:
        answer = self._request(method, path, **options)
        if answer.is_error:
            raise ServerError(_why(answer), passing=answer.is_server_error)
        return _json(answer) if answer.content else None

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """One call, repeated while the service says that it is busy."""
        for attempt in range(ATTEMPTS):
            try:
                answer = self._http.request(method, path, **options)
            except httpx2.HTTPError as exc:
                raise ServerError(
                    f"{self._server} does not answer ({exc}); is it running there?", passing=True
                ) from exc
            if answer.status_code != 503 or attempt == ATTEMPTS - 1:
                return answer
            time.sleep(float(answer.headers.get("Retry-After", 1)) * (1 + attempt / 2))
        raise AssertionError  # pragma: no cover - the loop always returns


def _effort(ask: Ask) -> dict[str, int]:
    """What was given, so that a service that does not know them yet is asked for none."""
    return {name: value for name, value in asdict(ask.effort).items() if value}


def _json(answer: httpx2.Response) -> Any:
    try:
        return answer.json()
    except ValueError as exc:
        raise ServerError(_why(answer)) from exc


def _why(answer: httpx2.Response) -> str:
    try:
        problem = answer.json()
        return f"{problem['detail']} ({problem['code']})"
    except (ValueError, KeyError, TypeError):
        return f"{answer.request.url} answered {answer.status_code}; is it a Lookalike service?"
