"""How `lookalike serve` listens."""

from __future__ import annotations

import asyncio
import socket

from app.cli.serve import _bind


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
