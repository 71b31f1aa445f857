"""Progress is drawn on a terminal and nowhere else."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from lookalike.cli.common import progress
with progress() as drawn:
    for done in range(4):
        drawn.report(done, 3, stage="indexing")
"""


def test_nothing_is_written_where_there_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_bar_is_drawn_on_a_terminal():
    script = f"import rich.console\nrich.console.Console.is_terminal = True\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b""
    assert b"indexing" in done.stderr
