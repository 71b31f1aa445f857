import concurrent.futures
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lookalike.errors import (
    ClientGoneError,
    EmbeddingFailedError,
    NotReadyError,
    QueueFullError,
)
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import LiveEncoder
from lookalike.progress import Caller, caller
from tests.models.pictures import draw
from tests.waiting import PATIENCE_S, assert_stays, wait_for

COLOR = ColorEncoder()
PICTURES = [COLOR.prepare(draw(seed)) for seed in range(20)]
EXPECTED = COLOR.encode(PICTURES)
POISON = np.zeros_like(PICTURES[0])


class Gated(ColorEncoder):
    """Waits for its gate, remembers its batches, and fails on a black picture."""

    def __init__(self, error=None):
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches = []
        self.error = error or ValueError("poison")

    def encode(self, batch):
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        self.batches.append(len(batch))
        if any((picture == 0).all() for picture in batch):
            raise self.error
        return super().encode(batch)


@pytest.fixture
def encoder():
    return Gated()


@pytest.fixture
def batcher(encoder):
    batcher = LiveEncoder(encoder, max_batch=4, queue_size=6)
    yield batcher
    encoder.gate.set()
    batcher.close()


def occupy(encoder, batcher):
    """Has the worker wait inside the encoder with one picture."""
    future = batcher.submit(PICTURES[0])
    assert encoder.entered.wait(PATIENCE_S)
    return future


def submit_until_closed(batcher):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            batcher.submit(PICTURES[0]).cancel()
        except NotReadyError:
            return
    pytest.fail("the batcher still takes pictures")


def test_callers_on_many_threads_get_their_own_vectors():
    calls = []
    batcher = LiveEncoder(
        COLOR, max_batch=8, on_batch=lambda count, seconds: calls.append((count, seconds))
    )
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        order = [number % 20 for number in range(400)]
        vectors = list(pool.map(lambda number: batcher.embed(PICTURES[number]), order))
    batcher.close()
    assert all(np.array_equal(v, EXPECTED[n]) for n, v in zip(order, vectors, strict=True))
    assert sum(count for count, _ in calls) == 400
    assert all(1 <= count <= 8 and seconds >= 0 for count, seconds in calls)
    assert vectors[0].base is None


def test_what_waits_together_becomes_one_batch(encoder, batcher):
    first = occupy(encoder, batcher)
    others = [batcher.submit(picture) for picture in PICTURES[1:6]]
    assert batcher.queue_length == 5
    encoder.gate.set()
    for number, future in enumerate([first, *others]):
        assert np.array_equal(future.result(PATIENCE_S), EXPECTED[number])
    assert encoder.batches == [1, 4, 1]
    assert batcher.queue_length == 0


def test_a_full_queue_refuses(encoder, batcher):
    occupy(encoder, batcher)
    for picture in PICTURES[:6]:
        batcher.submit(picture)
    with pytest.raises(QueueFullError, match="6 pictures"):
        batcher.submit(PICTURES[0])
    assert batcher.queue_size == batcher.queue_length == 6


def test_bulk_work_waits_for_room(encoder, batcher):
    occupy(encoder, batcher)
    for picture in PICTURES[:6]:
        batcher.submit(picture)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(batcher.submit, PICTURES[7], wait=True)
        assert_stays(lambda: not blocked.done(), seconds=0.05)
        encoder.gate.set()
        assert np.array_equal(blocked.result(PATIENCE_S).result(PATIENCE_S), EXPECTED[7])


def test_bulk_work_leaves_half_of_the_places_to_others(encoder, batcher):
    occupy(encoder, batcher)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        bulk = [pool.submit(batcher.submit, PICTURES[n], wait=True) for n in range(6)]
        wait_for(lambda: batcher.queue_length == 3)
        assert_stays(lambda: batcher.queue_length == 3, seconds=0.1)
        others = [batcher.submit(PICTURES[n]) for n in range(3)]
        encoder.gate.set()
        assert all(len(task.result(PATIENCE_S).result(PATIENCE_S)) for task in bulk)
        assert all(len(other.result(PATIENCE_S)) for other in others)


def test_an_urgent_picture_goes_first_even_where_the_queue_is_full(encoder, batcher):
    occupy(encoder, batcher)
    order: list[str] = []
    for picture in PICTURES[:6]:
        batcher.submit(picture).add_done_callback(lambda _: order.append("other"))
    batcher.submit(PICTURES[6], urgent=True).add_done_callback(lambda _: order.append("urgent"))
    encoder.gate.set()
    batcher.close()
    assert order == ["urgent", *["other"] * 6]


