"""Data folders, their backups, and all that they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lookalike import Client
from lookalike.bootstrap import build_backups, restore_backup
from lookalike.progress import NO_PROGRESS
from lookalike.services.backup_format import Backup
from tests.settings import make_settings

FORMS = ["b.tar", "b.tar.gz", "b.tgz", "folder"]


def draw(folder: Path, *numbers: int) -> list[Path]:
    """Pictures that follow from their numbers."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in numbers:
        colors = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(colors).resize((32, 32), Image.Resampling.NEAREST).save(paths[-1])
    return paths


def fill(data: Path, *numbers: int, collection: str = "default", **settings: Any) -> None:
    with Client(data, model="color", **settings) as client:
        paths = draw(data.parent / "photos", *numbers)
        outcomes = client.index(*paths, collection=collection, metadata=lambda p: {"n": p.stem})
        assert {one.status for one in outcomes} == {"created"}


def backup(data: Path, to: Path, **options: Any) -> Backup:
    return build_backups(make_settings(data_dir=data)).write(to, **options)


def restore(source: Path, folder: Path, at: str | None = None) -> Backup:
    return restore_backup(source, folder, at=at, progress=NO_PROGRESS)


def answers(data: Path) -> dict[str, Any]:
    """All that a data folder says: rows, originals, thumbnails, and matches with their scores."""
    with Client(data, model="color", read_only=True) as client:
        found: dict[str, Any] = {}
        for collection in client.collections():
            name = collection.name
            rows = list(client.list(name))
            found[name] = [
                [row.model_dump() for row in rows],
                [client.thumbnail(row.id, collection=name) for row in rows],
                [client.similar(row.id, collection=name, k=3).matches for row in rows],
            ]
        return found
