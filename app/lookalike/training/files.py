"""A training's results as files: model, embeddings and labels, metrics, and pictures to look at."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.evaluation.metrics import CONFIDENCE
from lookalike.evaluation.report import metric_facts
from lookalike.evaluation.runner import Evaluation, evaluate_query
from lookalike.models.head import Head, save_head
from lookalike.services.vector_set import VectorSet
from lookalike.training.comparison import Compared
from lookalike.training.trainer import TrainingResult
from lookalike.visualization.contact_sheet import query_sheet, save_picture
from lookalike.visualization.drawing import QUIET, TEXT, plain_axes, png_of
from lookalike.visualization.pages import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_LOSS, _VALIDATION = "#2457d6", "#16803c"


def draw_curves(result: TrainingResult) -> bytes:
    """Draws loss and validation by epoch, one above the other, as a PNG.

    The best epoch is marked, as is what the validation pictures reach without the head; and the
    margin, under triplet loss.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(9.0, 6.5), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_loss(upper, result)
    _draw_validation(lower, result)
    for axes in (upper, lower):
        axes.axvline(result.best_epoch, color=QUIET, linestyle=":", linewidth=1)
        plain_axes(axes)
    lower.set_xlabel("epoch", color=TEXT)
    lower.xaxis.get_major_locator().set_params(integer=True)
    return png_of(figure)


def _draw_loss(axes: Axes, result: TrainingResult) -> None:
    epochs = [epoch.number for epoch in result.history]
    axes.plot(epochs, [epoch.loss for epoch in result.history], color=_LOSS, marker=".")
    axes.set_ylabel("loss", color=TEXT)
    options = result.options
    if options.loss == "triplet":
        axes.axhline(options.margin, color=QUIET, linestyle="--", linewidth=1)
        axes.annotate("margin", (epochs[-1], options.margin), color=QUIET, ha="right", va="top")
    axes.set_ylim(bottom=0)
    title = f"{options.loss.replace('_', ' ')} loss, seed {options.seed}; the best epoch is "
    axes.set_title(title + str(result.best_epoch), loc="left", color=TEXT)


def _draw_validation(axes: Axes, result: TrainingResult) -> None:
    known = [(e.number, e.validation) for e in result.history if e.validation is not None]
    axes.set_ylabel("validation MAP@R", color=TEXT)
    if not known or result.validation_before is None:
        axes.text(0.5, 0.5, "no validation", transform=axes.transAxes, color=QUIET, ha="center")
        return
    axes.plot(*zip(*known, strict=True), color=_VALIDATION, marker=".", label="with the head")
    axes.axhline(result.validation_before, color=QUIET, ls="--", lw=1, label="without")
    axes.legend(frameon=False, loc="best")


QUERIES = 4
"""Queries that are shown."""

_MATCHES = 6


def before_after_sheet(compared: Compared, *, seed: int) -> Image.Image:
    """Draws random queries of one part with their matches before and after, right ones green.

    In the part, some class has two pictures or more.

    Returns:
        An RGB picture, two rows for each query.
    """
    labels = np.array(compared.plain.labels)
    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    able = [rng.choice(np.flatnonzero(codes == code)) for code in np.flatnonzero(counts >= 2)]
    rows = [
        _row(vectors, query, f"{when}: {names[codes[query]]}")
        for query in rng.permutation(able)[:QUERIES].tolist()  # of different classes
        for when, vectors in (("before", compared.plain), ("after", compared.headed))
    ]
    size = max(row.width for row in rows), sum(row.height for row in rows)
    sheet, top = Image.new("RGB", size, "white"), 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(vectors: VectorSet, query: int, title: str) -> Image.Image:
    found = evaluate_query(vectors, query, min(_MATCHES, len(vectors) - 1))
    matches = [(match.position, match.score, match.relevant) for match in found.matches]
    return query_sheet(vectors, query, matches, title=title, columns=_MATCHES)


FORMAT: Final = 1
"""Version of `metrics.json`."""


def write_training(
    result: TrainingResult, headed: VectorSet, compared: Sequence[Compared], folder: Path
) -> list[Path]:
    """Writes everything that a training gave; files of an earlier one are replaced.

    - `head.safetensors`, `head.json`: the head.
    - `embeddings.npy` (N, dim) float32 of the whole set, `labels.npy` and `ids.npy` (N,) strings.
    - `metrics.json`, `curves.png`; `contact-sheet.png` where there is a part to show.

    Returns:
        The files, most important first.

    Raises:
        WeightsError: The head's files cannot be written.
        ConfigurationError: Another file cannot be written.
    """
    document = _document(result, headed, compared)
    summary = {p.name: {"before": _brief(p.before), "after": _brief(p.after)} for p in compared}
    head = result.head
    trained = {**head.trained, "metrics": summary}
    described = Head(head.spec, head.tensors, backbone=head.backbone, trained=trained)
    paths = [save_head(described, folder / "head.safetensors")]
    arrays = {
        "embeddings": headed.vectors,
        "labels": np.array(headed.labels, dtype=np.str_),
        "ids": np.array(headed.ids, dtype=np.str_),
    }
    files = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files |= {"metrics.json": text.encode(), "curves.png": draw_curves(result)}
    for name, content in files.items():
        write_whole(folder / name, content)
        paths.append(folder / name)
    if compared:
        paths.append(folder / "contact-sheet.png")
        save_picture(before_after_sheet(compared[0], seed=result.options.seed), paths[-1])
    return paths


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _document(
    result: TrainingResult, headed: VectorSet, compared: Sequence[Compared]
) -> dict[str, Any]:
    split = result.split
    validation = {"classes": split.validation_classes, "by": split.validation_by}
    return {
        "format": FORMAT,
        "dataset": {
            "name": headed.name,
            "pictures": len(headed),
            "skipped": [asdict(skipped) for skipped in headed.skipped],
        },
        "backbone": result.head.backbone.to_dict(),
        "head": {"sha256": result.head.digest, **asdict(result.head.spec)},
        "options": asdict(result.options),
        "split": {
            "train": {"pictures": len(split.train), "classes": split.train_classes},
            "validation": {"pictures": len(split.validation), **validation},
            "held_out": {"pictures": len(split.held_out), "classes": split.train_classes},
            "unseen": {"pictures": len(split.unseen), "classes": list(split.unseen_classes)},
            "alone": split.alone,
        },
        "training": {
            "best_epoch": result.best_epoch,
            "stopped": result.stopped,
            "resumed_after": result.resumed_after,
            "validation_before": result.validation_before,
            "seconds": round(result.seconds, 3),
            "epochs": [asdict(epoch) for epoch in result.history],
        },
        "confidence": CONFIDENCE,
        "parts": [
            {
                "name": part.name,
                "title": part.title,
                "queries": part.before.queries,
                "chance": part.before.chance,
                "before": [metric_facts(metric) for metric in part.before.metrics],
                "after": [metric_facts(metric) for metric in part.after.metrics],
                "change": [asdict(change) for change in part.changes],
            }
            for part in compared
        ],
        "notes": list(result.notes),
        "versions": {**compared[0].after.versions} if compared else {},
    }


def _brief(evaluation: Evaluation) -> dict[str, float]:
    return {metric.title: round(metric.value, 4) for metric in evaluation.metrics}
