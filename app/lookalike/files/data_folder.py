"""The data folder itself: there, or made."""

from __future__ import annotations

from pathlib import Path

from lookalike.errors import ConfigurationError


def require_data_folder(path: Path) -> None:
    """Refuses a folder that holds no collection, rather than make one in silence."""
    if not (path / "catalog.db").is_file():
        raise ConfigurationError(
            f"There is no collection in {path.resolve()}; index pictures first "
            "(lookalike index PATH), name another folder with --data-dir, or a running service "
            "with --server URL"
        )


def make_data_folder(path: Path) -> None:
    """Makes the data folder where it is missing; raises `ConfigurationError` where it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The data folder {path} cannot be made: {exc.strerror}. Choose another with "
            "LOOKALIKE_DATA_DIR, or make it writable"
        ) from exc
