"""`lookalike check` finds every kind of damage, and `--repair` mends what can be made again."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lookalike import Client
from lookalike.cli.main import app
from lookalike.schemas import CheckOut
from tests.formats.write import write_head
from tests.servers import Server

COUNT = 6


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with two collections, one with a head, and a job's history."""
    folder = tmp_path_factory.mktemp("template")
    chance = np.random.default_rng(7)
    for n in range(COUNT):
        colors = chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colors).resize((64, 48), Image.Resampling.NEAREST).save(folder / f"{n}.png")
    with client(folder / "data") as made:
        made.index(folder / "0.png", folder / "1.png", collection="other")
        made.index(*folder.glob("*.png"))
        head = write_head(folder / "head.safetensors")
        made.reembed("other", model={"head": str(head)})
        made.jobs()
    with client(folder / "data") as made:
        made.search(folder / "0.png")
    return folder / "data"


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "data")


def client(folder: Path, **given: Any) -> Client:
    return Client(folder, model="color", **given)


def check(folder: Path, *, quick: bool = False, repair: bool = False) -> CheckOut:
    with client(folder, read_only=not repair) as opened:
        return opened.check(quick=quick, repair=repair)


def kinds(checked: CheckOut) -> list[str]:
    return sorted({one.kind for one in checked.findings})


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("lock", "catalog.db-"))
    }


@contextmanager
def catalog(folder: Path, name: str = "catalog.db"):
    with closing(sqlite3.connect(folder / name)) as connection:
        yield connection
        connection.commit()


def first(folder: Path, pattern: str) -> Path:
    return min(folder.glob(pattern))


def no_original(folder: Path) -> None:
    first(folder, "images/*/*/*").unlink()


def original_in_the_trash(folder: Path) -> None:
    path = first(folder, "images/*/*/*")
    target = folder / "trash" / "2026-11-01" / path.relative_to(folder)
    target.parent.mkdir(parents=True)
    shutil.copy(path, target)
    path.write_bytes(b"\0" * path.stat().st_size)


def changed_original(folder: Path) -> None:
    path = first(folder, "images/*/*/*")
    whole = bytearray(path.read_bytes())
    whole[-20] ^= 1
    path.write_bytes(whole)


def short_original(folder: Path) -> None:
    os.truncate(first(folder, "images/*/*/*"), 20)


def no_thumbnail(folder: Path) -> None:
    first(folder, "thumbnails/*/*/*").unlink()


def broken_thumbnail(folder: Path) -> None:
    first(folder, "thumbnails/*/*/*").write_bytes(b"\xff\xd8 no picture")


def empty_thumbnail(folder: Path) -> None:
    first(folder, "thumbnails/*/*/*").write_bytes(b"")


def orphan(folder: Path) -> None:
    path = folder / "images" / "ff" / "ff" / f"{'f' * 64}.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of nobody")
    os.utime(path, (1, 1))


def no_vector(folder: Path) -> None:
    with catalog(folder) as rows:
        rows.execute(
            "DELETE FROM vectors WHERE (space, seq) IN (SELECT space, max(seq)"
            " FROM vectors GROUP BY space)"
        )


def short_vector(folder: Path) -> None:
    with catalog(folder) as rows:
        rows.execute("UPDATE vectors SET vector = x'00000000' WHERE seq = 4")


def vector_of_nan(folder: Path) -> None:
    with catalog(folder) as rows:
        (size,) = rows.execute("SELECT length(vector) FROM vectors WHERE seq = 4").fetchone()
        rows.execute("UPDATE vectors SET vector = ? WHERE seq = 4", (b"\xff" * size,))


def zero_vector(folder: Path) -> None:
    with catalog(folder) as rows:
        rows.execute("UPDATE vectors SET vector = zeroblob(length(vector)) WHERE seq = 4")


def wrong_count(folder: Path) -> None:
    with catalog(folder) as rows:
        rows.execute("UPDATE collections SET images = 77")


def dangling_row(folder: Path) -> None:
    with catalog(folder) as rows:
        rows.execute("PRAGMA foreign_keys = OFF")
        rows.execute("INSERT INTO vectors VALUES (1, 999, x'00')")


