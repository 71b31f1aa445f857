"""`lookalike serve`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from dotenv import dotenv_values

from lookalike.cli.common import settings_flags
from lookalike.config import Settings, load_settings, parse_dirs, unknown_variables
from lookalike.errors import ConfigurationError

if TYPE_CHECKING:
    import uvicorn

GRACE_S = 25.0
"""From the first signal to the end of the process; Kubernetes gives 30 s by default."""


@settings_flags()
def serve(given: dict[str, Any]) -> None:
    """Start the service; GET /docs shows how to use it."""
    ending = Ending()
    from lookalike.api.monitoring import configure_logging  # noqa: PLC0415 - not for --help

    settings = load_settings(**given)
    configure_logging(settings.log_level, settings.log_format)
    say = logging.getLogger("lookalike").warning
    warn_unknown_variables(say)
    warn_missing_folders(settings, say)
    asyncio.run(_run(settings, ending))
    sys.exit(ending.code)


def warn_unknown_variables(say: Callable[[str], None]) -> None:
    """Names each LOOKALIKE_ variable that no setting reads, with the nearest known name."""
    for name, nearest in unknown_variables({**dotenv_values(".env"), **os.environ}).items():
        hint = f"; did you mean {nearest}?" if nearest else ""
        say(f"{name} is no setting and is ignored{hint}")


def warn_missing_folders(settings: Settings, say: Callable[[str], None]) -> None:
    """Names the folders to import from that are not there; they may be mounted later."""
    for folder in parse_dirs(settings.import_dirs):
        if not folder.expanduser().is_dir():
            say(f"LOOKALIKE_IMPORT_DIRS: {folder} is not there; nothing can be imported from it")


class Ending:
    """Ends the process on SIGTERM (exit code 0) and Ctrl-C (130).

    While the service starts, at once: nothing was acknowledged yet. While it serves, in order, but
    at once after `GRACE_S`, or with a second signal: what was acknowledged is on the disk.
    """

    def __init__(self) -> None:
        self.code = 0
        self._serving: uvicorn.Server | None = None
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def serve(self, server: uvicorn.Server) -> None:
        """From now on, `server` is asked to end first."""
        self._serving = server

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self.code = 130 if number == signal.SIGINT else 0
        if self._asked or self._serving is None:
            self._end_now(self.code)
        self._asked = self._serving.should_exit = True
        _start_timer(GRACE_S, self._give_up)

    def _give_up(self) -> None:
        _start_timer(1.0, os._exit, 1)  # for a log that nobody reads any more
        logging.getLogger("lookalike").warning(
            "the service did not end within %g s and is ended; what it acknowledged is kept",
            GRACE_S,
        )
        self._end_now(self.code or 1)

    def _end_now(self, code: int) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                stream.flush()
        os._exit(code)


def _start_timer(seconds: float, function: Callable[..., object], *arguments: object) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


async def _run(settings: Settings, ending: Ending) -> None:
    """Starts the application, so that what fails is one clear error; then listens."""
    from lookalike.api.connections import Server, raise_file_limit  # noqa: PLC0415 - not for --help
    from lookalike.api.main import create_app  # noqa: PLC0415 - not for --help

    listening = _bind(settings.host, settings.port)
    most_files = raise_file_limit()
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        server = Server(app, most_files=most_files)
        ending.serve(server)
        _shorten_pauses()
        await server.serve(sockets=[listening])


def _shorten_pauses() -> None:
    """Has the garbage collector leave out what stays, and look at old objects less often.

    Everything waits while it looks: 70 ms at what was loaded, 50 ms at 1,000 open requests.
    """
    gc.collect()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, 10 * old)


def _bind(host: str, port: int) -> socket.socket:
    """Binds the address before anything is loaded; clients are refused until all of it is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets whose protocol is given as TCP.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as exc:
        listening.close()
        raise ConfigurationError(
            f"{host}:{port} cannot be listened on: {exc.strerror or exc}. Choose another port with "
            "LOOKALIKE_PORT, or another address with LOOKALIKE_HOST"
        ) from exc
    return listening