def test_one_poisonous_picture_fails_alone(encoder, batcher):
    occupy(encoder, batcher)
    futures = [batcher.submit(p) for p in (PICTURES[1], POISON, PICTURES[2])]
    encoder.gate.set()
    assert np.array_equal(futures[0].result(PATIENCE_S), EXPECTED[1])
    assert np.array_equal(futures[2].result(PATIENCE_S), EXPECTED[2])
    with pytest.raises(EmbeddingFailedError, match="poison") as caught:
        futures[1].result(PATIENCE_S)
    assert caught.value.__cause__ is encoder.error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_nothing_ends_the_worker(error):
    encoder = Gated(error)
    encoder.gate.set()
    batcher = LiveEncoder(encoder)
    with pytest.raises(EmbeddingFailedError):
        batcher.embed(POISON)
    assert np.array_equal(batcher.embed(PICTURES[3]), EXPECTED[3])
    batcher.close()


def test_another_shape_fails_alone(encoder, batcher):
    occupy(encoder, batcher)
    futures = [batcher.submit(p) for p in (PICTURES[1], np.ones((5, 5, 3), np.uint8))]
    encoder.gate.set()
    assert np.array_equal(futures[0].result(PATIENCE_S), EXPECTED[1])
    with pytest.raises(EmbeddingFailedError, match=r"(?i)expected pictures of"):
        futures[1].result(PATIENCE_S)


def test_an_answer_of_another_shape_is_refused():
    class Wrong(ColorEncoder):
        def encode(self, batch):
            return super().encode(batch)[:, :5]

    batcher = LiveEncoder(Wrong())
    with pytest.raises(EmbeddingFailedError, match="shape"):
        batcher.embed(PICTURES[0])
    batcher.close()


def test_a_failing_callback_harms_nobody(caplog):
    def fail(count, seconds):
        raise RuntimeError("metrics are down")

    batcher = LiveEncoder(COLOR, on_batch=fail)
    assert np.array_equal(batcher.embed(PICTURES[0]), EXPECTED[0])
    batcher.close()
    assert "on_batch failed" in caplog.text


def test_cancelled_pictures_are_dropped(encoder, batcher):
    occupy(encoder, batcher)
    gone, stays = batcher.submit(PICTURES[1]), batcher.submit(PICTURES[2])
    assert gone.cancel()
    encoder.gate.set()
    assert np.array_equal(stays.result(PATIENCE_S), EXPECTED[2])
    assert encoder.batches == [1, 1]
    alone = batcher.submit(PICTURES[3])
    alone.cancel()
    assert np.array_equal(batcher.embed(PICTURES[4]), EXPECTED[4])


def test_a_caller_who_leaves_gives_the_place_in_the_queue_back(encoder, batcher):
    occupy(encoder, batcher)
    leaving = Caller()

    def embed():
        caller.set(leaving)
        return batcher.embed(PICTURES[1])

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embed)
        wait_for(lambda: batcher.queue_length == 1)
        leaving.leave()
        with pytest.raises(ClientGoneError):
            waiting.result(PATIENCE_S)
        assert batcher.queue_length == 0
        with pytest.raises(ClientGoneError):  # who has left already does not wait at all
            pool.submit(embed).result(PATIENCE_S)
    encoder.gate.set()
    assert np.array_equal(batcher.embed(PICTURES[2]), EXPECTED[2])


def test_closing_finishes_what_waits(encoder):
    batcher = LiveEncoder(encoder, max_batch=2, queue_size=10**9)
    occupy(encoder, batcher)
    futures = [batcher.submit(picture) for picture in PICTURES[:5]]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    submit_until_closed(batcher)
    encoder.gate.set()
    closing.join(PATIENCE_S)
    assert all(np.array_equal(f.result(0), e) for f, e in zip(futures, EXPECTED, strict=False))
    batcher.close()


def test_closing_releases_who_waits_for_room():
    encoder = Gated()
    batcher = LiveEncoder(encoder, queue_size=1)
    occupy(encoder, batcher)
    batcher.submit(PICTURES[1])
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        blocked = [pool.submit(batcher.submit, PICTURES[2], wait=True) for _ in range(3)]
        time.sleep(0.05)
        closing = threading.Thread(target=batcher.close)
        closing.start()
        for future in blocked:
            with pytest.raises(NotReadyError):
                future.result(PATIENCE_S)
    encoder.gate.set()
    closing.join(PATIENCE_S)


def test_no_thread_is_left():
    before = threading.active_count()
    batchers = [LiveEncoder(COLOR) for _ in range(5)]
    assert threading.active_count() == before + 5
    for batcher in batchers:
        batcher.close()
    assert threading.active_count() == before


def test_closing_from_a_callback_of_the_worker():
    batcher = LiveEncoder(COLOR)
    future = batcher.submit(PICTURES[0])
    closed = threading.Event()
    future.add_done_callback(lambda _: (batcher.close(), closed.set()))
    assert closed.wait(PATIENCE_S)


@pytest.mark.parametrize("bad", [{"max_batch": 0}, {"queue_size": 0}])
def test_bounds_must_be_positive(bad):
    with pytest.raises(ValueError, match=r"(?i)at least 1"):
        LiveEncoder(COLOR, **bad)
