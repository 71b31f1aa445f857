"""Turns every error into one answer: one table of HTTP statuses, one shape of body."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from lookalike import errors
from lookalike.api.deps import unknown_name
from lookalike.errors import LookalikeError, UnavailableError
from lookalike.records import redacted

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_EXAMPLE_ID = "5f0c6d2be7e14f1b9a55a4f3c0d1e2f3"

STATUS: dict[type[LookalikeError], int] = {
    errors.LookalikeError: 500,
    errors.InvalidImageError: 422,
    errors.NotAnImageError: 415,
    errors.UnsupportedImageError: 415,
    errors.ImageTooLargeError: 413,
    errors.TooManyPixelsError: 413,
    errors.ArchiveError: 422,
    errors.NotAnArchiveError: 415,
    errors.ArchiveTooLargeError: 413,
    errors.BackupError: 422,
    errors.InvalidRequestError: 422,
    errors.MalformedRequestError: 400,
    errors.MetadataTooLargeError: 413,
    errors.TooManyFilesError: 413,
    errors.RequestTooLargeError: 413,
    errors.NotFoundError: 404,
    errors.OriginalDamagedError: 410,
    errors.ConflictError: 409,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.TooManyAttemptsError: 429,
    errors.UploadStalledError: 408,
    errors.ClientGoneError: 408,
    errors.StorageError: 503,
    errors.UnavailableError: 503,
    errors.StorageFullError: 507,
    errors.ImportsDisabledError: 403,
    errors.BackupsDisabledError: 403,
    errors.PathNotAllowedError: 422,
    errors.FetchingDisabledError: 403,
    errors.UrlNotAllowedError: 422,
    errors.FetchError: 502,
    errors.FetchTimeoutError: 504,
}
"""The status of each class. A class that is not in the table has that of its parent."""

# Where a folder was removed, made read-only or unmounted under the service, or a disk fails.
_OF_THE_DISK = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE),
}
_NO_MEMORY = "There is too little memory now: try again in a moment, or give the service more"
_HTTP_CODES = {
    400: errors.MalformedRequestError.code,
    404: "not_found",
    405: "method_not_allowed",
    413: errors.RequestTooLargeError.code,
    415: "unsupported_media_type",
}


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(
        default="about:blank", description="Always about:blank; `code` tells errors apart"
    )
    title: str = Field(description="The status in words", examples=["Unsupported Media Type"])
    status: int = Field(description="The HTTP status", examples=[415])
    detail: str = Field(description="What is wrong, and what to do next")
    code: str = Field(description="Stable name of the error", examples=["not_an_image"])
    request_id: str = Field(description="Also in the header X-Request-ID and in the logs")


def status_of(error: LookalikeError | type[LookalikeError]) -> int:
    """Returns the HTTP status for an error, from its nearest parent in the table."""
    kind = error if isinstance(error, type) else type(error)
    return next(STATUS[base] for base in kind.__mro__ if base in STATUS)


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """Builds the answer for an error."""
    request.state.error = code  # for the audit log
    request_id = request.scope.get("request_id", "")
    content = {**problem_body(status, code, detail, request_id), **extra}
    return JSONResponse(
        content, status, {**(headers or {}), "X-Request-ID": request_id}, MEDIA_TYPE
    )


def problem_body(status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:
    """The body of the answer for an error."""
    facts = {"status": status, "code": code, "detail": redacted(detail), "request_id": request_id}
    return Problem.model_validate({"title": HTTPStatus(status).phrase, **facts}).model_dump()


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describes for OpenAPI the errors that a route can answer with; 503 is one in any case."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 503, *([429] if 401 in statuses else [])}):
        *_, code = (kind.code for kind, value in STATUS.items() if value == status)
        example = problem_body(status, code, "what is wrong, and what to do next", _EXAMPLE_ID)
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
        described[status] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: content},
        }
    return described


def answer(request: Request, exc: LookalikeError, **extra: Any) -> JSONResponse:
    """Builds the answer for a `LookalikeError`."""
    headers = {}
    if isinstance(exc, (UnavailableError, errors.TooManyAttemptsError)):
        headers["Retry-After"] = str(exc.retry_after_s)
    if isinstance(exc, errors.UnauthorizedError):
        headers["WWW-Authenticate"] = 'Bearer realm="lookalike"'
    status = status_of(exc)
    if status >= 500:
        log.warning("%s: %s", exc.code, exc)
    return problem(request, status, exc.code, str(exc), headers=headers, **extra)


def install(app: FastAPI) -> None:
    """Installs the handlers of all exceptions."""
    handlers: dict[type[Exception], Any] = {
        LookalikeError: answer,
        RequestValidationError: _validation,
        HTTPException: _http,
        OSError: _os,
        MemoryError: _unforeseen,
        RuntimeError: _unforeseen,  # threads and libraries that lack memory raise it
        Exception: _unforeseen,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, _inline(handler))


def _inline(handler: Callable[[Request, Any], Response]) -> Callable[..., Awaitable[Response]]:
    """A handler that needs no thread: there may be no memory for a new one."""

    async def handle(request: Request, exc: Exception) -> Response:
        return handler(request, exc)

    return handle


def _validation(request: Request, exc: RequestValidationError) -> JSONResponse:
    if any(error["type"] == "json_invalid" for error in exc.errors()):
        return answer(request, errors.MalformedRequestError("The body is not valid JSON"))
    text = "; ".join(_say(error, request) for error in exc.errors())
    return answer(request, errors.InvalidParameterError(text))


def _say(error: Mapping[str, Any], request: Request) -> str:
    where, *path = error["loc"]
    name = ".".join(str(part) for part in path) or str(where)
    if error["type"] == "extra_forbidden" and len(path) == 1:
        return unknown_name(name, _body_names(request), what="field")
    if error["type"] == "model_attributes_type" and not path:
        return f"{name}: send an object of JSON, as application/json; e.g. curl --json '{{...}}'"
    if error["type"] == "missing" and name in {"file", "files"}:
        return (
            f"{name}: no file was sent; send one as multipart/form-data, e.g. curl -F {name}=@a.jpg"
        )
    if "UploadFile" in error["msg"]:
        return f"{name}: a text was sent where a file belongs; curl needs an @: -F {name}=@a.jpg"
    return f"{name}: {error['msg']}"


def _body_names(request: Request) -> list[str]:
    """The fields of the JSON that a call takes."""
    body = request.scope["route"].body_field.field_info.annotation
    kinds = [kind for kind in (body, *get_args(body)) if hasattr(kind, "model_fields")]
    return [name for kind in kinds for name in kind.model_fields]


def _http(request: Request, exc: HTTPException) -> JSONResponse:
    code, path = _HTTP_CODES.get(exc.status_code, "http_error"), request.url.path
    headers = dict(exc.headers or {})
    if exc.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
    detail = {
        404: f"There is nothing at {path}; GET /docs lists every call",
        405: f"{request.method} is no method of {path}; GET /docs lists every call",
    }.get(exc.status_code, exc.detail)
    return problem(request, exc.status_code, code, detail, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """The methods of the path that a request asks for, whatever routes they are of."""
    found = []
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        scope = dict(request.scope) | {"method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found += [method, "HEAD"] if method == "GET" else [method]
    return found


def _os(request: Request, exc: OSError) -> JSONResponse:
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        full = errors.StorageFullError("The disk is full; free some room and send this again")
        return answer(request, full)
    if exc.errno in {errno.EMFILE, errno.ENFILE}:
        many = UnavailableError("Too many files and connections are open; try again in a moment")
        return answer(request, many)
    if exc.errno in _OF_THE_DISK:
        return answer(request, errors.StorageError(f"The disk of the data folder refuses: {exc}"))
    return _unforeseen(request, exc)


def _unforeseen(request: Request, exc: Exception) -> JSONResponse:
    if errors.lacks_memory(exc):
        return answer(request, errors.OutOfMemoryError(_NO_MEMORY))
    log.error("unforeseen error", exc_info=exc)
    detail = "Something went wrong that should not; the log has the details under this request id"
    return problem(request, 500, LookalikeError.code, detail)
