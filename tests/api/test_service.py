"""Health, metrics, info, keys, request ids, the shape of errors."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from lookalike import errors
from lookalike.api import monitoring
from lookalike.api.errors import status_of
from lookalike.api.main import create_app
from lookalike.api.monitoring import Sparse
from lookalike.api.security import load_admin_key
from lookalike.errors import ConfigurationError, LookalikeError
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.store.local.store import LocalStore
from tests.api.conftest import ADMIN, ADMIN_KEY, picture
from tests.waiting import PATIENCE_S


class Gate(ColorEncoder):
    """Waits before it extracts, until opened; fails where told to; counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.broken = False
        self.taken = 0

    def encode(self, batch):
        self.taken += len(batch)
        assert self.open.wait(PATIENCE_S)
        if self.broken:
            raise RuntimeError("planted")
        return super().encode(batch)


class Other(ColorEncoder):
    """Another model as far as its spec says."""

    def __init__(self) -> None:
        super().__init__()
        preprocess = replace(self.spec.preprocess, version=2)
        self.spec = replace(self.spec, model="other", preprocess=preprocess)


JOB = "0123456789abcdef"
ROUTES = [
    ("POST", "/search", "read"),
    ("GET", "/explain", "read"),
    ("POST", "/explain", "read"),
    ("POST", "/search/url", "read"),
    ("POST", "/search/batch", "read"),
    ("POST", "/embed", "read"),
    ("POST", "/v1/embeddings", "read"),
    ("POST", "/index", "write"),
    ("POST", "/index/archive", "write"),
    ("POST", "/index/folder", "write"),
    ("POST", "/index/manifest", "write"),
    ("GET", "/images", "read"),
    ("GET", "/images/x", "read"),
    ("PATCH", "/images/x", "write"),
    ("DELETE", "/images/x", "write"),
    ("POST", "/images/delete", "write"),
    ("POST", "/images/update", "write"),
    ("POST", "/images/forget", "write"),
    ("GET", "/images/x/file", "read"),
    ("GET", "/images/x/thumbnail", "read"),
    ("GET", "/images/x/similar", "read"),
    ("GET", "/duplicates", "read"),
    ("GET", "/collections", "read"),
    ("PUT", "/collections/x", "write"),
    ("POST", "/collections/x/rename", "admin"),
    ("DELETE", "/collections/x", "admin"),
    ("PUT", "/aliases/x", "admin"),
    ("DELETE", "/aliases/x", "admin"),
    ("GET", "/collections/x/count", "read"),
    ("GET", "/collections/x/facets", "read"),
    ("GET", "/collections/x/paths", "read"),
    ("GET", "/collections/x/vectors", "read"),
    ("DELETE", f"/collections/x/vectors/{JOB}", "admin"),
    ("POST", "/collections/x/tag", "write"),
    ("POST", "/collections/x/reembed", "admin"),
    ("POST", "/collections/x/rollback", "admin"),
    ("GET", "/collections/x/calibration", "read"),
    ("POST", "/collections/x/calibration", "admin"),
    ("DELETE", "/collections/x/calibration", "admin"),
    ("POST", "/feedback", "write"),
    ("GET", "/feedback", "read"),
    ("DELETE", f"/feedback/{JOB}", "write"),
    ("GET", "/jobs", "admin"),
    ("GET", f"/jobs/{JOB}", "write"),
    ("POST", f"/jobs/{JOB}/cancel", "write"),
    ("POST", "/backup", "admin"),
    ("GET", "/backup", "admin"),
    ("GET", "/audit", "admin"),
    ("GET", "/keys", "admin"),
    ("POST", "/keys", "admin"),
    ("DELETE", "/keys/x", "admin"),
    ("GET", "/info", "read"),
    ("GET", "/metrics", "read"),
    ("GET", "/health/live", "open"),
    ("GET", "/health/ready", "open"),
]


