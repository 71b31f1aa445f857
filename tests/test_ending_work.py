"""SIGTERM and Ctrl-C amid long work: a service ends in time, quietly, and goes on later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lookalike.models.head import save_head
from tests.servers import LOOKALIKE, Server, clean_environment
from tests.services.archive_maker import write_archive
from tests.services.moving import make_head
from tests.test_crash import picture
from tests.test_reembed_crash import ended
from tests.waiting import wait_for

COUNT = 30


def begin(server: Server, tmp_path: Path, what: str) -> str:
    """Begins a job; returns its address."""
    if what == "import":
        files = [(f"new{n}.png", picture(1000 + n)) for n in range(COUNT)]
        path = write_archive(tmp_path / "all.zip", files)
        answer = server.http.post("/index/archive", files={"file": (path.name, path.read_bytes())})
    elif what == "reembed":
        head = save_head(make_head(7), tmp_path / "head.safetensors")
        answer = server.http.post("/collections/default/reembed", json={"head": str(head)})
    else:
        answer = server.http.post("/backup")
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


@pytest.mark.parametrize(
    ("what", "number", "code"),
    [
        ("import", signal.SIGTERM, 0),
        ("reembed", signal.SIGINT, 130),
        ("backup", signal.SIGTERM, 0),
    ],
)
def test_a_job_goes_on_after_a_signal(tmp_path: Path, what: str, number: int, code: int) -> None:
    (tmp_path / "backups").mkdir()
    server = Server(tmp_path / "data", max_batch=1, backup_dir=tmp_path / "backups")
    try:
        files = [("files", (f"{n}.png", picture(n))) for n in range(COUNT)]
        assert server.http.post("/index", files=files).status_code == 201
        address = begin(server, tmp_path, what)
        wait_for(lambda: server.http.get(address).json()["state"] != "queued")
        server.process.send_signal(number)
        assert server.process.wait(timeout=60) == code
        server.restart()
        job = ended(server, address)
        assert job["state"] == "done", job
        stored = server.http.get("/collections").json()["collections"][0]["count"]
        assert stored == (2 * COUNT if what == "import" else COUNT)
        assert server.terminate() == 0
        assert "Traceback" not in server.log.read_text()
    finally:
        server.close()


def children(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]) == process:
                found.append(int(path.name))
    return found


def is_loading(process: int) -> bool:
    """Whether a process, or one that it started, has begun to load torch."""
    with suppress(OSError):
        return "libtorch_cpu" in Path(f"/proc/{process}/maps").read_text()
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("runtime", "number", "code"),
    [("torch", signal.SIGTERM, 0), ("openvino", signal.SIGINT, 130)],
)
def test_a_service_that_loads_or_converts_a_network(
    tmp_path: Path, runtime: str, number: int, code: int
) -> None:
    settings = {"data_dir": tmp_path / "data", "model": "resnet18", "weights": "random"}
    settings |= {"runtime": runtime, "port": 0}
    process = subprocess.Popen(
        [LOOKALIKE, "serve"],
        env=clean_environment() | {f"LOOKALIKE_{k.upper()}": str(v) for k, v in settings.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:

        def loading() -> list[int]:
            return [one for one in (process.pid, *children(process.pid)) if is_loading(one)]

        wait_for(loading)
        others = [one for one in loading() if one != process.pid]
        for one in others:
            os.kill(one, signal.SIGSTOP)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in said
        for one in others:
            os.kill(one, signal.SIGCONT)
        wait_for(lambda: not any(map(is_loading, others)))
        assert not list((tmp_path / "data" / "models").glob("*/manifest.json")), "nobody waits"
    finally:
        process.kill()
