"""What HTTP asks of answers to GET: HEAD, `ETag`, `If-None-Match` and `Cache-Control`."""

from __future__ import annotations

import hashlib
import re

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.api.security import needed_access
from lookalike.records import Access

_ETAG = re.compile(r'(?:W/)?("[^"]*")')
_CACHED = {200, 206, 304, 307}
_LOST_BY_304 = ("Content-Length", "Content-Type")


def is_unchanged(headers: Headers, etag: str) -> bool:
    """Whether `If-None-Match` names what would be answered (RFC 9110): weakly, or by `*`."""
    asked = ", ".join(headers.getlist("If-None-Match"))
    return asked.strip() == "*" or etag.removeprefix("W/") in _ETAG.findall(asked)


def is_head(request: Request) -> bool:
    """Whether a request that came as GET is a HEAD, so that no body needs to be made."""
    return getattr(request.state, "is_head", False)


class Caching:
    """Answers HEAD wherever GET is, and adds `ETag` and `Cache-Control` where a route has none.

    JSON that needs no more than a read key gets the digest of its text as `ETag`; what the client
    has already is answered 304.
    """

    def __init__(self, app: ASGIApp, *, guarded: bool) -> None:
        self._app = app
        self._who = "private, " if guarded else ""  # whether reading needs a key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI asks."""
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        inner = scope
        if scope["method"] == "HEAD":  # routes know GET alone; the server leaves out the body
            scope.setdefault("state", {})["is_head"] = True
            inner = {**scope, "method": "GET"}
        held: Message | None = None

        async def send_known(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                _tell(inner, scope)
                self._complete(scope, message)
                if _may_have_etag(message):
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                if not message.get("more_body"):
                    message = _with_etag(scope, start, message)
                await send(start)
            await send(message)

        try:
            await self._app(inner, receive, send_known)
        finally:
            _tell(inner, scope)

    def _complete(self, scope: Scope, start: Message) -> None:
        """Adds `Cache-Control`, and `Vary` where a key decides."""
        headers = MutableHeaders(scope=start)
        if start["status"] == 307 and "Location" in headers:  # whatever the proxy calls this host
            headers["Location"] = re.sub("^https?://[^/]*", "", headers["Location"])
        needed = needed_access(getattr(scope.get("route"), "dependencies", ()))
        if start["status"] not in _CACHED or needed not in {None, Access.READ}:
            headers.setdefault("Cache-Control", "no-store")
        elif needed is None:
            headers.setdefault("Cache-Control", "no-cache")
        else:
            headers.setdefault("Cache-Control", f"{self._who}no-cache")
            if self._who:
                headers.add_vary_header("X-API-Key, Authorization")


def _tell(inner: Scope, scope: Scope) -> None:
    """Puts what was found out about a HEAD, such as its route, where those outside look for it."""
    scope.update({**inner, "method": scope["method"]})


def _may_have_etag(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    return (
        start["status"] == 200
        and headers.get("Content-Type") == "application/json"
        and headers.get("Cache-Control") != "no-store"
        and "ETag" not in headers
    )


def _with_etag(scope: Scope, start: Message, message: Message) -> Message:
    digest = hashlib.blake2b(message.get("body", b""), digest_size=16).hexdigest()
    headers = MutableHeaders(scope=start)
    headers["ETag"] = etag = f'"{digest}"'
    if not is_unchanged(Headers(scope=scope), etag):
        return message
    start["status"] = 304
    for name in _LOST_BY_304:
        del headers[name]
    return {"type": "http.response.body", "body": b""}
