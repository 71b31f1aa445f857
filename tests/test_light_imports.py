"""A test that needs no heavy library starts without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COLLECT = """
import sys
import pytest
code = pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]])
heavy = {"torch", "faiss", "schemathesis", "matplotlib", "scipy", "sklearn"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else int(code))
"""


def test_no_heavy_library_is_imported_to_collect_light_tests() -> None:
    light = ["tests/test_config.py", "tests/store/test_filters.py", "tests/api/test_images.py"]
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *light],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
