"""How hard a search looks, as form fields, in the address, and in a body of JSON."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Form, Query
from pydantic import ConfigDict, Field

from lookalike.api.schemas import Schema
from lookalike.records import DEFAULT_COLLECTION
from lookalike.services.search import MAX_K
from lookalike.store.effort import LIMITS, Effort

PARAMETERS = ("nprobe", "ef_search", "k_factor", "exact")
"""The names, in all three places."""

_MOST_NPROBE, _MOST_EF_SEARCH, _MOST_K_FACTOR = (
    LIMITS[name] for name in ("nprobe", "ef_search", "k_factor")
)

_NPROBE = "Of an IVF index: lists that are visited; the index's own if not given"
_EF_SEARCH = "Of an HNSW index: candidates kept on the way; the index's own if not given"
_K_FACTOR = "Of a compressed index: candidates scored exactly for each match; its own if not given"
_EXACT = "Score every picture, whatever the index"


async def _form_effort(
    nprobe: Annotated[int | None, Form(ge=1, le=_MOST_NPROBE, description=_NPROBE)] = None,
    ef_search: Annotated[int | None, Form(ge=1, le=_MOST_EF_SEARCH, description=_EF_SEARCH)] = None,
    k_factor: Annotated[int | None, Form(ge=1, le=_MOST_K_FACTOR, description=_K_FACTOR)] = None,
    exact: Annotated[bool, Form(description=_EXACT)] = False,
) -> Effort:
    return Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact)


async def _query_effort(
    nprobe: Annotated[int | None, Query(ge=1, le=_MOST_NPROBE, description=_NPROBE)] = None,
    ef_search: Annotated[
        int | None, Query(ge=1, le=_MOST_EF_SEARCH, description=_EF_SEARCH)
    ] = None,
    k_factor: Annotated[int | None, Query(ge=1, le=_MOST_K_FACTOR, description=_K_FACTOR)] = None,
    exact: Annotated[bool, Query(description=_EXACT)] = False,
) -> Effort:
    return Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact)


FormEffort = Annotated[Effort, Depends(_form_effort)]
QueryEffort = Annotated[Effort, Depends(_query_effort)]


class UrlSearchIn(Schema):
    """A search by the picture at an address."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(
        min_length=1,
        max_length=2048,
        description="Where the picture is; http or https",
        examples=["https://example.com/photo.jpg"],
    )
    k: int = Field(10, ge=1, le=MAX_K, description="How many matches")
    min_score: float = Field(-1.0, ge=-1, le=1, description="Leave out matches below this cosine")
    filter: dict[str, Any] | None = Field(
        None, description="Conditions on metadata", examples=[{"label": "cat"}]
    )
    group_by: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Only the best of each value of this metadata field",
    )
    collection: str = Field(
        DEFAULT_COLLECTION, pattern="^[a-z][a-z0-9_]{0,62}$", description="Where to search"
    )
    nprobe: int | None = Field(None, ge=1, le=_MOST_NPROBE, description=_NPROBE)
    ef_search: int | None = Field(None, ge=1, le=_MOST_EF_SEARCH, description=_EF_SEARCH)
    k_factor: int | None = Field(None, ge=1, le=_MOST_K_FACTOR, description=_K_FACTOR)
    exact: bool = Field(False, description=_EXACT)

    @property
    def effort(self) -> Effort:
        """How hard to look."""
        return Effort(**{name: getattr(self, name) for name in PARAMETERS})
