"""The loop over epochs, its state, and when it ends."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from lookalike.training.collapse import CollapseDetector, spread
from lookalike.training.losses import build_loss
from lookalike.training.options import TrainingOptions
from lookalike.training.progress import Epoch, OnEpoch
from lookalike.training.validation import Validator


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
                save_checkpoint(self._checkpoint(fingerprint), checkpoint)
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
        self._network.load_state_dict(found.network)
        self._optimizer.load_state_dict(dict(found.optimizer))
        self.best, self.best_epoch = found.best, found.best_epoch
        for epoch in found.history:
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

    def _checkpoint(self, fingerprint: str) -> Checkpoint:
        return Checkpoint(
            fingerprint=fingerprint,
            network=self._network.state_dict(),
            optimizer=self._optimizer.state_dict(),
            best=self.best,
            best_epoch=self.best_epoch,
            history=tuple(self.history),
        )


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
