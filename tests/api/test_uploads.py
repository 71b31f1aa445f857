"""Limits that hold before and while a body is read."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.requests import Request

from lookalike.api import admission
from lookalike.api.admission import Admission, Bodies
from lookalike.errors import MalformedRequestError, QueueFullError, UploadStalledError
from lookalike.models.encoders import Encoders
from tests.api.conftest import ADMIN, picture
from tests.api.test_service import Gate
from tests.waiting import wait_for

BOUNDARY = "frontier"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, filename: str, content: bytes) -> bytes:
    disposition = f'form-data; name="{name}"; filename="{filename}"'
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n"
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def claimed_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


REFUSED = {
    "empty": (b"", 415, "not_an_image"),
    "text": (b"just some text in a file named .jpg", 415, "not_an_image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', 415, "not_an_image"),
    "truncated jpeg": (picture(form="JPEG")[:-700], 422, "unreadable_image"),
    "truncated png": (picture()[:-200], 422, "unreadable_image"),
    "bomb": (claimed_png(60_000, 60_000), 413, "too_many_pixels"),
    "21 MB": (picture() + b"\0" * 21_000_000, 413, "image_too_large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_are_refused_leave_the_store_unharmed(client, index, name):
    content, status, code = REFUSED[name]
    index(("good.png", picture()), ids="good")
    for path, field in (("/search", "file"), ("/index", "files")):
        answer = client.post(path, headers=ADMIN, files={field: ("photo.jpg", content)})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert len(answer.json()["detail"]) > 20
    found = client.post("/search", files={"file": picture()}).json()["matches"]
    assert [match["id"] for match in found] == ["good"]


@pytest.mark.parametrize(("path", "field"), [("/search", "file"), ("/index", "files")])
def test_too_many_bytes_without_a_content_length(client, path, field):
    def body():
        yield part(field, "big.jpg", b"")[:-2]
        for _ in range(21):
            yield b"\xff" * 1_000_000
        yield b"\r\n" + END

    answer = client.post(path, content=body(), headers={**FORM, **ADMIN})
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")


def test_a_body_beyond_all_limits_is_refused_by_its_announced_length(client):
    answer = client.post(
        "/index", content=b"", headers={**FORM, **ADMIN, "Content-Length": "99000000000"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


def test_a_content_length_that_is_no_number(client):
    answer = client.post("/search", content=b"", headers={**FORM, "Content-Length": "many"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


def test_big_uploads_wait_in_the_data_folder_and_are_gone_afterwards(clients, settings):
    seen: list[int] = []
    gate = Gate()
    client = clients(settings, encoders=Encoders(gate))
    tmp = settings.data_dir / "tmp"
    noise = io.BytesIO()
    from PIL import Image

    Image.effect_noise((1500, 1500), 90).save(noise, "PNG")
    assert len(noise.getvalue()) > 1_000_000

    def watch() -> None:
        seen.append(len(wait_for(lambda: [fd for fd in _open_files() if str(tmp) in fd])))
        gate.open.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    answer = client.post("/search", files={"file": ("n.png", noise.getvalue())})
    watcher.join()
    assert answer.status_code == 200
    assert seen == [1]
    assert not [fd for fd in _open_files() if str(tmp) in fd]


def _open_files() -> list[str]:
    from pathlib import Path

    names = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(link.readlink()))
        except OSError:
            continue
    return names


def test_the_key_is_checked_before_a_body_of_any_kind_is_read(client):
    body = b" " * 10_000_000
    json_body = {"Content-Type": "application/json"}
    for method, path, headers in (("PATCH", "/images/x", json_body), ("POST", "/index", FORM)):
        assert client.request(method, path, content=body, headers=headers).status_code == 401
    answer = client.patch("/images/x", content=body, headers={**ADMIN, **json_body})
    assert (answer.status_code, answer.json()["code"]) == (413, "metadata_too_large")


async def forever() -> dict[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError


async def trickle() -> dict[str, Any]:
    await asyncio.sleep(0.01)
    return {"type": "http.request", "body": b"x", "more_body": True}


async def flood() -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return {"type": "http.request", "body": bytes(5000), "more_body": True}


async def gone() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def read(receive, *, bodies: Bodies | None = None, body_s: float = 60) -> int:
    """Reads a body; returns how many bytes came, if it ends well."""
    request = Request({"type": "http", "headers": []}, receive)
    with (bodies or Bodies(8, 10**9)).coming(None) as body:
        async for _ in body.chunks(request, body_s=body_s):
            pass
        return body.received


@pytest.mark.parametrize("receive", [forever, trickle])
def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch, receive):
    monkeypatch.setattr(admission, "STALL_S", 0.2)
    with pytest.raises(UploadStalledError):
        asyncio.run(read(receive))


def test_a_body_of_any_speed_must_end_in_time_and_before_its_connection():
    with pytest.raises(UploadStalledError):
        asyncio.run(read(flood, body_s=0.2))
    with pytest.raises(MalformedRequestError):
        asyncio.run(read(gone))


def test_time_that_the_service_takes_is_not_the_clients(monkeypatch):
    monkeypatch.setattr(admission, "STALL_S", 0.1)

    async def busy() -> int:
        left = [b"x"] * 20

        async def receive():
            more = bool(left)
            return {"type": "http.request", "body": left.pop() if more else b"", "more_body": more}

        request = Request({"type": "http", "headers": []}, receive)
        with Bodies(1, 10**9).coming(None) as body:
            async for _ in body.chunks(request, body_s=60):
                await asyncio.sleep(0.02)
            return body.received

    assert asyncio.run(busy()) == 20


@pytest.mark.parametrize("bound", [Bodies(4, 10**9), Bodies(1000, 4)], ids=["count", "bytes"])
def test_the_slowest_body_is_given_up_for_one_that_comes_at_once(monkeypatch, bound):
    """However many trickle, a body that comes at once is read."""
    monkeypatch.setattr(admission, "SPARED_S", 0.05)

    async def all_of_them() -> None:
        slow = [asyncio.create_task(read(trickle, bodies=bound)) for _ in range(4)]
        await asyncio.sleep(0.1)

        async def whole():
            return {"type": "http.request", "body": b"xxxx", "more_body": False}

        assert [await read(whole, bodies=bound) for _ in range(3)] == [4, 4, 4]
        await asyncio.sleep(0.05)
        ended = [task for task in slow if task.done()]
        assert ended
        for task in slow:
            task.cancel()
        for task in ended:
            with pytest.raises(QueueFullError, match="slowest"):
                await task

    asyncio.run(all_of_them())


def test_bodies_that_come_quickly_are_never_given_up():
    async def both() -> None:
        bodies = Bodies(1, 10**9)
        task = asyncio.create_task(read(flood, bodies=bodies))
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError, match="at once"):
            await read(flood, bodies=bodies)
        assert not task.done()
        task.cancel()

    asyncio.run(both())


def test_a_field_that_only_mentions_a_filename_is_no_file(client):
    files = {"file": ("a.png", picture()), "my_filename": (None, "x")}
    answer = client.post("/search", files=files)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


def test_a_place_is_refused_while_the_queue_has_none_whoever_filled_it():
    waiting = 0
    admission = Admission(2, lambda: waiting)
    with admission.place():
        pass
    waiting = 2
    with pytest.raises(QueueFullError), admission.place():
        pass
    waiting = 1
    with (
        admission.place(),
        admission.place(),
        pytest.raises(QueueFullError),
        admission.place(),
    ):
        pass


def test_one_address_gets_half_of_the_places():
    admission = Admission(4)
    with admission.place("192.0.2.1"), admission.place("192.0.2.1"):
        with pytest.raises(QueueFullError, match="your address"):
            admission.check("192.0.2.1")
        with (
            admission.place("192.0.2.2"),
            admission.place(None),
            pytest.raises(QueueFullError, match="Too many"),
        ):
            admission.check("192.0.2.3")
        admission.check("192.0.2.3")
    with ExitStack() as stack:
        for _ in range(4):  # whose clients cannot be told apart
            stack.enter_context(admission.place(None))


def test_there_are_more_threads_than_places(client, settings):
    from anyio import to_thread

    async def total() -> float:
        return to_thread.current_default_thread_limiter().total_tokens

    assert client.portal.call(total) > settings.queue_size


def test_a_full_queue_answers_503_at_once_and_cheap_calls_still_work(clients, settings):
    gate = Gate()
    few = settings.model_copy(update={"queue_size": 4, "max_batch": 1})
    client = clients(few, encoders=Encoders(gate, max_batch=1, queue_size=4))
    with ThreadPoolExecutor(12) as pool:
        waiting = [
            pool.submit(client.post, "/search", files={"file": picture("mug", n)}) for n in range(4)
        ]
        wait_for(lambda: client.app.state.parts.services.encoders.default.queue_length == 3)
        refused = client.post("/search", files={"file": picture()})
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health/live").status_code == 200
        assert client.get("/images").status_code == 200
        gate.open.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 4
    assert client.post("/search", files={"file": picture()}).status_code == 200


def test_requests_that_arrive_together_share_batches(clients, settings):
    sizes: list[int] = []
    gate = Gate()
    encoders = Encoders(gate, on_batch=lambda size, _: sizes.append(size))
    client = clients(settings, encoders=encoders)
    with ThreadPoolExecutor(16) as pool:
        answers = [
            pool.submit(client.post, "/search", files={"file": picture("fish", n)})
            for n in range(16)
        ]
        wait_for(lambda: gate.taken + encoders.default.queue_length == 16)
        gate.open.set()
        assert all(answer.result().status_code == 200 for answer in answers)
    assert sum(sizes) == 16
    assert len(sizes) <= 3
