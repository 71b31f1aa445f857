"""What may be fetched, against the registries of special addresses written out."""

from __future__ import annotations

import ipaddress
import re

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lookalike.errors import ConfigurationError, UrlNotAllowedError
from lookalike.media.fetch_guard import MAX_LENGTH, FetchGuard, is_public

GUARD = FetchGuard()

# https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-special-registry, and
# the multicast, reserved and not allocated blocks
PRIVATE_IPV4 = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 "
    "192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 "
    "198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 168.63.129.16/32"
)
PRIVATE_IPV6 = (
    "::/8 100::/8 200::/7 400::/6 800::/5 1000::/4 2001::/23 2001:db8::/32 2002::/16 "
    "3fff::/20 4000::/2 8000::/1"
)


def in_none_of(address: int, networks: str, bits: int) -> bool:
    for network in networks.split():
        start, _, length = network.partition("/")
        first = int(ipaddress.ip_address(start))
        if first <= address < first + 2 ** (bits - int(length)):
            return False
    return True


def borders(networks: str, bits: int) -> st.SearchStrategy[int]:
    """Addresses anywhere, and those around the ends of each network."""
    ends = []
    for text in networks.split():
        network = ipaddress.ip_network(text)
        first, last = int(network[0]), int(network[-1])
        ends += [first - 1, first, first + 1, last - 1, last, last + 1]
    inside = [end for end in ends if 0 <= end < 2**bits]
    return st.one_of(st.sampled_from(inside), st.integers(0, 2**bits - 1))


@given(borders(PRIVATE_IPV4, 32))
def test_ipv4(number):
    address = ipaddress.IPv4Address(number)
    expected = in_none_of(number, PRIVATE_IPV4, 32)
    assert is_public(address) == expected
    for prefix in ("::ffff:0:0", "64:ff9b::"):  # mapped, NAT64: judged by the address inside
        inside = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + number)
        assert is_public(inside) == expected
    sixtofour = ipaddress.IPv6Address((0x2002 << 112) + (number << 80))
    teredo = ipaddress.IPv6Address((0x20010000 << 96) + (number ^ 0xFFFFFFFF))
    compatible = ipaddress.IPv6Address(number)
    local_nat64 = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b:1::")) + number)
    assert not any(map(is_public, (sixtofour, teredo, compatible, local_nat64)))


@given(borders(PRIVATE_IPV6, 128))
def test_ipv6(number):
    address = ipaddress.IPv6Address(number)
    if address.ipv4_mapped is None and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert is_public(address) == in_none_of(number, PRIVATE_IPV6, 128)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001::200e"])
def test_the_internet_is_public(address):
    assert is_public(ipaddress.ip_address(address))
    assert GUARD.check("example.com", [address]) == [address]


@pytest.mark.parametrize(
    "answer",
    [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00:ec2::254",
        "ff02::1",
    ],
)
def test_no_answer_of_dns_may_be_private(answer):
    for answers in ([answer], ["8.8.8.8", answer], [answer, "8.8.8.8"]):
        with pytest.raises(UrlNotAllowedError, match="not known or not on the public internet"):
            GUARD.check("example.com", answers)


def test_a_mapped_address_is_compared_as_what_it_is():
    guard = FetchGuard.parse(ports="80", allow="127.0.0.1/32")
    assert guard.check("x.test", ["::ffff:127.0.0.1"]) == ["127.0.0.1"]
    with pytest.raises(UrlNotAllowedError):
        guard.check("x.test", ["::ffff:127.0.0.2"])


def test_an_allowed_name_may_stand_for_anything_but_must_be_known():
    guard = FetchGuard.parse(ports="80", allow="NAS.example")
    assert guard.check("nas.example", ["192.168.0.7"]) == ["192.168.0.7"]
    for host, answers in (("nas.example", []), ("other.example", ["192.168.0.7"])):
        with pytest.raises(UrlNotAllowedError):
            guard.check(host, answers)


