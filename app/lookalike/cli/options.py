"""Options that several commands share, and flags made from the settings."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lookalike.records import DEFAULT_COLLECTION

MODEL_SETTINGS = (
    "data_dir",
    "model",
    "weights",
    "head",
    "pooling",
    "resize",
    "input_size",
    "device",
    "runtime",
    "precision",
    "threads",
    "max_batch",
)
"""Settings that matter to a command that embeds pictures itself."""

FETCH_SETTINGS = ("fetch_urls", "fetch_timeout", "fetch_ports", "fetch_allow")
"""Settings that matter to a command that fetches a picture itself."""

Server = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Work on a running service, not a data folder"),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="LOOKALIKE_ADMIN_KEY",
        show_envvar=True,
        help="Key for --server; for a service on this machine read from the data folder",
    ),
]
Collection = Annotated[str, typer.Option("--collection", "-c", help="Collection")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]
FilterOption = Annotated[
    str | None,
    typer.Option("--filter", metavar="JSON", help='Only pictures that pass, e.g. {"label": "cat"}'),
]
DEFAULT = DEFAULT_COLLECTION


_KINDS: dict[Any, type] = {Path: Path, bool: bool}
"""How flags are read; every other kind as a text, which `load_settings` reads."""


def settings_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one flag for each named setting; all settings where none is named.

    The command takes them as `given: dict[str, Any]`, ready for `load_settings`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        flags = _flags(names)

        def with_flags(**values: Any) -> None:
            given = {flag.name: values.pop(flag.name) for flag in flags}
            command(given=given, **values)

        with_flags.__name__ = command.__name__
        with_flags.__doc__ = command.__doc__
        parameters = [*own, *flags]
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_flags

    return decorate


def _flags(names: tuple[str, ...]) -> list[inspect.Parameter]:
    from lookalike.config import PREFIX, Settings  # noqa: PLC0415 - pydantic is slow to import

    flags = []
    for name, field in Settings.model_fields.items():
        if names and name not in names:
            continue
        kind = _KINDS.get(field.annotation, str)
        default = "" if field.default is None or "key" in name else f" \\[{field.default}]"
        option = typer.Option(
            "--" + name.replace("_", "-"),
            help=f"{field.description}{default}",
            show_default=False,
            rich_help_panel=f"Settings (each also as {PREFIX}NAME or in .env)",
        )
        flags.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    return flags


def warn_unknown_variables(say: Callable[[str], None]) -> None:
    """Says which LOOKALIKE_ variables nothing reads, and what they may have meant."""
    from dotenv import dotenv_values  # noqa: PLC0415 - used at the start of serve alone

    from lookalike.config import unknown_variables  # noqa: PLC0415 - pydantic is slow to import

    for name, nearest in unknown_variables({**dotenv_values(".env"), **os.environ}).items():
        hint = f"; did you mean {nearest}?" if nearest else ""
        say(f"{name} is no setting and is ignored{hint}")
