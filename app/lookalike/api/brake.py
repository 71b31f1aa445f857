"""A brake on guessing keys: wrong keys are counted by address, and each waits its turn."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable

log = logging.getLogger(__name__)

FREE = 10  # wrong keys from one address that are answered at once
EVERY_S = 6.0  # in which an address gets back one of them
ALL_FREE, ALL_EVERY_S = 600, 0.1  # the same for all addresses together
ADDRESSES = 10_000  # that are remembered
LOG_EVERY_S = 10.0


class Brake:
    """Counts wrong keys; used from one thread.

    An address that sent too many has to wait. An address that sent any has to wait while all
    addresses together send too many; one that sent none never has to.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._due: OrderedDict[str, float] = OrderedDict()  # when an address has all tries back
        self._all_due = 0.0
        self._logged_at = -math.inf
        self._unlogged = 0

    def wait_s(self, address: str) -> int:
        """Whole seconds until the next key from an address is looked at; 0 for now."""
        now, due = self._now(), self._due.get(address, 0.0)
        if due <= now:
            return 0
        waits = (due - now - FREE * EVERY_S, self._all_due - now - ALL_FREE * ALL_EVERY_S)
        return max(0, math.ceil(max(waits)))

    def wrong(self, address: str) -> None:
        """Counts a wrong key."""
        now = self._now()
        most = now + 2 * FREE * EVERY_S
        self._due[address] = min(max(now, self._due.get(address, 0.0)) + EVERY_S, most)
        self._due.move_to_end(address)
        if len(self._due) > ADDRESSES:
            self._due.popitem(last=False)
        all_most = now + 2 * ALL_FREE * ALL_EVERY_S
        self._all_due = min(max(now, self._all_due) + ALL_EVERY_S, all_most)
        self._unlogged += 1
        if now - self._logged_at >= LOG_EVERY_S:
            log.warning("%d wrong keys were sent, the last from %s", self._unlogged, address)
            self._logged_at, self._unlogged = now, 0
