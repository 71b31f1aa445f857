"""`lookalike evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import Json, cell, progress, settings_flags
from lookalike.cli.vector_sets import (
    SET_SETTINGS,
    Wanted,
    open_vectors,
    require_label_field,
    set_flags,
)
from lookalike.evaluation import runner
from lookalike.evaluation.report import write_html, write_json
from lookalike.evaluation.results import Evaluation
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.contact_sheet import query_sheet, save_picture
from lookalike.visualization.pages import check_writable

_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}


@settings_flags(*SET_SETTINGS)
@set_flags
def evaluate(
    given: dict[str, Any],
    wanted: Wanted,
    *,
    k: Annotated[int, typer.Option("-k", min=1, help="Ranks that classes are judged by")] = 10,
    queries: Annotated[
        int | None, typer.Option(min=1, help="So many random queries; every picture if not given")
    ] = None,
    query_index: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="One query alone, by its position from 0 among the pictures that can be read",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report.json, report.html and contact sheets")
    ] = Path("output"),
    as_json: Json = False,
) -> None:
    """Measure how well the pictures of a labelled set find those of their class."""
    if query_index is None:
        require_label_field(wanted)

    check_writable(out / "report.json")
    with progress() as drawn, open_vectors(wanted, given, drawn) as vectors:
        _warn_of_splits(vectors)
        if query_index is not None:
            _one_query(vectors, query_index, k=k, out=out, as_json=as_json)
            return

        found = runner.evaluate(
            vectors,
            k=k,
            queries=queries,
            seed=wanted.seed,
            progress=drawn.stage("ranking"),
        )
        write_json(found, out / "report.json")
        write_html(found, vectors, out / "report.html")
    if as_json:
        typer.echo((out / "report.json").read_text(encoding="utf-8"))
    else:
        _print(found, out)


def _warn_of_splits(vectors: VectorSet) -> None:
    """Says so where the classes look like the parts of a dataset."""
    classes = set(vectors.labels or ())
    if classes and classes <= _SPLITS:
        typer.secho(
            f"The classes are {', '.join(sorted(classes))}: name one of these folders, if the "
            "classes are inside",
            err=True,
            fg="yellow",
        )


def _one_query(vectors: VectorSet, position: int, *, k: int, out: Path, as_json: bool) -> None:
    found = runner.evaluate_query(vectors, position, k)
    path = out / f"query-{position}.png"
    matches = [(match.position, match.score, match.relevant) for match in found.matches]
    save_picture(query_sheet(vectors, position, matches), path)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "sheet": str(path)}, indent=2))
        return
    label = "" if found.label is None else f", {found.label}"
    typer.echo(f"Query {position}: {found.name}{label}")
    if found.precision is not None:
        typer.echo(f"Precision@{k}: {found.precision:.2f}")
    elif found.label is None:
        typer.echo(f"Precision@{k}: not known, there are no labels")
    else:
        typer.echo(f"Precision@{k}: not known, no other picture has its label")
    typer.echo(f"Saved {path}")


def _print(found: Evaluation, out: Path) -> None:
    spec = found.spec
    console = Console()
    console.print(cell(f"{found.dataset}: {found.pictures} pictures, {found.classes} classes"))
    console.print(
        f"{spec.model}, {spec.weights} weights, {spec.pooling} pooling, input "
        f"{spec.preprocess.input_size}, {spec.dim} numbers, {found.index} index"
    )
    table = Table("metric")
    table.add_column("mean", justify="right")
    table.add_column("95% interval", justify="right")
    for metric in found.metrics:
        table.add_row(metric.title, f"{metric.value:.4f}", f"{metric.low:.4f} to {metric.high:.4f}")
    console.print(table)
    console.print(f"{found.queries} queries; chance {found.chance:.4f}")
    if found.left_out:
        console.print(f"{found.left_out} left out: no other picture has their label")
    if found.skipped:
        console.print(f"{len(found.skipped)} skipped; report.json names them and says why")
    for note in found.notes:
        console.print(cell(note))
    for name in ("report.html", "report.json"):
        typer.echo(str(out / name))
