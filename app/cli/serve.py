"""`lookalike serve`."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import Any

from app.cli.options import settings_flags, warn_unknown_variables


@settings_flags()
def serve(given: dict[str, Any]) -> None:
    """Start the service; GET /docs shows how to use it."""
    from app.config import load_settings  # noqa: PLC0415 - see app.cli.main
    from app.cores import limit_openmp  # noqa: PLC0415

    settings = load_settings(**given)
    limit_openmp()

    import uvicorn  # noqa: PLC0415

    from app.api.logs import configure_logging  # noqa: PLC0415
    from app.api.main import create_app  # noqa: PLC0415

    signal.signal(signal.SIGTERM, _end)
    configure_logging(settings.log_level, settings.log_format)
    warn_unknown_variables(logging.getLogger("lookalike").warning)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=30,
        )
    )
    server.run()
    if not server.started:
        raise SystemExit(3)


def _end(_signal: int, _frame: FrameType | None) -> None:
    """Uvicorn raises the signal again when it has shut down: then that was a clean end."""
    sys.exit(0)
