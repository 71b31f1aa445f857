"""What is known of a training while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch did.

    Attributes:
        number: From 1.
        loss: Mean over the batches.
        mined: Triplets or pairs that the loss was over.
        spread: One minus the mean cosine of two vectors after the epoch, see `collapse.spread`.
        validation: MAP@R of the validation pictures after the epoch; None without validation.
        learning_rate: During the epoch.
    """

    number: int
    loss: float
    mined: int
    spread: float
    validation: float | None
    learning_rate: float


OnEpoch = Callable[[Epoch, int], None]
"""Told of each epoch when it is done and kept, and how many there are at most."""
