"""`lookalike serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from dotenv import dotenv_values

from lookalike.cli.common import settings_flags
from lookalike.config import Settings, load_settings, parse_dirs, unknown_variables
from lookalike.errors import ConfigurationError


@settings_flags()
def serve(given: dict[str, Any]) -> None:
    """Start the service; GET /docs shows how to use it."""
    from lookalike.api.monitoring import configure_logging  # noqa: PLC0415 - not for --help

    settings = load_settings(**given)
    configure_logging(settings.log_level, settings.log_format)
    say = logging.getLogger("lookalike").warning
    warn_unknown_variables(say)
    warn_missing_folders(settings, say)
    signal.signal(signal.SIGTERM, _end)
    asyncio.run(_run(settings))


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


async def _run(settings: Settings) -> None:
    """Starts the application, so that what fails is one clear error; then listens."""
    from lookalike.api.connections import Server, raise_file_limit  # noqa: PLC0415 - not for --help
    from lookalike.api.main import create_app  # noqa: PLC0415 - not for --help

    listening = _bind(settings.host, settings.port)
    most_files = raise_file_limit()
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        host, port = listening.getsockname()[:2]
        logging.getLogger("lookalike").info("listening on http://%s:%d", host, port)
        await Server(app, listening, most_files=most_files).serve(sockets=[listening])


def _bind(host: str, port: int) -> socket.socket:
    """Binds the address before anything is loaded; connections wait until uvicorn listens."""
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


def _end(_signal: int, _frame: FrameType | None) -> None:
    """Exits with 0: uvicorn raises SIGTERM again after a clean shutdown."""
    sys.exit(0)
