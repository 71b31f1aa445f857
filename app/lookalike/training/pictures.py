"""Pictures for a network that is trained: as the encoder sees them, or changed at random."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lookalike.cores import available_cores
from lookalike.models.base import Encoder
from lookalike.models.resizing import least_decode_size, resize_image
from lookalike.services.vector_set import VectorSet
from lookalike.training.full_network import FullNetwork, FullOptions

_BATCH = 32  # pictures at a time where nothing is learned


class Pictures:
    """Opens a set's pictures for a network.

    Args:
        network: What they are for.
        vectors: The set.
        full: Says whether pictures are changed.
        seed: Of the changes; each epoch has its own, and each picture in it.
    """

    def __init__(
        self, network: FullNetwork, vectors: VectorSet, *, full: FullOptions, seed: int
    ) -> None:
        self.network = network
        self._vectors, self._full, self._seed = vectors, full, seed
        self._preprocess = vectors.spec.preprocess

    def pixels(self, positions: NDArray[np.int64], *, epoch: int | None = None) -> Tensor:
        """(n, H, W, 3) uint8 on the network's device; changed where an epoch is given."""
        with ThreadPoolExecutor(available_cores()) as pool:
            images = list(pool.map(lambda one: self._open(one, epoch=epoch), positions.tolist()))
        device = next(self.network.parameters()).device
        return torch.from_numpy(np.stack(images)).to(device)

    @torch.no_grad()
    def features(self, positions: NDArray[np.int64]) -> Tensor:
        """The network's vectors of unchanged pictures: (n, dim) on its device."""
        self.network.eval()
        starts = range(0, len(positions), _BATCH)
        blocks = (self.pixels(positions[start : start + _BATCH]) for start in starts)
        return torch.cat([self.network.features(block) for block in blocks])

    def _open(self, position: int, *, epoch: int | None) -> NDArray[np.uint8]:
        image = self._vectors.picture(position, size=least_decode_size(self._preprocess))
        if epoch is not None and self._full.augmentation:
            image = augment(image, np.random.default_rng([self._seed, epoch, position]))
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

    def blocks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(vectors), _BATCH):
            some = range(start, min(start + _BATCH, len(vectors)))
            images = (vectors.picture(one, size=encoder.decode_size) for one in some)
            yield encoder.encode([encoder.prepare(image) for image in images])

    return replace(
        vectors,
        spec=encoder.spec,
        provenance=encoder.provenance,
        vectors=np.concatenate(list(blocks())),
    )
