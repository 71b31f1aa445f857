"""SIGTERM and Ctrl-C: the process ends in time and quietly, whatever it is doing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.conftest import picture
from tests.servers import LOOKALIKE, Server, clean_environment, free_port
from tests.waiting import PATIENCE_S, wait_for

# Python code that runs in the process before the command: what it is stuck in.
STUCK_START = """
import time, lookalike.bootstrap as b
def stuck(*a, **k): print("starting", flush=True); time.sleep(600)
b.build_encoders = stuck
b.build_encoder = stuck
"""
STUCK_CLOSE = """
import time, lookalike.bootstrap as b, lookalike.cli.serve as s
s.GRACE_S = 1.0
b.Services.close = lambda self: time.sleep(600)
"""
STUCK_IMPORT = """
import time, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "lookalike.client.local":
            print("starting", flush=True)
            time.sleep(600)
sys.meta_path.insert(0, Slow())
"""


@contextmanager
def command(folder: Path, before: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command line with some code run before it."""
    program = f"{before}\nfrom lookalike.cli.main import run\nrun()\n"
    settings = {"LOOKALIKE_DATA_DIR": str(folder / "data"), "LOOKALIKE_MODEL": "color"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=clean_environment() | settings | {"LOOKALIKE_ADMIN_KEY": "test-admin-key"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_starting(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n", process.stderr and process.stderr.read()


def wait_until_listening(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    lines = process.stderr
    wait_for(lambda: "listening" in lines.readline())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_service_that_starts_ends_at_once(tmp_path: Path, number: int, code: int) -> None:
    with command(tmp_path, STUCK_START, "serve", "--port", "0") as process:
        wait_until_starting(process)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert "Traceback" not in said


@pytest.mark.parametrize("before", [STUCK_START, STUCK_IMPORT])
def test_a_command_that_starts_ends_at_once_and_quietly(tmp_path: Path, before: str) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    with command(tmp_path, before, "index", str(tmp_path / "a.png")) as process:
        wait_until_starting(process)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert said.strip() in {"", "Aborted!"}


def test_a_shutdown_that_is_stuck_is_ended(tmp_path: Path) -> None:
    with command(tmp_path, STUCK_CLOSE, "serve", "--port", str(free_port())) as process:
        wait_until_listening(process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "what it acknowledged is kept" in said


def test_a_second_signal_ends_a_service_at_once(tmp_path: Path) -> None:
    slow = STUCK_CLOSE.replace("1.0", "500.0")
    with command(tmp_path, slow, "serve", "--port", str(free_port())) as process:
        wait_until_listening(process)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_clients_that_hang_do_not_keep_a_service_from_ending(tmp_path: Path) -> None:
    port, soon = free_port(), "import lookalike.api.connections as c; c.LAST_ANSWERS_S = 1"
    with command(tmp_path, soon, "serve", "--port", str(port)) as process:
        wait_until_listening(process)
        hanging = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        hanging[1].sendall(b"GET /images HTTP/1.1\r\nHost: x\r\n")
        hanging[2].sendall(
            b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b"
        )
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        for one in hanging:
            one.close()


def test_ctrl_c_ends_a_service_in_order(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    try:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=PATIENCE_S) == 130
        assert "Traceback" not in server.log.read_text()
    finally:
        server.close()


def test_the_command_itself_is_quiet(tmp_path: Path) -> None:
    environment = clean_environment() | {"LOOKALIKE_DATA_DIR": str(tmp_path / "data")}
    process = subprocess.Popen(
        [LOOKALIKE, "index", os.fspath(tmp_path), "--model", "resnet18", "--weights", "random"],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    (tmp_path / "a.png").write_bytes(picture())
    try:
        wait_for(lambda: (tmp_path / "data" / "catalog.db").exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
