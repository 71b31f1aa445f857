"""`lookalike duplicates FOLDER`: on a folder, without a data folder; tables, scripts and moves."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from lookalike.errors import ConfigurationError
from lookalike.records import DuplicateKind
from lookalike.services import tidying
from lookalike.services.tidying import FileGroup, Mover, PictureFile
from scripts.samples import write_samples

ODD = "a b'$(touch owned)\n; touch owned é.jpg"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six different pictures, and copies of two under odd names."""
    monkeypatch.setenv("LOOKALIKE_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    write_samples(folder, classes=["mug", "fish"], instances=3, views=1, size=(96, 72))
    for name in ("mug-00-0", "mug-01-0"):
        os.utime(folder / "mug" / f"{name}.jpg", (1e9, 1e9))
    shutil.copyfile(folder / "mug" / "mug-00-0.jpg", folder / "again.jpg")
    shutil.copyfile(folder / "mug" / "mug-00-0.jpg", folder / "fish" / ODD)
    shutil.copyfile(folder / "mug" / "mug-01-0.jpg", folder / "-rf.jpg")
    return folder


COPIES = {"again.jpg", f"fish/{ODD}", "-rf.jpg"}


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def found(lookalike, folder, *words):
    done = lookalike("duplicates", str(folder), "--kind", "exact", "--json", *words)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_copies_in_a_folder_are_found_and_nothing_is_written_there(lookalike, folder, tmp_path):
    before = tree(folder)
    for _ in range(2):
        groups = found(lookalike, folder)["groups"]
        assert {one["path"] for group in groups for one in group["members"]} == COPIES
        assert [group["keep"]["path"] for group in groups] == [
            "mug/mug-00-0.jpg",
            "mug/mug-01-0.jpg",
        ]
    assert tree(folder) == before
    assert not (tmp_path / "data").exists()


def test_each_copy_is_counted_once(lookalike, folder):
    shown = lookalike("duplicates", str(folder), "--kind", "exact").stdout
    assert "2 groups with 3 pictures beside those to keep" in shown
    assert sum(name in shown for name in ("again.jpg", "-rf.jpg", "mug-00-0.jpg")) == 3
    assert "lookalike delete" not in shown


@pytest.mark.parametrize("removed", ["-rf.jpg", "mug/mug-01-0.jpg"])
def test_copies_that_were_all_removed_since_the_last_run_are_no_group(lookalike, folder, removed):
    found(lookalike, folder)
    (folder / removed).unlink()
    (group,) = found(lookalike, folder)["groups"]
    assert group["keep"]["path"] == "mug/mug-00-0.jpg"


def test_what_is_gone_or_changed_since_the_last_run_is_forgotten(lookalike, folder):
    found(lookalike, folder)
    (folder / "again.jpg").unlink()
    shutil.copyfile(folder / "fish" / "fish-00-0.jpg", folder / "-rf.jpg")
    groups = found(lookalike, folder)["groups"]
    members = {one["path"] for group in groups for one in group["members"]}
    assert members in ({f"fish/{ODD}", "-rf.jpg"}, {f"fish/{ODD}", "fish/fish-00-0.jpg"})
    shutil.rmtree(folder / "mug")
    (group,) = found(lookalike, folder)["groups"]
    assert {group["keep"]["path"], group["members"][0]["path"]} == {"-rf.jpg", "fish/fish-00-0.jpg"}


def test_copies_stand_with_reencoded_ones_in_one_group(lookalike, folder):
    Image.open(folder / "again.jpg").save(folder / "lossless.png")
    words = ("duplicates", str(folder), "--kind", "reencoded", "--json", "--threshold", "0.9")
    group = json.loads(lookalike(*words).stdout)["groups"][0]
    paths = [group["keep"]["path"], *(one["path"] for one in group["members"])]
    assert sorted(paths) == sorted(["again.jpg", f"fish/{ODD}", "mug/mug-00-0.jpg", "lossless.png"])


def test_the_file_that_was_not_saved_again_is_kept_and_the_older_one(lookalike, folder, tmp_path):
    shutil.rmtree(folder / "fish")
    for name in ("again.jpg", "-rf.jpg", "mug/mug-01-0.jpg"):
        (folder / name).unlink()
    original = folder / "mug" / "mug-00-0.jpg"
    again = folder / "a.jpg"
    Image.open(original).save(again, quality=99, subsampling=0)
    os.utime(again, (9e8, 9e8))  # older, with more bytes, and yet it was made of the other
    older, newer = folder / "old.png", folder / "new.png"
    Image.open(folder / "mug" / "mug-02-0.jpg").save(older, compress_level=9)
    Image.open(older).save(newer, compress_level=0)
    os.utime(older, (1e9, 1e9))
    (folder / "mug" / "mug-02-0.jpg").unlink()
    table, script = tmp_path / "files.csv", tmp_path / "tidy.sh"
    words = ("--kind", "reencoded", "--threshold", "0.9", "--csv", str(table), "--script")
    groups = found(lookalike, folder, *words, str(script))["groups"]
    kept = {group["keep"]["path"]: group["why"] for group in groups}
    assert kept == {"mug/mug-00-0.jpg": "not saved again", "old.png": "oldest"}
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row["why"] for row in csv.DictReader(file) if row["role"] == "keep"}
    assert rows == {str(folder / path): why for path, why in kept.items()}
    for why in kept.values():
        assert f"kept: {why}" in script.read_text()


