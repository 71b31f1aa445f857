"""SIGTERM and Ctrl-C amid long work: a service ends in time, quietly, and goes on later."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lookalike.files.data_folder import RESTORING
from lookalike.models.head import save_head
from tests.servers import LOOKALIKE, Server, clean_environment
from tests.services.archive_maker import write_archive
from tests.services.backups import answers, backup, fill, restore
from tests.services.moving import make_head
from tests.test_crash import picture
from tests.test_mixed_crash import SMALL_LIMITS
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


class BuildsApart(Server):
    """A service that builds each index in a process of its own, from a few pictures on."""

    command = (
        sys.executable,
        "-c",
        SMALL_LIMITS.replace("inline_numbers=4000", "inline_numbers=0"),
    )


def builders(server: Server) -> list[int]:
    """The processes in which a service builds indexes."""
    found = []
    for one in children(server.process.pid):
        with suppress(OSError):
            words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
            if b"lookalike.store.local.index.building" in words:
                found.append(one)
    return found


def has_ended(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def index_type(server: Server) -> str:
    return str(server.http.get("/info").json()["store"]["collections"]["default"]["type"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_amid_an_index_build(tmp_path: Path) -> None:
    server = BuildsApart(tmp_path / "data", index="IVF1,SQ8")
    try:
        files = [("files", (f"{n}.png", picture(n))) for n in range(2 * COUNT)]
        assert server.http.post("/index", files=files).status_code == 201
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            (builder,) = wait_for(partial(builders, server))
            os.kill(builder, signal.SIGSTOP)  # as if its work were long
            server.process.send_signal(number)
            assert server.process.wait(timeout=60) == code
            wait_for(partial(has_ended, builder))
            server.restart()
        wait_for(lambda: index_type(server) == "IVF1,SQ8", state=lambda: index_type(server))
        for n in range(2 * COUNT):
            answer = server.http.post("/search", files={"file": picture(n)}, data={"k": 1})
            (found,) = answer.json()["matches"]
            assert found["id"] == hashlib.sha256(picture(n)).hexdigest()[:16]
        assert server.terminate() == 0
        assert "Traceback" not in server.log.read_text()
    finally:
        server.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_signal_amid_a_restore(tmp_path: Path, number: int, code: int) -> None:
    fill(tmp_path / "data", *range(COUNT))
    backup(tmp_path / "data", tmp_path / "b.tar")
    expected, new = answers(tmp_path / "data"), tmp_path / "new"
    for _ in range(50):  # until the signal comes before the end
        with subprocess.Popen(
            [LOOKALIKE, "restore", tmp_path / "b.tar", new],
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_for(lambda: (new / RESTORING).exists() or process.poll() is not None)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        if process.returncode:
            break
        assert answers(new) == expected
        shutil.rmtree(new)
    assert process.returncode == code, said
    assert not (new / "catalog.db").exists()
    restore(tmp_path / "b.tar", new)
    assert answers(new) == expected


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
