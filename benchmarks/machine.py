"""The machine and the versions that a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from lookalike.cores import available_cores

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "avx_vnni", "bf16", "i8mm")
PACKAGES = (
    "lookalike", "numpy", "faiss-cpu", "torch", "torchvision", "openvino", "pillow", "hnswlib",
    "usearch",
)  # fmt: skip


def machine() -> dict[str, str]:
    """Processor, cores, memory, what its instruction set has for networks, and the system."""
    model, flags = processor()
    return {
        "processor": model,
        "cores": str(available_cores()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "instructions": " ".join(flag for flag in FLAGS if flag in flags) or "none of note",
        "bfloat16": "yes" if {"avx512_bf16", "amx_tile", "bf16"} & flags else "no",
        "vnni": "yes" if {"avx512_vnni", "avx_vnni", "i8mm"} & flags else "no",
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> tuple[str, set[str]]:
    """The processor's name and its instruction flags, both as Linux tells them."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # pragma: no cover  # not Linux
        return name, set()
    for line in lines:
        key, _, text = line.partition(":")
        if key.strip() == "model name":
            name = text.strip()
        elif key.strip() in {"flags", "Features"}:
            flags = set(text.split())
    return name, flags


def versions() -> dict[str, str]:
    """Python's, and of each package that is installed."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine_line() -> str:
    """Everything about the machine in one line."""
    about = machine()
    return (
        f"{about['processor']} ({about['system']}), {about['cores']} cores, {about['memory']}; "
        f"bfloat16 {about['bfloat16']}, VNNI {about['vnni']} ({about['instructions']})"
    )


def versions_line() -> str:
    """All versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())
