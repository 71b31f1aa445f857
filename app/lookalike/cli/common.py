"""What several commands share: options, flags made from the settings, and what is printed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

import lookalike
from lookalike.config import PREFIX, Settings, load_settings
from lookalike.errors import ConfigurationError
from lookalike.files.data_folder import require_data_folder
from lookalike.progress import Progress
from lookalike.records import DEFAULT_COLLECTION
from lookalike.store.filters import parse_filter

if TYPE_CHECKING:
    from lookalike import Client, HttpClient
    from lookalike.client import BaseClient
    from lookalike.schemas import JobOut

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
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="Pass over these files and folders; may be repeated"
    ),
]
DEFAULT = DEFAULT_COLLECTION


_KINDS: dict[Any, type] = {Path: Path, bool: bool}
"""The types of flags. Other settings are read as texts, which `load_settings` converts."""


def flag(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """A flag for `add_flags`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def add_flags(
    command: Callable[..., None],
    name: str,
    flags: Sequence[inspect.Parameter],
    make: Callable[..., Any],
) -> Callable[..., None]:
    """Gives a command flags; it receives what `make` makes of their values as argument `name`."""
    given = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [*(one for one in given if one.name != name), *flags]

    @wraps(command)
    def with_flags(**values: Any) -> None:
        made = make(**{flag.name: values.pop(flag.name) for flag in flags})
        command(**{name: made}, **values)

    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_flags


def settings_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each named setting, or for all settings if none is named.

    The command receives them as `given: dict[str, Any]`, for `load_settings`.
    """
    return lambda command: add_flags(command, "given", _flags(names), dict)


def client_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command `--server`, `--api-key` and a flag for each named setting, as a `Target`."""
    flags = [flag("server", Server), flag("api_key", ApiKey), *_flags(names)]
    return lambda command: add_flags(command, "target", flags, _target)


def _flags(names: tuple[str, ...]) -> list[inspect.Parameter]:
    flags = []
    for name, field in Settings.model_fields.items():
        if names and name not in names:
            continue
        kind = _KINDS.get(field.annotation, str)
        default = "" if field.default is None or "key" in name else f" \\[{field.default}]"
        option = typer.Option(
            "--" + name.replace("_", "-"),
            help=" ".join(str(field.description).split()) + default,
            show_default=False,
            rich_help_panel=f"Settings (each also as {PREFIX}NAME or in .env)",
        )
        flags.append(flag(name, Annotated[kind | None, option]))
    return flags


@dataclass(frozen=True, slots=True)
class Target:
    """What a command works on: a running service, or a data folder."""

    server: str | None  # address of the service; None for the data folder
    api_key: str | None
    given: dict[str, Any]  # settings from flags

    def open(self, *, changes: bool = False, must_exist: bool = True) -> Client | HttpClient:
        """Opens it; read-only, unless the command `changes` it, beside a service that owns it.

        `must_exist` refuses a data folder without a collection.
        """
        if self.server is None:
            if must_exist:
                require_data_folder(load_settings(**self.given).data_dir)
            return lookalike.Client(read_only=not changes, **self.given)
        for name, value in self.given.items():
            if value and name != "data_dir" and name in {*MODEL_SETTINGS, *FETCH_SETTINGS}:
                raise ConfigurationError(
                    f"--{name.replace('_', '-')} is the running service's to say; leave it out "
                    "with --server"
                )
        key = self.api_key or _kept_key(self.server, load_settings(**self.given).data_dir)
        return lookalike.HttpClient(self.server, key)


def _target(server: str | None, api_key: str | None, **given: Any) -> Target:
    return Target(server, api_key, given)


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


SHOWN_ERRORS = 20  # of a long task


def cell(value: str) -> Text:
    """A text as it is: no markup, no control characters."""
    return Text("".join(char if char.isprintable() else "\ufffd" for char in value))


def metadata_cell(metadata: Mapping[str, Any]) -> Text:
    """Metadata as JSON; nothing where there is none."""
    return cell(json.dumps(metadata, ensure_ascii=False) if metadata else "")


def size_text(count: int) -> str:
    """Bytes with the unit that suits them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:,.1f}".removesuffix(".0") + f" {name}"
    return f"{count} bytes"


class DrawnProgress(Progress):
    """Draws a bar for each stage that is reported, and keeps the first few errors."""

    def __init__(self, bars: rich_progress.Progress) -> None:
        super().__init__()
        self._bars = bars
        self._stages: dict[str, rich_progress.TaskID] = {}
        self.errors: list[str] = []

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        """Draws how far a stage is."""
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=total, rate="")
        bar = self._stages[stage]
        speed = self._bars.tasks[self._bars.task_ids.index(bar)].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self._bars.update(bar, completed=done, total=total, rate=rate)

    def error(self, text: str) -> None:
        """Keeps an error, for `print_errors`."""
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(text)


@contextmanager
def progress() -> Iterator[DrawnProgress]:
    """Draws on standard error until the block ends; draws nothing where that is no terminal."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with rich_progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        yield DrawnProgress(bars)


def watch_job(client: BaseClient, job: JobOut, *, stage: str) -> JobOut:
    """Prints a job's id and draws its progress until it ends; Ctrl-C ends the drawing alone."""
    typer.echo(f"job {job.id} is {job.state}", err=True)
    if job.state.finished:
        return job
    try:
        with progress() as drawn:
            return client.wait_for_job(job.id, progress=drawn.stage(stage))
    except KeyboardInterrupt:
        typer.echo(f"no longer watching; job {job.id} goes on", err=True)
        raise typer.Exit(130) from None


def print_job(job: JobOut, server: str, *, as_json: bool) -> None:
    """Prints where a job is, or how it ended; exits with 1 if it failed."""
    if as_json:
        typer.echo(job.model_dump_json(indent=2))
    elif not job.state.finished:
        typer.echo(
            f"job {job.id} is {job.state}; --watch draws how far it is, and so does "
            f"GET {server.rstrip('/')}/jobs/{job.id}"
        )
    else:
        print_ended(job)
    if job.state in {"failed", "canceled"}:
        raise typer.Exit(1)


def print_ended(job: JobOut) -> None:
    """Prints how a job ended, and what failed in it."""
    typer.echo(f"job {job.id} is {job.state}: {job.message}")
    print_errors(job.error_texts)


def print_warnings(warnings: Iterable[str]) -> None:
    """Prints what of a filter cannot match."""
    for text in warnings:
        typer.echo(f"warning: {text}", err=True)


def print_errors(errors: Iterable[str]) -> None:
    """Prints errors of a long task, one on a line."""
    for text in errors:
        typer.echo(f"  {text}", err=True)
