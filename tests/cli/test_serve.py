"""How `lookalike serve` listens."""

from __future__ import annotations

import asyncio
import socket

from lookalike.cli.serve import _bind, warn_missing_folders
from lookalike.config import load_settings


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
