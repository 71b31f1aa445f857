"""The loop over epochs: what is watched after each, its state on the disk, and when it ends."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.errors import ConfigurationError
from lookalike.evaluation.metrics import average_precision_at_r, encode_labels, judge
from lookalike.evaluation.ranking import rank
from lookalike.files.disk import atomic_write, disk_errors
from lookalike.training.plan import TrainingOptions

LEAST_SPREAD: Final = 0.01
"""One minus the mean cosine of two vectors, below which they count as all alike."""

STUCK: Final = 0.97
"""Share of the margin above which a triplet loss counts as stuck there."""

STUCK_EPOCHS: Final = 5
"""How many epochs in a row it must be stuck."""


def spread(vectors: NDArray[np.float32]) -> float:
    """One minus the mean cosine over all pairs of (N, dim) unit vectors: 0 where all are alike.

    About 1 where directions are random. N is at least 2; NaN where a vector is.
    """
    count = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)  # |sum|^2 holds each pair twice, and N ones
    lengths = float((vectors.astype(np.float64) ** 2).sum())
    return 1 - (float(total @ total) - lengths) / (count * (count - 1))


class CollapseDetector:
    """Looks at each epoch; raises `ConfigurationError` with advice when it is hopeless.

    `margin` is that of the triplet loss, and None for another loss.
    """

    def __init__(self, *, margin: float | None) -> None:
        self._margin = margin
        self._stuck = 0

    def look(self, *, epoch: int, loss: float, spread: float) -> None:
        """Takes one epoch's mean loss, and the spread of the vectors after it.

        Raises:
            ConfigurationError: The training has collapsed.
        """
        if not np.isfinite(loss) or not np.isfinite(spread):
            raise ConfigurationError(
                f"The training broke down in epoch {epoch}: the loss is not a number any more. "
                "Choose a lower --learning-rate"
            )
        if spread < LEAST_SPREAD:
            raise ConfigurationError(
                f"The training collapsed in epoch {epoch}: all pictures have nearly the same "
                f"vector (spread {spread:.4f}). Choose a lower --learning-rate, or "
                "--loss multi_similarity; and check that the pictures, and so their features, "
                "differ"
            )
        near = self._margin is not None and loss >= STUCK * self._margin
        self._stuck = self._stuck + 1 if near else 0
        if self._stuck >= STUCK_EPOCHS:
            raise ConfigurationError(
                f"The training does not move: for {self._stuck} epochs the loss has been at the "
                f"margin ({loss:.4f} of {self._margin}), as if right and wrong matches were alike. "
                "Check that the labels are right; choose a higher --learning-rate, a larger "
                "--margin, or --loss multi_similarity"
            )


PICTURES_PER_CLASS: Final = 50
"""Of a validation class at most, chosen at random; so that no epoch waits for its validation."""

QUERIES: Final = 2000
"""At most, chosen at random among these pictures."""


class Validator:
    """Mean MAP@R of the validation pictures among themselves.

    `labels` are those of the validation pictures, each at least twice.
    """

    def __init__(self, labels: NDArray[np.int64], *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        own = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
        self.chosen = np.sort(np.concatenate([one[:PICTURES_PER_CLASS] for one in own]))
        self._classes = encode_labels([str(label) for label in labels[self.chosen]])
        count = min(QUERIES, len(self.chosen))
        self._queries = np.sort(rng.choice(len(self.chosen), size=count, replace=False))
        self._depth = int(self._classes.counts().max()) - 1

    def measure(self, vectors: NDArray[np.float32]) -> float:
        """MAP@R of the vectors of the chosen pictures, in their order: (n, dim) float32."""
        found = rank(vectors, queries=self._queries, k=self._depth, scored=0)
        relevance = judge(self._classes, queries=self._queries, positions=found.positions)
        return float(average_precision_at_r(relevance).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch did."""

    number: int  # from 1
    loss: float  # mean over the batches
    mined: int  # triplets or pairs that the loss was over
    spread: float  # one minus the mean cosine of two vectors after the epoch, see `collapse.spread`
    # MAP@R of the validation pictures after the epoch; None without validation
    validation: float | None
    learning_rate: float  # during the epoch


OnEpoch = Callable[[Epoch, int], None]
"""Told of each epoch when it is done and kept, and how many there are at most."""


FORMAT: Final = 1
"""Version of the file."""

