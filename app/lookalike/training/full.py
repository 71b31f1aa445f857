"""Trains the whole network end to end, with its head; for those with a GPU, or much time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.utils.checkpoint
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lookalike.cores import available_cores, limit_openmp
from lookalike.errors import ConfigurationError, WeightsMismatchError
from lookalike.models.base import Encoder, least_decode_size, resize_image
from lookalike.models.registry import RESNETS
from lookalike.models.torch_encoder import choose_device
from lookalike.models.torchvision import load_backbone
from lookalike.models.weights import state_sha256
from lookalike.records import Preprocess
from lookalike.services.vector_set import VectorSet
from lookalike.training.plan import TrainingOptions
from lookalike.training.task import HeadNetwork, Task
from lookalike.training.trainer import OnEpoch, Trainer, TrainingResult
from lookalike.visualization.pages import write_whole

_BATCH = 32  # pictures at a time where nothing is learned


@dataclass(frozen=True, slots=True, kw_only=True)
class FullOptions:
    """What can be chosen beyond `TrainingOptions`."""

    # learning rate of the network below the head, as a share of the head's
    backbone_rate: float = 0.1
    # show a random crop of 60% to 100% of each picture, mirrored half of the time
    augmentation: bool = True
    # compute activations twice rather than keep them: less memory
    gradient_checkpointing: bool = False
    mixed_precision: bool = False  # the network below the head in bfloat16
    device: str = "auto"  # as the setting of this name


class FullNetwork(nn.Module):
    """Pixels to the head's vectors."""

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, backbone: nn.Module, head: HeadNetwork, *, preprocess: Preprocess, full: FullOptions
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone.requires_grad_(True)
        self.head = head
        self._full = full
        mean, std = (
            255 * torch.tensor(v).reshape(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std)
        )
        self.register_buffer("_mean", mean, persistent=False)
        self.register_buffer("_std", std, persistent=False)

    def train(self, mode: bool = True) -> FullNetwork:
        """As of any module, but for the batch normalization inside the network."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, dim) float32 of length 1: what the encoder gives."""
        x = (pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std
        below = self.backbone
        with torch.autocast(
            x.device.type, dtype=torch.bfloat16, enabled=self._full.mixed_precision
        ):
            x = below.maxpool(below.relu(below.bn1(below.conv1(x))))
            for layer in (below.layer1, below.layer2, below.layer3, below.layer4):
                if self._full.gradient_checkpointing and torch.is_grad_enabled():
                    x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
                else:
                    x = layer(x)
        return nn.functional.normalize(x.float().mean((2, 3)))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, dim_out) float32 of length 1."""
        vectors: Tensor = self.head(self.features(pixels))
        return vectors


class Pictures:
    """The `Material` of a whole network: a set's pictures, other views of them in every epoch."""

    def __init__(self, task: Task, network: FullNetwork, *, full: FullOptions) -> None:
        self._network, self._task, self._full = network, task, full
        self._preprocess = task.vectors.spec.preprocess

    def batch(self, positions: Tensor, *, epoch: int) -> Tensor:
        """Pixels of some of what is trained on, changed as the epoch has it."""
        return self.pixels(self._task.split.train[positions.numpy()], epoch=epoch)

    def trained(self) -> Tensor:
        """See `Material`."""
        return self.features(self._task.split.train)

    def watched(self) -> Tensor:
        """See `Material`."""
        return self.features(self._task.watched)

    def pixels(self, positions: NDArray[np.int64], *, epoch: int | None = None) -> Tensor:
        """(n, H, W, 3) uint8 on the network's device; changed where an epoch is given."""
        with ThreadPoolExecutor(available_cores()) as pool:
            images = list(pool.map(lambda one: self._open(one, epoch), positions.tolist()))
        device = next(self._network.parameters()).device
        return torch.from_numpy(np.stack(images)).to(device)

    @torch.no_grad()
    def features(self, positions: NDArray[np.int64]) -> Tensor:
        """The network's vectors of unchanged pictures: (n, dim) on its device."""
        self._network.eval()
        starts = range(0, len(positions), _BATCH)
        blocks = (self.pixels(positions[start : start + _BATCH]) for start in starts)
        return torch.cat([self._network.features(block) for block in blocks])

    def _open(self, position: int, epoch: int | None) -> NDArray[np.uint8]:
        image = self._task.vectors.picture(position, size=least_decode_size(self._preprocess))
        if epoch is not None and self._full.augmentation:
            rng = np.random.default_rng([self._task.options.seed, epoch, position])
            image = augment(image, rng)
        return resize_image(image, self._preprocess)


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part of 60% to 100% of a picture, mirrored half of the time."""
    side = float(np.sqrt(rng.uniform(0.6, 1.0)))
    width, height = max(1, round(side * image.width)), max(1, round(side * image.height))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    part = image.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return part


def extract_again(vectors: VectorSet, encoder: Encoder) -> VectorSet:
    """The same pictures with another encoder's vectors.

    Raises:
        InvalidImageError: A picture cannot be read any more.
        EmbeddingFailedError: The network failed.
    """
    blocks = []
    for start in range(0, len(vectors), _BATCH):
        some = range(start, min(start + _BATCH, len(vectors)))
        images = (vectors.picture(one, size=encoder.decode_size) for one in some)
        blocks.append(encoder.encode([encoder.prepare(image) for image in images]))
    made = np.concatenate(blocks)
    return replace(vectors, spec=encoder.spec, provenance=encoder.provenance, vectors=made)


_BACKBONE_FILE = "backbone.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FullResult:
    """A network and its head."""

    training: TrainingResult  # as of a head alone; its head belongs to `backbone`
    backbone: Mapping[str, Tensor]  # state dict of the network below the head, after the best epoch

    def save_backbone(self, folder: Path) -> Path:
        """Writes the state dict under the name that the head's spec gives; returns its path.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        path = folder / self.training.head.backbone.weights
        write_whole(path, safetensors.torch.save(dict(self.backbone)))
        return path


