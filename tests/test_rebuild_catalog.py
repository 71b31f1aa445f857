"""`lookalike rebuild`: a catalog again from originals and what is known of them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lookalike import Client
from lookalike.bootstrap import rebuild
from lookalike.cli.main import app
from lookalike.config import load_settings
from lookalike.errors import (
    BackupError,
    ConfigurationError,
    DataFolderError,
    DataFolderInUseError,
)
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.exchange import write_sidecar
from lookalike.services.rebuilding import Rebuilt
from lookalike.store.local.salvage import salvage
from lookalike.store.local.store import LocalStore
from tests.store.helpers import digest, new_image, put, unit_vectors

COUNT = 8


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    for n in range(COUNT):
        colors = np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colors).resize((64, 48), Image.Resampling.NEAREST).save(folder / f"{n}.png")
    with opened(folder / "data") as client:
        client.index(*folder.glob("*.png"), metadata=lambda path: {"n": int(path.stem)})
        shutil.copy(folder / "1.png", folder / "copy.png")
        client.index(folder / "copy.png")
        client.index(folder / "0.png", collection="other", metadata={"label": "cat"})
    return folder / "data"


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "data")


def opened(folder: Path, **given: Any) -> Client:
    return Client(folder, model="color", **given)


def rebuilt(folder: Path, *sidecars: Path, progress: Progress = NO_PROGRESS) -> Rebuilt:
    return rebuild(load_settings(data_dir=folder, model="color"), sidecars, progress)


def rows(folder: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
    """What the collections hold; each picture must be found, and have its files."""
    held: dict[tuple[str, str], tuple[Any, ...]] = {}
    with opened(folder, read_only=True) as client:
        assert client.check().findings == []
        for name in [one.name for one in client._store.collections()]:
            for image in client.list(name):
                record = client._store.get(name, image.id)
                also = (record.place, record.others, record.created_at, record.updated_at)
                held[name, image.id] = (image.filename, image.sha256, image.metadata, *also)
                assert client.thumbnail(image.id, collection=name)
    return held


def lose(folder: Path) -> None:
    (folder / "catalog.db").unlink()


def cut(folder: Path) -> None:
    size = (folder / "catalog.db").stat().st_size
    os.truncate(folder / "catalog.db", size - 4096)


def overwrite(folder: Path) -> None:
    (folder / "catalog.db").write_bytes(b"\7" * 30_000)


def blank(folder: Path) -> None:
    (folder / "catalog.db").write_bytes(b"")


LOSSES = [lose, cut, overwrite, blank]


def write_rows(folder: Path, target: Path) -> Path:
    """A sidecar of a data folder."""
    with opened(folder, read_only=True) as client, target.open("wb") as file:
        store = client._store
        records = [r for info in store.collections() for r in store.scroll(info.name).records]
        write_sidecar(records, file)
    return target


@pytest.mark.parametrize("lost", LOSSES)
def test_a_sidecar_gives_everything_back(
    data: Path, tmp_path: Path, lost: Callable[[Path], None]
) -> None:
    before = rows(data)
    sidecar = write_rows(data, tmp_path / "rows.jsonl")
    lines = sidecar.read_bytes().splitlines(keepends=True)
    sidecar.write_bytes(b"".join(lines[:3]))
    (tmp_path / "more.jsonl").write_bytes(b"".join(lines[3:]))
    lost(data)
    old = (data / "catalog.db").read_bytes() if (data / "catalog.db").exists() else None
    with pytest.raises(DataFolderError):
        opened(data)
    made = rebuilt(data, sidecar, tmp_path / "more.jsonl")
    assert (made.named, made.unnamed, made.missing, made.failed) == (COUNT + 1, 0, 0, 0)
    assert rows(data) == before
    assert old == (None if made.replaced is None else (data / made.replaced).read_bytes())
    assert not (data / "rebuilt").exists()
    again = rebuilt(data, sidecar)
    assert (again.named, again.unnamed, again.replaced) == (0, 0, None)


def test_exports_give_everything_back(data: Path, tmp_path: Path) -> None:
    before = rows(data)
    exports = [tmp_path / "default", tmp_path / "other"]
    with opened(data, read_only=True) as client:
        for folder in exports:
            client.export_collection(folder.name, folder, originals=False)
    lose(data)
    made = rebuilt(data, exports[0], exports[1] / "pictures.parquet")
    assert (made.named, made.unnamed, made.missing, made.failed) == (COUNT + 1, 0, 0, 0)
    assert rows(data) == before


@pytest.mark.parametrize("lost", [lose, overwrite])
def test_originals_alone_make_pictures(data: Path, lost: Callable[[Path], None]) -> None:
    digests = {row[1] for row in rows(data).values()}
    lost(data)
    made = rebuilt(data)
    assert (made.named, made.unnamed, made.failed) == (0, COUNT, 0)
    held = rows(data)
    assert {key: row[1:3] for key, row in held.items()} == {
        ("default", sha256[:16]): (sha256, {}) for sha256 in digests
    }
    with opened(data) as client:
        client.delete(next(iter(held))[1])
        assert len(list(client._store.unnamed())) == 1


def test_what_can_be_read_of_a_damaged_catalog_is_kept(data: Path) -> None:
    before = rows(data)
    with closing(sqlite3.connect(data / "catalog.db")) as catalog:
        (root,) = catalog.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'vectors'"
        ).fetchone()
    with (data / "catalog.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\7" * 4096)
    made = rebuilt(data)
    assert (made.named, made.unnamed, made.missing) == (COUNT + 1, 0, 0)
    assert rows(data) == before


def test_a_time_that_cannot_be_read_costs_no_picture(data: Path) -> None:
    before = rows(data)
    with closing(sqlite3.connect(data / "catalog.db")) as catalog:
        catalog.execute("UPDATE images SET created_at = 'x', updated_at = x'ff' WHERE seq = 1")
        catalog.execute("UPDATE spaces SET spec = '{'")
        catalog.commit()
    assert rebuilt(data).named == COUNT + 1
    after = rows(data)
    assert {key: row[:-2] for key, row in after.items()} == {
        key: row[:-2] for key, row in before.items()
    }
    changed = [row[-2:] for key, row in after.items() if row != before[key]]
    assert len(changed) == 1
    assert min(changed[0]) > "2026"


@pytest.mark.parametrize(
    "damage", ["UPDATE spaces SET spec = '{'", "UPDATE images SET width = 'x'"]
)
def test_values_that_cannot_be_read_make_a_catalog_unusable(data: Path, damage: str) -> None:
    with closing(sqlite3.connect(data / "catalog.db")) as catalog:
        catalog.execute(damage)
        catalog.commit()
    made = rebuilt(data)
    assert made.replaced
    assert made.named + made.unnamed >= COUNT
    assert len(rows(data)) >= COUNT


def test_pictures_that_a_restored_catalog_lacks_are_added(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "catalog.db", tmp_path / "older")
    before = rows(data)
    Image.new("RGB", (60, 40), "green").save(tmp_path / "late.png")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "gone.png")
    with opened(data) as client:
        late = client.index(tmp_path / "late.png")[0]
    shutil.copy(tmp_path / "older", data / "catalog.db")
    with opened(data) as client:
        gone = client.index(tmp_path / "gone.png")[0]
        client.delete(gone.id or "")
    made = rebuilt(data)
    assert (made.named, made.unnamed, made.replaced) == (0, 1, None)
    assert rows(data).keys() == before.keys() | {("default", late.id)}


def test_pictures_without_a_whole_original_are_named(data: Path, tmp_path: Path) -> None:
    sidecar = write_rows(data, tmp_path / "rows.jsonl")
    first, second = sorted((data / "images").glob("*/*/*"))[:2]
    first.unlink()
    second.write_bytes(b"other")
    lose(data)
    made = rebuilt(data, sidecar)
    twice = [line for line in sidecar.read_text().splitlines() if first.stem in line]
    assert made.missing == len(twice)
    assert made.failed >= 1
    assert any("no original here" in text for text in made.errors)
    assert any("other bytes than were indexed" in text for text in made.errors)
    assert second.read_bytes() == b"other"


def test_originals_in_their_own_place_are_referred_to_again(template: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "photos").mkdir()
    for path in template.parent.glob("*.png"):
        shutil.copy(path, tmp_path / "photos")
    with opened(data, originals="reference") as client:
        client.index(tmp_path / "photos")
    before = rows(data)
    sidecar = write_rows(data, tmp_path / "rows.jsonl")
    lose(data)
    assert rebuilt(data, sidecar).named == COUNT
    assert rows(data) == before
    assert not list((data / "images").glob("*/*/*"))
    with opened(data, read_only=True) as client:
        sources = {one.source for one in client._store.scroll("default").records}
    assert len(sources) == COUNT
    assert sources <= {str(path.resolve()) for path in (tmp_path / "photos").glob("*.png")}


def test_a_rebuild_that_is_interrupted_goes_on(data: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    class Stopping(Progress):
        def report(self, done: int, total: int, *, stage: str = "") -> None:
            if done == 3:
                raise StoppedError

    before = rows(data)
    sidecar = write_rows(data, tmp_path / "rows.jsonl")
    lose(data)
    with pytest.raises(StoppedError):
        rebuilt(data, sidecar, progress=Stopping())
    with pytest.raises(DataFolderError):
        opened(data)
    rebuilt(data, sidecar)
    assert rows(data) == before


def test_rows_are_read_from_both_ends_of_the_damage(tmp_path: Path) -> None:
    count = 2000
    with closing(LocalStore(tmp_path)) as store:
        images = [new_image(f"i{n}", metadata={"text": "x" * 500}) for n in range(count)]
        put(store, images, unit_vectors(count))
    path = tmp_path / "catalog.db"
    page = path.read_bytes().index(digest("i1000").encode()) // 4096
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\7" * 4096)
    ids = {row["id"] for row in salvage(path)}
    assert count - 20 < len(ids) < count
    assert {"i0", "i990", "i1010", f"i{count - 1}"} <= ids


def test_what_is_refused(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"id": "a"}\n')
    with pytest.raises(BackupError, match="line 1"):
        rebuilt(data, broken)
    with pytest.raises(ConfigurationError, match="no originals"):
        rebuilt(tmp_path / "nowhere")
    with closing(sqlite3.connect(data / "catalog.db")) as catalog:
        (version,) = catalog.execute("PRAGMA user_version").fetchone()
        catalog.execute("PRAGMA user_version = 999")
    with pytest.raises(DataFolderError, match="newer version"):
        rebuilt(data)
    with closing(sqlite3.connect(data / "catalog.db")) as catalog:
        catalog.execute(f"PRAGMA user_version = {version}")
    with opened(data), pytest.raises(DataFolderInUseError):
        rebuilt(data)


def test_the_command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_MODEL", "color")
    sidecar = write_rows(data, tmp_path / "rows.jsonl")
    overwrite(data)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["rebuild", "--data-dir", str(data), *words])
        return done.exit_code, done.stdout

    code, text = run(str(sidecar))
    assert code == 0
    assert text.startswith(f"made {COUNT + 1} pictures as they were, and 0 from originals alone")
    assert "The old catalog is kept as" in text
    code, text = run("--json")
    assert (code, json.loads(text)["named"]) == (0, 0)
    (data / "images").rename(tmp_path / "away")
    (data / "images").mkdir()
    lose(data)
    code, text = run(str(sidecar))
    assert code == 1
    assert f"{COUNT + 1} have no original" in text
