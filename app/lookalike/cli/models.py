"""`lookalike reembed` and `lookalike quantize`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import lookalike
from lookalike.bootstrap import build_decoder, model_request, run_options
from lookalike.cli.common import (
    DEFAULT,
    MODEL_SETTINGS,
    Collection,
    Json,
    Target,
    client_flags,
    print_errors,
    progress,
    settings_flags,
    watch_job,
)
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError
from lookalike.files.data_folder import make_data_folder
from lookalike.media.sources import readable, walk
from lookalike.models.registry import find_network_family
from lookalike.models.spec import ModelRequest
from lookalike.schemas import JobOut
from lookalike.services.quantizing import Quantized, keep_quantized, quantize_model

if TYPE_CHECKING:
    from lookalike import Client

STAGE = "re-embedding"


@client_flags(*MODEL_SETTINGS)
def reembed(
    target: Target,
    *,
    collection: Collection = DEFAULT,
    watch: Annotated[
        bool, typer.Option("--watch", help="With --server: draw the job's progress to its end")
    ] = False,
    as_json: Json = False,
) -> None:
    """Move a collection to another model: new vectors for every picture, then one switch.

    On a data folder it is done here, and again after an interruption it goes on where it was. A
    running service (--server) does it in the background and answers searches meanwhile; paths
    are then those of its machine. --head none means no head.
    """
    model = _without_head(target.given)
    if target.server is not None:
        model |= _named_model(target.given)
    with target.open(changes=True) as client:
        if isinstance(client, lookalike.Client):
            _here(client, collection, model)
            return
        job = client.begin_reembed(collection, model=model)
        if watch:
            job = watch_job(client, job, stage=STAGE)
    _print_job(job, str(target.server), as_json=as_json)


def _without_head(given: dict[str, Any]) -> dict[str, Any]:
    """Takes `--head none` out of the flags: no setting can say it."""
    if str(given.get("head")) != "none":
        return {}
    given["head"] = None
    return {"head": None}


def _here(client: Client, collection: str, model: dict[str, Any]) -> None:
    with progress() as drawn:
        try:
            message = client.reembed(collection, model=model, progress=drawn.stage(STAGE))
        finally:
            print_errors(drawn.errors)
    typer.echo(message)


def _named_model(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the model settings that a service accepts out of the flags."""
    model: dict[str, Any] = {}
    for name in (field.name for field in fields(ModelRequest)):
        if (value := given.pop(name, None)) is not None:
            model[name] = _number(value) if name == "input_size" else str(value)
    if (precision := given.pop("precision", None)) is not None:
        model["int8"] = str(precision) == "int8"
    return model


def _print_job(job: JobOut, server: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(job.model_dump_json(indent=2))
    elif not job.state.finished:
        typer.echo(
            f"job {job.id} is {job.state}; --watch draws how far it is, and so does "
            f"GET {server.rstrip('/')}/jobs/{job.id}"
        )
    else:
        print_errors(job.error_texts)
        typer.echo(f"job {job.id} is {job.state}: {job.message}")
    if job.state in {"failed", "canceled"}:
        raise typer.Exit(1)


def _number(text: Any) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise ConfigurationError(f"--input-size is {text!r}; give a number of pixels") from exc


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
    _print_quantized(made)
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


def _print_quantized(made: Quantized) -> None:
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
