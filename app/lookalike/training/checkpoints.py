"""A training's state in one file, so that it can go on where it was stopped."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from lookalike.files.disk import disk_errors, make_folders, sync_folder
from lookalike.training.progress import Epoch

FORMAT: Final = 1
"""Version of the file."""

State = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a training needs to go on after its last epoch.

    Attributes:
        fingerprint: Of data, options and versions: only the same training may go on from it.
        network: State dict after the last epoch.
        optimizer: State dict after the last epoch.
        best: State dict of the network after the best epoch so far.
        best_epoch: Its number.
        history: All epochs so far.
    """

    fingerprint: str
    network: State
    optimizer: State
    best: State
    best_epoch: int
    history: tuple[Epoch, ...]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes through to the disk; after a crash there is the old file or the whole new one.

    Raises:
        StorageFullError: The disk is full.
        StorageError: The file cannot be written.
    """
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    fields["history"] = [asdict(epoch) for epoch in checkpoint.history]
    data = io.BytesIO()
    torch.save({"format": FORMAT, **fields}, data)
    with disk_errors(f"write the checkpoint {path}"):
        make_folders(path.parent.absolute())
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        with partial.open("wb") as file:
            file.write(data.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)


def load_checkpoint(path: Path, *, fingerprint: str) -> tuple[Checkpoint | None, str | None]:
    """Reads a checkpoint of this training.

    Returns:
        The checkpoint, and why there is none: both None where there is no file.

    Raises:
        StorageError: The file is there and cannot be opened.
    """
    with disk_errors(f"read the checkpoint {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None, None
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT or content["fingerprint"] != fingerprint:
            return None, f"{path} is of another training, with other pictures or options"
        history = tuple(Epoch(**epoch) for epoch in content.pop("history"))
        return Checkpoint(**content, history=history), None
    except Exception as exc:  # whatever torch makes of a damaged file
        return None, f"{path} is damaged ({type(exc).__name__})"
