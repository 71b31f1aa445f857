"""What a backup is: a tar file, or a folder that each backup brings up to date.

A backup holds the catalog as it was at one moment, the originals that it names, and the heads and
int8 networks, which cannot be made again. The catalog is copied first. Originals never change, and
one whose picture is deleted meanwhile is found in the trash.

What can be made again is left out: indexes and converted networks. Thumbnails are in it, since
making them takes far longer than copying them. Jobs and imports are not: a restored service must
not go on with the work of the one that it was copied from. Keys are left out unless asked for.

```
backup.json               the first file of a tar: what this is, and the version of its format
catalog.db                these as in a data folder
heads/  models/
images/  thumbnails/
SHA256SUMS                digest and name of each of them
manifest.json             the last: counts, and the digest of SHA256SUMS
```

A folder has these files for each version of the backup, but the versions share `images` and
`thumbnails`:

```
BACKUP/
├── images/  thumbnails/
└── versions/20260131T120000123Z/    catalog.db, heads/, models/, SHA256SUMS, manifest.json
```
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Generator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lookalike import __version__
from lookalike.errors import BackupError, ConfigurationError
from lookalike.records import counted, is_digest, utc_now

KIND = "lookalike backup"
FORMAT = 1
HEADER, MANIFEST, SUMS, CATALOG = "backup.json", "manifest.json", "SHA256SUMS", "catalog.db"
VERSIONS = "versions"
KEYS = ("admin.key", "access.db")
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
KEPT_VERSIONS = 7

SHARED = ("images/", "thumbnails/")
"""Where the files lie that the versions of a folder share."""


@dataclass(kw_only=True)
class Backup:
    """What a backup holds; filled while it is made, and written as its manifest.

    JSON of it has `kind`, `format` and `product` beside.
    """

    created_at: str = field(default_factory=utc_now)
    version: str | None = None  # the name of a folder's version; None of a tar
    collections: dict[str, int] = field(default_factory=dict)  # pictures, by name
    keys: bool = False
    files: int = 0
    size: int = 0  # bytes in all files
    originals: int = 0
    in_place: int = 0  # originals outside of the data folder, which are not in the backup
    missing: int = 0  # pictures whose original is nowhere, or was never kept
    damaged: int = 0  # originals with other bytes than they had, which are left out
    errors: list[str] = field(default_factory=list)  # the first few
    sums: str = ""  # the SHA-256 of SHA256SUMS

    @property
    def pictures(self) -> int:
        """Pictures in all collections."""
        return sum(self.collections.values())

    def manifest(self) -> bytes:
        """The JSON that ends a backup."""
        head = {"kind": KIND, "format": FORMAT, "product": __version__}
        return json.dumps(head | asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def read(cls, text: bytes) -> Backup:
        """Reads a manifest. Raises `BackupError`."""
        values = read_header(text)
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        try:
            backup = TypeAdapter(cls).validate_python(known)
        except ValidationError as exc:
            raise BackupError("The backup's manifest is damaged") from exc
        if not is_digest(backup.sums):
            raise BackupError("The backup's manifest is damaged")
        return backup

    def __str__(self) -> str:
        """One sentence for people."""
        collections = counted(len(self.collections), "collection")
        parts = [f"{counted(self.pictures, 'picture')} in {collections}"]
        parts += [counted(self.originals, "original")]
        parts += [f"{counted(self.size, 'byte')} in {counted(self.files, 'file')}"]
        if self.in_place:
            parts += [f"{counted(self.in_place, 'original')} elsewhere and not in it"]
        if self.missing:
            parts += [f"{self.missing:,} without an original"]
        if self.damaged:
            parts += [f"{counted(self.damaged, 'original')} left out because of damage"]
        return ", ".join(parts)


def read_header(text: bytes) -> dict[str, Any]:
    """Reads the JSON that begins or ends a backup. Raises `BackupError` if it is of none."""
    try:
        values = json.loads(text)
        kind, number, product = values["kind"], values["format"], values["product"]
    except (ValueError, RecursionError, KeyError, TypeError) as exc:
        raise BackupError("This is no backup of Lookalike") from exc
    if kind != KIND or not isinstance(number, int):
        raise BackupError("This is no backup of Lookalike")
    if number > FORMAT:
        raise BackupError(
            f"The backup was made by Lookalike {product!s:.40}, in a format that this version does "
            "not know; restore it with that version or a later one"
        )
    return dict(values)


def is_tar(path: Path) -> bool:
    """Whether a backup of this name is a tar file."""
    return path.name.lower().endswith(TAR_ENDINGS)


class Sums:
    """SHA256SUMS as it grows: a line for each file, as `sha256sum` writes and checks them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._file = path.open("wb")

    def add(self, digest: str, name: str) -> None:
        """Adds a file."""
        line = f"{digest}  {name}\n".encode()
        self._digest.update(line)
        self._file.write(line)

    def end(self) -> str:
        """Ends the list; returns its digest."""
        self._file.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def require_no_other(path: Path) -> None:
    """Refuses to write a backup over a file that is none. Raises `ConfigurationError`."""
    if not path.is_file() or not path.stat().st_size:
        return
    first = None
    with suppress(tarfile.TarError, zlib.error, EOFError), tarfile.open(path) as tar:
        first = tar.next()
    if first is None or first.name != HEADER:
        raise ConfigurationError(f"{path} is there already and is no backup; name another file")


def require_end(path: Path) -> None:
    """Reads a tar file to its end. Raises `BackupError` if it was cut off, by a proxy perhaps."""
    last = None
    with suppress(tarfile.TarError, zlib.error, EOFError), tarfile.open(path) as opened:
        tar: Any = opened
        while (info := tar.next()) is not None:
            last = info.name
            tar.members.clear()  # else it keeps every one
        if last == MANIFEST:
            return
    raise BackupError("The backup was cut off on its way; what was there before is kept")


def read_sums(path: Path) -> Generator[tuple[str, str]]:
    """The lines of a SHA256SUMS: digest and name. Raises `BackupError` where one is none."""
    with path.open("rb") as file:
        while line := file.readline(1000):
            digest, name = (
                line[:64].decode("ascii", "replace"),
                line[66:-1].decode("utf-8", "replace"),
            )
            if line[64:66] != b"  " or line[-1:] != b"\n" or not is_digest(digest):
                raise BackupError(f"{path} is damaged")
            yield digest, name


def versions_of(folder: Path, *, whole: bool = True) -> list[Path]:
    """The versions in a backup folder that are whole, or those that are not; oldest first."""
    found = sorted((folder / VERSIONS).glob("*/"))
    return [one for one in found if (one / MANIFEST).is_file() is whole]
