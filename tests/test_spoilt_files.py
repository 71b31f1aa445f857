"""Files of a data folder that somebody spoilt: each is named, or heals, and no answer is wrong.

`LOOKALIKE_TEST_SPOILT_FILES` says how many files are spoilt, 16 if it is not set; each file in each
way from 160 on.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lookalike.api.main import create_app
from lookalike.config import Settings
from lookalike.errors import LookalikeError
from lookalike.models.head import save_head
from lookalike.records import utc_now
from lookalike.services.importing import Checkpoint
from lookalike.services.jobs import ARCHIVE_KIND
from lookalike.store.jobs import Job, JobState, JobStore
from tests.api.conftest import picture
from tests.services.archive_maker import write_archive
from tests.services.moving import make_head
from tests.settings import make_settings
from tests.store.test_damage import NoTraces, traces  # noqa: F401 - a fixture
from tests.waiting import wait_for

FILES_SPOILT = int(os.environ.get("LOOKALIKE_TEST_SPOILT_FILES", "16"))
JOB, ARCHIVE = "0123456789abcdef", "f" * 32


def settings_of(folder: Path) -> Settings:
    return make_settings(data_dir=folder, model="color")


def admin(folder: Path) -> dict[str, str]:
    return {"X-API-Key": (folder / "admin.key").read_text().strip()}


def upload(client: TestClient, key: dict[str, str], number: int, **fields: Any) -> int:
    data = {"ids": f"p{number}", **fields}
    file = ("a.png", picture("mug", number % 8, number // 8))
    return client.post("/index", headers=key, files={"files": file}, data=data).status_code


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collection under a head, a key, an import that did not end, and trash."""
    top = tmp_path_factory.mktemp("intact")
    folder, head = top / "data", top / "head.safetensors"
    save_head(make_head(7), head)
    with TestClient(create_app(settings_of(folder))) as client:
        key = admin(folder)
        for number in range(12):
            named = {"collection": "headed"} if number % 3 == 0 else {}
            assert upload(client, key, number, **named) == 201
        moved = client.post("/collections/headed/reembed", headers=key, json={"head": str(head)})
        assert moved.status_code == 202, moved.text
        job = moved.headers["location"]
        wait_for(lambda: client.get(job, headers=key).json()["state"] == "done")
        made = client.post("/keys", headers=key, json={"name": "one", "scope": "read"})
        assert made.status_code == 201, made.text
        assert client.delete("/images/p1", headers=key).status_code == 204
    with TestClient(create_app(settings_of(folder))) as client:  # with notes of before
        assert client.delete("/images/p2", headers=key).status_code == 204
    names = ["a.png", "b.png"]
    (folder / "imports").mkdir(exist_ok=True)
    write_archive(
        folder / "imports" / f"{ARCHIVE}.archive.zip",
        [(name, picture("lamp", n)) for n, name in enumerate(names)],
    ).rename(folder / "imports" / f"{ARCHIVE}.archive")
    Checkpoint(total=2).write(folder / "imports" / f"{JOB}.journal")
    day = folder / "trash" / "2026-01-01"
    day.mkdir(parents=True)
    (day / ".seen").write_text("2026-01-01\n")
    (day / "notes").write_text("taken")
    (folder / "unswept.old").write_bytes((folder / "unswept").read_bytes())
    return folder


def begin_import(folder: Path) -> None:
    """Puts a running import into `jobs.db`, as a crash leaves it."""
    parameters = {
        "collection": "imported",
        "on_conflict": "replace",
        "metadata": None,
        "folder_field": None,
        "archive": ARCHIVE,
        "filename": "some.zip",
    }
    now = utc_now()
    job = Job(id=JOB, kind=ARCHIVE_KIND, parameters=parameters, created_at=now, updated_at=now)
    store = JobStore(folder / "jobs.db")
    store.add(job)
    store.change(JOB, lambda job: replace(job, state=JobState.RUNNING))
    store.close()


FILES = (
    *("admin.key", "access.db", "jobs.db", "unswept", "unswept.old", ".lookalike", "lock.owner"),
    *("reserve", "lock", "heads/*.json", "heads/*.safetensors"),
    *(f"imports/{JOB}.journal", f"imports/{ARCHIVE}.archive"),
    *("index/*/manifest.json", "index/*/*/seqs", "index/*/*/vectors", "audit/*.jsonl"),
    *("trash/2026-01-01/.seen", "trash", "tmp", "imports", "heads", "index", "audit"),
)