@pytest.mark.parametrize(
    ("address", "host", "port", "target"),
    [
        ("http://example.com", "example.com", None, b"/"),
        ("HTTPS://Example.COM/a b?c=%C3%BC#d", "example.com", None, b"/a%20b?c=%C3%BC"),
        ("https://bücher.example/ü", "xn--bcher-kva.example", None, b"/%C3%BC"),
        ("http://my_bucket.example:80", "my_bucket.example", None, b"/"),
        ("https://8.8.8.8/x", "8.8.8.8", None, b"/x"),
        ("https://[2606:4700::1111]/x", "2606:4700::1111", None, b"/x"),
        ("http://example.com:443/", "example.com", 443, b"/"),
    ],
)
def test_addresses_as_people_write_them(address, host, port, target):
    url = GUARD.read(address)
    assert (url.raw_host.decode(), url.port, url.raw_path) == (host, port, target)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "http://"),
        ("photo.jpg", "http://"),
        ("//example.com/a.jpg", "http://"),
        ("file:///etc/passwd", "http://"),
        ("gopher://example.com/", "http://"),
        ("ftp://example.com/", "http://"),
        ("data:image/png;base64,AAAA", "http://"),
        (" https://example.com/", "http://"),
        ("http:///a", "no valid host"),
        ("http:a", "no valid host"),
        ("http://me:secret@example.com/", "password"),
        ("http://me@example.com/", "password"),
        ("http://example.com\\@127.0.0.1/", "password"),
        ("http://example.com:22/", "Port 22"),
        ("http://example.com:0/", "Port 0"),
        ("http://example.com:99999/", "Port 99999"),
        ("http://0x7f.1/", "no valid host"),
        ("http://0x7f000001/", "no valid host"),
        ("http://2130706433/", "no valid host"),
        ("http://127.1/", "no valid host"),
        ("http://0177.0.0.1/", "no address"),
        ("http://1.2.3.4.5/", "no valid host"),
        ("http://1.2.3.4./", "no valid host"),
        ("http://example.0x/", "no valid host"),
        ("http://127%2e0.0.1/", "no valid host"),
        ("http://a..b/", "no valid host"),
        ("http://-a.b/", "no valid host"),
        ("http://*.example.com/", "no valid host"),
        (f"http://{'a' * 64}.example/", "no valid host"),
        (f"http://{'a.' * 127}aa/", "no valid host"),
        ("http://[fe80::1%25eth0]/", "no valid host"),
        ("http://①②⑦.0.0.1/", "no address"),
        ("http://\ud800/", "no address"),
        ("http://[::1/", "no address"),
        ("http://[v1.x]/", "no address"),
        ("http://example.com/\r\nX: y", "no address"),
        ("http://example.com/" + "a" * MAX_LENGTH, "2,048"),
    ],
)
def test_addresses_that_are_never_fetched(address, why):
    with pytest.raises(UrlNotAllowedError, match=re.escape(why)):
        GUARD.read(address)


@given(
    st.one_of(st.text(), st.text().map("http://{}".format), st.text().map("https://a.b/{}".format))
)
@example("http://[")
@example("http://127。0。0。1/")
def test_whatever_is_written_gets_an_answer_or_a_refusal(text):
    for read in (GUARD.read, lambda it: GUARD.follow(httpx2.URL("https://example.com/a"), it)):
        try:
            url = read(text)
        except UrlNotAllowedError:
            continue
        assert url.scheme in {"http", "https"}
        assert url.port in {None, 80, 443}
        assert not url.userinfo
        assert re.fullmatch(r"[a-z0-9_.:-]+", url.raw_host.decode())


@pytest.mark.parametrize(
    "bad", ["10.0.0.0/33", "http://a", "a b", "127.1", "*.example.com", "a:80"]
)
def test_a_list_of_allowed_places_that_cannot_be_read(bad):
    with pytest.raises(ConfigurationError, match="LOOKALIKE_FETCH_ALLOW"):
        FetchGuard.parse(ports="80", allow=f"10.0.0.0/8,{bad}")


@pytest.mark.parametrize("bad", ["http", "0", "65536", "-1", "80-90", "8.0", "٣"])
def test_ports_that_are_none(bad):
    with pytest.raises(ConfigurationError, match="LOOKALIKE_FETCH_PORTS"):
        FetchGuard.parse(ports=f"80,{bad}", allow="")
