"""Datasets whose pictures are listed in a text file: Stanford Online Products, and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

from lookalike.errors import ConfigurationError
from lookalike.evaluation.datasets.base import FileDataset, id_of
from lookalike.media.walk import SUFFIXES

Split = Literal["test", "train"]
SopLabel = Literal["class", "super_class"]

_PATH_NAMES = {"path", "file", "filename", "image"}
_SOP_HEADER = ["image_id", "class_id", "super_class_id", "path"]


def sop_list(top: Path, *, split: Split) -> Path:
    """The list of a split of Stanford Online Products."""
    return top / f"Ebay_{split}.txt"


def open_sop(top: Path, *, split: Split, label: SopLabel) -> FileDataset:
    """Stanford Online Products, as its archive unpacks.

    Args:
        top: The folder of `Ebay_test.txt` and `Ebay_train.txt`.
        split: Which list.
        label: `class` for the product (`class_id`), `super_class` for its kind: the name of the
            picture's folder without `_final`, e.g. `bicycle`.

    Raises:
        ConfigurationError: The list is missing or is not in the format.
    """
    path = sop_list(top, split=split)
    if not path.is_file():
        raise ConfigurationError(
            f"{path} does not exist: unpack Stanford_Online_Products.zip, and name the folder "
            "that Ebay_test.txt is in"
        )
    with _reading(path):
        rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if not rows or rows[0] != _SOP_HEADER:
        raise ConfigurationError(f"{path} does not start with {' '.join(_SOP_HEADER)!r}")
    listed = _Listed(path)
    for line, row in enumerate(rows[1:], start=2):
        if row:
            listed.expect(line, row, fields=4)
            _, class_id, _, file = row
            kind = PurePosixPath(file).parts[0].removesuffix("_final")
            listed.add(line, file, class_id if label == "class" else kind)
    return listed.dataset(
        f"{id_of(Path(top.resolve().name))} {split}", origin=f"sop {path.resolve()}"
    )


def open_csv(path: Path) -> FileDataset:
    """A CSV file of `path,label`, in UTF-8 with or without a byte order mark.

    The header and the labels may be left out; with a header (`path`, `file`, `filename` or
    `image`, and `label`), the columns may come in either order. Paths are relative to the CSV
    file's folder. Empty lines are passed over.

    Raises:
        ConfigurationError: It cannot be read or is not in the format; the text names the line.
    """
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except csv.Error as exc:
            raise ConfigurationError(f"{path}, line {reader.line_num}: {exc}") from exc
    header = [field.strip().lower() for field in rows[0][1]] if rows else []
    header = ["path" if field in _PATH_NAMES else field for field in header]
    if header in (["path"], ["path", "label"], ["label", "path"]):
        rows = rows[1:]
    else:
        header = ["path", "label"][: len(header)]
    listed = _Listed(path)
    for line, row in rows:
        listed.expect(line, row, fields=len(header))
        fields = dict(zip(header, row, strict=True))
        listed.add(line, fields["path"], fields.get("label"))
    return listed.dataset(id_of(Path(path.stem)), origin=f"csv {path.resolve()}")


class _Listed:
    """Collects the rows of a list, and refuses those that cannot be meant."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, int] = {}
        self._labels: list[str | None] = []

    def expect(self, line: int, row: Sequence[str], *, fields: int) -> None:
        """Checks how many fields a line has."""
        if len(row) != fields:
            raise ConfigurationError(
                f"{self._path}, line {line}: {len(row)} fields instead of {fields}; the columns "
                "are path,label, or path alone"
            )

    def add(self, line: int, file: str, label: str | None) -> None:
        """Takes one picture."""
        if not file.strip() or "\0" in file:
            raise ConfigurationError(f"{self._path}, line {line}: the path is empty or broken")
        if label is not None and not label.strip():
            raise ConfigurationError(f"{self._path}, line {line}: the label of {file} is empty")
        picture = PurePosixPath(file.strip()).as_posix()
        before = self._lines.setdefault(picture, line)
        if before != line:
            raise ConfigurationError(
                f"{self._path}, line {line}: {picture} stands on line {before} already; list each "
                "picture once"
            )
        self._labels.append(None if label is None else label.strip())

    def dataset(self, name: str, *, origin: str) -> FileDataset:
        """All that was taken."""
        if not self._lines:
            raise ConfigurationError(f"{self._path} lists no pictures")
        labels = [label for label in self._labels if label is not None]
        return FileDataset(
            name=name,
            origin=origin,
            ids=list(self._lines),
            labels=labels or None,
            paths=[self._path.parent / file for file in self._lines],
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what stops a text file from being read into our error."""
    try:
        yield
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        if path.suffix.lower() in SUFFIXES:
            raise ConfigurationError(
                f"{path} is a picture; name the folder of the dataset, or a CSV of path,label"
            ) from exc
        raise ConfigurationError(
            f"{path} is not UTF-8 (byte {exc.start:,}): save it in that encoding"
        ) from exc