def test_a_link_to_a_file_elsewhere_is_no_copy(lookalike, folder, tmp_path):
    outside = tmp_path / "outside.jpg"
    shutil.copyfile(folder / "fish" / "fish-00-0.jpg", outside)
    (folder / "a-link.jpg").symlink_to(outside)
    for _ in range(2):
        keeps = [group["keep"]["path"] for group in found(lookalike, folder)["groups"]]
        assert keeps == ["mug/mug-00-0.jpg", "mug/mug-01-0.jpg"]


def test_a_table_is_written(lookalike, folder, tmp_path):
    found(lookalike, folder, "--csv", str(tmp_path / "files.csv"))
    with (tmp_path / "files.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows if row["role"] == "duplicate"} == {
        str(folder / name) for name in COPIES
    }
    assert {row["path"] for row in rows if row["role"] == "keep"} == {
        str(folder / "mug" / f"mug-0{n}-0.jpg") for n in (0, 1)
    }
    for row in rows:
        assert int(row["bytes"]) == Path(row["path"]).stat().st_size
        assert (row["width"], row["height"]) == ("96", "72")
        assert row["why"] == ("oldest" if row["role"] == "keep" else "")


def test_a_script_moves_exact_copies_only_whatever_their_names(lookalike, folder, tmp_path):
    Image.open(folder / "again.jpg").save(folder / "fish" / f"{ODD}.png")
    before = tree(folder)
    script = tmp_path / "tidy.sh"
    words = ["--kind", "reencoded", "--threshold", "0.9", "--script", str(script)]
    assert lookalike("duplicates", str(folder), *words).exit_code == 0
    assert tree(folder) == before
    assert subprocess.run(["sh", script], check=False, capture_output=True).returncode != 0
    assert tree(folder) == before
    subprocess.run(["sh", script, "bin"], check=True, cwd=tmp_path)
    left, moved = tree(folder), tree(tmp_path / "bin")
    assert {**left, **moved} == before
    assert "-rf.jpg" in moved
    assert set(before.values()) == set(left.values())
    assert not list(tmp_path.rglob("owned"))
    subprocess.run(["sh", script, "bin"], check=True, cwd=tmp_path, capture_output=True)
    assert (tree(folder), tree(tmp_path / "bin")) == (left, moved)


