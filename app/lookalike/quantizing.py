"""Makes the int8 network of some settings, and measures what it costs before it is kept."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lookalike.config import Settings
from lookalike.converting import float_network, keep_network, settled_origin
from lookalike.cores import available_cores
from lookalike.errors import ConfigurationError, InvalidImageError, StorageError
from lookalike.media.decode import ImageDecoder, ImageLimits
from lookalike.media.sources import PictureSource
from lookalike.models.base import Encoder, Prepared, Vectors
from lookalike.models.openvino_encoder import OpenVinoEncoder
from lookalike.models.openvino_files import Origin
from lookalike.models.openvino_quantize import Agreement, agreement, quantize
from lookalike.models.openvino_runtime import installed_version, read_network
from lookalike.records import ModelSpec
from lookalike.services.pipeline import Pipeline, reading

CHECKED: Final = 500
"""Most pictures that the two networks are compared on."""

LEAST_CHECKED: Final = 30
"""Fewer say nothing about the ten nearest."""

_BATCH = 16
_NAMED = 3  # files that could not be read, in an error

Report = Callable[[str, int, int], None]
"""Told the stage, how many are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """An int8 network that is not kept yet.

    Attributes:
        network: OpenVINO's model.
        spec: Its own.
        origin: What it was made from.
        calibrated: Pictures that gave the ranges.
        agreement: With float32, on other pictures.
        skipped: Files that could not be read, with the reason.
    """

    network: Any
    spec: ModelSpec
    origin: Origin
    calibrated: int
    agreement: Agreement
    skipped: list[str]


def quantize_model(
    settings: Settings,
    files: Sequence[Path],
    *,
    pictures: int,
    on_progress: Report,
    seed: int = 0,
) -> Quantized:
    """Quantizes the settings' network and compares it with float32.

    Args:
        settings: Name the network; device, runtime and precision do not matter.
        files: Pictures of the kind that will be searched.
        pictures: To calibrate on, at most half of those that can be read.
        on_progress: Told how far each stage is.
        seed: Chooses the pictures.

    Raises:
        ConfigurationError: Too few pictures, or a setting that cannot work.
    """
    origin = settled_origin(settings)
    source, spec = float_network(settings, keep=True)
    if settled_origin(settings) != origin:
        raise ConfigurationError("The weights file was changed meanwhile; run the command again")
    threads = settings.threads or available_cores()
    before = OpenVinoEncoder(source, spec=spec, precision="float32", threads=threads)
    shuffled = random.Random(seed).sample(files, len(files))  # noqa: S311 - a choice of pictures
    batch, skipped = _read(shuffled, before, settings, pictures + CHECKED, on_progress)
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
        on_progress=lambda done, total: on_progress("calibrating", done, total),
    )
    quantized = _quantized_spec(spec, batch[:count])
    after = OpenVinoEncoder(network, spec=quantized, threads=threads)
    others = batch[count : count + CHECKED]
    return Quantized(
        network=network,
        spec=quantized,
        origin=replace(origin, int8=True),
        calibrated=count,
        agreement=agreement(
            _vectors(before, others, "measuring float32", on_progress),
            _vectors(after, others, "measuring int8", on_progress),
        ),
        skipped=skipped,
    )


def _quantized_spec(spec: ModelSpec, calibration: NDArray[np.uint8]) -> ModelSpec:
    """Of an int8 network: other pictures to calibrate on, or other versions, make another one."""
    made_by = f"openvino {installed_version()} nncf {version('nncf')}"
    made_of = hashlib.sha256(f"{spec.weights_sha256} {made_by} ".encode())
    made_of.update(np.ascontiguousarray(calibration).tobytes())
    return replace(spec, int8=True, weights_sha256=made_of.hexdigest())


def keep_quantized(settings: Settings, made: Quantized) -> Path:
    """Keeps an int8 network in the data folder, in place of an older one of the same settings.

    Raises:
        StorageError: It cannot be written.
    """
    notes = {"calibrated": made.calibrated, **asdict(made.agreement)}
    kept = keep_network(settings, made.origin, made.spec, made.network, notes=notes)
    if kept is None:
        raise StorageError("The int8 network cannot be written; make room in the data folder")
    return kept


def _read(
    files: Sequence[Path],
    encoder: Encoder,
    settings: Settings,
    wanted: int,
    on_progress: Report,
) -> tuple[NDArray[np.uint8], list[str]]:
    """The first pictures that can be read: (up to wanted, side, side, 3); and those that cannot."""
    limits = ImageLimits(max_bytes=settings.max_file_bytes, max_pixels=settings.max_pixels)
    decoder = ImageDecoder(limits, slots=settings.threads or available_cores())

    def prepare(file: Path) -> tuple[Prepared, None]:
        with reading(str(file)), PictureSource.from_path(file).open() as opened:
            image = decoder.decode(opened, decode_size=encoder.decode_size).image
        return encoder.prepare(image), None

    read: list[Prepared] = []
    skipped: list[str] = []
    total = min(wanted, len(files))
    with (
        Pipeline(threads=settings.threads or available_cores(), window=_BATCH) as pipeline,
        closing(pipeline.run(files, prepare)) as results,
    ):
        for result in results:
            if isinstance(result.error, InvalidImageError):
                text, file = str(result.error), str(result.item)
                skipped.append(text if file in text else f"{file}: {text}")
            elif result.value is not None:
                read.append(result.value)
                on_progress("reading", len(read), total)
                if len(read) == wanted:
                    break
            elif result.error is not None:
                raise result.error
    return np.stack(read) if read else np.empty((0,), dtype=np.uint8), skipped


def _vectors(
    encoder: Encoder, batch: NDArray[np.uint8], stage: str, on_progress: Report
) -> Vectors:
    rows = []
    for start in range(0, len(batch), _BATCH):
        rows.append(encoder.encode(batch[start : start + _BATCH]))
        on_progress(stage, min(start + _BATCH, len(batch)), len(batch))
    return np.concatenate(rows)
