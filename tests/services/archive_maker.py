"""Archives of every kind, good and hostile, for the tests."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")


def write_archive(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    """Writes an archive whose kind follows from the file's name; names may repeat."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files:
                archive.writestr(_info(name), data)
        return path
    packed = {"tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
    mode = next((mode for end, mode in packed.items() if path.name.endswith(end)), "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
