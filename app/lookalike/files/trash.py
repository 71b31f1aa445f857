"""The trash of a data folder: files that a sweep took, kept for days before they are deleted.

`trash/DATE/` holds what was taken on that day (UTC), in the same tree as the data folder. So
`cp -r trash/DATE/. .` in the data folder brings all of it back. Its file `.seen` lists the dates on
which sweeps met it. They are counted, not compared: a clock that is far ahead for a while, or back
at 1970, is one wrong date, which makes nothing of the trash old.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors that say that no room is left."""

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_SEEN = ".seen"
_TOGETHER = 20_000  # before any is deleted, all rows are read

log = logging.getLogger(__name__)


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
        day = self._folder / _today()
        target = day / path.relative_to(self._data)
        with suppress(FileNotFoundError):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if _seen(day) - {day.name}:  # the clock went back: its days are counted anew
                    (day / _SEEN).unlink()
                path.replace(target)
            except OSError as exc:
                if exc.errno not in FULL or not needless:
                    raise
                path.unlink()

    def find(self, path: Path) -> Path | None:
        """Where the trash keeps a file of the data folder; the newest of several."""
        inside = path.relative_to(self._data)
        found = (day / inside for day in reversed(self._days()))
        return next((one for one in found if one.is_file()), None)

    def empty(
        self,
        named: Callable[[Iterable[str]], set[str]],
        *,
        days: int,
        stop: Callable[[], bool],
        short: Callable[[], bool],
    ) -> int:
        """Deletes what sweeps met on `days` days since, and more while the disk is `short` of room.

        A file comes back instead if a row names it, as `named` says of digests, and it has not been
        stored again since. Returns how many files were deleted.
        """
        deleted = 0
        due = [day for day in self._days() if _age(day) >= days]  # each is counted, whatever is due
        for folder in due + [day for day in self._days() if day not in due]:
            if stop() or not (folder in due or short()):
                break
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

    def _days(self) -> list[Path]:
        """The folders of days, by date."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = (one for one in self._folder.iterdir() if _DAY.fullmatch(one.name))
            return sorted(one for one in found if one.is_dir())
        return []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name != _SEEN)


def _age(folder: Path) -> int:
    """On how many dates a sweep met a folder, without the first of them; notes that of today."""
    try:
        seen, today = _seen(folder), _today()
        if today not in seen:
            with (folder / _SEEN).open("a", encoding="ascii") as file:
                file.write(f"{today}\n")
            seen.add(today)
    except OSError as exc:  # then it stays longer
        log.warning("The age of %s cannot be noted: %s", folder, exc)
        return 0
    return len(seen) - 1


def _seen(folder: Path) -> set[str]:
    """The dates on which sweeps met a folder."""
    with suppress(OSError):
        text = (folder / _SEEN).read_text("ascii", "replace")
        return {line for line in text.splitlines() if _DAY.fullmatch(line)}
    return set()


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
