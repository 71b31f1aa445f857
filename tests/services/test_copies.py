"""The same bytes under several paths: every path is kept, and rows do not depend on the order."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lookalike import Client
from lookalike.media.sources import PictureSource
from lookalike.records import OnConflict, Place


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(tmp_path / "data", model="color") as made:
        yield made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures in `a`, one of them also in `b`, and one more in `b`."""
    for path, number in (("a/1.png", 1), ("a/2.png", 2), ("b/1.png", 1), ("b/3.png", 3)):
        draw(tmp_path / "photos" / path, number)
    return tmp_path / "photos"


def draw(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(colors).save(path)
    return path


def rows(client: Client) -> dict[str, Any]:
    return {row.id: row.model_dump() for row in client.list()}


def by_path(client: Client) -> dict[str | None, tuple[list[str], Any]]:
    return {row.path: (row.copies, row.metadata.get("label")) for row in client.list()}


def test_labels_do_not_flip_from_run_to_run(client: Client, photos: Path) -> None:
    for run in range(5):
        outcomes = client.index(photos, folder_field="label")
        kept = [one for one in outcomes if one.kept_metadata]
        assert [(one.path, one.copy_of) for one in kept] == [(photos / "b/1.png", "a/1.png")]
        statuses = {one.status for one in outcomes}
        assert statuses == ({"created", "unchanged"} if run == 0 else {"unchanged"})
        if run == 0:
            before = rows(client)
        assert rows(client) == before
    assert by_path(client) == {
        "a/1.png": (["b/1.png"], "a"),
        "a/2.png": ([], "a"),
        "b/3.png": ([], "b"),
    }


def test_the_same_path_with_other_metadata_changes_it(client: Client, photos: Path) -> None:
    client.index(photos, metadata={"year": 1})
    outcomes = client.index(photos, metadata={"year": 2})
    assert [one.status for one in outcomes] == ["updated", "updated", "unchanged", "updated"]
    assert not any(one.kept_metadata for one in outcomes)
    assert {row.metadata["year"] for row in client.list()} == {2}


def test_a_file_indexed_from_two_folders_is_no_copy(client: Client, photos: Path) -> None:
    client.index(photos)
    for path in (photos / "a", photos.parent, photos / "a" / "2.png"):
        outcomes = client.index(path, exclude=["data"])
        assert {one.copy_of for one in outcomes} <= {None, "a/1.png"}
    assert by_path(client)["a/2.png"] == ([], None)


def test_a_file_that_was_moved_takes_its_path_and_its_label_along(
    client: Client, photos: Path
) -> None:
    client.index(photos, folder_field="label")
    (photos / "b").rename(photos / "c")
    outcomes = client.index(photos, folder_field="label")
    assert [one.copy_of for one in outcomes if one.copy_of] == ["a/1.png"]
    assert by_path(client) == {
        "a/1.png": (["c/1.png"], "a"),
        "a/2.png": ([], "a"),
        "c/3.png": ([], "c"),
    }
    photos.rename(photos.with_name("pictures"))
    outcomes = client.index(photos.with_name("pictures"), folder_field="label")
    assert {one.status for one in outcomes} == {"unchanged"}
    assert by_path(client)["c/3.png"] == ([], "c")
    assert sum(one.copy_of is not None for one in outcomes) == 1


def test_paths_on_a_disk_that_is_not_mounted_stay(client: Client, photos: Path) -> None:
    disk = photos.parent / "disk"
    disk.mkdir()
    shutil.copytree(photos, disk / "photos")
    client.index(disk / "photos", folder_field="label")
    before = by_path(client)
    shutil.move(disk / "photos", photos.parent / "unplugged")  # the mount point is empty
    outcomes = client.index(photos, metadata={"label": "other"})
    assert all(one.copy_of and one.kept_metadata for one in outcomes)
    assert {path: label for path, (_, label) in by_path(client).items()} == {
        path: label for path, (_, label) in before.items()
    }
    shutil.move(photos.parent / "unplugged", disk / "photos")
    client.index(disk / "photos", folder_field="label")
    assert {path: label for path, (_, label) in by_path(client).items()} == {
        path: label for path, (_, label) in before.items()
    }


def test_a_path_with_other_bytes_moves(client: Client, photos: Path) -> None:
    client.index(photos)
    draw(photos / "b" / "1.png", 4)
    client.index(photos)
    assert by_path(client) == {
        "a/1.png": ([], None),
        "a/2.png": ([], None),
        "b/1.png": ([], None),
        "b/3.png": ([], None),
    }


def test_a_copy_that_is_deleted_is_forgotten(client: Client, photos: Path) -> None:
    client.index(photos)
    (photos / "b" / "1.png").unlink()
    client.index(photos)
    assert by_path(client)["a/1.png"] == ([], None)


def test_an_archive_has_paths_and_copies(client: Client, photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for path in sorted(photos.rglob("*.png")):
            file.write(path, path.relative_to(photos))
    for _ in range(2):
        outcomes = client.index_archive(tmp_path / "all.zip", folder_field="label")
        assert sum(one.kept_metadata for one in outcomes) == 1
    assert by_path(client)["a/1.png"] == (["b/1.png"], "a")
    outcomes = client.index(photos)
    assert all(one.copy_of for one in outcomes), "they lie in the archive, too"
    assert by_path(client)["a/1.png"] == (["b/1.png", "a/1.png", "b/1.png"], "a")


def test_places_that_are_put_from_a_record_stay(client: Client, photos: Path) -> None:
    """As a rebuild does: the file that is read lies elsewhere, and its places are gone."""
    client.index(photos)
    kept = shutil.copy(photos / "a" / "1.png", photos.parent / "kept.png")
    shutil.rmtree(photos / "a")
    (photos / "b" / "1.png").unlink()
    source = PictureSource.from_path(Path(kept))
    for path in ("a/1.png", "b/1.png", "c/1.png"):
        placed = replace(source, place=Place(str(photos), path))
        (item,) = client._services.indexing.index([placed])
        assert item.error is None
    assert by_path(client)["a/1.png"] == (["b/1.png", "c/1.png"], None)


@pytest.mark.parametrize("on_conflict", [OnConflict.SKIP, OnConflict.ERROR])
def test_copies_under_the_other_rules(
    client: Client, photos: Path, on_conflict: OnConflict
) -> None:
    for _ in range(2):
        outcomes = client.index(photos, on_conflict=on_conflict)
        assert not any(one.error for one in outcomes)
        assert by_path(client)["a/1.png"] == (["b/1.png"], None)


def test_names_that_are_no_utf8_are_shown_with_their_bytes(client: Client, photos: Path) -> None:
    odd = photos / "c\udcff.png"
    shutil.copy(photos / "a" / "2.png", odd)
    for _ in range(2):
        client.index(photos)
    assert by_path(client)["c\\xff.png"] == (["a/2.png"], None)


FILES = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.sampled_from("123")),
    st.integers(0, 4),
    min_size=1,
    max_size=7,
)


@given(files=FILES)
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_indexing_is_idempotent(client: Client, files: dict[tuple[str, str], int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "photos"
        for (inside, name), number in files.items():
            draw(top / inside / f"{name}.png", number)
        client.index(top, folder_field="label")
        before = rows(client)
        for _ in range(2):
            outcomes = client.index(top, folder_field="label")
            assert {one.status for one in outcomes} == {"unchanged"}
            assert rows(client) == before
        paths = [path for row in before.values() for path in (row["path"], *row["copies"])]
        assert sorted(paths) == sorted(f"{inside}/{name}.png" for inside, name in files)
    client.drop("default")
