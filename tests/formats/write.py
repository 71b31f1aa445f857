"""Writes a data folder of each kind as the present version writes it, for later ones to open.

    .venv/bin/python -m tests.formats.write tests/formats/v1

Each is a zip file, beside a JSON file with what it answers. Never write into the folder of a
version that was released: make the next one. The earlier ones keep opening.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike import Client
from lookalike.bootstrap import (
    build_decoder,
    build_services,
    model_request,
    move_request,
    run_options,
)
from lookalike.config import load_settings
from lookalike.models.color import ColorEncoder
from lookalike.models.head import Head, HeadSpec, save_head
from lookalike.progress import NO_PROGRESS, Progress, TaskEndedError
from lookalike.services.jobs import REEMBED_KIND
from lookalike.services.quantizing import keep_quantized, quantize_model
from lookalike.store.local.catalog import Purger
from lookalike.store.local.index import policy
from lookalike.store.local.index.policy import DEFAULT_LIMITS
from tests.formats import toy
from tests.waiting import wait_for

PICTURES = 40
HNSW = "HNSW8,SQ8"
TOY: Mapping[str, Any] = {
    "model": "toy/net",
    "weights": "seed 7",
    "runtime": "openvino",
    "precision": "int8",
}


def draw(folder: Path, count: int = PICTURES) -> Path:
    """Draws pictures of random tiles: `000.png` and so on, in two folders by their kind."""
    for number in range(count):
        colors = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = folder / ("even" if number % 2 == 0 else "odd") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors).resize((24, 24), Image.Resampling.NEAREST).save(path)
    return folder


def write_head(path: Path) -> Path:
    """Writes a head from the color encoder's vectors to 8 numbers."""
    backbone, rng = ColorEncoder().spec, np.random.default_rng(3)
    spec = HeadSpec(dim_in=backbone.dim, dim_out=8)
    tensors = {name: np.abs(rng.normal(size=shape)) for name, shape in spec.shapes().items()}
    return save_head(Head(spec, tensors, backbone=backbone), path)


@contextmanager
def indexed(data: Path, **settings: Any) -> Iterator[Client]:
    """A new data folder with the drawn pictures."""
    with tempfile.TemporaryDirectory() as folder, Client(data, **settings) as client:
        outcomes = client.index(draw(Path(folder)), folder_field="kind")
        assert len(outcomes) == PICTURES
        assert not any(outcome.error for outcome in outcomes)
        yield client


@contextmanager
def small_limits() -> Iterator[None]:
    """Has a store that is opened meanwhile build approximate indexes of few rows."""
    limits = replace(DEFAULT_LIMITS, min_rows=PICTURES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "IndexPolicy", partial(policy.IndexPolicy, limits=limits))
        yield


def index_type(client: Client) -> str:
    """The type of the index that searches of the default collection use."""
    found: str = client.info()["store"]["collections"]["default"]["type"]
    return found


def write_exact(data: Path) -> None:
    with indexed(data, model="color"):
        pass


def write_approximate(data: Path) -> None:
    with small_limits(), indexed(data, model="color", index=HNSW) as client:
        wait_for(lambda: index_type(client) == HNSW)


def write_with_head(data: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        head = write_head(Path(folder) / "head.safetensors")
        with indexed(data, model="color") as client:
            client.reembed(model={"head": str(head)})
            spaces = client.vectors()
            client.discard_vectors(next(each.passport.digest for each in spaces if not each.active))


def write_int8(data: Path) -> None:
    import torch  # noqa: F401 - then the network is converted here, not by a process

    settings = load_settings(data_dir=data, **TOY)
    with tempfile.TemporaryDirectory() as folder:
        made = quantize_model(
            model_request(settings),
            run_options(settings),
            sorted(draw(Path(folder), 80).rglob("*.png")),
            decoder=build_decoder(settings),
            pictures=40,
            progress=NO_PROGRESS,
        )
        keep_quantized(run_options(settings).networks, made)
    with indexed(data, **TOY):
        pass


def write_reembedded(data: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        head = write_head(Path(folder) / "head.safetensors")
        with indexed(data, model="color") as client:
            client.reembed(model={"head": str(head)})


def write_dropped(data: Path) -> None:
    """The rows of the collection that was dropped are still there, as after a crash."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for name in ("wake", "finish"):
            patch.setattr(Purger, name, lambda _: None)
        with indexed(data, model="color") as client:
            client.index(draw(Path(folder), 10), collection="gone")
            client.drop("gone")


class _Ends(Progress):
    """Ends the work at its fourth step."""

    steps = 0

    def check(self) -> None:
        self.steps += 1
        if self.steps == 4:
            raise TaskEndedError


def write_unfinished_job(data: Path) -> None:
    """A re-embedding that waits, with the vectors of some pictures made before."""
    with tempfile.TemporaryDirectory() as folder:
        head = write_head(Path(folder) / "head.safetensors")
        with indexed(data, model="color", max_batch=8):
            pass
        settings = load_settings(data_dir=data, model="color", max_batch=8)
        services = build_services(settings)
        try:
            request = move_request(settings, {"head": str(head)})
            target = services.reembedding
            with pytest.raises(TaskEndedError):
                target.run("default", request, _Ends())
            (kept,) = (data / "heads").glob("*.safetensors")
            request = replace(request, head=f"heads/{kept.name}")
            services.jobs.start(REEMBED_KIND, target.parameters("default", request))
        finally:
            services.close()


KINDS: Mapping[str, Callable[[Path], None]] = {
    "exact": write_exact,
    "approximate": write_approximate,
    "head": write_with_head,
    "int8": write_int8,
    "reembedded": write_reembedded,
    "dropped": write_dropped,
    "unfinished_job": write_unfinished_job,
}


def open_folder(data: Path, kind: str, **more: Any) -> Client:
    """Opens a folder of a kind with the settings that it was written with."""
    settings = TOY if kind == "int8" else {"model": "color"}
    with small_limits():
        return Client(data, **settings, index=HNSW if kind == "approximate" else "Flat", **more)


def answers(client: Client) -> dict[str, Any]:
    """What a folder answers about its stored pictures, which go by the names of their files."""
    ids = {image.filename: image.id for image in client.list()}
    names = {image_id: name for name, image_id in ids.items()}
    found = [client.similar(ids[f"{number:03}.png"], k=5) for number in (0, 1, 2)]
    found.append(client.similar(ids["000.png"], k=5, filter={"kind": "odd"}))
    return {
        "collections": {each.name: each.count for each in client.collections()},
        "spaces": {each.passport.digest: [each.active, each.count] for each in client.vectors()},
        "matches": [[[names[match.id], match.score] for match in one.matches] for one in found],
    }


def main(folder: Path) -> None:
    """Writes every kind, a zip file and its answers, into a folder."""
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as work:
        toy.register(patch)
        for kind, write in KINDS.items():
            data = Path(work) / kind
            write(data)
            with open_folder(data, kind, read_only=True) as client:
                text = json.dumps(answers(client), indent=1)
            (folder / f"{kind}.json").write_text(text + "\n")
            for name in ("lock", "lock.owner", "catalog.db-wal", "catalog.db-shm"):
                (data / name).unlink(missing_ok=True)
            zipped = Path(shutil.make_archive(str(folder / kind), "zip", data))
            print(f"{zipped}: {zipped.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
