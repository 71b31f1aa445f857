"""Artifact folders: files that were made once, belong together and are checked when they are read.

```
<folder>/manifest.json      kind, version, facts, and the files with their sizes and digests
<folder>/<content>/...      the files; a folder of its own for each time that it was written
```

The manifest is written last and replaced in one step. So after a crash an artifact is the old one
or the new one, never a mixture, and what no manifest names is removed later.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from lookalike.files.disk import atomic_write, make_folders, sync
from lookalike.records import file_sha256

MANIFEST: Final = "manifest.json"
_STALE_S: Final = 3600.0
"""Younger leftovers may be another process's, about to be named by a manifest."""


class BrokenArtifactError(Exception):
    """An artifact that must not be used; the text completes "it cannot be used: ..."."""


class SavedFile(TypedDict):
    """What the manifest says of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact that was read.

    Attributes:
        folder: The artifact's folder.
        content: The folder inside it that holds the files.
        facts: The JSON object that was saved with them.
        files: The size and the digest of each file, by name.
    """

    folder: Path
    content: Path
    facts: Mapping[str, Any]
    files: Mapping[str, SavedFile]

    def path(self, name: str) -> Path:
        """Where a file lies; raises `BrokenArtifactError` if there is none of this name."""
        if name not in self.files:
            raise BrokenArtifactError(f"it has no file {name}")
        return self.content / name

    def verify(self, name: str, step: Callable[[], None] = lambda: None) -> Path:
        """As `path`, once the whole file was read; raises also if its bytes are others.

        `step` is called for each block that is read; it may raise to end the reading.
        """
        path = self.path(name)
        try:
            if _facts_of(path, step) != self.files[name]:
                raise BrokenArtifactError(f"the checksum of {name} is wrong")
        except FileNotFoundError as exc:
            raise BrokenArtifactError(f"{name} is missing") from exc
        return path


def save_artifact(
    folder: Path,
    *,
    kind: str,
    version: int,
    facts: Mapping[str, Any],
    write: Callable[[Path], object],
) -> Artifact:
    """Writes an artifact; one that is there already is replaced in one step.

    Args:
        folder: The artifact's folder; made if it is missing.
        kind: What it is, for example `generation`.
        version: Of its format.
        facts: A JSON object to keep with it; `write` may still add to it.
        write: Writes the files into the empty folder that it is given, without folders inside.

    Raises:
        OSError: The disk refuses; the old artifact stays.
    """
    make_folders(folder.absolute())
    content = folder / uuid.uuid4().hex
    content.mkdir()
    try:
        write(content)
        files = sorted(content.iterdir())
        for file in files:
            sync(file)
        sync(content)
        artifact = Artifact(
            folder=folder,
            content=content,
            facts=dict(facts),
            files={file.name: _facts_of(file) for file in files},
        )
        document = {
            "kind": kind,
            "version": version,
            "content": content.name,
            "files": artifact.files,
            "facts": artifact.facts,
        }
        with atomic_write(folder / MANIFEST) as manifest:
            manifest.write(json.dumps(document, indent=1).encode())
    except BaseException:
        shutil.rmtree(content, ignore_errors=True)
        raise
    remove_leftovers(artifact)
    return artifact


def read_artifact(folder: Path, *, kind: str, version: int) -> Artifact | None:
    """Reads an artifact's manifest, None if there is none; `Artifact.verify` reads the files.

    Raises `BrokenArtifactError` if it is damaged, or of another kind or version.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        document = json.loads(text)
        found = document["kind"], document["version"]
        content, files, facts = document["content"], document["files"], document["facts"]
        names = [content, *files]
        saved: dict[str, SavedFile] = {
            name: {"sha256": str(file["sha256"]), "bytes": int(file["bytes"])}
            for name, file in files.items()
        }
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as exc:
        raise BrokenArtifactError("its manifest is damaged") from exc
    if found != (kind, version):
        raise BrokenArtifactError(
            f"it is a {found[0]} of version {found[1]}, not a {kind} of version {version}"
        )
    if not isinstance(facts, dict) or not all(map(_is_plain_name, names)):
        raise BrokenArtifactError("its manifest is damaged")
    return Artifact(folder=folder, content=folder / content, facts=facts, files=saved)


def remove_artifact(folder: Path) -> None:
    """Removes an artifact; its manifest first, so that a crash leaves no half of it in use."""
    with contextlib.suppress(OSError):  # missing, or a folder that somebody put there
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _facts_of(file: Path, step: Callable[[], None] = lambda: None) -> SavedFile:
    return {"sha256": file_sha256(file, step), "bytes": file.stat().st_size}


def _is_plain_name(name: object) -> bool:
    """True for a file name that cannot lead out of its folder."""
    return isinstance(name, str) and name not in {"", ".", ".."} and Path(name).name == name


def remove_leftovers(artifact: Artifact, *, older_than_s: float = _STALE_S) -> None:
    """Removes all but `artifact`: what an older manifest named, or a crash left.

    Younger leftovers stay; `older_than_s` is 0 if no other process writes to the folder.
    """
    limit = time.time() - older_than_s
    for path in artifact.folder.iterdir():
        with contextlib.suppress(OSError):
            if path.name in {artifact.content.name, MANIFEST} or path.stat().st_mtime > limit:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
