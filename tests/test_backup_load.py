"""Backups of a real service that is indexed, changed and deleted; and kill -9 in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lookalike import Client, HttpClient
from lookalike.errors import BackupError, DataFolderError
from lookalike.files.data_folder import RESTORING
from tests.servers import ADMIN_KEY, LOOKALIKE, Server, clean_environment
from tests.services.backups import answers, backup, fill, restore
from tests.test_crash import picture
from tests.waiting import PATIENCE_S, wait_for

ROUNDS = int(os.environ.get("LOOKALIKE_TEST_BACKUP_KILLS", "2"))
"""How often each kind of work is killed; 50 for a thorough run."""

LOADED = int(os.environ.get("LOOKALIKE_TEST_BACKUPS_UNDER_LOAD", "1"))
"""How often each kind of backup is made under load; 20 for a thorough run."""

State = dict[str, tuple[str, dict[str, Any]]]
"""By id: the digest of the bytes, and the metadata."""


def command(*words: object) -> list[str]:
    return [str(LOOKALIKE), *map(str, words)]


def run(*words: object) -> None:
    done = subprocess.run(
        command(*words), env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class Worker:
    """Indexes, replaces, patches and deletes pictures of its own, one call after the other.

    So whatever moment a backup is of, it must show the first so many of the calls and no others.
    """

    def __init__(self, server: Server, name: str) -> None:
        self._http = httpx2.Client(
            base_url=server.url, headers=server.http.headers, trust_env=False, timeout=PATIENCE_S
        )
        self._chance = random.Random(name)
        self._state: State = {}
        self._name = name
        self.states: list[tuple[float, float, State]] = [(0.0, 0.0, {})]
        """When a call began, when it was answered, and what stands then."""

    def run(self, stop: threading.Event) -> None:
        number = 0
        with self._http:
            while not stop.is_set():
                number += 1
                began = time.monotonic()
                image_id, content, metadata = self._call(number)
                self._state = dict(self._state)
                if content is None:
                    del self._state[image_id]
                else:
                    self._state[image_id] = (content, metadata)
                self.states.append((began, time.monotonic(), self._state))

    def _call(self, number: int) -> tuple[str, str | None, dict[str, Any]]:
        known = self._chance.choice(sorted(self._state) or [""])
        kind = self._chance.choice(
            ["add", "add", "replace", "patch", "delete"] if known else ["add"]
        )
        if kind == "delete":
            answer = self._http.delete(f"/images/{known}")
            assert answer.status_code == 204, answer.text
            return known, None, {}
        metadata: dict[str, Any] = {"number": number}
        if kind == "patch":
            answer = self._http.patch(f"/images/{known}", json={"metadata": metadata})
            assert answer.status_code == 200, answer.text
            return known, self._state[known][0], metadata
        content = picture(ord(self._name) * 10**6 + number)
        image_id = known if kind == "replace" else f"{self._name}-{number}"
        answer = self._http.post(
            "/index",
            files={"files": ("p.png", content)},
            data={"ids": image_id, "metadata": json.dumps(metadata)},
        )
        assert answer.status_code == 201, answer.text
        return image_id, hashlib.sha256(content).hexdigest(), metadata

    def check(self, found: State, began: float, ended: float) -> None:
        """The state found is one that stood between two moments."""
        own = {key: value for key, value in found.items() if key.startswith(f"{self._name}-")}
        first = max(n for n, (_, answered, _) in enumerate(self.states) if answered <= began)
        last = max(n for n, (asked, _, _) in enumerate(self.states) if asked <= ended)
        assert own in [state for _, _, state in self.states[first : last + 1]]


def state_of(data: Path) -> State:
    """What a restored folder holds, each original read and compared."""
    with Client(data, model="color") as client:
        rows = list(client.list())
        for row in rows[:5]:
            found = client.similar(row.id, k=1).matches
            assert not found or found[0].score <= 1
            assert client.thumbnail(row.id)
        assert client.check().findings == []
    for row in rows:
        (original,) = (data / "images").glob(f"*/*/{row.sha256}.*")
        assert hashlib.sha256(original.read_bytes()).hexdigest() == row.sha256
    return {row.id: (row.sha256, row.metadata) for row in rows}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "data", backup_dir=tmp_path / "of_the_service")
    yield made
    made.close()


@pytest.mark.timeout(1200)
def test_a_backup_under_load_is_the_service_at_one_moment(server, tmp_path):
    folder, tar, own = tmp_path / "folder", tmp_path / "b.tar", tmp_path / "of_the_service"
    with HttpClient(server.url, ADMIN_KEY) as client, ThreadPoolExecutor(3) as pool:

        def job() -> None:
            done = client.wait_for_job(client.begin_backup().id)
            assert (done.state, done.errors) == ("done", 0), done.message

        kinds: list[tuple[Path, Callable[[], object]]] = [
            (folder, lambda: run("backup", folder, "--data-dir", server.data_dir)),
            (tar, lambda: client.backup(tar)),
            (own, job),
        ]
        workers, stop = [Worker(server, name) for name in "abc"], threading.Event()
        tasks = [pool.submit(worker.run, stop) for worker in workers]
        made: list[tuple[Path, str | None, float, float]] = []
        try:
            wait_for(lambda: all(len(worker.states) > 5 for worker in workers))
            for number in range(LOADED):
                for place, make in kinds:
                    began = time.monotonic()
                    make()
                    made.append((place, None, began, time.monotonic()))
                    restore(place, tmp_path / f"new-{number}-{place.name}")
        finally:
            stop.set()
            for task in tasks:
                task.result()
    for at, (place, _, began, ended) in enumerate(made):
        found = state_of(tmp_path / f"new-{at // len(kinds)}-{place.name}")
        assert found
        for worker in workers:
            worker.check(found, began, ended)


def killed(words: list[str], begun: Callable[[], object], chance: random.Random) -> None:
    """Runs a command, and kills it a moment after it began to work."""
    with subprocess.Popen(words, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not begun():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.06))
        process.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "data"
    fill(folder, *range(150))
    return folder


@pytest.mark.timeout(1200)
def test_a_killed_backup_spoils_no_earlier_one(data, tmp_path, chance):
    for place in (tmp_path / "folder", tmp_path / "b.tar"):
        made = backup(data, place)
        for number in range(ROUNDS):
            versions = tmp_path / "folder" / "versions"
            before = len(list(tmp_path.glob(".lookalike-backup-*"))) + len(list(versions.glob("*")))

            def begun(versions: Path = versions, before: int = before) -> bool:
                left = len(list(tmp_path.glob(".lookalike-backup-*")))
                return left + len(list(versions.glob("*"))) > before

            for path in (tmp_path / "folder").glob("images/*/*/*0*.png"):
                path.unlink()  # so that there is something to copy; the version before lacks it
            killed(command("backup", place, "--data-dir", data), begun, chance)
            if place.suffix == ".tar":
                restored = restore(place, tmp_path / f"new-{number}")
                assert restored.collections == made.collections
        backup(data, place)
        assert not list(tmp_path.glob(".lookalike-backup-*"))
        restore(place, tmp_path / f"new-{place.name}")
        assert answers(tmp_path / f"new-{place.name}") == answers(data)


@pytest.mark.timeout(1200)
def test_a_killed_restore_is_never_taken_for_whole(data, tmp_path, chance):
    expected = answers(data)
    for place in (tmp_path / "folder", tmp_path / "b.tar"):
        backup(data, place)
        for number in range(ROUNDS):
            new = tmp_path / f"new-{place.name}-{number}"
            killed(command("restore", place, new), (new / RESTORING).exists, chance)
            if (new / RESTORING).exists():
                with pytest.raises(DataFolderError, match="half of a backup"):
                    Client(new, model="color")
                restore(place, new)
            elif not (new / "catalog.db").exists():
                restore(place, new)
            assert answers(new) == expected
            shutil.rmtree(new)


def test_a_job_that_was_killed_goes_on(server, tmp_path):
    for number in range(40):
        server.http.post("/index", files=[("files", (f"{number}.png", picture(number)))])
    own = tmp_path / "of_the_service"
    with HttpClient(server.url, ADMIN_KEY) as client:
        job = client.begin_backup()
        wait_for(lambda: list(own.glob("versions/*")))
        server.kill()
        with pytest.raises(BackupError):
            restore(own, tmp_path / "half")
        server.restart()
        assert client.wait_for_job(job.id).state == "done"
        assert len(list(own.glob("versions/*"))) == 1
        restore(own, tmp_path / "new")
    assert len(state_of(tmp_path / "new")) == 40
