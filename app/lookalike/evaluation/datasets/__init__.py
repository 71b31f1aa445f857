"""Pictures with labels to measure with: opens the dataset that a person names.

Every picture is opened as a `PictureSource`, so that it goes through the one decoder with its
limits, whatever it came from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from lookalike.errors import ConfigurationError
from lookalike.evaluation.datasets.base import Dataset
from lookalike.evaluation.datasets.formats import (
    FOLDER,
    SopLabel,
    Split,
    has_classes,
    open_cifar10,
    open_csv,
    open_flat,
    open_folder,
    open_sop,
    pictures_below,
    sop_list,
)

Kind = Literal["auto", "folder", "flat", "cifar10", "sop", "csv"]

DOWNLOADED = "cifar10"
"""The one dataset that is had by its name alone; a folder of that name is `./cifar10`."""


def open_dataset(
    spec: str,
    *,
    kind: Kind = "auto",
    split: Split | None = None,
    label: SopLabel | None = None,
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
        cache_dir: Where downloads are kept, in a folder for each.

    Raises:
        ConfigurationError: Nothing is there, or nothing of this kind, or an option does not fit.
    """
    _check_choice("kind", kind, get_args(Kind))
    _check_choice("split", split, (None, *get_args(Split)))
    _check_choice("label", label, (None, *get_args(SopLabel)))
    if spec == DOWNLOADED and kind in ("auto", "cifar10"):
        _check_options(spec, "cifar10", split=split, label=label)
        return open_cifar10(cache_dir / DOWNLOADED, split=split or "test", download=True)
    path = Path(spec)
    if not (spec and path.exists()):
        raise ConfigurationError(
            f"{spec!r} does not exist: name a folder of pictures, a CSV file of path,label, or "
            f"{DOWNLOADED}"
        )
    if kind == "auto":
        kind = _recognize(path)
    _check_options(spec, kind, split=split, label=label)
    _check_file_or_folder(path, kind)
    if kind == "cifar10":
        top = path.parent if path.name == FOLDER else path
        return open_cifar10(top, split=split or "test")
    if kind == "sop":
        return open_sop(path, split=split or "test", label=label or "class")
    return open_csv(path) if kind == "csv" else _open_pictures(path, kind)


def _check_choice(name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        known = ", ".join(choice for choice in choices if choice is not None)
        raise ConfigurationError(f"{name} {value!r} is not known; choose one of {known}")


def _recognize(path: Path) -> Kind:
    """The kind of what is there."""
    if not path.is_dir():
        return "csv"
    if path.name == FOLDER or (path / FOLDER).is_dir():
        return "cifar10"
    if sop_list(path, split="test").is_file():
        return "sop"
    return "folder" if has_classes(pictures_below(path)) else "flat"


def _check_options(spec: str, kind: Kind, *, split: Split | None, label: SopLabel | None) -> None:
    if split is not None and kind not in ("cifar10", "sop"):
        raise ConfigurationError(f"{spec} has no splits (it is read as {kind}): leave split out")
    if label is not None and kind != "sop":
        raise ConfigurationError(
            f"{spec} has one kind of label (it is read as {kind}): leave label out"
        )


def _check_file_or_folder(path: Path, kind: Kind) -> None:
    if kind == "csv" and path.is_dir():
        raise ConfigurationError(f"{path} is a folder; the kind csv needs a file of path,label")
    if kind != "csv" and not path.is_dir():
        raise ConfigurationError(f"{path} is a file; the kind {kind} needs a folder")


def _open_pictures(path: Path, kind: Kind) -> Dataset:
    pictures = pictures_below(path)
    if kind == "flat":
        return open_flat(path, pictures=pictures)
    return open_folder(path, pictures=pictures)
