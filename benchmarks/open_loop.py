"""A load generator with an open loop: requests come when they come, whatever the service does.

`python -m benchmarks.open_loop --url http://127.0.0.1:8000 --rate 20 --seconds 30 PICTURE...` from
the repository's root. Arrivals are a Poisson process. A latency counts from the moment at which
the request was to be sent, so that waiting in this client is not hidden: a closed loop sends less
while the service is slow, and so leaves out the requests that would have waited longest
("coordinated omission").
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import httpx2
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import HEADERS, body


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request; times in seconds since the run began.

    Attributes:
        scheduled: When it was to be sent.
        sent: When it was sent.
        done: When its answer was read, or its failure known.
        status: `200` and so on, or the name of the failure, like `ReadTimeout`.
    """

    scheduled: float
    sent: float
    done: float
    status: str

    @property
    def good(self) -> bool:
        """Whether the service answered with success."""
        return self.status.startswith("2")


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures.

    Attributes:
        requests: How many were sent.
        offered_rate: Arrivals per second of the schedule as it was drawn.
        achieved_rate: Good answers per second, until the last answer of all.
        p50_ms: Latency of good answers from their scheduled moment: half are at most this. NaN
            where there is none, as the others.
        p95_ms: The same of 95%.
        p99_ms: The same of 99%.
        max_ms: The longest.
        late_p99_ms: By how much this client itself was late to send, of which 99% are at most
            this. Where that is not small against the latencies, the client is too slow.
        statuses: status -> how many, the good ones too.
    """

    requests: int
    offered_rate: float
    achieved_rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float
    statuses: dict[str, int]

    @property
    def errors(self) -> int:
        """How many got no good answer."""
        return sum(count for status, count in self.statuses.items() if not status.startswith("2"))


def schedule(rate: float, seconds: float, *, seed: int = 0) -> NDArray[np.float64]:
    """Arrivals of a Poisson process: gaps are independent and exponential with mean 1 / rate.

    Args:
        rate: Requests per second, above 0.
        seconds: How long arrivals go on.
        seed: The same seed gives the same arrivals.

    Returns:
        (N,) seconds from the beginning, ascending, all below `seconds`; N is random, too.
    """
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate * seconds)  # given their number, arrivals are uniform
    return np.sort(rng.uniform(0, seconds, count))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank).

    Args:
        values: In any order.
        share: Above 0, at most 1.

    Returns:
        NaN without values.
    """
    if not values:
        return math.nan
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


def summarize(answers: Sequence[Answer], *, seconds: float) -> Summary:
    """The figures of a run whose arrivals went on for `seconds`."""
    good = [(answer.done - answer.scheduled) * 1000 for answer in answers if answer.good]
    late = [(answer.sent - answer.scheduled) * 1000 for answer in answers]
    end = max([seconds, *(answer.done for answer in answers)])
    return Summary(
        requests=len(answers),
        offered_rate=len(answers) / seconds,
        achieved_rate=len(good) / end,
        p50_ms=percentile(good, 0.50),
        p95_ms=percentile(good, 0.95),
        p99_ms=percentile(good, 0.99),
        max_ms=percentile(good, 1.0),
        late_p99_ms=percentile(late, 0.99),
        statuses=dict(sorted(Counter(answer.status for answer in answers).items())),
    )


async def send_all(
    url: str,
    bodies: Sequence[bytes],
    arrivals: NDArray[np.float64],
    *,
    headers: dict[str, str],
    timeout: float,
) -> list[Answer]:
    """Sends request i at arrivals[i] with a body in turn, and waits for every answer.

    Args:
        url: Where each is posted.
        bodies: At least one.
        arrivals: (N,) seconds from now, ascending.
        headers: Of every request.
        timeout: Seconds after which a request that waits for any one thing is given up.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx2.AsyncClient(
            headers=headers, limits=limits, timeout=timeout, trust_env=False
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        sender = _Sender(client, url)
        for number, scheduled in enumerate(arrivals.tolist()):
            await anyio.sleep(max(0.0, scheduled - sender.now()))
            tasks.start_soon(sender.send, bodies[number % len(bodies)], scheduled)
    return sender.answers


class _Sender:
    """Sends requests and keeps what became of them; its clock starts with it."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self.answers: list[Answer] = []
        self._client = client
        self._url = url
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    async def send(self, content: bytes, scheduled: float) -> None:
        sent = self.now()
        try:
            status = str((await self._client.post(self._url, content=content)).status_code)
        except httpx2.HTTPError as exc:
            status = type(exc).__name__
        self.answers.append(Answer(scheduled, sent, self.now(), status))


def run(
    url: str,
    bodies: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    key: str | None = None,
    timeout: float = 60.0,
) -> Summary:
    """Offers multipart bodies to a service's /search at a rate, and waits for the last answer.

    Args:
        url: Of the service.
        bodies: As `benchmarks.load.body` makes them; sent in turn.
        rate: Mean arrivals per second.
        seconds: How long arrivals go on.
        seed: Of the arrivals.
        key: For a service that asks for one.
        timeout: Seconds after which a request that waits for any one thing is given up.
    """
    arrivals = schedule(rate, seconds, seed=seed)
    headers = HEADERS | ({"X-API-Key": key} if key else {})
    target = url.rstrip("/") + "/search"

    async def all_of_them() -> list[Answer]:
        return await send_all(target, bodies, arrivals, headers=headers, timeout=timeout)

    return summarize(anyio.run(all_of_them), seconds=seconds)


def main() -> None:
    """Prints the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, required=True, help="mean arrivals per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long arrivals go on")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--key", help="the service's read key, where it has one")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one request")
    options = parser.parse_args()
    summary = run(
        options.url,
        [body(file.read_bytes()) for file in options.pictures],
        rate=options.rate,
        seconds=options.seconds,
        seed=options.seed,
        key=options.key,
        timeout=options.timeout,
    )
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
