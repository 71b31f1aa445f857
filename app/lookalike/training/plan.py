"""The plan of a training: its options, and which pictures it trains on, checks and measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from lookalike.errors import ConfigurationError
from lookalike.evaluation.metrics import Classes
from lookalike.services.ranking import Positions

Loss = Literal["triplet", "multi_similarity"]


MAX_WIDTH = 65_536
"""Numbers in a layer, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How a head is trained.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    # `triplet`, with semi-hard triplets (Schroff et al., FaceNet, CVPR 2015); or `multi_similarity`
    # (Wang et al., CVPR 2019)
    loss: Loss = "triplet"
    # by how much, in cosine, a right match must lead; of `triplet` alone. In (0, 2).
    margin: float = 0.2
    dim: int = 512  # numbers in the head's vectors
    hidden: tuple[int, ...] = ()  # widths of layers before the last one
    epochs: int = 60  # at most; in one, about as many pictures are drawn as there are to train on
    patience: int = 15  # stop after so many epochs without a better validation
    learning_rate: float = 1e-4  # of AdamW at the start; it falls to 0 along half a cosine
    weight_decay: float = 1e-4  # of AdamW
    classes_per_batch: int = 32  # at most; fewer where there are fewer
    pictures_per_class: int = 4  # in a batch, at least 2
    # classes that are kept for measuring: how many, or their share below 1. None for a fifth where
    # there are enough.
    hold_out_classes: float | None = None
    # share of the other classes' pictures that is kept for measuring
    hold_out_pictures: float = 0.2
    validation: float = 0.2  # share of the other classes that decides when to stop
    seed: int = 0  # the same seed gives the same head

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


AUTOMATIC_SHARE: Final = 0.2
"""Of the classes, held out unless said otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """A vector set in four parts that share no picture.

    `unseen` shares no class with the others, as between the two halves of Stanford Online
    Products (Oh Song et al., CVPR 2016); nor does `validation` where `validation_by` is `class`.
    """

    train: Positions  # what is trained on
    validation: Positions  # decides which epoch is the best
    held_out: Positions  # other pictures of the classes that are trained on
    unseen: Positions  # all pictures of the held-out classes
    # whether the validation's classes are its own (`class`), or are trained on with other pictures
    # (`picture`); `none` where there is no validation
    validation_by: Literal["class", "picture", "none"]
    train_classes: int  # how many classes are trained on
    validation_classes: int  # how many classes the validation has
    unseen_classes: tuple[str, ...]  # the labels of the held-out classes
    alone: int  # pictures that are left out, because no other has their label
    notes: tuple[str, ...]  # what could not be done as wanted, in sentences


def make_split(classes: Classes, options: TrainingOptions) -> Split:
    """Deals out classes and pictures at random, by the seed.

    Raises:
        ConfigurationError: There is one class only, or too few of two pictures and more for what
            is to be held out.
    """
    counts = classes.counts()
    usable = np.flatnonzero(counts >= 2)
    alone = int((counts == 1).sum())
    _check_classes(classes, usable)
    notes = []
    if alone:
        notes.append(f"{alone} pictures are left out: no other picture has their label.")
    rng = np.random.default_rng(options.seed)
    dealt = rng.permutation(usable)
    held = _held_out_classes(options.hold_out_classes, len(usable))
    if held == 0 and options.hold_out_classes is None:
        notes.append("No classes are held out: there are too few for it.")
    unseen, seen = dealt[:held], dealt[held:]
    chosen = _validation_classes(options.validation, len(seen))
    validating, training = seen[:chosen], seen[chosen:]
    pictures = [rng.permutation(np.flatnonzero(classes.codes == code)) for code in training]
    held_out, pictures = _take(pictures, share=options.hold_out_pictures)
    validation = np.flatnonzero(np.isin(classes.codes, validating))
    by: Literal["class", "picture", "none"] = "class"
    if not chosen:
        validation, pictures = _take(pictures, share=options.validation)
        by = "picture" if len(validation) else "none"
        notes.append(_why_not_by_class(options.validation, by))
    if options.hold_out_pictures and not len(held_out):
        notes.append("No pictures are held out: no class has the four that it takes.")
    return Split(
        train=_together(pictures),
        validation=validation,
        held_out=held_out,
        unseen=np.flatnonzero(np.isin(classes.codes, unseen)),
        validation_by=by,
        train_classes=len(training),
        validation_classes=len(np.unique(classes.codes[validation])),
        unseen_classes=tuple(sorted(classes.names[code] for code in unseen)),
        alone=alone,
        notes=tuple(notes),
    )


def _check_classes(classes: Classes, usable: Positions) -> None:
    if len(classes.names) == 1:
        raise ConfigurationError(
            f"All pictures have the label {classes.names[0]!r}: training needs two classes or "
            "more, to learn what tells them apart"
        )
    if len(usable) < 2:
        raise ConfigurationError(
            f"Of {len(classes.names)} classes, {len(usable)} have two pictures or more: training "
            "needs two such classes or more. Add pictures, or check the labels"
        )


def _held_out_classes(wanted: float | None, there: int) -> int:
    """How many classes to hold out; two always remain. Raises `ConfigurationError`."""
    if wanted is None:
        count = round(AUTOMATIC_SHARE * there)
        return count if 2 <= count <= there - 2 else 0
    count = round(wanted * there) if wanted < 1 else int(wanted)
    if wanted and not 2 <= count <= there - 2:
        raise ConfigurationError(
            f"{count} of {there} classes cannot be held out: two or more must be, to be told "
            "apart, and two or more must remain to train on. Choose another --hold-out-classes, "
            "or 0 for none"
        )
    return count


def _validation_classes(share: float, there: int) -> int:
    count = round(share * there)
    return count if 2 <= count <= there - 2 else 0


def _take(pictures: Sequence[Positions], *, share: float) -> tuple[Positions, list[Positions]]:
    """Takes a share of each class's pictures; two or more, where two or more remain."""
    taken, left = [], []
    for own in pictures:
        count = max(2, round(share * len(own))) if share else 0
        count = count if count <= len(own) - 2 else 0
        taken.append(own[:count])
        left.append(own[count:])
    return _together(taken), left


def _together(parts: Sequence[Positions]) -> Positions:
    return np.sort(np.concatenate(parts))


def _why_not_by_class(share: float, by: str) -> str:
    if not share:
        return "There is no validation, as was wished: all epochs are run and the last one counts."
    if by == "none":
        return (
            "There is no validation: too few classes, and too few pictures in each. All epochs "
            "are run, and the last one counts."
        )
    return (
        "The validation has other pictures of the classes that are trained on: there are too few "
        "classes to keep some for it alone."
    )
