"""Duplicates as files of a folder: a table, a script, and moves to a trash folder and back.

Nothing here deletes a file. A file is moved only while another one, the one to keep, is there with
the bytes that were indexed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lookalike.errors import ConfigurationError, StorageError
from lookalike.files.data_folder import folder_kind, mark_folder, owner_of
from lookalike.files.disk import disk_errors, make_folders, sync
from lookalike.records import DuplicateKind, Why, sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """A file of a group of duplicates, as it was when it was indexed."""

    path: Path  # absolute
    sha256_start: str  # the first hex digits of its digest
    bytes: int
    width: int  # in pixels
    height: int
    kind: DuplicateKind | None = None  # what it is to the file to keep; None for that one
    score: float | None = None  # its cosine with the file to keep


@dataclass(frozen=True, slots=True)
class FileGroup:
    """A file to keep, and its duplicates."""

    keep: PictureFile
    duplicates: Sequence[PictureFile]
    why: Why | None = None  # what decided which file is kept


def keep_first(paths: Iterable[Path]) -> tuple[list[Path], Why]:
    """Sorts files of the same bytes: the oldest first, then the one with the shortest path.

    Also returns what decided which is the first.
    """

    def order(path: Path) -> tuple[float, int, str]:
        try:
            changed = path.stat().st_mtime
        except OSError:
            changed = float("inf")
        return changed, len(str(path)), str(path)

    ranks = sorted(map(order, paths))
    first, second = ranks[0], ranks[-1] if len(ranks) < 2 else ranks[1]
    why = Why.OLDER if first[0] < second[0] else Why.PATH
    return [Path(path) for *_, path in ranks], why


def as_csv(groups: Iterable[FileGroup]) -> str:
    """A table with one line for each file."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["group", "kind", "role", "path", "bytes", "width", "height", "score", "why"])
    for number, group in enumerate(groups, start=1):
        for one in (group.keep, *group.duplicates):
            role = "keep" if one.kind is None else "duplicate"
            score = "" if one.score is None else f"{one.score:.4f}"
            why = (group.why or "") if one.kind is None else ""
            facts = (one.path, one.bytes, one.width, one.height, score, why)
            table.writerow((number, one.kind or "", role, *facts))
    return text.getvalue()


_SCRIPT = """\
#!/bin/sh
# Moves duplicates to a folder that you name: sh SCRIPT FOLDER
# It deletes nothing and overwrites nothing. Lines that start with ":" do nothing: they are
# pictures that are alike, not the same bytes. Look at them, then remove the ":" of those to move.
set -u
trash=${1:?"name the folder to move duplicates to"}
mkdir -p -- "$trash" || exit 1
trash=$(cd -- "$trash" && pwd -P && echo .) || exit 1
trash=${trash%??}
[ / -ef / ] || { echo "this shell cannot compare files" >&2; exit 1; }

# move_exact KEPT DUPLICATE FOLDER NAME: only if both have the same bytes now
move_exact() {
    cmp -s -- "$1" "$2" || { printf 'not the same, stays: %s\\n' "$2"; return; }
    move "$@"
}
# move KEPT DUPLICATE FOLDER NAME
move() {
    if [ ! -f "$1" ] || [ ! -f "$2" ] || [ "$1" -ef "$2" ] || [ -L "$2" ] \\
        || [ -e "$trash/$3/$4" ] || [ -L "$trash/$3/$4" ]
    then
        printf 'stays: %s\\n' "$2"
    else
        mkdir -p -- "$trash/$3" && mv -n -- "$2" "$trash/$3/$4"
    fi
}
"""


def as_script(groups: Iterable[FileGroup], folder: Path) -> str:
    """A POSIX shell script that moves exact duplicates to a folder that its caller names.

    Names never stand in comments, because a name may hold a line break.
    """
    lines = [_SCRIPT]
    for number, group in enumerate(groups, start=1):
        lines.append(f"# group {number}; why the first file is kept: {group.why or 'same bytes'}")
        for one in group.duplicates:
            below = one.path.relative_to(folder)
            names = (str(group.keep.path), str(one.path), str(below.parent), below.name)
            command = "move_exact" if one.kind is DuplicateKind.EXACT else ": move"
            lines.append(f"{command} {' '.join(map(shlex.quote, names))}")
    return "\n".join(lines) + "\n"


