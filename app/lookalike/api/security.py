"""The admin key, for changes, and the read key, for everything else if it is set."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from lookalike.api.deps import parts_of
from lookalike.errors import ConfigurationError, UnauthorizedError
from lookalike.files.disk import sync

log = logging.getLogger(__name__)

KEY_FILE = "admin.key"

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The admin or read key")
_bearer = HTTPBearer(auto_error=False, description="The admin or read key")


class Access(Enum):
    """What a call may do."""

    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The keys in force. The admin key opens every call; without a read key, reading is open."""

    admin: str
    read: str | None = None

    def check(self, request: Request, access: Access) -> None:
        """Compares the key that was sent, in constant time. Raises `UnauthorizedError`."""
        if access is Access.READ and self.read is None:
            return
        given = _sent_key(request)
        if given is None:
            raise UnauthorizedError(
                "This call needs a key; send it as X-API-Key or as Authorization: Bearer. "
                + _where(access)
            )
        allowed = [self.admin] if access is Access.ADMIN else [self.admin, self.read or ""]
        sent = given.encode("latin-1")  # the bytes as they came
        matches = [hmac.compare_digest(sent, key.encode()) for key in allowed]
        if not any(matches):
            raise UnauthorizedError("The key that was sent is not the right one. " + _where(access))


def _where(access: Access) -> str:
    name = "LOOKALIKE_ADMIN_KEY" if access is Access.ADMIN else "LOOKALIKE_READ_KEY"
    kept = f", or in the data folder's {KEY_FILE}" if access is Access.ADMIN else ""
    return f"The {access.value} key is what the service was given as {name}{kept}"


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


async def require_read(
    request: Request, _key: str | None = Security(_header), _token: object = Security(_bearer)
) -> None:
    """Dependency of every call that reads. Its parameters put the keys into OpenAPI."""
    parts_of(request).keys.check(request, Access.READ)


async def require_admin(
    request: Request, _key: str | None = Security(_header), _token: object = Security(_bearer)
) -> None:
    """Dependency of every call that changes something."""
    parts_of(request).keys.check(request, Access.ADMIN)


READ = [Depends(require_read)]
ADMIN = [Depends(require_admin)]
"""What the routes of a call name as their dependencies."""
