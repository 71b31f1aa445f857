"""Datasets in the formats in which people keep them: folders, lists, and CIFAR-10."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from PIL import Image

from lookalike.cores import limit_openmp
from lookalike.errors import ConfigurationError
from lookalike.evaluation.datasets.base import FileDataset, Stamp, id_of, stamp_of
from lookalike.media.sources import SUFFIXES, PictureSource, readable, walk

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def pictures_below(top: Path) -> list[Path]:
    """Paths of picture files relative to a folder, sorted; hidden ones are passed over.

    Folders that cannot be read are passed over, too, and said in the log.

    Raises:
        ConfigurationError: There are none.
    """
    found = sorted(picture.path.relative_to(top) for picture in readable(walk([top])))
    if not found:
        raise ConfigurationError(
            f"{top} holds no dataset: neither pictures (.jpg, .png, ...), at any depth, nor "
            "cifar-10-batches-py, nor Ebay_test.txt"
        )
    return found


def has_classes(pictures: Sequence[Path]) -> bool:
    """Whether the pictures lie in several folders below the top."""
    return len({path.parts[0] for path in pictures if len(path.parts) > 1}) > 1


def open_folder(top: Path, *, pictures: Sequence[Path]) -> FileDataset:
    """One folder for each class; folders inside a class belong to it.

    `pictures` are as `pictures_below` gave them.

    Raises:
        ConfigurationError: A picture lies outside of any class folder.
    """
    outside = [path for path in pictures if len(path.parts) == 1]
    if outside:
        raise ConfigurationError(
            f"{top} holds {len(outside):,} of {len(pictures):,} pictures outside of any class "
            f"folder, {id_of(outside[0])} among them: move them into the folder of their class, "
            "or take --kind flat, which has no labels"
        )
    return FileDataset(
        name=id_of(Path(top.resolve().name)),
        origin=f"folder {top.resolve()}",
        ids=[id_of(path) for path in pictures],
        labels=[id_of(Path(path.parts[0])) for path in pictures],
        paths=[top / path for path in pictures],
    )


def open_flat(top: Path, *, pictures: Sequence[Path]) -> FileDataset:
    """Pictures without labels, such as Flickr30k, whatever folders they lie in.

    Kaggle ships Flickr30k with a copy of the folder inside of itself, under the same name: a
    picture that is there again is taken once, from the outermost folder.

    `pictures` are as `pictures_below` gave them.
    """
    outermost: dict[tuple[str, ...], Path] = {}
    for path in sorted(pictures, key=lambda path: len(path.parts)):
        *folders, name = path.parts
        different = (folder for folder, _ in groupby([top.resolve().name, *folders]))
        outermost.setdefault((*different, name), path)
    taken = sorted(outermost.values())
    return FileDataset(
        name=id_of(Path(top.resolve().name)),
        origin=f"flat {top.resolve()}",
        ids=[id_of(path) for path in taken],
        labels=None,
        paths=[top / path for path in taken],
    )


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


FOLDER = "cifar-10-batches-py"
"""What the archive unpacks to."""


@dataclass(frozen=True, kw_only=True)
class Cifar10Dataset:
    """One split of CIFAR-10 in memory; each picture becomes a PNG file when it is asked for."""

    origin: str  # as in `Dataset`
    split: Split  # which one
    read: CIFAR10  # what torchvision read: `data` is (N, 32, 32, 3) uint8
    batches: Stamp  # size of the split's files together, and when the last of them changed

    @property
    def name(self) -> str:
        """For titles."""
        return f"CIFAR-10 {self.split}"

    @cached_property
    def ids(self) -> list[str]:
        """E.g. `test/00042.png`."""
        return [f"{self.split}/{position:05d}.png" for position in range(len(self))]

    @cached_property
    def labels(self) -> list[str]:
        """E.g. `airplane`, one for each picture."""
        return [self.read.classes[target] for target in self.read.targets]

    def __len__(self) -> int:
        """Pictures."""
        return len(self.read.data)

    def source(self, position: int) -> PictureSource:
        """One picture as an open PNG file, with nothing lost."""
        file = io.BytesIO()
        Image.fromarray(self.read.data[position]).save(file, "PNG", compress_level=1)
        name = Path(self.ids[position]).name
        return PictureSource(filename=name, size=file.tell(), file=file)

    def stamp(self, position: int) -> Stamp:  # noqa: ARG002 - one for all
        """Of the files that hold the split, as they were when they were read."""
        return self.batches


def open_cifar10(top: Path, *, split: Split, download: bool = False) -> Cifar10Dataset:
    """CIFAR-10, whose files torchvision compares with their checksums before it reads them.

    Args:
        top: The folder that holds `cifar-10-batches-py`, or is to hold it.
        split: Which pictures.
        download: Get what is missing from where torchvision says, or unpack
            `cifar-10-python.tar.gz` where that lies in `top`.

    Raises:
        ConfigurationError: Files are missing or damaged, or the download failed.
    """
    limit_openmp()
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 - imports torch

    try:
        read = CIFAR10(top, train=split == "train", download=download)
        files = read.train_list if read.train else read.test_list
        stamps = [stamp_of(top / FOLDER / name) for name, _ in files]
    except (OSError, HTTPException, RuntimeError) as exc:
        raise ConfigurationError(
            f"CIFAR-10 cannot be downloaded from {CIFAR10.url} ({exc}): get {CIFAR10.filename} in "
            f"another way and put it into {top.resolve()}, from where it is unpacked"
            if download
            else f"CIFAR-10 in {top / FOLDER} is incomplete or damaged, by its checksums: unpack "
            f"{CIFAR10.filename} there again"
        ) from exc
    return Cifar10Dataset(
        origin=f"cifar10 {top.resolve()} {split}",
        split=split,
        read=read,
        batches=Stamp(
            sum(s.size for s in stamps),
            max(s.mtime_ns for s in stamps),
            max(s.ctime_ns for s in stamps),
        ),
    )
