"""OpenVINO against torch on this CPU: speed, agreement, start and memory.

`python -m benchmarks.runtimes [bfloat16] [int8] [start] [--pictures FOLDER] [--model M]
[--weights W] [--input-size N] [--quick]`; all parts where none is named. int8 needs photographs
and trained weights, and is left out without `--pictures`; the others take ResNet-50 with random
weights.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import announce, paired, rate, report
from benchmarks.servers import free_port
from lookalike.bootstrap import (
    build_decoder,
    build_encoder,
    model_request,
    open_store,
    run_options,
)
from lookalike.config import Settings, load_settings
from lookalike.cores import available_cores
from lookalike.media.sources import walk
from lookalike.models.base import Encoder
from lookalike.progress import NO_PROGRESS
from lookalike.records import DEFAULT_COLLECTION, NewImage, Preprocess

PARTS = ("bfloat16", "lite", "int8", "start")
BATCH = 16
WARM, ROUNDS = 3, 25
ROWS, GROUP = 10_000, 1_000


def main() -> None:
    """Runs the parts that are named, or all."""
    options = parse()
    announce("Runtimes: OpenVINO and torch")
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        data = Path(folder) / "data"
        if "bfloat16" in options.parts:
            compare_bfloat16(data, rounds=3 if options.quick else ROUNDS)
        if "lite" in options.parts:
            compare_lite(data, rounds=3 if options.quick else ROUNDS)
        if "int8" in options.parts and options.pictures is not None:
            compare_int8(options, data, rounds=3 if options.quick else ROUNDS)
        if "start" in options.parts:
            compare_start(data, rows=ROWS // 10 if options.quick else ROWS)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--pictures", type=Path, help="folder of photographs, for int8")
    parser.add_argument("--model", default="resnet50", help="network for int8")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="its weights")
    parser.add_argument("--input-size", type=int, help="its input size")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS)
    return options


def compare_bfloat16(data: Path, *, rounds: int) -> None:
    """A batch and one picture, both in bfloat16."""
    given = {"data_dir": data, "weights": "random", "precision": "bfloat16", "device": "cpu"}
    ours, theirs = (
        build_encoder(load_settings(**given, runtime=runtime)) for runtime in ("openvino", "torch")
    )
    pixels = noise(BATCH, ours.spec.preprocess.input_size)
    per_batch("ResNet-50 bfloat16, OpenVINO against torch", ours.encode, theirs.encode, pixels,
              rounds=rounds, bound="at least 1.2")  # fmt: skip


def compare_lite(data: Path, *, rounds: int) -> None:
    """CPU time of efficientnet_lite0 and ResNet-50 for one picture, alone and in a batch."""
    given = {"data_dir": data, "precision": "bfloat16", "runtime": "openvino", "weights": "random"}
    small, large = (
        build_encoder(load_settings(**given, model=model))
        for model in ("efficientnet_lite0", "resnet50")
    )
    pixels = noise(BATCH, small.spec.preprocess.input_size)

    def cpu_ms(encoder: Encoder, count: int) -> float:
        started = time.process_time()
        encoder.encode(list(pixels[:count]))
        return 1000 * (time.process_time() - started) / count

    for count in (BATCH, 1):
        for encoder in (small, large) * WARM:
            cpu_ms(encoder, count)
        fast, slow, ratio = paired(
            lambda count=count: cpu_ms(small, count),  # type: ignore[misc]
            lambda count=count: cpu_ms(large, count),  # type: ignore[misc]
            rounds=rounds,
        )
        report(f"CPU time of efficientnet_lite0 against ResNet-50, OpenVINO bfloat16, "
               f"{f'batches of {count}' if count > 1 else 'one picture'}",
               f"{fast:.1f} ms", f"{slow:.1f} ms", ratio, "at most 0.2")  # fmt: skip


def compare_int8(options: argparse.Namespace, data: Path, *, rounds: int) -> None:
    """int8 against the network as torchvision has it, in float32."""
    from lookalike.services.quantizing import keep_quantized, quantize_model  # noqa: PLC0415 - as needed

    given = {
        "data_dir": data,
        "model": options.model,
        "weights": options.weights,
        "input_size": options.input_size,
        "runtime": "openvino",
        "precision": "int8",
    }
    settings = load_settings(**given)
    files = [found.path for found in walk([options.pictures])]
    run = run_options(settings)
    made = quantize_model(
        model_request(settings),
        run,
        files,
        decoder=build_decoder(settings),
        pictures=300,
        progress=NO_PROGRESS,
    )
    keep_quantized(run.networks, made)
    found = made.agreement
    told = (
        f"{found.overlap:.4f} (cosine least {found.cosine_min:.4f}, mean {found.cosine_mean:.5f})"
    )
    report(f"{options.model} int8, share of the ten nearest that stays, {found.pictures} pictures",
           told, "float32", found.overlap, "at least 0.95")  # fmt: skip
    ours = build_encoder(settings)
    pixels = noise(BATCH, ours.spec.preprocess.input_size)
    per_batch(f"{options.model} int8, OpenVINO against torch float32, eager", ours.encode,
              plain_torch(settings), pixels, rounds=rounds, bound="at least 4")  # fmt: skip


def per_batch(
    name: str,
    ours: Callable[[list[NDArray[np.uint8]]], Any],
    theirs: Callable[[list[NDArray[np.uint8]]], Any],
    pixels: NDArray[np.uint8],
    *,
    rounds: int,
    bound: str,
) -> None:
    """Pictures per second in batches, and the time of one picture alone; call by call in turn."""
    for count in (len(pixels), 1):
        batch = list(pixels[:count])
        for extract in (ours, theirs) * WARM:
            extract(batch)
        fast, slow, ratio = paired(
            lambda batch=batch: rate(len(batch), lambda: ours(batch)),  # type: ignore[misc]
            lambda batch=batch: rate(len(batch), lambda: theirs(batch)),  # type: ignore[misc]
            rounds=rounds,
        )
        shown = f"{fast:.1f}/s", f"{slow:.1f}/s"
        if count == 1:
            shown = f"{1000 / fast:.1f} ms", f"{1000 / slow:.1f} ms"
        report(f"{name}, {f'batches of {count}' if count > 1 else 'one picture, p50'}",
               *shown, ratio, bound)  # fmt: skip


def plain_torch(settings: Settings) -> Callable[[list[NDArray[np.uint8]]], Any]:
    """Torchvision's network as it comes: float32, eager, nothing folded."""
    import torch  # noqa: PLC0415 - after faiss, see lookalike.cores

    from lookalike.models.torchvision import load_backbone  # noqa: PLC0415

    network = load_backbone(settings.model, weights=model_request(settings).weights).network
    own = Preprocess()
    mean, std = (torch.tensor(three).reshape(1, 3, 1, 1) for three in (own.mean, own.std))

    def extract(batch: list[NDArray[np.uint8]]) -> Any:
        torch.set_num_threads(available_cores())
        with torch.inference_mode():
            pixels = (
                torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous().float() / 255
            )
            return torch.nn.functional.normalize(network((pixels - mean) / std)).numpy()

    return extract


