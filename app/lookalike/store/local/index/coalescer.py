"""Queries that wait together are searched together: a batch costs little more than one query."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from lookalike.store.local.index.flat_index import Found
from lookalike.store.vectors import Vectors

_APART = 2  # up to this many searches at a time are not worth joining


@dataclass(slots=True, eq=False)
class _Ticket:
    queries: Vectors
    k: int
    result: Future[list[Found]] = field(default_factory=Future)


class Coalescer:
    """Joins the queries of many threads into batches, without making a lone one wait.

    Few searches run side by side, each on its caller's thread. Where more come at once, they wait
    for one that searches for all who wait, while the next ones gather.

    Args:
        search: Takes (Q, dim) queries and k; gives Q results. Called on callers' threads.
    """

    def __init__(self, search: Callable[[Vectors, int], list[Found]]) -> None:
        self._search = search
        self._changed = threading.Condition()
        self._inside = 0
        self._leading = False
        self._waiting: list[_Ticket] = []

    def search(self, queries: Vectors, k: int) -> list[Found]:
        """Gives what `search` gives, and raises what it raises for the batch."""
        with self._changed:
            self._inside += 1
            crowded = self._inside > _APART
        try:
            return self._join(_Ticket(queries, k)) if crowded else self._search(queries, k)
        finally:
            with self._changed:
                self._inside -= 1

    def _join(self, ticket: _Ticket) -> list[Found]:
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: ticket.result.done() or not self._leading)
            if ticket.result.done():
                return ticket.result.result()
            self._leading = True
            batch, self._waiting = self._waiting, []
        try:
            self._serve(batch)
        finally:
            with self._changed:
                self._leading = False
                self._changed.notify_all()
        return ticket.result.result()

    def _serve(self, batch: list[_Ticket]) -> None:
        try:
            queries = np.concatenate([ticket.queries for ticket in batch])
            found = self._search(queries, max(ticket.k for ticket in batch))
        except BaseException as exc:
            for ticket in batch:
                ticket.result.set_exception(exc)
            return
        start = 0
        for ticket in batch:
            own = found[start : start + len(ticket.queries)]
            start += len(ticket.queries)
            ticket.result.set_result([(s[: ticket.k], seqs[: ticket.k]) for s, seqs in own])