def test_the_table_of_routes_is_complete(client):
    documented = {
        (
            method.upper(),
            path.replace("{image_id}", "x")
            .replace("{name}", "x")
            .replace("{alias}", "x")
            .replace("{job_id}", JOB)
            .replace("{judgement_id}", JOB)
            .replace("{digest}", JOB)
            .replace("{key}", "x"),
        )
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert documented == {(method, path) for method, path, _ in ROUTES}


@pytest.mark.parametrize(("method", "path", "access"), ROUTES)
def test_keys_guard_what_they_should(clients, settings, method, path, access):
    client = clients(
        settings.model_copy(update={"read_key": type(settings.admin_key)("reader-key")})
    )

    def status(**headers: str) -> int:
        """The status by which the key was refused; 0 if it was let through."""
        answer = client.request(method, path, headers=headers)
        refused = any(code in answer.text for code in ("unauthorized", "forbidden"))
        return answer.status_code if refused else 0

    is_open, reads = access == "open", access in {"open", "read"}
    assert status() == (0 if is_open else 401)
    assert status(**{"X-API-Key": "wrong-key"}) == (0 if is_open else 401)
    assert status(**{"X-API-Key": "reader-key"}) == (0 if reads else 403)
    assert status(Authorization="Bearer reader-key") == (0 if reads else 403)
    assert status(**{"X-API-Key": ADMIN_KEY}) == 0
    assert status(authorization=f"bearer {ADMIN_KEY}") == 0


def test_without_a_read_key_reading_is_open_and_changing_is_not(client):
    assert client.get("/images").status_code == 200
    answer = client.post("/index", files={"files": picture()})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_key_beyond_ascii_works_and_a_wrong_one_is_no_fault(clients, settings):
    key = "schlüssel-鍵"
    client = clients(settings.model_copy(update={"admin_key": type(settings.admin_key)(key)}))
    for sent, status in ((key.encode(), 200), ("schlüssel".encode("latin-1"), 401)):
        answer = client.delete("/images/none", headers={"X-API-Key": sent})
        assert answer.status_code == (404 if status == 200 else 401)


def test_an_admin_key_is_made_once_and_kept_private(clients, settings):
    unset = settings.model_copy(update={"admin_key": None})
    first = clients(unset)
    path = settings.data_dir / "admin.key"
    key = path.read_text().strip()
    assert len(key) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.post("/index", headers={"X-API-Key": key}, files={"files": picture()}).is_success
    clients.stop(first)
    clients(unset)
    assert path.read_text().strip() == key


def test_an_admin_key_that_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    def fail(_):
        assert not (tmp_path / "admin.key").exists(), "a kill in this moment would leave half a key"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(ConfigurationError, match=r"No space left.*Set LOOKALIKE_ADMIN_KEY"):
            load_admin_key(tmp_path)
    assert list(tmp_path.iterdir()) == []
    key = load_admin_key(tmp_path)
    assert len(key) >= 32
    assert load_admin_key(tmp_path) == key
    assert [path.name for path in tmp_path.iterdir()] == ["admin.key"]


@pytest.mark.parametrize("links", [True, False])
def test_an_admin_key_that_came_meanwhile_stays(tmp_path, monkeypatch, links):
    link = os.link

    def link_late(source, target):
        target.write_text("another-key\n")
        if not links:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    assert load_admin_key(tmp_path) == "another-key"
    assert [path.name for path in tmp_path.iterdir()] == ["admin.key"]


def test_an_admin_key_needs_no_hard_links(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)
    key = load_admin_key(tmp_path)
    assert len(key) >= 32
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["admin.key"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/search", 405),
        ("GET", "/images/none", 404),
        ("GET", "/images?limit=x", 422),
        ("POST", "/index", 401),
        ("POST", "/search", 400),
        ("PATCH", "/images/x", 401),
    ],
)
def test_every_error_has_the_one_shape(client, method, path, status):
    answer = client.request(method, path, headers={"X-Request-ID": "my-id-1"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "my-id-1"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (body["status"], body["request_id"]) == (status, "my-id-1")


def test_every_error_class_has_a_code_of_its_own_and_a_status():
    def below(kind: type[LookalikeError]) -> list[type[LookalikeError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    kinds = [  # an HttpClient makes classes of its own with the codes of others
        kind for kind in below(errors.LookalikeError) if kind.__module__ == errors.__name__
    ]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert 400 <= status_of(kind) < 600


def test_a_request_id_that_could_forge_a_log_line_is_replaced(client):
    answer = client.get("/health/live", headers={"X-Request-ID": 'a" injected'})
    assert answer.headers["x-request-id"] != 'a" injected'


def test_a_collection_of_another_model_is_409_and_says_what_differs(clients, settings):
    first = clients(settings)
    first.post("/index", headers=ADMIN, files={"files": picture()}, data={"ids": "a"})
    clients.stop(first)
    second = clients(settings, encoders=Encoders(Other()))
    for answer in (
        second.post("/search", files={"file": picture()}),
        second.post("/index", headers=ADMIN, files={"files": picture("fish")}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "passport_mismatch")
        assert "other" in answer.json()["detail"]
        assert "color" in answer.json()["detail"]
    assert second.get("/images/a").status_code == 200
    assert second.get("/collections").json()["collections"][0]["searchable"] is False
    assert second.get("/health/ready").status_code == 200
    clients.stop(second)
    third = clients(settings)
    assert len(third.post("/search", files={"file": picture()}).json()["matches"]) == 1


def test_two_services_on_one_data_folder_are_refused(client, settings):
    with pytest.raises(errors.DataFolderInUseError, match="--server"):
        LocalStore(settings.data_dir)
    second = create_app(settings)
    from fastapi.testclient import TestClient

    with pytest.raises(errors.DataFolderInUseError), TestClient(second):
        pass
    assert client.get("/health/ready").status_code == 200


def test_ready_runs_the_canary_and_says_what_failed(clients, settings):
    gate = Gate()
    gate.open.set()
    quick = settings.model_copy(update={"ready_timeout": 0.5})
    client = clients(quick, encoders=Encoders(gate))
    client.app.state.parts.services.canary.kept_s = 0.0
    assert client.get("/health/ready").json() == {"status": "ok"}
    gate.broken = True
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert client.get("/health/live").status_code == 200
    gate.broken = False
    assert client.get("/health/ready").status_code == 200
    gate.open.clear()
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    gate.open.set()


def test_ready_notices_vectors_that_change(clients, settings):
    class Drifting(ColorEncoder):
        drift = False

        def encode(self, batch):
            vectors = super().encode(batch)
            return np.roll(vectors, 7, axis=1) if self.drift else vectors

    encoder = Drifting()
    client = clients(settings, encoders=Encoders(encoder))
    client.app.state.parts.services.canary.kept_s = 0.0
    assert client.get("/health/ready").status_code == 200
    encoder.drift = True
    assert client.get("/health/ready").status_code == 503


def test_a_failing_batch_answers_503_and_the_next_one_works(clients, settings):
    gate = Gate()
    gate.open.set()
    gate.broken = True
    client = clients(settings, encoders=Encoders(gate))
    answer = client.post("/search", files={"file": picture()})
    assert (answer.status_code, answer.json()["code"]) == (503, "embedding_failed")
    failed = client.post("/index", headers=ADMIN, files={"files": picture()})
    assert failed.status_code == 503
    gate.broken = False
    assert client.post("/search", files={"file": picture()}).status_code == 200


def test_methods_that_are_invented_share_one_label(client):
    for number in range(5):
        client.request(f"INVENT{number}", "/search")
    text = client.get("/metrics").text
    assert 'method="OTHER"' in text
    assert "INVENT" not in text


def test_figures_are_read_beside_the_event_loop(client, monkeypatch):
    asked, busy = threading.Event(), threading.Event()
    store = client.app.state.parts.services.store
    real = store.collections
    monkeypatch.setattr(
        store, "collections", lambda: asked.set() or (busy.wait(PATIENCE_S) and real())
    )
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(client.get("/metrics").status_code))
    asking.start()
    assert asked.wait(PATIENCE_S)
    started = time.monotonic()
    assert client.get("/health/live").status_code == 200
    assert time.monotonic() - started < PATIENCE_S
    assert not answers
    busy.set()
    asking.join()
    assert answers == [200]


def test_frequent_probes_share_one_canary(clients, settings):
    class Counting(ColorEncoder):
        calls = 0

        def encode(self, batch):
            Counting.calls += 1
            return super().encode(batch)

    client = clients(settings, encoders=Encoders(Counting()))
    started = time.monotonic()
    for _ in range(5):
        assert client.get("/health/ready").status_code == 200
    assert Counting.calls <= 1 + int(time.monotonic() - started)


def test_the_canary_searches_too(client, monkeypatch):
    def broken(*_args, **_options):
        raise errors.StorageError("planted")

    monkeypatch.setattr(client.app.state.parts.services.store, "search", broken)
    assert client.get("/health/ready").status_code == 503


def test_metrics_count_requests_stages_batches_queue_and_pictures(client, index):
    index(("a.png", picture()))
    client.post("/search", files={"file": picture()})
    text = client.get("/metrics").text
    for line in (
        'lookalike_requests_total{method="POST",route="/search",status="200"} 1.0',
        'lookalike_stage_seconds_count{call="search",stage="embed"} 1.0',
        "lookalike_batch_size_count 2.0",
        'lookalike_queue_length{model="color"} 0.0',
        'lookalike_images{collection="default"} 1.0',
    ):
        assert line in text


def test_two_encoders_of_one_model_are_one_figure(client):
    client.app.state.parts.services.encoders.add(ColorEncoder(grid=2))
    lines = client.get("/metrics").text.splitlines()
    assert sum(line.startswith("lookalike_queue_length{") for line in lines) == 1


def test_info_says_what_runs_here(client, index):
    index(("a.png", picture()))
    body = client.get("/info").json()
    assert body["models"][0]["modalities"] == ["image", "text"]
    assert body["models"][0]["passport"]["model"] == "color"
    assert body["collections"][0]["count"] == 1
    assert body["limits"]["max_file_bytes"] == 20_000_000
    assert body["store"]["kind"] == "local"


def test_docs_work_without_the_internet(client):
    page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for part in page.split('"'):
        if part.startswith("/static"):
            assert client.get(part).status_code == 200


def test_lines_that_clients_can_cause_are_logged_once_a_minute_with_a_count(monkeypatch):
    sparse = Sparse()

    def passes(text: str, level: int = logging.WARNING, name: str = "asyncio") -> str | None:
        record = logging.LogRecord(name, level, "", 0, text, None, None)
        return record.getMessage() if sparse.filter(record) else None

    assert passes("queue_full: a") == "queue_full: a"
    assert passes("queue_full: b") is None
    assert passes("socket.accept() out of system resource\nsocket: 1", logging.ERROR)
    assert passes("socket.accept() out of system resource\nsocket: 2", logging.ERROR) is None
    for _ in range(2):  # a fault of our own
        assert passes("unforeseen error", logging.ERROR, "lookalike.api.errors")
    monkeypatch.setattr(monitoring, "SPARSE_S", 0.0)
    assert passes("queue_full: c") == "queue_full: c (1 more since the last such line)"
    assert passes("queue_full: d") == "queue_full: d"
    for number in range(3 * monitoring.SPARSE_KINDS):
        passes(f"kind {number}")
    assert len(sparse._seen) <= monitoring.SPARSE_KINDS + 1