def noise(count: int, side: int) -> NDArray[np.uint8]:
    """Pictures whose content does not matter: (count, side, side, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def compare_start(data: Path, *, rows: int) -> None:
    """From the start of the process until GET /health/ready answers 200, and memory then."""
    given = {"data_dir": data, "weights": "random", "device": "cpu"}
    settings = load_settings(**given, runtime="openvino")
    fill(settings, build_encoder(settings), rows)
    memory: dict[str, list[float]] = {"openvino": [], "torch": []}

    def start(runtime: str) -> float:
        with started(data, runtime) as (seconds, process):
            memory[runtime].append(resident_mb(process))
        return seconds

    for runtime in memory:  # the files into the page cache, for both
        start(runtime)
    fast, slow, ratio = paired(lambda: start("openvino"), lambda: start("torch"))
    name = f"start to ready, converted ResNet-50, {rows:,} pictures"
    report(f"{name}: OpenVINO against torch", f"{fast:.2f} s", f"{slow:.2f} s", ratio, "")
    report(f"{name}: seconds", f"{fast:.2f} s", "", fast, "at most 4")
    ours, theirs = (statistics.median(memory[runtime]) for runtime in memory)
    report(f"resident memory then, {rows:,} pictures: OpenVINO against torch",
           f"{ours:.0f} MB", f"{theirs:.0f} MB", ours / theirs, "at most 0.5")  # fmt: skip


def fill(settings: Settings, encoder: Encoder, rows: int) -> None:
    """Puts rows with random unit vectors into the data folder."""
    rng = np.random.default_rng(0)
    store = open_store(settings)
    store.load()
    for start in range(0, rows, GROUP):
        vectors = rng.standard_normal((GROUP, encoder.spec.dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        images = [
            NewImage(id=f"{number:06}", sha256=f"{number:064x}", filename=f"{number}.jpg",
                     media_type="image/jpeg", width=500, height=375, bytes=50_000)
            for number in range(start, start + GROUP)
        ]  # fmt: skip
        store.upsert(DEFAULT_COLLECTION, images, vectors, spec=encoder.spec,
                  provenance=encoder.provenance)  # fmt: skip
    store.close()


@contextmanager
def started(data: Path, runtime: str) -> Iterator[tuple[float, int]]:
    """A service that is ready: after how many seconds, and its process id."""
    port = free_port()
    given = {"DATA_DIR": data, "WEIGHTS": "random", "DEVICE": "cpu", "RUNTIME": runtime,
             "LOG_LEVEL": "warning", "PORT": port}  # fmt: skip
    own = {name: text for name, text in os.environ.items() if not name.startswith("OMP_")}
    own |= {f"LOOKALIKE_{name}": str(value) for name, value in given.items()}
    lookalike = Path(sys.executable).with_name("lookalike")
    begin = time.perf_counter()
    process = subprocess.Popen([lookalike, "serve"], env=own, stdout=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            if process.poll() is not None or time.perf_counter() - begin > 180:
                raise SystemExit("the service does not start")
            time.sleep(0.02)
        yield time.perf_counter() - begin, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def is_ready(port: int) -> bool:
    """Whether the service has embedded and searched its canary picture."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def resident_mb(process: int) -> float:
    """VmRSS in MB."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("the process names no VmRSS")


if __name__ == "__main__":
    main()
