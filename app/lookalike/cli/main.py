"""`lookalike`: the command line. A command's module is imported when the command is called."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from inspect import getdoc
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lookalike import __version__
from lookalike.cores import limit_openmp
from lookalike.errors import ConfigurationError, LookalikeError, lacks_memory

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

COMMANDS = {
    "serve": ("serve:serve", "Start the service; GET /docs shows how to use it."),
    "index": ("collections:index", "Add pictures to a collection."),
    "sync": ("sync:sync", "Follow a folder or a manifest: add what is new, delete what is gone."),
    "search": ("search:search", "Find the pictures most like a picture, or several, or words."),
    "embed": ("search:embed", "Print or save the vectors of pictures and words."),
    "evaluate": ("sets:evaluate", "Measure how well pictures find those of their class."),
    "compare": ("compare:compare", "Compare models on a labelled set: quality, time, memory."),
    "map": ("sets:map_pictures", "Draw a map on which similar pictures lie together."),
    "duplicates": ("duplicates:duplicates", "Find pictures that are stored more than once."),
    "cluster": ("sets:cluster", "Group pictures that look alike."),
    "train": ("sets:train", "Train a head on a labelled set, and measure its effect."),
    "calibrate": ("scores:calibrate", "Find out what the scores of a collection mean."),
    "feedback": ("scores:feedback", "Say which matches are right or wrong."),
    "reembed": ("collections:reembed", "Move a collection to another model."),
    "tag": ("tag:tag", "Label pictures by the texts that fit them best."),
    "tune": ("tune:tune", "Try index types on a collection."),
    "quantize": ("tune:quantize", "Make the model's int8 network for OpenVINO."),
    "backup": ("backup:backup", "Make a backup, while the service runs."),
    "restore": ("backup:restore", "Restore a backup into a new data folder."),
    "export": ("backup:export", "Write a collection as Parquet or JSON lines."),
    "import": ("backup:import_", "Add the pictures of an export."),
    "info": ("collections:info", "Show collections, their models, and their indexes."),
    "list": ("collections:list_images", "List the pictures of a collection, oldest first."),
    "count": ("collections:count", "Count the pictures that pass a filter."),
    "facets": ("collections:facets", "Show metadata fields and their most frequent values."),
    "update": ("collections:update", "Change the metadata of many pictures."),
    "delete": ("collections:delete", "Delete pictures, or a whole collection."),
    "keys": ("keys:keys", "Make, list and revoke the keys of a service."),
    "check": ("check:check", "Compare what is stored with its files, and repair it."),
    "audit": ("keys:audit", "List changes: who made them, and when."),
    "rebuild": ("check:rebuild", "Make pictures of originals that a catalog lacks."),
    "collections": ("collections:collections", "Make, rename and alias collections."),
    "vectors": ("collections:vectors", "List, bring back or discard the vectors of a collection."),
}
"""Each command: where its function or its group of commands is, and its line in --help."""


class LazyGroup(TyperGroup):
    """A group whose commands are placeholders until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Finds the command to call, and imports its module."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else load_command(str(name)), rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Formats help as plain text, so that rich is not imported for it."""
        super(TyperGroup, self).format_help(ctx, formatter)


def load_command(name: str) -> Any:
    """Imports a command's module and makes the command, or the group, that typer runs."""
    limit_openmp()  # before what the command imports
    module, attribute = COMMANDS[name][0].split(":")
    found = getattr(import_module(f"lookalike.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings=_CONTEXT
    )
    paragraphs = (getdoc(found) or "").split("\n\n")  # whose lines rich would not join
    alone.command(name, help="\n\n".join(" ".join(one.split()) for one in paragraphs))(found)
    return typer.main.get_command(alone)


_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="lookalike",
    cls=LazyGroup,
    help="Self-hosted image similarity search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
)


for _name, (_, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lookalike {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    pass


class Interruption:
    """Ends a command on Ctrl-C, quietly: a first one in order, a second one at once."""

    def __init__(self) -> None:
        self.came = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._come)

    def _come(self, _signal: int, _frame: FrameType | None) -> None:
        if self.came:
            os._exit(INTERRUPTED)
        self.came = True
        raise KeyboardInterrupt


def run() -> None:
    """Runs the command line; our own errors are one line on standard error, without a trace.

    Exit codes: 0 done, 1 it failed, 2 it was asked for wrongly, 130 it was interrupted.
    """
    interruption = Interruption()
    try:
        _run()
    except BaseException:  # an import that is interrupted may raise anything
        if not interruption.came:
            raise
        sys.exit(INTERRUPTED)


def _run() -> None:
    try:
        app(prog_name="lookalike")
    except LookalikeError as exc:
        typer.secho(f"lookalike: {exc}", err=True, fg="red")
        sys.exit(2 if isinstance(exc, ConfigurationError) else 1)
    except Exception as exc:
        if not lacks_memory(exc):
            raise
        text = "lookalike: there is too little memory for this; give it more, or less to do at once"
        typer.secho(text, err=True, fg="red")
        sys.exit(1)
