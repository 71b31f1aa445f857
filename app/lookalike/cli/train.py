"""`lookalike train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from lookalike.bootstrap import build_encoder
from lookalike.cli.common import cell, progress
from lookalike.cli.sets import (
    Wanted,
    open_vectors,
    require_label_field,
    set_flags,
)
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError
from lookalike.evaluation.results import Metric
from lookalike.extras import require_extra
from lookalike.models.head import HeadedEncoder
from lookalike.progress import Progress
from lookalike.services.vector_set import VectorSet
from lookalike.training.comparison import Change, Compared, compare, with_head
from lookalike.training.plan import TrainingOptions

if TYPE_CHECKING:  # imports torch, which --help does not wait for
    from lookalike.training.trainer import Epoch, TrainingResult

_CHECKPOINT = "checkpoint.pt"


@partial(set_flags, without="head")
def train(
    given: dict[str, Any],
    wanted: Wanted,
    *,
    loss: Annotated[
        Literal["triplet", "multi_similarity"], typer.Option(help="What is minimized")
    ] = "triplet",
    margin: Annotated[
        float, typer.Option(help="Of triplet: by how much, in cosine, right matches must lead")
    ] = 0.2,
    dim: Annotated[int, typer.Option(help="Numbers in the head's vectors")] = 512,
    hidden: Annotated[
        list[int] | None, typer.Option(help="Width of a layer before the last; may be repeated")
    ] = None,
    epochs: Annotated[int, typer.Option(help="At most")] = 60,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs that do not help")] = 15,
    learning_rate: Annotated[float, typer.Option(help="At the start")] = 1e-4,
    hold_out_classes: Annotated[
        float | None,
        typer.Option(
            metavar="N|SHARE", help="Classes kept for measuring; a fifth if not given, 0 for none"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the head and all else")] = Path("head"),
    full: Annotated[
        bool, typer.Option("--full", help="Train the network below the head, too; wants a GPU")
    ] = False,
    augmentation: Annotated[
        bool, typer.Option(help="Of --full: random crops, half of them mirrored")
    ] = True,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Of --full: less memory, more time")
    ] = False,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Of --full: the network in bfloat16")
    ] = False,
) -> None:
    """Train a head on a labelled set's vectors, and measure what it changes."""
    require_extra("train", "training")
    require_label_field(wanted)
    if full and wanted.dataset is None:
        raise ConfigurationError("--full belongs to a DATASET: it changes what makes the vectors")
    options = TrainingOptions(
        loss=loss,
        margin=margin,
        dim=dim,
        hidden=tuple(hidden or ()),
        epochs=epochs,
        patience=patience,
        learning_rate=learning_rate,
        hold_out_classes=hold_out_classes,
        seed=wanted.seed,
    )
    with progress() as drawn, open_vectors(wanted, given, drawn) as vectors:
        if full:
            fit = _full_fit(
                given,
                out,
                augmentation=augmentation,
                gradient_checkpointing=gradient_checkpointing,
                mixed_precision=mixed_precision,
            )
        else:
            fit = _light_fit
        result, compared, paths = _train(vectors, options, fit, out, drawn)
    _print(vectors, result, compared, paths)


_Fit = Callable[..., "tuple[TrainingResult, VectorSet]"]
"""Trains, and gives the result and the set with its new vectors."""


def _light_fit(vectors: VectorSet, **options: Any) -> tuple[TrainingResult, VectorSet]:
    from lookalike.training.trainer import train_head  # noqa: PLC0415 - imports torch

    result = train_head(vectors, **options)
    return result, with_head(vectors, result.head)


