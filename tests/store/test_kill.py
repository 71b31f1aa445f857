"""A process that is killed while it puts: what it acknowledged is there afterwards."""

from __future__ import annotations

import io
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lookalike.files.disk import LocalFiles
from lookalike.store.base import count_of
from lookalike.store.local.store import LocalStore
from tests.store.helpers import SPEC, digest, ids, new_image, put, search, unit_vectors

ROUNDS = 5
CHILD = """
import sys
from tests.store.test_kill import put_forever
put_forever(sys.argv[1], sys.argv[2])
"""


def put_forever(folder: str, prefix: str) -> None:
    """Runs in the child: file, then row, then the id on the standard output."""
    files, store = LocalFiles(Path(folder)), LocalStore(Path(folder))
    for n in range(100_000):
        names = [f"{prefix}-{n}-{part}" for part in range(3)]
        for name in names:
            files.put(io.BytesIO(name.encode()), digest(name), "image/png")
        put(store, [new_image(name, metadata={"n": n}) for name in names], vectors_of(names))
        if n % 10 == 9:
            store.delete("default", names[0])
            names = names[1:]
        print(*names, sep="\n", flush=True)


def vectors_of(names: list[str]) -> np.ndarray:
    return np.concatenate([unit_vectors(1, seed=int(digest(name)[:8], 16)) for name in names])


def kill_one(folder: Path, prefix: str, *, after_s: float) -> list[str]:
    """Starts a child, kills it some time after its first id; gives those that it acknowledged."""
    command = [sys.executable, "-c", CHILD, str(folder), prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(after_s)
        child.send_signal(signal.SIGKILL)
        lines = (first + child.stdout.read()).split("\n")
    assert child.returncode == -signal.SIGKILL
    return lines[:-1]  # the last one was cut short, or is empty


def check_whole(folder: Path) -> None:
    """Nothing half-written: every row has one vector and a file."""
    connection = sqlite3.connect(folder / "catalog.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    sql = "SELECT sha256, length(vector) FROM images LEFT JOIN vectors USING (seq)"
    rows = connection.execute(sql).fetchall()
    assert connection.execute("SELECT count(*) FROM images").fetchone() == (len(rows),)
    connection.close()
    files = LocalFiles(folder)
    for sha256, length in rows:
        assert length == 4 * SPEC.dim
        path = files.path(sha256, "image/png")
        assert path is not None
        assert digest(path.read_text()) == sha256


@pytest.mark.parametrize("saved", [False, True])
def test_what_was_acknowledged_survives(tmp_path: Path, saved: bool, chance: random.Random) -> None:
    acknowledged: list[str] = []
    for turn in range(ROUNDS // 2 + 1 if saved else ROUNDS // 2):
        acknowledged += kill_one(tmp_path, f"r{turn}", after_s=chance.uniform(0.05, 0.4))
        store = LocalStore(tmp_path)
        assert set(store.find("default", acknowledged)) == set(acknowledged)
        vectors = vectors_of(acknowledged)
        for name, matches in zip(acknowledged, search(store, vectors, k=1), strict=True):
            assert ids(matches) == [name]
        assert len(search(store, vectors[:1], k=100_000)[0]) == count_of(store, "default")
        if saved:
            store.close()
        else:
            store._catalog.close()
            store._owned.close()
        check_whole(tmp_path)
