"""Commands that fill, show and change collections: `index`, `list`, `reembed` and the like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

import lookalike
from lookalike.cli.common import (
    DEFAULT,
    FETCH_SETTINGS,
    MODEL_SETTINGS,
    SHOWN_ERRORS,
    Collection,
    Exclude,
    FilterOption,
    Json,
    Target,
    cell,
    client_flags,
    metadata_cell,
    print_ended,
    print_errors,
    print_job,
    print_warnings,
    progress,
    read_filter,
    size_text,
    watch_job,
)
from lookalike.client import Outcome, Outcomes
from lookalike.errors import ConfigurationError, LookalikeError
from lookalike.media.manifests import is_manifest
from lookalike.media.sources import Selection, passed_over, walk
from lookalike.models.spec import ModelRequest
from lookalike.records import OnConflict
from lookalike.schemas import ChangedOut, JobOut
from lookalike.services.checks import WINDOW
from lookalike.services.feeds import ARCHIVE_ENDINGS
from lookalike.services.importing import copies_text

if TYPE_CHECKING:
    from lookalike import HttpClient


STAGE = "indexing"
SHOWN = 10  # copies that came with other metadata
MOST_SHOWN = 100  # files that failed; of more, the first few


@client_flags(*MODEL_SETTINGS, "originals", *FETCH_SETTINGS)
def index(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Pictures, folders to walk, archives, or manifests")
    ] = None,
    *,
    target: Target,
    collection: Collection = DEFAULT,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="Metadata for every picture")
    ] = None,
    folder_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Set this field to the name of the picture's folder"),
    ] = None,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="What to do with ids that exist")
    ] = OnConflict.REPLACE,
    on_server: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="With --server: a folder of the service's machine"),
    ] = None,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Add pictures to a collection; what is there already is skipped without work.

    A manifest (.csv, .tsv, .jsonl) names a path or a URL in each row, with an id and metadata.

    An archive (zip, tar, tar.gz, tar.bz2, tar.xz) is sent to a service (--server) as it is, which
    indexes its pictures in the background; so are manifests, and folders of the service's machine
    (--on-server).
    """
    if on_server and target.server is None:
        raise ConfigurationError("--on-server needs --server: which service is to read the folder?")
    options: dict[str, Any] = {
        "collection": collection,
        "on_conflict": on_conflict,
        "metadata": _common(metadata),
        "folder_field": folder_field,
    }
    if exclude:
        options["exclude"] = exclude
    archives = [path for path in paths or () if _is_archive(path) or is_manifest(path)]
    if missing := [path for path in archives if not path.is_file()]:
        raise ConfigurationError(f"{missing[0]} does not exist, or is no file")
    files = [path for path in paths or () if path not in archives]
    selection = Selection(exclude or ())
    # raises where one is missing
    some = [next(walk([path], selection=selection), None) is not None for path in files]
    if not (any(some) or archives or on_server):
        why = passed_over(selection.passed)
        raise ConfigurationError(
            f"No pictures found there{why and f' ({why})'}; name files or folders that hold some"
        )
    jobs: list[JobOut] = []
    with target.open(changes=True, must_exist=False) as client:
        with progress() as drawn:
            outcomes = client.index(*files, progress=drawn.stage(STAGE), **options)
            if isinstance(client, lookalike.Client):
                for path in archives:
                    stage = drawn.stage(f"{STAGE} {path.name}")
                    add = client.index_manifest if is_manifest(path) else client.index_archive
                    more = add(path, progress=stage, **options)
                    outcomes.extend(more)
                    outcomes.passed += more.passed
        if isinstance(client, lookalike.HttpClient):
            for place in (*archives, *(on_server or ())):  # one that fails harms no other
                try:
                    jobs.append(watch_job(client, _begin(client, place, options), stage=STAGE))
                except LookalikeError as exc:
                    outcomes.append(Outcome.failure(Path(place), exc))
    _report(outcomes, jobs, as_json=as_json)


def _common(metadata: str | None) -> dict[str, Any] | None:
    try:
        common = json.loads(metadata) if metadata is not None else None
    except ValueError as exc:
        raise ConfigurationError(f"--metadata is not valid JSON: {exc}") from exc
    if common is not None and not isinstance(common, dict):
        raise ConfigurationError('--metadata must be a JSON object such as {"label": "cat"}')
    return common


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_ENDINGS) and not path.is_dir()


