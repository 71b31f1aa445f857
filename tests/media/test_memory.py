"""Pictures of every format under a limit on memory: decoded, or refused for lack of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import OutOfMemoryError, UnreadableImageError, lacks_memory
from lookalike.media import decode as decoding
from lookalike.media.decode import ImageLimits, decode_image
from tests.models.pictures import encode

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {"compress_level": 1}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {"method": 0}),
    "lossless": ("WEBP", {"method": 0, "lossless": True}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "avif": ("AVIF", {"speed": 10}),
    "heif": ("HEIF", {"quality": 50}),
    "jp2": ("JPEG2000", {}),
    "qoi": ("QOI", {}),
}

# Each try runs in a process of its own, which starts as small as this one is.
PROGRAM = """
import os, resource, sys
from pathlib import Path
from lookalike.errors import LookalikeError
from lookalike.media.decode import ImageLimits, decode_image, register_heif
from PIL import Image

Image.init()
register_heif()
most = resource.getrlimit(resource.RLIMIT_AS)[1]
for path in map(Path, sys.argv[1:]):
    data = path.read_bytes()
    for mib in (0, 2, 5, 9, 14):
        if (child := os.fork()) == 0:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, most))
            try:
                decode_image(data, limits=ImageLimits(), decode_size=2048)
                said = "ok"
            except LookalikeError as exc:
                said = exc.code
            finally:  # what comes now is the test's, and needs memory, too
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
            os.write(1, f"{path.name} {mib} {said}\\n".encode())
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            os.write(1, f"{path.name} {mib} ended-with-{status}\\n".encode())
"""


def test_too_little_memory_is_never_called_a_broken_picture(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((640, 640))
    decoding.register_heif()
    for name, (kind, options) in KINDS.items():
        (tmp_path / name).write_bytes(encode(picture, kind, **options))
    command = [sys.executable, "-c", PROGRAM, *map(str, sorted(tmp_path.iterdir()))]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == 5 * len(KINDS), ran.stderr
    wrong = [line for line in lines if line[2] not in {"ok", "out_of_memory"}]
    assert not wrong
    assert {name for name, _, said in lines if said == "out_of_memory"} == set(KINDS)


def test_a_broken_picture_is_called_broken_where_memory_is_there() -> None:
    data = encode(Image.new("RGB", (300, 300), "teal"), "JPEG", progressive=True)
    with pytest.raises(UnreadableImageError):
        decode_image(data[: len(data) // 2], limits=ImageLimits(), decode_size=300)


@pytest.mark.parametrize(
    "said",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate"),
        RuntimeError("std::bad_alloc"),
        OSError("out of memory when reading image file"),
        OutOfMemoryError("too little"),
    ],
)
def test_what_libraries_say_without_memory_is_understood(said: Exception) -> None:
    assert lacks_memory(said)
    outer = SystemError("returned a result with an exception set")
    outer.__cause__ = said
    assert lacks_memory(outer)


@pytest.mark.parametrize("said", [ValueError("broken"), OSError(28, "No space left on device")])
def test_other_errors_are_no_lack_of_memory(said: Exception) -> None:
    assert not lacks_memory(said)
