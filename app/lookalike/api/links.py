"""Links in answers: below the root path, and signed where reading needs a key."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from lookalike.errors import UnauthorizedError
from lookalike.records import DEFAULT_COLLECTION, ImageRecord

A_YEAR_S = 365 * 24 * 3600

_ASK_AGAIN = "ask for the picture's record again, which has a new one, or send a key"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Links:
    """Makes the links in answers, and says whether a link that was followed is one of them.

    A signed link opens one address until it expires. It names the content in `v`, too, so a
    picture that is replaced gets another link.
    """

    root_path: str = ""  # what a proxy puts before every path
    secret: bytes | None = None  # signs links; None: reading needs no key, or no link is to open it
    lifetime_s: int = 24 * 3600  # that a link works at least; at most twice as long
    guarded: bool = False  # whether reading needs a key
    now: Callable[[], float] = time.time

    def __call__(self, link: str) -> str:
        """A link below the service's root as it is answered."""
        if self.secret is None:
            return self.root_path + link
        # The same text for all links of one period, so that browsers keep what they got.
        expires = (int(self.now()) // self.lifetime_s + 2) * self.lifetime_s
        path, _, query = link.partition("?")
        collection = query.partition("&")[0].removeprefix("collection=")
        signature = self._sign(path, collection, expires).decode()
        return f"{self.root_path}{link}&expires={expires}&signature={signature}"

    def check(self, request: Request, expires: str, signature: str) -> None:
        """Lets a request pass that follows a signed link.

        Raises:
            UnauthorizedError: The link was not made here, was changed, or has expired.
        """
        until = int(expires) if re.fullmatch("[1-9][0-9]{0,11}", expires) else 0
        path = request.scope["path"].removeprefix(self.root_path)
        collection = request.query_params.get("collection", DEFAULT_COLLECTION)
        expected = self._sign(path, collection, until)
        if self.secret is None or not hmac.compare_digest(expected, signature.encode()):
            raise UnauthorizedError(f"The link is not valid here: {_ASK_AGAIN}")
        if until <= self.now():
            raise UnauthorizedError(f"The link has expired: {_ASK_AGAIN}")
        request.state.link_expires = until

    def cache_control(self, request: Request, record: ImageRecord, named: str | None) -> str:
        """How long a picture's file or thumbnail may be kept, and by whom.

        For a year if the address has `named` its content, but no longer than a signed link works.
        Else it is kept, and asked about each time: under the same id may come another picture.
        """
        who = "private" if self.guarded else "public"
        if named != record.version:
            return f"{who}, no-cache"
        left = getattr(request.state, "link_expires", None)
        age = A_YEAR_S if left is None else min(A_YEAR_S, int(left - self.now()))
        return f"{who}, max-age={age}, immutable"

    def _sign(self, path: str, collection: str, expires: int) -> bytes:
        signed = f"{path}\n{collection}\n{expires}".encode()
        return hmac.digest(self.secret or b"", signed, "sha256").hex().encode()
