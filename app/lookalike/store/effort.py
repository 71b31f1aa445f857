"""How hard an approximate index searches: set by the service or by a request."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from lookalike.errors import InvalidParameterError

LIMITS = {"nprobe": 65_536, "ef_search": 65_536, "k_factor": 1_000}
"""The parameters that are numbers, each with its maximum; the minimum is 1."""

_PAIR = re.compile(r"\s*([a-z_]+)\s*=\s*(\d{1,9})\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Search parameters. None leaves the choice to the index; a type ignores those it lacks.

    Attributes:
        nprobe: Lists of an inverted file (IVF) that are visited.
        ef_search: Candidates that an HNSW graph keeps while it searches.
        k_factor: Candidates that are scored exactly, for each match wanted.
        exact: Score every image; the other parameters then do nothing.

    Raises:
        InvalidParameterError: A number is out of range.
    """

    nprobe: int | None = None
    ef_search: int | None = None
    k_factor: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise InvalidParameterError(f"{name} is {value}; choose a number from 1 to {most}")

    @classmethod
    def parse(cls, text: str | None) -> Effort:
        """Parses `nprobe=16,k_factor=4`; an empty text sets nothing.

        Raises:
            InvalidParameterError: The text is malformed or names an unknown parameter.
        """
        values: dict[str, Any] = {}
        for pair in (text or "").split(",") if (text or "").strip() else []:
            found = _PAIR.fullmatch(pair)
            if not found or found[1] not in LIMITS or found[1] in values:
                raise InvalidParameterError(
                    f"{ascii(pair)[:80]} is no search parameter: write each of "
                    f"{', '.join(LIMITS)} at most once, e.g. nprobe=16,k_factor=4"
                )
            values[found[1]] = int(found[2])
        return cls(**values)

    def over(self, defaults: Effort) -> Effort:
        """These parameters, with those not given taken from `defaults`."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return Effort(
            **{name: getattr(defaults, name) if v is None else v for name, v in mine.items()}
        )

    def __str__(self) -> str:
        """The text that `parse` reads, or `exact`."""
        if self.exact:
            return "exact"
        given = ((name, getattr(self, name)) for name in LIMITS)
        return ",".join(f"{name}={value}" for name, value in given if value is not None)
