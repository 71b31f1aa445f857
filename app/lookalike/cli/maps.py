"""`lookalike map` and `lookalike cluster`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import Json, cell, progress, settings_flags
from lookalike.cli.vector_sets import SET_SETTINGS, Wanted, open_vectors, set_flags
from lookalike.extras import require_extra
from lookalike.services.clusters import Clusters, cluster_pictures
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.contact_sheet import group_labels, write_clusters
from lookalike.visualization.map import make_map, write_map
from lookalike.visualization.pages import check_writable


@settings_flags(*SET_SETTINGS)
@set_flags
def map_pictures(
    given: dict[str, Any],
    wanted: Wanted,
    *,
    components: Annotated[
        int, typer.Option(min=2, help="Numbers that PCA keeps of a vector before t-SNE")
    ] = 100,
    perplexity: Annotated[
        float, typer.Option(min=1, help="About how many neighbors t-SNE keeps together")
    ] = 30.0,
    out: Annotated[
        Path, typer.Option(help="Folder for map.html, scatter.png, grid.png and places.csv")
    ] = Path("output"),
) -> None:
    """Draw a map on which similar pictures lie together."""
    require_extra("viz", "a map")
    check_writable(out / "map.html")
    with progress() as drawn, open_vectors(wanted, given, drawn) as vectors:
        layout = make_map(
            vectors,
            components=components,
            perplexity=perplexity,
            seed=wanted.seed,
            progress=drawn,
        )
        paths = write_map(layout, vectors, out, progress=drawn)
    typer.echo(f"{len(vectors)} pictures; PCA kept {layout.pca.kept:.1%} of the variance")
    if vectors.skipped:
        typer.echo(f"{len(vectors.skipped)} pictures were skipped")
    for path in paths:
        typer.echo(str(path))


@settings_flags(*SET_SETTINGS)
@set_flags
def cluster(
    given: dict[str, Any],
    wanted: Wanted,
    *,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="How many groups; chosen by silhouette if not given")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for index.html, groups.csv and a contact sheet of each group"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Group pictures that look alike."""
    require_extra("viz", "grouping pictures")
    if out is not None:
        check_writable(out / "index.html")
    paths: list[Path] = []
    with progress() as drawn, open_vectors(wanted, given, drawn) as vectors:
        found = cluster_pictures(
            vectors,
            clusters=clusters,
            seed=wanted.seed,
            progress=drawn.stage("choosing the number of groups"),
        )
        if out is not None:
            paths = write_clusters(found, vectors, out)
        if as_json:
            typer.echo(_json(found, vectors))
        else:
            _print(found, vectors)
    for path in paths[:1] if as_json else paths:
        typer.echo(str(path), err=as_json)


def _json(found: Clusters, vectors: VectorSet) -> str:
    groups = [
        {
            "group": number,
            "ids": [vectors.ids[position] for position in group.positions],
            "scores": [round(score, 6) for score in group.scores.tolist()],
        }
        for number, group in enumerate(found.groups, start=1)
    ]
    facts = {"name": vectors.name, "count": len(vectors), "purity": found.purity, "nmi": found.nmi}
    return json.dumps({**facts, "silhouettes": found.tried, "groups": groups}, indent=2)


def _print(found: Clusters, vectors: VectorSet) -> None:
    table = Table("group", "pictures", "most central", "labels", title=f"groups in {vectors.name}")
    for number, group in enumerate(found.groups, start=1):
        central = ", ".join(vectors.names[position] for position in group.positions[:3])
        labels = ", ".join(f"{label} {n}" for label, n in group_labels(group, vectors)[:3])
        table.add_row(str(number), str(len(group)), cell(central), cell(labels))
    console = Console()
    console.print(table)
    if found.purity is not None:
        console.print(f"purity {found.purity:.3f}, normalized mutual information {found.nmi:.3f}")
