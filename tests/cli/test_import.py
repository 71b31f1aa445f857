"""`lookalike index` of archives and of folders of the service's machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lookalike import client
from lookalike.client.http import HttpClient
from lookalike.errors import ConfigurationError
from lookalike.schemas import JobOut
from lookalike.services.feeds import ImportOptions
from lookalike.store.jobs import Job, JobStore
from scripts.samples import write_samples
from tests.servers import ADMIN_KEY, Server
from tests.services.archive_maker import write_archive
from tests.unreadable import refuse


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the service may read."""
    folder = tmp_path_factory.mktemp("mnt") / "photos"
    write_samples(folder, classes=["mug", "fish"], instances=2, views=2, size=(96, 72))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("service") / "data", import_dirs=photos.parent)
    yield made
    made.close()


@pytest.fixture
def there(server: Any) -> list[str]:
    server.http.delete("/collections/things")
    return ["--server", server.url, "--api-key", ADMIN_KEY, "--collection", "things"]


@pytest.fixture
def archive(tmp_path: Path, pictures: Path) -> Path:
    files = [
        (path.relative_to(pictures).as_posix(), path.read_bytes())
        for path in sorted(pictures.rglob("*.jpg"))
    ]
    return write_archive(tmp_path / "photos.zip", files)


def listed(lookalike: Any, *place: str) -> dict[str, dict[str, Any]]:
    answer = json.loads(lookalike("list", "--json", *place).stdout)
    images = answer["images"] if isinstance(answer, dict) else answer
    return {image["filename"]: image for image in images}


def test_an_archive_into_a_data_folder(lookalike: Any, archive: Path, pictures: Path) -> None:
    done = lookalike("index", str(archive), "--folder-field", "label")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == "18 created"
    images = listed(lookalike)
    assert images["mug-00-0.jpg"]["metadata"] == {"label": "mug"}
    folder = json.loads(lookalike("index", str(pictures), "--json").stdout)
    assert folder["unchanged"] == 18, "the ids are those that the files of a folder get"


def test_archives_beside_folders_and_files_that_fail(
    lookalike: Any, archive: Path, pictures: Path, tmp_path: Path
) -> None:
    bad = write_archive(tmp_path / "bad.tar.gz", [("x/bad.jpg", b"no picture")])
    done = lookalike("index", str(pictures / "mug"), str(archive), str(bad), "--json")
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert (answer["created"], answer["unchanged"], answer["failed"]) == (18, 6, 1)
    assert answer["items"][-1]["path"] == str(bad / "x" / "bad.jpg")
    assert "not a picture" in answer["items"][-1]["reason"]
    assert "jobs" not in answer


def test_what_cannot_be_indexed(lookalike: Any, tmp_path: Path) -> None:
    text = tmp_path / "notes.zip"
    text.write_text("no archive")
    done = lookalike("index", str(text))
    assert (done.exit_code, done.stdout.strip()) == (1, "1 failed")
    assert f"{text}: The file is no archive" in done.stderr
    for words in (["none.zip"], [], ["--on-server", "/mnt"]):
        assert isinstance(lookalike("index", *words).exception, ConfigurationError), words


def test_folders_that_cannot_be_read(
    lookalike: Any, pictures: Path, there: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, pictures / "mug")
    for place in ([], there):
        done = lookalike("index", str(pictures), *place)
        assert done.exit_code == 1, done.output
        assert "1 failed" in done.stdout
        assert "12 created" in done.stdout
        assert f"{pictures / 'mug'}: The folder cannot be read: Permission denied" in done.stderr
    alone = lookalike("index", str(pictures / "mug"))
    assert (alone.exit_code, alone.stdout.strip()) == (1, "1 failed")


def test_a_collection_that_is_deleted_between_two_services_stays_deleted(
    lookalike: Any, archive: Path
) -> None:
    assert lookalike("index", str(archive)).exit_code == 0
    options = asdict(ImportOptions())
    job = Job(
        id="1" * 16,
        kind="index_folder",
        parameters={**options, "path": "/mnt"},
        created_at="2026-11-20T09:00:00.000Z",
        updated_at="2026-11-20T09:00:00.000Z",
    )
    with closing(JobStore(Path("data") / "jobs.db")) as jobs:
        jobs.add(job)
    assert lookalike("delete", "--all", "--yes").exit_code == 0
    with closing(JobStore(Path("data") / "jobs.db")) as jobs:
        assert jobs.get(job.id).state == "canceled"


