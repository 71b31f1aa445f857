"""`lookalike train`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from lookalike.bootstrap import build_encoder
from lookalike.cli.common import cell, progress
from lookalike.cli.sets import Wanted, open_vectors, require_label_field, set_flags
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
    from lookalike.training.files import write_training  # noqa: PLC0415 - imports torch

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
    chosen = {
        "augmentation": augmentation,
        "gradient_checkpointing": gradient_checkpointing,
        "mixed_precision": mixed_precision,
    }
    with progress() as drawn, open_vectors(wanted, given, drawn) as vectors:
        how = chosen if full else None
        result, headed = _fit(vectors, options, given, how, out / _CHECKPOINT, drawn)
        measuring = drawn.stage("measuring")
        compared = compare(vectors, headed, result.split, seed=options.seed, progress=measuring)
        paths = write_training(result, headed, compared, out)
        (out / _CHECKPOINT).unlink(missing_ok=True)
    _print(vectors, result, compared, paths)


def _fit(
    vectors: VectorSet,
    options: TrainingOptions,
    given: dict[str, Any],
    chosen: dict[str, bool] | None,
    checkpoint: Path,
    drawn: Progress,
) -> tuple[TrainingResult, VectorSet]:
    """Trains a head, or with `chosen` the network as well; returns the set's new vectors, too."""
    from lookalike.training import full, trainer  # noqa: PLC0415 - imports torch

    def tell(epoch: Epoch, epochs: int) -> None:
        drawn.report(epoch.number, epochs, stage="training")
        measured = "" if epoch.validation is None else f"  validation MAP@R {epoch.validation:.4f}"
        typer.echo(f"epoch {epoch.number}/{epochs}  loss {epoch.loss:.4f}{measured}", err=True)

    told: dict[str, Any] = {"options": options, "on_progress": tell, "checkpoint": checkpoint}
    try:
        if chosen is None:
            result = trainer.train_head(vectors, **told)
            return result, with_head(vectors, result.head)
        settings = load_settings(**given)
        how = full.FullOptions(device=settings.device, **chosen)
        found = full.train_full(vectors, weights=settings.weights, full=how, **told)
        path = found.save_backbone(checkpoint.parent)
        trained = load_settings(**{**given, "weights": str(path)})
        encoder = HeadedEncoder(build_encoder(trained), found.training.head)
        return found.training, full.extract_again(vectors, encoder)
    except KeyboardInterrupt:
        if checkpoint.exists():
            typer.echo(f"Stopped; {checkpoint} is kept, the same command goes on", err=True)
        raise


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
    def shown(metric: Metric | Change, sign: str = "") -> str:
        low, high = f"{metric.low:{sign}.3f}", f"{metric.high:{sign}.3f}"
        return f"{metric.value:{sign}.4f} ({low} to {high})"

    table = Table("part", "metric", "before", "after", "change")
    for part in compared:
        first = f"{part.title}: {part.before.queries} queries"
        rows = zip(part.before.metrics, part.after.metrics, part.changes, strict=True)
        for before, after, change in rows:
            if before.k != 1 or before.name == "hit_rate":  # at rank 1, most equal the hit rate
                cells = (shown(before), shown(after), shown(change, "+"))
                table.add_row(first, _title(before), *cells)
                first = ""
        table.add_section()
    console.print(table)


def _title(metric: Metric) -> str:
    """The name that papers use: the hit rate is the top-k accuracy."""
    return f"Top-{metric.k} accuracy" if metric.name == "hit_rate" else metric.title