def check_trash(target: Path, folder: Path) -> None:
    """Refuses a folder to move to that could be taken for pictures, or holds the walked one.

    Raises `ConfigurationError` unless it is missing, empty, or marked as trash, and lies neither
    around `folder` nor in another folder of Lookalike's own.
    """
    target, folder = target.resolve(), folder.resolve()
    same = target.exists() and any(target.samefile(one) for one in (folder, *folder.parents))
    if same or folder.is_relative_to(target):
        raise ConfigurationError(f"{target} holds the folder that is walked; name another to move")
    if target.exists() and not target.is_dir():
        raise ConfigurationError(f"{target} is no folder; name another to move to")
    owner = owner_of(target)
    if owner is not None and folder_kind(owner) != "trash":
        raise ConfigurationError(
            f"{target} lies in {owner}, which is Lookalike's own; name another"
        )
    if owner is None and target.exists() and any(True for _ in target.iterdir()):
        raise ConfigurationError(
            f"{target} holds other files. Name a folder that is new or empty, or one that "
            "duplicates were moved to before"
        )


class Mover:
    """Moves duplicates below `folder` to a trash folder, with a manifest that moves them back.

    Args:
        folder: The folder that was walked; moved files keep their path below it.
        target: See `check_trash`.

    Attributes:
        manifest: A file of JSON lines (`from`, `to`, `sha256`, `kept`), each written before the
            move that it tells of; `to` is relative to the target. None until a file is moved.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        check_trash(target, folder)
        self._folder, self._target = folder.resolve(), target.resolve()
        self.manifest: Path | None = None

    def move(self, groups: Iterable[FileGroup], *, dry_run: bool) -> Iterator[tuple[Path, str]]:
        """Moves all duplicates, one by one; a dry run only checks them.

        Yields each file with why it stays, or with an empty text if it was moved.

        Raises:
            StorageError: The target cannot be written.
        """
        groups = list(groups)
        kept = {group.keep.path for group in groups}
        for group in groups:
            for one in group.duplicates:
                why = "another group keeps it" if one.path in kept else None
                yield one.path, why or self._move_one(group.keep, one, dry_run=dry_run)

    def _move_one(self, keep: PictureFile, one: PictureFile, *, dry_run: bool) -> str:
        below = one.path.relative_to(self._folder)
        to = self._target / below
        try:
            found = _checked(keep, one)
        except _StaysError as exc:
            return str(exc)
        if os.path.lexists(to) or not to.parent.resolve().is_relative_to(self._target):
            return f"{to} exists already"
        if dry_run:
            return ""
        line = {"from": str(one.path), "to": str(below), "sha256": found.sha256}
        with disk_errors(f"move files to {self._target}"):
            self._note({**line, "kept": str(keep.path)})
            make_folders(to.parent)
        return _move(one.path, to, found)

    def _note(self, line: dict[str, Any]) -> None:
        """Appends a line that survives a crash."""
        if self.manifest is None:
            make_folders(self._target)
            mark_folder(self._target, "trash")
            if owner_of(self._target) is None:
                raise StorageError(f"{self._target} cannot be marked as trash; nothing was moved")
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
            self.manifest = self._target / f"moved-{stamp}.jsonl"
            self.manifest.touch(exist_ok=False)
            sync(self._target)
        with self.manifest.open("ab") as file:
            file.write(json.dumps(line).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())


def undo(manifest: Path) -> Iterator[tuple[Path, str]]:
    """Moves files back to where they were, the last one first; never overwrites.

    Yields each file's old path with why it was not moved back, or with an empty text.

    Raises:
        ConfigurationError: The file is no manifest, or cannot be read.
    """
    strange = False
    try:
        lines = manifest.read_bytes().split(b"\n")[:-1]  # the last may be cut short
        moves = [json.loads(line) for line in lines]
        for one in moves:
            below = Path(one["to"])
            strange |= below.is_absolute() or ".." in below.parts
            strange |= not Path(one["from"]).is_absolute() or not isinstance(one["sha256"], str)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as exc:
        raise ConfigurationError(f"{manifest} is no manifest of moved files: {exc}") from exc
    if strange:
        raise ConfigurationError(f"{manifest} names paths that no manifest of moved files does")
    for one in reversed(moves):
        old, now = Path(one["from"]), manifest.resolve().parent / one["to"]
        if os.path.lexists(old):
            yield old, "something lies there"
            continue
        try:
            found = _look(now, start=one["sha256"])
            make_folders(old.parent)
        except (OSError, ValueError) as exc:
            yield old, f"{now} is {_changed(exc)}"
            continue
        yield old, _move(now, old, found)


@dataclass(frozen=True, slots=True)
class _Look:
    """A regular file's digest, and the facts that tell if it is replaced or changed."""

    sha256: str
    facts: tuple[int, int, int, int]


