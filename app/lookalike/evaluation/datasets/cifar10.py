"""CIFAR-10, read by torchvision."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lookalike.cores import limit_openmp
from lookalike.errors import ConfigurationError
from lookalike.evaluation.datasets.base import Stamp, stamp_of
from lookalike.evaluation.datasets.lists import Split
from lookalike.media.sources import PictureSource

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

FOLDER = "cifar-10-batches-py"
"""What the archive unpacks to."""


@dataclass(frozen=True, kw_only=True)
class Cifar10Dataset:
    """One split of CIFAR-10 in memory; each picture becomes a PNG file when it is asked for.

    Attributes:
        origin: As in `Dataset`.
        split: Which one.
        read: What torchvision read: `data` is (N, 32, 32, 3) uint8.
        batches: Size of the split's files together, and when the last of them changed.
    """

    origin: str
    split: Split
    read: CIFAR10
    batches: Stamp

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
