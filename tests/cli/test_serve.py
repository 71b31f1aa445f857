"""How `lookalike serve` listens."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from lookalike import Client
from lookalike.cli.serve import _bind, warn_missing_folders
from lookalike.config import load_settings
from tests.servers import LOOKALIKE, clean_environment


def test_small_answers_do_not_wait_for_the_client_to_confirm_the_last():
    """Without TCP_NODELAY, each answer of two writes takes 40 ms more on many systems."""

    async def accepted() -> int:
        ready = asyncio.Event()
        options: list[int] = []

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            options.append(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            ready.set()

        listening = _bind("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            await ready.wait()
            writer.close()
        return options[0]

    assert asyncio.run(accepted()) != 0


def test_folders_to_import_from_that_are_missing_are_named(tmp_path):
    said: list[str] = []
    dirs = f"{tmp_path},{tmp_path / 'gone'}"
    warn_missing_folders(load_settings(import_dirs=dirs), said.append)
    assert said == [
        f"LOOKALIKE_IMPORT_DIRS: {tmp_path / 'gone'} is not there; nothing can be imported from it"
    ]
    warn_missing_folders(load_settings(), said.append)
    assert len(said) == 1


@pytest.mark.parametrize("spoil", ["missing", "empty"])
def test_a_start_over_files_without_their_catalog_is_refused(tmp_path: Path, spoil: str) -> None:
    data = tmp_path / "data"
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    with Client(data, model="color") as client:
        client.index(tmp_path / "a.png")
    for path in data.glob("*/*/*/*"):
        os.utime(path, (1, 1))
    (data / "catalog.db").unlink()
    if spoil == "empty":
        (data / "catalog.db").touch()
    files = sorted(path for path in data.rglob("*/*") if path.is_file())
    environment = clean_environment() | {
        "LOOKALIKE_DATA_DIR": str(data),
        "LOOKALIKE_MODEL": "color",
    }
    ended = subprocess.run(
        [LOOKALIKE, "serve", "--port", "0"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("lookalike: ")]
    assert f"catalog.db is {spoil}. The folder holds 1 file in images/" in line
    assert "lookalike rebuild" in line
    assert sorted(path for path in data.rglob("*/*") if path.is_file()) == files
