"""Keys: what a call needs, and what the key that was sent may do."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request, Security, params
from fastapi.security import APIKeyHeader, HTTPBearer

from lookalike.api.deps import parts_of
from lookalike.errors import ConfigurationError, ForbiddenError, UnauthorizedError
from lookalike.files.disk import sync
from lookalike.records import Access

log = logging.getLogger(__name__)

KEY_FILE = "admin.key"

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key")
_bearer = HTTPBearer(auto_error=False, description="A key")
_HeaderKey = Annotated[str | None, Security(_header)]
_BearerKey = Annotated[object, Security(_bearer)]


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The keys in force. The admin key opens every call; without a read key, reading is open."""

    admin: str
    read: str | None = None

    def check(self, request: Request, access: Access) -> None:
        """Raises `UnauthorizedError` without a valid key, `ForbiddenError` if its scope is less."""
        if access is Access.READ and self.read is None:
            return
        given = _sent_key(request)
        if given is None:
            raise UnauthorizedError(
                f"This call needs a key of scope {access}; send it as X-API-Key or as "
                "Authorization: Bearer"
            )
        scope = self._scope(given)
        if scope is None:
            raise UnauthorizedError("The key that was sent is not the right one")
        if not scope.includes(access):
            raise ForbiddenError(f"This call needs a key of scope {access}; this key's is {scope}")

    def _scope(self, given: str) -> Access | None:
        """What a key may do, compared in constant time; None if it is no key."""
        sent = given.encode("latin-1")  # the bytes as they came
        known = {Access.READ: self.read, Access.ADMIN: self.admin}
        scopes = [
            scope
            for scope, key in known.items()
            if key is not None and hmac.compare_digest(sent, key.encode())
        ]
        return scopes[-1] if scopes else None


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
    except OSError as exc:
        raise ConfigurationError(
            f"The admin key cannot be kept in {path}: {exc.strerror}. Set LOOKALIKE_ADMIN_KEY"
        ) from exc
    return _read_key(path)


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
    log.info("the admin key is kept in %s", path)


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
        raise ConfigurationError(f"{path} cannot be read; set LOOKALIKE_ADMIN_KEY") from exc
    if not key:
        raise ConfigurationError(f"{path} is empty; delete it to have a new admin key made")
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


def needed_access(dependencies: Sequence[params.Depends]) -> Access:
    """The scope that a route's dependencies ask for."""
    needed = [one.dependency.access for one in dependencies if isinstance(one.dependency, Require)]
    return max(needed, key=list(Access).index)


READ, WRITE, ADMIN = ([Depends(Require(access))] for access in Access)
"""What the routes of a call name as their dependencies."""
