"""What scores mean in one collection: how likely a match is a copy, and when nothing matches."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from lookalike.errors import CalibrationError, InvalidParameterError
from lookalike.records import ModelSpec, utc_now
from lookalike.store.base import Store
from lookalike.store.filters import field_name

FORMAT = 1
"""Version of what a store keeps of a calibration."""

BINS = 10
_STEPS = 100  # of Newton's method; it takes about ten
_RIDGE = 1e-6  # keeps the slope finite
_STEEPEST = 40.0  # of the logit over one standard deviation of the scores

log = logging.getLogger(__name__)

Numbers = NDArray[np.float64]
Verdict = Literal["match", "no match"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What a calibration is made from; raises `InvalidParameterError` if that cannot be."""

    label_field: str | None = None  # a metadata field that says what a picture shows
    false_alarms: float = 0.05  # share of queries without a right picture that may match
    sample: int = 200  # pictures of which copies are made, 20 to 2,000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.001 <= self.false_alarms <= 0.5:
            raise InvalidParameterError(
                f"false_alarms is {self.false_alarms}; choose a share from 0.001 to 0.5"
            )
        if not 20 <= self.sample <= 2000:
            raise InvalidParameterError(f"sample is {self.sample}; choose from 20 to 2,000")
        if not 0 <= self.seed < 2**32:
            raise InvalidParameterError(f"seed is {self.seed}; choose from 0 to 4,294,967,295")
        if self.label_field is not None:
            object.__setattr__(self, "label_field", field_name(self.label_field))

    @property
    def fewest(self) -> int:
        """Queries that a rate of false alarms is measured on, at least."""
        return math.ceil(2 / self.false_alarms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Pairs whose probabilities lie in one tenth, of a reliability diagram."""

    low: float
    high: float
    pairs: int
    predicted: float  # mean probability
    observed: float  # share of copies


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyModel:
    """How likely a pair with a score is a picture and its copy: 1 / (1 + exp(-(a + b score))).

    Copies and other pictures count as equally likely beforehand, and so they weigh the same in
    `ece` and `bins`, which are measured on pictures that were not fitted.
    """

    intercept: float  # a
    slope: float  # b, above 0
    pictures: int  # of which copies were made
    copies: int  # pairs of a picture and its copy
    others: int  # pairs of a copy and another picture
    duplicates: int  # pictures that were no other ones, but duplicates in the collection
    ece: float  # expected calibration error
    bins: list[Bin]
    found: dict[str, float]  # by kind of copy, the share with a probability of 0.5 and more

    def probability(self, score: float) -> float:
        """Of one score, in [0, 1]."""
        return float(sigmoid(np.float64(self.intercept + self.slope * score)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMatch:
    """The score below which a query counts as without a match, and how often that is wrong.

    Both shares are measured on queries that the threshold was not chosen on; None where there
    was none.
    """

    threshold: float
    by: Literal["labels", "judgements"]
    queries: int  # that have a best wrong picture
    false_alarms: float  # of queries without a right picture, the share with a match
    found: float | None  # of queries with a right picture, the share whose best one is a match


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCalibration:
    """What the scores of one vector space mean."""

    options: CalibrationOptions
    pictures: int  # in the collection when it was made
    copy_model: CopyModel
    no_match: NoMatch | None  # None without labels or enough judgements
    notes: list[str]  # what could not be done, in sentences
    created_at: str = ""

    def to_json(self) -> dict[str, Any]:
        """What a store keeps."""
        return {"format": FORMAT, **asdict(self)} | {"created_at": self.created_at or utc_now()}

    @classmethod
    def of_json(cls, content: Mapping[str, Any] | None) -> ScoreCalibration | None:
        """Reads what a store keeps; None for nothing, and for another version's."""
        if content is None or content.get("format") != FORMAT:
            return None
        values = {name: value for name, value in content.items() if name != "format"}
        try:
            return _READER.validate_python(values)
        except ValidationError as exc:
            log.warning("A calibration of scores cannot be read, and is not used: %s", exc)
            return None

    def verdict(self, best: float | None) -> Verdict | None:
        """Whether a query whose best score this is (None: it found nothing) has a match."""
        if self.no_match is None:
            return None
        reached = best is not None and best >= self.no_match.threshold
        return "match" if reached else "no match"


_READER = TypeAdapter(ScoreCalibration)


def calibration_of(store: Store, collection: str, spec: ModelSpec) -> ScoreCalibration | None:
    """What the scores of a vector space mean, if that is known. Cheap."""
    return ScoreCalibration.of_json(store.spaces.calibration(collection, spec))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Scores of pairs, and what each pair is; all (N,)."""

    scores: Numbers
    copies: NDArray[np.bool_]
    pictures: NDArray[np.int64]  # which picture a pair belongs to
    kinds: NDArray[np.str_]  # how the copy was made


def sigmoid(logits: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def weights_of(copies: NDArray[np.bool_]) -> Numbers:
    """Weights with which copies and others sum to a half each."""
    weights: Numbers = np.where(copies, 0.5 / max(1, copies.sum()), 0.5 / max(1, (~copies).sum()))
    return weights


def fit_logistic(scores: Numbers, copies: NDArray[np.bool_]) -> tuple[float, float]:
    """Intercept and slope of the logistic regression of copies on scores, both (N,).

    Maximizes the weighted likelihood sum w (t log p + (1 - t) log(1 - p)), p = sigmoid(a + b s),
    by Newton's method, with the weights of `weights_of`. The targets t are Platt's (1999), a
    little inside 0 and 1, so that numbers stay finite where a score tells all copies from all
    others; the slope is bounded for the same reason. The score with p = 0.5 stays where it is.

    Raises `CalibrationError` if copies have no higher scores than others.
    """
    right, wrong = int(copies.sum()), int((~copies).sum())
    mean, spread = float(scores.mean()), float(scores.std())
    if right and wrong and spread > 1e-9:
        targets = np.where(copies, (right + 1) / (right + 2), 1 / (wrong + 2))
        x = np.stack([np.ones_like(scores), (scores - mean) / spread])  # (2, N)
        weights, fitted = weights_of(copies), np.zeros(2)
        for _ in range(_STEPS):
            p = sigmoid(fitted @ x)
            gradient = x @ (weights * (p - targets)) + _RIDGE * fitted * (0, 1)
            curved = (x * (weights * p * (1 - p))) @ x.T + _RIDGE * np.eye(2)
            step = np.linalg.solve(curved, gradient)
            fitted = fitted - step / max(1.0, np.abs(step).max() / 2)
            if np.abs(step).max() < 1e-9:
                break
        if fitted[1] > 0:
            middle, slope = (fitted / max(1.0, fitted[1] / _STEEPEST)).tolist()
            return middle - slope * mean / spread, slope / spread
    raise CalibrationError(
        "Copies of pictures have no higher scores than other pictures here: the model cannot tell "
        "them apart, or the pictures are all alike"
    )


def reliability(probabilities: Numbers, copies: NDArray[np.bool_]) -> tuple[float, list[Bin]]:
    """The expected calibration error and the bins of a reliability diagram; inputs (N,)."""
    weights = weights_of(copies)
    tenths = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    error, bins = 0.0, []
    for tenth in range(BINS):
        here = tenths == tenth
        if not here.any():
            continue
        weight = weights[here].sum()
        predicted = float((weights * probabilities)[here].sum() / weight)
        observed = float((weights * copies)[here].sum() / weight)
        error += float(weight) * abs(predicted - observed)
        bins.append(
            Bin(
                low=tenth / BINS,
                high=(tenth + 1) / BINS,
                pairs=int(here.sum()),
                predicted=predicted,
                observed=observed,
            )
        )
    return error, bins


def fit_copies(pairs: Pairs, *, duplicates: int) -> CopyModel:
    """Fits two thirds of the pictures, and measures on the others.

    Raises `CalibrationError`.
    """
    pictures = np.unique(pairs.pictures)
    fitted = np.isin(pairs.pictures, pictures[: -(-2 * len(pictures) // 3)])
    intercept, slope = fit_logistic(pairs.scores[fitted], pairs.copies[fitted])
    held = ~fitted
    probabilities = sigmoid(intercept + slope * pairs.scores[held])
    ece, bins = reliability(probabilities, pairs.copies[held])
    copies, kinds = pairs.copies[held], pairs.kinds[held]
    return CopyModel(
        intercept=intercept,
        slope=slope,
        pictures=len(pictures),
        copies=int(pairs.copies.sum()),
        others=int((~pairs.copies).sum()),
        duplicates=duplicates,
        ece=ece,
        bins=bins,
        found={
            str(kind): float((probabilities[copies & (kinds == kind)] >= 0.5).mean())
            for kind in dict.fromkeys(kinds[copies].tolist())
        },
    )


def choose_threshold(
    wrong: Sequence[float],
    right: Sequence[float],
    options: CalibrationOptions,
    *,
    by: Literal["labels", "judgements"],
) -> NoMatch:
    """The lowest score that at most a share of queries without a right picture reaches.

    `wrong` has the best score of a wrong picture, one for each query, and `right` that of a right
    one, both in random order. Two thirds of `wrong` decide, the others measure.

    Raises `CalibrationError` if there are too few.
    """
    if len(wrong) < options.fewest:
        raise CalibrationError(
            f"{len(wrong)} queries have a picture that is known to be wrong for them, and "
            f"{options.fewest} are needed to find a score that only {options.false_alarms:.1%} of "
            "such queries reach"
        )
    cut = -(-2 * len(wrong) // 3)
    chosen = np.sort(np.asarray(wrong[:cut], dtype=np.float64))[::-1]
    above = chosen[int(options.false_alarms * len(chosen))]
    threshold = float(np.nextafter(above, 2.0))
    held, scores = np.asarray(wrong[cut:]), np.asarray(right)
    return NoMatch(
        threshold=threshold,
        by=by,
        queries=len(wrong),
        false_alarms=float((held >= threshold).mean()),
        found=float((scores >= threshold).mean()) if len(scores) else None,
    )
