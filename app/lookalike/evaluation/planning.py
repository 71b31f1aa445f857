"""Which queries an evaluation asks, and how many ranks it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lookalike.errors import InvalidParameterError
from lookalike.evaluation.metrics import Classes
from lookalike.evaluation.ranking import Positions

MAX_DEPTH: Final = 5000
"""Where a class has more other pictures than this, R-precision and MAP@R are left out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What will be asked.

    Attributes:
        queries: (Q,) positions, ascending; none of them alone in its class.
        asked: How many queries were wanted; None for all.
        left_out: Pictures that are alone in their class.
        k: The main cut-off.
        ks: All cut-offs, ascending.
        depth: Ranks to look at.
        with_r: Whether these reach every query's R.
        chance: Precision that a random order would have.
        notes: What is left out and why, in sentences.
        seed: Of the choice of queries and of intervals.
        index: The index type.
    """

    queries: Positions
    asked: int | None
    left_out: int
    k: int
    ks: tuple[int, ...]
    depth: int
    with_r: bool
    chance: float
    notes: tuple[str, ...]
    seed: int
    index: str


def make_plan(
    classes: Classes, *, k: int, ks: Sequence[int], queries: int | None, seed: int, index: str
) -> Plan:
    """Chooses queries, cut-offs and depth; arguments as for `runner.evaluate`.

    Raises:
        InvalidParameterError: No two pictures have the same label, or a number is out of its
            range.
    """
    others = len(classes.codes) - 1
    relevant = classes.counts()[classes.codes] - 1  # (N,)
    chosen = _choose(np.flatnonzero(relevant), count=queries, seed=seed)
    within, notes = _cutoffs(k, ks, others)
    most = int(relevant[chosen].max())
    with_r = most <= MAX_DEPTH
    if not with_r:
        notes.append(
            f"R-precision and MAP@R are left out: they would need {most} ranks for the largest "
            f"class, and {MAX_DEPTH} are the most that are looked at for them."
        )
    return Plan(
        queries=chosen,
        asked=queries,
        left_out=int((relevant == 0).sum()),
        k=k,
        ks=within,
        depth=max(*within, most) if with_r else max(within),
        with_r=with_r,
        chance=float(relevant[chosen].mean()) / others,
        notes=tuple(notes),
        seed=seed,
        index=index,
    )


def _choose(able: Positions, *, count: int | None, seed: int) -> Positions:
    """All positions, or `count` of them at random, ascending."""
    if not len(able):
        raise InvalidParameterError(
            "No two pictures have the same label, so there is nothing right to find: use a "
            "dataset with two pictures or more in a class"
        )
    if count is not None and count < 1:
        raise InvalidParameterError(f"{count} queries were asked for; choose 1 or more")
    if seed < 0:
        raise InvalidParameterError(f"The seed is {seed}; choose 0 or more")
    if count is None or count >= len(able):
        return able
    return np.sort(np.random.default_rng(seed).choice(able, size=count, replace=False))


def _cutoffs(k: int, ks: Sequence[int], others: int) -> tuple[tuple[int, ...], list[str]]:
    """The cut-offs that can be looked at, and a sentence for each that cannot."""
    cutoffs = sorted({k, *ks})
    if cutoffs[0] < 1:
        raise InvalidParameterError(f"A cut-off is {cutoffs[0]}; choose 1 or more")
    if k > others:
        raise InvalidParameterError(
            f"k is {k}, but each picture has {others} others to be ranked: choose a k from 1 to "
            "that, or more pictures"
        )
    notes = [
        f"The cut-off {cutoff} is left out: each picture has only {others} others."
        for cutoff in cutoffs
        if cutoff > others
    ]
    return tuple(cutoff for cutoff in cutoffs if cutoff <= others), notes
