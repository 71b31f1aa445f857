"""`lookalike tag`: the texts that fit each picture best, into its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import lookalike
from lookalike.cli.common import (
    DEFAULT,
    MODEL_SETTINGS,
    Collection,
    Json,
    Target,
    client_flags,
    print_errors,
    print_job,
    progress,
    watch_job,
)
from lookalike.errors import ConfigurationError, MissingFileError

_STAGE = "labeling"


@client_flags(*MODEL_SETTINGS)
def tag(
    target: Target,
    *,
    labels: Annotated[
        Path, typer.Option("--labels", help="A text file with a label on each line", metavar="FILE")
    ],
    collection: Collection = DEFAULT,
    field: Annotated[str, typer.Option("--field", help="Metadata field that is written")] = "tags",
    template: Annotated[
        list[str] | None,
        typer.Option("--template", help="Text with {} in the place of the label; may be repeated"),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Most labels of one picture")] = 1,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Cosine below which labels are left out")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="With --server: draw the job's progress to its end")
    ] = False,
    as_json: Json = False,
) -> None:
    """Label the pictures of a collection by the texts that fit them best.

    The best labels and their scores are written into a metadata field. The collection's model
    must take texts. On a data folder it is done here, and again after an interruption it goes on
    where it was; a running service (--server) does it in the background.
    """
    asked: dict[str, Any] = {"collection": collection, "field": field, "k": k}
    asked |= {"templates": template or ["{}"], "min_score": min_score}
    read = _read(labels)
    with target.open(changes=True) as client:
        if isinstance(client, lookalike.Client):
            with progress() as drawn:
                try:
                    message = client.tag(read, progress=drawn.stage(_STAGE), **asked)
                finally:
                    print_errors(drawn.errors)
            typer.echo(message)
            return
        job = client.begin_tag(read, **asked)
        if watch:
            job = watch_job(client, job, stage=_STAGE)
    print_job(job, str(target.server), as_json=as_json)


def _read(file: Path) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        raise MissingFileError(f"There is no file {file}: write a label on each line") from exc
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{file} cannot be read as text ({exc})") from exc
    return [line.strip() for line in text.splitlines() if line.strip()]
