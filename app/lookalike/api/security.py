"""Keys: what a call needs, and what the key that was sent may do."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Query, Request, Security, params
from fastapi.security import APIKeyHeader, HTTPBearer

from lookalike.api.addresses import client_address
from lookalike.api.brake import Brake
from lookalike.api.deps import parts_of
from lookalike.config import LEAST_KEY
from lookalike.errors import (
    ConfigurationError,
    ForbiddenError,
    TooManyAttemptsError,
    UnauthorizedError,
)
from lookalike.files.disk import sync
from lookalike.records import Access
from lookalike.services.access import AccessService

log = logging.getLogger(__name__)

KEY_FILE = "admin.key"
LINKS_FILE = "links.key"
_LONG = 32  # characters of a key that nobody finds by trying: it is compared in any case
_WHERE = (
    "The admin key is what LOOKALIKE_ADMIN_KEY says, or is in the data folder's "
    f"{KEY_FILE}; lookalike keys create makes others"
)

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key")
_bearer = HTTPBearer(auto_error=False, description="A key")
_HeaderKey = Annotated[str | None, Security(_header)]
_BearerKey = Annotated[object, Security(_bearer)]
_LinkQuery = Annotated[str | None, Query(include_in_schema=False)]  # nobody makes it by hand


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request sent."""

    name: str  # of the key; for those of the settings, the setting
    scope: Access
    id: str | None = None  # of a key that `lookalike keys` made


@dataclass(frozen=True, kw_only=True, repr=False)
class Keys:
    """The keys in force: those of the settings, and those that were made.

    Reading needs a key if there is a read key, or if `guard_reading` says so.
    """

    admin: str
    read: str | None = None
    made: AccessService
    guard_reading: bool = False
    count_wrong: Callable[[], None]  # told of every wrong key
    brake: Brake = field(default_factory=Brake)

    @property
    def guarded(self) -> bool:
        """Whether reading needs a key."""
        return self.read is not None or self.guard_reading

    def check(self, request: Request, access: Access) -> None:
        """Lets a request pass whose key may do this; notes whose it is, for the audit log.

        Raises:
            UnauthorizedError: No key was sent, a wrong one, or one that expired.
            ForbiddenError: The key's scope is less.
            TooManyAttemptsError: Too many wrong keys came from the client's address.
        """
        if access is Access.READ and not self.guarded:
            return
        caller = getattr(request.state, "caller", None)
        if caller is None:
            caller = request.state.caller = self._caller(request, access)
        if access is not Access.READ:
            request.state.changer = caller  # whom the audit log names
        if not caller.scope.includes(access):
            raise ForbiddenError(
                f"This call needs a key of scope {access}, and {caller.name!r} has scope "
                f"{caller.scope}; send another key. lookalike keys create makes one"
            )

    def _caller(self, request: Request, access: Access) -> Caller:
        given = _sent_key(request)
        if given is None:
            raise UnauthorizedError(
                f"This call needs a key of scope {access}; send it as X-API-Key or as "
                f"Authorization: Bearer. {_WHERE}"
            )
        address = client_address(request)
        if len(given) < _LONG and (wait := self.brake.wait_s(address)):
            raise TooManyAttemptsError(wait)
        caller = self._find(given)
        if caller is not None:
            return caller
        self.brake.wrong(address)
        self.count_wrong()
        if wait := self.brake.wait_s(address):
            raise TooManyAttemptsError(wait)
        raise UnauthorizedError(f"The key that was sent is not valid. {_WHERE}")

    def _find(self, given: str) -> Caller | None:
        """Whose a key is, compared in constant time. Raises `UnauthorizedError` if it expired."""
        if (key := self.made.find(given)) is not None:
            if key.expired:
                raise UnauthorizedError(
                    f"The key {key.name!r} expired on {key.expires_at}. {_WHERE}"
                )
            return Caller(key.name, key.scope, key.id)
        sent = given.encode("latin-1")  # the bytes as they came
        found = None
        for name, scope, text in (
            ("read key", Access.READ, self.read),
            ("admin key", Access.ADMIN, self.admin),
        ):
            if text is not None and hmac.compare_digest(sent, text.encode()):
                found = Caller(name, scope)
        return found


