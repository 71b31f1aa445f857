"""A job over an archive: against batched extraction alone, and with an encoder that is free.

`python -m benchmarks.bulk [--quick]` from the repository's root.
"""

from __future__ import annotations

import argparse
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.common import WEB, announce, environment, paired, pictures, prepared, rate, report
from lookalike.bootstrap import build_encoder, build_services
from lookalike.config import load_settings
from lookalike.cores import available_cores
from lookalike.models.base import Encoder, Features, Vectors, least_decode_size, normalize
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.records import Preprocess
from lookalike.services.feeds import ImportOptions

COUNT = 320
FREE_COUNT = 640
BATCH = 32
PREPROCESS = Preprocess()
DIM = 2048
GOAL = 200.0  # pictures a second


class FreeEncoder(ColorEncoder):
    """Prepares pictures as ResNet-50 does; its vectors are 2,048 of their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, model="free", preprocess=PREPROCESS, dim=DIM)
        self.decode_size = least_decode_size(PREPROCESS)

    def encode(self, batch: Sequence[Features]) -> Vectors:
        """(N, 2048) float32, rows of length 1."""
        pixels = self._stack(batch).reshape(len(batch), -1)
        step = PREPROCESS.input_size**2 * 3 // DIM
        return normalize(pixels[:, ::step][:, :DIM].astype(np.float32) + np.float32(1))


def main() -> None:
    """Prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pictures")
    quick = parser.parse_args().quick
    announce("A job over an archive")
    photos = pictures(BATCH * 2 if quick else FREE_COUNT, WEB)
    with environment(weights="random", runtime="torch") as folder:
        network(folder, photos[:COUNT], rounds=1 if quick else 3)
    with environment() as folder:
        free(folder, photos, rounds=1 if quick else 3)


def network(folder: Path, photos: list[bytes], *, rounds: int) -> None:
    """ResNet-50 with random weights, against its batched extraction alone."""
    total = len(photos)
    packed, files = archive(folder, photos)
    encoder = build_encoder(load_settings())
    batch = prepared(encoder, files[:BATCH])
    runs = count()
    ours, alone, ratio = paired(
        lambda: import_rate(folder / f"data-{next(runs)}", packed, encoder, total),
        lambda: rate(total, lambda: [encoder.encode(batch) for _ in range(total // BATCH)]),
        rounds=rounds,
    )
    report("index an archive of web-size photos (ResNet-50) against batched extraction alone",
           f"{ours:.1f}/s", f"{alone:.1f}/s", ratio, "at least 0.9")  # fmt: skip


def free(folder: Path, photos: list[bytes], *, rounds: int) -> None:
    """Everything but the network: decode, thumbnail, hash, files, commit."""
    packed, _ = archive(folder, photos)
    speeds = [
        import_rate(folder / f"data-{number}", packed, FreeEncoder(), len(photos))
        for number in range(rounds)
    ]
    best, middle = max(speeds), float(np.median(speeds))
    report(f"index an archive with a free encoder, {available_cores()} cores (best {best:.0f}/s)",
           f"{middle:.0f}/s", f"{GOAL:.0f}/s", middle / GOAL, "at least 1")  # fmt: skip


def archive(folder: Path, photos: list[bytes]) -> tuple[Path, list[Path]]:
    """The photographs as a zip file, and one by one."""
    files = [folder / f"{number:04}.jpg" for number in range(len(photos))]
    packed = folder / "photos.zip"
    with zipfile.ZipFile(packed, "w") as made:
        for file, data in zip(files, photos, strict=True):
            file.write_bytes(data)
            made.write(file, file.name)
    return packed, files


def import_rate(data: Path, packed: Path, encoder: Encoder, total: int) -> float:
    """Pictures per second from the job's first moment to its last."""
    services = build_services(load_settings(data_dir=data), encoders=Encoders(encoder))
    try:
        services.jobs.resume()
        spool = services.imports.spool(packed.stat().st_size)
        shutil.copyfile(packed, spool)
        started = time.perf_counter()
        job = services.imports.begin_archive(spool, packed.name, ImportOptions(), services.jobs)
        while not (now := services.jobs.get(job.job.id)).job.state.finished:
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        assert now.job.message == f"{packed.name}: {total} created", now.job
    finally:
        services.close()
    return total / seconds


if __name__ == "__main__":
    main()
