"""`lookalike keys` and `lookalike audit`: who may change what, and who did."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lookalike.cli.common import Json, Target, cell, client_flags, metadata_cell
from lookalike.errors import ConfigurationError
from lookalike.records import Access

keys = typer.Typer(
    help="Make, list and revoke keys; also beside the service that runs on the data folder.",
    add_completion=False,
    no_args_is_help=True,
)

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_READING_IS_OPEN = (
    "Everyone can read without a key unless the service runs with LOOKALIKE_REQUIRE_KEY=true or "
    "LOOKALIKE_READ_KEY."
)


@keys.command("create")
@client_flags("data_dir")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. photo-import")],
    *,
    target: Target,
    scope: Annotated[Access, typer.Option(help="What it may do; admin may do everything")],
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it is valid: 12h, 90d or 8w")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it; it is shown this once and kept nowhere."""
    expires_at = None if expires is None else _after(expires)
    with target.open() as client:
        made = client.create_key(name, scope, expires_at=expires_at)
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
        return
    until = f"until {_minutes(made.expires_at)} UTC" if made.expires_at else "without an end"
    typer.echo(
        f"The key {made.name} (id {made.id}) has scope {made.scope}, {until}. Keep it now: it is "
        "not shown again.",
        err=True,
    )
    if scope is Access.READ:
        typer.echo(_READING_IS_OPEN, err=True)
    typer.echo(made.key)


@keys.command("list")
@client_flags("data_dir")
def list_keys(target: Target, *, as_json: Json = False) -> None:
    """List the keys that were made and not revoked; those of the settings are not among them."""
    with target.open() as client:
        found = client.access_keys()
    if as_json:
        typer.echo(json.dumps([key.model_dump() for key in found], indent=2))
        return
    if not found:
        typer.echo("no keys were made yet; lookalike keys create makes one", err=True)
        return
    table = Table("id", "name", "scope", "made", "valid until")
    for key in found:
        end = _minutes(key.expires_at) if key.expires_at else ""
        shown = f"expired {end}" if key.expired else end
        table.add_row(key.id, cell(key.name), key.scope, _minutes(key.created_at), shown)
    Console().print(table)


@keys.command("revoke")
@client_flags("data_dir")
def revoke_key(
    keys: Annotated[list[str], typer.Argument(metavar="NAME|ID...", help="Keys to revoke")],
    *,
    target: Target,
) -> None:
    """Revoke keys; a running service refuses them within a second or two."""
    with target.open() as client:
        for key in keys:
            client.revoke_key(key)
    typer.echo(f"revoked {len(keys)}")


@client_flags("data_dir")
def audit(
    target: Target,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most changes to list")] = 100,
    as_json: Json = False,
) -> None:
    """List changes, newest first: who made them, from where, when, and how they ended."""
    with target.open() as client:
        entries = client.audit(limit=limit)
    if as_json:
        typer.echo(json.dumps([entry.model_dump() for entry in entries], indent=2))
        return
    table = Table("at (UTC)", "who", "from", "call", "outcome", "details")
    for one in entries:
        at = one.at[:19].replace("T", " ")
        shown = (one.who, one.address, one.call, one.outcome)
        table.add_row(at, *map(cell, shown), metadata_cell(one.details))
    Console().print(table)


def _after(text: str) -> datetime:
    """The moment so far from now. Raises `ConfigurationError`."""
    found = re.fullmatch(r"([1-9]\d{0,4})([hdw])", text)
    if found is None:
        raise ConfigurationError(
            f"--expires {text}: write a number of hours, days or weeks: 12h, 90d or 8w"
        )
    return datetime.now(UTC) + int(found[1]) * _UNITS[found[2]]


def _minutes(moment: str) -> str:
    return moment[:16].replace("T", " ")
