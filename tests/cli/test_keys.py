"""`lookalike keys`, on a data folder, beside the service that owns it, and on a service."""

from __future__ import annotations

import json
import time

import pytest

from lookalike.errors import ConfigurationError, ConflictError, KeyNotFoundError
from tests.servers import ADMIN_KEY
from tests.waiting import wait_for


@pytest.fixture(params=["folder", "server"])
def place(request, server):
    """Flags for the service's own folder, and for the service."""
    if request.param == "folder":
        return ["--data-dir", str(server.data_dir)]
    return ["--server", server.url, "--api-key", ADMIN_KEY]


def test_a_key_is_made_used_listed_and_revoked_beside_a_service(lookalike, server, place):
    made = lookalike("keys", "create", "import", "--scope", "write", "--expires", "90d", *place)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key.startswith("lk_")
    assert "not shown again" in made.stderr

    def status(path: str) -> int:
        time.sleep(0.3)  # a client that is refused again and again is braked
        return server.http.delete(path, headers={"X-API-Key": key}).status_code

    wait_for(lambda: status("/images/none") == 404)
    assert status("/collections/none") == 403
    (listed,) = json.loads(lookalike("keys", "list", "--json", *place).stdout)
    assert (listed["name"], listed["scope"], listed["expired"]) == ("import", "write", False)
    table = lookalike("keys", "list", *place).stdout
    assert listed["id"] in table
    assert key not in table
    assert lookalike("keys", "revoke", key, *place).exit_code == 0
    wait_for(lambda: status("/images/none") == 401)
    assert json.loads(lookalike("keys", "list", "--json", *place).stdout) == []
    assert "no keys" in lookalike("keys", "list", *place).stderr
    entries = json.loads(lookalike("audit", "--json", "--limit", "1000", *place).stdout)
    by_command = {"local", "admin key"}
    made_and_gone = [one["call"] for one in entries if one["who"] in by_command]
    assert {"create_key", "revoke_key"} <= set(made_and_gone)
    assert "revoke_key" in lookalike("audit", *place).stdout
    assert "import" in {one["who"] for one in entries}  # its two calls
    assert key[12:] not in json.dumps(entries)


def test_a_read_key_says_whether_reading_needs_one(lookalike, place):
    made = lookalike("keys", "create", "look", "--scope", "read", "--json", *place)
    assert json.loads(made.stdout)["expires_at"] is None
    assert lookalike("keys", "revoke", "look", *place).exit_code == 0
    made = lookalike("keys", "create", "look", "--scope", "read", *place)
    assert "LOOKALIKE_REQUIRE_KEY" in made.stderr
    with pytest.raises(ConflictError):
        lookalike("keys", "create", "look", "--scope", "read", *place, catch_exceptions=False)
    assert lookalike("keys", "revoke", "look", *place).exit_code == 0
    with pytest.raises(KeyNotFoundError):
        lookalike("keys", "revoke", "look", *place, catch_exceptions=False)


@pytest.mark.parametrize("text", ["90", "d", "-1d", "0d", "1y", "999999d", "soon"])
def test_a_time_that_cannot_be_read_is_refused(lookalike, server, text):
    words = ["keys", "create", "x", "--scope", "read", "--expires", text]
    with pytest.raises(ConfigurationError, match="hours, days or weeks"):
        lookalike(*words, "--data-dir", str(server.data_dir), catch_exceptions=False)
