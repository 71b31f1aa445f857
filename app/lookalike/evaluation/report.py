"""An evaluation, or a comparison of models, as files: JSON for programs, a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from lookalike.evaluation.comparison import Comparison
from lookalike.evaluation.metrics import CONFIDENCE, RESAMPLES
from lookalike.evaluation.runner import ClassResult, ConfusedPair, Evaluation, Metric
from lookalike.services.vector_set import VectorSet
from lookalike.visualization.pages import picture_uri, render, write_whole

LARGEST_MATRIX = 100
"""With more classes than this, JSON leaves the matrix of confusion out."""


def write_html(evaluation: Evaluation, vectors: VectorSet, path: Path) -> None:
    """Writes the report as one page that needs nothing else; errors as for `write_json`."""
    write_whole(path, render("report.html", **_page_values(evaluation, vectors)))


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Writes everything that was found, and everything needed to find it again.

    docs/evaluation.md lists the keys, which stay as they are; new ones may come.

    Raises:
        ConfigurationError: The file cannot be written there.
    """
    text = json.dumps(_document(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def _document(evaluation: Evaluation) -> dict[str, Any]:
    few = len(evaluation.confusion.names) <= LARGEST_MATRIX
    shares = evaluation.confusion.rows() if few else None
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
        "metrics": [metric_facts(metric) for metric in evaluation.metrics],
        "per_class": [
            {
                **asdict(result),
                "precision": metric_facts(result.precision),
                "average_precision": metric_facts(result.average_precision),
            }
            for result in evaluation.per_class
        ],
        "confusion": {
            "k": evaluation.k,
            "labels": evaluation.confusion.names,
            "shares": shares,
            "pairs": [asdict(pair) for pair in evaluation.confused_pairs],
        },
        "worst_queries": [asdict(query) for query in evaluation.worst],
        "notes": evaluation.notes,
        "seconds": dict(evaluation.seconds),
        "versions": dict(evaluation.versions),
        "created_at": evaluation.created_at,
    }


def metric_facts(metric: Metric) -> dict[str, Any]:
    """A metric as JSON."""
    return {**asdict(metric), "title": metric.title}


_THUMBNAIL = 176  # pixels, shown at half of it
_MATCHES = 10  # of each of the worst queries
_LARGEST_MAP = 25  # classes; with more, pairs are listed instead
_FEW_PAIRS = 8  # beside the map
_CLASSES = 100  # bars; of more, the best and the worst half of them

_OVERALL = ("r_precision", "map_at_r", "mrr")
_AS_PRECISION_AT_1 = ("hit_rate", "map", "ndcg")
_GROUPS = {
    "precision": ("Precision", "The share of the first k matches that are right; at most R / k."),
    "hit_rate": ("Hit rate", "A right match among the first k, or none: top-k accuracy."),
    "recall": ("Recall", "The share of the R right pictures that are among the first k."),
    "map": ("mAP", "Precision at each right match, summed, over min(R, k)."),
    "ndcg": ("nDCG", "Right matches count less further down; 1 is the best order."),
    "overall": (
        "Beyond k",
        "R-precision: precision at R. MAP@R: mAP at R. MRR: 1 / rank of the first right match.",
    ),
}


def _page_values(evaluation: Evaluation, vectors: VectorSet) -> dict[str, Any]:
    """What `report.html` names."""
    confusion = evaluation.confusion
    mapped = evaluation.classes <= _LARGEST_MAP
    pairs = _pairs(evaluation, _FEW_PAIRS if mapped else len(evaluation.confused_pairs))
    classes, hidden = _classes(evaluation.per_class)
    return {
        "title": f"{evaluation.dataset}: retrieval report",
        "evaluation": evaluation,
        "groups": _groups(evaluation),
        "classes": classes,
        "classes_hidden": hidden,
        "heat": list(zip(confusion.names, confusion.rows(), strict=True)) if mapped else None,
        "pairs": pairs,
        "matches_shown": _MATCHES,
        "pictures": _pictures(evaluation, [pair for pair, _ in pairs], vectors),
        "setup": _setup(evaluation),
        "random_weights": evaluation.spec.weights == "random",
    }


def _groups(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Metrics under their headings; k = 1 only once, where all mean the same."""

    def heading(metric: Metric) -> str:
        return "overall" if metric.name in _OVERALL else metric.name

    groups = []
    for key, members in groupby(evaluation.metrics, key=heading):
        title, meaning = _GROUPS[key]
        metrics = list(members)
        if key in _AS_PRECISION_AT_1 and len(metrics) > 1 and metrics[0].k == 1:
            metrics = metrics[1:]
            meaning += " At 1 it is precision."
        rows = [
            {"metric": metric, "title": metric.title if key == "overall" else f"k = {metric.k}"}
            for metric in metrics
        ]
        groups.append({"title": title, "meaning": meaning, "rows": rows})
    return groups


def _pairs(evaluation: Evaluation, count: int) -> list[tuple[ConfusedPair, float]]:
    """Each two classes once: the more confused way, and the share of the other way, or 0."""
    shares = evaluation.confusion.by_name()
    once: dict[frozenset[str], ConfusedPair] = {}
    for pair in evaluation.confused_pairs:
        once.setdefault(frozenset((pair.asked, pair.found)), pair)
    pairs = list(once.values())[:count]
    return [(pair, shares.get((pair.found, pair.asked), 0.0)) for pair in pairs]


def _classes(results: tuple[ClassResult, ...]) -> tuple[list[ClassResult], int]:
    """By falling precision; of too many, the best and the worst, and how many lie between."""
    ordered = sorted(results, key=lambda result: (-result.precision.value, result.label))
    hidden = max(0, len(ordered) - _CLASSES)
    if hidden:
        ordered = ordered[: _CLASSES // 2] + ordered[-_CLASSES // 2 :]
    return ordered, hidden


def _pictures(
    evaluation: Evaluation, pairs: Iterable[ConfusedPair], vectors: VectorSet
) -> dict[int, str | None]:
    """A `data:` address for each position on the page; None for a picture that is gone."""
    shown = {position for pair in pairs for position in (pair.query, pair.match.position)}
    for query in evaluation.worst:
        shown |= {query.position, *(match.position for match in query.matches[:_MATCHES])}
    addresses: dict[int, str | None] = {}
    for position in shown:
        image = vectors.picture_or_none(position, size=_THUMBNAIL)
        addresses[position] = None if image is None else picture_uri(image, size=_THUMBNAIL)
    return addresses


def _setup(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """What made the figures, under three headings."""
    asked = "all" if evaluation.asked is None else f"{evaluation.asked} at random"
    return {
        "Model": evaluation.spec.to_dict() | dict(evaluation.provenance),
        "Protocol": {
            "query against": "all other pictures of the set",
            "queries": asked,
            "seed": evaluation.seed,
            "index": evaluation.index,
            "ranks looked at": evaluation.depth,
            "intervals": f"{CONFIDENCE:.0%}, {RESAMPLES} bootstrap resamples of the queries",
            "dataset sha256": evaluation.dataset_sha256,
        },
        "Run": {
            "at": evaluation.created_at,
            **evaluation.versions,
            **{f"{stage}, s": f"{seconds:.2f}" for stage, seconds in evaluation.seconds.items()},
        },
    }


def comparison_json(found: Comparison) -> str:
    """Everything that a comparison found, as JSON; docs/evaluation.md lists the keys."""
    first = found.candidates[0].evaluation
    document = {
        "format": 1,
        "dataset": {
            "name": first.dataset,
            "sha256": first.dataset_sha256,
            "pictures": first.pictures,
            "classes": first.classes,
        },
        "settings": {
            "k": first.k,
            "queries": first.queries,
            "seed": first.seed,
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
        },
        "chance": first.chance,
        "models": [
            {
                "name": one.name,
                "model": one.evaluation.spec.to_dict(),
                "provenance": dict(one.evaluation.provenance),
                "metrics": [metric_facts(metric) for metric in one.evaluation.metrics],
                "differences": [
                    {"title": metric.title, **asdict(change)}
                    for metric, change in zip(one.evaluation.metrics, one.changes, strict=True)
                ],
                "cost": asdict(one.cost),
            }
            for one in found.candidates
        ],
        "failed": [{"name": name, "reason": why} for name, why in found.failed.items()],
        "changed_queries": [
            {"id": one.results[0].id, "values": one.values} for one in found.changed
        ],
        "notes": found.notes,
        "created_at": first.created_at,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_comparison(found: Comparison, path: Path) -> None:
    """Writes a comparison as one page that needs nothing else; errors as for `write_json`."""
    first = found.candidates[0]
    shown = {one.results[0].position for one in found.changed}
    for changed in found.changed:
        shown |= {match.position for one in changed.results for match in one.matches}
    pictures = {}
    for position in shown:
        image = first.vectors.picture_or_none(position, size=_THUMBNAIL)
        pictures[position] = None if image is None else picture_uri(image, size=_THUMBNAIL)
    changes = [found.of(one, metric)[1] for one in found.candidates for metric in found.shown]
    values = {
        "title": f"{first.evaluation.dataset}: models compared",
        "found": found,
        "first": first,
        "main": found.shown[-1].title,
        "reach": max([0.01, *(max(abs(one.low), abs(one.high)) for one in changes)]),
        "pictures": pictures,
        "random": [one.name for one in found.candidates if one.vectors.spec.weights == "random"],
    }
    write_whole(path, render("compare.html", **values))
