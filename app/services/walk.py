"""Finding picture files below folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = Path(folder)
        label = inside.resolve().name
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Found(inside / name, label)
