"""How much several pictures, or one that matches are not like, improve a query.

`python -m benchmarks.queries FOLDER --model efficientnet_lite0 [--weights ...]` from the
repository's root. FOLDER holds a folder of pictures for each class. Every picture is a query once;
the pictures of a query are no matches.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import announce, show
from benchmarks.results import Table
from lookalike import Client
from lookalike.services.queries import Combine, combined

AT = 10
WEIGHTS = (-0.1, -0.25, -0.5, -0.75, -1.0)


class Set:
    """Vectors with the classes of their pictures."""

    def __init__(self, vectors: NDArray[np.float32], labels: Sequence[str]) -> None:
        self.vectors = vectors
        self.labels = np.array(labels)

    def ranked(
        self, asked: Sequence[int], weights: Sequence[float], combine: Combine
    ) -> NDArray[np.intp]:
        """The nearest pictures, without those asked for."""
        sought = combined([self.vectors[one] for one in asked], weights, combine)
        scores = (self.vectors @ sought.T).max(axis=1)
        scores[list(asked)] = -2
        return np.argsort(-scores, kind="stable")[:AT]

    def precision(
        self,
        asked: Sequence[int],
        weights: Sequence[float] = (),
        combine: Combine = Combine.MEAN,
    ) -> float:
        """The share of the nearest that has the class of the first picture."""
        found = self.ranked(asked, weights or [1.0] * len(asked), combine)
        return float((self.labels[found] == self.labels[asked[0]]).mean())


def together(pictures: Set, rng: np.random.Generator) -> Table:
    """Precision with one picture of a class, and with others of it."""
    rows = []
    groups = [[query, *partners(pictures, query, rng)] for query in range(len(pictures.labels))]
    for count in (1, 2, 3):
        row = [f"{count}"]
        for combine in Combine:
            each = [pictures.precision(one[:count], combine=combine) for one in groups]
            row.append(f"{np.mean(each):.3f}")
        rows.append(row)
    return Table(f"Precision@{AT} by pictures of a query", ["pictures", "mean", "any"], rows)


def partners(pictures: Set, query: int, rng: np.random.Generator) -> list[int]:
    """Two other pictures of its class."""
    same = np.flatnonzero(pictures.labels == pictures.labels[query])
    chosen: list[int] = rng.choice(same[same != query], 2, replace=False).tolist()
    return chosen


def against(pictures: Set) -> Table:
    """Precision of queries whose first match is wrong, with that match as what is not sought."""
    wrong = []
    for query in range(len(pictures.labels)):
        first = int(pictures.ranked([query], [1.0], Combine.MEAN)[0])
        if pictures.labels[first] != pictures.labels[query]:
            wrong.append((query, first))
    before = np.mean([pictures.precision([query]) for query, _ in wrong])
    left_out = np.mean([pictures.precision([*pair], [1.0, 0.0]) for pair in wrong])
    rows = [["none", f"{before:.3f}"], ["0: only left out", f"{left_out:.3f}"]]
    for weight in WEIGHTS:
        after = np.mean([pictures.precision([*pair], [1.0, weight]) for pair in wrong])
        rows.append([f"{weight}", f"{after:.3f}"])
    title = f"Precision@{AT} of {len(wrong)} queries with a wrong first match"
    return Table(title, ["weight of that match", "precision"], rows)


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    announce("Queries of several pictures")
    given = {"model": options.model, "originals": "reference"}
    if options.weights:
        given["weights"] = options.weights
    with tempfile.TemporaryDirectory() as folder, Client(folder, **given) as client:
        client.index(options.folder, folder_field="label")
        found = client.vector_set(label_field="label")
        print(f"{found.spec.model}, {found.spec.weights} weights, {len(found)} pictures")
        assert found.labels is not None
        pictures = Set(np.array(found.vectors), found.labels)
    show(together(pictures, np.random.default_rng(options.seed)))
    show(against(pictures))


if __name__ == "__main__":
    main()