def test_an_archive_to_a_service(lookalike: Any, archive: Path, there: list[str]) -> None:
    words = ["--folder-field", "label", "--metadata", '{"year": 2026}']
    done = lookalike("index", str(archive), *words, *there)
    assert done.exit_code == 0, done.output
    assert "is done: photos.zip: 18 created" in done.stdout
    images = listed(lookalike, *there)
    assert images["fish-00-0.jpg"]["metadata"] == {"label": "fish", "year": 2026}
    again = json.loads(lookalike("index", str(archive), *there, "--json").stdout)
    (job,) = again["jobs"]
    assert (job["state"], job["message"]) == ("done", "photos.zip: 18 unchanged")
    assert again["items"] == []


def test_files_that_fail_on_a_service(lookalike: Any, tmp_path: Path, there: list[str]) -> None:
    bad = write_archive(tmp_path / "bad.tar.gz", [("x/bad.jpg", b"no picture")])
    done = lookalike("index", str(bad), *there)
    assert done.exit_code == 1
    assert "1 failed" in done.stdout
    assert "x/bad.jpg: " in done.stderr
    text = tmp_path / "notes.tar"
    text.write_text("no archive")
    refused = lookalike("index", str(text), *there)
    assert refused.exit_code == 1
    assert f"{text}: " in refused.stderr
    assert "not_an_archive" in refused.stderr


def test_a_folder_of_the_services_machine(
    lookalike: Any, photos: Path, pictures: Path, there: list[str]
) -> None:
    done = lookalike("index", "--on-server", str(photos), "--folder-field", "label", *there)
    assert done.exit_code == 0, done.output
    assert f"{photos}: 8 created" in done.stdout
    assert listed(lookalike, *there)["fish-01-1.jpg"]["metadata"] == {"label": "fish"}
    refused = lookalike("index", "--on-server", str(pictures), *there)
    assert refused.exit_code == 1
    assert f"{pictures}: " in refused.stderr
    assert "path_not_allowed" in refused.stderr


def test_an_archive_that_fails_harms_no_other(
    lookalike: Any, archive: Path, there: list[str], tmp_path: Path
) -> None:
    text, cut = tmp_path / "notes.zip", tmp_path / "cut.tar"
    text.write_text("no archive")
    write_archive(cut, [(f"{n}.jpg", b"x" * 5000) for n in range(9)])
    cut.write_bytes(cut.read_bytes()[:20_000])
    for place in ([], there):
        done = lookalike("index", str(text), str(archive), str(cut), *place)
        assert done.exit_code == 1
        assert "18 created" in done.stdout
        assert f"{text}: " in done.stderr
        assert "truncated" in done.stdout + done.stderr
        assert len(listed(lookalike, *place)) == 18


class Unsteady:
    """Ends a service when its job is asked for first, and perhaps begins it again."""

    def __init__(self, server: Server, patch: pytest.MonkeyPatch, *, restart: bool) -> None:
        self._server = server
        self._restart = restart
        self._ask = HttpClient.job
        self.thread: threading.Thread | None = None
        patch.setattr(HttpClient, "job", self.wrapped())

    def wrapped(self) -> Callable[[HttpClient, str], JobOut]:
        def job(backend: HttpClient, job_id: str) -> JobOut:
            if self.thread is None:
                self._server.kill()
                self.thread = threading.Thread(
                    target=self._server.restart if self._restart else int
                )
                self.thread.start()
            return self._ask(backend, job_id)

        return job


def test_a_service_that_restarts_is_watched_on(
    lookalike: Any,
    archive: Path,
    server: Server,
    there: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unsteady = Unsteady(server, monkeypatch, restart=True)
    done = lookalike("index", str(archive), *there, "--json")
    assert unsteady.thread is not None
    unsteady.thread.join()
    (job,) = json.loads(done.stdout)["jobs"]
    assert (job["state"], job["done"]) == ("done", 18), done.output
    assert f"job {job['id']} is queued" in done.stderr


def test_a_service_that_stays_away_is_not_waited_for(
    lookalike: Any,
    archive: Path,
    server: Server,
    there: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 1.0)
    with monkeypatch.context() as patch:
        Unsteady(server, patch, restart=False)
        done = lookalike("index", str(archive), *there)
    server.restart()
    assert done.exit_code == 1
    assert f"{archive}: " in done.stderr
    assert "does not answer" in done.stderr
    job_id = done.stderr.split("job ")[1].split()[0]
    assert f"Job {job_id} goes on where it was: GET /jobs/{job_id} says" in done.stderr


def test_ctrl_c_ends_the_watching_alone(
    lookalike: Any, archive: Path, there: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", interrupt)
        stopped = lookalike("index", str(archive), *there)
    assert stopped.exit_code == 130
    assert "goes on" in stopped.stderr
    assert lookalike("index", str(archive), *there).exit_code == 0
    assert len(listed(lookalike, *there)) == 18
