"""`lookalike`: the command line. Heavy libraries are imported inside the commands only."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lookalike import __version__
from lookalike.cli import (
    cluster,
    duplicates,
    evaluate,
    index,
    manage,
    maps,
    quantize,
    reembed,
    search,
    serve,
    train,
    tune,
)
from lookalike.errors import ConfigurationError, LookalikeError

app = typer.Typer(
    name="lookalike",
    help="Self-hosted image similarity search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve.serve)
app.command()(index.index)
app.command()(search.search)
app.command()(evaluate.evaluate)
app.command(name="map")(maps.map_pictures)
app.command()(duplicates.duplicates)
app.command()(cluster.cluster)
app.command()(train.train)
app.command()(reembed.reembed)
app.command()(tune.tune)
app.command()(quantize.quantize)
app.command()(manage.info)
app.command(name="list")(manage.list_images)
app.command()(manage.delete)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lookalike {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version"),
    ] = False,
) -> None:
    pass


def run() -> None:
    """Runs the command line; our own errors are one line on standard error, without a trace.

    Exit codes: 0 done, 1 it failed, 2 it was asked for wrongly.
    """
    try:
        app()
    except ConfigurationError as exc:
        typer.secho(f"lookalike: {exc}", err=True, fg="red")
        sys.exit(2)
    except LookalikeError as exc:
        typer.secho(f"lookalike: {exc}", err=True, fg="red")
        sys.exit(1)
