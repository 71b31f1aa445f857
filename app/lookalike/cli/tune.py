"""`lookalike tune` and `lookalike quantize`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from lookalike import bootstrap
from lookalike.cli.common import DEFAULT, Collection, Json, progress, settings_flags, size_text
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError
from lookalike.extras import require_extra
from lookalike.files.data_folder import make_data_folder
from lookalike.media.sources import readable, walk
from lookalike.models.registry import find_network_family
from lookalike.services.quantizing import Quantized, keep_quantized, quantize_model
from lookalike.store.tuning import Goal, Trial, Tuning
from lookalike.visualization.pages import check_writable, write_whole
from lookalike.visualization.tuning_plot import draw_tuning

_TEXTS = 2  # columns of the table that are folded at spaces


@settings_flags("data_dir", "threads")
def tune(
    given: dict[str, Any],
    *,
    collection: Collection = DEFAULT,
    index: Annotated[
        list[str] | None,
        typer.Option(
            "--index", metavar="KEY", help="An index type to try; repeat it. Several if not given"
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(help="Share of the true matches to find; LOOKALIKE_INDEX_RECALL or 0.99"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The most that the index may take, e.g. 2GB; LOOKALIKE_INDEX_MEMORY or any",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Matches asked for")] = 10,
    queries: Annotated[
        int, typer.Option(min=1, help="Queries beside pictures of the collection")
    ] = 200,
    sample: Annotated[
        int, typer.Option(min=1, help="Try on so many pictures at random, where there are more")
    ] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same choices")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw recall against milliseconds: a png")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try index types on a collection: recall, milliseconds, memory, seconds to build."""
    settings = load_settings(**given, index_recall=recall, index_memory=memory)
    goal = Goal(recall=settings.index_recall, memory=settings.index_memory)
    if out is not None:
        if out.suffix.lower() != ".png":
            raise ConfigurationError(f"{out} has to end in .png")
        require_extra("viz", "a plot")
        check_writable(out)
    numbers = {"k": k, "queries": queries, "sample": sample, "seed": seed}
    with progress() as drawn:
        tuning = bootstrap.tune_collection(
            settings, collection, candidates=index or [], **numbers, progress=drawn
        ).for_all()
    if out is not None:
        write_whole(out, draw_tuning(tuning, goal, name=collection))
    if as_json:
        typer.echo(_json(tuning, goal, collection))
    else:
        _print(tuning, goal, collection)
    if out is not None:
        typer.echo(str(out), err=as_json)
    if tuning.recommended(goal) is None:
        typer.echo(_nothing(goal), err=as_json)
        raise typer.Exit(1)


def _json(tuning: Tuning, goal: Goal, collection: str) -> str:
    chosen = tuning.recommended(goal)
    facts: dict[str, Any] = {
        "collection": collection,
        "goal": asdict(goal),
        "recommended": None if chosen is None else chosen.setting,
        "extrapolated": tuning.extrapolated,
        **asdict(tuning),
    }
    for trial in facts["trials"]:
        for point in trial["points"]:
            point["parameters"] = point.pop("effort")
    return json.dumps(facts, indent=2)


def _print(tuning: Tuning, goal: Goal, collection: str) -> None:
    chosen = tuning.recommended(goal)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    rows = [_cells(tuning, trial, goal, best=trial is chosen) for trial in tuning.trials]
    for number, name in enumerate(("", "index", "recall", "ms", "faster", "size", "build s")):
        longest = max(len(word) for row in rows for word in row[number].split() or [""])
        justify: Literal["left", "right"] = "left" if number < _TEXTS else "right"
        table.add_column(
            name, justify=justify, no_wrap=number >= _TEXTS, min_width=max(longest, len(name))
        )
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(
        f"{collection}: {tuning.rows:,} pictures of {tuning.dim} numbers; "
        f"{tuning.queries} queries beside them ask for {tuning.k} matches",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table, crop=False)
    for line in _advice(tuning, chosen, goal):
        console.print(line, highlight=False, soft_wrap=True)


