"""Keys that are made and revoked, what their scopes open, and the brake on wrong ones."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from lookalike.api.brake import ADDRESSES, ALL_FREE, FREE, Brake
from lookalike.bootstrap import open_access
from lookalike.config import Settings
from lookalike.records import Access, key_id
from lookalike.services.access import AccessService
from tests.api.conftest import ADMIN, picture
from tests.servers import Server
from tests.waiting import wait_for


@pytest.fixture
def beside(client: TestClient, settings: Settings) -> Iterator[AccessService]:
    """The keys of a running service's folder, as another process opens them."""
    with closing(open_access(settings)) as opened:
        yield opened


def make(client: httpx2.Client, name: str, scope: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/keys", headers=ADMIN, json={"name": name, "scope": scope, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def sending(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


def test_a_key_opens_what_its_scope_includes_and_no_more(client):
    calls = {
        "write": ("DELETE", "/images/none", 404),
        "admin": ("DELETE", "/collections/none", 404),
    }
    for scope in Access:
        key = make(client, f"key-{scope}", scope)["key"]
        for needed, (method, path, status) in calls.items():
            answer = client.request(method, path, headers=sending(key))
            if scope.includes(Access(needed)):
                assert answer.status_code == status
            else:
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
                text = answer.json()["detail"]
                assert f"scope {needed}" in text
                assert f"'key-{scope}' has scope {scope}" in text


def test_a_job_that_is_no_import_is_canceled_by_an_admin_alone(client, index):
    index(("a.png", picture()))
    job = client.post("/collections/default/reembed", headers=ADMIN, json={}).json()["id"]
    key = sending(make(client, "w", "write")["key"])
    assert client.get(f"/jobs/{job}", headers=key).status_code == 200
    assert client.post(f"/jobs/{job}/cancel", headers=key).status_code == 403
    assert client.post(f"/jobs/{job}/cancel", headers=ADMIN).status_code == 200


def test_a_key_is_shown_once(client):
    made = make(client, "ci", "write")
    assert re.fullmatch(r"lk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", made["key"])
    assert made["id"] == key_id(made["key"]) in made["key"]
    (listed,) = client.get("/keys", headers=ADMIN).json()["keys"]
    assert listed == {name: value for name, value in made.items() if name != "key"}


def test_names_are_unique_and_plain(client):
    make(client, "ci", "write")
    answer = client.post("/keys", headers=ADMIN, json={"name": "ci", "scope": "read"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    for name in ("", " ", "a b", "ä", "lk_1", "0123abcd", "../x", "x" * 65):
        answer = client.post("/keys", headers=ADMIN, json={"name": name, "scope": "read"})
        assert answer.status_code == 422, name
    assert len(client.get("/keys", headers=ADMIN).json()["keys"]) == 1


@pytest.mark.parametrize("by", ["name", "id", "key"])
def test_a_revoked_key_opens_nothing_from_the_answer_on(client, by):
    made = make(client, "photo_import", "write")
    assert client.delete("/images/none", headers=sending(made["key"])).status_code == 404
    which = key_id(made[by])
    assert client.delete(f"/keys/{which}", headers=ADMIN).status_code == 204
    answer = client.delete("/images/none", headers=sending(made["key"]))
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    answer = client.delete(f"/keys/{which}", headers=ADMIN)
    assert (answer.status_code, answer.json()["code"]) == (404, "key_not_found")


def test_keys_of_another_process_count_within_seconds(client, beside):
    _, text = beside.create("there", Access.WRITE)
    found = client.app.state.parts.keys.made.find
    wait_for(lambda: found(text))
    assert client.delete("/images/none", headers=sending(text)).status_code == 404
    assert [key["name"] for key in client.get("/keys", headers=ADMIN).json()["keys"]] == ["there"]
    beside.revoke("there")
    wait_for(lambda: not found(text))
    assert client.delete("/images/none", headers=sending(text)).status_code == 401


def test_an_expired_key_says_so_and_opens_nothing(client, beside, monkeypatch):
    soon = datetime.now(UTC) + timedelta(hours=1)
    made = make(client, "short", "write", expires_at=soon.isoformat())
    assert client.delete("/images/none", headers=sending(made["key"])).status_code == 404
    later = (soon + timedelta(seconds=1)).isoformat()
    monkeypatch.setattr("lookalike.store.access.utc_now", lambda: later)
    for _ in range(2 * FREE):  # a client that does not know is not braked
        answer = client.delete("/images/none", headers=sending(made["key"]))
        assert answer.status_code == 401
        assert "expired on" in answer.json()["detail"]
    (listed,) = client.get("/keys", headers=ADMIN).json()["keys"]
    assert listed["expired"]


def test_a_key_that_would_be_expired_at_once_is_refused(client):
    past = {"name": "x", "scope": "read", "expires_at": "2020-01-01T00:00:00Z"}
    answer = client.post("/keys", headers=ADMIN, json=past)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


@pytest.mark.parametrize("guarded", [False, True])
def test_a_read_key_does_not_close_reading_but_the_setting_does(clients, settings, guarded):
    client = clients(settings.model_copy(update={"require_key": guarded}))
    key = make(client, "reader", "read")["key"]
    assert client.get("/images").status_code == (401 if guarded else 200)
    assert client.get("/images", headers=sending(key)).status_code == 200
    assert client.get("/health/live").status_code == 200


def test_nothing_that_is_written_or_answered_repeats_a_key(tmp_path):
    server = Server(tmp_path / "data")
    try:
        made = make(server.http, "ci", "admin")
        key, digest = made["key"], hashlib.sha256(made["key"].encode())
        http = server.http
        answers = [
            http.get(f"/nowhere/{key}"),
            http.get(f"/keys/{key}"),
            http.delete("/images/none", headers=sending(key + "x")),
            http.delete("/images/none", headers=sending(key)),
            http.post("/keys", json={"name": key, "scope": "read"}),
            http.get("/images/x", params={"collection": key}),
            http.delete(f"/keys/{key}"),
            http.delete(f"/keys/{key}"),
        ]
        texts = [answer.text for answer in answers if not answer.is_success]
        assert len(texts) == len(answers) - 1
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        for hidden in (key[12:], ADMIN["X-API-Key"], digest.hexdigest()):
            assert not [text for text in texts if hidden in text]
            assert not [data for data in written if hidden.encode() in data]
        assert server.log.read_text().count(f"lk_{made['id']}_...") >= 4
    finally:
        server.close()


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_the_brake_waits_after_a_handful_and_forgives_with_time():
    clock = Clock()
    brake = Brake(clock)
    for _ in range(FREE):
        assert brake.wait_s("bad") == 0
        brake.wrong("bad")
    assert brake.wait_s("bad") == 0
    brake.wrong("bad")
    wait = brake.wait_s("bad")
    assert wait > 0
    assert brake.wait_s("good") == 0
    clock.time += wait
    assert brake.wait_s("bad") == 0


def test_the_brake_is_bounded_in_memory_and_in_time():
    clock = Clock()
    brake = Brake(clock)
    for number in range(2 * ADDRESSES):
        brake.wrong(f"address {number}")
    assert len(brake._due) == ADDRESSES
    for _ in range(1000):
        brake.wrong("worst")
    assert 0 < brake.wait_s("worst") <= 60


def test_many_addresses_together_wait_but_for_one_that_sent_nothing_wrong():
    clock = Clock()
    brake = Brake(clock)
    for number in range(ALL_FREE + 10):
        brake.wrong(f"address {number}")
    assert brake.wait_s("address 1") > 0
    assert brake.wait_s("good") == 0


def test_wrong_keys_are_braked_by_address_and_long_right_ones_pass(clients, settings, caplog):
    caplog.set_level(logging.WARNING)
    client = clients(settings)
    proxy = TestClient(client.app, client=("127.0.0.1", 50000))
    long = make(client, "long", "admin")["key"]

    def status(key: str, address: str = "192.0.2.1") -> int:
        headers = {"X-API-Key": key, "X-Forwarded-For": address}
        answer = proxy.delete("/images/none", headers=headers)
        if answer.status_code == 429:
            assert answer.json()["code"] == "too_many_attempts"
            assert int(answer.headers["retry-after"]) > 0
        return answer.status_code

    short = ADMIN["X-API-Key"]
    assert [status("wrong") for _ in range(FREE)] == [401] * FREE
    assert [status("wrong"), status("wrong" * 20), status(short)] == [429, 429, 429]
    assert status(long) == 404
    assert status(short, "192.0.2.2") == 404
    assert status(short, "2001:db8::1") == 404
    lines = [line for line in caplog.messages if "wrong keys were sent" in line]
    assert len(lines) == 1
    figures = client.get("/metrics").text
    assert re.search(rf"lookalike_wrong_keys_total {FREE + 2}\.0", figures)
