"""What can be chosen about a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lookalike.errors import ConfigurationError

Loss = Literal["triplet", "multi_similarity"]


MAX_WIDTH = 65_536
"""Numbers in a layer, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How a head is trained.

    Attributes:
        loss: `triplet`, with semi-hard triplets (Schroff et al., FaceNet, CVPR 2015); or
            `multi_similarity` (Wang et al., CVPR 2019).
        margin: By how much, in cosine, a right match must lead; of `triplet` alone. In (0, 2).
        dim: Numbers in the head's vectors.
        hidden: Widths of layers before the last one.
        epochs: At most; in one, about as many pictures are drawn as there are to train on.
        patience: Stop after so many epochs without a better validation.
        learning_rate: Of AdamW at the start; it falls to 0 along half a cosine.
        weight_decay: Of AdamW.
        classes_per_batch: At most; fewer where there are fewer.
        pictures_per_class: In a batch, at least 2.
        hold_out_classes: Classes that are kept for measuring: how many, or their share below 1.
            None for a fifth where there are enough.
        hold_out_pictures: Share of the other classes' pictures that is kept for measuring.
        validation: Share of the other classes that decides when to stop.
        seed: The same seed gives the same head.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    loss: Loss = "triplet"
    margin: float = 0.2
    dim: int = 512
    hidden: tuple[int, ...] = ()
    epochs: int = 60
    patience: int = 15
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    classes_per_batch: int = 32
    pictures_per_class: int = 4
    hold_out_classes: float | None = None
    hold_out_pictures: float = 0.2
    validation: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks all ranges."""
        _check(self.loss in get_args(Loss), "loss", self.loss, "triplet or multi_similarity")
        _check(0 < self.margin < 2, "margin", self.margin, "above 0 and below 2, e.g. 0.2")
        for name in ("epochs", "patience"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name, widths in (("dim", (self.dim,)), ("hidden", self.hidden)):
            fits = all(1 <= width <= MAX_WIDTH for width in widths)
            _check(fits, name, getattr(self, name), f"at least 1 and at most {MAX_WIDTH:,}")
        rate, decay = self.learning_rate, self.weight_decay
        _check(0 < rate < math.inf, "learning rate", rate, "above 0, e.g. 0.0001")
        _check(0 <= decay < math.inf, "weight decay", decay, "0 or above")
        for name in ("classes_per_batch", "pictures_per_class"):
            _check(getattr(self, name) >= 2, name, getattr(self, name), "at least 2")
        held = self.hold_out_classes
        good = held is None or 0 <= held < 1 or (held >= 2 and float(held).is_integer())
        _check(good, "hold_out_classes", held, "0, a share below 1, or a number from 2")
        for name in ("hold_out_pictures", "validation"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        _check(self.seed >= 0, "seed", self.seed, "0 or above")


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigurationError(f"The {name.replace('_', ' ')} is {value}; it must be {wanted}")
