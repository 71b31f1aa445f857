"""A disk that fills up while the service indexes: 507, and it works again when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.servers import Server
from tests.test_crash import picture


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_answers_507_and_recovers(small_disk, tmp_path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\1" * 2_000_000)
    server = Server(small_disk / "data")
    try:
        stored = fill(server)
        assert stored
        for number in stored:
            assert server.http.get(f"/images/p{number}").status_code == 200
        assert server.http.post("/search", files={"file": noise(stored[0])}).status_code == 200
        large = noise(stored[0]) + bytes(2_000_000)
        assert server.http.post("/search", files={"file": large}).status_code == 200
        server.kill()
        server.restart()
        assert server.http.post("/search", files={"file": noise(stored[1])}).status_code == 200
        assert server.http.delete(f"/images/p{stored.pop()}").status_code == 204
        assert index(server, 9_999) == 507
        ballast.unlink()
        assert index(server, 10_000) == 201
        found = server.http.post("/search", files={"file": noise(10_000)}, data={"k": 1}).json()
        assert found["matches"][0]["id"] == "p10000"
        assert server.terminate() == 0
        server.restart()
        listed = server.http.get("/images", params={"limit": 1000}).json()["images"]
        assert {image["id"] for image in listed} == {f"p{n}" for n in [*stored, 10_000]}
    finally:
        server.close()


def noise(number: int) -> bytes:
    """A picture of some 50 kB that is unlike any other."""
    small = Image.effect_noise((150, 150), 80).tobytes()
    return picture(number) + small * 2  # bytes behind the picture's end do it no harm


def index(server: Server, number: int) -> int:
    answer = server.http.post(
        "/index", files={"files": (f"{number}.png", noise(number))}, data={"ids": f"p{number}"}
    )
    if answer.status_code != 201:
        assert answer.json()["code"] == "storage_full", answer.text
    return answer.status_code


def fill(server: Server) -> list[int]:
    """Indexes until the disk is full, and a few times more; returns what was stored."""
    stored, refused = [], 0
    for number in range(500):
        status = index(server, number)
        if status == 201:
            stored.append(number)
        else:
            assert status == 507
            refused += 1
            if refused == 5:
                return stored
    raise AssertionError("the disk did not fill up")
