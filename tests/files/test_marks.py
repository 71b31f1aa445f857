"""Which folders are Lookalike's own, by their marker or by what lies in them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lookalike.bootstrap import open_store
from lookalike.config import load_settings
from lookalike.files.data_folder import (
    MARKER,
    FolderKind,
    claim_folder,
    folder_kind,
    is_ours,
    mark_folder,
)
from lookalike.store.local.store import LocalStore


@pytest.mark.parametrize("kind", get_args(FolderKind))
def test_a_marked_folder_is_ours(tmp_path: Path, kind: FolderKind) -> None:
    assert not is_ours(tmp_path)
    mark_folder(tmp_path, kind)
    assert folder_kind(tmp_path) == kind
    text = (tmp_path / MARKER).read_text()
    assert text.startswith(f"Lookalike {kind}\n")
    mark_folder(tmp_path, "trash")
    assert (tmp_path / MARKER).read_text() == text, "the first mark stays"


def test_a_marker_that_was_cut_short_still_marks(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    assert is_ours(tmp_path)


def test_a_new_data_folder_is_marked(tmp_path: Path) -> None:
    LocalStore(tmp_path / "data").close()
    assert folder_kind(tmp_path / "data") == "data folder"
    assert (tmp_path / "data" / MARKER).is_file()
    assert not is_ours(tmp_path)


def test_an_older_data_folder_is_recognized_and_marked_when_it_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    LocalStore(folder).close()
    (folder / "images").mkdir()
    (folder / MARKER).unlink()
    assert folder_kind(folder) == folder_kind(folder / "images") == "data folder"
    open_store(load_settings(data_dir=folder), read_only=True).close()
    assert not (folder / MARKER).exists(), "reading changes nothing"
    LocalStore(folder).close()
    assert (folder / MARKER).is_file()


def test_a_data_folder_without_its_catalog_is_recognized(tmp_path: Path) -> None:
    LocalStore(tmp_path).close()
    for name in ("images", "thumbnails", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / MARKER).unlink()
    (tmp_path / "catalog.db").unlink()
    assert folder_kind(tmp_path) == "data folder"


def test_a_folder_of_the_users_with_a_data_folder_in_it_is_not_marked(tmp_path: Path) -> None:
    """`LOOKALIKE_DATA_DIR=.` among one's photos: only the parts are ours."""
    (tmp_path / "holiday.jpg").touch()
    (tmp_path / "images").mkdir()
    assert not is_ours(tmp_path / "images")
    LocalStore(tmp_path).close()
    assert not is_ours(tmp_path)
    assert folder_kind(tmp_path / "images") == "data folder"


def test_only_a_catalog_of_ours_makes_a_data_folder(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"SQLite format 3\0" + bytes(100))
    assert not is_ours(tmp_path)


def test_an_output_folder_is_marked_unless_it_has_files_of_the_users(tmp_path: Path) -> None:
    claim_folder(tmp_path / "a" / "out", "output")
    assert folder_kind(tmp_path / "a" / "out") == "output"
    assert not is_ours(tmp_path / "a")
    (tmp_path / "cat.jpg").touch()
    claim_folder(tmp_path, "output")
    assert not is_ours(tmp_path)


def test_outputs_of_versions_that_set_no_mark_are_recognized(tmp_path: Path) -> None:
    for name in ("report.json", "report.html", "query-3.png"):
        (tmp_path / name).touch()
    assert folder_kind(tmp_path) == "output"
    claim_folder(tmp_path, "output")
    assert (tmp_path / MARKER).is_file()
    (tmp_path / MARKER).unlink()
    (tmp_path / "cat.jpg").touch()
    assert not is_ours(tmp_path), "the user's pictures lie in it"
