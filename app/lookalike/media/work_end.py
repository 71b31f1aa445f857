"""How work that takes long is told to end."""

from __future__ import annotations


class WorkEndedError(Exception):
    """The work is to end; never turned into an error of what was being read."""
