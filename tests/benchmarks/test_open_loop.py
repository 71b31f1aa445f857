"""The open-loop load generator: its arrivals, its percentiles, and from when a latency counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import HEADERS, body
from benchmarks.open_loop import Answer, Summary, percentile, schedule, send_all, summarize
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


@contextmanager
def answering(status_of: Callable[[], int]) -> Iterator[str]:
    """The address of a server whose answers have the status that `status_of` comes to."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status_of())
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def one_at_a_time(
    *, seconds: float, statuses: list[int] | None = None
) -> AbstractContextManager[str]:
    """A server that takes its time over each request, and has no hands for a second one."""
    busy = threading.Lock()
    numbers = iter(range(10_000))

    def status_of() -> int:
        with busy:
            time.sleep(seconds)
            return 200 if statuses is None else statuses[next(numbers) % len(statuses)]

    return answering(status_of)


def all_at_once(count: int) -> AbstractContextManager[str]:
    """A server that answers nobody before `count` have asked."""
    everybody = threading.Barrier(count, timeout=PATIENCE_S)

    def status_of() -> int:
        everybody.wait()
        return 200

    return answering(status_of)


def send(url: str, arrivals: list[float], *, timeout: float = 30.0) -> list[Answer]:
    """The generator's answers."""

    async def work() -> list[Answer]:
        return await send_all(
            url, [body(b"picture")], np.array(arrivals), headers=HEADERS, timeout=timeout
        )

    return anyio.run(work)


def test_a_latency_counts_from_the_scheduled_moment() -> None:
    took, arrivals = 0.08, [0.0, 0.02, 0.04, 0.06, 0.08, 0.10]
    with one_at_a_time(seconds=took) as url:
        answers = send(url, arrivals)
    assert [answer.status for answer in answers] == ["200"] * 6
    # In whatever order they are taken, answer i cannot come before i + 1 times what one takes.
    for place, done in enumerate(sorted(answer.done for answer in answers)):
        assert done >= (place + 1) * took
    summary = summarize(answers, seconds=0.12)
    # So one waits through the others' answers: what a closed loop would tell as 80 ms each.
    assert summary.max_ms >= 1000 * (6 * took - arrivals[-1])
    assert summary.achieved_rate <= 1 / took


def test_requests_leave_while_the_server_is_stuck() -> None:
    arrivals = [0.02 * number for number in range(10)]
    with all_at_once(len(arrivals)) as url:
        answers = send(url, arrivals)
    assert [answer.status for answer in answers] == ["200"] * 10
    assert sorted(answer.scheduled for answer in answers) == pytest.approx(arrivals)
    assert max(answer.sent for answer in answers) < min(answer.done for answer in answers)
    assert all(answer.sent >= answer.scheduled for answer in answers)


def test_a_client_that_is_late_hides_nothing() -> None:
    late = [Answer(scheduled=0.0, sent=0.5, done=0.6, status="200")]
    summary = summarize(late, seconds=1.0)
    assert summary.p50_ms == pytest.approx(600)
    assert summary.late_p99_ms == pytest.approx(500)


def test_errors_are_counted_by_status_and_left_out_of_latencies() -> None:
    with one_at_a_time(seconds=0.0, statuses=[200, 503, 503, 415]) as url:
        answers = send(url, [0.0] * 8)
    summary = summarize(answers, seconds=100.0)
    assert summary.statuses == {"200": 2, "415": 2, "503": 4}
    assert summary.errors == 6
    assert summary.achieved_rate == pytest.approx(0.02)
    slow_errors = [Answer(0, 0, 9.0, "503"), Answer(0, 0, 0.1, "200")]
    assert summarize(slow_errors, seconds=1.0).max_ms == pytest.approx(100)


def test_failures_of_the_connection_have_names() -> None:
    with one_at_a_time(seconds=2.0) as url:
        assert [answer.status for answer in send(url, [0.0], timeout=0.7)] == ["ReadTimeout"]
    assert [answer.status for answer in send(url, [0.0])] == ["ConnectError"]  # it is gone


def test_nothing_good_has_no_latency() -> None:
    summary = summarize([Answer(0, 0, 1, "503")], seconds=1.0)
    assert math.isnan(summary.p50_ms)
    assert summary.achieved_rate == 0


def test_arrivals_are_a_poisson_process() -> None:
    rate, seconds = 50.0, 200.0
    arrivals = schedule(rate, seconds, seed=3)
    assert abs(len(arrivals) - rate * seconds) < 4 * math.sqrt(rate * seconds)
    gaps = np.diff(arrivals)
    assert gaps.min() >= 0
    # An exponential distribution has its deviation equal to its mean, and this share above it.
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), abs=0.02)
    counts = np.histogram(arrivals, bins=int(seconds), range=(0, seconds))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.35)  # evenly spaced ones have 0
    np.testing.assert_array_equal(arrivals, schedule(rate, seconds, seed=3))
    assert len(arrivals) != len(schedule(rate, seconds, seed=4))


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60),
    st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]),
)
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], share: float
) -> None:
    enough = [
        value
        for value in values
        if sum(other <= value for other in values) >= share * len(values) - 1e-9
    ]
    assert percentile(values, share) == min(enough)


def test_percentiles_of_a_hundred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]


def test_the_command_prints_the_figures(tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"not looked at")
    with one_at_a_time(seconds=0.0) as url:
        words = ["--url", url, "--rate", "40", "--seconds", "0.5", str(picture)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.open_loop", *words],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
        )
    summary = Summary(**json.loads(done.stdout))
    assert summary.statuses == {"200": summary.requests}
    assert summary.requests == len(schedule(40, 0.5))
    assert summary.p50_ms <= summary.p95_ms <= summary.p99_ms <= summary.max_ms
