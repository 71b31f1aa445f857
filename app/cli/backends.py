"""Where a command works: on a data folder, or on a running service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.api.schemas import ImageOut, SearchOut
from app.cli.options import MODEL_SETTINGS, require_data_folder
from app.config import load_settings
from app.errors import ConfigurationError
from app.records import OnConflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to index with what is stored beside it."""

    path: Path
    metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What became of one file: a status, or why it failed."""

    path: Path
    status: str
    id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A search as the command line takes it."""

    k: int
    min_score: float | None
    filter: str | None
    group_by: str | None
    collection: str


class Backend(Protocol):
    """What the commands need, wherever it is done."""

    def index(
        self, jobs: Sequence[Job], *, collection: str, on_conflict: OnConflict
    ) -> Iterator[Line]:
        """Indexes files and yields what became of each."""
        ...

    def search(self, image: Path, ask: Ask) -> SearchOut:
        """Searches with a picture file."""
        ...

    def info(self) -> dict[str, Any]:
        """What `GET /info` answers; without the models where none is loaded."""
        ...

    def images(self, collection: str, *, where: str | None) -> Iterator[ImageOut]:
        """All pictures of a collection, oldest first."""
        ...

    def delete(self, collection: str, image_id: str) -> None:
        """Deletes one picture."""
        ...

    def drop(self, collection: str) -> None:
        """Deletes a collection."""
        ...


def open_backend(
    server: str | None,
    api_key: str | None,
    given: dict[str, Any],
    *,
    must_exist: bool = True,
) -> AbstractContextManager[Backend]:
    """Opens the place where a command works.

    Args:
        server: Address of a running service, or None for the data folder.
        api_key: Key for the service.
        given: Settings from flags.
        must_exist: Whether a data folder without a collection is refused.
    """
    settings = load_settings(**given)
    if server is not None:
        named = [name for name in MODEL_SETTINGS if name != "data_dir" and given.get(name)]
        if named:
            raise ConfigurationError(
                f"--{named[0].replace('_', '-')} is the running service's to say; leave it out "
                "with --server"
            )
        from app.cli.remote import RemoteBackend  # noqa: PLC0415 - one of the two is used

        return RemoteBackend(server, api_key or _kept_key(settings.data_dir))
    if must_exist:
        require_data_folder(settings.data_dir)
    from app.cli.local import LocalBackend  # noqa: PLC0415 - one of the two is used

    return LocalBackend(settings)


def _kept_key(data_dir: Path) -> str | None:
    try:
        return (data_dir / "admin.key").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
