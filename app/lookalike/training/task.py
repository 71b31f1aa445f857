"""What is trained: a labelled set dealt into its parts, a head, its loss and its validation."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lookalike.errors import ConfigurationError
from lookalike.evaluation.metrics import average_precision_at_r, encode_labels, judge
from lookalike.extras import require_extra
from lookalike.models.head import Head, HeadSpec
from lookalike.records import ModelSpec
from lookalike.services.ranking import Positions, rank
from lookalike.services.vector_set import VectorSet
from lookalike.training.plan import TrainingOptions, make_split

PICTURES_PER_CLASS: Final = 50
"""Of a validation class at most, chosen at random; so that no epoch waits for its validation."""

QUERIES: Final = 2000
"""At most, chosen at random among these pictures."""

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

    def settle(self, vectors: Tensor) -> None:
        """Sets the means and variances that `embed` uses to those over all of (N, dim_in).

        A moving average lags behind the weights, and with few batches in an epoch it never
        arrives (Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3).
        """
        update_bn(torch.chunk(vectors, -(-len(vectors) // _ROWS)), self)

    @torch.inference_mode()
    def embed(self, vectors: Tensor) -> NDArray[np.float32]:
        """As `forward`, with the means and variances of `settle`: (N, dim_out) float32."""
        self.eval()
        return torch.cat([self(block) for block in torch.split(vectors, _ROWS)]).cpu().numpy()

    def to_head(self, *, backbone: ModelSpec, trained: Mapping[str, Any]) -> Head:
        """This network, on the CPU, as a head."""
        state = self.state_dict()
        tensors = {name: state[f"layers.{name}"].numpy() for name in self.spec.shapes()}
        return Head(self.spec, tensors, backbone=backbone, trained=trained)


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


class Task:
    """A set that can be trained on, dealt into its parts.

    Attributes:
        watched: Positions of what is looked at after each epoch: the validation, or without one
            the first of what is trained on, for its spread alone.
        validator: Measures the vectors of `watched`; None without validation.

    Raises:
        ConfigurationError: The set cannot be trained on.
        InvalidParameterError: It has no labels.
    """

    def __init__(self, vectors: VectorSet, options: TrainingOptions | None) -> None:
        require_extra("train", "training")
        self.started = time.perf_counter()
        self.vectors, self.options = vectors, options or TrainingOptions()
        self.classes = encode_labels(vectors.labels)
        _check_vectors(vectors)
        self.split = make_split(self.classes, self.options)
        self.watched, self.validator = self.split.train[:_SPREAD_PICTURES], None
        if len(self.split.validation):
            labels = self.classes.codes[self.split.validation]
            self.validator = Validator(labels, seed=self.options.seed)
            self.watched = self.split.validation[self.validator.chosen]

    def rows(self, positions: Positions) -> NDArray[np.float32]:
        """A copy of the vectors at these positions, (n, dim)."""
        return np.array(self.vectors.vectors[positions], dtype=np.float32)

    def new_head(self) -> HeadNetwork:
        """A head for these vectors that is not trained yet."""
        options = self.options
        spec = HeadSpec(dim_in=self.vectors.spec.dim, dim_out=options.dim, hidden=options.hidden)
        return HeadNetwork(spec, seed=options.seed)

    def fingerprint(self, manner: Mapping[str, Any]) -> str:
        """A digest of all that the result depends on; `manner` is as of `Trainer`."""
        options, spec = asdict(self.options), self.vectors.spec.digest
        facts = [options, manner, spec, self.classes.names, library_versions()]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self.classes.codes.tobytes())
        for start in range(0, len(self.vectors), _ROWS):
            rows = self.vectors.vectors[start : start + _ROWS]
            digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()


def _check_vectors(vectors: VectorSet) -> None:
    """Raises `ConfigurationError` where there are vectors that cannot be trained on."""
    if vectors.spec.head is not None:
        raise ConfigurationError(
            f"The vectors of {vectors.name} come from a head already, and a head is trained on "
            "those of a network without one. For a dataset, leave --head (LOOKALIKE_HEAD) out; a "
            "collection goes back by lookalike reembed --head none, and can be trained on then"
        )
    for start in range(0, len(vectors), _ROWS):
        lengths = np.linalg.norm(vectors.vectors[start : start + _ROWS], axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) < _LENGTH_TOLERANCE))
        if len(bad):
            position = start + int(bad[0])
            raise ConfigurationError(
                f"The vector of {vectors.ids[position]} has NaN, infinities, or a length other "
                "than 1: it is damaged. Delete the cache folder of these vectors, or index the "
                "picture again"
            )


def library_versions() -> dict[str, str]:
    """Of the libraries that a result depends on."""
    return {
        "numpy": np.__version__,
        "torch": torch.__version__,
        "pytorch-metric-learning": version("pytorch-metric-learning"),
    }


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
