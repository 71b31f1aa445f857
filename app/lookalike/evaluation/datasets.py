"""Pictures with labels to measure with: opens the dataset that a person names.

Every picture is opened as a `PictureSource`, so that it goes through the one decoder with its
limits, whatever it came from: folders, lists, or CIFAR-10.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.cores import limit_openmp
from lookalike.errors import ConfigurationError, UnreadableImageError
from lookalike.files.data_folder import claim_folder
from lookalike.media.sources import SUFFIXES, PictureSource, Selection, passed_over, readable, walk
from lookalike.records import nfc

log = logging.getLogger(__name__)

Kind = Literal["auto", "folder", "flat", "cifar10", "sop", "csv"]
Split = Literal["test", "train"]
SopLabel = Literal["class", "super_class"]

DOWNLOADED = "cifar10"
"""The one dataset that is had by its name alone; a folder of that name is `./cifar10`."""

_CIFAR10_FOLDER = "cifar-10-batches-py"  # what the archive unpacks to
_PATH_NAMES = {"path", "file", "filename", "image"}
_SOP_HEADER = ["image_id", "class_id", "super_class_id", "path"]


class Stamp(NamedTuple):
    """What the file system tells of the file that holds a picture; changes when the file does."""

    size: int  # in bytes
    mtime_ns: int  # last change of the content as the file system was told, since 1970
    # last change of the file, which nobody can set: copies of one size that keep `mtime_ns` differ
    ctime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """N pictures, perhaps labelled, in a fixed order; position i is the same picture always.

    Whether their files are there is found out when they are read. Many threads may read at once.
    """

    name: str  # for titles
    origin: str  # where it comes from: the same in every run, another for every other dataset
    ids: Sequence[str]  # one for each, each different: a path with `/`, below the dataset's top
    labels: Sequence[str] | None  # one for each, or None where there are none
    paths: Sequence[Path]  # the file that holds each
    # where one file holds many: what was read of it, (N, H, W, 3) uint8, and its stamp then
    pixels: NDArray[np.uint8] | None = None
    stamped: Stamp | None = None

    def __post_init__(self) -> None:
        """Checks the lengths and that ids differ; raises ValueError."""
        lengths = {len(self.ids), len(self.paths), len(set(self.ids))}
        if self.labels is not None:
            lengths.add(len(self.labels))
        if len(lengths) != 1:
            raise ValueError(f"ids repeat, or the parts have different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        """Pictures."""
        return len(self.ids)

    def source(self, position: int) -> PictureSource:
        """One picture, to be opened. Raises `UnreadableImageError` where its file is gone."""
        if self.pixels is None:
            return PictureSource.from_path(self.paths[position])
        file = io.BytesIO()  # a PNG file, with nothing lost
        Image.fromarray(self.pixels[position]).save(file, "PNG", compress_level=1)
        name = PurePosixPath(self.ids[position]).name
        return PictureSource(filename=name, size=file.tell(), file=file)

    def stamp(self, position: int) -> Stamp:
        """Of the file that holds it. Raises `UnreadableImageError` where that is gone."""
        return self.stamped or _stamp_of(self.paths[position])


def sample(dataset: Dataset, *, count: int, seed: int) -> Dataset:
    """A random part of a dataset, every picture as likely as any other, in the dataset's order.

    The whole comes back where it has no more than `count` pictures.

    Raises:
        ConfigurationError: `count` is below 1, or `seed` below 0.
    """
    if count < 1 or seed < 0:
        raise ConfigurationError(
            f"A sample of {count} pictures with seed {seed} cannot be taken; the count starts at "
            "1 and the seed at 0"
        )
    if count >= len(dataset):
        return dataset
    chosen = np.random.default_rng(seed).choice(len(dataset), size=count, replace=False)
    positions: list[int] = np.sort(chosen).tolist()
    labels, pixels = dataset.labels, dataset.pixels
    return replace(
        dataset,
        origin=f"{dataset.origin} sample={count} seed={seed}",
        ids=[dataset.ids[position] for position in positions],
        labels=None if labels is None else [labels[position] for position in positions],
        paths=[dataset.paths[position] for position in positions],
        pixels=None if pixels is None else pixels[positions],
    )


def open_dataset(
    spec: str,
    *,
    kind: Kind = "auto",
    split: Split | None = None,
    label: SopLabel | None = None,
    exclude: Sequence[str] = (),
    avoid: Sequence[Path] = (),
    cache_dir: Path,
) -> Dataset:
    """Opens the dataset that a person names.

    Args:
        spec: A folder or a CSV file, or the bare word `cifar10`, which is downloaded.
        kind: How to read it; `auto` finds out by what is there:
            `cifar10` where the folder holds `cifar-10-batches-py` (or is it), `sop` where it holds
            `Ebay_test.txt`, `csv` for a file, `folder` where pictures lie in several folders, the
            first folder of each path being the label, and `flat` for pictures without labels.
        split: Of `cifar10` and `sop`: `test` unless given.
        label: Of `sop`: `class`, the product, unless given, or `super_class`.
        exclude: Globs of files and folders of `folder` and `flat` that are passed over.
        avoid: Folders whose pictures do not count, such as the one that results are written to.
        cache_dir: Where downloads are kept, in a folder for each.

    Raises:
        ConfigurationError: Nothing is there, or nothing of this kind, or an option does not fit.
    """
    choices = {"kind": (kind, Kind), "split": (split, Split), "label": (label, SopLabel)}
    for name, (value, kinds) in choices.items():
        if value is not None and value not in get_args(kinds):
            known = ", ".join(get_args(kinds))
            raise ConfigurationError(f"{name} {value!r} is not known; choose one of {known}")
    if spec == DOWNLOADED and kind in ("auto", "cifar10"):
        _check_options(spec, "cifar10", split=split, label=label)
        return _open_cifar10(cache_dir / DOWNLOADED, split=split or "test", download=True)
    path = Path(spec)
    if not (spec and path.exists()):
        raise ConfigurationError(
            f"{spec!r} does not exist: name a folder of pictures, a CSV file of path,label, or "
            f"{DOWNLOADED}"
        )
    selection = Selection(exclude, avoid=avoid)
    if kind == "auto":
        kind = _recognize(path, selection)
    _check_options(spec, kind, split=split, label=label)
    if kind == "csv" and path.is_dir():
        raise ConfigurationError(f"{path} is a folder; the kind csv needs a file of path,label")
    if kind != "csv" and not path.is_dir():
        raise ConfigurationError(f"{path} is a file; the kind {kind} needs a folder")
    if kind in ("folder", "flat"):
        pictures = _pictures_below(path, selection)
        return (_open_flat if kind == "flat" else _open_folder)(path, pictures)
    return _open(path, kind, split=split or "test", label=label or "class")


def _open(path: Path, kind: Kind, *, split: Split, label: SopLabel) -> Dataset:
    if kind == "csv":
        return _open_csv(path)
    if kind == "cifar10":
        top = path.parent if path.name == _CIFAR10_FOLDER else path
        return _open_cifar10(top, split=split)
    return _open_sop(path, split=split, label=label)


def _recognize(path: Path, selection: Selection) -> Kind:
    """The kind of what is there."""
    if not path.is_dir():
        return "csv"
    if path.name == _CIFAR10_FOLDER or (path / _CIFAR10_FOLDER).is_dir():
        return "cifar10"
    if (path / "Ebay_test.txt").is_file():
        return "sop"
    tops = {
        picture.parts[0] for picture in _pictures_below(path, selection) if len(picture.parts) > 1
    }
    return "folder" if len(tops) > 1 else "flat"


def _check_options(spec: str, kind: Kind, *, split: Split | None, label: SopLabel | None) -> None:
    if split is not None and kind not in ("cifar10", "sop"):
        raise ConfigurationError(f"{spec} has no splits (it is read as {kind}): leave split out")
    if label is not None and kind != "sop":
        raise ConfigurationError(
            f"{spec} has one kind of label (it is read as {kind}): leave label out"
        )


def _pictures_below(top: Path, selection: Selection) -> list[Path]:
    """Paths of picture files relative to a folder, sorted; see `Selection`.

    Folders that cannot be read are passed over, too; the log names them.
    """
    selection.passed.clear()
    found = readable(walk([top], selection=selection))
    paths = sorted(picture.path.relative_to(top) for picture in found)
    if not paths:
        why = passed_over(selection.passed)
        raise ConfigurationError(
            f"{top} holds no dataset{why and f' ({why})'}: neither pictures (.jpg, .png, ...), at "
            "any depth, nor cifar-10-batches-py, nor Ebay_test.txt"
        )
    if text := passed_over(selection.passed):
        log.info("%s: %s", top, text)
    return paths


def _open_folder(top: Path, pictures: Sequence[Path]) -> Dataset:
    """One folder for each class; folders inside a class belong to it."""
    outside = [path for path in pictures if len(path.parts) == 1]
    if outside:
        raise ConfigurationError(
            f"{top} holds {len(outside):,} of {len(pictures):,} pictures outside of any class "
            f"folder, {_id_of(outside[0])} among them: move them into the folder of their class, "
            "or take --kind flat, which has no labels"
        )
    return Dataset(
        name=_id_of(Path(top.resolve().name)),
        origin=f"folder {top.resolve()}",
        ids=[_id_of(path) for path in pictures],
        labels=[nfc(_id_of(Path(path.parts[0]))) for path in pictures],
        paths=[top / path for path in pictures],
    )


def _open_flat(top: Path, pictures: Sequence[Path]) -> Dataset:
    """Pictures without labels, such as Flickr30k, whatever folders they lie in.

    Kaggle ships Flickr30k with a copy of the folder inside of itself, under the same name: a
    picture that is there again is taken once, from the outermost folder.
    """
    outermost: dict[tuple[str, ...], Path] = {}
    for path in sorted(pictures, key=lambda path: len(path.parts)):
        *folders, name = path.parts
        different = (folder for folder, _ in groupby([top.resolve().name, *folders]))
        outermost.setdefault((*different, name), path)
    taken = sorted(outermost.values())
    return Dataset(
        name=_id_of(Path(top.resolve().name)),
        origin=f"flat {top.resolve()}",
        ids=[_id_of(path) for path in taken],
        labels=None,
        paths=[top / path for path in taken],
    )


def _open_sop(top: Path, *, split: Split, label: SopLabel) -> Dataset:
    """Stanford Online Products, as its archive unpacks: `top` has `Ebay_test.txt`.

    The label is the product (`class_id`), or its kind: the name of the picture's folder without
    `_final`, e.g. `bicycle`.
    """
    path = top / f"Ebay_{split}.txt"
    if not path.is_file():
        raise ConfigurationError(
            f"{path} does not exist: unpack Stanford_Online_Products.zip, and name the folder "
            "that Ebay_test.txt is in"
        )
    with _reading(path):
        rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if not rows or rows[0] != _SOP_HEADER:
        raise ConfigurationError(f"{path} does not start with {' '.join(_SOP_HEADER)!r}")
    numbered = [(line, row) for line, row in enumerate(rows[1:], start=2) if row]
    pictures = []
    for line, fields in _fields(path, numbered, _SOP_HEADER):
        kind = PurePosixPath(fields["path"]).parts[0].removesuffix("_final")
        pictures.append((line, fields["path"], fields["class_id"] if label == "class" else kind))
    name = f"{_id_of(Path(top.resolve().name))} {split}"
    return _listed(path, pictures, name=name, origin=f"sop {path.resolve()}")


def _open_csv(path: Path) -> Dataset:
    """A CSV file of `path,label`, in UTF-8 with or without a byte order mark.

    The header and the labels may be left out; with a header (`path`, `file`, `filename` or
    `image`, and `label`), the columns may come in either order. Paths are relative to the CSV
    file's folder. Empty lines are passed over.
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
    pictures = [
        (line, fields["path"], fields.get("label")) for line, fields in _fields(path, rows, header)
    ]
    return _listed(path, pictures, name=_id_of(Path(path.stem)), origin=f"csv {path.resolve()}")


