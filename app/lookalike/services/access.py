"""Keys: made, shown once, revoked, and found again when one is sent."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from datetime import datetime

from lookalike.errors import InvalidParameterError
from lookalike.progress import Worker
from lookalike.records import Access, key_id, redacted, utc_now, utc_text
from lookalike.store.access import AccessKey, AccessStore

_NAME = re.compile(r"(?!lk_|[0-9a-f]{8}$)[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_FOLLOW_S = 1.0  # until a key that another process made or revoked counts


class AccessService:
    """Makes, lists and revokes keys; with `follow`, also finds the key that a request sends.

    Only the SHA-256 of a key is kept. That is enough: a key holds 256 random bits, which nobody
    finds by trying, so a slow hash would protect nothing and cost each request.
    """

    def __init__(self, store: AccessStore) -> None:
        self._store = store
        self._keys: dict[str, AccessKey] = {}
        self._reading = threading.Lock()
        self._worker = Worker(
            "keys",
            self._read,
            failure="access.db cannot be read; the keys that were read before stay valid",
            every_s=_FOLLOW_S,
            retry_s=_FOLLOW_S,
        )

    def follow(self) -> None:
        """Reads the keys now and, on a thread, again every second: other processes change them."""
        self._read()
        self._worker.wake()

    def close(self) -> None:
        """Ends the thread and lets go of the file."""
        self._worker.close()
        self._store.close()

    def create(
        self, name: str, scope: Access, *, expires_at: datetime | None = None
    ) -> tuple[AccessKey, str]:
        """Makes a key; returns what is kept of it, and the key itself, which is kept nowhere.

        Raises `InvalidParameterError` if the name or the time cannot be used, and `ConflictError`
        if the name is taken.
        """
        if not _NAME.fullmatch(name):
            raise InvalidParameterError(
                f"{ascii(redacted(name))[:80]} is no name for a key: use 1 to 64 letters, digits "
                "or . _ @ -, starting with a letter or digit; 8 hex digits are an id"
            )
        if scope not in set(Access):
            raise InvalidParameterError(f"{scope!r} is no scope: it is read, write or admin")
        expires = None if expires_at is None else utc_text(expires_at)
        public = secrets.token_hex(4)
        text = f"lk_{public}_{secrets.token_urlsafe(32)}"
        key = AccessKey(
            id=public,
            name=name,
            scope=Access(scope),
            digest=_digest(text),
            created_at=utc_now(),
            expires_at=expires,
        )
        if key.expired:
            raise InvalidParameterError(f"{expires} is past; name a time to come")
        self._store.add(key)
        self._read()
        return key, text

    def list(self) -> list[AccessKey]:
        """All keys, also those that expired, in the order made."""
        return self._store.all()

    def revoke(self, which: str) -> AccessKey:
        """Revokes a key by its name, its id or itself; returns it. Raises `KeyNotFoundError`."""
        key = self._store.remove(key_id(which))
        self._read()
        return key

    def find(self, text: str) -> AccessKey | None:
        """The key that a text is, expired or not, as last read; None if it is none."""
        key = self._keys.get(key_id(text))
        return key if key and hmac.compare_digest(key.digest, _digest(text)) else None

    def _read(self) -> bool:
        with self._reading:  # what was read before a change is not put over what was read after
            self._keys = {key.id: key for key in self._store.all()}
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
