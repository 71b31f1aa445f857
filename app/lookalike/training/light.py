"""Trains a head on vectors that are there already: the network below it is never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookalike.cores import limit_openmp
from lookalike.models.head import HeadSpec
from lookalike.services.vector_set import VectorSet
from lookalike.training.network import HeadNetwork
from lookalike.training.options import TrainingOptions
from lookalike.training.progress import OnEpoch
from lookalike.training.task import TrainingResult, make_task, run_task
from lookalike.training.trainer import Trainer, one_thread


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
