"""Lookalike: self-hosted image similarity search.

`Client` works on a data folder, `HttpClient` on a running service; see `lookalike.client`. A
`Part` is one thing of several to search for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.client.http import HttpClient
    from lookalike.client.local import Client
    from lookalike.services.queries import Part

__version__ = "0.1.0"
__all__ = ["Client", "HttpClient", "Part", "__version__"]

_MODULES = {
    "Client": "lookalike.client.local",
    "HttpClient": "lookalike.client.http",
    "Part": "lookalike.services.queries",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports the clients when they are first used: what they need is slow to import."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)
