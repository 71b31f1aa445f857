"""Who a client is: its address, behind proxies that are trusted too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Scope

from lookalike.config import Network

LOCAL_BITS = 64  # of an IPv6 address are chosen by the client itself
LONGEST = 64  # characters of an address, with the name of a network interface


class Proxies:
    """The proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    def trusts(self, host: str) -> bool:
        """Whether a host is one of the proxies; its clients cannot be told apart by its address."""
        address = _address(host)
        return any(address in network for network in self._networks) if address else False

    def client_of(self, request: Request) -> str | None:
        """The client that a limit for each client counts; None if clients cannot be told apart.

        A proxy that says nothing of its clients may have many, and so may the machine itself.
        """
        client = request.scope.get("client")
        host = client[0] if client else ""
        return None if _address(host) is None or self.trusts(host) else group(host)

    def resolve(self, scope: Scope) -> None:
        """Puts the client's own address, and the scheme that it used, into a request's scope.

        Each proxy appends the address that it saw, so the client is the last address that is no
        trusted proxy. Whatever stands before it may be made up. An entry that is no address ends
        the search: the proxy that passed it on counts as the client.
        """
        client = scope.get("client")
        if not client or not self.trusts(client[0]):
            return
        headers = Headers(scope=scope)
        if (scheme := headers.get("X-Forwarded-Proto", "").strip()) in {"http", "https"}:
            scope["scheme"] = scheme
        hops = ",".join(headers.getlist("X-Forwarded-For")).split(",")
        for hop in reversed(hops):
            address = _address(_without_port(hop.strip()))
            if address is None:
                return
            scope["client"] = (str(address), 0)
            if not self.trusts(str(address)):
                return


def add_root_path(scope: Scope, root: str) -> None:
    """Puts a root path into a request's scope, and before its path if a proxy took it away."""
    scope["root_path"] = root
    if root and not scope["path"].startswith(f"{root}/"):
        scope["path"] = root + scope["path"]
        scope["raw_path"] = root.encode() + scope.get("raw_path", b"")


def client_address(request: Request) -> str:
    """The address that a client counts as in limits; one for each /64 network of IPv6.

    Empty if the server does not know it.
    """
    client = request.scope.get("client")
    return group(client[0]) if client else ""


@lru_cache(maxsize=4096)
def group(host: str) -> str:
    """The address as `client_address` gives it."""
    address = _address(host)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, LOCAL_BITS), strict=False))
    return host if address is None else str(address)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Parses an address, of IPv4 also where it is mapped into IPv6; None for anything else."""
    return _parsed(host) if len(host) <= LONGEST else None


@lru_cache(maxsize=4096)
def _parsed(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
