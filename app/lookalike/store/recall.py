"""Recall: the share of the true matches that a search found."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Ranked = Sequence[tuple[Hashable, float]]
"""What a search found: keys, each once, with their scores; best first."""

TIE = 1e-6
"""Scores that differ by no more than this are equal: it is the rounding of a float32 cosine."""


def recall_at_k(found: Ranked, exact: Ranked) -> float:
    """The share of the k best rows that a search found.

    Of several rows with the score of the last true match, any counts as found for any other; none
    counts for a row with a better score.

    Args:
        found: What the search returned, at most k.
        exact: The k best of all rows; at least 1.

    Returns:
        Correct rows found / rows in `exact`, in [0, 1].
    """
    right = {key for key, _ in exact}
    seen = {key for key, _ in found}
    last = exact[-1][1]
    missed_ties = sum(key not in seen and score <= last + TIE for key, score in exact)
    other_ties = sum(key not in right and score >= last - TIE for key, score in found)
    return (len(right & seen) + min(missed_ties, other_ties)) / len(exact)
