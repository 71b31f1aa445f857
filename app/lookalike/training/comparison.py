"""What a head does to pictures that it was not trained on: the same measure before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from lookalike.evaluation.comparison import Change, paired_changes
from lookalike.evaluation.runner import Evaluation, evaluate
from lookalike.models.head import Head
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.ranking import Positions
from lookalike.services.vector_set import VectorSet
from lookalike.training.plan import Split

QUERIES: Final = 5000
"""Queries of each part at most, chosen at random."""

PartName = Literal["unseen", "held_out"]

TITLES: dict[PartName, str] = {
    "unseen": "classes never seen in training",
    "held_out": "other pictures of the trained classes",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """One part of a set, measured without and with the head."""

    name: PartName  # `unseen` or `held_out`, see `plan.Split`
    plain: VectorSet  # the part as it was
    headed: VectorSet  # the same pictures with the head's vectors
    before: Evaluation  # pictures of `plain` ranked against its others
    after: Evaluation  # the same queries for `headed`
    # one for each metric of both. Their intervals are narrower than those of `before` and `after`,
    # for the queries are the same.
    changes: tuple[Change, ...]

    @property
    def title(self) -> str:
        """For people."""
        return TITLES[self.name]


def compare(
    vectors: VectorSet,
    headed: VectorSet,
    split: Split,
    *,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> tuple[Compared, ...]:
    """Measures both parts that were kept; those without pictures are left out."""
    parts: dict[PartName, Positions] = {"unseen": split.unseen, "held_out": split.held_out}
    kept = [name for name in parts if len(parts[name])]
    compared = []
    for name in kept:
        title = f"{vectors.name}: {TITLES[name]}"
        plain, other = (one.part(parts[name], name=title) for one in (vectors, headed))
        k = min(10, len(plain) - 1)
        before, after = (evaluate(one, k=k, queries=QUERIES, seed=seed) for one in (plain, other))
        changes = paired_changes(before, after, seed=seed)
        compared.append(
            Compared(
                name=name, plain=plain, headed=other, before=before, after=after, changes=changes
            )
        )
        progress.report(len(compared), len(kept))
    return tuple(compared)


def with_head(vectors: VectorSet, head: Head) -> VectorSet:
    """The same pictures with the head's vectors and spec.

    Raises:
        WeightsMismatchError: The head was trained on the vectors of another network.
    """
    return replace(
        vectors,
        spec=head.spec_over(vectors.spec),
        vectors=head.apply(np.ascontiguousarray(vectors.vectors, dtype=np.float32)),
    )