def bits(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def other_json(chance: random.Random, data: bytes) -> bytes:
    """The same JSON with a value of another type somewhere, or some other JSON."""
    values: list[Any] = [None, -1, 1e300, "x", [], {}, [[1]], {"a": 1}, True, 10**30]
    try:
        held = json.loads(data)
    except ValueError:
        held = None
    if not isinstance(held, dict) or chance.random() < 0.2:
        return json.dumps(chance.choice(values)).encode()
    inner = held
    while isinstance(child := inner[name := chance.choice(sorted(inner))], dict) and child:
        if chance.random() < 0.3:
            break
        inner = child
    inner[name] = chance.choice(values)
    return json.dumps(held).encode()


KINDS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    lambda chance, data: data[: chance.randrange(len(data) or 1)],  # cut
    lambda _, data: bytes(len(data)),  # zeroed
    bits,
    lambda chance, data: chance.randbytes(len(data) + 100),  # foreign
    lambda *_: b"hello\r\n\xff\n",
    lambda *_: b"[" * 100_000,
    lambda *_: b"",
    other_json,
)
LINKS = ("a folder", "a broken link", "a loop of links", "missing")


def spoil(chance: random.Random, path: Path, kind: int) -> str:
    """Spoils a file, or puts a file where a folder should be."""
    if kind < len(KINDS):
        data = b"" if path.is_dir() else path.read_bytes()
        remove(path)
        path.write_bytes(KINDS[kind](chance, data))
        return f"{path.name}: way {kind}"
    remove(path)
    how = LINKS[kind - len(KINDS)]
    if how == "a folder":
        path.mkdir()
        (path / "something").write_text("of somebody")
    elif how != "missing":
        path.symlink_to("nowhere" if how == "a broken link" else path.name)
    return f"{path.name}: {how}"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def looks(client: TestClient, key: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """What can be asked; nothing of it may differ from what the intact folder answers."""
    for name in ("default", "headed"):
        query = {"file": ("q.png", picture("mug", 1))}
        answer = client.post("/search", files=query, data={"k": "20", "collection": name})
        yield name, answer
    for path in ("/images", "/images?collection=headed", "/images/p4/file", "/images/p4/thumbnail"):
        yield path, client.get(path)


OTHERS = ("/health/ready", "/info", "/jobs", "/keys", "/metrics", "/audit", "/collections")


def found(answer: Any) -> Any:
    """What an answer holds that may not differ."""
    if "json" not in answer.headers["content-type"]:
        return answer.content
    held = answer.json()
    if "matches" in held:
        return [(match["id"], round(match["score"], 5)) for match in held["matches"]]
    return held


def refused(answer: Any) -> bool:
    """Whether an answer is an error that may come of a spoilt file."""
    return answer.status_code in {503, 409, 410, 401, 403}


@pytest.mark.timeout(max(180, 10 * FILES_SPOILT))
def test_a_spoilt_file_is_named_or_heals(
    intact: Path,
    tmp_path: Path,
    chance: random.Random,
    traces: NoTraces,  # noqa: F811
) -> None:
    key = admin(intact)
    reference = tmp_path / "reference"
    shutil.copytree(intact, reference)
    with TestClient(create_app(settings_of(reference))) as client:
        expected = {name: found(answer) for name, answer in looks(client, key)}
    assert len(expected["default"]) > 3, "there is something to find"
    cases = list(itertools.product(FILES, range(len(KINDS) + len(LINKS))))
    chance.shuffle(cases)
    wrong = []
    for number, (pattern, kind) in enumerate(cases[:FILES_SPOILT]):
        folder = tmp_path / str(number)
        shutil.copytree(intact, folder)
        begin_import(folder)
        path = chance.choice(sorted(folder.glob(pattern)))
        what = spoil(chance, path, kind)
        try:
            work_on(folder, key, expected, spoilt=path.name)
        except LookalikeError as exc:
            if path.name not in str(exc):
                wrong.append(f"{what}: {type(exc).__name__} names no file: {exc}")
        except Exception as exc:
            wrong.append(f"{what}: {type(exc).__name__}: {exc}")
        wrong += [f"{what}: {text.splitlines()[-1]}" for text in traces.seen]
        traces.seen.clear()
        shutil.rmtree(folder)
    assert not wrong, "\n\n".join(wrong)


def work_on(folder: Path, key: dict[str, str], expected: dict[str, Any], *, spoilt: str) -> None:
    """Raises AssertionError if a service on the folder answers wrongly."""
    with TestClient(create_app(settings_of(folder)), raise_server_exceptions=False) as client:
        key = admin(folder) if (folder / "admin.key").is_file() else key
        for name, answer in looks(client, key):
            told = f"{name}: {answer.status_code} {answer.text[:100]}"
            assert answer.status_code == 200 or refused(answer), told
            if answer.status_code == 200 and not name.startswith("/images?"):
                assert name == "/images" or found(answer) == expected[name], told
        for name in OTHERS:
            answer = client.get(name, headers=key)
            assert answer.status_code == 200 or refused(answer), f"{name}: {answer.text}"
        assert upload(client, key, 50) in {201, 503}
        if spoilt != "jobs.db":
            job = wait_for(lambda: ended(client, key))
            assert "error of the program" not in job["message"], job
            if job["state"] == "done" and not spoilt.endswith(".archive"):
                stored = client.get("/images?collection=imported", headers=key).json()
                assert len(stored["images"]) == 2, job


def ended(client: TestClient, key: dict[str, str]) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/jobs/{JOB}", headers=key).json()
    return {} if job["state"] in {"queued", "running"} else job
