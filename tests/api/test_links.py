"""Links in answers: signed where reading needs a key, and below the root path."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.api.links import Links
from lookalike.api.main import create_app
from lookalike.api.security import load_link_secret
from tests.api.conftest import ADMIN, ADMIN_KEY, picture
from tests.settings import make_settings

READ = {"X-API-Key": "read-key-1"}
DAY = 86_400


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("links") / "data"
    given = {"admin_key": ADMIN_KEY, "read_key": READ["X-API-Key"]}
    app = create_app(make_settings(data_dir=folder, model="color", **given))
    with TestClient(app, raise_server_exceptions=False) as made:
        for collection in ("default", "other"):
            for name in ("mug", "clock"):
                files = [("files", (f"{name}.png", picture(name)))]
                data = {"ids": name, "collection": collection}
                assert made.post("/index", headers=ADMIN, files=files, data=data).is_success
        yield made


def record(client: TestClient) -> dict[str, Any]:
    return client.get("/images/mug", headers=READ).json()


def links_of(answer: Any) -> list[str]:
    """All links in an answer, wherever they are."""
    if isinstance(answer, dict):
        own = [text for name, text in answer.items() if name in {"image_url", "thumbnail_url"}]
        return own + [link for inner in answer.values() for link in links_of(inner)]
    if isinstance(answer, list):
        return [link for inner in answer for link in links_of(inner)]
    return []


def test_every_answer_has_links_that_open_without_a_key(client):
    file = {"file": ("q.png", picture())}
    patch = {"metadata": {"label": "mug"}}
    answers = [
        client.get("/images", headers=READ),
        client.get("/images/mug", headers=READ),
        client.get("/images/mug/similar", headers=READ),
        client.post("/search", headers=READ, files=file, data={"collection": "other"}),
        client.get("/duplicates?threshold=0.5&kind=near", headers=READ),
        client.patch("/images/mug", headers=ADMIN, json=patch),
    ]
    for answer in answers:
        assert answer.status_code == 200
        found = links_of(answer.json())
        assert found
        for link in found:
            shown = client.get(link)
            assert shown.status_code == 200
            who, age, immutable = shown.headers["Cache-Control"].split(", ")
            assert (who, immutable) == ("private", "immutable")
            assert DAY / 2 < int(age.removeprefix("max-age=")) <= 2 * DAY
            assert client.head(link).status_code == 200


def test_a_link_opens_nothing_else(client):
    link = record(client)["thumbnail_url"]
    others = [
        link.replace("/thumbnail", "/file"),
        link.replace("/mug/", "/clock/"),
        link.replace("collection=default", "collection=other"),
        f"{link}&collection=other",
        link.replace("/mug/thumbnail", "/mug"),
        link.replace("/mug/thumbnail", ""),
        link.replace("/mug/thumbnail", "/mug/similar"),
        link.replace("expires=", "expires=9"),
        link.replace("expires=", "expires=0"),
        link.replace("expires=", "expires=-"),
        link.split("&signature")[0],
        link.split("&expires")[0],
        link[:-1] + ("0" if link[-1] != "0" else "1"),
        link.split("&signature")[0] + "&signature=",
        link.split("&signature")[0] + "&signature=%C3%BC",
    ]
    for other in others:
        answer = client.get(other)
        assert answer.status_code in {401, 422}, other
        assert not answer.content.startswith((b"\x89PNG", b"\xff\xd8"))
        assert "v=" not in answer.text
    assert client.delete(link.replace("/thumbnail", "")).status_code in {401, 422}
    assert client.get(others[0]).json()["detail"].startswith("The link is not valid here")


def test_a_key_counts_for_more_than_a_link(client):
    link = record(client)["image_url"]
    broken = link[:-4] + "0000"
    assert client.get(broken, headers=READ).status_code == 200
    assert client.get(link, headers={"X-API-Key": "wrong-wrong"}).status_code == 401
    named = {"Authorization": "Bearer read-key-1"}
    assert client.get(broken, headers=named).status_code == 200


def test_a_link_expires(client):
    made = client.app.state.parts.links
    old = replace(made, now=lambda: time.time() - 3 * DAY)
    path = record(client)["image_url"].split("&expires")[0]
    expired = client.get(old(path))
    assert expired.status_code == 401
    assert expired.json()["detail"].startswith("The link has expired")
    young = replace(made, now=lambda: time.time() - DAY + 60)  # midnight may come meanwhile
    assert client.get(young(path)).status_code == 200


def signer(now: float, lifetime: int) -> Links:
    return Links(secret=b"secret", lifetime_s=lifetime, guarded=True, now=lambda: now)


def expiry(link: str) -> int:
    return int(link.split("expires=")[1].split("&", maxsplit=1)[0])


@settings(max_examples=200, database=None, deadline=None)
@given(st.floats(0, 4e9), st.integers(1, 31_536_000), st.floats(0, 1))
def test_a_link_stays_the_same_for_a_period_and_works_for_one_to_two(now, lifetime, share):
    path = "/images/a/file?collection=default&v=00"
    link = signer(now, lifetime)(path)
    assert lifetime < expiry(link) - now <= 2 * lifetime
    end = (now // lifetime + 1) * lifetime
    later = min(now + share * (end - now), end - 0.01)
    if later >= now:
        assert signer(later, lifetime)(path) == link
    assert signer(end, lifetime)(path) != link


def test_the_secret_is_kept_and_goes_with_the_read_key(tmp_path):
    first = load_link_secret(tmp_path, "read-key-1")
    assert load_link_secret(tmp_path, "read-key-1") == first
    assert load_link_secret(tmp_path, "read-key-2") != first
    assert (tmp_path / "links.key").stat().st_mode & 0o777 == 0o600
    assert len(first) == 32
    (tmp_path / "links.key").unlink()
    assert load_link_secret(tmp_path, "read-key-1") != first


@pytest.mark.parametrize("broken", ["folder", "empty", "nowhere"])
def test_a_secret_that_cannot_be_kept_lasts_for_the_process(tmp_path, broken):
    folder = tmp_path / "missing" if broken == "nowhere" else tmp_path
    if broken == "folder":
        (tmp_path / "links.key").mkdir()
    elif broken == "empty":
        (tmp_path / "links.key").touch()
    made = {load_link_secret(folder, None) for _ in range(2)}
    assert len(made) == 2
    assert all(len(one) == 32 for one in made)


@pytest.mark.parametrize(
    ("setting", "links_are_signed"),
    [
        ({}, False),
        ({"require_key": True}, True),
        ({"read_key": "r" * 8, "link_lifetime": 0}, False),
    ],
)
def test_links_are_signed_only_where_reading_needs_a_key(
    clients, tmp_path, setting, links_are_signed
):
    given = {"data_dir": tmp_path / "data", "model": "color", "admin_key": ADMIN_KEY}
    client = clients(make_settings(**given, **setting))
    files = [("files", ("mug.png", picture()))]
    assert client.post("/index", headers=ADMIN, files=files, data={"ids": "mug"}).is_success
    links = links_of(client.get("/images/mug", headers=ADMIN).json())
    assert all(("signature=" in link) == links_are_signed for link in links)
    opened = {client.get(link).status_code for link in links}
    assert opened == ({401} if setting.get("link_lifetime") == 0 else {200})
    assert os.path.exists(tmp_path / "data" / "links.key") == links_are_signed  # noqa: PTH110
    stale = "/images/mug/file?collection=default&expires=1&signature=00"
    assert client.get(stale).status_code == (401 if setting else 200)
