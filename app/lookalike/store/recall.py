"""Recall: the share of the true matches that a search found."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Ranked = Sequence[tuple[Hashable, float]]
"""What a search found: who, each once, and the score; best first."""

TIE = 1e-6
"""Scores that differ by no more than this are equal: the rounding of a float32 cosine."""


def recall_at_k(found: Ranked, exact: Ranked) -> float:
    """The share of the k best among all that a search found.

    Which of several with the score of the last true match is among the k best is no merit, so
    each of them may stand for another; it stands for none that is better.

    Args:
        found: What the search gave, at most k.
        exact: The k best among all; at least 1.

    Returns:
        |found that are right| / |exact|, in [0, 1].
    """
    right = {who for who, _ in exact}
    seen = {who for who, _ in found}
    last = exact[-1][1]
    missed_ties = sum(who not in seen and score <= last + TIE for who, score in exact)
    other_ties = sum(who not in right and score >= last - TIE for who, score in found)
    return (len(right & seen) + min(missed_ties, other_ties)) / len(exact)
