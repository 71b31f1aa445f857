"""Pictures on their way in: one file or upload, and the picture files below folders."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lookalike.errors import (
    ConfigurationError,
    InvalidParameterError,
    LookalikeError,
    MissingFileError,
    UnreadableImageError,
)
from lookalike.files.data_folder import folder_kind, is_ours, owner_of
from lookalike.records import Metadata, Place, nfc, sha256_of

log = logging.getLogger(__name__)

_ENDINGS = (
    "jpg jpeg jpe jfif mpo png apng gif webp avif heic heif hif bmp dib tif tiff btf jp2 j2k jpx "
    "jpf ico ppm pgm pbm pnm pfm qoi"
)
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())

_OTHER_ENDINGS = {
    "raw": "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq kdc mef mos mrw nef nrw orf pef ptx raf "
    "raw rw2 rwl sr2 srf srw x3f",
    "psd": "psd psb",
    "jxl": "jxl",
    "svg": "svg svgz",
    "pdf": "pdf",
    "video": "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts webm wmv",
}
_KIND_OF = {f".{end}": kind for kind, ends in _OTHER_ENDINGS.items() for end in ends.split()}

_SYSTEM = re.compile(
    r"@(eadir|tmp|recycle|recently-snapshot|__thumb)|#(recycle|snapshot)"  # of network storage
    r"|\$recycle\.bin|recycler|system volume information|found\.\d+|lost\+found"  # of disks
    r"|__macosx|appdata_oc\w+|.*\.lrdata|syno(file|photo)_thumb_.*"  # previews and the like
)
"""Names in lower case of what systems keep beside a person's files, where they are not hidden."""

_STORED = re.compile(r"(^|/)(images|thumbnails)/([0-9a-f]{2})/([0-9a-f]{2})/\3\4[0-9a-f]{60}\.")
"""In the path of a file of a data folder, wherever the folder was packed."""

SOFTWARE = "Lookalike"
"""Which program made a picture, as every picture says that a command writes."""

_SAID_WITHIN = 512  # bytes of the start or the end

