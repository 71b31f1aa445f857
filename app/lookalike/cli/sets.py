"""Commands about whole sets, of a dataset or a collection: `evaluate`, `map`, `train`..."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from rich.console import Console
from rich.table import Column, Table

from lookalike import bootstrap
from lookalike.cli.common import (
    MODEL_SETTINGS,
    Exclude,
    Json,
    add_flags,
    cell,
    flag,
    progress,
    settings_flags,
)
from lookalike.config import Settings, load_settings
from lookalike.errors import ConfigurationError
from lookalike.evaluation import runner
from lookalike.evaluation.datasets import Dataset, open_dataset, sample
from lookalike.evaluation.extraction import extract_vectors
from lookalike.evaluation.report import write_html, write_json
from lookalike.evaluation.runner import Evaluation
from lookalike.extras import require_extra
from lookalike.models.head import HeadedEncoder
from lookalike.progress import Progress
from lookalike.services.clusters import Clusters, cluster_pictures
from lookalike.services.vector_set import VectorSet, stored_vectors
from lookalike.store.filters import parse_filter
from lookalike.training.comparison import Compared, compare, with_head
from lookalike.training.plan import TrainingOptions
from lookalike.visualization import contact_sheet as sheets
from lookalike.visualization.map import make_map, write_map
from lookalike.visualization.pages import claim_output

if TYPE_CHECKING:  # imports torch, which --help does not wait for
    from lookalike.training.trainer import Epoch, TrainingResult


SET_SETTINGS = (*MODEL_SETTINGS, "cache_dir")
"""Settings that matter to a command that embeds a dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which set a command works on. Each field is a flag, see `set_flags`."""

    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="A folder with a sub-folder for each class, a CSV of path,label, or cifar10",
        ),
    ] = None
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="A collection of the data folder, not a dataset"),
    ] = None
    label_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Of a collection: the metadata field with the label"),
    ] = None
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", help="Of a collection: only pictures that pass"),
    ] = None
    kind: Annotated[
        Literal["auto", "folder", "flat", "cifar10", "sop", "csv"],
        typer.Option(
            metavar="KIND",
            help="How to read the dataset: auto, folder, flat, cifar10, sop (Stanford Online "
            "Products) or csv",
        ),
    ] = "auto"
    split: Annotated[
        Literal["train", "test"] | None, typer.Option(help="Of cifar10 and sop: test if not given")
    ] = None
    sop_label: Annotated[
        Literal["class", "super_class"] | None,
        typer.Option(metavar="LABEL", help="Of sop: class (if not given) or super_class"),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Of a dataset: only so many pictures, at random"),
    ] = None
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same seed makes the same choices")
    ] = 0
    exclude: Exclude = None


def require_label_field(wanted: Wanted) -> None:
    """Raises `ConfigurationError` if a collection is named without its label field."""
    if wanted.collection is not None and wanted.label_field is None:
        raise ConfigurationError(
            "Name the metadata field that says what a picture shows, with --label-field"
        )


def set_flags(command: Callable[..., None], *, without: str = "") -> Callable[..., None]:
    """Gives a command the flags of a set, as `wanted: Wanted` and as settings in `given`."""
    hints = get_type_hints(Wanted, include_extras=True)
    flags = [flag(one.name, hints[one.name], one.default) for one in fields(Wanted)]
    names = [name for name in SET_SETTINGS if name != without]
    return settings_flags(*names)(add_flags(command, "wanted", flags, Wanted))


@contextmanager
def open_vectors(
    wanted: Wanted, given: dict[str, Any], progress: Progress, *, out: Path | None = None
) -> Iterator[VectorSet]:
    """Opens a set with its vectors, which are extracted if they are not kept yet.

    Pictures in `out`, the folder that the command writes to, are not the set's.

    Raises:
        ConfigurationError: Not one of dataset and collection is named, or a flag does not fit.
    """
    settings = load_settings(**given)
    if (wanted.dataset is None) == (wanted.collection is None):
        raise ConfigurationError(
            "Name either a DATASET (a folder, a CSV, cifar10) or a --collection of the data folder"
        )
    if wanted.collection is not None:
        _refuse_dataset_flags(wanted, given)
        with closing(bootstrap.open_store(settings, read_only=True)) as store:
            pictures = bootstrap.build_pictures(settings, store)
            label, where = wanted.label_field, parse_filter(wanted.where)
            yield stored_vectors(store, pictures, wanted.collection, label_field=label, where=where)
        return
    if wanted.label_field is not None or wanted.where is not None:
        raise ConfigurationError("--label-field and --filter belong to a --collection")
    dataset = open_wanted(wanted, settings, [] if out is None else [out])
    with closing(bootstrap.build_encoders(settings)) as encoders:
        yield extract_vectors(
            dataset,
            encoders.default,
            bootstrap.build_decoder(settings),
            cache=settings.cache_dir,
            progress=progress.stage("extracting"),
            cores=settings.cores,
        )


def _refuse_dataset_flags(wanted: Wanted, given: dict[str, Any]) -> None:
    flags = [name for name in SET_SETTINGS if name != "data_dir" and given.get(name) is not None]
    flags += [name for name in ("split", "sop_label", "limit") if getattr(wanted, name) is not None]
    flags += ["kind"] if wanted.kind != "auto" else []
    flags += ["exclude"] if wanted.exclude else []
    if flags:
        raise ConfigurationError(
            f"--{flags[0].replace('_', '-')} belongs to a dataset; a collection has its vectors "
            "already. Leave it out"
        )


def open_wanted(wanted: Wanted, settings: Settings, avoid: Sequence[Path]) -> Dataset:
    """Opens the dataset that is named; raises `ConfigurationError`."""
    assert wanted.dataset is not None
    dataset = open_dataset(
        wanted.dataset,
        kind=wanted.kind,
        split=wanted.split,
        label=wanted.sop_label,
        exclude=wanted.exclude or (),
        avoid=avoid,
        cache_dir=settings.cache_dir,
    )
    limit = wanted.limit
    return dataset if limit is None else sample(dataset, count=limit, seed=wanted.seed)


_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}


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

    claim_output(out / "report.json")
    with progress() as drawn, open_vectors(wanted, given, drawn, out=out) as vectors:
        _warn_of_splits(vectors)
        if query_index is not None:
            _one_query(vectors, query_index, k=k, out=out, as_json=as_json)
            return

        ranking = drawn.stage("ranking")
        found = runner.evaluate(vectors, k=k, queries=queries, seed=wanted.seed, progress=ranking)
        write_json(found, out / "report.json")
        write_html(found, vectors, out / "report.html")
    if as_json:
        typer.echo((out / "report.json").read_text(encoding="utf-8"))
    else:
        _print_evaluation(found, out)


def _warn_of_splits(vectors: VectorSet) -> None:
    """Says so where the classes look like the parts of a dataset."""
    classes = set(vectors.labels or ())
    if classes and classes <= _SPLITS:
        names = ", ".join(sorted(classes))
        text = f"The classes are {names}: name one of these folders, if the classes are inside"
        typer.secho(text, err=True, fg="yellow")


def _one_query(vectors: VectorSet, position: int, *, k: int, out: Path, as_json: bool) -> None:
    found = runner.evaluate_query(vectors, position, k)
    path = out / f"query-{position}.png"
    matches = [(match.position, match.score, match.relevant) for match in found.matches]
    sheets.save_picture(sheets.query_sheet(vectors, position, matches), path)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "sheet": str(path)}, indent=2))
        return
    label = "" if found.label is None else f", {found.label}"
    typer.echo(f"Query {position}: {found.name}{label}")
    if found.precision is not None:
        typer.echo(f"Precision@{k}: {found.precision:.2f}")
    else:
        why = "there are no labels" if found.label is None else "no other picture has its label"
        typer.echo(f"Precision@{k}: not known, {why}")
    typer.echo(f"Saved {path}")


def _print_evaluation(found: Evaluation, out: Path) -> None:
    spec = found.spec
    console = Console()
    console.print(cell(f"{found.dataset}: {found.pictures} pictures, {found.classes} classes"))
    head = f" with head {spec.head[:8]}" if spec.head else ""
    console.print(
        f"{spec.model}, {spec.weights} weights{head}, {spec.pooling} pooling, input "
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
    claim_output(out / "map.html")
    with progress() as drawn, open_vectors(wanted, given, drawn, out=out) as vectors:
        numbers: dict[str, Any] = {"components": components, "perplexity": perplexity}
        layout = make_map(vectors, **numbers, seed=wanted.seed, progress=drawn)
        paths = write_map(layout, vectors, out, progress=drawn)
    typer.echo(f"{len(vectors)} pictures; PCA kept {layout.pca.kept:.1%} of the variance")
    if vectors.skipped:
        typer.echo(f"{len(vectors.skipped)} pictures were skipped")
    for path in paths:
        typer.echo(str(path))


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
        claim_output(out / "index.html")
    paths: list[Path] = []
    with progress() as drawn, open_vectors(wanted, given, drawn, out=out) as vectors:
        choosing = drawn.stage("choosing the number of groups")
        found = cluster_pictures(vectors, clusters=clusters, seed=wanted.seed, progress=choosing)
        if out is not None:
            paths = sheets.write_clusters(found, vectors, out)
        if as_json:
            typer.echo(_clusters_json(found, vectors))
        else:
            _print_clusters(found, vectors)
    for path in paths[:1] if as_json else paths:
        typer.echo(str(path), err=as_json)


def _clusters_json(found: Clusters, vectors: VectorSet) -> str:
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


def _print_clusters(found: Clusters, vectors: VectorSet) -> None:
    table = Table("group", "pictures", "most central", "labels", title=f"groups in {vectors.name}")
    for number, group in enumerate(found.groups, start=1):
        central = ", ".join(vectors.names[position] for position in group.positions[:3])
        labels = ", ".join(f"{label} {n}" for label, n in sheets.group_labels(group, vectors)[:3])
        table.add_row(str(number), str(len(group)), cell(central), cell(labels))
    console = Console()
    console.print(table)
    if found.purity is not None:
        console.print(f"purity {found.purity:.3f}, normalized mutual information {found.nmi:.3f}")


_CHECKPOINT = "checkpoint.pt"


@partial(set_flags, without="head")
def train(
    given: dict[str, Any],
    wanted: Wanted,
    *,
    loss: Annotated[
        Literal["triplet", "multi_similarity"],
        typer.Option(metavar="LOSS", help="What is minimized: triplet or multi_similarity"),
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
    no_augmentation: Annotated[
        bool, typer.Option("--no-augmentation", help="Of --full: no random crops, none mirrored")
    ] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Of --full: less memory, more time")
    ] = False,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Of --full: the network in bfloat16")
    ] = False,
    from_feedback: Annotated[
        bool,
        typer.Option(
            "--from-feedback", help="Of a --collection: learn from its judged matches, not labels"
        ),
    ] = False,
) -> None:
    """Train a head on a labelled set's vectors, and measure what it changes."""
    require_extra("train", "training")
    from lookalike.training.files import write_training  # noqa: PLC0415 - imports torch

    if from_feedback:
        shared: dict[str, Any] = {"epochs": epochs, "patience": patience, "seed": wanted.seed}
        options = TrainingOptions(learning_rate=learning_rate, **shared)
        _train_on_judgements(wanted, given, options, out)
        return
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
        "augmentation": not no_augmentation,
        "gradient_checkpointing": gradient_checkpointing,
        "mixed_precision": mixed_precision,
    }
    claim_output(out / "metrics.json")
    with progress() as drawn, open_vectors(wanted, given, drawn, out=out) as vectors:
        how = chosen if full else None
        result, headed = _fit(vectors, options, given, how, out / _CHECKPOINT, drawn)
        measuring = drawn.stage("measuring")
        compared = compare(vectors, headed, result.split, seed=options.seed, progress=measuring)
        paths = write_training(result, headed, compared, out)
        (out / _CHECKPOINT).unlink(missing_ok=True)
    _print_training(vectors, result, compared, paths)