def _full_fit(given: dict[str, Any], out: Path, **chosen: bool) -> _Fit:
    from lookalike.training import full  # noqa: PLC0415 - imports torch

    settings = load_settings(**given)

    def fit(vectors: VectorSet, **options: Any) -> tuple[TrainingResult, VectorSet]:
        found = full.train_full(
            vectors,
            weights=settings.weights,
            full=full.FullOptions(device=settings.device, **chosen),
            **options,
        )
        path = found.save_backbone(out)
        trained = load_settings(**{**given, "weights": str(path)})
        encoder = HeadedEncoder(build_encoder(trained), found.training.head)
        return found.training, full.extract_again(vectors, encoder)

    return fit


def _train(
    vectors: VectorSet, options: TrainingOptions, fit: _Fit, out: Path, drawn: Progress
) -> tuple[TrainingResult, Sequence[Compared], list[Path]]:
    from lookalike.training.files import write_training  # noqa: PLC0415 - imports torch

    checkpoint = out / _CHECKPOINT

    def tell(epoch: Epoch, epochs: int) -> None:
        drawn.report(epoch.number, epochs, stage="training")
        measured = "" if epoch.validation is None else f"  validation MAP@R {epoch.validation:.4f}"
        typer.echo(f"epoch {epoch.number}/{epochs}  loss {epoch.loss:.4f}{measured}", err=True)

    try:
        result, headed = fit(vectors, options=options, on_progress=tell, checkpoint=checkpoint)
    except KeyboardInterrupt:
        if checkpoint.exists():
            typer.echo(f"Stopped; {checkpoint} is kept, the same command goes on", err=True)
        raise
    compared = compare(
        vectors,
        headed,
        result.split,
        seed=options.seed,
        progress=drawn.stage("measuring"),
    )
    paths = write_training(result, headed, compared, out)
    checkpoint.unlink(missing_ok=True)
    return result, compared, paths


def _print(
    vectors: VectorSet, result: TrainingResult, compared: Sequence[Compared], paths: list[Path]
) -> None:
    console, split = Console(), result.split
    console.print(cell(f"{vectors.name}: {len(vectors)} pictures"))
    console.print(
        f"trained on {len(split.train)} pictures of {split.train_classes} classes in "
        f"{len(result.history)} epochs, {result.seconds:.1f} s; the best is epoch "
        f"{result.best_epoch}"
    )
    if result.resumed_after:
        console.print(f"went on after epoch {result.resumed_after} of an interrupted run")
    if compared:
        _print_table(console, compared)
    if vectors.skipped:
        console.print(f"{len(vectors.skipped)} skipped: they cannot be used, see metrics.json")
    for note in result.notes:
        console.print(cell(note))
    for path in paths:
        console.print(cell(str(path)))
    weights = ""
    if result.head.backbone != vectors.spec:
        weights = f"LOOKALIKE_WEIGHTS={paths[0].parent / result.head.backbone.weights} "
    console.print(cell(f"Serve it with {weights}LOOKALIKE_HEAD={paths[0]}"))


def _print_table(console: Console, compared: Sequence[Compared]) -> None:
    def shown(metric: Metric) -> str:
        return f"{metric.value:.4f} ({metric.low:.3f} to {metric.high:.3f})"

    def change(change: Change) -> str:
        return f"{change.value:+.4f} ({change.low:+.3f} to {change.high:+.3f})"

    table = Table("part", "metric", "before", "after", "change")
    for part in compared:
        first = f"{part.title}: {part.before.queries} queries"
        for before, after, apart in zip(
            part.before.metrics, part.after.metrics, part.changes, strict=True
        ):
            if _is_shown(before):
                table.add_row(first, _title(before), shown(before), shown(after), change(apart))
                first = ""
        table.add_section()
    console.print(table)


def _is_shown(metric: Metric) -> bool:
    """Whether the table shows a metric: at rank 1, most equal the hit rate."""
    return metric.k != 1 or metric.name == "hit_rate"


def _title(metric: Metric) -> str:
    """The name that papers use: the hit rate is the top-k accuracy."""
    return f"Top-{metric.k} accuracy" if metric.name == "hit_rate" else metric.title
