"""The whole application over real HTTP semantics, with an encoder that needs no weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lookalike.api.main import create_app
from lookalike.config import Settings
from scripts.samples import Sample, draw
from tests.settings import make_settings

ADMIN_KEY = "test-admin-key"
ADMIN = {"X-API-Key": ADMIN_KEY}


def picture(label: str = "mug", instance: int = 0, view: int = 0, *, form: str = "PNG") -> bytes:
    """A small drawn picture as a file."""
    out = io.BytesIO()
    draw(Sample(label, instance, view), size=(96, 72)).save(out, form)
    return out.getvalue()


def solid(
    color: tuple[int, int, int], size: tuple[int, int] = (16, 16), form: str = "PNG"
) -> bytes:
    """A picture of one color."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(
        data_dir=tmp_path / "data",
        model="color",
        admin_key=ADMIN_KEY,
    )


class Clients:
    """Makes running applications; those still running are shut down in the end."""

    def __init__(self) -> None:
        self._running: list[TestClient] = []

    def __call__(self, settings: Settings, **seams: Any) -> TestClient:
        client = TestClient(create_app(settings, **seams), raise_server_exceptions=False)
        client.__enter__()
        self._running.append(client)
        return client

    def stop(self, client: TestClient) -> None:
        self._running.remove(client)
        client.__exit__(None, None, None)

    def stop_all(self) -> None:
        for client in list(self._running):
            self.stop(client)


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients()
    yield made
    made.stop_all()


@pytest.fixture
def client(clients: Clients, settings: Settings) -> TestClient:
    return clients(settings)


@pytest.fixture
def index(client: TestClient) -> Callable[..., dict[str, Any]]:
    """Indexes pictures given as (filename, bytes) with the form fields given."""

    def send(*files: tuple[str, bytes], **fields: Any) -> dict[str, Any]:
        answer = client.post(
            "/index", headers=ADMIN, files=[("files", file) for file in files], data=fields
        )
        assert answer.status_code in {200, 201, 207}, answer.text
        return answer.json()

    return send
