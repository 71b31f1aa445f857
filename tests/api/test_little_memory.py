"""A service under a limit on memory: it refuses for now, and never blames a picture."""

from __future__ import annotations

import io
import resource
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.api.conftest import picture
from tests.servers import Server

REFUSALS = {"out_of_memory", "unavailable", "queue_full", "embedding_failed", "storage_error"}
MIB = 2**20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "data")
    yield made
    made.close()


def limit(server: Server, spare: int | None) -> None:
    """Leaves the service so many bytes of address space; None takes the limit away."""
    pid = server.process.pid
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    most = resource.RLIM_INFINITY if spare is None else used + spare
    resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def test_a_service_with_little_memory_refuses_and_recovers(server: Server) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (220, 220, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(noise).resize((2200, 2200)).save(target, "PNG", compress_level=0)
    large, small = target.getvalue(), picture()
    stored = {"s0"}
    assert send(server, "s0", small).status_code == 201
    said: Counter[str] = Counter()

    def work(number: int) -> None:
        data = large if number % 3 else small
        try:
            if number % 2:
                answer = server.http.post("/search", files={"file": data})
            else:
                answer = send(server, f"n{number}", data)
        except httpx2.HTTPError as exc:  # no memory for the answer itself
            said[type(exc).__name__] += 1
            return
        problem = answer.json()
        errors = [one["error"]["code"] for one in problem.get("items", []) if one.get("error")]
        codes = [problem["code"]] if "code" in problem else errors
        said.update(codes or ["ok"])
        assert set(codes) <= REFUSALS, answer.text
        if answer.status_code == 201:
            stored.add(f"n{number}")

    for spare in (0, 4 * MIB, 24 * MIB, 80 * MIB):
        limit(server, spare)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(spare, spare + 16)))
    limit(server, None)
    print(said)
    assert said["out_of_memory"] + said["unavailable"] > 0
    assert server.process.poll() is None
    assert server.http.post("/search", files={"file": large}).status_code == 200
    assert server.http.get("/health/ready").status_code == 200
    listed = {one["id"] for one in server.http.get("/images").json()["images"]}
    assert stored <= listed
    assert server.terminate() == 0


def send(server: Server, image_id: str, data: bytes) -> httpx2.Response:
    files = {"files": (f"{image_id}.png", data)}
    return server.http.post("/index", files=files, data={"ids": image_id})
