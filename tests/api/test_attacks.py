"""A good client beside attackers gets its answers."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.media.bombs import gif_comments, jpeg_scans, png_many_chunks, qoi_literals, tiff_strips
from tests.media.test_decode import make
from tests.servers import Server
from tests.waiting import PATIENCE_S


def test_costly_pictures_delay_nobody_else(tmp_path: Path) -> None:
    bombs = [
        jpeg_scans(500, 500),
        qoi_literals(3),
        gif_comments(3_000_000),
        png_many_chunks(500_000),
        tiff_strips(300_000),
    ]
    server, stopped = Server(tmp_path / "data", decode_timeout=1), threading.Event()

    def attack() -> set[int]:
        statuses = set()
        with httpx2.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as http:
            for bomb in itertools.cycle(bombs):
                statuses.add(http.post("/search", files={"file": bomb}).status_code)
                if stopped.is_set():
                    return statuses
        raise AssertionError

    try:
        with ThreadPoolExecutor(2) as pool:
            attackers = [pool.submit(attack) for _ in range(2)]
            try:
                for kind in ["JPEG", "PNG"] * 20:
                    answer = server.http.post("/search", files={"file": make(kind)})
                    assert answer.status_code == 200, answer.text
                    assert server.http.get("/health/ready").status_code == 200
                assert not any(attacker.done() for attacker in attackers)
            finally:
                stopped.set()
            assert {status for one in attackers for status in one.result()} <= {200, 422, 503}
    finally:
        server.close()
    assert "Traceback" not in server.log.read_text()


def test_a_client_that_leaves_takes_its_decoding_along(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", decode_timeout=300)
    try:
        for _ in range(5):  # more than are decoded at once
            with pytest.raises(httpx2.TimeoutException):
                server.http.post("/search", files={"file": qoi_literals(16)}, timeout=1.0)
        answer = server.http.post("/search", files={"file": qoi_literals(0.3)})
        assert answer.status_code == 200
    finally:
        server.close()
