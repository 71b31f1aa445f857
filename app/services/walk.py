"""Finding picture files below folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import ConfigurationError

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
    """A file to index, and the name of the folder it lies in."""

    path: Path
    folder: str


def walk(paths: Iterable[Path]) -> Iterator[Found]:
    """Picture files, by name; a file that is named itself is taken whatever its suffix.

    Hidden files and folders are passed over.

    Raises:
        ConfigurationError: A path does not exist.
    """
    for path in paths:
        if path.is_dir():
            yield from _walk_folder(path)
        elif path.exists():
            yield Found(path, path.resolve().parent.name)
        else:
            raise ConfigurationError(f"{path} does not exist")


def _walk_folder(top: Path) -> Iterator[Found]:
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        inside = Path(folder)
        label = inside.resolve().name
        for name in sorted(names):
            if is_picture_name([name]):
                yield Found(inside / name, label)


def is_picture_name(parts: Sequence[str]) -> bool:
    """Whether a file in a folder is taken, by the parts of its name below that folder."""
    if not parts or any(_hidden(part) for part in parts):
        return False
    return Path(parts[-1]).suffix.lower() in SUFFIXES


def _hidden(name: str) -> bool:
    return name.startswith(".")