def _cells(tuning: Tuning, trial: Trial, goal: Goal, *, best: bool) -> list[str]:
    """A row of the table: the fastest way that reaches the recall, else the one nearest to it."""
    point = trial.fastest(goal.recall) or trial.surest()
    if point is None:
        return ["-", f"{trial.setting}\nnot built: {trial.problem}", "", "", "", "", ""]
    short = point.recall < goal.recall
    large = goal.memory is not None and trial.bytes > goal.memory
    mark = "best" if best else "misses" if short else "too large" if large else ""
    return [
        mark,
        f"{trial.setting}\n{point.effort}",
        f"{point.recall:.4f}",
        f"{point.ms:.3f}",
        f"{tuning.exact_ms / point.ms:.1f}x",
        size_text(trial.bytes),
        f"{trial.build_s:.1f}",
    ]


def _nothing(goal: Goal) -> str:
    within = "" if goal.memory is None else f" within {size_text(goal.memory)}"
    return (
        f"No index type reaches a recall of {goal.recall:g}{within}. Ask for less with --recall, "
        "allow more with --memory, or try others with --index."
    )


def _advice(tuning: Tuning, chosen: Trial | None, goal: Goal) -> list[str]:
    """What to do with it, in sentences."""
    said = []
    if tuning.measured < tuning.rows:
        said.append(
            f"Measured on {tuning.measured:,} of {tuning.rows:,} pictures (--sample). Sizes are "
            "estimates for all of them, with the lists that suit so many. The ms of "
            f"{', '.join(tuning.extrapolated)} are "
            f"{tuning.rows / tuning.measured:.1f} times what was measured, since they grow with "
            "the number of pictures; other ms, which grow less, and build seconds are the sample's."
        )
    if chosen is None:
        return said
    said.append(f"LOOKALIKE_INDEX={chosen.setting}")
    if chosen is tuning.trials[0]:
        return said
    plan = bootstrap.plan_index(chosen.setting, tuning.rows, tuning.dim)
    if plan.factory is None:
        return [*said, f"In the service: {plan.reason}."]
    if goal.recall != Goal().recall:
        said.append(f"LOOKALIKE_INDEX_RECALL={goal.recall:g}")
    return [*said, "When it is built, the parameters that reach the recall are found anew."]


_ROUGH = 100
_SHOWN_ERRORS = 5


@settings_flags("data_dir", "model", "weights", "pooling", "resize", "input_size", "threads")
def quantize(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders of pictures like those that will be searched")
    ],
    given: dict[str, Any],
    *,
    pictures: Annotated[
        int, typer.Option(min=1, help="Pictures to calibrate on; at most half of those there are")
    ] = 300,
    min_overlap: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Least share of the ten nearest that must stay for it to be saved"
        ),
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Chooses the pictures")] = 0,
) -> None:
    """Make the model's int8 network for OpenVINO; served with LOOKALIKE_PRECISION=int8."""
    settings = load_settings(**given)
    request = bootstrap.model_request(settings)
    find_network_family(request.model)  # refuses others before the folders are read
    files = list(dict.fromkeys(found.path.resolve() for found in readable(walk(paths))))

    make_data_folder(settings.data_dir)
    run = bootstrap.run_options(settings)
    with progress() as drawn:
        decoder, many = bootstrap.build_decoder(settings), {"pictures": pictures, "seed": seed}
        made = quantize_model(request, run, files, decoder=decoder, progress=drawn, **many)
    _print_quantized(made)
    if made.agreement.overlap < min_overlap:
        typer.echo(
            f"not saved: the overlap is below {min_overlap:g}. Calibrate on more pictures "
            "(--pictures), on some that are more like those to be searched, or accept it with "
            "--min-overlap",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(f"saved in {keep_quantized(run.networks, made)}")
    typer.echo(
        "serve it with LOOKALIKE_PRECISION=int8; collections made in floats, or by an earlier int8 "
        "network, are moved to it by lookalike reembed --precision int8"
    )


def _print_quantized(made: Quantized) -> None:
    found = made.agreement
    typer.echo(
        f"calibrated on {made.calibrated} pictures, "
        f"compared with float32 on {found.pictures} others"
    )
    if found.pictures < _ROUGH:
        typer.echo(f"  these are few: a folder of {made.calibrated + _ROUGH} would say more")
    typer.echo(f"  cosine: least {found.cosine_min:.4f}, mean {found.cosine_mean:.5f}")
    typer.echo(f"  overlap of the ten nearest: {found.overlap:.4f}")
    for text in made.skipped[:_SHOWN_ERRORS]:
        typer.echo(f"skipped {text}", err=True)
    if len(made.skipped) > _SHOWN_ERRORS:
        typer.echo(f"skipped {len(made.skipped) - _SHOWN_ERRORS} more", err=True)