def _begin(client: HttpClient, place: Path | str, options: dict[str, Any]) -> JobOut:
    """Has a service index an archive of this machine, or a folder of its own: a text."""
    if isinstance(place, str):
        return client.index_folder(place, **options)
    with progress() as drawn:
        if is_manifest(place):
            options = {name: value for name, value in options.items() if name != "exclude"}
            return client.index_manifest(place, progress=drawn, **options)
        return client.index_archive(place, progress=drawn, **options)


def _report(outcomes: Outcomes, jobs: Sequence[JobOut], *, as_json: bool) -> None:
    """Prints what became of all; exits with 1 where something failed."""
    counts = Counter(outcome.status for outcome in outcomes)
    copies = sum(outcome.copy_of is not None for outcome in outcomes)
    kept = [outcome for outcome in outcomes if outcome.kept_metadata]
    if as_json:
        items = [_item(outcome) for outcome in outcomes]
        more = {
            "copies": copies,
            "conflicts": list(map(_item, kept)),
            "passed_over": outcomes.passed,
        }
        ended = {"jobs": [job.model_dump(mode="json") for job in jobs]} if jobs else {}
        typer.echo(json.dumps({**counts, "items": items, **more, **ended}, indent=2))
    else:
        if outcomes:
            typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
        for line in (*copies_text(copies, len(kept)), passed_over(outcomes.passed)):
            if line:
                typer.echo(line)
        print_errors(f"{one.path}: its metadata is that of {one.copy_of}" for one in kept[:SHOWN])
        if len(kept) > SHOWN:
            print_errors([f"and {len(kept) - SHOWN:,} more; --json names them all"])
        failed = [one for one in outcomes if one.failed]
        shown = failed if len(failed) <= MOST_SHOWN else failed[:SHOWN_ERRORS]
        print_errors(f"{_named(one)}: {one.error}" for one in shown)
        if len(failed) > len(shown):
            left = len(failed) - len(shown)
            print_errors([f"and {left:,} more that failed; --json names them all"])
        for job in jobs:
            print_ended(job)
    if counts["failed"] or any(job.errors or job.state in {"failed", "canceled"} for job in jobs):
        raise typer.Exit(1)


def _named(outcome: Outcome) -> str:
    return f"{outcome.path}: {outcome.given}" if outcome.given else str(outcome.path)


def _item(outcome: Outcome) -> dict[str, Any]:
    reason = None if outcome.error is None else str(outcome.error)
    facts = {"path": str(outcome.path), "status": outcome.status, "id": outcome.id}
    facts |= {} if outcome.given is None else {"given": outcome.given}
    copied = {"copy_of": outcome.copy_of, "metadata_kept": outcome.kept_metadata}
    return facts | {"reason": reason} | copied


_MOVING = "re-embedding"


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
    model: dict[str, Any] = {}
    if str(target.given.get("head")) == "none":  # no setting can say it
        target.given["head"] = model["head"] = None
    if target.server is not None:
        model |= _named_model(target.given)
    with target.open(changes=True) as client:
        if isinstance(client, lookalike.Client):
            with progress() as drawn:
                try:
                    message = client.reembed(collection, model=model, progress=drawn.stage(_MOVING))
                finally:
                    print_errors(drawn.errors)
            typer.echo(message)
            return
        job = client.begin_reembed(collection, model=model)
        if watch:
            job = watch_job(client, job, stage=_MOVING)
    print_job(job, str(target.server), as_json=as_json)


