"""kill -9 of a real service amid everything that changes what it holds.

Several clients index, replace, change and delete pictures, one or many at once, drop a collection,
send archives, move collections to another model and make backups, while small limits keep building
indexes. The test keeps a model of what each id may be. After each restart, what was acknowledged
is there, bytes and all.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lookalike.models.head import save_head
from tests.servers import LOOKALIKE, Server, clean_environment
from tests.services.archive_maker import write_archive
from tests.services.moving import make_head
from tests.test_crash import picture
from tests.waiting import wait_for

ROUNDS = int(os.environ.get("LOOKALIKE_TEST_KILLS", "2"))
"""How often the service is killed; 200 for a thorough run."""

WHO = "admin key"
KINDS = {"index", "replace", "patch", "delete", "delete many", "update many", "archive"}
"""Of changes, before the first kill."""

IDS = 60  # of each client
ARCHIVES = 4
CHECK_EVERY = 10  # rounds
ARCHIVE_PICTURES = 15

SMALL_LIMITS = """
import sys
from functools import partial
from lookalike.store.local.index import policy
limits = policy.Limits(
    min_rows=20, saved_changes=20, compacted_rows=10, scored_rows=10, small_rows=10,
    inline_numbers=4000, calibrated_k=(10,), retry_s=1.0, poll_s=0.5,
)
policy.IndexPolicy = partial(policy.IndexPolicy, limits=limits)
from lookalike.cli.main import run
run()
"""


class SmallLimits(Server):
    """A service whose indexes are built and compacted at a few dozen pictures."""

    command = (sys.executable, "-c", SMALL_LIMITS)


Key = tuple[str, str]  # collection, id


@dataclass(frozen=True)
class Stored:
    """What stands under an id."""

    number: int  # the picture, as `picture` makes it
    metadata: str  # canonical JSON


@dataclass
class Model:
    """What each id may be: one state once its last change was acknowledged, else one of two."""

    states: dict[Key, set[Stored | None]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)  # changes acknowledged, by kind
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def now(self, key: Key) -> Stored | None:
        (state,) = self.states.get(key, {None})
        return state

    def attempt(
        self,
        kind: str,
        after: Mapping[Key, Stored | None],
        http: httpx2.Client,
        method: str,
        path: str,
        **options: Any,
    ) -> bool:
        """Makes a change whose outcome is `after`; False once the service is dead."""
        for key, state in after.items():
            self.states[key] = {*self.states.get(key, {None}), state}
        try:
            answer = http.request(method, path, **options)
        except httpx2.HTTPError:
            return False
        assert answer.is_success, (kind, answer.text)
        for key, state in after.items():
            self.states[key] = {state}
        self.done[kind] += 1
        return True


def as_json(**metadata: Any) -> str:
    return json.dumps(metadata, sort_keys=True)


class Client(ABC):
    """Changes pictures of its own until the service is dead."""

    def __init__(self, model: Model, chance: random.Random) -> None:
        self.model, self.chance = model, chance

    def work(self, server: Server, stop: threading.Event) -> None:
        key = server.http.headers
        with httpx2.Client(base_url=server.url, headers=key, trust_env=False) as self.http:
            while not stop.is_set() and self.change():
                pass

    @abstractmethod
    def change(self) -> bool:
        """Makes one change; False once the service is dead."""


class PictureClient(Client):
    """Indexes, replaces, changes and deletes pictures of one collection, and drops `side`."""

    def __init__(self, model: Model, chance: random.Random, collection: str) -> None:
        super().__init__(model, chance)
        self.collection = collection
        self.names = [f"{collection}-{number}" for number in range(IDS)]

    def change(self) -> bool:
        name = self.chance.choice(self.names)
        stored = self.model.now((self.collection, name))
        kinds = ["put", "put", "put", "patch", "delete", "delete many", "update many", "drop"]
        kind = self.chance.choice(kinds)
        if stored is None or kind == "put":
            return self.put(self.chance.sample(self.names, self.chance.randint(1, 12)))
        if kind == "patch":
            return self.patch(name, stored)
        if kind == "delete":
            return self.attempt("delete", {name: None}, "DELETE", f"/images/{name}")
        if kind in {"delete many", "update many"}:
            return self.change_many(kind, self.chance.sample(self.names, 8))
        if self.collection == "side" and self.chance.random() < 0.1:
            path = f"/collections/{self.collection}"
            return self.attempt("drop", dict.fromkeys(self.names), "DELETE", path)
        return True

    def put(self, names: Sequence[str]) -> bool:
        replaces = any(self.model.now((self.collection, name)) for name in names)
        new = {name: Stored(next(self.model.numbers), as_json(of=name)) for name in names}
        return self.attempt(
            "replace" if replaces else "index",
            new,
            "POST",
            "/index",
            files=[("files", (f"{one.number}.png", picture(one.number))) for one in new.values()],
            data={"ids": names, "metadata": json.dumps([{"of": name} for name in names])},
        )

    def patch(self, name: str, stored: Stored) -> bool:
        value = next(self.model.numbers)
        metadata = as_json(**json.loads(stored.metadata) | {"value": value})
        return self.attempt(
            "patch",
            {name: Stored(stored.number, metadata)},
            "PATCH",
            f"/images/{name}",
            json={"metadata": {"value": value}},
        )

    def change_many(self, kind: str, names: Sequence[str]) -> bool:
        if kind == "delete many":
            gone = dict.fromkeys(names)
            return self.attempt(kind, gone, "POST", "/images/delete", json={"ids": names})
        value, after = next(self.model.numbers), dict[str, Stored | None]()
        for name in names:
            if stored := self.model.now((self.collection, name)):
                metadata = as_json(**json.loads(stored.metadata) | {"value": value})
                after[name] = Stored(stored.number, metadata)
        body = {"filter": {"of": {"in": names}}, "metadata": {"value": value}}
        return self.attempt(kind, after, "POST", "/images/update", json=body)

    def attempt(
        self, kind: str, after: Mapping[str, Stored | None], method: str, path: str, **sent: Any
    ) -> bool:
        keyed = {(self.collection, name): state for name, state in after.items()}
        if method == "POST":
            sent["json" if "json" in sent else "data"]["collection"] = self.collection
        elif kind != "drop":
            sent["params"] = {"collection": self.collection}
        return self.model.attempt(kind, keyed, self.http, method, path, **sent)


def archive_numbers(which: int) -> range:
    return range(10**6 + which * ARCHIVE_PICTURES, 10**6 + (which + 1) * ARCHIVE_PICTURES)


class JobClient(Client):
    """Sends archives, whose pictures are known by their bytes, and moves collections.

    The jobs are looked at after the restart, by `check`.
    """

    def __init__(self, model: Model, chance: random.Random, folder: Path) -> None:
        super().__init__(model, chance)
        self.folder = folder

    def change(self) -> bool:
        time.sleep(self.chance.uniform(0, 0.2))
        weights = {self.send: 6, self.move: 4, self.back_up: 2}
        (make,) = self.chance.choices(list(weights), list(weights.values()))
        return make()

    def back_up(self) -> bool:
        return self.model.attempt("backup", {}, self.http, "POST", "/backup")

    def move(self) -> bool:
        collection = self.chance.choice(["main", "side", "archives"])
        head = self.chance.choice([None, str(self.folder / "head.safetensors")])
        try:
            answer = self.http.post(f"/collections/{collection}/reembed", json={"head": head})
        except httpx2.HTTPError:
            return False
        assert answer.status_code in {202, 404}, answer.text  # not made yet, or dropped
        self.model.done["reembed"] += answer.status_code == 202
        return True

    def send(self) -> bool:
        which, value = self.chance.randrange(ARCHIVES), next(self.model.numbers)
        metadata = as_json(value=value)
        new: dict[Key, Stored | None] = {
            ("archives", hashlib.sha256(picture(number)).hexdigest()[:16]): Stored(number, metadata)
            for number in archive_numbers(which)
        }
        archive = (self.folder / f"{which}.zip").read_bytes()
        return self.model.attempt(
            "archive",
            new,
            self.http,
            "POST",
            "/index/archive",
            data={"collection": "archives", "metadata": metadata},
            files={"file": (f"{which}.zip", archive)},
        )


def wait_for_jobs(server: Server) -> None:
    def unfinished() -> list[dict[str, Any]]:
        jobs = server.http.get("/jobs", params={"limit": 1000}).json()["jobs"]
        for job in jobs:
            failed = job["state"] in {"failed", "canceled"} or job["errors"]
            assert not failed or "'side'" in job["message"], job  # it was dropped
        return [job for job in jobs if job["state"] in {"queued", "running"}]

    wait_for(lambda: not unfinished(), state=unfinished)


def stored_in(server: Server) -> dict[Key, dict[str, Any]]:
    found: dict[Key, dict[str, Any]] = {}
    for collection in server.http.get("/collections").json()["collections"]:
        cursor: str | None = ""
        count = 0
        while cursor is not None:
            query: dict[str, Any] = {"collection": collection["name"], "limit": 40}
            query |= {"cursor": cursor} if cursor else {}
            page = server.http.get("/images", params=query).json()
            for image in page["images"]:
                key = (collection["name"], image["id"])
                assert key not in found, "listed twice"
                found[key] = image
                count += 1
            cursor = page["next_cursor"]
        assert count == collection["count"]
    return found


def check(server: Server, model: Model) -> None:
    """Every id is in a state that it may be in, and all of it can be had and found."""
    wait_for_jobs(server)
    images = stored_in(server)
    assert set(images) <= set(model.states)
    for key, allowed in model.states.items():
        image = images.get(key)
        if image is None:
            assert None in allowed, f"{key} is lost; {allowed}"
            model.states[key] = {None}
            continue
        content = server.http.get(image["image_url"]).content
        metadata = as_json(**image["metadata"])
        match = [
            one
            for one in allowed
            if one and one.metadata == metadata and picture(one.number) == content
        ]
        assert match, f"{key} is {image}; {allowed}"
        model.states[key] = {match[0]}
        query = {"k": 1, "collection": key[0]}
        answer = server.http.post("/search", data=query, files={"file": content})
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["matches"]
        assert (found["id"], found["score"] > 0.9999) == (key[1], True), (key, found)
    for key, allowed in model.states.items():
        if allowed == {None}:
            path = f"/images/{key[1]}"
            gone = server.http.get(path, params={"collection": key[0]})
            assert gone.status_code == 404


CALLS = {
    "index": "index",
    "replace": "index",
    "patch": "patch_image",
    "delete": "delete_image",
    "delete many": "delete_images",
    "update many": "update_images",
    "drop": "delete_collection",
    "archive": "index_archive",
    "backup": "begin_backup",
    "reembed": "reembed",
}


def check_audit(server: Server, done: Counter[str]) -> None:
    """Each change that was acknowledged is in the audit log."""
    entries: Counter[str] = Counter()
    query: dict[str, Any] = {"limit": 1000}
    while True:
        page = server.http.get("/audit", params=query).json()
        entries.update(
            one["call"] for one in page["entries"] if (one["outcome"], one["who"]) == ("done", WHO)
        )
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    acknowledged: Counter[str] = Counter()
    for kind, call in CALLS.items():
        acknowledged[call] += done[kind]
    assert entries >= acknowledged, (entries, acknowledged)


def lookalike(*words: str | Path) -> str:
    """Runs a command, which must end with 0."""
    done = subprocess.run(
        [LOOKALIKE, *words], capture_output=True, text=True, env=clean_environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_backup(server: Server, tmp_path: Path, number: int) -> None:
    """A backup of what the model says is restored elsewhere, and whole."""
    job = server.http.post("/backup").json()
    wait_for_jobs(server)
    assert server.http.get(f"/jobs/{job['id']}").json()["state"] == "done"
    there = tmp_path / f"restored-{number}"
    lookalike("restore", tmp_path / "backup", there)
    lookalike("check", "--data-dir", there, "--model", "color", "--repair")  # makes thumbnails
    with closing(sqlite3.connect(there / "catalog.db")) as catalog:
        (restored,) = catalog.execute("SELECT count(*) FROM images").fetchone()
    assert restored == len(stored_in(server))
    shutil.rmtree(there)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    save_head(make_head(7), tmp_path / "head.safetensors")
    for which in range(ARCHIVES):
        files = [(f"{n}.png", picture(n)) for n in archive_numbers(which)]
        write_archive(tmp_path / f"{which}.zip", files)
    settings = {"max_batch": 8, "index": "IVF1,SQ8", "backup_dir": tmp_path / "backup"}
    made = SmallLimits(tmp_path / "data", **settings)
    yield made
    made.close()


def has_worked(model: Model, tasks: Sequence[Future[None]], count: int) -> bool:
    """Whether so many changes and each of `KINDS` were acknowledged, or a client failed."""
    enough = model.done.total() >= count and set(model.done) >= KINDS
    return enough or any(task.done() for task in tasks)


@pytest.mark.timeout(7200)
def test_nothing_acknowledged_is_lost_amid_everything(
    server: Server, tmp_path: Path, chance: random.Random
) -> None:
    model, began = Model(), time.monotonic()
    for number in range(ROUNDS):
        stop = threading.Event()
        first, second, third = (random.Random(chance.randrange(2**32)) for _ in range(3))
        clients = [
            PictureClient(model, first, "main"),
            PictureClient(model, second, "side"),
            JobClient(model, third, tmp_path),
        ]
        with ThreadPoolExecutor(len(clients)) as pool:
            tasks = [pool.submit(one.work, server, stop) for one in clients]
            if number == 0 or chance.random() < 0.8:  # else it may die before anything is done
                wait_for(partial(has_worked, model, tasks, model.done.total() + 5))
            time.sleep(chance.uniform(0.05, 2.0))
            server.kill()
            stop.set()
            for task in tasks:
                task.result()
        server.restart()
        check(server, model)
        took = time.monotonic() - began
        print(f"round {number + 1}: {took:.0f} s, {dict(model.done)}", flush=True)
        if number % CHECK_EVERY == CHECK_EVERY - 1 or number == ROUNDS - 1:
            lookalike("check", "--data-dir", server.data_dir, "--model", "color")
            check_backup(server, tmp_path, number)
        facts = server.http.get("/info").json()["store"]["collections"].values()
        model.done["approximate"] += sum(one["type"] != "Flat" for one in facts)
    assert set(model.done) >= KINDS
    check_audit(server, model.done)
