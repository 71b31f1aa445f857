"""Training a head with the frozen network run again in every epoch, against once.

`python -m benchmarks.training [PICTURES]` from the repository's root; ResNet-50 at 224 with random
weights. The first way is what tutorials do, written out plainly.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.common import WEB, announce, environment, report
from lookalike.bootstrap import build_decoder, build_encoders
from lookalike.config import load_settings
from lookalike.cores import available_cores
from lookalike.evaluation.datasets import open_dataset
from lookalike.evaluation.extraction import extract_vectors
from lookalike.services.vector_set import VectorSet
from scripts.samples import CLASSES, write_samples

EPOCHS = 20
BATCH = 32
VIEWS = 2


def main() -> None:
    """Prints the ratio for one epoch, and for 20 with the extraction."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 96
    announce(f"Training a head on {count} pictures, ResNet-50 at 224 with random weights")
    with environment(weights="random") as folder:
        instances = max(1, count // (len(CLASSES) * VIEWS))
        files = write_samples(folder / "pictures", instances=instances, views=VIEWS, size=WEB)
        theirs = Reference(files)
        theirs.epoch(files[:BATCH])  # what the first call alone does
        their_epoch = theirs.epoch(files)
        vectors, extraction = extracted(folder / "pictures")
        our_epochs = epochs(vectors)
    ours = statistics.median(our_epochs)
    report(f"an epoch of {len(files)} pictures, the network run again against features kept",
           f"{ours * 1000:.1f} ms", f"{their_epoch:.2f} s", their_epoch / ours,
           "at least 100")  # fmt: skip
    total, their_total = extraction + sum(our_epochs), EPOCHS * their_epoch
    report(f"{EPOCHS} epochs (the first way: {EPOCHS} times one) against extraction and epochs",
           f"{total:.2f} s ({extraction:.2f} s of it extraction)", f"{their_total:.1f} s",
           their_total / total, "at least 10")  # fmt: skip


class Reference:
    """Frozen backbone and trained layers in one network; every epoch starts at the pictures."""

    def __init__(self, files: list[Path]) -> None:
        import torch  # noqa: PLC0415 - after announce, see lookalike.cores
        import torchvision  # noqa: PLC0415
        from pytorch_metric_learning import distances, losses, miners  # noqa: PLC0415
        from torch import nn  # noqa: PLC0415

        torch.set_num_threads(available_cores())
        names = sorted({file.parent.name for file in files})
        self._labels = {file: names.index(file.parent.name) for file in files}
        self._backbone: Any = torchvision.models.resnet50(weights=None).eval()
        self._backbone.fc = nn.Identity()
        self._backbone.requires_grad_(False)
        self._head = nn.Sequential(nn.Linear(2048, 512), nn.ReLU(), nn.BatchNorm1d(512))
        self._optimizer = torch.optim.AdamW(self._head.parameters(), lr=1e-4)
        cosine = distances.CosineSimilarity()
        self._miner = miners.TripletMarginMiner(0.2, type_of_triplets="semihard", distance=cosine)
        self._loss = losses.TripletMarginLoss(0.2, distance=cosine)
        self._prepare = torchvision.transforms.Compose(
            [
                torchvision.transforms.Resize((224, 224)),
                torchvision.transforms.ToTensor(),
                torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def epoch(self, files: list[Path]) -> float:
        """Seconds for one epoch."""
        import torch  # noqa: PLC0415 - as above
        from PIL import Image  # noqa: PLC0415
        from torch.nn.functional import normalize  # noqa: PLC0415

        started = time.perf_counter()
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            pixels = torch.stack([self._prepare(Image.open(f).convert("RGB")) for f in batch])
            labels = torch.tensor([self._labels[file] for file in batch])
            with torch.inference_mode():
                features = normalize(self._backbone(pixels))
            vectors = normalize(self._head(features.clone()))
            loss = self._loss(vectors, labels, self._miner(vectors, labels))
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()
        return time.perf_counter() - started


def extracted(folder: Path) -> tuple[VectorSet, float]:
    """The vectors of all pictures, and how many seconds they took once the network is loaded."""
    settings = load_settings()
    dataset = open_dataset(str(folder), kind="folder", cache_dir=settings.cache_dir)
    with closing(build_encoders(settings)) as encoders:
        started = time.perf_counter()
        vectors = extract_vectors(
            dataset,
            encoders.default,
            build_decoder(settings),
            cache=None,
            cores=available_cores(),
        )
        return vectors, time.perf_counter() - started


def epochs(vectors: VectorSet) -> list[float]:
    """Seconds of each epoch, of as many pictures as the first way has."""
    from lookalike.training.plan import TrainingOptions  # noqa: PLC0415
    from lookalike.training.trainer import train_head  # noqa: PLC0415 - imports torch

    options = TrainingOptions(
        epochs=EPOCHS, patience=EPOCHS, hold_out_classes=0, hold_out_pictures=0, validation=0
    )
    train_head(vectors, options=options)  # what the first call alone does
    ends: list[float] = []
    started = time.perf_counter()
    train_head(vectors, options=options, on_progress=lambda *_: ends.append(time.perf_counter()))
    return [end - begin for begin, end in zip([started, *ends], ends, strict=False)]


if __name__ == "__main__":
    main()
