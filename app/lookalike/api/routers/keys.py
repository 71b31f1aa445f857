"""Everything under /keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, ConfigDict, Field

from lookalike.api.deps import PartsDep
from lookalike.api.errors import responses
from lookalike.api.routers.service import JobRoute
from lookalike.api.security import ADMIN
from lookalike.records import Access
from lookalike.schemas import KeyOut, KeysOut, NewKeyOut, Schema

router = APIRouter(prefix="/keys", tags=["keys"], route_class=JobRoute, dependencies=ADMIN)

WhichKey = Annotated[
    str, Path(description="The key's name or id", pattern="^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
]


class KeyIn(Schema):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64, examples=["photo-import"])
    """What it is for; no two keys have the same name"""
    scope: Access
    """What it may do; each scope includes those before it"""
    expires_at: AwareDatetime | None = Field(None, examples=["2027-01-31T00:00:00Z"])
    """From when it opens nothing; null: never"""


@router.get("", summary="List keys", responses=responses(401, 403, 503))
def list_keys(parts: PartsDep) -> KeysOut:
    """Those that were made and not revoked; not the keys of the settings."""
    return KeysOut(keys=[KeyOut.of(key) for key in parts.keys.made.list()])


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    responses=responses(400, 401, 403, 408, 409, 413, 422, 503, 507),
)
def create_key(asked: KeyIn, parts: PartsDep) -> NewKeyOut:
    """The answer is the only place that ever holds the key itself."""
    key, text = parts.keys.made.create(asked.name, asked.scope, expires_at=asked.expires_at)
    return NewKeyOut(**KeyOut.of(key).model_dump(), key=text)


@router.delete(
    "/{key}",
    status_code=204,
    summary="Revoke a key",
    responses=responses(401, 403, 404, 422, 503, 507),
)
def revoke_key(key: WhichKey, parts: PartsDep) -> Response:
    """It opens nothing any more, from the answer on."""
    parts.keys.made.revoke(key)
    return Response(status_code=204)
