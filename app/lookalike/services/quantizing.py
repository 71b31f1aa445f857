"""Makes a model's int8 network, and measures what it costs before it is kept."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.cores import available_cores
from lookalike.errors import ConfigurationError, InvalidImageError, StorageError
from lookalike.media.decoder import ImageDecoder
from lookalike.media.sources import PictureSource
from lookalike.models.base import Encoder, Features, Vectors
from lookalike.models.openvino.networks import float_network, keep_network, origin_of
from lookalike.models.openvino.runtime import (
    Agreement,
    OpenVinoEncoder,
    agreement,
    installed_version,
    quantize,
    read_network,
)
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.progress import Progress
from lookalike.records import ModelSpec
from lookalike.services.pipeline import Pipeline, reading

CHECKED: Final = 500  # most pictures that the two networks are compared on
LEAST_CHECKED: Final = 30  # fewer say nothing about the ten nearest
_BATCH = 16
_NAMED = 3  # files that could not be read, in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """An int8 network that is not kept yet."""

    network: Any  # OpenVINO's model
    spec: ModelSpec
    origin: Mapping[str, Any]  # what it was made from
    calibrated: int  # pictures that gave the ranges
    agreement: Agreement  # with float32, on other pictures
    skipped: list[str]  # files that could not be read, with the reason


def quantize_model(
    request: ModelRequest,
    run: RunOptions,
    files: Sequence[Path],
    *,
    decoder: ImageDecoder,
    pictures: int,
    progress: Progress,
    seed: int = 0,
) -> Quantized:
    """Quantizes the network of a request (not its head) and compares it with float32.

    `files` are pictures of the kind that will be searched, and the seed chooses among them;
    `pictures` of them calibrate, at most half of those that can be read. Raises
    `ConfigurationError` if these are too few, or a setting cannot work.
    """
    origin = origin_of(replace(request, int8=False))
    source, spec = float_network(request, run.cache)
    if origin_of(replace(request, int8=False)) != origin:
        raise ConfigurationError("The weights file was changed meanwhile; run the command again")
    threads = run.threads or available_cores()
    before = OpenVinoEncoder(source, spec=spec, precision="float32", threads=threads)
    shuffled = random.Random(seed).sample(files, len(files))  # noqa: S311 - a choice of pictures
    batch, skipped = _read(shuffled, before, decoder, pictures + CHECKED, progress.stage("reading"))
    if len(batch) < 2 * LEAST_CHECKED:
        raise ConfigurationError(
            f"Only {len(batch)} pictures can be read there, and {2 * LEAST_CHECKED} are needed, "
            "one half to calibrate on and one to measure: name a folder with more"
            + "".join(f"; {text}" for text in skipped[:_NAMED])
        )
    count = min(pictures, len(batch) // 2)
    network = quantize(
        read_network(source) if isinstance(source, Path) else source,
        batch[:count],
        progress=progress.stage("calibrating"),
    )
    quantized = _quantized_spec(spec, batch[:count])
    after = OpenVinoEncoder(network, spec=quantized, threads=threads)
    others = batch[count : count + CHECKED]
    return Quantized(
        network=network,
        spec=quantized,
        origin=origin_of(replace(request, int8=True)),
        calibrated=count,
        agreement=agreement(
            _vectors(before, others, progress.stage("measuring float32")),
            _vectors(after, others, progress.stage("measuring int8")),
        ),
        skipped=skipped,
    )


def _quantized_spec(spec: ModelSpec, calibration: NDArray[np.uint8]) -> ModelSpec:
    """Of an int8 network: other pictures to calibrate on, or other versions, make another one."""
    made_by = f"openvino {installed_version()} nncf {version('nncf')}"
    made_of = hashlib.sha256(f"{spec.weights_sha256} {made_by} ".encode())
    made_of.update(np.ascontiguousarray(calibration).tobytes())
    return replace(spec, int8=True, weights_sha256=made_of.hexdigest())


def keep_quantized(folder: Path, made: Quantized) -> Path:
    """Keeps an int8 network among the converted ones; returns its folder. Raises `StorageError`."""
    notes = {"calibrated": made.calibrated, **asdict(made.agreement)}
    if not keep_network(folder, made.origin, made.spec, made.network, notes=notes):
        raise StorageError("The int8 network cannot be written; make room in the data folder")
    return folder / made.spec.digest


def _read(
    files: Sequence[Path],
    encoder: Encoder,
    decoder: ImageDecoder,
    wanted: int,
    progress: Progress,
) -> tuple[NDArray[np.uint8], list[str]]:
    """The first pictures that can be read: (up to wanted, side, side, 3); and those that cannot."""

    def prepare(file: Path) -> tuple[Features, None]:
        with reading(str(file)), PictureSource.from_path(file).open() as opened:
            image = decoder.decode(
                opened, decode_size=encoder.decode_size, preprocess=encoder.spec.preprocess
            ).image
        return encoder.prepare(image), None

    read: list[Features] = []
    skipped: list[str] = []
    total = min(wanted, len(files))
    with (
        Pipeline(threads=available_cores(), window=_BATCH) as pipeline,
        closing(pipeline.run(files, prepare)) as results,
    ):
        for result in results:
            if isinstance(result.error, InvalidImageError):
                text, file = str(result.error), str(result.item)
                skipped.append(text if file in text else f"{file}: {text}")
            elif result.error is not None:
                raise result.error
            elif result.value is not None:
                read.append(result.value)
                progress.report(len(read), total)
                progress.check()
                if len(read) == wanted:
                    break
    return np.stack(read) if read else np.empty((0,), dtype=np.uint8), skipped


def _vectors(encoder: Encoder, batch: NDArray[np.uint8], progress: Progress) -> Vectors:
    rows = []
    for start in range(0, len(batch), _BATCH):
        rows.append(encoder.encode(list(batch[start : start + _BATCH])))
        progress.report(start + len(rows[-1]), len(batch))
        progress.check()
    return np.concatenate(rows)
