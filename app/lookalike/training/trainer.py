"""The loop over epochs: what is watched after each, its state on the disk, and when it ends."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.cores import limit_openmp
from lookalike.errors import ConfigurationError
from lookalike.files.disk import atomic_write, disk_errors
from lookalike.models.head import Head
from lookalike.records import ModelSpec
from lookalike.services.vector_set import VectorSet
from lookalike.training.plan import Split, TrainingOptions
from lookalike.training.task import HeadNetwork, Task, build_loss, library_versions

FORMAT: Final = 1
"""Version of a checkpoint."""

LEAST_SPREAD: Final = 0.01
"""One minus the mean cosine of two vectors, below which they count as all alike."""

STUCK: Final = 0.97
"""Share of the margin above which a triplet loss counts as stuck there."""

STUCK_EPOCHS: Final = 5
"""How many epochs in a row it must be stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch did."""

    number: int  # from 1
    loss: float  # mean over the batches
    mined: int  # triplets or pairs that the loss was over
    spread: float  # one minus the mean cosine of two vectors after the epoch, see `spread`
    # MAP@R of the validation pictures after the epoch; None without validation
    validation: float | None
    learning_rate: float  # during the epoch


OnEpoch = Callable[[Epoch, int], None]
"""Told of each epoch when it is done and kept, and how many there are at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingResult:
    """A head, and how it came to be."""

    head: Head  # after the best epoch
    options: TrainingOptions  # what was asked for
    split: Split  # which pictures were trained on, and which were kept
    history: tuple[Epoch, ...]  # all epochs
    best_epoch: int  # the one whose validation is the best, or the last one without validation
    # `early` where the validation had not improved for long, else `done`
    stopped: Literal["early", "done"]
    # MAP@R of the validation pictures without the head; None without them
    validation_before: float | None
    resumed_after: int  # epochs that an interrupted run had done
    notes: tuple[str, ...]  # what could not be done as wanted, in sentences
    seconds: float  # that this run took


def spread(vectors: NDArray[np.float32]) -> float:
    """One minus the mean cosine over all pairs of (N, dim) unit vectors: 0 where all are alike.

    About 1 where directions are random. N is at least 2; NaN where a vector is.
    """
    count = len(vectors)
    total = vectors.sum(axis=0, dtype=np.float64)  # |sum|^2 holds each pair twice, and N ones
    lengths = float((vectors.astype(np.float64) ** 2).sum())
    return 1 - (float(total @ total) - lengths) / (count * (count - 1))


def check_collapse(history: Sequence[Epoch], *, margin: float | None) -> None:
    """Looks whether a training is hopeless after its last epoch.

    `margin` is that of the triplet loss, and None for another loss.

    Raises:
        ConfigurationError: It is; the text gives advice.
    """
    epoch = history[-1]
    if not np.isfinite(epoch.loss) or not np.isfinite(epoch.spread):
        raise ConfigurationError(
            f"The training broke down in epoch {epoch.number}: the loss is not a number any more. "
            "Choose a lower --learning-rate"
        )
    if epoch.spread < LEAST_SPREAD:
        raise ConfigurationError(
            f"The training collapsed in epoch {epoch.number}: all pictures have nearly the same "
            f"vector (spread {epoch.spread:.4f}). Choose a lower --learning-rate, or "
            "--loss multi_similarity; and check that the pictures, and so their features, differ"
        )
    last = history[-STUCK_EPOCHS:]
    if margin is None or len(last) < STUCK_EPOCHS:
        return
    if all(one.loss >= STUCK * margin for one in last):
        raise ConfigurationError(
            f"The training does not move: for {STUCK_EPOCHS} epochs the loss has been at the "
            f"margin ({epoch.loss:.4f} of {margin}), as if right and wrong matches were alike. "
            "Check that the labels are right; choose a higher --learning-rate, a larger "
            "--margin, or --loss multi_similarity"
        )


class Material(Protocol):
    """What a network is trained on, whether features or pictures."""

    def batch(self, positions: Tensor, *, epoch: int) -> Tensor:
        """What the network takes for these of the N that are trained on."""

    def trained(self) -> Tensor:
        """What the head takes for all of the N: (N, dim_in)."""

    def watched(self) -> Tensor:
        """What the head takes for the task's `watched`: (M, dim_in)."""


