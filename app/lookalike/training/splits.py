"""Which pictures are trained on, which decide when to stop, and which are kept for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import ConfigurationError
from lookalike.evaluation.metrics import Classes
from lookalike.training.options import TrainingOptions

AUTOMATIC_SHARE: Final = 0.2
"""Of the classes, held out unless said otherwise."""

Positions = NDArray[np.int64]
"""Places in a vector set, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """A vector set in four parts that share no picture.

    `unseen` shares no class with the others, as between the two halves of Stanford Online
    Products (Oh Song et al., CVPR 2016); nor does `validation` where `validation_by` is `class`.

    Attributes:
        train: What is trained on.
        validation: Decides which epoch is the best.
        held_out: Other pictures of the classes that are trained on.
        unseen: All pictures of the held-out classes.
        validation_by: Whether the validation's classes are its own (`class`), or are trained on
            with other pictures (`picture`); `none` where there is no validation.
        train_classes: How many classes are trained on.
        validation_classes: How many classes the validation has.
        unseen_classes: The labels of the held-out classes.
        alone: Pictures that are left out, because no other has their label.
        notes: What could not be done as wanted, in sentences.
    """

    train: Positions
    validation: Positions
    held_out: Positions
    unseen: Positions
    validation_by: Literal["class", "picture", "none"]
    train_classes: int
    validation_classes: int
    unseen_classes: tuple[str, ...]
    alone: int
    notes: tuple[str, ...]


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
