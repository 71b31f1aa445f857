"""Finding picture files below folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lookalike.errors import ConfigurationError, MissingFileError, UnreadableImageError

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    f".{ending}"
    for endings in (
        ("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "gif", "webp", "avif", "heic", "heif"),
        ("bmp", "dib", "tif", "tiff", "jp2", "j2k", "ico", "ppm", "pgm", "pbm", "pnm", "qoi"),
    )
    for ending in endings
)


@dataclass(frozen=True, slots=True)
class Found:
    """A file to index, or a folder that cannot be read.

    Attributes:
        path: The file, or that folder.
        folder: The name of the folder it lies in, as it can be stored.
        error: Why the folder cannot be read; None for files.
    """

    path: Path
    folder: str
    error: UnreadableImageError | None = None


def walk(paths: Iterable[Path], step: Callable[[], None] = lambda: None) -> Iterator[Found]:
    """Picture files, by name; a file that is named itself is taken whatever its suffix.

    Hidden files and folders are passed over. A folder that cannot be read stands, with its error,
    where its pictures would.

    Args:
        paths: Files and folders.
        step: Called for every folder; may raise to end the work.

    Raises:
        MissingFileError: A path does not exist.
        ConfigurationError: A path cannot be looked at.
    """
    for path in paths:
        try:
            is_folder, exists = path.is_dir(), path.exists()
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
        if is_folder:
            yield from _walk_folder(path, step)
        elif exists:
            yield Found(path, _name(path.resolve().parent))
        else:
            raise MissingFileError(f"{path} does not exist")


def readable(found: Iterable[Found]) -> Iterator[Found]:
    """The files alone; folders that cannot be read are said in the log."""
    for one in found:
        if one.error is None:
            yield one
        else:
            log.warning("%s is left out: %s", one.path, one.error)


def _walk_folder(top: Path, step: Callable[[], None]) -> Iterator[Found]:
    refused: list[OSError] = []
    for folder, subfolders, names in os.walk(top, onerror=refused.append):
        step()
        yield from _unreadable(refused)
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        inside = Path(folder)
        label = _name(inside.resolve())
        for name in sorted(names):
            if is_picture_name([name]):
                yield Found(inside / name, label)
    yield from _unreadable(refused)


def _unreadable(refused: list[OSError]) -> Iterator[Found]:
    """The folders that could not be read since this was asked last."""
    while refused:
        error = refused.pop(0)
        path = Path(os.fsdecode(error.filename))
        why = f"The folder cannot be read: {error.strerror}; make it readable and index it again"
        yield Found(path, _name(path.parent), UnreadableImageError(why))


def _name(folder: Path) -> str:
    return os.fsencode(folder.name).decode("utf-8", "replace")


def is_picture_name(parts: Sequence[str]) -> bool:
    """Whether a file in a folder is taken, by the parts of its name below that folder."""
    if not parts or any(_hidden(part) for part in parts):
        return False
    return Path(parts[-1]).suffix.lower() in SUFFIXES


def _hidden(name: str) -> bool:
    return name.startswith(".")
