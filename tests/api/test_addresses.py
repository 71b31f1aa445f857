"""Whose a request is, behind proxies too."""

from __future__ import annotations

import pytest
from fastapi import Request
from starlette.types import Scope

from lookalike.api.addresses import Proxies, client_address, group
from lookalike.config import load_settings, parse_networks
from lookalike.errors import ConfigurationError


def resolved(peer: str, *forwarded: str, trusted: str = "127.0.0.1,::1,10.0.0.0/8") -> Scope:
    headers = [(b"x-forwarded-for", text.encode()) for text in forwarded]
    headers.append((b"x-forwarded-proto", b"https"))
    scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": headers}
    Proxies(parse_networks(trusted)).resolve(scope)
    return scope


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),  # a socket for IPv6 and IPv4
        ("127.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),  # the client made up the first
        ("127.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7, 10.0.0.3"], "203.0.113.7"),  # two proxies
        ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:db8::5]:4711"], "2001:db8::5"),
        ("127.0.0.1", ["2001:db8::5"], "2001:db8::5"),
        ("127.0.0.1", ["10.0.0.9, 10.0.0.3"], "10.0.0.9"),  # a client inside, of no further proxy
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, 10.0.0.4, x" + "y" * 9000 + ", 10.0.0.3"], "10.0.0.3"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy of ours
        ("127.0.0.2", ["198.51.100.1"], "127.0.0.2"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(peer, forwarded, client) -> None:
    assert resolved(peer, *forwarded)["client"][0] == client


def test_the_scheme_is_believed_from_trusted_proxies_alone() -> None:
    assert resolved("127.0.0.1", "203.0.113.7")["scheme"] == "https"
    assert resolved("203.0.113.9", "198.51.100.1")["scheme"] == "http"
    assert resolved("127.0.0.1", "203.0.113.7", trusted="none")["client"][0] == "127.0.0.1"


def test_one_customer_of_ipv6_is_one_client() -> None:
    assert group("2001:db8:1:2::5") == group("2001:db8:1:2:ffff::6") == "2001:db8:1:2::/64"
    assert group("2001:db8:1:3::5") != group("2001:db8:1:2::5")
    assert group("::ffff:192.0.2.1") == group("192.0.2.1") == "192.0.2.1"
    assert group("fe80::1%eth0") == "fe80::/64"
    assert group("testclient") == "testclient"
    assert client_address(Request({"type": "http", "client": None})) == ""


def test_what_is_no_network_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"_TRUSTED_PROXIES: .*proxy"):
        load_settings(trusted_proxies="127.0.0.1,proxy.example")
