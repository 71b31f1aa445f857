"""The trash of a data folder: files that a sweep took, kept for days before they are deleted.

`trash/DATE/` holds what was taken on that day (UTC), in the same tree as the data folder. So
`cp -r trash/DATE/. .` in the data folder brings all of it back.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors that say that no room is left."""

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_TOGETHER = 500


class Trash:
    """The folder `trash` of a data folder; made when it is needed. Raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._data = folder
        self._folder = folder / "trash"

    def take(self, path: Path, *, needless: bool = False) -> None:
        """Moves a file of the data folder to the trash of today; it may be gone already.

        On a disk so full that no folder can be made for it, one that is known to be `needless` is
        deleted: the trash would be emptied as well. Others stay, and this raises.
        """
        target = self._folder / _today().isoformat() / path.relative_to(self._data)
        with suppress(FileNotFoundError):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            except OSError as exc:
                if exc.errno not in FULL or not needless:
                    raise
                path.unlink()

    def find(self, path: Path) -> Path | None:
        """Where the trash keeps a file of the data folder; the newest of several."""
        inside = path.relative_to(self._data)
        found = (day / inside for day, _ in reversed(self._days()))
        return next((one for one in found if one.is_file()), None)

    def empty(
        self,
        named: Callable[[Iterable[str]], set[str]],
        *,
        days: int,
        stop: Callable[[], bool],
        short: Callable[[], bool],
    ) -> int:
        """Deletes what was taken `days` ago or earlier, and more while the disk is `short` of room.

        A file comes back instead if a row names it, as `named` says of digests, and it has not been
        stored again since. Returns how many files were deleted.
        """
        deleted = 0
        for folder, day in self._days():
            due = _today() - day >= timedelta(days=days)
            if stop() or not (due or short()):
                break  # later days are not due either
            files = _files(folder)
            while batch := list(islice(files, _TOGETHER)):
                wanted = named({path.stem for path in batch})
                for path in batch:
                    if stop():
                        return deleted
                    if path.stem in wanted and not self._place_of(path).exists():
                        self.put_back(path)
                    else:
                        path.unlink(missing_ok=True)
                        deleted += 1
            shutil.rmtree(folder, ignore_errors=True)  # folders that are empty now
        return deleted

    def put_back(self, found: Path) -> None:
        """Moves a file of the trash to where it lay, over what is there now."""
        place = self._place_of(found)
        place.parent.mkdir(parents=True, exist_ok=True)
        found.replace(place)

    def _place_of(self, found: Path) -> Path:
        _, *inside = found.relative_to(self._folder).parts  # without the day
        return self._data.joinpath(*inside)

    def _days(self) -> list[tuple[Path, date]]:
        """The folders of days, the oldest first."""
        with suppress(FileNotFoundError, NotADirectoryError):
            named = [one for one in self._folder.iterdir() if _DAY.fullmatch(one.name)]
            return [(one, date.fromisoformat(one.name)) for one in sorted(named)]
        return []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _today() -> date:
    return datetime.now(UTC).date()
