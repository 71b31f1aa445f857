"""A real service is sent archives that are made to harm it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.servers import Server
from tests.services.archive_maker import write_archive
from tests.services.hostile_archives import HOSTILE, TARGET, million
from tests.test_crash import picture
from tests.test_reembed_crash import ended

COUNT = int(os.environ.get("LOOKALIKE_TEST_ARCHIVES", str(len(HOSTILE))))
"""How many are sent; 100 for a thorough run, which also sends one with a million members."""

CANCEL_S = 20.0  # after which a job is canceled, which must end it soon
MOST_SECONDS = 60.0  # of one archive, sent and read; a busy machine takes longer than an idle one
MOST_GROWTH = 300_000_000  # bytes of memory over that of a service that has read a good archive
MOST_DISK = 300_000_000  # bytes of the data folder while it reads


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "in" / "it").mkdir(parents=True)
    made = Server(tmp_path / "in" / "it" / "data", max_archive_bytes=150_000_000)
    yield made
    made.close()


def memory(server: Server) -> int:
    """Most bytes of memory that the service has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:  # removed meanwhile
            continue
    return total


def send(server: Server, name: str, data: bytes) -> httpx2.Response:
    return server.http.post("/index/archive", files={"file": (name, data)})


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_hostile_archives_do_no_harm(server: Server, tmp_path: Path, chance: random.Random) -> None:
    good = write_archive(tmp_path / "good.tar.gz", [("a.png", picture(1)), ("b.png", picture(2))])
    first = send(server, "first.tar.gz", good.read_bytes())
    assert ended(server, first.headers["location"])["state"] == "done"
    before = memory(server)
    kinds = [HOSTILE[n % len(HOSTILE)] for n in range(COUNT)]
    if len(HOSTILE) < COUNT:
        kinds.append(million)
    outcomes: list[tuple[float, str, str]] = []
    for make in kinds:
        data = make(random.Random(chance.randrange(2**32)))
        began, largest = time.monotonic(), 0
        answer = send(server, chance.choice(["a.zip", "a.tar", "a.tar.gz", "a"]), data)
        outcome = str(answer.status_code)
        if answer.status_code == 202:
            address = answer.headers["location"]
            while True:
                job = server.http.get(address).json()
                largest = max(largest, disk(server.data_dir))
                if job["state"] not in {"queued", "running"}:
                    break
                if time.monotonic() - began > CANCEL_S:
                    server.http.post(f"{address}/cancel")
                time.sleep(0.02)
            outcome = f"{job['state']}: {job['message'][:100]}"
            assert "error of the program" not in job["message"], (make.__name__, job)
        else:
            assert answer.status_code in {413, 415, 422}, (make.__name__, answer.text)
        took = time.monotonic() - began
        assert took < MOST_SECONDS, (make.__name__, outcome)
        assert largest < MOST_DISK, (make.__name__, largest)
        assert server.http.get("/health/ready").status_code == 200
        outcomes.append((took, make.__name__, outcome))
        growth = memory(server) - before
        assert growth < MOST_GROWTH, (make.__name__, outcome)
    print(*sorted(outcomes, reverse=True)[:10], f"memory grew by {growth:,} bytes", sep="\n")

    assert not list(tmp_path.rglob(f"*{TARGET}*"))
    assert not Path("/tmp", TARGET).exists()
    assert {path.name for path in tmp_path.rglob("*") if path.is_symlink()} == set()
    answer = send(server, "again.tar.gz", good.read_bytes())
    job = ended(server, answer.headers["location"])
    assert (job["state"], job["done"], job["errors"]) == ("done", 2, 0)
    server.terminate()
    for folder in ("imports", "tmp"):
        assert list((server.data_dir / folder).iterdir()) == []
    assert "Traceback" not in server.log.read_text()