class Trainer:
    """Trains a network on a task.

    Each epoch draws from its own seed, so a training that goes on from a checkpoint does what it
    would have done without the interruption, to the bit.

    Args:
        task: What is trained.
        network: Takes a batch to (N, dim) vectors of length 1; changed as it is trained.
        head: Its last part, or the network itself.
        material: What it is trained on.
        manner: What the result depends on beside the task, as JSON.
        groups: Of its parameters, as `torch.optim` takes them, each with the `factor` of its
            learning rate; all with 1 unless given.
    """

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        *,
        head: HeadNetwork,
        material: Material,
        manner: Mapping[str, Any],
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self._task, self._options = task, task.options
        self._network, self._head, self._material = network, head, material
        self._manner = manner
        self._labels = torch.from_numpy(task.classes.codes[task.split.train])
        self._loss = build_loss(self._options)
        self._optimizer = torch.optim.AdamW(
            groups or [{"params": list(network.parameters()), "factor": 1.0}],
            lr=self._options.learning_rate,
            weight_decay=self._options.weight_decay,
        )
        self._history: list[Epoch] = []
        self._resumed = 0
        self._notes: list[str] = []
        self._best: Mapping[str, Tensor] = copy.deepcopy(network.state_dict())
        self._best_epoch = 0

    def run(self, *, checkpoint: Path | None, on_epoch: OnEpoch | None) -> None:
        """Runs epochs until the last one, or until the validation has not improved for long.

        Leaves the network as it was after the best epoch. A checkpoint is gone on from where it is
        this training's, and written after each epoch.

        Raises:
            ConfigurationError: The training has collapsed.
            StorageError: The checkpoint cannot be read or written.
        """
        options = self._options
        fingerprint = self._task.fingerprint(self._manner)
        if checkpoint is not None:
            self._resume(checkpoint, fingerprint)
        while len(self._history) < options.epochs and not self._stopped_early:
            epoch = self._epoch(len(self._history) + 1)
            self._history.append(epoch)
            margin = options.margin if options.loss == "triplet" else None
            check_collapse(self._history, margin=margin)
            if self._is_best():
                self._best = copy.deepcopy(self._network.state_dict())
                self._best_epoch = epoch.number
            if checkpoint is not None:
                self._save(checkpoint, fingerprint)
            if on_epoch is not None:
                on_epoch(epoch, options.epochs)
        self._network.load_state_dict(self._best)

    def result(self, backbone: ModelSpec) -> TrainingResult:
        """All about this training; `backbone` is what makes the vectors that the head takes."""
        task, options, before = self._task, self._options, None
        if task.validator is not None:
            before = task.validator.measure(task.rows(task.watched))
        best = self._history[self._best_epoch - 1]
        notes = [*task.split.notes, *self._notes]
        if before is not None and best.validation is not None and best.validation <= before:
            notes.append(
                f"The head does not help the validation pictures: MAP@R {best.validation:.4f} with "
                f"it, {before:.4f} without."
            )
        trained = {
            "dataset": task.vectors.name,
            "pictures": len(task.split.train),
            "classes": task.split.train_classes,
            "options": {**asdict(options), "hidden": list(options.hidden)},
            **self._manner,
            "epoch": best.number,
            "epochs": len(self._history),
            "validation_map_at_r": best.validation,
            "versions": library_versions(),
        }
        return TrainingResult(
            head=self._head.to_head(backbone=backbone, trained=trained),
            options=options,
            split=task.split,
            history=tuple(self._history),
            best_epoch=self._best_epoch,
            stopped="early" if self._stopped_early else "done",
            validation_before=before,
            resumed_after=self._resumed,
            notes=tuple(notes),
            seconds=time.perf_counter() - task.started,
        )

    @property
    def _stopped_early(self) -> bool:
        """Whether the validation has not improved for `patience` epochs."""
        waited = len(self._history) - self._best_epoch
        return self._task.validator is not None and waited >= self._options.patience

    def _is_best(self) -> bool:
        """Whether the last epoch is the best one; without validation each one is."""
        *before, last = self._history
        if last.validation is None:
            return True
        return all(last.validation > (epoch.validation or 0.0) for epoch in before)

    def _save(self, path: Path, fingerprint: str) -> None:
        """Writes through to the disk; after a crash there is the old file or the whole new one."""
        state = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "best_epoch": self._best_epoch,
            "history": [asdict(epoch) for epoch in self._history],
        }
        with disk_errors(f"write the checkpoint {path}"), atomic_write(path) as file:
            torch.save(state, file)

    def _resume(self, path: Path, fingerprint: str) -> None:
        """Takes over the state of an interrupted run, or notes why it cannot."""
        with disk_errors(f"read the checkpoint {path}"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return
        history, why_not = [], None
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                why_not = f"{path} was written by another version of Lookalike"
            elif state["fingerprint"] != fingerprint:
                why_not = f"{path} is of another training, with other pictures or options"
            else:
                history = [Epoch(**epoch) for epoch in state["history"]]
        except Exception as exc:  # whatever torch makes of a damaged file
            why_not = f"{path} is damaged ({type(exc).__name__})"
        if why_not is not None:
            self._notes.append(f"The training starts anew: {why_not}.")
            return
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best, self._best_epoch = state["best"], state["best_epoch"]
        self._history, self._resumed = history, len(history)

    def _epoch(self, number: int) -> Epoch:
        options, validator = self._options, self._task.validator
        rate = options.learning_rate * (1 + math.cos(math.pi * (number - 1) / options.epochs)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._network.train()
        total, mined, batches = 0.0, 0, self._batches(number)
        for batch in batches:
            loss, count = self._step(batch, epoch=number)
            total, mined = total + loss, mined + count
        self._head.settle(self._material.trained())
        tensors = self._network.state_dict().values()
        finite = all(bool(tensor.isfinite().all()) for tensor in tensors)
        vectors = self._head.embed(self._material.watched())
        # whether all have length 1, so that they can be ranked
        directed = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))
        loss, validation = total / len(batches) if finite else math.nan, None
        if validator is not None and math.isfinite(loss) and directed:
            validation = validator.measure(vectors)
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
        loss, count = self._loss(vectors, self._labels[positions].to(vectors.device))
        if count:  # otherwise there is nothing to learn from it
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()
        return float(loss.detach()), count

    def _batches(self, number: int) -> list[Tensor]:
        """Positions of an epoch's batches, the same number of pictures of each of their classes."""
        from pytorch_metric_learning.samplers import MPerClassSampler  # noqa: PLC0415 - slow

        labels, each = self._labels, self._options.pictures_per_class
        size = each * min(self._options.classes_per_batch, len(torch.unique(labels)))
        length = -(-len(labels) // size) * size
        before = np.random.get_state()  # of the global generator, from which the samplers draw
        np.random.seed(np.random.SeedSequence([self._options.seed, number]).generate_state(4))
        try:
            sampler = MPerClassSampler(
                labels, m=each, batch_size=size, length_before_new_iter=length
            )
            drawn = torch.tensor([int(position) for position in sampler])
        finally:
            np.random.set_state(before)
        return list(torch.split(drawn, size))


def train_head(
    vectors: VectorSet,
    *,
    options: TrainingOptions | None = None,
    on_progress: OnEpoch | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Trains a head on a labelled set's vectors.

    The same vectors, options and versions give the same head, to the bit, also where the training
    was interrupted and goes on from its checkpoint.

    The vectors have labels and come from a network without a head. The checkpoint is a file that
    is written after each epoch and removed by nobody; a training that finds its own there goes on
    from it.

    Raises:
        ConfigurationError: The set cannot be trained on, or the training has collapsed.
        InvalidParameterError: The set has no labels.
        StorageError: The checkpoint cannot be read or written.
    """
    limit_openmp()
    task = Task(vectors, options)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are made in the same order on every machine of a kind
    try:
        network, material = task.new_head(), _Features(task)
        manner = {"network": "frozen"}
        trainer = Trainer(task, network, head=network, material=material, manner=manner)
        trainer.run(checkpoint=checkpoint, on_epoch=on_progress)
        return trainer.result(vectors.spec)
    finally:
        torch.set_num_threads(before)


class _Features:
    """The `Material` of a head alone: vectors that stay as they are."""

    def __init__(self, task: Task) -> None:
        self._trained = torch.from_numpy(task.rows(task.split.train))
        self._watched = torch.from_numpy(task.rows(task.watched))

    def batch(self, positions: Tensor, *, epoch: int) -> Tensor:  # noqa: ARG002 - as in Material
        return self._trained[positions]

    def trained(self) -> Tensor:
        return self._trained

    def watched(self) -> Tensor:
        return self._watched
