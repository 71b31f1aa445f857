"""An evaluation as files: JSON for programs, a page for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.evaluation.confusion import Confusion
from lookalike.evaluation.intervals import CONFIDENCE, RESAMPLES
from lookalike.evaluation.report_page import page_values
from lookalike.evaluation.results import Evaluation, Metric
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.pages import render, write_whole

LARGEST_MATRIX = 100
"""With more classes than this, JSON leaves the matrix of confusion out."""


def write_html(evaluation: Evaluation, vectors: VectorSet, path: Path) -> None:
    """Writes the report as one page that needs nothing else; folders above it are made.

    Args:
        evaluation: From `runner.evaluate`.
        vectors: The set that was evaluated; its pictures are shown.
        path: Of the `.html` file.

    Raises:
        ConfigurationError: The file cannot be written there.
    """
    write_whole(path, render("report.html", **page_values(evaluation, vectors)))


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Writes everything that was found, and everything needed to find it again.

    Keys stay as they are; new ones may come. A metric is an object of `name`, `title`, `k` (null:
    each query's own R), `value`, `low` and `high`.

    - `format`: 1.
    - `dataset`: `name`, `sha256` (over ids, contents and labels), `pictures`, `classes`, `skipped`
      (list of `name`, `reason`).
    - `model`: the spec of the vectors; `provenance`: what is recorded beside it.
    - `settings`: `k`, `ks`, `queries` (wanted; null: all), `seed`, `index`, `depth` (ranks looked
      at), `resamples`, `confidence`.
    - `queries`: `asked`, `left_out`, `left_out_because`.
    - `chance`: precision of a random order.
    - `metrics`: list of metrics.
    - `per_class`: list of `label`, `pictures`, `queries`, `precision` and `average_precision`
      (metrics at k).
    - `confusion`: `k`, `labels`, `shares` (a row for each label, null where it had no query; null
      for more than 100 labels), `pairs` (list of `asked`, `found`, `share`, `query`, `match`).
    - `worst_queries`: list of `position`, `id`, `name`, `label`, `precision`, `average_precision`,
      `matches` (list of `rank`, `position`, `id`, `name`, `label`, `score`, `relevant`).
    - `notes`: what was left out, in sentences.
    - `seconds`: by stage; `versions`; `created_at`.

    Args:
        evaluation: From `runner.evaluate`.
        path: Of the `.json` file; folders above it are made.

    Raises:
        ConfigurationError: The file cannot be written there.
    """
    text = json.dumps(_document(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def _document(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "format": 1,
        "dataset": {
            "name": evaluation.dataset,
            "sha256": evaluation.dataset_sha256,
            "pictures": evaluation.pictures,
            "classes": evaluation.classes,
            "skipped": [asdict(skipped) for skipped in evaluation.skipped],
        },
        "model": evaluation.spec.to_dict(),
        "provenance": dict(evaluation.provenance),
        "settings": {
            "k": evaluation.k,
            "ks": evaluation.ks,
            "queries": evaluation.asked,
            "seed": evaluation.seed,
            "index": evaluation.index,
            "depth": evaluation.depth,
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
        },
        "queries": {
            "asked": evaluation.queries,
            "left_out": evaluation.left_out,
            "left_out_because": "no other picture has their label",
        },
        "chance": evaluation.chance,
        "metrics": [_metric(metric) for metric in evaluation.metrics],
        "per_class": [
            {
                "label": result.label,
                "pictures": result.pictures,
                "queries": result.queries,
                "precision": _metric(result.precision),
                "average_precision": _metric(result.average_precision),
            }
            for result in evaluation.per_class
        ],
        "confusion": {
            "k": evaluation.k,
            "labels": evaluation.confusion.names,
            "shares": _matrix(evaluation.confusion),
            "pairs": [asdict(pair) for pair in evaluation.confused_pairs],
        },
        "worst_queries": [asdict(query) for query in evaluation.worst],
        "notes": evaluation.notes,
        "seconds": dict(evaluation.seconds),
        "versions": dict(evaluation.versions),
        "created_at": evaluation.created_at,
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "title": metric.title,
        "k": metric.k,
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
    }


def _matrix(confusion: Confusion) -> list[list[float] | None] | None:
    if len(confusion.names) > LARGEST_MATRIX:
        return None
    matrix = confusion.matrix()
    return [None if np.isnan(row).any() else row.tolist() for row in matrix]