def train_full(
    vectors: VectorSet,
    *,
    weights: str,
    options: TrainingOptions | None = None,
    full: FullOptions | None = None,
    on_progress: OnEpoch | None = None,
    checkpoint: Path | None = None,
) -> FullResult:
    """Trains network and head on the pictures of a set.

    The head is `Linear, ReLU, BatchNorm` as for `train_head`, so the two can be compared. Batch
    normalization inside the network keeps the means and variances that it came with.

    `vectors` are those that the network gives the pictures before, and `weights`, the setting of
    this name, is what made them. The rest, and other errors, are as for `train_head`.

    Raises:
        WeightsMismatchError: The vectors were made with other weights.
        InvalidImageError: A picture cannot be read any more.
    """
    limit_openmp()
    full = full or FullOptions()
    task = Task(vectors, options)
    network = _build_network(task, weights=weights, full=full)
    trainer = Trainer(
        task,
        network,
        head=network.head,
        material=Pictures(task, network, full=full),
        manner={"network": "trained", **asdict(full)},
        groups=[
            {"params": list(network.head.parameters()), "factor": 1.0},
            {"params": list(network.backbone.parameters()), "factor": full.backbone_rate},
        ],
    )
    trainer.run(checkpoint=checkpoint, on_epoch=on_progress)
    backbone = network.cpu().backbone.state_dict()
    spec = replace(vectors.spec, weights=_BACKBONE_FILE, weights_sha256=state_sha256(backbone))
    return FullResult(training=trainer.result(spec), backbone=backbone)


def _build_network(task: Task, *, weights: str, full: FullOptions) -> FullNetwork:
    """The network that made the set's vectors, with a head that is not trained yet."""
    device, spec = choose_device(full.device), task.vectors.spec
    if spec.model not in RESNETS or spec.pooling != "avg":
        raise ConfigurationError(
            f"The whole network can be trained for {', '.join(RESNETS)} with avg pooling, "
            f"not for {spec.model} with {spec.pooling}. Choose another --model, or leave --full out"
        )
    loaded = load_backbone(spec.model, weights=weights)
    if loaded.sha256 != spec.weights_sha256:
        raise WeightsMismatchError(
            f"The vectors of {task.vectors.name} were made with other weights than {weights}: "
            "give those"
        )
    torch.set_num_threads(available_cores())
    network = FullNetwork(loaded.network, task.new_head(), preprocess=spec.preprocess, full=full)
    return network.to(device)
