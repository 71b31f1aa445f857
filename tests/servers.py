"""Real services in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

ADMIN_KEY = "test-admin-key"
LOOKALIKE = Path(sys.executable).with_name("lookalike")


class Server:
    """`lookalike serve` on a free port; settings are given by name."""

    command: tuple[str | Path, ...] = (LOOKALIKE,)

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        named = {"data_dir": data_dir, "model": "color", "admin_key": ADMIN_KEY, **settings}
        self._environment = clean_environment() | {
            f"LOOKALIKE_{name.upper()}": str(value) for name, value in named.items()
        }
        self.http = httpx2.Client(
            base_url=self.url, headers={"X-API-Key": ADMIN_KEY}, timeout=60, trust_env=False
        )
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.command, "serve", "--port", str(self.port)],
                env=self._environment,
                cwd=self.data_dir.parent,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"the service ended: {self.log.read_text()[-3000:]}")
            try:
                if self.http.get("/health/ready").status_code == 200:
                    return process
            except httpx2.HTTPError:
                time.sleep(0.05)
        raise AssertionError("the service does not become ready")

    @property
    def memory(self) -> int:
        """Bytes of memory that the process itself holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def descriptors(self) -> int:
        """Files and connections that the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def restart(self) -> None:
        """Starts again on the same folder and port."""
        self.process = self._spawn()

    def close(self) -> None:
        """Ends the service however it is."""
        self.kill()
        self.http.close()


def clean_environment() -> dict[str, str]:
    """The environment without settings that were meant for another service."""
    return {name: text for name, text in os.environ.items() if not name.startswith("LOOKALIKE_")}
