"""`lookalike calibrate` and `lookalike feedback`: what scores mean, and what people say of them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from lookalike.cli.common import (
    DEFAULT,
    MODEL_SETTINGS,
    Collection,
    Json,
    Target,
    cell,
    client_flags,
    print_errors,
    progress,
)
from lookalike.errors import ConfigurationError
from lookalike.schemas import CalibrationOut
from lookalike.services.scores import Bin
from lookalike.visualization.pages import claim_output, write_whole


@client_flags(*MODEL_SETTINGS)
def calibrate(
    target: Target,
    *,
    collection: Collection = DEFAULT,
    label_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Metadata field that says what a picture shows"),
    ] = None,
    false_alarms: Annotated[
        float,
        typer.Option(help="Share of queries without a right picture that may have a match"),
    ] = 0.05,
    sample: Annotated[int, typer.Option(help="Pictures of which copies are made")] = 200,
    seed: Annotated[int, typer.Option(help="Chooses them")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for calibration.json and reliability.png; none if not given"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Only show the last calibration")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Only forget it")] = False,
    as_json: Json = False,
) -> None:
    """Find out what the scores of a collection mean; its searches then say so.

    Copies of some of its pictures (JPEG at quality 50, half the size, cropped, mirrored) are
    searched for. Answers then have `copy_probability`; and with --label-field, or enough feedback,
    `verdict`, which is "no match" if no score is high enough.
    """
    if show and remove:
        raise ConfigurationError("--show and --remove do not go together")
    if out is not None:
        claim_output(out / "calibration.json")
    with target.open(changes=not show) as client:
        if remove:
            client.delete_calibration(collection)
            typer.echo(f"the scores of {collection} are no longer calibrated")
            return
        if show:
            found = client.calibration(collection)
        else:
            with progress() as drawn:
                try:
                    found = client.calibrate(
                        collection,
                        label_field=label_field,
                        false_alarms=false_alarms,
                        sample=sample,
                        seed=seed,
                        progress=drawn.stage("copies"),
                    )
                finally:
                    print_errors(drawn.errors)
    if out is not None:
        _write(found, collection, out)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print(found, collection)


def _write(found: CalibrationOut, collection: str, out: Path) -> None:
    from lookalike.visualization.reliability_plot import draw_reliability  # noqa: PLC0415 - slow

    write_whole(out / "calibration.json", found.model_dump_json(indent=2) + "\n")
    model = found.copy_model
    bins = [Bin(**one.model_dump()) for one in model.bins]
    plot = draw_reliability(bins, ece=model.ece, name=collection)
    write_whole(out / "reliability.png", plot)


def _print(found: CalibrationOut, collection: str) -> None:
    model, console = found.copy_model, Console()
    lines = [
        f"{collection}: {model.copies:,} copies of {model.pictures:,} pictures, and "
        f"{model.others:,} pairs of other pictures",
        f"probability of a copy: 0.5 at score {-model.intercept / model.slope:.3f}, expected "
        f"calibration error {model.ece:.4f}",
        *(f"  {kind}: {share:.1%} found" for kind, share in model.found.items()),
    ]
    if model.duplicates:
        lines.append(f"{model.duplicates:,} pictures left out as duplicates in the collection")
    if (no_match := found.no_match) is not None:
        right = "" if no_match.found is None else f", {no_match.found:.1%} with one"
        lines.append(
            f"below score {no_match.threshold:.3f} nothing matches ({no_match.by}, "
            f"{no_match.queries:,} queries): {no_match.false_alarms:.1%} of queries without a "
            f"right picture reach it{right}"
        )
    for line in [*lines, *found.notes]:
        console.print(cell(line))


feedback = typer.Typer(
    help="Say which matches are right or wrong, list what was said, and take it back.",
    add_completion=False,
    no_args_is_help=True,
)


@feedback.command("add")
@client_flags(*MODEL_SETTINGS)
def add_feedback(
    match: Annotated[str, typer.Argument(help="Id of the match")],
    verdict: Annotated[str, typer.Argument(metavar="right|wrong", help="What it is")],
    *,
    target: Target,
    query: Annotated[
        str | None, typer.Option(metavar="ID", help="Stored picture that was searched with")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or the picture itself")
    ] = None,
    collection: Collection = DEFAULT,
) -> None:
    """Say whether a match is right or wrong; of a query and a match, the last word counts."""
    if verdict not in {"right", "wrong"}:
        raise ConfigurationError(f"{verdict!r} is neither right nor wrong")
    if (query is None) == (image is None):
        raise ConfigurationError("Name the query: --query ID or --image FILE, one of the two")
    with target.open(changes=True) as client:
        found = client.judge(
            match, right=verdict == "right", query=query, picture=image, collection=collection
        )
    typer.echo(f"{found.id}: {match} is {verdict}")


@feedback.command("list")
@client_flags("data_dir")
def list_feedback(
    *,
    target: Target,
    collection: Collection = DEFAULT,
    limit: Annotated[int, typer.Option(min=1, help="Most judgements to list")] = 100,
    as_json: Json = False,
) -> None:
    """List what was said of matches, oldest first."""
    with target.open() as client:
        listed = list(islice(client.judgements(collection), limit + 1))
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in listed[:limit]], indent=2))
        return
    ids = [Column(name, min_width=16, overflow="fold") for name in ("id", "query", "match")]
    table = Table(*ids, "is", "judged")
    for one in listed[:limit]:
        query = one.query or f"({one.query_sha256[:12]})"
        said = "right" if one.right else "wrong"
        table.add_row(one.id, query, one.match, said, one.judged_at[:16].replace("T", " "))
    console = Console()
    console.print(table)
    if len(listed) > limit:
        console.print(f"There are more; --limit shows more than {limit}.")


@feedback.command("delete")
@client_flags("data_dir")
def delete_feedback(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Judgements, by id")],
    *,
    target: Target,
    collection: Collection = DEFAULT,
) -> None:
    """Take back what was said of matches."""
    with target.open(changes=True) as client:
        for judgement_id in ids:
            client.delete_judgement(judgement_id, collection=collection)
    typer.echo(f"deleted {len(ids)}")