def other_index(folder: Path) -> None:
    """The vectors are other ones than the catalog's, and the checksums are right."""
    import hashlib

    for manifest in folder.glob("index/*/manifest.json"):
        document = json.loads(manifest.read_text())
        path = manifest.parent / document["content"] / "vectors"
        vectors = np.fromfile(path, "<f4")
        vectors[: len(vectors) // 2] *= -1
        path.write_bytes(vectors.tobytes())
        document["files"]["vectors"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(document))


def broken_index(folder: Path) -> None:
    path = first(folder, "index/*/*/vectors")
    path.write_bytes(path.read_bytes()[::-1])


def no_manifest(folder: Path) -> None:
    first(folder, "index/*/manifest.json").write_bytes(b"{")


def no_head(folder: Path) -> None:
    first(folder, "heads/*.safetensors").unlink()


def broken_head(folder: Path) -> None:
    path = first(folder, "heads/*.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")


def broken_jobs(folder: Path) -> None:
    path = folder / "jobs.db"
    path.write_bytes(path.read_bytes()[:5000] + b"\7" * 3000)


MENDED: list[tuple[Callable[[Path], None], str]] = [
    (original_in_the_trash, "original"),
    (no_thumbnail, "thumbnail"),
    (broken_thumbnail, "thumbnail"),
    (empty_thumbnail, "thumbnail"),
    (orphan, "orphan"),
    (no_vector, "vector"),
    (short_vector, "vector"),
    (vector_of_nan, "vector"),
    (zero_vector, "vector"),
    (wrong_count, "counter"),
    (dangling_row, "database"),
    (other_index, "index"),
    (broken_index, "index"),
    (no_manifest, "index"),
]
LEFT: list[tuple[Callable[[Path], None], str]] = [
    (no_original, "original"),
    (changed_original, "original"),
    (short_original, "original"),
    (no_head, "head"),
    (broken_head, "head"),
    (broken_jobs, "database"),
]


def test_nothing_is_wrong_with_a_whole_folder(data: Path) -> None:
    before = content(data)
    checked = check(data)
    assert (checked.pictures, checked.findings) == (COUNT + 2, [])
    assert check(data, quick=True).findings == []
    assert content(data) == before
    assert check(data, repair=True).findings == []


@pytest.mark.parametrize(("damage", "kind"), MENDED + LEFT)
def test_damage_is_found_and_nothing_is_changed(
    data: Path, damage: Callable[[Path], None], kind: str
) -> None:
    damage(data)
    before = content(data)
    checked = check(data)
    assert kind in kinds(checked)
    assert len(checked.findings) < 2 * COUNT
    assert content(data) == before


@pytest.mark.parametrize(("damage", "kind"), MENDED)
def test_what_can_be_made_again_is_mended(
    data: Path, damage: Callable[[Path], None], kind: str
) -> None:
    damage(data)
    mended = check(data, repair=True)
    assert mended.findings == []
    assert kind in {one.kind for one in mended.repaired}
    with client(data) as opened:
        for name, count in (("default", COUNT), ("other", 2)):
            images = list(opened.list(name))
            assert len(images) == count
            for image in images:
                (match, *_) = opened.similar(image.id, k=COUNT, collection=name).matches
                assert match.id != image.id
                assert opened.thumbnail(image.id, collection=name).startswith(b"\xff\xd8")
    assert check(data).findings == []


@pytest.mark.parametrize(("damage", "kind"), LEFT)
def test_what_cannot_be_mended_is_left_and_said(
    data: Path, damage: Callable[[Path], None], kind: str
) -> None:
    damage(data)
    checked = check(data, repair=damage is not broken_jobs)
    assert kinds(checked) == [kind]
    for one in checked.findings:
        assert any(word in one.text for word in ("again", "restore", "copy", "head"))


@pytest.mark.parametrize("text", ["{", b"\xff\xfe"])
@pytest.mark.parametrize("column", ["images.metadata", "spaces.recipe"])
def test_a_damaged_text_is_a_finding(data: Path, column: str, text: str | bytes) -> None:
    table, name = column.split(".")
    with catalog(data) as rows:
        rows.execute(f"UPDATE {table} SET {name} = CAST(? AS TEXT)", (text,))
    checked = check(data)
    assert "database" in kinds(checked)
    assert any("damaged" in one.text for one in checked.findings)


def test_most_files_are_never_taken_for_orphans(data: Path) -> None:
    with catalog(data) as rows:
        rows.execute("PRAGMA foreign_keys = ON")
        rows.execute("DELETE FROM images WHERE seq > 1")
        rows.execute(
            "UPDATE collections SET images = (SELECT count(*) FROM images"
            " WHERE collection = collections.id)"
        )
    (data / "unswept").unlink()
    for path in data.glob("*/*/*/*"):
        os.utime(path, (1, 1))
    before = len(list(data.glob("images/*/*/*")))
    checked = check(data, repair=True)
    assert kinds(checked) == ["orphan"]
    assert len(list(data.glob("images/*/*/*"))) == before


def test_files_that_wait_for_a_sweep_are_no_orphans(data: Path) -> None:
    with client(data) as opened:
        opened.drop("default")
        opened.drop("other")
    for path in data.glob("*/*/*/*"):
        os.utime(path, (1, time.time() - 7200))
    assert check(data).findings == []


def test_the_command(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_MODEL", "color")

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["check", "--data-dir", str(data), *words])
        return done.exit_code, done.stdout

    assert run() == (0, f"checked {COUNT + 2} pictures: nothing is wrong\n")
    no_thumbnail(data)
    code, text = run()
    assert code == 1
    assert "its thumbnail is missing or damaged" in text
    assert "1 problem (" in text
    code, text = run("--json", "--quick")
    assert code == 1
    assert {one["kind"] for one in json.loads(text)["findings"]} == {"thumbnail"}
    code, text = run("--repair")
    assert code == 0
    assert text.startswith("repaired: thumbnail default/")
    assert run()[0] == 0
    (data / "catalog.db").unlink()
    assert CliRunner().invoke(app, ["check", "--data-dir", str(data)]).exit_code == 1


def test_beside_a_running_service(data: Path) -> None:
    server = Server(data)
    try:
        assert check(data).findings == []
        no_thumbnail(data)
        assert kinds(check(data)) == ["thumbnail"]
        repair = CliRunner().invoke(
            app, ["check", "--repair", "--model", "color", "--data-dir", str(data)]
        )
        assert repair.exit_code == 1
        assert "in use by" in str(repair.exception)
    finally:
        server.close()
