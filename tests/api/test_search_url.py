"""POST /search/url, with a real server on this machine to fetch from."""

from __future__ import annotations

import json
import threading

import pytest
from pydantic import SecretStr

from lookalike.config import Settings
from lookalike.errors import ConfigurationError
from tests.api.conftest import ADMIN_KEY, picture
from tests.settings import make_settings
from tests.waiting import PATIENCE_S, wait_for
from tests.web import Web, endless, leads_to, page_of, silent

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def web():
    made = Web()
    made.pages["/mug.png"] = page_of(picture("mug"), "Content-Type: application/octet-stream")
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path, web) -> Settings:
    """Fetching is on, and from this machine allowed."""
    return make_settings(
        data_dir=tmp_path / "data",
        model="color",
        admin_key=ADMIN_KEY,
        fetch_urls=True,
        fetch_allow="127.0.0.1",
        fetch_ports=f"80,443,{web.port}",
        fetch_timeout=2,
        max_file_bytes=200_000,
    )


@pytest.fixture
def filled(client, index):
    for label in ("mug", "fish", "car"):
        index(
            *[(f"{label}-{n}.png", picture(label, n)) for n in range(3)],
            ids=[f"{label}-{n}" for n in range(3)],
            metadata=f'{{"label": "{label}"}}',
        )
    return client


def refusal(answer) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_it_answers_as_post_search_does(filled, web):
    sent = filled.post("/search", files={"file": picture("mug")}).json()
    answer = filled.post("/search/url", json={"url": f"{web.url}/mug.png"})
    assert answer.status_code == 200
    fetched = answer.json()
    assert fetched["matches"][0]["id"] == "mug-0"
    took = fetched.pop("took_ms")
    assert set(took) == {"fetch", *sent.pop("took_ms")}
    assert took["total"] >= took["fetch"] + took["embed"]
    assert fetched == sent


def test_every_parameter_means_what_it_means_there(filled, web):
    options = {"k": 5, "min_score": 0.2, "filter": {"label": "car"}, "group_by": "label"}
    (found,) = filled.post("/search/url", json={"url": f"{web.url}/mug.png", **options}).json()[
        "matches"
    ]
    assert found["metadata"] == {"label": "car"}
    other = filled.post("/search/url", json={"url": f"{web.url}/mug.png", "collection": "shoes"})
    assert refusal(other) == (404, "collection_not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_parameter"),
        ({"url": 3}, "invalid_parameter"),
        ({"url": "http://x", "size": 3}, "invalid_parameter"),
        ({"url": "http://x", "k": 0}, "invalid_parameter"),
        ({"url": "http://x", "k": "5"}, "invalid_parameter"),
        ({"url": "http://x", "min_score": 2}, "invalid_parameter"),
        ({"url": "http://x", "filter": "{}"}, "invalid_parameter"),
        ({"url": "http://x", "filter": {"a": {"like": "b"}}}, "invalid_filter"),
        ({"url": "http://x", "collection": "A"}, "invalid_parameter"),
        ({"url": "http://" + "a" * 2048}, "invalid_parameter"),
        ({"url": "file:///etc/passwd"}, "url_not_allowed"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "url_not_allowed"),
        ({"url": "http://10.0.0.1/"}, "url_not_allowed"),
        ({"url": "\ud800"}, "invalid_parameter"),
    ],
)
def test_bad_requests(client, body, code):
    answer = client.post("/search/url", content=json.dumps(body), headers=JSON)
    assert refusal(answer) == (422, code)


def test_parameters_in_the_calls_own_address_are_refused(client, web):
    answer = client.post("/search/url?k=3", json={"url": f"{web.url}/mug.png"})
    assert refusal(answer) == (422, "invalid_parameter")


def test_what_is_no_json(client):
    broken = client.post("/search/url", content=b'{"url":', headers=JSON)
    assert refusal(broken) == (400, "malformed_request")
    large = client.post("/search/url", content=b" " * 200_000, headers=JSON)
    assert refusal(large) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("page", "status", "code"),
    [
        (page_of(b"<html>", "Content-Type: image/png"), 415, "not_an_image"),
        (page_of(b""), 415, "not_an_image"),
        (page_of(picture()[:600]), 422, "unreadable_image"),
        (page_of(b"secret", status="403 Forbidden"), 502, "fetch_failed"),
        (leads_to("http://10.0.0.1/secret"), 422, "url_not_allowed"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(4096)), 413, "image_too_large"),
        (silent, 504, "fetch_timeout"),
    ],
    ids=["html", "nothing", "truncated", "403", "private", "endless", "silence"],
)
def test_what_an_address_may_answer(client, web, page, status, code):
    web.pages["/"] = page
    answer = client.post("/search/url", json={"url": web.url})
    assert refusal(answer) == (status, code)
    assert "secret" not in answer.text


def test_off_unless_turned_on(clients, settings, web):
    client = clients(settings.model_copy(update={"fetch_urls": False}))
    answer = client.post("/search/url", json={"url": f"{web.url}/mug.png"})
    assert refusal(answer) == (403, "fetching_disabled")
    assert "LOOKALIKE_FETCH_URLS" in answer.json()["detail"]
    assert web.connections == 0


def test_the_read_key_comes_first(clients, settings, web):
    client = clients(settings.model_copy(update={"read_key": SecretStr("a-read-key")}))
    body = {"url": f"{web.url}/mug.png"}
    assert refusal(client.post("/search/url", json=body)) == (401, "unauthorized")
    assert web.connections == 0
    keyed = client.post("/search/url", json=body, headers={"X-API-Key": "a-read-key"})
    assert keyed.status_code == 200


def test_slow_addresses_take_no_place_of_other_searches(clients, settings, web):
    client = clients(settings.model_copy(update={"queue_size": 1, "max_fetches": 2}))
    web.pages["/slow"] = silent
    answers = []

    def slow() -> None:
        answers.append(client.post("/search/url", json={"url": f"{web.url}/slow"}))

    threads = [threading.Thread(target=slow) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: web.connections >= 2)
    assert client.post("/search", files={"file": picture()}).status_code == 200
    full = client.post("/search/url", json={"url": f"{web.url}/mug.png"})
    assert refusal(full) == (503, "queue_full")
    assert full.headers["Retry-After"] == "1"
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [refusal(answer) for answer in answers] == [(504, "fetch_timeout")] * 2
    assert client.post("/search/url", json={"url": f"{web.url}/mug.png"}).status_code == 200


def test_nothing_is_fetched_for_a_full_queue(client, web):
    admission = client.app.state.parts.admission
    places = [admission.place() for _ in range(128)]
    for place in places:
        place.__enter__()
    answer = client.post("/search/url", json={"url": f"{web.url}/mug.png"})
    assert refusal(answer) == (503, "queue_full")
    assert web.connections == 0
    for place in places:
        place.__exit__(None, None, None)


@pytest.mark.parametrize("bad", [{"fetch_allow": "10.0.0.0/99"}, {"fetch_ports": "http"}])
def test_settings_that_cannot_be_read_stop_the_start(clients, settings, bad):
    with pytest.raises(ConfigurationError):
        clients(settings.model_copy(update=bad))
