"""A good client's answers beside attackers, against the same client alone.

`python -m benchmarks.attacks [ATTACK...] [--quick]`; ResNet-18 with random weights.

The attackers share a core with the good client, and run while it waits. The service has the other
cores. Where other work runs on the machine, put this before it (as root):

    setsid -w sh -c 'echo -20 > /proc/self/autogroup; nice -n -20 python -m benchmarks.attacks'

Not by `chrt -r`: by that rule a thread of the service keeps its core for 100 ms while other threads
of the service wait for it.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from urllib.parse import quote

from benchmarks.common import WEB, announce, environment, report
from benchmarks.load import HEADERS, body
from benchmarks.servers import free_port, service, write
from tests.media.bombs import (
    bmp_runs,
    gif_comments,
    jpeg_scans,
    png,
    png_many_chunks,
    ppm_scaled,
    qoi_literals,
    tiff_strips,
)

ATTACKERS = 2
ROUNDS = 3


def decoding(port: int) -> None:
    """Sends pictures that take seconds to decode, one after another, for ever."""
    files = [
        jpeg_scans(8000, 2000),
        jpeg_scans(8000, 120),
        qoi_literals(10),
        gif_comments(9_000_000),
        png_many_chunks(1_500_000),
        png(1, 60_000_000, color=0),
        tiff_strips(2_000_000),
        bmp_runs(3000),
        ppm_scaled(2500),
    ]
    bodies = [body(file) for file in files]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    for data in itertools.cycle(bodies):
        connection.request("POST", "/search", data, HEADERS)
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 500 and answer.status != 503:
            raise SystemExit(f"the service answered {answer.status}")


def silent(port: int) -> None:
    """Opens more connections than the service takes, and says nothing."""
    hold(port, 5_000, b"")


def half_heads(port: int) -> None:
    """Sends heads of requests that never end, a line at a time."""
    hold(port, 1_000, b"GET / HTTP/1.1\r\nHost: x\r\n", drip=b"X: y\r\n")


def trickling(port: int) -> None:
    """Sends bodies that never end, a byte at a time."""
    kind = HEADERS["Content-Type"].encode()
    head = b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\nContent-Type: " + kind
    start = head + b"\r\n\r\n" + body(b"")[:-40]
    hold(port, 500, start, drip=b"x")


def unread(port: int) -> None:
    """Asks for large answers, again and again, and reads none."""
    path = b"/static-offline-docs/swagger-ui-bundle.js"
    hold(port, 200, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")


def reads(port: int) -> None:
    """Asks for lists through filters: 85 clients, each one list after another, for ever."""

    def client(address: str) -> None:
        where = json.dumps({address: 0})
        for number in itertools.count():
            with suppress(OSError, http.client.HTTPException):
                if number % 1000 == 0:
                    connection = http.client.HTTPConnection(
                        "127.0.0.1", port, timeout=300, source_address=(address, 0)
                    )
                connection.request("GET", f"/images?limit=1000&filter={quote(where)}")
                connection.getresponse().read()

    clients = [threading.Thread(target=client, args=(one,)) for one in islice(addresses(), 85)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()


def flood(port: int) -> None:
    """Opens and closes connections as fast as it can."""
    for address in addresses():
        with suppress(OSError), socket.socket() as made:
            made.bind((address, 0))
            made.connect(("127.0.0.1", port))


def addresses() -> Iterator[str]:
    """Addresses of this machine that no proxy has and no other attacker uses, again and again."""
    first = os.getpid() % 250 + 1
    return itertools.cycle([f"127.{first}.{second}.1" for second in range(1, 251)])


def hold(port: int, count: int, sent: bytes, *, drip: bytes = b"") -> None:
    """Keeps connections open on which something was sent; opens those that were closed again."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held: dict[int, socket.socket] = {}
    gone = select.epoll()
    own = addresses()
    while True:
        while len(held) < min(count, limit - 50):
            made = socket.create_connection(("127.0.0.1", port), source_address=(next(own), 0))
            made.sendall(sent)
            held[made.fileno()] = made
            gone.register(made, select.EPOLLRDHUP)
        until = time.monotonic() + 1
        while (left := until - time.monotonic()) > 0:
            for number, _ in gone.poll(left):
                gone.unregister(number)
                held.pop(number).close()
            if len(held) < count:
                break
        if drip:
            for made in held.values():
                with suppress(OSError):
                    made.send(drip)


ATTACKS: dict[str, Callable[[int], None]] = {
    attack.__name__: attack
    for attack in (decoding, silent, half_heads, trickling, unread, reads, flood)
}


def main() -> None:
    """Runs the attacks that are named, or all, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--quick", action="store_true", help="few requests")
    parser.add_argument("--port", type=int, help="attack what listens there, as an attacker does")
    options = parser.parse_args()
    if options.port:
        ATTACKS[options.attacks[0]](options.port)
        return
    announce("A good client beside attackers, ResNet-18 with random weights")
    requests = 60 if options.quick else 600
    *cores, last = sorted(os.sched_getaffinity(0))  # attackers have a machine of their own
    os.sched_setaffinity(0, cores or {last})
    with environment(weights="random", model="resnet18", log_level="error") as folder:
        port, files = free_port(), write(folder, WEB)
        bodies = [body(file.read_bytes()) for file in files]
        with service(folder / "data", files, port):
            os.sched_setaffinity(0, {last})
            for name in options.attacks or ATTACKS:
                alone, beside = [], []
                for _ in range(ROUNDS):  # in turn: the machine may do other things, too
                    latencies(port, bodies, 30)  # until the service has done what is left over
                    alone += latencies(port, bodies, requests // ROUNDS)
                    with attackers(name, port):
                        beside += latencies(port, bodies, requests // ROUNDS)
                tell(name, alone, beside)


def tell(name: str, alone: list[float], beside: list[float]) -> None:
    """Prints the medians and the 99th percentiles."""
    for share, what, goal in ((0.5, "p50", ""), (0.99, "p99", "at most 2")):
        usual, now = (sorted(one)[int(len(one) * share)] for one in (alone, beside))
        report(f"one client beside {ATTACKERS} attackers ({name}), {what} of /search",
               f"{now:.0f} ms", f"{usual:.0f} ms", now / usual, goal,
               arguments=(name,))  # fmt: skip


@contextmanager
def attackers(name: str, port: int) -> Iterator[None]:
    """Attackers in processes of their own, which run while the good client waits.

    Elsewhere they would have a machine of their own, and take nothing from that client's.
    """
    command = ["chrt", "-i", "0", sys.executable, "-m", "benchmarks.attacks"]
    command += [name, "--port", str(port)]
    running = [subprocess.Popen(command) for _ in range(ATTACKERS)]
    time.sleep(4)  # until their pictures are made
    try:
        yield
        if any(process.poll() is not None for process in running):
            raise SystemExit("an attacker gave up")
    finally:
        for process in running:
            process.kill()
            process.wait()


def latencies(port: int, bodies: list[bytes], requests: int) -> list[float]:
    """Milliseconds of searches, one after another; every one must be answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    took = []
    for number in range(requests):
        started = time.perf_counter()
        connection.request("POST", "/search", bodies[number % len(bodies)], HEADERS)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - started) * 1000)
        if answer.status != 200:
            raise SystemExit(f"the service answered the good client {answer.status}")
    connection.close()
    return took


if __name__ == "__main__":
    main()
