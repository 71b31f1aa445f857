"""Whether a catalog is the one that a data folder's files belong to.

A catalog that names none of the files would look like an empty collection, and the files like
leftovers. So a folder that holds files is opened with the right catalog, or not at all.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from lookalike.errors import DataFolderError, StorageError
from lookalike.files.data_folder import files_without_catalog, held_in
from lookalike.files.disk import some_digests
from lookalike.store.local.catalog import Catalog
from lookalike.store.local.rows import SCHEMA
from lookalike.store.local.unswept import Known, Unswept, read_known
from lookalike.store.sqlite import find_damage, is_blank, open_reader, refuse_newer, sqlite_errors

SAMPLE = 512
"""Files that are looked up, if it is in doubt whether the catalog fits."""

log = logging.getLogger(__name__)


def require_catalog(folder: Path) -> None:
    """Raises `DataFolderError` if files are there, and the catalog is missing or without tables."""
    path = folder / "catalog.db"
    with sqlite_errors(path):
        if not is_blank(path):
            return
    log_file = path.with_name("catalog.db-wal")
    if held_in(folder) or (log_file.is_file() and log_file.stat().st_size and not _size(path)):
        raise files_without_catalog(folder, f"{path} is {'empty' if path.exists() else 'missing'}")


def is_usable(folder: Path) -> bool:
    """True if a data folder has a catalog that is whole and fits its files.

    Raises `DataFolderError` if a newer version wrote it.
    """
    path = folder / "catalog.db"
    with suppress(sqlite3.Error, UnicodeDecodeError):
        if not is_blank(path):
            with closing(open_reader(path)) as reader:
                refuse_newer(reader, path, SCHEMA)
    try:
        if is_blank(path) or find_damage(path, quick=True):
            return False
        with closing(Catalog(path, read_only=True)) as catalog:
            open_notes(folder, catalog, read_only=True)
            for row in catalog.collections():
                last = 0
                while page := catalog.page(row, after=last, limit=1000):  # every row can be read
                    last = max(page)
    except (DataFolderError, sqlite3.Error, UnicodeDecodeError):
        return False
    return True


def open_notes(folder: Path, catalog: Catalog, *, read_only: bool) -> Unswept | None:
    """Opens the notes for sweeps, if the catalog fits the folder's files; None to read only.

    Raises `DataFolderError` if it does not: most files are unknown to it, and it is another
    folder's catalog or older than the folder.
    """
    known, last_seq, identity = read_known(folder), catalog.last_seq(), catalog.identity()
    fits = known is not None and known.identity == identity and last_seq >= known.last_seq
    if not fits:
        _require_fit(folder, catalog, known, last_seq)
    if read_only:
        return None
    try:
        notes = Unswept(folder, Known(catalog.identify(), last_seq), keep=fits)
    except StorageError:  # a full disk
        return None
    if known is not None and not fits:
        notes.warning = (
            "The catalog is another one than before, or older. Files that no picture names stay; "
            "lookalike check lists them"
        )
        log.warning("%s", notes.warning)
    return notes


def _require_fit(folder: Path, catalog: Catalog, known: Known | None, last_seq: int) -> None:
    """Raises `DataFolderError` if most of the folder's files are unknown to the catalog."""
    digests = some_digests(folder, most=SAMPLE)
    unknown = len(digests) - len(catalog.references(digests))
    if unknown > len(digests) / 2:
        rows = catalog.count()
        removed = last_seq - rows  # over all time
        # Without notes, from a version that made none: files may be left of rows that it removed.
        if known is not None or removed < max(held_in(folder).values()) * unknown / len(digests):
            raise files_without_catalog(
                folder,
                f"{folder / 'catalog.db'} names {rows:,} pictures, and {unknown:,} of "
                f"{len(digests):,} files that were looked up are not among them: it is another "
                "data folder's catalog, or older than the files",
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
