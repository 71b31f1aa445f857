"""Damaged pictures of every format: each is a picture or an error of its own."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InvalidImageError
from lookalike.media.decode import MEDIA_TYPES, ImageLimits
from lookalike.media.decoder import ImageDecoder
from tests.media.mutations import mutated, originals
from tests.servers import Server

LONG = int(os.environ.get("LOOKALIKE_TEST_MUTATED", "0"))
"""How many pictures; 10,000 take some minutes."""
SETTLED = 0.4  # the share of the pictures after which memory grows no more
GROWTH_BYTES = 40_000_000
OVER_TIME = "of CPU time"  # what an error says of a picture that took its whole time


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return originals()


def damaged(
    pictures: dict[str, bytes], chance: random.Random, count: int
) -> Iterator[tuple[str, bytes]]:
    names, others = list(pictures), list(pictures.values())
    for number in range(count):
        name = names[number % len(names)]
        yield name, mutated(pictures[name], others, chance)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def with_children(pid: int) -> dict[int, int]:
    """Bytes in memory of a process and of those that it started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [pid, *(int(one) for path in children for one in path.read_text().split())]
    return {one: resident(one) for one in pids}


def test_every_format_is_there_and_whole(pictures):
    decoder = ImageDecoder()
    found = {decoder.decode(data, decode_size=32).media_type for data in pictures.values()}
    assert found == set(MEDIA_TYPES.values())


def test_a_damaged_picture_is_a_picture_or_an_error(pictures, chance):
    decoder = ImageDecoder(ImageLimits(max_pixels=4_000_000, max_seconds=5.0))

    def outcome(picture: tuple[str, bytes]) -> str:
        name, data = picture
        try:
            decoded = decoder.decode(data, decode_size=32, thumbnail=True)
        except InvalidImageError as exc:
            return "over time: " + name if OVER_TIME in str(exc) else exc.code
        assert decoded.image.mode == "RGB"
        assert decoded.thumbnail
        return "picture"

    with ThreadPoolExecutor(3) as pool:
        found = Counter(pool.map(outcome, damaged(pictures, chance, LONG or 1200)))
    print(dict(found))
    assert not [code for code in found if code.startswith("over time")]
    assert {"picture", "not_an_image", "unreadable_image"} <= found.keys()


def test_the_service_answers_damaged_pictures(pictures, chance, tmp_path):
    count = LONG or 160
    server = Server(tmp_path / "data", max_pixels=4_000_000, decode_timeout=5)
    try:
        found: Counter[Any] = Counter()
        grown: list[int] = []
        settled: dict[int, int] = {}
        for number, (name, data) in enumerate(damaged(pictures, chance, count)):
            path = "/search" if number % 4 else "/index"
            field = "file" if number % 4 else "files"
            answer = server.http.post(path, files={field: (f"{number}.png", data)})
            assert answer.status_code < 500, f"{name}: {answer.status_code} {answer.text}"
            assert OVER_TIME not in answer.text, f"{name}, {len(data)} bytes"
            found[answer.json().get("code", answer.status_code)] += 1
            if LONG and number == int(count * SETTLED):
                settled = with_children(server.process.pid)
        print(dict(found))
        now = with_children(server.process.pid)
        grown = [now[pid] - size for pid, size in settled.items() if pid in now]
        print("grown by", grown)
        assert all(size < GROWTH_BYTES for size in grown)
        assert server.http.get("/health/ready").status_code == 200
    finally:
        server.close()
    assert "Traceback" not in server.log.read_text()
