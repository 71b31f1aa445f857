"""`lookalike map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lookalike.cli.options import settings_flags
from lookalike.cli.vector_sets import SET_SETTINGS, Wanted, open_vectors, set_flags


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
    from lookalike.cli.progress import progress  # noqa: PLC0415 - see lookalike.cli.main
    from lookalike.visualization.pages import check_writable  # noqa: PLC0415

    check_writable(out / "map.html")
    with progress() as report, open_vectors(wanted, given, report) as vectors:
        from lookalike.visualization.map import make_map, write_map  # noqa: PLC0415

        layout = make_map(
            vectors,
            components=components,
            perplexity=perplexity,
            seed=wanted.seed,
            on_progress=report,
        )
        paths = write_map(layout, vectors, out, on_progress=report)
    typer.echo(f"{len(vectors)} pictures; PCA kept {layout.pca.kept:.1%} of the variance")
    if vectors.skipped:
        typer.echo(f"{len(vectors.skipped)} pictures were skipped")
    for path in paths:
        typer.echo(str(path))
