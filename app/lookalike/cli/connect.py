"""Opens the place where a command works."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lookalike.cli.backends import Backend
from lookalike.cli.local import LocalBackend
from lookalike.cli.options import FETCH_SETTINGS, MODEL_SETTINGS
from lookalike.cli.remote import RemoteBackend
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError
from lookalike.files.data_folder import require_data_folder


def open_backend(
    server: str | None,
    api_key: str | None,
    given: dict[str, Any],
    *,
    changes: bool = False,
    must_exist: bool = True,
) -> AbstractContextManager[Backend]:
    """Opens the place where a command works.

    Args:
        server: Address of a running service, or None for the data folder.
        api_key: Key for the service.
        given: Settings from flags.
        changes: Whether the command changes anything; one that only reads works beside a service
            that owns the folder.
        must_exist: Whether a data folder without a collection is refused.
    """
    settings = load_settings(**given)
    if server is not None:
        settled = {*MODEL_SETTINGS, *FETCH_SETTINGS} - {"data_dir"}
        named = [name for name, value in given.items() if name in settled and value]
        if named:
            raise ConfigurationError(
                f"--{named[0].replace('_', '-')} is the running service's to say; leave it out "
                "with --server"
            )
        return RemoteBackend(server, api_key or _kept_key(server, settings.data_dir))
    if must_exist:
        require_data_folder(settings.data_dir)
    return LocalBackend(settings, read_only=not changes)


def _kept_key(server: str, data_dir: Path) -> str | None:
    """The key in the data folder, for a service on this machine and no other."""
    if urlsplit(server).hostname not in {"localhost", "127.0.0.1", "::1"}:
        return None
    try:
        return (data_dir / "admin.key").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
