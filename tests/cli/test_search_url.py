"""`lookalike search https://...`, on a data folder and on a running service."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import (
    ConfigurationError,
    FetchingDisabledError,
    ServerError,
    UrlNotAllowedError,
)
from tests.servers import ADMIN_KEY, Server
from tests.web import Web, page_of


@pytest.fixture(scope="module")
def web():
    made = Web()
    yield made
    made.close()


@pytest.fixture(scope="module")
def fetching(tmp_path_factory, web):
    """A service that fetches from this machine."""
    allowed = {"fetch_allow": "127.0.0.1", "fetch_ports": web.port}
    made = Server(tmp_path_factory.mktemp("fetching") / "data", fetch_urls=True, **allowed)
    yield made
    made.close()


@pytest.fixture
def address(web, pictures):
    web.pages["/mug.jpg"] = page_of((pictures / "mug" / "mug-01-0.jpg").read_bytes())
    return f"{web.url}/mug.jpg"


@pytest.fixture(params=["folder", "server"])
def place(request, tmp_path, web):
    if request.param == "folder":
        folder = ["--data-dir", str(tmp_path / "data")]
        allowed = ["--fetch-allow", "127.0.0.1", "--fetch-ports", str(web.port)]
        return folder, [*folder, "--fetch-urls", *allowed]
    server: Server = request.getfixturevalue("fetching")
    server.http.delete("/collections/default")
    words = ["--server", server.url, "--api-key", ADMIN_KEY]
    return words, words


def test_an_address_finds_its_picture(lookalike, place, pictures, address):
    words, fetching = place
    lookalike("index", str(pictures), "--folder-field", "label", *words)
    found = lookalike("search", address, "-k", "2", "--json", *fetching)
    assert found.exit_code == 0, found.output
    matches = json.loads(found.stdout)["matches"]
    assert (matches[0]["filename"], len(matches)) == ("mug-01-0.jpg", 2)
    some = ["--filter", '{"label": "car"}', "--min-score", "-0.5", "--group-by", "label"]
    only = lookalike("search", address, "--json", *some, *fetching)
    assert [match["metadata"]["label"] for match in json.loads(only.stdout)["matches"]] == ["car"]


def test_an_address_that_is_not_fetched_from(lookalike, place, pictures, web):
    words, fetching = place
    lookalike("index", str(pictures / "mug"), *words)
    for bad in ("http://10.0.0.1/a.jpg", "ftp://example.com/a.jpg", "https://example.com/\udcff"):
        done = lookalike("search", bad, *fetching)
        assert isinstance(done.exception, UrlNotAllowedError | ServerError), done.exception
        assert done.exit_code == 1


def test_off_unless_turned_on(lookalike, pictures, server, web, address):
    before = web.connections
    lookalike("index", str(pictures / "mug"))
    here = lookalike("search", address)
    assert isinstance(here.exception, FetchingDisabledError)
    there = lookalike("search", address, "--server", server.url, "--api-key", ADMIN_KEY)
    assert isinstance(there.exception, ServerError)
    for said in (here, there):
        assert "--fetch-urls" in str(said.exception)
    assert web.connections == before


@pytest.mark.parametrize("flag", [["--fetch-urls"], ["--fetch-allow", "10.0.0.0/8"]])
def test_how_a_service_fetches_is_its_own_to_say(lookalike, server, address, flag):
    done = lookalike("search", address, "--server", server.url, *flag)
    assert isinstance(done.exception, ConfigurationError)
    assert flag[0] in str(done.exception)


def test_the_picture_that_was_fetched_is_drawn(lookalike, tmp_path, web, pictures, address):
    assert lookalike("index", str(pictures)).exit_code == 0
    allowed = ["--fetch-urls", "--fetch-allow", "127.0.0.1", "--fetch-ports", str(web.port)]
    file = str(pictures / "mug" / "mug-01-0.jpg")
    assert lookalike("search", address, "--save", "url.png", *allowed).exit_code == 0
    assert lookalike("search", file, "--save", "file.png").exit_code == 0
    with Image.open(tmp_path / "url.png") as url, Image.open(tmp_path / "file.png") as own:
        box = (27, 60, 187, 220)
        assert np.array_equal(np.asarray(url.crop(box)), np.asarray(own.crop(box)))
        assert np.asarray(url.crop(box)).std() > 20
