"""Training a head on judgements: matches that people called right or wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.cores import limit_openmp
from lookalike.errors import CalibrationError, ConfigurationError
from lookalike.models.head import EPSILON, Head, HeadSpec, save_head
from lookalike.records import ModelSpec
from lookalike.services.calibrating import judged_pairs
from lookalike.services.vector_set import sample_vectors
from lookalike.store.base import Store, VectorSpace
from lookalike.training.plan import TrainingOptions
from lookalike.training.task import HeadNetwork, library_versions
from lookalike.training.trainer import LEAST_SPREAD, spread
from lookalike.visualization.pages import write_whole

FEWEST: Final = 100
"""Judgements that a training needs, at least."""

FEWEST_OF_EACH: Final = 30
"""Of them right ones, and wrong ones, at least."""

WIDEST: Final = 4096
"""Numbers in a vector, at most: the head has their square."""

_CROWD = 2000  # other pictures of the collection, whose cosines are to stay
_KEEP = 20.0  # how much that weighs
_TEMPERATURE = 0.05  # of a cosine
_STEPS = 10  # of an epoch
_PAIRS = 1024  # judgements and pairs of the crowd in a step, at most
_RESAMPLED = 1000

Rows = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedSet:
    """Judgements of one collection, and the vectors that a head may be trained on."""

    spec: ModelSpec  # what made the vectors, of a network without a head
    vectors: Rows  # (N, dim), of judged pictures
    queries: Indices  # (M,) positions of the queries
    matches: Indices  # (M,) positions of the matches
    right: NDArray[np.bool_]  # (M,)
    crowd: Rows  # (C, dim), of pictures at random
    unusable: int  # judgements of which a picture has no vector under the spec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedbackTraining:
    """A head, and what it changes for judgements that it was not trained on.

    An AUC is how likely a right match has a higher score than a wrong one.
    """

    head: Head
    judgements: dict[str, int]  # how many are right, wrong, unusable, and in each part
    epochs: int
    best_epoch: int  # 0 if none was better than no head
    before: float  # AUC of the held-out judgements
    after: float
    low: float  # of the change, the 95 % interval over queries
    high: float
    moved: float  # mean change of the cosine of two pictures at random

    @property
    def helps(self) -> bool:
        """Whether the head certainly ranks held-out judgements better."""
        return self.low > 0


def read_judged(store: Store, collection: str, *, seed: int = 0) -> JudgedSet:
    """Reads judgements with vectors of the network; under a head, those that it was put on.

    Raises `CollectionNotFoundError`, or `ConfigurationError` if these vectors were discarded.
    """
    space = _below_head(store.spaces.all(collection))
    places: dict[str, int] = {}
    rows: list[Rows] = []
    judged: list[tuple[int, int, bool]] = []
    for query, match, right in judged_pairs(store, collection, space.spec):
        pair = []
        for one in (query, match):
            if one.key not in places:
                places[one.key] = len(rows)
                rows.append(one.vector)
            pair.append(places[one.key])
        judged.append((pair[0], pair[1], right))
    dim = space.spec.dim
    crowd = np.empty((0, dim), np.float32)
    if space.active:
        crowd = sample_vectors(store, collection, most=_CROWD, seed=seed)
    table = np.array(judged, dtype=np.int64).reshape(-1, 3)
    return JudgedSet(
        spec=space.spec,
        vectors=np.stack(rows) if rows else np.empty((0, dim), np.float32),
        queries=table[:, 0],
        matches=table[:, 1],
        right=table[:, 2].astype(np.bool_),
        crowd=crowd,
        unusable=store.judgements.count(collection) - len(judged),
    )


def _below_head(spaces: Sequence[VectorSpace]) -> VectorSpace:
    active = next(one for one in spaces if one.active)
    if active.spec.head is None:
        return active
    for one in spaces:
        if one.spec.head is None and set(one.spec.differences(active.spec)) <= {"head", "dim"}:
            return one
    raise ConfigurationError(
        "The collection's vectors come from a head, and those of its network were discarded: "
        "lookalike reembed --head none makes them again"
    )


def train_on_judgements(
    judged: JudgedSet,
    options: TrainingOptions,
    *,
    on_epoch: Callable[[int, float], None] = lambda *_: None,
) -> FeedbackTraining:
    """Trains a head that ranks right matches above wrong ones and leaves the rest as it is.

    The head has one layer, which starts as the identity and keeps the length of vectors. Its loss
    is a logistic one over pairs of a right and a wrong judgement, and the squared change of the
    cosines of pictures at random. Of the queries, three fifths are trained on, one decides when
    to stop, and one measures. Of `options` these count: epochs, patience, learning_rate,
    seed. `on_epoch` is told each epoch and the AUC of its validation.

    Raises:
        CalibrationError: There are too few judgements.
        ConfigurationError: The vectors are too long, or the training broke down.
    """
    limit_openmp()
    if judged.spec.dim > WIDEST:
        raise ConfigurationError(
            f"Vectors of {judged.spec.dim:,} numbers are too long to learn from feedback "
            f"({WIDEST:,} at most): use pooling avg"
        )
    parts = _split(judged, seed=options.seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are made in the same order on every machine of a kind
    try:
        return _train(judged, parts, options, on_epoch)
    finally:
        torch.set_num_threads(before)


def _split(judged: JudgedSet, *, seed: int) -> dict[str, Indices]:
    """Judgements by part; no two parts share a query, or the same two pictures."""
    right, wrong = int(judged.right.sum()), int((~judged.right).sum())
    if right + wrong < FEWEST or min(right, wrong) < FEWEST_OF_EACH:
        raise CalibrationError(
            f"There are {right} right and {wrong} wrong matches to learn from, and {FEWEST} are "
            f"needed, {FEWEST_OF_EACH} of each at least: judge more (POST /feedback)"
        )
    queries = np.random.default_rng(seed).permutation(np.unique(judged.queries))
    cuts = (3 * len(queries) // 5, 4 * len(queries) // 5)
    parts: dict[str, Indices] = {}
    taken: set[tuple[int, int]] = set()
    for name, own in zip(("train", "validation", "held_out"), np.split(queries, cuts), strict=True):
        here = np.flatnonzero(np.isin(judged.queries, own))
        ends = np.sort(np.stack([judged.queries[here], judged.matches[here]]), axis=0).T.tolist()
        fresh = [(a, b) not in taken for a, b in ends]
        parts[name] = here[np.array(fresh, dtype=np.bool_)]
        taken |= {(a, b) for a, b in ends}
        if len(set(judged.right[parts[name]].tolist())) < 2:
            raise CalibrationError(
                "The judgements are of too few queries to learn from some and measure on others: "
                f"{len(queries)} in all. Judge matches of more queries"
            )
    return parts


def _identity(dim: int) -> HeadNetwork:
    """A layer that changes no vector of length 1: ReLU(x + 1) - 1, for no number is below -1."""
    network = HeadNetwork(HeadSpec(dim_in=dim, dim_out=dim), seed=0)
    linear, norm = network.layers[0], network.layers[2]
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        linear.bias.fill_(1.0)
        norm.weight.fill_((1 + EPSILON) ** 0.5)
        norm.bias.fill_(-1.0)
    return network.eval()


def _train(
    judged: JudgedSet,
    parts: dict[str, Indices],
    options: TrainingOptions,
    on_epoch: Callable[[int, float], None],
) -> FeedbackTraining:
    network = _identity(judged.spec.dim)
    optimizer = torch.optim.AdamW(
        [network.get_parameter("layers.0.weight")], lr=options.learning_rate, weight_decay=0.0
    )
    step = _Step(judged, parts["train"], network)
    rng = np.random.default_rng(options.seed)
    plain = network.embed(torch.from_numpy(judged.vectors))
    best, best_epoch, best_auc = copy.deepcopy(network.state_dict()), 0, 0.0
    best_auc = _auc(judged, parts["validation"], plain)
    epoch = 0
    while epoch < options.epochs and epoch - best_epoch < options.patience:
        epoch += 1
        for _ in range(_STEPS):
            optimizer.zero_grad()
            torch.autograd.backward(step.loss(rng))
            optimizer.step()
        rows = network.embed(torch.from_numpy(judged.vectors))
        if not np.isfinite(rows).all() or spread(rows) < LEAST_SPREAD:
            raise ConfigurationError(
                f"The training broke down in epoch {epoch}: choose a lower --learning-rate"
            )
        auc = _auc(judged, parts["validation"], rows)
        on_epoch(epoch, auc)
        if auc > best_auc:
            best, best_epoch, best_auc = copy.deepcopy(network.state_dict()), epoch, auc
    network.load_state_dict(best)
    rows = network.embed(torch.from_numpy(judged.vectors))
    held = parts["held_out"]
    low, high = _interval(judged, held, plain, rows, seed=options.seed)
    counts = {"right": int(judged.right.sum()), "wrong": int((~judged.right).sum())}
    counts |= {"unusable": judged.unusable, **{name: len(part) for name, part in parts.items()}}
    auc_before, auc_after = _auc(judged, held, plain), _auc(judged, held, rows)
    trained = {
        "judgements": counts,
        "options": {"learning_rate": options.learning_rate, "seed": options.seed},
        "epoch": best_epoch,
        "epochs": epoch,
        "metrics": {"held_out": {"before": {"AUC": auc_before}, "after": {"AUC": auc_after}}},
        "versions": library_versions(),
    }
    return FeedbackTraining(
        head=network.to_head(backbone=judged.spec, trained=trained),
        judgements=counts,
        epochs=epoch,
        best_epoch=best_epoch,
        before=auc_before,
        after=auc_after,
        low=low,
        high=high,
        moved=step.moved(),
    )


def write_feedback_training(found: FeedbackTraining, folder: Path) -> Path:
    """Writes `head.safetensors`, `head.json` and `metrics.json`; returns the head's file.

    Raises `WeightsError` or `ConfigurationError` where a file cannot be written.
    """
    path = save_head(found.head, folder / "head.safetensors")
    facts = {
        "format": 1,
        "backbone": found.head.backbone.to_dict(),
        "head": {"sha256": found.head.digest},
        "judgements": found.judgements,
        "epochs": found.epochs,
        "best_epoch": found.best_epoch,
        "held_out": {
            "auc_before": found.before,
            "auc_after": found.after,
            "change": {"value": found.after - found.before, "low": found.low, "high": found.high},
        },
        "moved": found.moved,
        "helps": found.helps,
    }
    write_whole(folder / "metrics.json", json.dumps(facts, indent=2, allow_nan=False) + "\n")
    return path


class _Step:
    """The loss of one step, over judgements and pairs of other pictures drawn at random."""

    def __init__(self, judged: JudgedSet, part: Indices, network: HeadNetwork) -> None:
        self._network = network
        self._judged = torch.from_numpy(judged.vectors)
        crowd = judged.crowd if len(judged.crowd) > 1 else judged.vectors
        self._crowd = torch.from_numpy(np.ascontiguousarray(crowd))
        self._right = [
            (judged.queries[part[judged.right[part] == right]],
             judged.matches[part[judged.right[part] == right]])
            for right in (True, False)
        ]  # fmt: skip

    def loss(self, rng: np.random.Generator) -> Tensor:
        right, wrong = (self._cosines(*pairs, rng) for pairs in self._right)
        ranked = nn.functional.softplus((wrong[None, :] - right[:, None]) / _TEMPERATURE).mean()
        return ranked + _KEEP * self._changes(rng).square().mean()

    def _cosines(self, queries: Indices, matches: Indices, rng: np.random.Generator) -> Tensor:
        chosen = rng.permutation(len(queries))[:_PAIRS]
        rows = self._judged
        one, other = self._network(rows[queries[chosen]]), self._network(rows[matches[chosen]])
        cosines: Tensor = (one * other).sum(dim=1)
        return cosines

    def _changes(self, rng: np.random.Generator) -> Tensor:
        """By how much the cosines of pictures at random change."""
        one, other = self._crowd[rng.integers(len(self._crowd), size=(2, _PAIRS // 2))]
        after: Tensor = (self._network(one) * self._network(other)).sum(dim=1)
        changes: Tensor = after - (one * other).sum(dim=1)
        return changes

    @torch.inference_mode()
    def moved(self) -> float:
        """The mean absolute change of the cosines."""
        return float(self._changes(np.random.default_rng(0)).abs().mean())


def _auc(judged: JudgedSet, part: Indices, rows: Rows) -> float:
    """How likely a right match of a part scores above a wrong one; ties count half."""
    scores = _scores(judged, part, rows)
    right = judged.right[part]
    return auc(scores[right], scores[~right])


def _scores(judged: JudgedSet, part: Indices, rows: Rows) -> NDArray[np.float64]:
    one, other = rows[judged.queries[part]], rows[judged.matches[part]]
    scores: NDArray[np.float64] = np.einsum("ij,ij->i", one, other, dtype=np.float64)
    return scores


def auc(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    """The share of pairs whose right score is above the wrong one; ties count half."""
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, side="left")
    upto = np.searchsorted(ordered, right, side="right")
    return float((below + upto).mean() / 2 / len(wrong))


def _interval(
    judged: JudgedSet, part: Indices, before: Rows, after: Rows, *, seed: int
) -> tuple[float, float]:
    """The 95 % interval of the change of the AUC: queries drawn with replacement."""
    rng = np.random.default_rng(seed)
    plain, headed = _scores(judged, part, before), _scores(judged, part, after)
    own = [np.flatnonzero(judged.queries[part] == one) for one in np.unique(judged.queries[part])]
    right = judged.right[part]
    changes: list[float] = []
    for _ in range(_RESAMPLED):
        drawn = np.concatenate([own[i] for i in rng.integers(len(own), size=len(own))])
        said: Any = right[drawn]
        if said.any() and not said.all():
            was, now = plain[drawn], headed[drawn]
            changes.append(auc(now[said], now[~said]) - auc(was[said], was[~said]))
    low, high = np.percentile(changes or [0.0], [2.5, 97.5])
    return float(low), float(high)
