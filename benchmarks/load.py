"""A load generator: `python benchmarks/load.py PORT CLIENTS REQUESTS FILE...` prints JSON.

Each client keeps one connection and sends the files in turn, one request after another. Bodies are
built beforehand, so that the generator takes as little of the machine as it can.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from itertools import count
from pathlib import Path

BOUNDARY = "lookalike-load"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def body(file: bytes) -> bytes:
    """A multipart body with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    return head.encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def run(port: int, clients: int, requests: int, bodies: list[bytes]) -> dict[str, float]:
    """Sends all requests and returns requests per second and latencies in milliseconds."""
    tickets = count()
    latencies: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        while (ticket := next(tickets)) < requests:
            started = time.perf_counter()
            connection.request("POST", "/search", bodies[ticket % len(bodies)], HEADERS)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"the service answered {answer.status}")
            latencies.append((time.perf_counter() - started) * 1000)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if len(latencies) != requests:
        raise SystemExit(f"only {len(latencies)} of {requests} requests were answered")
    latencies.sort()
    return {
        "per_second": requests / seconds,
        "p50_ms": latencies[len(latencies) // 2],
        "p95_ms": latencies[int(len(latencies) * 0.95)],
    }


if __name__ == "__main__":
    port, clients, requests, *files = sys.argv[1:]
    bodies = [body(Path(file).read_bytes()) for file in files]
    print(json.dumps(run(int(port), int(clients), int(requests), bodies)))
