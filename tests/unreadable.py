"""Folders that cannot be read, though the tests may run as root, whom no permission binds."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def refuse(patch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Has the listing of these folders fail as for one who may not."""
    scandir, refused = os.scandir, {str(folder.resolve()) for folder in folders}

    def refusing(path: Any = ".") -> Any:
        if not isinstance(path, int) and os.path.realpath(os.fsdecode(path)) in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    patch.setattr(os, "scandir", refusing)
