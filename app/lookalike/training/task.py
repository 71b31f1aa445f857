"""Trains a head on a set's vectors; also the checks, parts and run that every training shares."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.cores import limit_openmp
from lookalike.errors import ConfigurationError
from lookalike.evaluation.metrics import Classes, encode_labels
from lookalike.extras import require_extra
from lookalike.models.head import Head, HeadSpec
from lookalike.records import ModelSpec
from lookalike.services.vector_set import VectorSet
from lookalike.training.plan import Split, TrainingOptions, make_split
from lookalike.training.trainer import Epoch, OnEpoch, State, Trainer, Validator, one_thread

_LENGTH_TOLERANCE = 1e-3
_SPREAD_PICTURES = 2000
_ROWS = 4096  # at a time


class HeadNetwork(nn.Module):
    """Linear, ReLU and batch normalization for each layer, then a scaling to length 1.

    A linear layer starts as the identity where its width stays the same, and otherwise as a random
    orthogonal map: near the features as they are, which are good already.
    """

    def __init__(self, spec: HeadSpec, *, seed: int) -> None:
        super().__init__()
        self.spec = spec
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            layers: list[nn.Module] = []
            for before, after in zip(spec.widths, spec.widths[1:], strict=False):
                linear = nn.Linear(before, after)
                (nn.init.eye_ if before == after else nn.init.orthogonal_)(linear.weight)
                nn.init.zeros_(linear.bias)
                layers += [linear, nn.ReLU(), nn.BatchNorm1d(after, momentum=None)]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, dim_in) float32 to (N, dim_out) float32 of length 1."""
        return nn.functional.normalize(self.layers(vectors))

    @torch.no_grad()
    def settle(self, vectors: Tensor) -> None:
        """Sets the means and variances that `embed` uses to those over all of (N, dim_in).

        A moving average lags behind the weights, and with few batches in an epoch it never
        arrives (Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3).
        """
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
        self.train()
        for block in torch.chunk(vectors, -(-len(vectors) // _ROWS)):
            self(block)

    @torch.inference_mode()
    def embed(self, vectors: Tensor) -> NDArray[np.float32]:
        """As `forward`, with the means and variances of `settle`: (N, dim_out) float32."""
        self.eval()
        return torch.cat([self(block) for block in torch.split(vectors, _ROWS)]).cpu().numpy()

    def to_head(
        self, state: Mapping[str, Tensor], *, backbone: ModelSpec, trained: Mapping[str, Any]
    ) -> Head:
        """A state of this network as a head."""
        tensors = {name: state[f"layers.{name}"].numpy() for name in self.spec.shapes()}
        return Head(self.spec, tensors, backbone=backbone, trained=trained)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A set that can be trained on, dealt into its parts."""

    vectors: VectorSet  # the whole set
    classes: Classes  # its labels
    options: TrainingOptions  # how to train
    split: Split  # its parts
    # positions of what is looked at after each epoch: the validation, or without one the first of
    # what is trained on, for its spread alone
    watched: NDArray[np.int64]
    validator: Validator | None  # measures the vectors of `watched`; None without validation
    started: float  # when the training began, of `time.perf_counter`

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of what is trained on."""
        return self.classes.codes[self.split.train]

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """A copy of the vectors at these positions, (n, dim)."""
        return np.array(self.vectors.vectors[positions], dtype=np.float32)


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


def make_task(vectors: VectorSet, options: TrainingOptions | None) -> Task:
    """Checks a set, and deals it into its parts.

    Raises:
        ConfigurationError: The set cannot be trained on.
        InvalidParameterError: It has no labels.
    """
    require_extra("train", "training")
    started = time.perf_counter()
    options = options or TrainingOptions()
    classes = encode_labels(vectors.labels)
    _check_vectors(vectors)
    split = make_split(classes, options)
    watched, validator = split.train[:_SPREAD_PICTURES], None
    if len(split.validation):
        validator = Validator(classes.codes[split.validation], seed=options.seed)
        watched = split.validation[validator.chosen]
    return Task(
        vectors=vectors,
        classes=classes,
        options=options,
        split=split,
        watched=watched,
        validator=validator,
        started=started,
    )


def run_task(
    task: Task,
    trainer: Trainer,
    *,
    to_head: Callable[[State, Mapping[str, Any]], Head],
    manner: Mapping[str, Any],
    checkpoint: Path | None,
    on_progress: OnEpoch | None,
) -> TrainingResult:
    """Trains, and takes the best epoch.

    `to_head` makes a head of the best state and of what it was trained with; `manner` is what else
    the result depends on, as JSON.

    Raises:
        ConfigurationError: The training has collapsed.
        StorageError: The checkpoint cannot be read or written.
    """
    resumed, notes = trainer.run(
        checkpoint=checkpoint,
        fingerprint=_fingerprint(task, manner),
        on_epoch=on_progress or (lambda _epoch, _epochs: None),
    )
    before = None
    if task.validator is not None:
        before = task.validator.measure(task.rows(task.watched))
    return TrainingResult(
        head=to_head(trainer.best, _describe(task, manner, trainer)),
        options=task.options,
        split=task.split,
        history=tuple(trainer.history),
        best_epoch=trainer.best_epoch,
        stopped="early" if trainer.stopped_early else "done",
        validation_before=before,
        resumed_after=resumed,
        notes=(*task.split.notes, *notes, *_warn(before, trainer)),
        seconds=time.perf_counter() - task.started,
    )


def _warn(before: float | None, trainer: Trainer) -> list[str]:
    """Says so where the validation is no better with the head."""
    after = trainer.history[trainer.best_epoch - 1].validation
    if before is None or after is None or after > before:
        return []
    return [
        f"The head does not help the validation pictures: MAP@R {after:.4f} with it, "
        f"{before:.4f} without."
    ]


def _check_vectors(vectors: VectorSet) -> None:
    """Raises `ConfigurationError` where there are vectors that cannot be trained on."""
    if vectors.spec.head is not None:
        raise ConfigurationError(
            f"The vectors of {vectors.name} come from a head already, and a head is trained on "
            "those of a network without one. For a dataset, leave --head (LOOKALIKE_HEAD) out; a "
            "collection goes back by lookalike reembed --head none, and can be trained on then"
        )
    for start in range(0, len(vectors), 4096):
        lengths = np.linalg.norm(vectors.vectors[start : start + 4096], axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) < _LENGTH_TOLERANCE))
        if len(bad):
            position = start + int(bad[0])
            raise ConfigurationError(
                f"The vector of {vectors.ids[position]} has NaN, infinities, or a length other "
                "than 1: it is damaged. Delete the cache folder of these vectors, or index the "
                "picture again"
            )


