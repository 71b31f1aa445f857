"""The data folder itself, owned by one process at a time, and the marks of all folders of ours.

Every folder that Lookalike makes for itself holds a small file, `.lookalike`, whose first line says
what the folder is. No command takes pictures from a folder that has one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout

from lookalike.errors import (
    ConfigurationError,
    DataFolderError,
    DataFolderInUseError,
    StorageError,
)
from lookalike.files.disk import atomic_write, disk_errors, make_folders, sync
from lookalike.records import utc_now

MARKER = ".lookalike"
RESTORING = ".restoring"
"""A folder with this one in it holds half of a backup."""
FolderKind = Literal["data folder", "cache", "output", "backup", "trash"]

APPLICATION = 0x4C4B4341  # "LKCA": the `application_id` of catalog.db
_APPLICATION_AT = 68  # where SQLite keeps it in a file, 4 bytes big-endian
_OWNER = "lock.owner"

REBUILT = "rebuilt"
"""A folder inside a data folder, in which a rebuild makes a new catalog."""

PARTS = frozenset(
    [
        "images",
        "thumbnails",
        "index",
        "heads",
        "models",
        "imports",
        "tmp",
        "trash",
        "audit",
        REBUILT,
    ]
)
"""The folders inside a data folder."""

_FILES = re.compile(
    r"(catalog|jobs|access)\.db(\.replaced-\w+)?(-wal|-shm|-journal)?|lock|lock\.owner|reserve|unswept(\.old)?|admin\.key|hub|lost\+found|\..*"
)
"""What else lies in a data folder; `hub` is a folder of weights."""

_SIGNS = (
    ("report.json", "report.html"),
    ("map.html", "places.csv"),
    ("groups.csv", "index.html"),
    ("head.json", "head.safetensors"),
)
"""Files that tell an output folder of a version that set no marks."""

_OUTPUT = re.compile(
    r"report\.(json|html)|query-\d+\.png|map\.html|places\.csv|(scatter|grid)\.png|index\.html"
    r"|groups\.csv|group-\d+\.png|head\.(json|safetensors)|(embeddings|labels|ids)\.npy"
    r"|metrics\.json|(curves|contact-sheet)\.png|checkpoint\.pt|\S+\.safetensors|\..*"
)
"""Names of files that such a folder may hold."""


def mark_folder(path: Path, kind: FolderKind) -> None:
    """Writes into a folder that it is ours; does nothing where it is marked, or the disk refuses.

    Only for folders that hold nothing of the user's; see `claim_folder`.
    """
    marker = path / MARKER
    if _is_there(marker):
        return
    text = f"Lookalike {kind}\n\nLookalike made this folder, and never takes pictures from it.\n"
    with suppress(OSError), atomic_write(marker) as file:
        file.write(text.encode("ascii"))


def claim_folder(path: Path, kind: FolderKind) -> None:
    """Makes a folder where it is missing, and marks it unless files of the user's lie in it.

    Raises OSError.
    """
    make_folders(path.absolute())
    names = _names(path)
    if not names or (_are_of_data_folder(names) if kind == "data folder" else _is_output(path)):
        mark_folder(path, kind)


def folder_kind(path: Path) -> FolderKind | None:
    """What a folder of ours is: by its marker, or by what lies in it; None for any other folder.

    A part of a data folder, such as `images`, is of that kind, too. A folder that holds files of
    the user's beside a data folder's is none of ours, but those parts are.
    """
    if (marked := _marked(path)) is not None:
        return marked
    whole = _has_catalog(path) and _are_of_data_folder(_names(path))
    top = path.parent
    if whole or (path.name in PARTS and (_marked(top) == "data folder" or _has_catalog(top))):
        return "data folder"
    return "output" if _is_output(path) else None


def _marked(path: Path) -> FolderKind | None:
    """What a folder's marker says; one that was cut short says `output`."""
    if (start := _start_of(path / MARKER)) is None:
        return None
    said = start.partition(b"\n")[0].decode("ascii", "replace").removeprefix("Lookalike ")
    return next((kind for kind in get_args(FolderKind) if kind == said), "output")


def is_ours(path: Path) -> bool:
    """Whether Lookalike made a folder for itself, so that no picture in it is the user's."""
    return folder_kind(path) is not None


def owner_of(path: Path) -> Path | None:
    """The folder of ours that an absolute path is or lies in; None for a path of the user's.

    A folder of the user's inside a data folder, beside its parts, is the user's.
    """
    for folder in (path, *path.parents):
        kind = folder_kind(folder)
        if kind is not None and (kind != "data folder" or folder == path or folder.name in PARTS):
            return folder
    return None


def _has_catalog(path: Path) -> bool:
    """Whether a folder is a data folder, whatever lies in it beside; a catalog may be missing."""
    start = _start_of(path / "catalog.db") or b""
    if start[_APPLICATION_AT:][:4] == APPLICATION.to_bytes(4, "big"):
        return True
    return all(_is_there(path / name) for name in ("images", "thumbnails", "tmp", "lock"))


def _are_of_data_folder(names: list[str]) -> bool:
    return all(name in PARTS or _FILES.fullmatch(name) for name in names)


