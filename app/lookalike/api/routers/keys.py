"""Everything under /keys, and GET /audit."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime, ConfigDict, Field

from lookalike.api.audit import note
from lookalike.api.deps import PartsDep
from lookalike.api.errors import responses
from lookalike.api.routers.service import JobRoute
from lookalike.api.security import ADMIN
from lookalike.records import Access
from lookalike.schemas import AuditEntryOut, AuditOut, KeyOut, KeysOut, NewKeyOut, Schema

router = APIRouter()
_keys = APIRouter(prefix="/keys", tags=["keys"], route_class=JobRoute, dependencies=ADMIN)
_audit = APIRouter(tags=["keys"])

WhichKey = Annotated[
    str, Path(description="The key's name or id", pattern="^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
]


class KeyIn(Schema):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64, examples=["photo-import"])
    """What it is for; no two keys have the same name"""
    scope: Access = Field(examples=["write"])
    """What it may do; each scope includes those before it"""
    expires_at: AwareDatetime | None = Field(None)
    """From when it opens nothing; null: never"""


@_keys.get("", summary="List keys", responses=responses(401, 403, 503))
def list_keys(parts: PartsDep) -> KeysOut:
    """Those that were made and not revoked; not the keys of the settings."""
    return KeysOut(keys=[KeyOut.of(key) for key in parts.keys.made.list()])


@_keys.post(
    "",
    status_code=201,
    summary="Make a key",
    responses=responses(400, 401, 403, 408, 409, 413, 422, 503, 507),
)
def create_key(request: Request, asked: KeyIn, parts: PartsDep) -> NewKeyOut:
    """The answer is the only place that ever holds the key itself."""
    note(request, name=asked.name, scope=asked.scope)
    key, text = parts.keys.made.create(asked.name, asked.scope, expires_at=asked.expires_at)
    note(request, id=key.id, expires_at=key.expires_at)
    return NewKeyOut(**KeyOut.of(key).model_dump(), key=text)


@_keys.delete(
    "/{key}",
    status_code=204,
    summary="Revoke a key",
    responses=responses(401, 403, 404, 422, 503, 507),
)
def revoke_key(request: Request, key: WhichKey, parts: PartsDep) -> Response:
    """It opens nothing any more, from the answer on."""
    revoked = parts.keys.made.revoke(key)
    note(request, name=revoked.name, id=revoked.id)
    return Response(status_code=204)


@_audit.get(
    "/audit",
    summary="List changes",
    responses=responses(401, 403, 422, 503),
    dependencies=ADMIN,
)
def list_audit(
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most entries to return")] = 100,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the entries before", max_length=64)
    ] = None,
) -> AuditOut:
    """Who changed what, when, from where and with what outcome: the newest first."""
    entries, next_cursor = parts.services.audit.page(cursor=cursor or None, limit=limit)
    return AuditOut(entries=[AuditEntryOut(**one) for one in entries], next_cursor=next_cursor)


for part in (_keys, _audit):
    router.include_router(part)
