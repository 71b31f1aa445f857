"""Where commands about whole sets get pictures and vectors: from a dataset or a collection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

import typer

from lookalike.bootstrap import build_decoder, build_encoders, build_pictures, open_store
from lookalike.cli.common import MODEL_SETTINGS, add_flags
from lookalike.config import Settings, load_settings
from lookalike.cores import available_cores
from lookalike.errors import ConfigurationError
from lookalike.evaluation.datasets import Dataset, open_dataset, sample
from lookalike.evaluation.extraction import extract_vectors
from lookalike.progress import Progress
from lookalike.services.vector_set import VectorSet, stored_vectors
from lookalike.store.filters import parse_filter

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
        typer.Option(help="How to read the dataset; sop is Stanford Online Products"),
    ] = "auto"
    split: Annotated[
        Literal["train", "test"] | None, typer.Option(help="Of cifar10 and sop: test if not given")
    ] = None
    sop_label: Annotated[
        Literal["class", "super_class"] | None, typer.Option(help="Of sop: class if not given")
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=2, help="Of a dataset: only so many pictures, at random")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same choices")] = 0


def require_label_field(wanted: Wanted) -> None:
    """Raises `ConfigurationError` if a collection is named without its label field."""
    if wanted.collection is not None and wanted.label_field is None:
        raise ConfigurationError(
            "Name the metadata field that says what a picture shows, with --label-field"
        )


def set_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags that name a set; it receives them as `wanted: Wanted`."""
    hints = get_type_hints(Wanted, include_extras=True)
    flags = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Wanted)
    ]
    return add_flags(command, "wanted", flags, Wanted)


@contextmanager
def open_vectors(wanted: Wanted, given: dict[str, Any], progress: Progress) -> Iterator[VectorSet]:
    """Opens a set with its vectors, which are extracted if they are not kept yet.

    Raises:
        ConfigurationError: Neither or both of dataset and collection are named, or a flag does
            not fit.
    """
    settings = load_settings(**given)
    if (wanted.dataset is None) == (wanted.collection is None):
        raise ConfigurationError(
            "Name either a DATASET (a folder, a CSV, cifar10) or a --collection of the data folder"
        )
    if wanted.collection is not None:
        _refuse_dataset_flags(wanted, given)
        with _collection_vectors(wanted, settings) as vectors:
            yield vectors
    else:
        if wanted.label_field is not None or wanted.where is not None:
            raise ConfigurationError("--label-field and --filter belong to a --collection")
        with _dataset_vectors(wanted, settings, progress) as vectors:
            yield vectors


def _refuse_dataset_flags(wanted: Wanted, given: dict[str, Any]) -> None:
    flags = [name for name in SET_SETTINGS if name != "data_dir" and given.get(name) is not None]
    flags += [name for name in ("split", "sop_label", "limit") if getattr(wanted, name) is not None]
    flags += ["kind"] if wanted.kind != "auto" else []
    if flags:
        raise ConfigurationError(
            f"--{flags[0].replace('_', '-')} belongs to a dataset; a collection has its vectors "
            "already. Leave it out"
        )


@contextmanager
def _collection_vectors(wanted: Wanted, settings: Settings) -> Iterator[VectorSet]:
    assert wanted.collection is not None
    with closing(open_store(settings, read_only=True)) as store:
        yield stored_vectors(
            store,
            build_pictures(settings, store),
            wanted.collection,
            label_field=wanted.label_field,
            where=parse_filter(wanted.where),
        )


@contextmanager
def _dataset_vectors(wanted: Wanted, settings: Settings, progress: Progress) -> Iterator[VectorSet]:
    dataset = _open_dataset(wanted, settings)
    with closing(build_encoders(settings)) as encoders:
        yield extract_vectors(
            dataset,
            encoders.default,
            build_decoder(settings),
            cache=settings.cache_dir,
            progress=progress.stage("extracting"),
            cores=settings.threads or available_cores(),
        )


def _open_dataset(wanted: Wanted, settings: Settings) -> Dataset:
    assert wanted.dataset is not None
    dataset = open_dataset(
        wanted.dataset,
        kind=wanted.kind,
        split=wanted.split,
        label=wanted.sop_label,
        cache_dir=settings.cache_dir,
    )
    if wanted.limit is None:
        return dataset
    return sample(dataset, count=wanted.limit, seed=wanted.seed)