@pytest.mark.parametrize("inside", [True, False])
def test_files_are_moved_and_moved_back(lookalike, folder, tmp_path, inside):
    before = tree(folder)
    trash = (folder if inside else tmp_path) / "trash"
    words = ("duplicates", str(folder), "--move-to", str(trash))
    dry = lookalike(*words, "--dry-run")
    assert dry.stdout.count("would be moved: ") == 3
    assert tree(folder) == before
    assert not trash.exists()
    done = lookalike(*words)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("moved: ") == 3
    (manifest,) = trash.glob("moved-*.jsonl")
    assert all((trash / name).read_bytes() == before[name] for name in COPIES)
    assert not any((folder / name).exists() for name in COPIES)
    again = lookalike(*words)  # passes over what was moved
    assert (again.exit_code, again.stdout.count("moved: ")) == (0, 0)
    undone = lookalike("duplicates", "--undo", str(manifest))
    assert undone.stdout.count("moved back: ") == 3
    shutil.rmtree(trash)
    assert tree(folder) == before


def test_a_folder_whose_name_looks_like_markup(lookalike, folder):
    (folder.parent / "[").mkdir()
    odd = folder.rename(folder.parent / "[" / "red] photos")
    (odd / "again.jpg").unlink()
    assert "duplicates in " in lookalike("duplicates", str(odd)).stdout
    shutil.rmtree(odd / "fish")
    (odd / "-rf.jpg").unlink()
    done = lookalike("duplicates", str(odd), "--kind", "exact")
    assert done.exit_code == 0, done.output
    assert "No duplicates in " in done.stdout
    assert "[/red] photos" in done.stdout


def test_near_pictures_stay_unless_kind_asks(lookalike, folder, tmp_path):
    Image.open(folder / "again.jpg").save(folder / "lossless.png")
    words = ("duplicates", str(folder), "--move-to", str(tmp_path / "trash"), "--threshold", "0.9")
    assert lookalike(*words).exit_code == 0
    assert len(tree(folder)) == 7
    assert lookalike(*words, "--kind", "reencoded").exit_code == 0
    assert len(tree(folder)) == 6


@pytest.mark.parametrize("where", [".", "..", "mug", "../full"])
def test_a_bad_target_is_refused(lookalike, folder, tmp_path, where):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    before = tree(tmp_path)
    done = lookalike("duplicates", str(folder), "--move-to", str(folder / where))
    assert isinstance(done.exception, ConfigurationError)
    assert tree(tmp_path) == before


@pytest.fixture
def pair(tmp_path):
    """Two files of the same bytes in a folder."""
    folder = tmp_path / "pair"
    (folder / "sub").mkdir(parents=True)
    (folder / "keep.jpg").write_bytes(b"picture")
    (folder / "sub" / "copy.jpg").write_bytes(b"picture")
    start = sha256(b"picture").hexdigest()[:16]
    keep = PictureFile(path=folder / "keep.jpg", sha256_start=start, bytes=7, width=1, height=1)
    path = folder / "sub" / "copy.jpg"
    copy = replace(keep, path=path, kind=DuplicateKind.EXACT, score=1.0)
    return folder, [FileGroup(keep, [copy])]


def _hard_link(folder):
    (folder / "sub" / "copy.jpg").unlink()
    (folder / "sub" / "copy.jpg").hardlink_to(folder / "keep.jpg")


def _link_to_kept(folder):
    (folder / "sub" / "copy.jpg").unlink()
    (folder / "sub" / "copy.jpg").symlink_to("../keep.jpg")


def _kept_becomes_link(folder):
    (folder / "keep.jpg").unlink()
    (folder / "keep.jpg").symlink_to("sub/copy.jpg")


def _link_elsewhere(folder):
    (folder / "sub" / "copy.jpg").rename(folder / "other")
    (folder / "sub" / "copy.jpg").symlink_to("../other")