def _named_model(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the model settings that a service accepts out of the flags."""
    model: dict[str, Any] = {}
    for name in (field.name for field in fields(ModelRequest)):
        if (value := given.pop(name, None)) is not None:
            model[name] = _number(value) if name == "input_size" else str(value)
    if (precision := given.pop("precision", None)) is not None:
        model["int8"] = str(precision) == "int8"
    return model


def _number(text: Any) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise ConfigurationError(f"--input-size is {text!r}; give a number of pixels") from exc


Facts = Mapping[str, Any]


@client_flags("data_dir")
def info(target: Target, *, as_json: Json = False) -> None:
    """Show collections, what made their vectors, their indexes with memory, and the version."""
    with target.open() as client:
        facts = client.info()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return

    console = Console()
    for collection in facts["collections"]:
        title = f"{collection['name']}: {collection['count']:,} pictures"
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in about(collection, facts):
            table.add_row(name, cell(text))
        console.print(table)
    if not facts["collections"]:
        console.print("There are no collections.")
    console.print(f"lookalike {facts['version']}")


def about(collection: Facts, facts: Facts) -> Iterator[tuple[str, str]]:
    """Yields lines about one of the collections in `facts`, an `info()`: a name and a text each."""
    index = facts["store"].get("collections", {}).get(collection["name"], {})
    yield "model", _model(collection["passport"], collection["provenance"])
    yield "index", _index(index, collection["index"])
    if building := index.get("building"):
        yield "building", f"{building['stage']}, {building['done']:,} of {building['total']:,}"
    if "failure" in index:
        yield "failure", index["failure"]
    if "type" in index:
        yield "memory", _memory(index)
    if recall := _recall(index, facts.get("recall", {}).get(collection["name"])):
        yield "recall", recall


def _model(spec: Facts, provenance: Facts) -> str:
    parts = [f"{spec['model']} with {spec['weights']} weights"]
    if spec["head"]:
        parts.append(f"head {spec['head'][:8]}")
    parts.append(f"{spec['dim']:,} numbers")
    if "precision" in provenance:
        parts.append(provenance["precision"])
    return ", ".join(parts)


def _index(index: Facts, setting: str) -> str:
    """The index type in use; for an index that is not loaded, what the folder has saved of it."""
    if "type" in index:
        return f"{index['type']}: {index['reason']}"
    saved = index.get("saved")
    if saved is None:
        return f"not loaded, and nothing is saved; as set here: {setting}"
    return (
        f"not loaded; saved: {saved['type']} of {saved['count']:,} pictures, "
        f"{size_text(saved['bytes'])} on the disk"
    )


def _memory(index: Facts) -> str:
    text = f"{size_text(index['bytes'])}, {index['bytes_per_picture']:,.0f} bytes a picture"
    mapped = index.get("mapped_bytes", 0)
    return f"{text}; {size_text(mapped)} mapped" if mapped else text


def _recall(index: Facts, measured: Facts | None) -> str | None:
    """Recall as measured on searches; before the first, as measured when the index was built."""
    if measured and measured["mean"] is not None:
        count = min(measured["samples"], WINDOW)
        return f"{measured['mean']:.4f}, mean of the last {count:,} searches that were measured"
    levels = index.get("calibration", [])
    parts = [f"{level['recall']:.4f} for {level['k']:,} matches" for level in levels]
    return f"when it was built {', '.join(parts)}" if parts else None


@client_flags("data_dir")
def list_images(
    target: Target,
    *,
    collection: Collection = DEFAULT,
    filter_: FilterOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most pictures to list")] = 100,
    as_json: Json = False,
) -> None:
    """List the pictures of a collection, oldest first."""
    where = read_filter(filter_)
    with target.open() as client:
        listed = list(islice(client.list(collection, filter=where), limit + 1))
        if where is not None:
            print_warnings(client.count(collection, filter=where).warnings)
    images, more = listed[:limit], len(listed) > limit
    if as_json:
        typer.echo(json.dumps([image.model_dump() for image in images], indent=2))
        return

    table = Table("id", "filename", "pixels", "metadata", "updated")
    for image in images:
        pixels = f"{image.width}x{image.height}"
        updated = image.updated_at[:19].replace("T", " ")
        metadata = metadata_cell(image.metadata)
        table.add_row(image.id, cell(image.path or image.filename), pixels, metadata, updated)
    console = Console()
    console.print(table)
    if more:
        console.print(f"There are more; --limit shows more than {limit}.")


@client_flags("data_dir")
def count(
    target: Target,
    *,
    collection: Collection = DEFAULT,
    filter_: FilterOption = None,
    as_json: Json = False,
) -> None:
    """Count the pictures of a collection, or those that pass a filter."""
    with target.open() as client:
        counted = client.count(collection, filter=read_filter(filter_))
    if as_json:
        typer.echo(counted.model_dump_json(indent=2))
        return
    typer.echo(counted.count)
    print_warnings(counted.warnings)


@client_flags("data_dir")
def facets(
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD]...", help="Fields, e.g. label size.w \\[the 32 commonest]"),
    ] = None,
    *,
    target: Target,
    collection: Collection = DEFAULT,
    filter_: FilterOption = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most values of a field")] = 10,
    as_json: Json = False,
) -> None:
    """Show metadata fields, their most frequent values, and how many pictures have them."""
    with target.open() as client:
        found = client.facets(collection, fields=fields, filter=read_filter(filter_), limit=limit)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    right = [Column(name, justify="right") for name in ("pictures", "values")]
    table = Table("field", *right, "range", "most frequent values")
    for facet in found.facets:
        ends = facet.numbers or facet.dates
        values = (
            f"{json.dumps(one.value, ensure_ascii=False)} ({one.count:,})" for one in facet.values
        )
        table.add_row(
            cell(facet.field),
            f"{facet.count:,}",
            f"{facet.distinct:,}",
            "" if ends is None else f"{ends.min} to {ends.max}",
            cell(", ".join(values)),
        )
    console = Console()
    console.print(table)
    if found.total_fields > len(found.facets):
        console.print(f"{found.total_fields:,} fields in all; name others to see them.")
    print_warnings(found.warnings)


Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Pictures, by id")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]


@client_flags("data_dir")
def delete(
    target: Target,
    ids: Ids = None,
    *,
    collection: Collection = DEFAULT,
    filter_: FilterOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete the whole collection")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete pictures by id, those that pass a filter, or a whole collection.

    Goes on past ids that do not exist, names them, and ends with 1.
    """
    chosen = _chosen(ids, filter_, everything, collection)
    if everything and not dry_run:
        if not yes:
            text = f"Delete the collection {collection!r} with all its pictures?"
            typer.confirm(text, abort=True)
        with target.open(changes=True) as client:
            client.drop(collection)
        typer.echo(f"deleted the collection {collection}")
        return
    with target.open(changes=not dry_run) as client:
        if filter_ is not None and not (dry_run or yes):
            count = client.delete_many(**chosen, dry_run=True).matched
            typer.confirm(f"Delete {count:,} pictures of {collection!r}?", abort=True)
        _print_changed("delete", client.delete_many(**chosen, dry_run=dry_run), as_json=as_json)


@client_flags("data_dir")
def update(
    target: Target,
    ids: Ids = None,
    *,
    metadata: Annotated[
        str,
        typer.Option(metavar="JSON", help='Fields to set, e.g. {"label": "cat"}; null removes one'),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove all other fields of these pictures")
    ] = False,
    collection: Collection = DEFAULT,
    filter_: FilterOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Change every picture")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Change the metadata of pictures by id, of those that pass a filter, or of all.

    Goes on past ids that do not exist, names them, and ends with 1.
    """
    chosen = _chosen(ids, filter_, everything, collection)
    patch = _common(metadata) or {}
    with target.open(changes=not dry_run) as client:
        changed = client.update_many(patch, **chosen, replace=replace, dry_run=dry_run)
        _print_changed("update", changed, as_json=as_json)


def _chosen(
    ids: list[str] | None, filter_: str | None, everything: bool, collection: str
) -> dict[str, Any]:
    """Which pictures a command is to change, for the clients."""
    if bool(ids) + (filter_ is not None) + everything != 1:
        raise ConfigurationError(
            "Name ids, a --filter, or --all for the whole collection: one of the three"
        )
    where = read_filter(filter_)
    return {"ids": ids, "filter": where, "everything": everything, "collection": collection}


def _print_changed(word: str, changed: ChangedOut, *, as_json: bool) -> None:
    """Prints what a change of many pictures did; ends with 1 if some failed."""
    print_warnings(changed.warnings)
    if as_json:
        typer.echo(changed.model_dump_json(indent=2))
    elif changed.dry_run:
        typer.echo(f"would {word} {changed.matched}")
        for image in changed.images:
            name = cell(image.path or image.filename)
            Console().print(f"  {image.id} ", name, metadata_cell(image.metadata))
        if changed.matched > len(changed.images) > 0:
            typer.echo("  ...")
    else:
        typer.echo(f"{word}d {changed.changed}")
    print_errors(f"{one.error.detail}" for one in changed.items if one.error)
    if changed.failed:
        raise typer.Exit(1)


collections = typer.Typer(
    help="Make, rename and alias collections.",
    add_completion=False,
    no_args_is_help=True,
)
Which = Annotated[str, typer.Argument(metavar="COLLECTION", help="Collection")]


@collections.command("create")
@client_flags(*MODEL_SETTINGS)
def create_collection(collection: Which, *, target: Target) -> None:
    """Make COLLECTION, empty; one that is there already is left as it is."""
    with target.open(changes=True, must_exist=False) as client:
        made = client.make(collection)
    typer.echo(f"{made.name} has {made.count:,} pictures")


@collections.command("rename")
@client_flags("data_dir")
def rename_collection(
    collection: Which,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name")],
    *,
    target: Target,
) -> None:
    """Give COLLECTION another name, in one step."""
    with target.open(changes=True) as client:
        client.rename(collection, new)
    typer.echo(f"{collection} is {new} now")


@collections.command("alias")
@client_flags("data_dir")
def put_alias(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The second name")],
    collection: Annotated[
        str | None, typer.Argument(metavar="[COLLECTION]", help="Where it leads")
    ] = None,
    *,
    target: Target,
    remove: Annotated[bool, typer.Option("--remove", help="Remove ALIAS")] = False,
) -> None:
    """Make ALIAS lead to COLLECTION, or move it there in one step."""
    if (collection is None) != remove:
        raise ConfigurationError("Name the collection that the alias leads to, or --remove")
    with target.open(changes=True) as client:
        if collection is None:
            client.unalias(alias)
        else:
            client.alias(alias, collection)
    typer.echo(f"{alias} is removed" if collection is None else f"{alias} is {collection} now")


vectors = typer.Typer(
    help="List the vectors of a collection, go back to kept ones, or discard them.",
    add_completion=False,
    no_args_is_help=True,
)


@vectors.command("list")
@client_flags("data_dir")
def list_vectors(collection: Which, *, target: Target, as_json: Json = False) -> None:
    """List the vectors of COLLECTION: one set for each model that it was embedded with."""
    with target.open() as client:
        sets = client.vectors(collection)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in sets], indent=2))
        return
    table = Table("digest", "model", "pictures", "in use")
    for one in sets:
        model = _model(one.passport.model_dump(), one.provenance)
        used = "yes" if one.active else ""
        table.add_row(one.passport.digest, cell(model), f"{one.count:,}", used)
    Console().print(table)


@vectors.command("rollback")
@client_flags(*MODEL_SETTINGS)
def rollback_vectors(
    collection: Which,
    digest: Annotated[
        str | None, typer.Argument(metavar="[DIGEST]", help="Vectors to go back to, if several")
    ] = None,
    *,
    target: Target,
) -> None:
    """Go back to vectors that COLLECTION has kept, as from a head that does not help."""
    with target.open(changes=True) as client, progress() as drawn:
        try:
            message = client.rollback(collection, digest=digest, progress=drawn.stage(_MOVING))
        finally:
            print_errors(drawn.errors)
    typer.echo(message)


@vectors.command("discard")
@client_flags("data_dir")
def discard_vectors(
    collection: Which,
    digests: Annotated[
        list[str] | None, typer.Argument(metavar="[DIGEST]...", help="Sets to discard")
    ] = None,
    *,
    target: Target,
    unused: Annotated[
        bool, typer.Option("--unused", help="Discard every set that is not in use")
    ] = False,
) -> None:
    """Delete vectors that COLLECTION no longer uses; going back means embedding again."""
    if bool(digests) == unused:
        raise ConfigurationError("Name the digests to discard, or --unused for all not in use")
    with target.open(changes=True) as client:
        if unused:
            digests = [one.passport.digest for one in client.vectors(collection) if not one.active]
        for digest in digests or []:
            client.discard_vectors(digest, collection=collection)
    typer.echo(f"discarded {len(digests or [])}")
