"""Manifests: tables that name pictures by path or address, with their ids and metadata."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from lookalike.errors import InvalidParameterError, LookalikeError, MissingFileError
from lookalike.records import check_id, counted, nfc

TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
MANIFEST_ENDINGS = (*TABLES, *LINES)
"""How the names of manifests end."""

VERSION = "version"
"""The metadata field that says whether the picture at an address has changed."""

_OWN = ("path", "url", "id", "metadata")  # columns that are no metadata fields
_MOST_CHARACTERS = 1_000_000  # of a cell or a line
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: a file or an address, or the error that says why it is neither.

    Attributes:
        line: Where it begins in the manifest, from 1.
        given: The path or address as it is written; empty if there is none.
        name: What tells it apart from other rows, as the path of its `Place`.
        path: The file, if it is one; a relative path is taken from the manifest's folder.
        id: The picture's id; None for one made from the content.
        metadata: None if the manifest says nothing, which keeps what is stored.
        error: Why the row cannot be used.
    """

    line: int
    given: str = ""
    name: str = ""
    path: Path | None = None
    id: str | None = None
    metadata: Mapping[str, Any] | None = None
    error: LookalikeError | None = None

    @property
    def url(self) -> str | None:
        """The address, if it is one."""
        return self.given if self.path is None and self.error is None else None


