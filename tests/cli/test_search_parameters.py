"""`lookalike search --nprobe` and its kin, on a data folder and on a service."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lookalike.client.http import HttpClient
from lookalike.records import LIMITS, Effort
from lookalike.schemas import SearchOut
from lookalike.store.local.store import LocalStore
from tests.servers import ADMIN_KEY

FLAGS = ["--nprobe", "7", "--ef-search", "33", "--k-factor", "5"]
GIVEN: dict[str, Any] = {"nprobe": 7, "ef_search": 33, "k_factor": 5}


def test_flags_reach_the_store(lookalike, pictures, monkeypatch):
    assert lookalike("index", str(pictures)).exit_code == 0
    asked: list[Effort | None] = []
    real = LocalStore.search

    def watched(self, *args, effort=None, **options):
        asked.append(effort)
        return real(self, *args, effort=effort, **options)

    monkeypatch.setattr(LocalStore, "search", watched)
    query = str(pictures / "fish" / "fish-01-1.jpg")
    for flags in ([], FLAGS, ["--exact"]):
        done = lookalike("search", query, "--json", *flags)
        assert json.loads(done.stdout)["matches"][0]["filename"] == "fish-01-1.jpg"
    assert asked == [
        None,  # so that it may share a call with others
        Effort(**GIVEN),
        Effort(exact=True),
    ]


def test_a_service_is_sent_what_was_given_and_takes_it(lookalike, pictures, server, monkeypatch):
    place = ["--server", server.url, "--api-key", ADMIN_KEY, "--collection", "hard"]
    assert lookalike("index", str(pictures / "fish"), *place).exit_code == 0
    sent: list[dict[str, object]] = []
    real = HttpClient._call

    def watched(self, method, path, **options):
        body = options.get("data") or json.loads(options["content"])
        sent.append({name: body[name] for name in (*LIMITS, "exact") if name in body})
        if path == "/search/url":  # off on this service
            return answer
        return real(self, method, path, **options)

    monkeypatch.setattr(HttpClient, "_call", watched)
    query = str(pictures / "fish" / "fish-01-1.jpg")
    for flags in ([], [*FLAGS, "--exact"]):
        done = lookalike("search", query, "--json", *flags, *place)
        answer = json.loads(done.stdout)
        assert SearchOut.model_validate(answer).matches[0].filename == "fish-01-1.jpg"
    lookalike("search", "http://127.0.0.1/x.png", *FLAGS, *place)
    assert sent == [{}, {**GIVEN, "exact": True}, GIVEN]


@pytest.mark.parametrize("flag", ["--nprobe", "--ef-search", "--k-factor"])
@pytest.mark.parametrize("value", ["0", "70000", "x"])
def test_flags_out_of_their_range(lookalike, flag, value):
    done = lookalike("search", "x.png", flag, value)
    assert done.exit_code == 2
    assert flag in done.output
