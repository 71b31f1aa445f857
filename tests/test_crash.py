"""kill -9 and SIGTERM on a real service, at random moments."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.servers import Server
from tests.waiting import wait_for

ROUNDS = int(os.environ.get("LOOKALIKE_TEST_KILLS", "2"))
"""How often the service is killed; 50 for a thorough run."""


def picture(number: int) -> bytes:
    """A picture unlike any other: 48 colored squares that follow from the number."""
    colors = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colors).resize((64, 64), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "data")
    yield made
    made.close()


def index_until_dead(
    server: Server, numbers: range, stop: threading.Event, answered: list[int]
) -> None:
    """Indexes pictures one by one and notes those that were answered 201."""
    with httpx2.Client(base_url=server.url, headers=server.http.headers, trust_env=False) as http:
        for number in numbers:
            if stop.is_set():
                break
            try:
                answer = http.post(
                    "/index",
                    files={"files": (f"{number}.png", picture(number))},
                    data={"ids": f"p{number}", "metadata": f'{{"number": {number}}}'},
                )
            except httpx2.HTTPError:
                break
            assert answer.status_code == 201, answer.text
            answered.append(number)


def check(server: Server, answered: list[int]) -> None:
    """Everything answered is there and findable, and nothing is half-written."""
    stored: dict[str, dict] = {}
    cursor = None
    while True:
        query = {"limit": 1000} | ({"cursor": cursor} if cursor else {})
        page = server.http.get("/images", params=query).json()
        stored |= {image["id"]: image for image in page["images"]}
        if (cursor := page["next_cursor"]) is None:
            break
    assert {f"p{number}" for number in answered} <= set(stored)
    for image_id, image in stored.items():
        number = int(image_id.removeprefix("p"))
        assert image["metadata"] == {"number": number}
        assert server.http.get(image["image_url"]).content == picture(number)
        found = server.http.post("/search", files={"file": picture(number)}, data={"k": 1}).json()
        assert found["matches"][0]["id"] == image_id
        assert found["matches"][0]["score"] > 0.9999


@pytest.mark.timeout(1200)
def test_everything_answered_201_survives_kill_minus_9(server):
    chance = random.Random(7)
    answered: list[int] = []
    number = 0
    for _ in range(ROUNDS):
        stop, fresh = threading.Event(), list[int]()
        with ThreadPoolExecutor(4) as pool:
            work = [
                pool.submit(index_until_dead, server, range(start, number + 4000, 4), stop, fresh)
                for start in range(number, number + 4)
            ]
            wait_for(fresh.copy)
            time.sleep(chance.uniform(0.02, 0.6))
            server.kill()
            stop.set()
            for task in work:
                task.result()
        answered += fresh
        number += 4000
        server.restart()
        check(server, fresh)
    assert answered
    check(server, answered)


def test_sigterm_answers_what_waits_and_loses_nothing(server):
    stop, answered = threading.Event(), list[int]()
    with ThreadPoolExecutor(4) as pool:
        work = [
            pool.submit(index_until_dead, server, range(start, 4000, 4), stop, answered)
            for start in range(4)
        ]
        wait_for(lambda: len(answered) > 4)
        code = server.terminate()
        stop.set()
        for task in work:
            task.result()
    assert code == 0
    server.restart()
    assert len(answered) > 4
    check(server, answered)
