"""Datasets that are a folder of pictures: one folder for each class, or no classes at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from lookalike.errors import ConfigurationError
from lookalike.evaluation.datasets.base import FileDataset, id_of
from lookalike.media.walk import readable, walk


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

    Args:
        top: The folder of the class folders.
        pictures: As `pictures_below` gave them.

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

    Args:
        top: The folder.
        pictures: As `pictures_below` gave them.
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