def _train_on_judgements(
    wanted: Wanted, given: dict[str, Any], options: TrainingOptions, out: Path
) -> None:
    """Learns from what was said of a collection's matches; says what that changes."""
    from lookalike.training import feedback  # noqa: PLC0415 - imports torch

    if wanted.collection is None or wanted.dataset is not None:
        raise ConfigurationError("--from-feedback belongs to a --collection of the data folder")
    if wanted.label_field is not None or wanted.where is not None:
        raise ConfigurationError("--label-field and --filter do not go with --from-feedback")
    _refuse_dataset_flags(wanted, given)
    claim_output(out / "metrics.json")
    with closing(bootstrap.open_store(load_settings(**given), read_only=True)) as store:
        judged = feedback.read_judged(store, wanted.collection, seed=options.seed)
    with progress() as drawn:
        bar = drawn.stage("training")
        found = feedback.train_on_judgements(
            judged, options, on_epoch=lambda number, _: bar.report(number, options.epochs)
        )
    path = feedback.write_feedback_training(found, out)
    counts, name = found.judgements, wanted.collection
    for line in (
        f"{name}: {counts['right']:,} right and {counts['wrong']:,} wrong matches; "
        f"{counts['unusable']:,} more cannot be used, for a picture has no vector",
        f"trained on {counts['train']:,} in {found.epochs} epochs; the best is epoch "
        f"{found.best_epoch}, by {counts['validation']:,} others",
        f"{counts['held_out']:,} held out: a right match scores above a wrong one with probability "
        f"{found.before:.3f} before, {found.after:.3f} after (95% interval of the change "
        f"{found.low:+.3f} to {found.high:+.3f})",
        f"the score of two pictures at random changes by {found.moved:.3f}",
        "It helps."
        if found.helps
        else "It is not certain that this helps: do not use it; judge more matches first.",
        str(path),
        f"Move the collection with lookalike reembed -c {name} --head {path}; go back with "
        f"lookalike vectors rollback {name}",
    ):
        Console().print(cell(line), soft_wrap=True)


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
        found = full.train_full(
            vectors, weights=bootstrap.model_request(settings).weights, full=how, **told
        )
        path = found.save_backbone(checkpoint.parent)
        trained = load_settings(**{**given, "weights": str(path)})
        encoder = HeadedEncoder(bootstrap.build_encoder(trained), found.training.head)
        return found.training, full.extract_again(vectors, encoder)
    except KeyboardInterrupt:
        if checkpoint.exists():
            typer.echo(f"Stopped; {checkpoint} is kept, the same command goes on", err=True)
        raise


def _print_training(
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
        _print_changes(console, compared)
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


def _print_changes(console: Console, compared: Sequence[Compared]) -> None:
    """Prints a table for each part, 80 columns wide; metrics.json has every interval."""
    for part in compared:
        title = f"{part.title}: {part.before.queries} queries"
        right = [Column(name, justify="right") for name in ("before", "after", "change")]
        interval = Column("95% interval of the change", justify="right")
        table = Table("metric", *right, interval, title=title, title_justify="left")
        rows = zip(part.before.metrics, part.after.metrics, part.changes, strict=True)
        for before, after, change in rows:
            if before.k != 1 or before.name == "hit_rate":  # at rank 1, most equal the hit rate
                papers = f"Top-{before.k} accuracy"  # what papers call the hit rate
                name = papers if before.name == "hit_rate" else before.title
                means = (f"{before.value:.4f}", f"{after.value:.4f}", f"{change.value:+.4f}")
                table.add_row(name, *means, f"{change.low:+.3f} to {change.high:+.3f}")
        console.print(table)
