"""Log lines: text on a terminal, JSON otherwise."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor


def _drop_color_message(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Uvicorn says everything twice, once in color."""
    event.pop("color_message", None)
    return event


def configure_logging(level: str = "info", style: Literal["auto", "text", "json"] = "auto") -> None:
    """Sends every library's log lines to standard error in one form.

    Args:
        level: Least severe lines to print: debug, info, warning or error.
        style: `text` for people, `json` for machines, `auto` by whether it is a terminal.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _drop_color_message,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # our own line says more
    for name in ("PIL", "faiss", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
