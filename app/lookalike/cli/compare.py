"""`lookalike compare`: models on the same pictures, each measured in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from lookalike import bootstrap
from lookalike.cli.common import Json, cell, print_errors, progress
from lookalike.cli.sets import Wanted, open_wanted, set_flags
from lookalike.config import Settings, load_settings
from lookalike.cores import end_with_parent
from lookalike.errors import ConfigurationError, LookalikeError
from lookalike.evaluation.comparison import (
    Comparison,
    Cost,
    compare_models,
    peak_memory,
    time_pictures,
)
from lookalike.evaluation.datasets import Dataset
from lookalike.evaluation.extraction import extract_vectors
from lookalike.evaluation.metrics import encode_labels
from lookalike.evaluation.report import comparison_json, write_comparison
from lookalike.models.registry import find_family
from lookalike.progress import Progress
from lookalike.records import ModelSpec
from lookalike.services.vector_set import Skipped, VectorSet
from lookalike.visualization.pages import claim_output, write_whole

_OWN = ("weights", "head", "pooling", "resize", "input_size", "precision", "runtime")
"""Settings that each model of a comparison may have of its own."""

_MEASURE = "from lookalike.cli.compare import measure; measure()"


@partial(set_flags, without="model")
def compare(
    given: dict[str, Any],
    wanted: Wanted,
    *,
    model: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[@WEIGHTS]",
            help="A model to compare; at least two. Settings of its own follow after commas: "
            "resnet50,resize=crop",
        ),
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="Ranks that queries are judged by")] = 10,
    queries: Annotated[
        int | None, typer.Option(min=1, help="So many random queries; every picture if not given")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for comparison.html and comparison.json")
    ] = Path("compared"),
    as_json: Json = False,
) -> None:
    """Compare models on a labelled set: quality with paired differences, time and memory.

    The others are held against the first.
    """
    models = {text: _own_settings(text) for text in model}
    if len(models) < len(model):
        twice = next(text for text in model if model.count(text) > 1)
        raise ConfigurationError(f"The model {twice} is named twice; name each once")
    if len(models) < 2:
        raise ConfigurationError("Name two models or more, each with --model")
    if wanted.collection is not None or wanted.dataset is None:
        raise ConfigurationError(
            "Name a DATASET (a folder with a sub-folder for each class, a CSV of path,label, or "
            "cifar10): each model makes vectors of its own"
        )
    settings = load_settings(**given)
    dataset = open_wanted(wanted, settings, [out])
    encode_labels(dataset.labels)
    for name in ("comparison.html", "comparison.json"):
        claim_output(out / name)
    measured: dict[str, tuple[VectorSet, Cost]] = {}
    failed: dict[str, str] = {}
    with progress() as drawn, tempfile.TemporaryDirectory(prefix="lookalike-") as folder:
        for number, (text, own) in enumerate(models.items()):
            run = _Run(wanted, given | own, Path(folder) / f"{number}.npy", out)
            try:
                measured[text] = run.vectors(dataset, settings, drawn.stage(f"measuring {text}"))
            except LookalikeError as exc:
                failed[text] = str(exc)
        if not measured:
            reasons = "; ".join(f"{text}: {why}" for text, why in failed.items())
            raise ConfigurationError(f"No model could be measured. {reasons}")
        options: dict[str, Any] = {"k": k, "queries": queries, "seed": wanted.seed}
        found = compare_models(measured, failed=failed, progress=drawn, **options)
        text = comparison_json(found)
        write_whole(out / "comparison.json", text)
        write_comparison(found, out / "comparison.html")
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print(found, out)
    print_errors(f"{name}: {why}" for name, why in failed.items())
    if failed:
        raise typer.Exit(1)


def _own_settings(text: str) -> dict[str, Any]:
    """The settings of `NAME[@WEIGHTS][,SETTING=VALUE...]`."""
    model, *others = text.split(",")
    name, at, weights = model.partition("@")
    find_family(name)
    own: dict[str, Any] = {"model": name} | ({"weights": weights} if at else {})
    for other in others:
        setting, equals, value = other.partition("=")
        if not equals or setting not in _OWN or setting in own:
            raise ConfigurationError(
                f"{text!r}: {other!r} is no setting of one model; write NAME@WEIGHTS, and behind "
                f"commas SETTING=VALUE, of {', '.join(_OWN)}"
            )
        own[setting] = value
    load_settings(**own)
    return own


@dataclass(frozen=True, slots=True)
class _Run:
    """A model, and how it is measured in a process of its own."""

    wanted: Wanted
    given: dict[str, Any]  # settings
    file: Path  # where the process leaves the vectors
    avoid: Path

    def vectors(
        self, dataset: Dataset, settings: Settings, progress: Progress
    ) -> tuple[VectorSet, Cost]:
        """Starts the process and reads what it found. Raises `LookalikeError` if it failed."""
        asked = {
            "given": {name: _plain(value) for name, value in self.given.items()},
            "wanted": asdict(self.wanted),
            "file": str(self.file),
            "avoid": str(self.avoid),
        }
        answer: dict[str, Any] = {}
        with subprocess.Popen(  # noqa: S603 - this Python; -P: not what lies in the working folder
            [sys.executable, "-P", "-c", _MEASURE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(asked) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                answer = json.loads(line)
                if "done" in answer:
                    progress.report(answer["done"], answer["total"])
        if "error" in answer:
            raise ConfigurationError(answer["error"])
        if child.returncode:
            code = child.returncode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise ConfigurationError(
                f"The process that measured it ended with {how}; is there enough memory?"
            )
        return _vector_set(dataset, settings, self.file, answer), Cost(**answer["cost"])


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _vector_set(
    dataset: Dataset, settings: Settings, file: Path, answer: dict[str, Any]
) -> VectorSet:
    """The set that another process has made of a dataset."""
    decoder = bootstrap.build_decoder(settings)
    places = {name: position for position, name in enumerate(dataset.ids)}
    ids: list[str] = answer["ids"]

    def picture(position: int, *, size: int) -> Image.Image:
        with dataset.source(places[ids[position]]).open() as opened:
            return decoder.decode(opened, decode_size=size).image

    return VectorSet(
        name=dataset.name,
        spec=ModelSpec.from_dict(answer["spec"]),
        provenance=answer["provenance"],
        vectors=np.load(file),
        ids=ids,
        names=answer["names"],
        labels=answer["labels"],
        sha256s=answer["sha256s"],
        picture=picture,
        skipped=[Skipped(**one) for one in answer["skipped"]],
    )


def measure() -> None:
    """Measures one model, in the process that `compare` starts.

    Reads a line of JSON from standard input. Prints lines of JSON: `done` and `total` on the way,
    in the end all about the vectors, which are in the file named, or the `error`.
    """
    asked = json.loads(sys.stdin.readline())
    end_with_parent()
    told = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            answer = _measure(asked, Progress(partial(_tell, told)))
        except LookalikeError as exc:
            answer = {"error": str(exc)}
    print(json.dumps(answer), file=told, flush=True)


def _tell(told: Any, _stage: str, done: int, total: int) -> None:
    print(json.dumps({"done": done, "total": total}), file=told, flush=True)


def _measure(asked: dict[str, Any], progress: Progress) -> dict[str, Any]:
    settings = load_settings(**asked["given"])
    dataset = open_wanted(Wanted(**asked["wanted"]), settings, [Path(asked["avoid"])])
    decoder = bootstrap.build_decoder(settings)
    with closing(bootstrap.build_encoders(settings)) as encoders:
        live, batch = encoders.default, settings.max_batch
        load_s = time.process_time()
        timed = time_pictures(dataset, live.encoder, decoder, batch=batch)
        cost = {"load_s": load_s, **timed, "batch": batch, "peak_bytes": peak_memory()}
        vectors = extract_vectors(
            dataset,
            live,
            decoder,
            cache=settings.cache_dir,
            progress=progress,
            cores=settings.cores,
        )
    np.save(asked["file"], np.asarray(vectors.vectors))
    return {
        "spec": vectors.spec.to_dict(),
        "provenance": dict(vectors.provenance),
        "ids": list(vectors.ids),
        "names": list(vectors.names),
        "labels": None if vectors.labels is None else list(vectors.labels),
        "sha256s": list(vectors.sha256s),
        "skipped": [asdict(one) for one in vectors.skipped],
        "cost": cost,
    }


def _print(found: Comparison, out: Path) -> None:
    """One line for each model."""
    *others, main = found.shown
    titles = [one.title.replace("Precision", "P") for one in (*others, main)]
    right = [*titles, "difference", "ms", "memory"]
    table = Table(
        Column("model", overflow="fold"), *(Column(title, justify="right") for title in right)
    )
    for one in found.candidates:
        cells = [f"{found.of(one, metric)[0].value:.3f}" for metric in found.shown]
        _, change = found.of(one, main)
        is_first = one is found.candidates[0]
        apart = "" if is_first else f"{change.value:+.3f}\n{change.low:+.3f} to {change.high:+.3f}"
        cost = one.cost
        spent = f"{cost.cpu_ms:.{1 if cost.cpu_ms >= 1 else 2}f}"
        shown = [*cells, apart, spent, f"{cost.peak_bytes / 1e6:,.0f} MB"]
        table.add_row(cell(one.name), *shown)
    first = found.candidates[0].evaluation
    console = Console()
    console.print(cell(f"{first.dataset}: {first.pictures} pictures, {first.queries} queries"))
    console.print(table)
    console.print(
        f"P: precision; difference: {main.title} against the first model, with its 95% interval; "
        "ms: CPU time of embedding one picture; memory: the most that it took"
    )
    for note in found.notes:
        console.print(cell(note))
    for name in ("comparison.html", "comparison.json"):
        typer.echo(str(out / name))
