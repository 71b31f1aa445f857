"""Notes each change that a request makes in the audit log, before it is answered."""

from __future__ import annotations

from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.api.deps import Parts
from lookalike.errors import LookalikeError

SAFE = {"GET", "HEAD", "OPTIONS"}
_THREADS = 4  # of its own: an answer does not wait for a thread of the routes


def note(request: Request, **details: Any) -> None:
    """Adds to what the audit log says of a request, beside the parameters in its path.

    A GET that notes something has an entry, too.
    """
    request.state.audit = getattr(request.state, "audit", {}) | details


class Audit:
    """Appends an entry for each request that changes something with a valid key.

    The entry is written before the answer is sent: what was answered is in the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._threads = CapacityLimiter(_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_when_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome = "done" if message["status"] < 400 else state.get("error", "failed")
                await self._note(scope, state, outcome)
            await send(message)

        try:
            await self._app(scope, receive, send_when_noted)
        except Exception:
            await self._note(scope, state, LookalikeError.code)
            raise

    async def _note(self, scope: Scope, state: dict[str, Any], outcome: str) -> None:
        caller = state.pop("changer", None)  # once: an answer may break after it began
        if caller is None or (scope["method"] in SAFE and "audit" not in state):
            return
        parts: Parts = scope["app"].state.parts
        details = {
            **scope.get("path_params", {}),
            **state.get("audit", {}),
            "request_id": scope["request_id"],
        }

        def append() -> None:
            parts.services.audit.append(
                scope["route"].name,
                who=caller.name,
                key=caller.id,
                address=(scope.get("client") or ("",))[0],
                outcome=outcome,
                details=details,
            )

        try:
            await to_thread.run_sync(append, limiter=self._threads)
        except (MemoryError, RuntimeError):  # no memory for a new thread
            append()