def _fingerprint(task: Task, manner: Mapping[str, Any]) -> str:
    """Of all that the result depends on."""
    vectors, classes = task.vectors, task.classes
    digest = hashlib.sha256()
    spec = vectors.spec.digest
    facts = [asdict(task.options), manner, spec, classes.names, _versions()]
    digest.update(json.dumps(facts).encode())
    digest.update(classes.codes.tobytes())
    for start in range(0, len(vectors), 4096):
        digest.update(np.ascontiguousarray(vectors.vectors[start : start + 4096]).data)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {
        "numpy": np.__version__,
        "torch": torch.__version__,
        "pytorch-metric-learning": version("pytorch-metric-learning"),
    }


def _describe(task: Task, manner: Mapping[str, Any], trainer: Trainer) -> Mapping[str, Any]:
    """What goes into the head's JSON."""
    best = trainer.history[trainer.best_epoch - 1]
    return {
        "dataset": task.vectors.name,
        "pictures": len(task.split.train),
        "classes": task.split.train_classes,
        "options": {**asdict(task.options), "hidden": list(task.options.hidden)},
        **manner,
        "epoch": best.number,
        "epochs": len(trainer.history),
        "validation_map_at_r": best.validation,
        "versions": _versions(),
    }


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

    Args:
        vectors: With labels; from a network without a head.
        options: The defaults unless given.
        on_progress: Told of each epoch.
        checkpoint: File that is written after each epoch and removed by nobody; a training that
            finds its own there goes on from it.

    Raises:
        ConfigurationError: The set cannot be trained on, or the training has collapsed.
        InvalidParameterError: The set has no labels.
        StorageError: The checkpoint cannot be read or written.
    """
    limit_openmp()
    task = make_task(vectors, options)
    spec = HeadSpec(dim_in=vectors.spec.dim, dim_out=task.options.dim, hidden=task.options.hidden)
    with one_thread():
        network = HeadNetwork(spec, seed=task.options.seed)
        material = _Features(
            network,
            features=task.rows(task.split.train),
            labels=task.labels,
            watched=task.rows(task.watched),
        )
        return run_task(
            task,
            Trainer(network, material=material, validator=task.validator, options=task.options),
            to_head=lambda state, trained: network.to_head(
                state, backbone=vectors.spec, trained=trained
            ),
            manner={"network": "frozen"},
            checkpoint=checkpoint,
            on_progress=on_progress,
        )


class _Features:
    """The `Material` of a head alone: vectors that stay as they are."""

    def __init__(
        self,
        network: HeadNetwork,
        *,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        watched: NDArray[np.float32],
    ) -> None:
        self._network = network
        self._features, self._watched = torch.from_numpy(features), torch.from_numpy(watched)
        self.labels = torch.from_numpy(labels)

    def batch(self, positions: Tensor, *, epoch: int) -> Tensor:  # noqa: ARG002 - as in Material
        return self._features[positions]

    def settle(self) -> None:
        self._network.settle(self._features)

    def watched(self) -> NDArray[np.float32]:
        return self._network.embed(self._watched)
