"""What every dataset offers, the one that is made of files, and a random part of another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from lookalike.errors import ConfigurationError, UnreadableImageError
from lookalike.media.sources import PictureSource


class Stamp(NamedTuple):
    """What the file system tells of the file that holds a picture; changes when the file does.

    Attributes:
        size: In bytes.
        mtime_ns: Last change of the content as the file system was told, in nanoseconds since 1970.
        ctime_ns: Last change of the file, which nobody can set: copies that keep `mtime_ns` and
            happen to have the same size differ here.
    """

    size: int
    mtime_ns: int
    ctime_ns: int


class Dataset(Protocol):
    """N pictures, perhaps labelled, in a fixed order; position i is the same picture always.

    `source` and `stamp` may be called on many threads at once.
    """

    @property
    def name(self) -> str:
        """For titles."""
        ...

    @property
    def origin(self) -> str:
        """Where it comes from: the same in every run, another for every other dataset."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """One for each picture, each different: a path with `/`, below the dataset's top."""
        ...

    @property
    def labels(self) -> Sequence[str] | None:
        """One for each picture, or None where there are none."""
        ...

    def __len__(self) -> int:
        """Pictures."""
        ...

    def source(self, position: int) -> PictureSource:
        """One picture, to be opened. Raises `UnreadableImageError` where its file is gone."""
        ...

    def stamp(self, position: int) -> Stamp:
        """Of the file that holds it. Raises `UnreadableImageError` where that is gone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDataset:
    """Pictures that are files; whether they are there is found out when they are read."""

    name: str  # for titles
    origin: str  # as in `Dataset`
    ids: Sequence[str]  # as in `Dataset`
    labels: Sequence[str] | None  # as in `Dataset`
    paths: Sequence[Path]  # the files, one for each id

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
        return PictureSource.from_path(self.paths[position])

    def stamp(self, position: int) -> Stamp:
        """Of the file. Raises `UnreadableImageError` where it is gone."""
        return stamp_of(self.paths[position])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some pictures of another dataset, in its order."""

    name: str
    origin: str
    ids: Sequence[str]
    labels: Sequence[str] | None
    whole: Dataset
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def source(self, position: int) -> PictureSource:
        return self.whole.source(self.positions[position])

    def stamp(self, position: int) -> Stamp:
        return self.whole.stamp(self.positions[position])


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
    ids, labels = dataset.ids, dataset.labels
    return _Part(
        name=dataset.name,
        origin=f"{dataset.origin} sample={count} seed={seed}",
        ids=[ids[position] for position in positions],
        labels=None if labels is None else [labels[position] for position in positions],
        whole=dataset,
        positions=positions,
    )


def stamp_of(path: Path) -> Stamp:
    """Size and last change of a file. Raises `UnreadableImageError` where it is gone."""
    try:
        facts = path.stat()
    except OSError as exc:
        raise UnreadableImageError(f"{path} cannot be read: {exc.strerror}") from exc
    return Stamp(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def id_of(relative: Path) -> str:
    r"""A path as an id: with `/`, and bytes that are no UTF-8 as `\xff`."""
    return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")
