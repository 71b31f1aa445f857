"""Real services in processes of their own."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from tests.waiting import PATIENCE_S, wait_for

ADMIN_KEY = "test-admin-key"
LOOKALIKE = Path(sys.executable).with_name("lookalike")


class Server:
    """`lookalike serve` on a free port; settings are given by name."""

    command: tuple[str | Path, ...] = (LOOKALIKE,)

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / "server.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        named = {"data_dir": data_dir, "model": "color", "admin_key": ADMIN_KEY, **settings}
        self._environment = clean_environment() | {
            f"LOOKALIKE_{name.upper()}": str(value) for name, value in named.items()
        }
        self._environment.pop("COVERAGE_PROCESS_CONFIG", None)  # costs 0.8 s, and kill() loses it
        self.http = httpx2.Client(
            base_url=self.url, headers={"X-API-Key": ADMIN_KEY}, timeout=PATIENCE_S, trust_env=False
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

        def is_ready() -> bool:
            assert process.poll() is None, f"the service ended: {self.log.read_text()[-3000:]}"
            with suppress(httpx2.HTTPError):
                return self.http.get("/health/ready").status_code == 200
            return False

        try:
            wait_for(is_ready, state=lambda: f"not ready: {self.log.read_text()[-3000:]}")
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

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
        return self.process.wait(timeout=PATIENCE_S)

    def restart(self) -> None:
        """Starts again on the same folder and port."""
        self.process = self._spawn()

    def close(self) -> None:
        """Ends the service however it is."""
        self.kill()
        self.http.close()


def free_port() -> int:
    """A free port that no outgoing connection gets before a service listens on it."""
    chance = random.SystemRandom()  # hypothesis sets the seed of the other one
    while True:
        port = chance.randrange(20_000, 32_000)  # below the range that systems give them from
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment() -> dict[str, str]:
    """The environment without settings that were meant for another service."""
    ours = {name for name in os.environ if name.startswith("LOOKALIKE_")} - {"LOOKALIKE_CACHE_DIR"}
    return {name: text for name, text in os.environ.items() if name not in ours}