_NAMES = {"video": "videos", "links": "links", "other": "other files"}
_ONE = {"video": "video", "links": "link", "other": "other file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSource:
    """A file that waits to be indexed: an open upload or a path that is opened when needed.

    Attributes:
        filename: For display, and stored with the picture.
        size: Bytes.
        file: The open upload; None where `path` is given.
        path: A file on this machine; None for uploads.
        id: The caller's id, or None for one made from the content.
        metadata: The caller's metadata, or None to keep what is stored.
        place: Where it lies, to be noted; None if nobody said.
        created_at: When its row was made, if it was one before and is made again; as in `NewImage`.
        updated_at: When that row was last changed.
        error: Why it cannot be opened, where that is known already.
        digest: The SHA-256 of bytes that are stored and known to be the same; they are not here.
    """

    filename: str
    size: int
    file: BinaryIO | None = None
    path: Path | None = None
    id: str | None = None
    metadata: Metadata | None = None
    place: Place | None = None
    created_at: str | None = None
    updated_at: str | None = None
    error: LookalikeError | None = None
    digest: str | None = None

    @classmethod
    def from_path(
        cls, path: Path, *, id: str | None = None, metadata: Metadata | None = None
    ) -> PictureSource:
        """A file on this machine, kept closed until its turn comes."""
        try:
            facts = path.stat()
        except OSError as exc:
            raise UnreadableImageError(f"{path} cannot be read: {exc.strerror}") from exc
        if not stat.S_ISREG(facts.st_mode):
            raise UnreadableImageError(f"{path} cannot be read: it is no regular file")
        size = facts.st_size
        return cls(filename=_name(path), size=size, path=path, id=id, metadata=metadata)

    @classmethod
    def found(cls, found: Found, *, metadata: Metadata | None = None) -> PictureSource:
        """What `walk` found; what cannot be read says so when it is opened, not now."""
        if found.error is not None:
            return cls.refused(found.path, found.error, metadata=metadata)
        try:
            source = cls.from_path(found.path, metadata=metadata)
        except UnreadableImageError as exc:
            return cls.refused(found.path, exc, metadata=metadata)
        return replace(source, place=found.place)

    @classmethod
    def refused(
        cls, path: Path, error: LookalikeError, *, metadata: Metadata | None = None
    ) -> PictureSource:
        """A path that is never opened; the error says why."""
        return cls(filename=_name(path), size=0, path=path, metadata=metadata, error=error)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes, from the start. Raises `error`, or `UnreadableImageError` if it is gone."""
        if self.error is not None:
            raise self.error
        if self.file is not None:
            self.file.seek(0)
            yield self.file
            return
        if self.path is None:
            raise UnreadableImageError(f"{self.filename} was changed meanwhile; index it again")
        try:
            file = self.path.open("rb")
        except OSError as exc:
            raise UnreadableImageError(f"{self.path} cannot be read: {exc.strerror}") from exc
        with file:
            yield file

    def lies_at(self, path: str | None) -> bool:
        """Whether this is the file at a path that `resolved_path` returned."""
        return self.path is not None and str(self.path.resolve()) == path

    def resolved_path(self) -> str:
        """Where the file lies, links followed; raises `UnreadableImageError` if that is no text."""
        assert self.path is not None
        path = str(self.path.resolve())
        try:
            path.encode()
        except UnicodeEncodeError as exc:
            shown = os.fsencode(path).decode("ascii", "backslashreplace")
            raise UnreadableImageError(
                f"{shown} cannot be referred to in place: the name of the file or of a folder is "
                "no UTF-8; rename it, or have copies kept with LOOKALIKE_ORIGINALS=keep"
            ) from exc
        return path

    def close(self) -> None:
        """Closes the open file, where there is one."""
        if self.file is not None:
            self.file.close()

    def sha256(self) -> str:
        """Hex digest of the bytes, read as a stream."""
        if self.digest is not None:
            return self.digest
        with self.open() as file:
            return sha256_of(file)


@dataclass(frozen=True, slots=True)
class Found:
    """A file to index, or a folder that cannot be read.

    Attributes:
        path: The file, or that folder.
        folder: The name of the folder it lies in, as it can be stored.
        place: Where it lies below the folder that is walked, as it can be stored.
        error: Why the folder cannot be read; None for files.
    """

    path: Path
    folder: str
    place: Place
    error: UnreadableImageError | None = None


class Selection:
    """Which files below a folder are taken, and how many were passed over.

    Never taken: hidden files and folders, those that systems keep (`@eaDir`, `#recycle`,
    `$RECYCLE.BIN`...), Lookalike's own folders and pictures, links to folders, and links to files
    that are walked anyway.

    Args:
        exclude: Globs as git and rsync read them: `*`, `?` and `[a-z]` do not match a `/`, `**`
            does. One without a `/` matches names at any depth, one with a `/` before its end the
            path from the top. One that ends in `/` matches folders only. What lies in an excluded
            folder is excluded.
        avoid: Folders that are not walked into, such as the one that the command writes to.

    Attributes:
        passed: How many files and whole folders were passed over, by kind: `raw`, `psd`, `jxl`,
            `svg`, `pdf`, `video`, `links`, `hidden`, `system`, `excluded`, `ours`, `other`.

    Raises:
        InvalidParameterError: A glob is empty or starts with `!`.
    """

    def __init__(self, exclude: Iterable[str] = (), *, avoid: Iterable[Path] = ()) -> None:
        self._globs = [_Glob.parse(text) for text in exclude]
        self._avoid = {path.resolve() for path in avoid}
        self.passed: Counter[str] = Counter()

    def takes_folder(self, path: Path, relative: str) -> bool:
        """Whether a folder is walked into; `relative` is its path below the top, with `/`."""
        kind = self._kind_of_folder(relative)
        if kind is None and _is_link(path):
            kind = "links"
        if kind is None and (is_ours(path) or path.resolve() in self._avoid):
            kind = "ours"
        return self._passes(kind)

    def takes_file(self, path: Path, relative: str, tops: Sequence[Path]) -> bool:
        """Whether a file is taken; `tops` are all folders that are walked, resolved."""
        kind = self._kind_of_file(relative)
        if kind is None and _is_link(path) and _leads_into(path, tops):
            kind = "links"
        if kind is None and is_own_picture(path):
            kind = "ours"
        return self._passes(kind)

    def takes_member(self, parts: Sequence[str]) -> bool:
        """Whether a file of an archive is taken, by the parts of its name."""
        relative = "/".join(parts)
        folders = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        kind = next(filter(None, map(self._kind_of_folder, folders)), None)
        kind = kind or self._kind_of_file(relative)
        if kind is None and _STORED.search(relative):
            kind = "ours"
        return self._passes(kind)

    def _kind_of_folder(self, relative: str) -> str | None:
        """Why a folder is passed over, by its name."""
        name = relative.rpartition("/")[2]
        if name.startswith("."):
            return "hidden"
        if _SYSTEM.fullmatch(name.lower()):
            return "system"
        return "excluded" if self._excludes(relative, is_folder=True) else None

    def _kind_of_file(self, relative: str) -> str | None:
        name = relative.rpartition("/")[2]
        if name.startswith("."):
            return "hidden"
        if self._excludes(relative, is_folder=False):
            return "excluded"
        suffix = PurePosixPath(name.rstrip(" .")).suffix.lower()
        if suffix not in SUFFIXES:
            return _KIND_OF.get(suffix, "other")
        return "system" if _SYSTEM.fullmatch(name.lower()) else None

    def _excludes(self, relative: str, *, is_folder: bool) -> bool:
        relative = nfc(relative)
        return any(glob.matches(relative, is_folder=is_folder) for glob in self._globs)

    def _passes(self, kind: str | None) -> bool:
        if kind is not None:
            self.passed[kind] += 1
        return kind is None


def passed_over(passed: Mapping[str, int]) -> str:
    """One line such as `passed over: 12 raw, 3 psd, 1 link`; empty if nothing was."""
    parts = []
    for kind, count in sorted(passed.items(), key=lambda item: (-item[1], item[0])):
        name = (_ONE if count == 1 else _NAMES).get(kind, kind)
        parts.append(f"{count:,} {'of Lookalike itself' if kind == 'ours' else name}")
    return f"passed over: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True, slots=True)
class _Glob:
    pattern: re.Pattern[str]
    folders_only: bool

    @classmethod
    def parse(cls, text: str) -> _Glob:
        text = nfc(text)
        body = text.strip("/")
        if not body or text.startswith("!") or "\0" in text:
            raise InvalidParameterError(
                f"{ascii(text)[:80]} is no glob to exclude; write one such as *.tmp, drafts/ or "
                "/2019/**/raw"
            )
        anchored = "/" in text.rstrip("/")
        found = "" if anchored else "(?:.*/)?"
        parts = body.split("/")
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            if part == "**":
                found += ".*" if last else "(?:[^/]+/)*"
            else:
                found += "".join(map(_translate, _GLOB_PARTS.findall(part))) + ("" if last else "/")
        return cls(re.compile(found, re.DOTALL), text.endswith("/"))

    def matches(self, relative: str, *, is_folder: bool) -> bool:
        return (is_folder or not self.folders_only) and bool(self.pattern.fullmatch(relative))


_GLOB_PARTS = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|\\.|.", re.DOTALL)


def _translate(part: str) -> str:
    """One part of a glob as a regular expression."""
    if part.startswith("*"):
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if part.startswith("[") and len(part) > 1:
        body = part[1:-1]
        negated = body.startswith(("!", "^"))
        body = re.sub(r"([\\\[\]&~|])", r"\\\1", body[negated:])
        return f"(?!/)[{'^' if negated else ''}{body}]"
    return re.escape(part[1:] if part.startswith("\\") and len(part) > 1 else part)


def walk(
    paths: Iterable[Path],
    step: Callable[[], None] = lambda: None,
    *,
    selection: Selection | None = None,
) -> Iterator[Found]:
    """Picture files, by name; a file that is named itself is taken whatever its name.

    See `Selection` for what is passed over. A folder that cannot be read stands, with its error,
    where its pictures would. `step` is called for every folder; it may raise to end the work.

    Raises:
        MissingFileError: A path does not exist.
        ConfigurationError: A path cannot be looked at, or lies in a folder of Lookalike's own.
    """
    selection, paths = selection or Selection(), list(paths)
    tops = [path.resolve() for path in paths]
    for path in paths:
        try:
            is_folder, exists = path.is_dir(), path.exists()
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
        if is_folder:
            yield from _walk_folder(path, step, selection, tops)
        elif exists:
            parent = path.parent.resolve()
            yield Found(path, _name(path.resolve().parent), Place(_text(parent), _name(path)))
        else:
            raise MissingFileError(f"{path} does not exist")


def readable(found: Iterable[Found]) -> Iterator[Found]:
    """The files alone; folders that cannot be read are said in the log."""
    for one in found:
        if one.error is None:
            yield one
        else:
            log.warning("%s is left out: %s", one.path, one.error)


def _walk_folder(
    top: Path, step: Callable[[], None], selection: Selection, tops: Sequence[Path]
) -> Iterator[Found]:
    if (ours := owner_of(top.resolve())) is not None:
        raise ConfigurationError(
            f"{top} belongs to Lookalike itself ({ours} is its {folder_kind(ours)}); name a folder "
            "of your own pictures"
        )
    refused: list[OSError] = []
    root = root_of(top)

    def place(path: Path) -> Place:
        return Place(root, _text(path.relative_to(top)))

    for folder, subfolders, names in os.walk(top, onerror=refused.append):
        step()
        yield from _unreadable(refused, place)
        inside = Path(folder)
        below = inside.relative_to(top).as_posix()
        before = "" if below == "." else f"{below}/"
        subfolders[:] = sorted(
            name for name in subfolders if selection.takes_folder(inside / name, before + name)
        )
        label = _name(inside.resolve())
        for name in sorted(names):
            if selection.takes_file(inside / name, before + name, tops):
                yield Found(inside / name, label, place(inside / name))
    yield from _unreadable(refused, place)


def _is_link(path: Path) -> bool:
    """Whether a path is a link; False where it cannot be looked at."""
    return os.path.islink(path)  # noqa: PTH114 - `Path.is_symlink` raises then


def _leads_into(link: Path, tops: Sequence[Path]) -> bool:
    """Whether a link leads to a file that is walked anyway, or to one of Lookalike's own."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, which opening it will say
        return False
    return any(target.is_relative_to(top) for top in tops) or owner_of(target.parent) is not None


def is_own_picture(file: Path | BinaryIO) -> bool:
    """Whether a command of ours wrote a picture: a sheet, a map or a plot. Open files are rewound.

    False where it cannot be read.
    """
    try:
        if isinstance(file, Path):
            if not stat.S_ISREG(file.stat().st_mode):
                return False
            with file.open("rb", buffering=0) as opened:
                return _says_own(opened)
        found = _says_own(file)
        file.seek(0)
    except OSError:
        return False
    return found


def _says_own(file: BinaryIO | FileIO) -> bool:
    file.seek(0)
    head = file.read(_SAID_WITHIN) or b""
    if head.startswith(b"\x89PNG"):
        return b"tEXtSoftware\0" + SOFTWARE.encode() in head
    name = SOFTWARE.encode() + b"\0"
    if head.startswith(b"\xff\xd8"):
        return b"Exif\0\0" in head and name in head
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":  # whose EXIF stands at its end
        file.seek(-min(_SAID_WITHIN, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return name in (file.read() or b"")
    return False


def _unreadable(refused: list[OSError], place: Callable[[Path], Place]) -> Iterator[Found]:
    """The folders that could not be read since this was asked last."""
    while refused:
        error = refused.pop(0)
        path = Path(os.fsdecode(error.filename))
        why = f"The folder cannot be read: {error.strerror}; make it readable and index it again"
        yield Found(path, _name(path.parent), place(path), UnreadableImageError(why))


def is_here(place: Place) -> bool:
    """Whether a place is a file of this machine."""
    return Path(place.root).is_absolute() and os.path.lexists(place.location)


def is_gone(place: Place) -> bool:
    """Whether a place was a file of this machine that is not there any more.

    Where its root is missing with the folder above it, or that is empty, a disk may not be
    mounted, or the place may be another machine's: then it is not gone. Nor is a name that is no
    UTF-8, which cannot be looked up.
    """
    root = Path(place.root)
    if not root.is_absolute() or "\\x" in place.location or os.path.lexists(place.location):
        return False
    there = root if os.path.lexists(root) else root.parent
    try:
        return any(True for _ in there.iterdir())
    except OSError:
        return False


def root_of(path: Path) -> str:
    """What the places of the pictures of a folder or a manifest are below."""
    return _text(path.resolve())


def _text(path: Path) -> str:
    r"""A whole path as it can be stored: bytes that are no UTF-8 as `\xff`."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _name(path: Path) -> str:
    """The last part of a path, as it can be stored; composed, as macOS and others write it."""
    return nfc(os.fsencode(path.name).decode("utf-8", "replace"))
