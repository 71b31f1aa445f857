"""`lookalike quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lookalike.bootstrap import build_decoder, model_request, run_options
from lookalike.cli.options import settings_flags
from lookalike.cli.output import progress
from lookalike.config import load_settings
from lookalike.files.data_folder import make_data_folder
from lookalike.media.sources import readable, walk
from lookalike.models.registry import find_network_family
from lookalike.services.quantizing import Quantized, keep_quantized, quantize_model

_SETTINGS = ("data_dir", "model", "weights", "pooling", "resize", "input_size", "threads")
_ROUGH = 100
_SHOWN_ERRORS = 5


@settings_flags(*_SETTINGS)
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
    request = model_request(settings)
    find_network_family(request.model)  # refuses others before the folders are read
    files = list(dict.fromkeys(found.path.resolve() for found in readable(walk(paths))))

    make_data_folder(settings.data_dir)
    run = run_options(settings)
    with progress() as drawn:
        made = quantize_model(
            request,
            run,
            files,
            decoder=build_decoder(settings),
            pictures=pictures,
            progress=drawn,
            seed=seed,
        )
    _print(made)
    _require(made.agreement.overlap, min_overlap)
    typer.echo(f"saved in {keep_quantized(run.networks, made)}")
    typer.echo(
        "serve it with LOOKALIKE_PRECISION=int8; collections made in floats, or by an earlier int8 "
        "network, are moved to it by lookalike reembed --precision int8"
    )


def _require(overlap: float, least: float) -> None:
    """Ends the command if the overlap is too small."""
    if overlap >= least:
        return
    typer.echo(
        f"not saved: the overlap is below {least:g}. Calibrate on more pictures (--pictures), on "
        "some that are more like those to be searched, or accept it with --min-overlap",
        err=True,
    )
    raise typer.Exit(1)


def _print(made: Quantized) -> None:
    """Prints what the quantization costs."""
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
