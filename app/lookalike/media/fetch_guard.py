"""Which addresses may be fetched, so that nobody sends the service into its own network."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import httpx2

from lookalike.errors import ConfigurationError, UrlNotAllowedError

MAX_LENGTH = 2048
"""Most characters of an address."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all of IPv6 that is given out (RFC 4291)
_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's own services, on an address that looks public
        "192.0.0.0/24",  # IETF protocol assignments (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "2001::/23",  # IETF protocol assignments, Teredo among them (RFC 2928, RFC 4380)
        "2002::/16",  # 6to4 (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
"""What older versions of Python's `ipaddress` call global, and what nobody means to reach."""

_REFUSED = (
    "The address leads to a host that is not known or not on the public internet; check its "
    "spelling. Hosts of your own network are fetched from where LOOKALIKE_FETCH_ALLOW names them"
)
"""One text for hosts that do not exist and hosts that are private: it tells nobody which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchGuard:
    """Decides about addresses, twice: as they are written, and by what DNS says they are.

    Attributes:
        ports: Ports that may be connected to.
        networks: Networks that are allowed although they are not public.
        hosts: Names, in lower case, that may stand for any address.
    """

    ports: frozenset[int] = frozenset(_DEFAULT_PORTS.values())
    networks: tuple[IPNetwork, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, *, ports: str, allow: str) -> Self:
        """Reads two settings separated by commas; raises `ConfigurationError` for other entries."""
        networks: list[IPNetwork] = []
        hosts: set[str] = set()
        for entry in _entries(allow):
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                hosts.add(_allowed_host(entry))
        return cls(
            ports=frozenset(_port(entry) for entry in _entries(ports)),
            networks=tuple(networks),
            hosts=frozenset(hosts),
        )

    def read(self, address: str) -> httpx2.URL:
        """Takes an address apart and checks it without DNS; raises `UrlNotAllowedError`."""
        try:
            url = httpx2.URL(address)
        except (httpx2.InvalidURL, ValueError) as exc:
            raise UrlNotAllowedError(
                "That is no address; send one such as https://example.com/photo.jpg"
            ) from exc
        return self._checked(url)

    def follow(self, url: httpx2.URL, location: str) -> httpx2.URL:
        """Where a redirect leads, checked as `read` does; from https to http none may lead."""
        try:
            target = self._checked(url.join(location))
        except (httpx2.InvalidURL, ValueError) as exc:
            raise UrlNotAllowedError(
                "The address leads on to what is no address; send the one it should lead to"
            ) from exc
        if (url.scheme, target.scheme) == ("https", "http"):
            raise UrlNotAllowedError(
                "The address leads on from https to http, where anyone on the way could change the "
                "picture; send the http address itself if that is wanted"
            )
        return target

    def check(self, host: str, answers: Sequence[str]) -> list[str]:
        """Checks the addresses that DNS gave for a host; connect to what is returned alone.

        Raises `UrlNotAllowedError` if there is none, or one is neither public nor allowed.
        """
        addresses = [_plain(ipaddress.ip_address(answer)) for answer in answers]
        allowed = host in self.hosts or all(self._reachable(address) for address in addresses)
        if not addresses or not allowed:
            raise UrlNotAllowedError(_REFUSED)
        return [str(address) for address in addresses]

    def _checked(self, url: httpx2.URL) -> httpx2.URL:
        if url.scheme not in _DEFAULT_PORTS:
            raise UrlNotAllowedError("Pictures are fetched from http:// and https:// alone")
        if len(str(url)) > MAX_LENGTH:
            raise UrlNotAllowedError(f"An address has at most {MAX_LENGTH:,} characters")
        if url.userinfo:
            raise UrlNotAllowedError(
                "The address holds a user or a password, which are not sent; leave them out"
            )
        if not _valid_host(url.raw_host.decode("ascii")):
            raise UrlNotAllowedError("The address names no valid host; check its spelling")
        port = _DEFAULT_PORTS[url.scheme] if url.port is None else url.port
        if port not in self.ports:
            raise UrlNotAllowedError(
                f"Port {port} is not fetched from; LOOKALIKE_FETCH_PORTS names those that are"
            )
        return url

    def _reachable(self, address: IPAddress) -> bool:
        return is_public(address) or any(address in network for network in self.networks)


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to a single host of the public internet.

    An IPv6 address that stands for an IPv4 address (mapped, or NAT64) is judged by that one;
    those of 6to4 and Teredo never pass.
    """
    address = _plain(address)
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _NEVER)
    )


def _plain(address: IPAddress) -> IPAddress:
    """An IPv4 address that is written as IPv6 (::ffff:1.2.3.4) as what it is."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _valid_host(host: str) -> bool:
    """Whether it is a DNS name or an IP address in its usual spelling.

    A name that ends in a number is an IPv4 address to some and a name to others (127.1, 0x7f.1,
    2130706433), so only four decimal numbers pass (as in https://url.spec.whatwg.org/#concept-ipv4-parser,
    without its leniency).
    """
    kind = ipaddress.IPv6Address if ":" in host else ipaddress.IPv4Address
    if ":" in host or _ENDS_IN_NUMBER.fullmatch(host):
        try:
            kind(host)
        except ValueError:
            return False
        return "%" not in host
    return _HOST.fullmatch(host) is not None


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _allowed_host(entry: str) -> str:
    host = entry.lower()
    if _HOST.fullmatch(host) is None or _ENDS_IN_NUMBER.fullmatch(host):
        raise ConfigurationError(
            f"LOOKALIKE_FETCH_ALLOW: {entry!r} is neither a network such as 10.0.0.0/8 nor a host "
            "name; separate several by commas"
        )
    return host


def _port(entry: str) -> int:
    if not (entry.isascii() and entry.isdigit() and 1 <= int(entry) <= 65535):
        raise ConfigurationError(
            f"LOOKALIKE_FETCH_PORTS: {entry!r} is no port; choose numbers from 1 to 65535, "
            "separated by commas"
        )
    return int(entry)
