"""Data folders whose files were damaged: every answer names the damage, and none is an error 500.

`LOOKALIKE_TEST_DAMAGED_FOLDERS` says how many folders are damaged, 8 if it is not set.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from lookalike.api.main import create_app
from lookalike.config import Settings
from lookalike.errors import LookalikeError
from tests.api.conftest import ADMIN, ADMIN_KEY, picture
from tests.settings import make_settings

FOLDERS = int(os.environ.get("LOOKALIKE_TEST_DAMAGED_FOLDERS", "8"))
FILES = ("catalog.db", "catalog.db", "catalog.db", "catalog.db-wal", "jobs.db", "access.db")
INDEX_FILES = ("manifest.json", "seqs", "vectors", "candidates")


def settings_of(folder: Path) -> Settings:
    return make_settings(data_dir=folder, model="color", admin_key=ADMIN_KEY)


def upload(client: TestClient, number: int, data: bytes, **fields: Any) -> httpx2.Response:
    return client.post(
        "/index",
        headers=ADMIN,
        files={"files": (f"folder/{number}.png", data)},
        data={"ids": f"p{number}", **fields},
    )


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two collections, jobs and a saved index, and rows in the write-ahead log."""
    folder = tmp_path_factory.mktemp("intact") / "data"
    with TestClient(create_app(settings_of(folder))) as client:
        for number in range(24):
            fields = {"metadata": f'{{"n": {number}, "label": "mug", "text": "{"x" * 300}"}}'}
            more = {"collection": "other"} if number % 4 == 3 else {}
            answer = upload(
                client, number, picture("mug", number % 8, number // 8), **fields, **more
            )
            assert answer.status_code == 201, answer.text
        assert client.post("/collections/other/reembed", headers=ADMIN).status_code == 202
    with TestClient(create_app(settings_of(folder))) as client:
        upload(client, 99, picture("teapot"), metadata='{"n": 99}')
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)  # as a crash would leave it
    return copy


def flip(chance: random.Random, data: bytearray) -> None:
    for _ in range(chance.choice((1, 3, 20, 200))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def scramble_page(chance: random.Random, data: bytearray) -> None:
    start = chance.randrange(max(1, len(data) // 4096)) * 4096
    end = min(start + chance.choice((16, 100, 4096)), len(data))
    data[start:end] = chance.randbytes(end - start)


def zero_page(chance: random.Random, data: bytearray) -> None:
    start = chance.randrange(max(1, len(data) // 4096)) * 4096
    data[start : start + 4096] = bytes(min(4096, len(data) - start))


def exchange_pages(chance: random.Random, data: bytearray) -> None:
    pages = len(data) // 4096
    if pages > 1:
        one, two = (chance.randrange(pages) * 4096 for _ in range(2))
        held = data[one : one + 4096]
        data[one : one + 4096] = data[two : two + 4096]
        data[two : two + 4096] = held


def change_texts(chance: random.Random, data: bytearray) -> None:
    """Other letters in what rows hold, which SQLite does not notice."""
    for word in (b'{"label"', b"image/png", b"torchvision", b'"n":', b"folder/", b"2026-"):
        at = data.find(word, chance.randrange(len(data)))
        if at >= 0:
            data[at : at + 4] = chance.randbytes(4)


def truncate(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data)) :]


def empty(_: random.Random, data: bytearray) -> None:
    data.clear()


def replace_all(chance: random.Random, data: bytearray) -> None:
    data[:] = chance.randbytes(len(data))


KINDS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    flip,
    flip,
    scramble_page,
    scramble_page,
    zero_page,
    exchange_pages,
    change_texts,
    change_texts,
    truncate,
    empty,
    replace_all,
)


def damage(chance: random.Random, folder: Path) -> str:
    """Damages one file in one way; says which and how."""
    if chance.random() < 0.2:
        found = sorted(p for p in (folder / "index").rglob("*") if p.name in INDEX_FILES)
    else:
        found = [folder / chance.choice(FILES)]
    path = chance.choice(found)
    kind = chance.choice(KINDS)
    data = bytearray(path.read_bytes() if path.exists() else b"")
    if data:
        kind(chance, data)
        with path.open("r+b") as file:  # in place: a service may have it open
            file.write(data)
            file.truncate()
    return f"{kind.__name__} of {path.relative_to(folder)}"


def calls(client: TestClient) -> Iterator[httpx2.Response]:
    """One call of each kind."""
    query = {"file": ("q.png", picture("mug", 1))}
    for path in (
        *("/health/ready", "/images", "/images?collection=other&limit=5", "/images/p1"),
        *("/images/p1/file", "/images/p1/thumbnail", "/images/p1/similar", "/images/p99"),
        *("/collections", "/collections/other/vectors", "/jobs", "/info", "/metrics"),
        *('/images?filter={"n": {"gte": 3}}', "/duplicates?kind=exact", "/duplicates?kind=near"),
    ):
        yield client.get(path, headers=ADMIN)
    yield client.post("/search", files=query, data={"k": 30})
    yield client.post("/search", files=query, data={"filter": '{"label": "mug"}'})
    yield client.post("/search", files=query, data={"collection": "other"})
    yield upload(client, 1, picture("mug", 1), metadata='{"n": 5}')
    yield upload(client, 2, picture("lamp", 3))
    yield upload(client, 100, picture("clock"), collection="new")
    yield client.patch("/images/p4", headers=ADMIN, json={"metadata": {"n": 1}})
    yield client.delete("/images/p5", headers=ADMIN)
    yield client.post("/collections/other/reembed", headers=ADMIN)
    yield client.delete("/collections/other", headers=ADMIN)


class NoTraces(logging.Handler):
    """Keeps what was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(logging.Formatter().format(record))


@pytest.fixture
def traces() -> Iterator[NoTraces]:
    handler = NoTraces()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.mark.timeout(max(120, 10 * FOLDERS))
def test_damage_is_named_whatever_is_damaged(
    intact: Path, tmp_path: Path, chance: random.Random, traces: NoTraces
) -> None:
    codes: dict[str, int] = {}
    for number in range(FOLDERS):
        folder = tmp_path / str(number)
        shutil.copytree(intact, folder)
        running, what, refused = number % 3 == 2, "", None
        if not running:
            what = damage(chance, folder)
        try:
            with TestClient(
                create_app(settings_of(folder)), raise_server_exceptions=False
            ) as client:
                answers = calls(client)
                if running:
                    next(answers)
                    what = damage(chance, folder) + " under a running service"
                for answer in answers:
                    said = answer.json()["code"] if answer.status_code >= 400 else "ok"
                    codes[said] = codes.get(said, 0) + 1
                    assert answer.status_code != 500, f"{number}: {what}: {answer.request.url}"
        except LookalikeError as exc:
            refused = exc
            codes[f"start: {exc.code}"] = codes.get(f"start: {exc.code}", 0) + 1
        if refused is not None:
            named = ".db is damaged" in str(refused) or str(folder) in str(refused)
            assert named, f"{what}: {refused}"
        assert not traces.seen, f"{number}: {what}: {traces.seen[0]}"
        shutil.rmtree(folder)
    print(codes)
