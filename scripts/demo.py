"""Draws pictures, starts the real service, indexes and searches over HTTP, counts right answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2

from scripts.samples import Sample, jpeg_bytes, samples

CLASSES = 12
VIEWS = 4  # the last view of each thing is never indexed, only searched for
KEY = "demo-admin-key"
START_S = 120.0
MODELS = (  # and their weights, from the best to what works everywhere
    ("resnet50", "IMAGENET1K_V1"),
    ("efficientnet_lite0", "IMAGENET1K_V1"),
    ("resnet50", "random"),
)


def main() -> int:
    """Runs the demo; returns the exit code."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lookalike-demo-") as folder:
        data = Path(folder)
        say("1. Draw pictures: 12 classes x 10 things x 4 views, as JPEG files")
        chosen = [sample for sample in samples() if sample.label in classes()]
        with ThreadPoolExecutor() as pool:
            pictures = dict(zip(chosen, pool.map(jpeg_bytes, chosen), strict=True))
        with any_model(data) as (url, shown):
            run(url, shown, pictures)
    say(f"Done in {time.monotonic() - started:.0f} s. Everything was removed again.")
    return 0


def classes() -> list[str]:
    """The classes that are drawn, in the order in which they are first named."""
    return list(dict.fromkeys(sample.label for sample in samples()))[:CLASSES]


def run(url: str, shown: str, pictures: dict[Sample, bytes]) -> None:
    """Indexes all but the last views, searches with those, prints what came of it."""
    stored = {sample: jpeg for sample, jpeg in pictures.items() if sample.view < VIEWS - 1}
    queries = {sample: jpeg for sample, jpeg in pictures.items() if sample.view == VIEWS - 1}
    with httpx2.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=120) as http:
        say(f"3. Index {len(stored)} pictures:  curl -F files=@mug-00-0.jpg ... {url}/index")
        index(http, stored)
        say(f"4. Search with {len(queries)} pictures that are not in the index")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda item: search(http, *item), queries.items()))
    first = next(iter(queries))
    print(f"\n   curl -F file=@{first.filename} -F k=3 {url}/search\n")
    print(json.dumps(answers[0], indent=2))
    best = [answer["matches"][0]["metadata"] for answer in answers]
    pairs = list(zip(queries, best, strict=True))
    instance = sum(found["instance"] == query.instance_id for query, found in pairs) / len(pairs)
    label = sum(found["label"] == query.label for query, found in pairs) / len(pairs)
    say(f"5. Right at rank 1, with {shown}: the same thing {instance:.0%} (chance 0.8%),")
    print(f"   the same class {label:.0%} (chance 8.3%)")


def index(http: httpx2.Client, stored: dict[Sample, bytes]) -> None:
    """Sends the pictures 30 at a time, with what they show as metadata."""
    started = time.monotonic()
    names = list(stored)
    for start in range(0, len(names), 30):
        chunk = names[start : start + 30]
        metadata = [{"label": one.label, "instance": one.instance_id} for one in chunk]
        answer = http.post(
            "/index",
            files=[("files", (one.filename, stored[one], "image/jpeg")) for one in chunk],
            data={"metadata": json.dumps(metadata)},
        )
        answer.raise_for_status()
    print(f"   {len(names) / (time.monotonic() - started):.0f} pictures/s")


def search(
    http: httpx2.Client, sample: Sample, jpeg: bytes
) -> dict[str, list[dict[str, dict[str, str]]]]:
    """One search over HTTP."""
    answer = http.post("/search", files={"file": (sample.filename, jpeg)}, data={"k": "3"})
    answer.raise_for_status()
    body: dict[str, list[dict[str, dict[str, str]]]] = answer.json()
    return body


@contextmanager
def any_model(data: Path) -> Iterator[tuple[str, str]]:
    """Starts the service with the first of `MODELS` that can be had; gives its address and name."""
    port = free_port()
    for model, weights in MODELS:
        shown = f"{model}, {weights} weights"
        say(f"2. Start the service:  lookalike serve --model {model} --weights {weights}")
        if weights == "random":
            print("   No trained weights can be had here. Going on with RANDOM weights: the demo")
            print("   shows that everything works, not how good the matches can be.")
        home = data / f"{model}-{weights}"
        service = serve(home, model, weights, port)
        try:
            if wait_until_ready(service, port):
                yield f"http://127.0.0.1:{port}", shown
                return
        finally:
            service.terminate()
            service.wait(timeout=60)
        print((home / "service.log").read_text().strip().splitlines()[-1])
        print(f"   The service does not start with {shown}.")
    raise SystemExit("the service does not start; its last lines are above")


def serve(data: Path, model: str, weights: str, port: int) -> subprocess.Popen[bytes]:
    """Starts `lookalike serve` with its log in the data folder."""
    data.mkdir()
    settings = {
        "LOOKALIKE_DATA_DIR": str(data),
        "LOOKALIKE_MODEL": model,
        "LOOKALIKE_WEIGHTS": weights,
        "LOOKALIKE_ADMIN_KEY": KEY,
        "LOOKALIKE_LOG_FORMAT": "text",
    }
    inherited = {
        name: text for name, text in os.environ.items() if not name.startswith("LOOKALIKE_")
    }
    with (data / "service.log").open("wb") as log:
        return subprocess.Popen(
            [Path(sys.executable).parent / "lookalike", "serve", "--port", str(port)],
            env=inherited | settings,
            cwd=data,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_until_ready(service: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the service became ready before it ended or the time was up."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and service.poll() is None:
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/health/ready", timeout=20).status_code == 200:
                return True
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def say(line: str) -> None:
    """Prints a step."""
    print(f"\n{line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
