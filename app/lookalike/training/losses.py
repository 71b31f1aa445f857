"""Losses and miners, from pytorch-metric-learning."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lookalike.training.options import TrainingOptions

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