State = Mapping[str, Any]


def save_checkpoint(state: State, path: Path) -> None:
    """Writes through to the disk; after a crash there is the old file or the whole new one.

    Raises:
        StorageFullError: The disk is full.
        StorageError: The file cannot be written.
    """
    with disk_errors(f"write the checkpoint {path}"), atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_checkpoint(path: Path, *, fingerprint: str) -> tuple[State | None, str | None]:
    """Reads a checkpoint of this training.

    Returns:
        What was saved, and why there is none: both None where there is no file.

    Raises:
        StorageError: The file is there and cannot be opened.
    """
    with disk_errors(f"read the checkpoint {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None, None
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            return None, f"{path} was written by another version of Lookalike"
        if state["fingerprint"] != fingerprint:
            return None, f"{path} is of another training, with other pictures or options"
        kept = {name: state[name] for name in ("network", "optimizer", "best", "best_epoch")}
        return {**kept, "history": [Epoch(**epoch) for epoch in state["history"]]}, None
    except Exception as exc:  # whatever torch makes of a damaged file
        return None, f"{path} is damaged ({type(exc).__name__})"


BatchLoss = Callable[[Tensor, Tensor], tuple[Tensor, int]]
"""Unit vectors (N, dim) and labels (N,) to the loss, and how many triplets or pairs it is over."""


def build_loss(options: TrainingOptions) -> BatchLoss:
    """The loss that the options name, with its miner."""
    from pytorch_metric_learning import distances, losses, miners  # noqa: PLC0415 - slow to import

    cosine = distances.CosineSimilarity()
    if options.loss == "triplet":
        miner = miners.TripletMarginMiner(
            margin=options.margin, type_of_triplets="semihard", distance=cosine
        )
        loss = losses.TripletMarginLoss(margin=options.margin, distance=cosine)
    else:
        miner = miners.MultiSimilarityMiner(epsilon=0.1, distance=cosine)
        loss = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, distance=cosine)

    def of_batch(vectors: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        chosen = miner(vectors, labels)
        count = len(chosen[0]) + (len(chosen[2]) if options.loss == "multi_similarity" else 0)
        return loss(vectors, labels, chosen), count

    return of_batch


class Material(Protocol):
    """What a network is trained on, whether features or pictures."""

    @property
    def labels(self) -> Tensor:
        """Of the N things to train on: (N,) int64."""
        ...

    def batch(self, positions: Tensor, *, epoch: int) -> Tensor:
        """What the network takes for these of the N."""
        ...

    def settle(self) -> None:
        """Makes the network ready to be measured, after its weights have changed."""
        ...

    def watched(self) -> NDArray[np.float32]:
        """The network's vectors of what is watched: (M, dim) float32, M at least 2."""
        ...


class Trainer:
    """Trains a network on labelled material.

    Each epoch draws from its own seed, so a training that goes on from a checkpoint does what it
    would have done without the interruption, to the bit.

    Args:
        network: Takes a batch to (N, dim) vectors of length 1; changed as it is trained.
        material: What it is trained on; holds the same network.
        validator: Measures the watched vectors; None where there is no validation.
        options: How.
        groups: Of its parameters, as `torch.optim` takes them, each with the `factor` of its
            learning rate; all with 1 unless given.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        material: Material,
        validator: Validator | None,
        options: TrainingOptions,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self._network = network
        self._material = material
        self._validator = validator
        self._options = options
        self._loss = build_loss(options)
        self._optimizer = torch.optim.AdamW(
            groups or [{"params": list(network.parameters()), "factor": 1.0}],
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        margin = options.margin if options.loss == "triplet" else None
        self._detector = CollapseDetector(margin=margin)
        self.history: list[Epoch] = []
        self.best: Mapping[str, Tensor] = copy.deepcopy(network.state_dict())
        self.best_epoch = 0

    def run(
        self, *, checkpoint: Path | None, fingerprint: str, on_epoch: OnEpoch
    ) -> tuple[int, list[str]]:
        """Runs epochs until the last one, or until the validation has not improved for long.

        Args:
            checkpoint: Gone on from where it is this training's, and written after each epoch;
                None to keep nothing.
            fingerprint: Of this training.
            on_epoch: Told of each epoch.

        Returns:
            How many epochs the checkpoint had; and in sentences, why it could not be used.

        Raises:
            ConfigurationError: The training has collapsed.
            StorageError: The checkpoint cannot be read or written.
        """
        notes = [] if checkpoint is None else self._resume(checkpoint, fingerprint)
        resumed = len(self.history)
        while not self._finished:
            epoch = self._epoch(len(self.history) + 1)
            self._take(epoch)
            if self._is_best():
                self.best = copy.deepcopy(self._network.state_dict())
                self.best_epoch = epoch.number
            if checkpoint is not None:
                save_checkpoint(self._state(fingerprint), checkpoint)
            on_epoch(epoch, self._options.epochs)
        return resumed, notes

    @property
    def _finished(self) -> bool:
        return len(self.history) >= self._options.epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether the validation has not improved for `patience` epochs."""
        done = len(self.history)
        return self._validator is not None and done - self.best_epoch >= self._options.patience

    def _resume(self, path: Path, fingerprint: str) -> list[str]:
        """Takes over the state of an interrupted run; in a sentence, why it cannot."""
        found, why_not = load_checkpoint(path, fingerprint=fingerprint)
        if found is None:
            return [] if why_not is None else [f"The training starts anew: {why_not}."]
        self._network.load_state_dict(found["network"])
        self._optimizer.load_state_dict(found["optimizer"])
        self.best, self.best_epoch = found["best"], found["best_epoch"]
        for epoch in found["history"]:
            self._take(epoch)
        return []

    def _take(self, epoch: Epoch) -> None:
        self._detector.look(epoch=epoch.number, loss=epoch.loss, spread=epoch.spread)
        self.history.append(epoch)

    def _is_best(self) -> bool:
        """Whether the last epoch is the best one; without validation each one is."""
        *before, last = self.history
        if last.validation is None:
            return True
        return all(last.validation > (epoch.validation or 0.0) for epoch in before)

    def _epoch(self, number: int) -> Epoch:
        options = self._options
        rate = options.learning_rate * (1 + math.cos(math.pi * (number - 1) / options.epochs)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._network.train()
        total, mined, batches = 0.0, 0, self._batches(number)
        for batch in batches:
            loss, count = self._step(batch, epoch=number)
            total, mined = total + loss, mined + count
        self._material.settle()
        loss = total / len(batches) if _finite(self._network) else math.nan
        vectors = self._material.watched()
        directed = _all_directed(vectors)
        validation = None
        if self._validator is not None and math.isfinite(loss) and directed:
            validation = self._validator.measure(vectors)
        return Epoch(
            number=number,
            loss=loss,
            mined=mined,
            spread=spread(vectors) if directed else 0.0,
            validation=validation,
            learning_rate=rate,
        )

    def _step(self, positions: Tensor, *, epoch: int) -> tuple[float, int]:
        """One batch; its loss, and the triplets or pairs in it."""
        vectors = self._network(self._material.batch(positions, epoch=epoch))
        loss, count = self._loss(vectors, self._material.labels[positions].to(vectors.device))
        if count:  # otherwise there is nothing to learn from it
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()
        return float(loss.detach()), count

    def _batches(self, number: int) -> list[Tensor]:
        """Positions of an epoch's batches, the same number of pictures of each of their classes."""
        from pytorch_metric_learning.samplers import MPerClassSampler  # noqa: PLC0415 - as above

        labels, each = self._material.labels, self._options.pictures_per_class
        classes = len(torch.unique(labels))
        size = each * min(self._options.classes_per_batch, classes)
        length = -(-len(labels) // size) * size
        with _numpy_seeded(self._options.seed, number):
            sampler = MPerClassSampler(
                labels, m=each, batch_size=size, length_before_new_iter=length
            )
            drawn = torch.tensor([int(position) for position in sampler])
        return list(torch.split(drawn, size))

    def _state(self, fingerprint: str) -> State:
        """What a training needs to go on after its last epoch; of the same fingerprint only."""
        return {
            "fingerprint": fingerprint,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": [asdict(epoch) for epoch in self.history],
        }


def _finite(network: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


def _all_directed(vectors: NDArray[np.float32]) -> bool:
    """Whether all have length 1, so that they can be ranked."""
    return bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))


@contextmanager
def _numpy_seeded(seed: int, number: int) -> Iterator[None]:
    """Seeds NumPy's global generator, the one that the samplers draw from, and puts it back."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence([seed, number]).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: sums are made in the same order on every machine of a kind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