def _look(path: Path, *, start: str = "") -> _Look:
    """Reads a file whole.

    Raises OSError; ValueError if it is no regular file, or its digest starts otherwise.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("it is no file")
    with path.open("rb") as file:
        before = _facts(os.fstat(file.fileno()))
        found = _Look(sha256_of(file), before)
        after = _facts(os.fstat(file.fileno()))
    if after != before or not found.sha256.startswith(start):
        raise ValueError("it was changed")
    return found


class _StaysError(Exception):
    """Why a file is not moved."""


def _checked(keep: PictureFile, one: PictureFile) -> _Look:
    """Looks at a duplicate and the file to keep; raises `_StaysError` if it must not be moved."""
    try:
        if keep.path.samefile(one.path):
            raise _StaysError(f"it is the same file as {keep.path}")
        kept = _look(keep.path, start=keep.sha256_start)
    except (OSError, ValueError) as exc:
        raise _StaysError(f"it or {keep.path}, which is to be kept, is {_changed(exc)}") from exc
    try:
        found = _look(one.path, start=one.sha256_start)
    except (OSError, ValueError) as exc:
        raise _StaysError(f"it is {_changed(exc)}") from exc
    if one.kind is DuplicateKind.EXACT and kept.sha256 != found.sha256:
        raise _StaysError(f"it is not the same as {keep.path}")
    return found


def _facts(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _changed(exc: Exception) -> str:
    return "gone or unreadable" if isinstance(exc, OSError) else "changed since it was indexed"


def _move(old: Path, new: Path, found: _Look) -> str:
    """Gives a file a new path where nothing lies; returns why not, or an empty text.

    A hard link is made first, which never overwrites; where there can be none, a copy. The old
    name goes last.
    """
    try:
        os.link(old, new, follow_symlinks=False)
        if _facts(new.lstat()) != found.facts:
            new.unlink()
            return "it was changed just now"
    except FileExistsError:
        return f"{new} exists already"
    except OSError:  # another disk, or one without hard links
        if why := _copy(old, new, found):
            return why
    try:
        sync(new.parent)
        if _facts(old.lstat()) != found.facts:
            return f"it was replaced just now; what it was is {new}"
        old.unlink()
    except OSError as exc:
        return f"it cannot be removed, and lies in both places: {exc.strerror}"
    with suppress(OSError):
        sync(old.parent)
    return ""


def _copy(old: Path, new: Path, found: _Look) -> str:
    """Copies a file where nothing lies, and reads the copy back; returns why not."""
    try:
        with old.open("rb") as source, new.open("xb") as copy:
            try:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
                with suppress(OSError):
                    shutil.copystat(old, new)
                whole = _look(new).sha256 == found.sha256 and _look(old) == found
            except BaseException:
                new.unlink()
                raise
        if not whole:
            new.unlink()
            return "it was changed just now"
    except FileExistsError:
        return f"{new} exists already"
    except (OSError, ValueError) as exc:
        return f"it cannot be copied: {exc}"
    return ""
