"""`lookalike cluster`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli.options import Json, settings_flags
from lookalike.cli.vector_sets import SET_SETTINGS, Wanted, open_vectors, set_flags

if TYPE_CHECKING:
    from lookalike.services.clusters import Clusters
    from lookalike.services.vector_set import VectorSet


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
    from lookalike.cli.progress import progress  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.visualization.pages import check_writable  # noqa: PLC0415

    if out is not None:
        check_writable(out / "index.html")
    paths: list[Path] = []
    with progress() as report, open_vectors(wanted, given, report) as vectors:
        from lookalike.progress import Progress  # noqa: PLC0415 - see lookalike.cli.main
        from lookalike.services.clusters import cluster_pictures  # noqa: PLC0415

        found = cluster_pictures(
            vectors,
            clusters=clusters,
            seed=wanted.seed,
            progress=Progress(report).stage("choosing the number of groups"),
        )
        if out is not None:
            from lookalike.visualization.clusters_page import write_clusters  # noqa: PLC0415

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
    from rich.console import Console  # noqa: PLC0415 - see lookalike.cli.main
    from rich.table import Table  # noqa: PLC0415

    from lookalike.cli.tables import cell  # noqa: PLC0415
    from lookalike.visualization.clusters_page import group_labels  # noqa: PLC0415

    table = Table("group", "pictures", "most central", "labels", title=f"groups in {vectors.name}")
    for number, group in enumerate(found.groups, start=1):
        central = ", ".join(vectors.names[position] for position in group.positions[:3])
        labels = ", ".join(f"{label} {n}" for label, n in group_labels(group, vectors)[:3])
        table.add_row(str(number), str(len(group)), cell(central), cell(labels))
    console = Console()
    console.print(table)
    if found.purity is not None:
        console.print(f"purity {found.purity:.3f}, normalized mutual information {found.nmi:.3f}")
