"""Originals and thumbnails whose bytes changed on the disk: noticed, never served, healed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lookalike.config import Settings
from lookalike.errors import StorageError
from lookalike.services.checks import OriginalsCheck
from tests.api.conftest import ADMIN, picture
from tests.waiting import wait_for

DATA = picture()
Damage = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path) -> None:
    path.write_bytes(picture("teapot", 1))


def the_file(settings: Settings, kind: str) -> Path:
    (path,) = (one for one in (settings.data_dir / kind).rglob("*") if one.is_file())
    return path


def send(client: TestClient, data: bytes = DATA) -> dict[str, Any]:
    answer = client.post("/index", headers=ADMIN, files={"files": ("a.png", data)})
    (item,) = answer.json()["items"]
    return item


@pytest.mark.parametrize("damage", [flip, truncate, zero, empty, exchange])
def test_a_damaged_original_is_not_served_and_is_healed_by_the_same_bytes(
    client: TestClient, settings: Settings, damage: Damage
) -> None:
    image_id = send(client)["id"]
    thumbnail = client.get(f"/images/{image_id}/thumbnail").content
    damage(the_file(settings, "images"))
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = client.get(f"/images/{image_id}/file", headers=headers)
        assert answer.status_code == 410
        assert answer.json()["code"] == "original_damaged"
        assert "Index the picture again" in answer.json()["detail"]
    assert client.get(f"/images/{image_id}/thumbnail").content == thumbnail
    assert len(client.get("/info").json()["originals"]["damaged"]) == 1
    assert "lookalike_originals_damaged 1.0" in client.get("/metrics").text
    assert send(client)["status"] == "unchanged"
    assert client.get(f"/images/{image_id}/file").content == DATA
    assert client.get("/info").json()["originals"]["damaged"] == []


@pytest.mark.parametrize("damage", [flip, truncate, zero, empty, exchange])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_thumbnail_is_made_again(
    client: TestClient, settings: Settings, damage: Damage, sealed: bool
) -> None:
    image_id = send(client)["id"]
    before = client.get(f"/images/{image_id}/thumbnail").content
    path = the_file(settings, "thumbnails")
    if not sealed:
        path.write_bytes(before)  # as older versions wrote it
        assert client.get(f"/images/{image_id}/thumbnail").content == before
        if damage is flip:
            pytest.skip("only its ends are looked at")
    damage(path)
    answer = client.get(f"/images/{image_id}/thumbnail")
    assert answer.status_code == 200
    assert answer.content == before
    assert Image.open(io.BytesIO(answer.content)).size == (96, 72)


def test_a_thumbnail_that_cannot_be_made_again_says_why(
    client: TestClient, settings: Settings
) -> None:
    image_id = send(client)["id"]
    flip(the_file(settings, "images"))
    the_file(settings, "thumbnails").unlink()
    answer = client.get(f"/images/{image_id}/thumbnail")
    assert (answer.status_code, answer.json()["code"]) == (410, "original_damaged")


def test_a_damaged_original_is_found_in_the_background(
    client: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    services = cast("Any", client.app).state.parts.services
    send(client)
    other = send(client, picture("teapot", 1))["id"]
    kept = [one for one in (settings.data_dir / "images").rglob("*") if one.is_file()]
    broken = next(one for one in kept if not one.name.startswith(other))
    check = OriginalsCheck(services.files, busy=1.0, every_s=0.01)
    try:
        check.begin()
        wait_for(lambda: check.rounds and check.checked >= 2)
        assert check.damaged == []
        flip(broken)
        wait_for(lambda: check.damaged == [str(broken)])
        assert f"{broken} is damaged" in caplog.text
        assert caplog.text.count("is damaged") == 1
        client.delete(f"/images/{broken.stem[:16]}", headers=ADMIN)
        broken.unlink()
        assert check.damaged == []
    finally:
        check.close()


def test_a_round_that_failed_is_begun_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = cast("Any", client.app).state.parts.services
    send(client)
    verify, begun = services.files.verify, list[int]()

    def fails_at_first() -> Iterator[int]:
        begun.append(1)
        if len(begun) == 1:
            raise StorageError("the disk went away")
        yield from verify()

    monkeypatch.setattr(services.files, "verify", fails_at_first)
    check = OriginalsCheck(services.files, busy=1.0, every_s=0.01)
    check._worker.retry_s = 0.01
    try:
        check.begin()
        wait_for(lambda: check.rounds)
        assert check.checked >= 1
        assert len(begun) >= 2
    finally:
        check.close()


def test_a_folder_that_may_not_be_read_is_no_damage(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = send(client)["id"]
    kept, real = the_file(settings, "images"), Path.open

    def refuse(path: Path, *mode: Any, **how: Any) -> Any:
        if path == kept:
            raise PermissionError(13, "Permission denied")
        return real(path, *mode, **how)

    monkeypatch.setattr(Path, "open", refuse)
    answer = client.get(f"/images/{image_id}/file")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_error")
    assert client.get("/info").json()["originals"]["damaged"] == []


def test_a_sector_that_cannot_be_read_is_damage(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = send(client)["id"]

    def fail(_: Any) -> str:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("lookalike.files.disk.sha256_of", fail)
        answer = client.get(f"/images/{image_id}/file")
    assert (answer.status_code, answer.json()["code"]) == (410, "original_damaged")
    assert client.get(f"/images/{image_id}/file").content == DATA
