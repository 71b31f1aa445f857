"""Options that several commands share, flags made from the settings, and `open_client`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

import lookalike
from lookalike.config import PREFIX, Settings, load_settings
from lookalike.errors import ConfigurationError
from lookalike.files.data_folder import require_data_folder
from lookalike.records import DEFAULT_COLLECTION
from lookalike.store.filters import parse_filter

if TYPE_CHECKING:
    from lookalike import Client, HttpClient

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
"""The types of flags. Other settings are read as texts, which `load_settings` converts."""


def settings_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each named setting, or for all settings if none is named.

    The command receives them as `given: dict[str, Any]`, for `load_settings`.
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


def open_client(
    server: str | None,
    api_key: str | None,
    given: dict[str, Any],
    *,
    changes: bool = False,
    must_exist: bool = True,
) -> Client | HttpClient:
    """Opens what a command works on.

    Args:
        server: Address of a running service, or None for the data folder.
        api_key: Key for the service.
        given: Settings from flags.
        changes: Whether the command changes anything; one that only reads works beside a service
            that owns the folder.
        must_exist: Whether a data folder without a collection is refused.
    """
    if server is None:
        if must_exist:
            require_data_folder(load_settings(**given).data_dir)
        return lookalike.Client(read_only=not changes, **given)
    for name, value in given.items():
        if value and name != "data_dir" and name in {*MODEL_SETTINGS, *FETCH_SETTINGS}:
            raise ConfigurationError(
                f"--{name.replace('_', '-')} is the running service's to say; leave it out "
                "with --server"
            )
    return lookalike.HttpClient(
        server, api_key or _kept_key(server, load_settings(**given).data_dir)
    )


def _kept_key(server: str, data_dir: Path) -> str | None:
    """Reads the key in the data folder, for a service on this machine only."""
    if urlsplit(server).hostname not in {"localhost", "127.0.0.1", "::1"}:
        return None
    try:
        return (data_dir / "admin.key").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_filter(text: str | None) -> dict[str, Any] | None:
    """Reads --filter. Raises `InvalidFilterError`."""
    return None if parse_filter(text) is None else json.loads(text or "")
