"""kill -9 of a real service while it indexes an archive, a folder, and a manifest."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server
from tests.services.archive_maker import write_archive
from tests.test_crash import picture
from tests.test_reembed_crash import ended
from tests.waiting import wait_for

COUNT = 500
KILLS = 2
DELETED = 5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "data", max_batch=4, import_dirs=tmp_path / "mnt")
    yield made
    made.close()


def rows(server: Server) -> int:
    """How many pictures a dead service has."""
    with closing(sqlite3.connect(server.data_dir / "catalog.db")) as catalog:
        (count,) = catalog.execute("SELECT count(*) FROM images").fetchone()
        return int(count)


def stored(server: Server) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    page: dict[str, Any] = {"next_cursor": ""}
    while (cursor := page["next_cursor"]) is not None:
        query = {"limit": 1000} | ({"cursor": cursor} if cursor else {})
        page = server.http.get("/images", params=query).json()
        for image in page["images"]:
            assert image["filename"] not in found, "twice"
            found[image["filename"]] = image
    return found


def begin(server: Server, tmp_path: Path, kind: str) -> str:
    """Begins the import; returns the address of its job."""
    files = [(f"d{n % 7}/{n:04}.png", picture(n)) for n in range(COUNT)]
    files.insert(10, ("d0/bad.png", b"no picture"))
    if kind in {"folder", "manifest"}:
        for name, data in files:
            path = tmp_path / "mnt" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if kind == "manifest":
        root = tmp_path / "mnt" / "shop.csv"
        rows = [f"p-{number},{name},{number}" for number, (name, _) in enumerate(files)]
        sent = {"file": ("shop.csv", "\n".join(["id,path,n", *rows]).encode())}
        answer = server.http.post("/index/manifest", files=sent, data={"root": str(root)})
    elif kind == "folder":
        answer = server.http.post("/index/folder", json={"path": str(tmp_path / "mnt")})
    else:
        path = write_archive(tmp_path / f"all.{kind}", files)
        answer = server.http.post("/index/archive", files={"file": (path.name, path.read_bytes())})
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


@pytest.mark.parametrize("kind", ["tar.gz", "folder", "manifest"])
def test_an_import_survives_kill_minus_9(server: Server, tmp_path: Path, kind: str) -> None:
    chance = random.Random(5)
    address = begin(server, tmp_path, kind)
    wait_for(lambda: server.http.get(address).json()["done"] >= 3 * DELETED)
    deleted = list(stored(server).values())[:DELETED]
    for image in deleted:
        assert server.http.delete(f"/images/{image['id']}").is_success
    interrupted = 0
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.02, 0.15))
        server.kill()
        interrupted += rows(server) < COUNT - DELETED
        server.restart()
    assert interrupted >= 1, "killed too late to be a test"
    job = ended(server, address)
    assert (job["state"], job["done"], job["total"]) == ("done", COUNT + 1, COUNT + 1), job
    assert job["errors"] == 1
    assert "d0/bad.png: " in job["error_texts"][0]
    images = stored(server)
    gone = {image["filename"] for image in deleted}
    assert set(images) == {f"{n:04}.png" for n in range(COUNT)} - gone
    for number in range(0, COUNT, 41):
        name = f"{number:04}.png"
        if name not in gone:
            assert server.http.get(images[name]["image_url"]).content == picture(number)
            found = server.http.post("/search", files={"file": picture(number)}, data={"k": 1})
            assert found.json()["matches"][0]["id"] == images[name]["id"]
    server.terminate()  # what the job needed goes right after its end
    assert list((server.data_dir / "imports").iterdir()) == []
