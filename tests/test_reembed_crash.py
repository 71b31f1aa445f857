"""kill -9 of a real service while it moves a collection to another model."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from lookalike.models.head import save_head
from tests.servers import Server
from tests.services.moving import HEADED as HEADED_MODEL
from tests.services.moving import OLD, make, make_head, vectors
from tests.test_crash import picture
from tests.waiting import wait_for

COUNT = 600
KILLS = 2
HEADED = make(HEADED_MODEL)
PLAIN = make(OLD)


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """A service with a head, a few hundred pictures, and a commit for each new vector."""
    head = save_head(make_head(7), tmp_path / "head.safetensors")
    quick = Server(tmp_path / "data", head=head)
    for start in range(0, COUNT, 50):
        numbers = range(start, start + 50)
        answer = quick.http.post(
            "/index",
            files=[("files", (f"{n}.png", picture(n))) for n in numbers],
            data={"ids": [f"p{n}" for n in numbers]},
        )
        assert answer.status_code == 201, answer.text
    quick.terminate()
    quick.close()
    made = Server(tmp_path / "data", head=head, max_batch=1)
    yield made
    made.close()


def new_vectors(server: Server) -> tuple[int, int]:
    """How many vectors the set under way has, in the files of a service that is dead; and all."""
    with closing(sqlite3.connect(server.data_dir / "catalog.db")) as catalog:
        sql = "SELECT count(*) FROM vectors WHERE space = (SELECT max(id) FROM spaces)"
        (new,) = catalog.execute(sql).fetchone()
        (total,) = catalog.execute("SELECT count(*) FROM images").fetchone()
    return new, total


def search(http: httpx2.Client, number: int, k: int = 1) -> dict[str, Any]:
    answer = http.post("/search", files={"file": picture(number)}, data={"k": k})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["matches"][0]["id"] == f"p{number}"
    assert found["matches"][0]["score"] > 0.9999
    return found


def ended(server: Server, address: str) -> dict[str, Any]:
    """Follows a job until it ends."""

    def look() -> dict[str, Any]:
        job: dict[str, Any] = server.http.get(address).json()
        return job if job["state"] not in {"queued", "running"} else {}

    return wait_for(look)


def work_until_dead(server: Server, stop: threading.Event, first: int) -> list[int]:
    """Searches, and indexes a picture now and then; returns the pictures that were answered 201."""
    answered: list[int] = []
    number = first
    with httpx2.Client(base_url=server.url, headers=server.http.headers, trust_env=False) as http:
        while not stop.is_set():
            number += 1
            try:
                search(http, number % COUNT)
                if number % 5:
                    continue
                answer = http.post(
                    "/index",
                    files={"files": (f"{number}.png", picture(number))},
                    data={"ids": f"p{number}"},
                )
            except httpx2.HTTPError:
                break
            assert answer.status_code == 201, answer.text
            answered.append(number)
    return answered


def test_a_move_survives_kill_minus_9(server: Server) -> None:
    chance = random.Random(3)
    answer = server.http.post("/collections/default/reembed", json={"head": None})
    address = answer.headers["location"]
    numbers = list(range(COUNT))
    interrupted = 0
    for turn in range(KILLS):
        stop = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            work = [
                pool.submit(work_until_dead, server, stop, (2 * turn + n + 1) * 10_000)
                for n in range(2)
            ]
            time.sleep(chance.uniform(0.05, 0.3))
            server.kill()
            stop.set()
            numbers += [number for one in work for number in one.result()]
        new, total = new_vectors(server)
        interrupted += 0 < new < total
        server.restart()
        assert search(server.http, turn)["model"]["dim"] in {6, 48}
    assert interrupted >= 1, "killed too late to be a test"
    job = ended(server, address)
    assert (job["state"], job["errors"]) == ("done", 0), job
    pictures = [picture(number) for number in numbers]
    expected = vectors(PLAIN, pictures).astype(np.float64)
    for row in range(0, len(numbers), 17):
        found = search(server.http, numbers[row], k=1000)
        assert found["model"]["dim"] == 48
        scores = {match["id"]: match["score"] for match in found["matches"]}
        for other, number in enumerate(numbers):
            direct = float(expected[row] @ expected[other])
            assert scores[f"p{number}"] == pytest.approx(direct, abs=1e-5)
