"""A training's results as files: model, embeddings and labels, metrics, and pictures to look at."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.evaluation.metrics import CONFIDENCE
from lookalike.evaluation.results import Evaluation
from lookalike.models.head import Head, save_head
from lookalike.services.vector_set import VectorSet
from lookalike.training.comparison import Compared
from lookalike.training.curves import draw_curves
from lookalike.training.sheets import before_after_sheet
from lookalike.training.task import TrainingResult
from lookalike.visualization.contact_sheet import save_picture
from lookalike.visualization.pages import write_whole

FORMAT: Final = 1
"""Version of `metrics.json`."""


def write_training(
    result: TrainingResult, headed: VectorSet, compared: Sequence[Compared], folder: Path
) -> list[Path]:
    """Writes everything that a training gave; files of an earlier one are replaced.

    - `head.safetensors`, `head.json`: the head.
    - `embeddings.npy` (N, dim) float32 of the whole set, `labels.npy` and `ids.npy` (N,) strings.
    - `metrics.json`, `curves.png`; `contact-sheet.png` where there is a part to show.

    Args:
        result: From `train_head`.
        headed: The set that it was trained on, with the head's vectors.
        compared: From `compare`.
        folder: Made where it is missing.

    Returns:
        The files, most important first.

    Raises:
        WeightsError: The head's files cannot be written.
        ConfigurationError: Another file cannot be written.
    """
    document = _document(result, headed, compared)
    summary = {part.name: {"before": _brief(part.before), "after": _brief(part.after)}
               for part in compared}  # fmt: skip
    head = result.head
    described = Head(
        head.spec,
        head.tensors,
        backbone=head.backbone,
        trained={**head.trained, "metrics": summary},
    )
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
            "validation": {
                "pictures": len(split.validation),
                "classes": split.validation_classes,
                "by": split.validation_by,
            },
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
                "before": _metrics(part.before),
                "after": _metrics(part.after),
                "change": [asdict(change) for change in part.changes],
            }
            for part in compared
        ],
        "notes": list(result.notes),
        "versions": {**compared[0].after.versions} if compared else {},
    }


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [{**asdict(metric), "title": metric.title} for metric in evaluation.metrics]


def _brief(evaluation: Evaluation) -> dict[str, float]:
    return {metric.title: round(metric.value, 4) for metric in evaluation.metrics}
