"""When a build that came to nothing is tried again."""

from __future__ import annotations

import time

_MORE_ROWS = 1.5
_FIRST_S = 600.0
_LONGEST_S = 6 * 3600.0


class Retries:
    """What failed for good waits for other rows; what may pass waits for some time, then longer."""

    def __init__(self) -> None:
        self._rows = 0
        self._pause = _FIRST_S
        self._at = 0.0

    def allowed(self, rows: int) -> bool:
        """Whether a build of so many rows may be tried now."""
        return rows >= self._rows and time.monotonic() >= self._at

    @property
    def waiting(self) -> bool:
        """Whether time alone will allow a build."""
        return time.monotonic() < self._at

    def failed(self, rows: int) -> None:
        """FAISS cannot build this of these rows: half as many more may do."""
        self._rows = int(rows * _MORE_ROWS) + 1

    def interrupted(self) -> None:
        """The disk was full, memory was short, a process was ended: that may pass."""
        self._at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_S)

    def succeeded(self) -> None:
        """Nothing is held against the next build."""
        self._rows, self._pause, self._at = 0, _FIRST_S, 0.0