def _sent_key(request: Request) -> str | None:
    if (key := request.headers.get("X-API-Key")) is not None:
        return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None


def load_admin_key(data_dir: Path) -> str:
    """Reads the admin key of a data folder, made at the first start with mode 0600.

    Raises `ConfigurationError` if the file cannot be made or read, or is empty.
    """
    path = data_dir / KEY_FILE
    try:
        if not path.exists():
            _make_key(path)
            log.info("the admin key is kept in %s", path)
    except OSError as exc:
        raise ConfigurationError(
            f"The admin key cannot be kept in {path}: {exc.strerror}. Set LOOKALIKE_ADMIN_KEY"
        ) from exc
    return _read_key(path)


def load_link_secret(data_dir: Path, read_key: str | None) -> bytes:
    """What signs the links in answers: of a data folder, and of the read key, if there is one.

    Where the disk keeps none, e.g. because it is full, links end with the process.
    """
    path = data_dir / LINKS_FILE
    try:
        if not path.exists():
            _make_key(path)
        kept = path.read_bytes().strip()
    except OSError as exc:
        log.warning("links to pictures end with this process: %s: %s", path, exc.strerror)
        kept = b""
    return hmac.digest(kept or secrets.token_bytes(32), (read_key or "").encode(), "sha256")


def _make_key(path: Path) -> None:
    """Writes a new key atomically, unless another process has written one by then."""
    handle, name = tempfile.mkstemp(prefix=f".{KEY_FILE}-", dir=path.parent)  # of mode 0600
    incoming = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _name(incoming, path)
        sync(path.parent)
    finally:
        incoming.unlink(missing_ok=True)


def _name(incoming: Path, path: Path) -> None:
    """Renames a file unless the name is taken; atomically if the disk has hard links."""
    try:
        os.link(incoming, path)
    except FileExistsError:
        return
    except OSError:
        if not path.exists():
            incoming.rename(path)


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(
            f"{path} cannot be read ({exc}); move it away to have a new admin key made, or set "
            "LOOKALIKE_ADMIN_KEY"
        ) from exc
    if len(key) < LEAST_KEY or not key.isprintable():
        what = "does not hold a key any more" if key else "is empty"
        raise ConfigurationError(f"{path} {what}; delete it to have a new admin key made")
    return key


@dataclass(frozen=True)
class Require:
    """A route's dependency that checks the key. Its parameters put the keys into OpenAPI."""

    access: Access

    async def __call__(
        self, request: Request, _key: _HeaderKey = None, _token: _BearerKey = None
    ) -> None:
        """Raises as `Keys.check`."""
        parts_of(request).keys.check(request, self.access)


@dataclass(frozen=True)
class RequireOrLink(Require):
    """The same for a call to which answers hold signed links; a key counts for more."""

    async def __call__(
        self,
        request: Request,
        _key: _HeaderKey = None,
        _token: _BearerKey = None,
        expires: _LinkQuery = None,
        signature: _LinkQuery = None,
    ) -> None:
        """Raises as `Keys.check`, and as `Links.check`."""
        parts = parts_of(request)
        if signature is not None and parts.keys.guarded and _sent_key(request) is None:
            parts.links.check(request, expires or "", signature)
        else:
            parts.keys.check(request, self.access)


def needed_access(dependencies: Sequence[params.Depends]) -> Access | None:
    """The scope that a route's dependencies ask for; None if it is open to all."""
    needed = [one.dependency.access for one in dependencies if isinstance(one.dependency, Require)]
    return max(needed, key=list(Access).index, default=None)


READ_OR_LINK = [Depends(RequireOrLink(Access.READ))]
READ, WRITE, ADMIN = ([Depends(Require(access))] for access in Access)
"""What the routes of a call name as their dependencies."""
