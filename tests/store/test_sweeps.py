"""Whatever happens in whatever order, rows keep their files, and what no row needs goes."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lookalike.errors import DataFolderError, NotFoundError
from lookalike.files.disk import LocalFiles
from lookalike.progress import Worker
from lookalike.services.pictures import file_sweeper
from lookalike.store.base import count_of
from lookalike.store.local.store import LocalStore
from tests.store.helpers import digest, new_image, put, unit_vectors

STEPS = int(os.environ.get("LOOKALIKE_TEST_SWEEPS", "100"))
"""Steps of the random story; 5000 for a thorough run."""
KILLS = 2


class Folder:
    """A data folder in use, and what must be in it."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path, self.chance = path, chance
        self.rows: dict[tuple[str, str], str] = {}  # collection and id -> content
        self.contents = 0
        self.open()

    def open(self) -> None:
        self.store, self.files = LocalStore(self.path), LocalFiles(self.path)

    def index(self) -> None:
        """Puts a few pictures: new ones, replacements, and bytes of before."""
        name = self.chance.choice(["one", "two"])
        images, planned = [], {}
        for _ in range(self.chance.randrange(1, 4)):
            self.contents += self.chance.random() < 0.7
            content = (
                f"content {self.chance.randrange(max(0, self.contents - 5), self.contents + 1)}"
            )
            image = new_image(f"i{self.chance.randrange(12)}", content=content)
            self.store.expect([image.sha256])
            self.files.put(io.BytesIO(content.encode()), image.sha256, "image/png")
            self.files.put_thumbnail(image.sha256, b"small")
            images.append(image)
            planned[name, image.id] = content
        if self.chance.random() < 0.1:
            return  # the request failed before its commit
        put(self.store, images, unit_vectors(len(images)), collection=name)
        self.rows |= planned

    def delete(self) -> None:
        if self.rows:
            name, image_id = key = self.chance.choice(sorted(self.rows))
            del self.rows[key]
            self.store.delete(name, image_id)

    def drop(self) -> None:
        name = self.chance.choice(["one", "two"])
        with suppress(NotFoundError):
            self.store.drop(name, wait=True)
            self.rows = {key: content for key, content in self.rows.items() if key[0] != name}

    def sweep(self) -> None:
        for digests in self.store.unnamed():
            if self.chance.random() < 0.1:
                break  # the service ends
            self.store.expect(self.files.set_aside(digests, older_than_s=-1))
        self.files.tidy(self.store.references, days=self.chance.choice([0, 7, 7]))

    def restart(self) -> None:
        self.store.close()
        self.open()

    def check(self) -> None:
        """Every row has its files; after a sweep that ends, no other file is left."""
        for (name, image_id), content in self.rows.items():
            record = self.store.get(name, image_id)
            assert record.sha256 == digest(content)
            with self.files.open(record) or io.BytesIO() as original:
                assert original.read() == content.encode()
            assert self.files.thumbnail_path(record.sha256)
        assert sum(count_of(self.store, name) for name in ("one", "two")) == len(self.rows)


def held(folder: Path, part: str) -> set[str]:
    return {path.stem for path in (folder / part).rglob("*") if path.is_file()}


def test_rows_keep_their_files_and_others_go(tmp_path: Path, chance: random.Random) -> None:
    folder = Folder(tmp_path, chance)
    steps = [folder.index] * 5 + [folder.delete] * 3 + [folder.sweep] * 2
    steps += [folder.drop, folder.restart]
    try:
        for number in range(STEPS):
            chance.choice(steps)()
            if number % 10 == 9:
                folder.check()
        for _ in range(2):
            for digests in folder.store.unnamed():
                folder.files.set_aside(digests, older_than_s=-1)
        wanted = {digest(content) for content in folder.rows.values()}
        assert held(tmp_path, "images") | held(tmp_path, "trash") >= wanted
        assert held(tmp_path, "images") <= wanted
        assert held(tmp_path, "thumbnails") <= wanted
        folder.check()
    finally:
        folder.store.close()


def test_a_restored_catalog_loses_no_file(tmp_path: Path, chance: random.Random) -> None:
    """Whatever catalog of before is put back, it opens or is refused, and no original goes."""
    data = tmp_path / "data"
    folder = Folder(data, chance)
    saved: list[Path] = []
    everything: set[str] = set()
    for number in range(12):
        for _ in range(6):
            with suppress(NotFoundError):  # of a row that the catalog of before did not have
                chance.choice([folder.index, folder.index, folder.delete])()
        everything |= held(data, "images")
        if number % 3 == 2:
            folder.store.close()
            saved.append(tmp_path / f"saved-{number}")
            shutil.copy(data / "catalog.db", saved[-1])
            folder.open()
        if number % 4 == 3 and saved:
            folder.store.close()
            now = tmp_path / "now"
            shutil.copy(data / "catalog.db", now)
            shutil.copy(chance.choice(saved), data / "catalog.db")
            try:
                folder.open()
            except DataFolderError:
                shutil.copy(now, data / "catalog.db")
                folder.open()
        for digests in folder.store.unnamed():
            folder.files.set_aside(digests, older_than_s=-1)
        folder.files.tidy(folder.store.references, days=7)
        assert held(data, "images") | held(data, "trash") >= everything
    folder.store.close()


def test_a_damaged_index_of_the_catalog_deletes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite answers from an index, and does not notice that it lacks rows."""
    folder = Folder(tmp_path, random.Random(1))
    image = new_image("one")
    folder.files.put(io.BytesIO(b"one"), image.sha256, "image/png")
    put(folder.store, [image], unit_vectors(1))
    folder.store.expect([image.sha256])
    folder.store.close()
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        change = "UPDATE sqlite_schema SET sql = ? WHERE name = 'images_by_sha256'"
        connection.execute(change, ("CREATE INDEX images_by_sha256 ON images (id)",))
        connection.commit()
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("REINDEX images_by_sha256")
        text = "CREATE INDEX images_by_sha256 ON images (sha256)"
        connection.execute(change, (text,))
        connection.commit()
    folder.open()
    assert folder.store.references([image.sha256]) == set(), "the index lies"
    os.utime(folder.files.path(image.sha256, "image/png") or "", (1, 1))
    monkeypatch.setattr(Worker, "wake", lambda _: None)
    file_sweeper(folder.store, folder.files, trash_days=0).step()
    assert held(tmp_path, "images") == {image.sha256}
    folder.store.close()


CHILD = """
import random, sys
from pathlib import Path

import pytest
from tests.store.test_sweeps import Folder
folder = Folder(Path(sys.argv[1]), random.Random(int(sys.argv[2])))
while True:
    folder.chance.choice([folder.index, folder.index, folder.delete, folder.sweep])()
    print(".", flush=True)
"""


def test_kill_minus_9_between_sweeps(tmp_path: Path, chance: random.Random) -> None:
    for _ in range(KILLS):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(chance.randrange(2**32))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline()
            time.sleep(chance.uniform(0.05, 0.5))
            child.send_signal(signal.SIGKILL)
        store, files = LocalStore(tmp_path), LocalFiles(tmp_path)
        for name in ("one", "two"):
            for record in store.scroll(name, limit=1000).records:
                assert files.exists(record)
                assert files.thumbnail_path(record.sha256)
        for digests in store.unnamed():
            files.set_aside(digests, older_than_s=-1)
        left = held(tmp_path, "images")
        assert len(left - store.references(left)) <= 1, "at most what a cut-off line named"
        store.close()
