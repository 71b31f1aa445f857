"""A data folder that is taken away from under a running service: red, no change, no error 500."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from lookalike.config import Settings
from tests.api.conftest import ADMIN, ADMIN_KEY, Clients, picture
from tests.settings import make_settings

LARGE = picture() + bytes(1_200_000)  # is spooled to the data folder


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@pytest.fixture
def mounted(mount: Path, clients: Clients) -> TestClient:
    settings = make_settings(data_dir=mount / "data", model="color", admin_key=ADMIN_KEY)
    client = clients(settings)
    client.app.state.parts.services.canary.kept_s = 0.0  # type: ignore[attr-defined]
    return filled(client)


def filled(client: TestClient) -> TestClient:
    for number, label in enumerate(("mug", "teapot", "clock")):
        assert send(client, number, picture(label)).status_code == 201
    assert client.get("/health/ready").status_code == 200
    return client


def send(client: TestClient, number: int, data: bytes) -> httpx2.Response:
    files, data_ = {"files": (f"{number}.png", data)}, {"ids": f"p{number}"}
    return client.post("/index", headers=ADMIN, files=files, data=data_)


def changes(client: TestClient) -> Iterator[httpx2.Response]:
    yield send(client, 1, picture("lamp"))
    yield send(client, 7, LARGE)
    yield client.patch("/images/p1", headers=ADMIN, json={"metadata": {"n": 1}})
    yield client.delete("/images/p2", headers=ADMIN)
    yield client.delete("/collections/default", headers=ADMIN)
    yield client.post("/collections/default/reembed", headers=ADMIN)


def reads(client: TestClient) -> Iterator[httpx2.Response]:
    yield client.post("/search", files={"file": ("q.png", picture())})
    yield client.get("/images")
    yield client.get("/info")
    yield client.get("/images/p0/similar")


def assert_refuses(client: TestClient, why: str) -> None:
    ready = client.get("/health/ready")
    assert ready.status_code == 503
    assert why in ready.json()["detail"]
    for answer in changes(client):
        problem = answer.json()
        if "items" in problem:  # several pictures in one request
            assert {one["error"]["code"] for one in problem["items"]} <= CODES
        elif answer.status_code != 202:  # jobs.db alone may still be there
            assert answer.status_code == 503, f"{answer.request.url}: {answer.text}"
            assert problem["code"] in CODES
    for answer in reads(client):
        assert answer.status_code in {200, 503}, f"{answer.request.url}: {answer.text}"
    large = client.post("/search", files={"file": ("q.png", LARGE)})
    assert large.status_code in {200, 503}, large.text


CODES = {"data_folder_unusable", "storage_error"}


@pytest.mark.parametrize("take", ["move", "delete", "replace", "delete the catalog"])
def test_a_folder_that_is_taken_away_is_noticed(
    client: TestClient, settings: Settings, take: str
) -> None:
    client.app.state.parts.services.canary.kept_s = 0.0  # type: ignore[attr-defined]
    filled(client)
    folder = settings.data_dir
    aside = folder.with_name("aside")
    ways: dict[str, Callable[[], object]] = {
        "move": lambda: folder.rename(aside),
        "delete": lambda: shutil.rmtree(folder),
        "replace": lambda: (folder.rename(aside), shutil.copytree(aside, folder)),
        "delete the catalog": (folder / "catalog.db").unlink,
    }
    ways[take]()
    assert_refuses(client, "was moved, deleted, replaced or unmounted")
    if take in {"move", "delete"}:
        assert not folder.exists(), "nothing is made anew in its place"
    if aside.exists():
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        assert client.get("/health/ready").status_code == 200
        assert [one["id"] for one in client.get("/images").json()["images"]] == ["p0", "p1", "p2"]
        assert send(client, 8, picture("lamp")).status_code == 201
        found = client.post("/search", files={"file": ("q.png", picture("lamp"))}, data={"k": 1})
        assert found.json()["matches"][0]["id"] == "p8"


def test_a_disk_that_is_unmounted_is_noticed(mounted: TestClient, mount: Path) -> None:
    subprocess.run(["umount", "-l", str(mount)], check=True)
    assert_refuses(mounted, "was moved, deleted, replaced or unmounted")
    assert list(mount.iterdir()) == []


def test_a_disk_that_is_made_read_only_is_noticed(mounted: TestClient, mount: Path) -> None:
    for how in (["--bind", str(mount), str(mount)], ["-o", "remount,bind,ro", str(mount)]):
        subprocess.run(["mount", *how], check=True)
    assert list((mount / "data").iterdir())
    assert_refuses(mounted, "can no longer be written to")
    subprocess.run(["umount", "-l", str(mount)], check=True)
    assert mounted.get("/health/ready").status_code == 200
    assert send(mounted, 8, picture("lamp")).status_code == 201