class Manifest:
    """A table (CSV with a header) or lines of JSON, in UTF-8; read anew by each call of `rows`.

    Args:
        file: The manifest.
        home: The folder that relative paths are below; the manifest's own if None.
        name: What it is called; its ending says what is in it. That of `file` if None.

    Raises:
        MissingFileError: There is no such file.
        InvalidParameterError: It has no header that names a path or an address, is no UTF-8, or
            its name has another ending.
    """

    def __init__(self, file: Path, *, home: Path | None = None, name: str | None = None) -> None:
        self._file = file
        self._home = file.resolve().parent if home is None else home
        self.name = name or file.name
        ending = next((one for one in MANIFEST_ENDINGS if self.name.lower().endswith(one)), None)
        if ending is None:
            raise InvalidParameterError(
                f"{self.name!a} is no manifest: its name must end in one of "
                f"{', '.join(MANIFEST_ENDINGS)}"
            )
        self._is_table = ending in TABLES
        self.count = 0  # rows
        self.addresses = self.files = 0  # of them, those that name an address, or a file
        self._kinds: dict[str, _Kind] = {}
        self._look_through()

    def rows(self, step: Callable[[], None] = lambda: None) -> Iterator[Row]:
        """All rows in order; `step` is called for each. A row that is broken carries its error."""
        ids: dict[str, int] = {}
        names: dict[str, int] = {}
        for line, found in self._records():
            step()
            row = self._row(line, found)
            if row.error is None and row.id is not None and row.id in ids:
                row = _broken(row, f"its id {row.id!r} is that of line {ids[row.id]}")
            if row.error is None and row.name in names:  # one picture of several products
                name = f"{row.name}#{row.id}"
                if row.id is None or name in names:
                    row = _broken(row, f"line {names[row.name]} names it too; give each an id")
                else:
                    row = replace(row, name=name)
            if row.error is None:
                names[row.name] = line
                if row.id is not None:
                    ids[row.id] = line
            yield row

    def _look_through(self) -> None:
        """Counts rows, and finds out which columns of a table hold numbers or truth values."""
        kinds: dict[str, _Kind] = {}
        for _, found in self._records():
            self.count += 1
            if isinstance(found, Mapping):
                is_address = bool(found.get("url")) or _is_address(found.get("path"))
                self.addresses += is_address
                self.files += not is_address and bool(found.get("path"))
                for name, cell in found.items() if self._is_table else ():
                    kinds.setdefault(name, _Kind()).see(cell)
        self._kinds = kinds

    def _row(self, line: int, found: Mapping[str, Any] | str) -> Row:
        if isinstance(found, str):
            return _broken(Row(line=line), found)
        row = Row(line=line)
        try:
            row = replace(row, given=_given(found))
            row = replace(row, id=_id(found.get("id")), name=nfc(row.given))
            is_file = not (found.get("url") or _is_address(row.given))
            path = self._home / row.given if is_file else None
            return replace(row, path=path, metadata=self._metadata(found))
        except LookalikeError as exc:
            return _broken(row, str(exc))

    def _metadata(self, found: Mapping[str, Any]) -> dict[str, Any] | None:
        """A row's metadata. Raises `InvalidParameterError`."""
        own = {name: value for name, value in found.items() if name not in _OWN}
        if self._is_table:
            own = {name: self._kinds[name].read(cell) for name, cell in own.items() if cell != ""}
        more = found.get("metadata")
        if self._is_table and more is not None:
            try:
                more = json.loads(more) if more.strip() else {}
            except (ValueError, RecursionError) as exc:
                raise InvalidParameterError(f"its metadata is no JSON: {exc}") from exc
        if more is not None and not isinstance(more, dict):
            raise InvalidParameterError(
                'its metadata must be a JSON object such as {"label": "cat"}'
            )
        says = more is not None or own or (self._is_table and not set(found) <= set(_OWN))
        return {**own, **(more or {})} if says else None

    def _records(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        """Each row with its line: a mapping, or what is wrong with it."""
        with self._opened() as file:
            yield from self._cells(file) if self._is_table else self._objects(file)

    def _cells(self, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        first = file.readline(_MOST_CHARACTERS)
        file.seek(0)
        # Spreadsheets write semicolons where the comma is the decimal point.
        delimiter = max("\t;,", key=first.count)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = self._header(reader)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                yield line, f"it is no CSV: {exc}"
                continue
            if not any(cells):
                continue
            if len(cells) != len(header):
                has = counted(len(cells), "cell")
                yield line, f"it has {has}, and the header has {len(header)}"
                continue
            yield line, dict(zip(header, map(str.strip, cells), strict=True))

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            cells, why = next(reader, []), ""
        except csv.Error as exc:
            cells, why = [], f" ({exc})"
        names = [nfc(cell.strip()) for cell in cells]
        names = [name.lower() if name.lower() in _OWN else name for name in names]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            why = f" ({twice[0]!a} is there twice)"
        if not {"path", "url"} & set(names) or twice or "" in names:
            raise InvalidParameterError(
                f"{self.name!a} has no header that can be used{why}: its first line must "
                "name each column once, and `path` or `url` among them"
            )
        return names

    def _objects(self, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        line = 0
        while text := file.readline(_MOST_CHARACTERS):
            line += 1
            if not text.endswith("\n") and len(text) == _MOST_CHARACTERS:
                while (rest := file.readline(_MOST_CHARACTERS)) and not rest.endswith("\n"):
                    pass
                yield line, f"it has more than {_MOST_CHARACTERS:,} characters"
                continue
            if not text.strip():
                continue
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as exc:
                yield line, f"it is no JSON: {exc}"
                continue
            yield line, found if isinstance(found, dict) else "it is no JSON object"

    @contextmanager
    def _opened(self) -> Iterator[TextIO]:
        csv.field_size_limit(_MOST_CHARACTERS)
        try:
            with self._file.open(encoding="utf-8-sig", newline="") as file:
                yield file
        except FileNotFoundError as exc:
            raise MissingFileError(f"{self._file} does not exist") from exc
        except UnicodeDecodeError as exc:
            raise InvalidParameterError(
                f"{self.name!a} is not in UTF-8: save it as `CSV UTF-8`, or convert it"
            ) from exc
        except OSError as exc:
            raise InvalidParameterError(f"{self.name!a} cannot be read: {exc.strerror}") from exc


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest, by its ending."""
    return path.name.lower().endswith(MANIFEST_ENDINGS) and not path.is_dir()


class _Kind:
    """What all cells of a column are: numbers, truth values, or texts."""

    def __init__(self) -> None:
        self.numbers = self.truths = True

    def see(self, cell: str) -> None:
        if cell != "":
            self.numbers = self.numbers and _NUMBER.fullmatch(cell) is not None
            self.truths = self.truths and cell.lower() in {"true", "false"}

    def read(self, cell: str) -> str | float | bool:
        if self.numbers:
            return float(cell) if "." in cell else int(cell)
        return cell.lower() == "true" if self.truths else cell


def _is_address(given: object) -> bool:
    return isinstance(given, str) and given.lower().startswith(("http://", "https://"))


def _given(found: Mapping[str, Any]) -> str:
    """The one path or address of a row. Raises `InvalidParameterError`."""
    path, url = (found.get(name) for name in ("path", "url"))
    given = [one for one in (path, url) if one not in (None, "")]
    text = given[0] if len(given) == 1 else None
    if not isinstance(text, str):
        raise InvalidParameterError("it must have one path or one url, as text")
    if not _may_be_named(text):
        raise InvalidParameterError("its path or url holds characters that none can have")
    if url and not _is_address(text):
        raise InvalidParameterError(
            f"{ascii(text)[:80]} is no address: it must begin with http:// or https://"
        )
    return text


def _id(given: object) -> str | None:
    """The id of a row; None if it has none. Raises `InvalidParameterError` or `InvalidIdError`."""
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if given is not None and not isinstance(given, str):
        raise InvalidParameterError("its id must be text")
    text = (given or "").strip()
    return check_id(text) if text else None


def _may_be_named(text: str) -> bool:
    """Whether a text can be a path or an address; JSON can escape half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _broken(row: Row, why: str) -> Row:
    return replace(row, error=InvalidParameterError(f"the row cannot be used: {why}"))
