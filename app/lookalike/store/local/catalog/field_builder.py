"""Builds the field index in the background, and notices which fields are worth one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from lookalike.errors import StorageError
from lookalike.store.filters import Filter
from lookalike.store.local.catalog.background import Background
from lookalike.store.local.catalog.connections import Connections
from lookalike.store.local.catalog.fields import (
    advance,
    complete_fields,
    field_states,
    register_automatic,
    register_fields,
    unfinished,
)
from lookalike.store.local.catalog.rows import CollectionRow

SLOW_S = 0.02
"""A filter that took longer than this counts against the fields that it named."""

SLOW_TIMES = 5
"""How often it must have, before a field is indexed by itself."""

_COUNTED = 1000  # fields that are counted at the same time
_READ_S = 50e-6  # what reading one row may take without a filter

log = logging.getLogger(__name__)


class FieldBuilder:
    """The fields that are indexed: named ones, and those that were filtered on slowly."""

    def __init__(
        self, connections: Connections, named: Sequence[str] = (), *, read_only: bool = False
    ) -> None:
        """Has the named fields of every collection indexed.

        Args:
            connections: The catalog's.
            named: Fields of every collection.
            read_only: Change nothing.
        """
        self.named = tuple(named)
        self._connections = connections
        self._read_only = read_only
        self._lock = threading.Lock()
        self._slow: dict[tuple[int, str], int] = {}
        self._wanted: list[tuple[int, str]] = []
        self._background = Background(
            "fields", self._step, undone="Fields are not indexed further for now"
        )
        if not read_only:
            self._register_named()
            self.wake()

    def close(self) -> None:
        """Stops after the step that is under way; the next start goes on."""
        self._background.close()

    def states(self, row: CollectionRow) -> dict[str, str]:
        """`complete` or `building` for each field of a collection that is indexed, by name."""
        with self._connections.read() as connection:
            return field_states(connection, row.id)

    def took(self, row: CollectionRow, where: Filter, seconds: float, *, read: int = 0) -> None:
        """Notes how long a filter took that let something pass.

        Args:
            row: The collection.
            where: The filter.
            seconds: The whole time.
            read: Rows that were read in this time because they pass.
        """
        if self._read_only or seconds - read * _READ_S < SLOW_S:
            return
        with self._connections.read() as connection:
            known = complete_fields(connection, row.id)
        with self._lock:
            if len(self._slow) > _COUNTED:
                self._slow.clear()
            for name in {condition.field for condition in where.conditions} - known.keys():
                times = self._slow[row.id, name] = self._slow.get((row.id, name), 0) + 1
                if times % SLOW_TIMES == 0:
                    self._wanted.append((row.id, name))
            wanted = bool(self._wanted)
        if wanted:
            self._background.wake()

    def wake(self) -> None:
        """Goes to work where there is some."""
        with self._connections.read() as connection:
            work = unfinished(connection)
        if work and not self._read_only:
            self._background.wake()

    def _register_named(self) -> None:
        try:
            with self._connections.write() as connection:
                found = connection.execute("SELECT id FROM collections WHERE name IS NOT NULL")
                for (number,) in found.fetchall():
                    register_fields(connection, number, self.named)
        except StorageError as exc:
            log.warning("Fields are not indexed before the next start: %s", exc)

    def _step(self) -> bool:
        """Builds or removes a little; False where all is done."""
        with self._lock:
            wanted, self._wanted = self._wanted, []
        with self._connections.write() as connection:
            for number, name in wanted:
                register_automatic(connection, number, name, named=self.named)
            advance(connection)
            work = unfinished(connection)
        if not work:
            self._connections.give_room_back()
        return work