def _fields(
    path: Path, rows: Sequence[tuple[int, list[str]]], columns: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbered lines with their fields by column."""
    for line, row in rows:
        if len(row) != len(columns):
            raise ConfigurationError(
                f"{path}, line {line}: {len(row)} fields instead of {len(columns)}; the columns "
                "are path,label, or path alone"
            )
        yield line, dict(zip(columns, row, strict=True))


def _listed(
    path: Path, pictures: Sequence[tuple[int, str, str | None]], *, name: str, origin: str
) -> Dataset:
    """The pictures of a list, each with its line and label; refuses those that cannot be meant."""
    lines: dict[str, int] = {}
    labels = []
    for line, file, label in pictures:
        if not file.strip() or "\0" in file:
            raise ConfigurationError(f"{path}, line {line}: the path is empty or broken")
        if label is not None and not label.strip():
            raise ConfigurationError(f"{path}, line {line}: the label of {file} is empty")
        picture = PurePosixPath(file.strip()).as_posix()
        before = lines.setdefault(picture, line)
        if before != line:
            raise ConfigurationError(
                f"{path}, line {line}: {picture} stands on line {before} already; list each "
                "picture once"
            )
        if label is not None:
            labels.append(nfc(label.strip()))
    if not lines:
        raise ConfigurationError(f"{path} lists no pictures")
    paths = [path.parent / file for file in lines]
    return Dataset(name=name, origin=origin, ids=list(lines), labels=labels or None, paths=paths)


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


def _open_cifar10(top: Path, *, split: Split, download: bool = False) -> Dataset:
    """CIFAR-10, whose files torchvision compares with their checksums before it reads them.

    `top` is the folder that holds `cifar-10-batches-py`, or is to hold it. The download gets what
    is missing from where torchvision says, or unpacks `cifar-10-python.tar.gz` in `top`.
    """
    limit_openmp()
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 - imports torch

    try:
        if download:
            claim_folder(top, "cache")
        read = CIFAR10(top, train=split == "train", download=download)
        files = read.train_list if read.train else read.test_list
        stamps = [_stamp_of(top / _CIFAR10_FOLDER / name) for name, _ in files]
    except (OSError, HTTPException, RuntimeError) as exc:
        raise ConfigurationError(
            f"CIFAR-10 cannot be downloaded from {CIFAR10.url} ({exc}): get {CIFAR10.filename} in "
            f"another way and put it into {top.resolve()}, from where it is unpacked"
            if download
            else f"CIFAR-10 in {top / _CIFAR10_FOLDER} is incomplete or damaged, by its checksums: "
            f"unpack {CIFAR10.filename} there again"
        ) from exc
    sizes, changed, created = zip(*stamps, strict=True)
    return Dataset(
        name=f"CIFAR-10 {split}",
        origin=f"cifar10 {top.resolve()} {split}",
        ids=[f"{split}/{position:05d}.png" for position in range(len(read.data))],
        labels=[read.classes[target] for target in read.targets],
        paths=[top / _CIFAR10_FOLDER] * len(read.data),
        pixels=read.data,
        stamped=Stamp(sum(sizes), max(changed), max(created)),
    )


def _stamp_of(path: Path) -> Stamp:
    """Size and last change of a file. Raises `UnreadableImageError` where it is gone."""
    try:
        facts = path.stat()
    except OSError as exc:
        raise UnreadableImageError(f"{path} cannot be read: {exc.strerror}") from exc
    return Stamp(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _id_of(relative: Path) -> str:
    r"""A path as an id: with `/`, and bytes that are no UTF-8 as `\xff`."""
    return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")