SPOILT = {
    "hard link": _hard_link,
    "link to the kept file": _link_to_kept,
    "kept file is a link": _kept_becomes_link,
    "link elsewhere": _link_elsewhere,
    "kept file gone": lambda folder: (folder / "keep.jpg").unlink(),
    "kept file changed": lambda folder: (folder / "keep.jpg").write_bytes(b"another"),
    "copy changed": lambda folder: (folder / "sub" / "copy.jpg").write_bytes(b"another"),
    "copy gone": lambda folder: (folder / "sub" / "copy.jpg").unlink(),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_stays_if_something_changed(pair, tmp_path, how):
    folder, groups = pair
    SPOILT[how](folder)
    before = tree(folder)
    ((path, why),) = Mover(folder, tmp_path / "trash").move(groups, dry_run=False)
    assert path == folder / "sub" / "copy.jpg"
    assert why
    assert tree(folder) == before
    assert not (tmp_path / "trash").exists()


def test_files_whose_digests_only_start_alike_are_no_exact_copies(pair, tmp_path):
    folder, (group,) = pair
    (folder / "sub" / "copy.jpg").write_bytes(b"another")
    keep, copy = (replace(one, sha256_start="") for one in (group.keep, *group.duplicates))
    ((_, why),) = Mover(folder, tmp_path / "trash").move([FileGroup(keep, [copy])], dry_run=False)
    assert "is not the same as" in why
    assert copy.path.exists()


def test_a_file_that_another_group_keeps_stays(pair, tmp_path):
    folder, (group,) = pair
    (copy,) = group.duplicates
    other = FileGroup(replace(copy, kind=None, score=None), [])
    ((path, why),) = Mover(folder, tmp_path / "trash").move([group, other], dry_run=False)
    assert (path, why) == (copy.path, "another group keeps it")
    assert copy.path.exists()


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_overwritten(pair, tmp_path, monkeypatch, links):
    folder, groups = pair
    if not links:
        monkeypatch.setattr(os, "link", _no_link)
    mover = Mover(folder, tmp_path / "trash")
    assert list(mover.move(groups, dry_run=False)) == [(folder / "sub" / "copy.jpg", "")]
    (folder / "sub" / "copy.jpg").write_bytes(b"picture")  # it comes again
    ((_, why),) = Mover(folder, tmp_path / "trash").move(groups, dry_run=False)
    assert "exists already" in why
    ((_, why),) = tidying.undo(manifest_of(mover))
    assert "something lies there" in why
    (folder / "sub" / "copy.jpg").unlink()
    (folder / "sub").rmdir()
    assert list(tidying.undo(manifest_of(mover))) == [(folder / "sub" / "copy.jpg", "")]
    assert (folder / "sub" / "copy.jpg").read_bytes() == b"picture"


def manifest_of(mover: Mover) -> Path:
    assert mover.manifest is not None
    return mover.manifest


def _no_link(*_args, **_options):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_moved_file_that_was_changed_is_not_moved_back(pair, tmp_path):
    folder, groups = pair
    mover = Mover(folder, tmp_path / "trash")
    list(mover.move(groups, dry_run=False))
    (tmp_path / "trash" / "sub" / "copy.jpg").write_bytes(b"another")
    ((_, why),) = tidying.undo(manifest_of(mover))
    assert "changed" in why
    assert not (folder / "sub" / "copy.jpg").exists()


@pytest.mark.parametrize(
    "text",
    [
        "no json\n",
        '{"to": "x"}\n',
        "[1]\n",
        '{"from": "/x", "to": "../y", "sha256": ""}\n',
        '{"from": "/x", "to": "/y", "sha256": ""}\n',
    ],
)
def test_no_manifest(tmp_path, text):
    (tmp_path / "moved.jsonl").write_text(text)
    with pytest.raises(ConfigurationError):
        list(tidying.undo(tmp_path / "moved.jsonl"))


@pytest.mark.parametrize(
    "words",
    [
        ("--csv", "x.csv"),
        ("--script", "x.sh"),
        ("--move-to", "x"),
        ("--dry-run",),
        ("photos", "--data-dir", "data"),
        ("photos", "--server", "http://localhost:1"),
        ("photos", "--collection", "shoes"),
        ("missing",),
    ],
)
def test_flags_that_do_not_fit(lookalike, folder, words):
    assert isinstance(lookalike("duplicates", *words).exception, ConfigurationError)
