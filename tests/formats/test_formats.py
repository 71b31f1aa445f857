"""What this and earlier versions wrote opens and answers as it did; what is older is refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lookalike import Client
from lookalike.bootstrap import build_services
from lookalike.config import load_settings
from lookalike.errors import DataFolderError
from tests.formats import toy
from tests.formats.write import (
    HNSW,
    KINDS,
    PICTURES,
    answers,
    draw,
    index_type,
    open_folder,
    write_head,
)
from tests.waiting import wait_for

WRITTEN = sorted(Path(__file__).parent.glob("v*/*.zip"))

Unpack = Callable[[str], Path]


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    """Unpacks the newest folder of a kind."""

    def unpacked(kind: str) -> Path:
        newest = [path for path in WRITTEN if path.stem == kind][-1]
        shutil.unpack_archive(newest, tmp_path / kind)
        return tmp_path / kind

    return unpacked


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register(monkeypatch)


def check(found: dict[str, Any], zipped: Path) -> None:
    expected = json.loads(zipped.with_suffix(".json").read_text())
    pairs = zip(found.pop("matches"), expected.pop("matches"), strict=True)
    assert found == expected
    for matches, before in pairs:
        assert [name for name, _ in matches] == [name for name, _ in before]
        assert [score for _, score in matches] == pytest.approx([s for _, s in before], abs=1e-6)


def test_every_kind_is_here() -> None:
    for version in {path.parent for path in WRITTEN}:
        assert {path.stem for path in WRITTEN if path.parent == version} == set(KINDS)


def test_paths_are_kept(unpack: Unpack) -> None:
    with open_folder(unpack("exact"), "exact", read_only=True) as client:
        paths = {image.path for image in client.list()}
    assert paths >= {"even/000.png", "odd/039.png"}
    assert len(paths) == PICTURES


@pytest.mark.parametrize("zipped", WRITTEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "owned"])
def test_it_opens_and_answers_as_before(zipped: Path, read_only: bool, tmp_path: Path) -> None:
    data = tmp_path / zipped.stem
    shutil.unpack_archive(zipped, data)
    with open_folder(data, zipped.stem, read_only=read_only) as client:
        check(answers(client), zipped)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_is_searched_and_grows(kind: str, unpack: Unpack, tmp_path: Path) -> None:
    pictures = sorted(draw(tmp_path / "pictures", PICTURES + 1).rglob("*.png"))
    with open_folder(unpack(kind), kind) as client:
        stored, fresh = pictures[0], next(path for path in pictures if path.stem == "040")
        assert client.search(stored, k=1).matches[0].score > 0.999
        assert not client.index(fresh)[0].error
        assert client.search(fresh, k=1).matches[0].filename == fresh.name


def test_an_approximate_index_is_read_and_not_built_again(
    unpack: Unpack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with open_folder(unpack("approximate"), "approximate", read_only=True) as client:
        assert client.similar(next(client.list()).id).matches
        assert index_type(client) == HNSW
    assert "build" not in caplog.text


def test_a_head_is_kept_with_its_collection(unpack: Unpack, tmp_path: Path) -> None:
    head = write_head(tmp_path / "head.safetensors")
    data = unpack("head")
    with open_folder(data, "head") as client:
        (space,) = client.vectors()
        assert space.passport.dim == 8
        assert (data / "heads" / f"{space.passport.head}.safetensors").read_bytes() == (
            head.read_bytes()
        )


def test_a_dropped_collection_goes_after_the_start(unpack: Unpack) -> None:
    data = unpack("dropped")

    def rows() -> int:
        with closing(sqlite3.connect(f"file:{data / 'catalog.db'}?mode=ro", uri=True)) as catalog:
            (count,) = catalog.execute("SELECT count(*) FROM images").fetchone()
        return int(count)

    assert rows() == PICTURES + 10
    with open_folder(data, "dropped"):
        wait_for(lambda: rows() == PICTURES)


def test_an_unfinished_job_goes_on(unpack: Unpack) -> None:
    settings = load_settings(data_dir=unpack("unfinished_job"), model="color")
    services = build_services(settings)
    try:
        services.jobs.resume()
        wait_for(lambda: not services.job_store.unfinished())
        (active,) = [each for each in services.store.spaces.all("default") if each.active]
        assert (active.spec.dim, active.count) == (8, PICTURES)
    finally:
        services.close()


@pytest.fixture(params=["older", "another program's"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data folder whose catalog this version did not write."""
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as catalog:
        if request.param == "older":  # the tables of before the first release
            catalog.execute("CREATE TABLE images (seq INTEGER PRIMARY KEY, id TEXT, passport TEXT)")
            catalog.execute("PRAGMA user_version = 9")
        else:
            catalog.execute("CREATE TABLE moz_places (url TEXT)")
        catalog.commit()
    return tmp_path


def test_another_folder_is_refused_and_left_alone(foreign: Path) -> None:
    before = (foreign / "catalog.db").read_bytes()
    with pytest.raises(DataFolderError, match="index the pictures again"):
        Client(foreign, model="color")
    assert (foreign / "catalog.db").read_bytes() == before