def _is_output(path: Path) -> bool:
    """Whether a folder holds what a command wrote, and nothing else."""
    signed = any(all(_is_there(path / name) for name in names) for names in _SIGNS)
    return signed and all(map(_OUTPUT.fullmatch, _names(path)))


def _start_of(path: Path) -> bytes | None:
    """The first bytes of a regular file; None where there is none that can be read."""
    with suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait
            with path.open("rb") as file:
                return file.read(100)
    return None


def _is_there(path: Path) -> bool:
    """Whether something lies at a path; False where it cannot be looked at."""
    return os.path.exists(path)  # noqa: PTH110 - `Path.exists` raises then


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208 - names are enough
    except OSError:
        return []


def require_data_folder(path: Path) -> None:
    """Refuses a folder that holds no collection, rather than make one in silence.

    Raises `ConfigurationError`, or `DataFolderError` if the files of a collection are there.
    """
    if not (path / "catalog.db").is_file():
        if held_in(path):
            raise files_without_catalog(path, f"{path / 'catalog.db'} is missing")
        raise ConfigurationError(
            f"There is no collection in {path.resolve()}; index pictures first "
            "(lookalike index PATH), name another folder with --data-dir, or a running service "
            "with --server URL"
        )


def held_in(folder: Path) -> dict[str, int]:
    """How many files lie in those parts of a data folder that only a catalog gives a meaning."""
    counts = {}
    for part in ("images", "thumbnails", "index", "heads"):
        names = (name for _, _, names in os.walk(folder / part) for name in names)
        counts[part] = sum(1 for name in names if not name.startswith("."))
    return {part: count for part, count in counts.items() if count}


def files_without_catalog(folder: Path, why: str) -> DataFolderError:
    """The error for a folder that holds files, and not the catalog that they belong to."""
    held = held_in(folder)
    counted = ", ".join(
        f"{count:,} file{'s' if count > 1 else ''} in {part}/" for part, count in held.items()
    )
    parts = ", ".join(f"{part}/" for part in held) or "catalog.db-wal"
    return DataFolderError(
        f"{why}. The folder holds {counted or 'a write-ahead log, catalog.db-wal'}; nothing was "
        f"changed. Put the right catalog.db back from a backup, or make it again from these files "
        f"(lookalike rebuild --data-dir {folder}). To begin with an empty folder instead, move "
        f"{parts} out of it first"
    )


def require_whole(path: Path) -> None:
    """Refuses a folder into which a backup is being restored, or was until that was interrupted."""
    if (path / RESTORING).exists():
        raise DataFolderError(
            f"{path} holds half of a backup: its restore was interrupted, or goes on. Wait for its "
            "end, or empty the folder and restore the backup again"
        )


def take_rebuilt(path: Path) -> str | None:
    """Puts the catalog that a rebuild made in its place; returns the new name of the old one.

    The catalog comes last: if this is interrupted, another rebuild goes on.
    """
    stamp = f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    made, old = path / REBUILT, path / "catalog.db"
    name = f"catalog.db.{stamp}" if old.exists() else None
    with disk_errors(f"put the new catalog into {path}"):
        log = made / "catalog.db-wal"
        if log.is_file() and log.stat().st_size:  # SQLite found no room to write it back
            raise StorageError(
                f"The new catalog in {made} is not whole; make room and rebuild again"
            )
        for ending in ("", "-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                (path / f"catalog.db{ending}").replace(path / f"catalog.db.{stamp}{ending}")
        if (made / "index").is_dir():
            shutil.rmtree(path / "index", ignore_errors=True)
            (made / "index").replace(path / "index")
        (path / "unswept.old").unlink(missing_ok=True)
        for part in ("unswept", "catalog.db"):
            with suppress(FileNotFoundError):
                (made / part).replace(path / part)
        sync(path)
        shutil.rmtree(made)
    return name


def make_data_folder(path: Path) -> None:
    """Makes the data folder where it is missing; raises `ConfigurationError` where it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The data folder {path} cannot be made: {exc.strerror}. Choose another with "
            "LOOKALIKE_DATA_DIR, or make it writable"
        ) from exc


def lock_folder(folder: Path) -> FileLock:
    """Makes this process the owner of a folder, until it releases the lock or dies.

    The lock file itself is never removed.

    Raises:
        DataFolderInUseError: Somebody else owns it; the text names them.
        StorageError: The folder cannot be used.
    """
    with disk_errors(f"use the data folder {folder}"):
        make_folders(folder.resolve())
        # Not thread-local: whoever closes the store lets go, on whatever thread.
        lock = FileLock(folder / "lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as exc:
            raise DataFolderInUseError(
                f"The data folder {folder} is in use by {_describe(folder / _OWNER)}. Stop it, or "
                "talk to the running service with --server URL"
            ) from exc
        # Only the command's first word: flags may carry keys.
        command = [Path(sys.argv[0]).name, *(a for a in sys.argv[1:2] if not a.startswith("-"))]
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(command),
            "started": utc_now(),
        }
        with suppress(OSError):  # a courtesy to whoever comes second; a full disk may refuse it
            (folder / _OWNER).write_text(json.dumps(owner))
        with suppress(OSError):
            claim_folder(folder, "data folder")
    return lock


def _describe(owner: Path) -> str:
    try:
        facts = json.loads(owner.read_text())
        return "process {pid} on {host} ({command}), since {started}".format(**facts)
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return "another process"
