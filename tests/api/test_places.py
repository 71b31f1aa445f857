"""Paths over HTTP: sent with uploads, made by imports, answered beside file names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lookalike import HttpClient
from tests.api.conftest import ADMIN, picture
from tests.servers import ADMIN_KEY, Server


def send(client: TestClient, *names: str, **fields: Any) -> Any:
    content = {name: picture(name.split("@")[0]) for name in names}
    files = [("files", (name, data)) for name, data in content.items()]
    return client.post("/index", headers=ADMIN, files=files, data=fields)


def test_paths_are_kept_with_uploads(client: TestClient) -> None:
    answer = send(client, "mug@1", "fish", "mug@2", paths=json.dumps(["a/1.png", None, "b/2.png"]))
    assert answer.status_code == 201
    body = answer.json()
    assert (body["copies"], body["conflicts"]) == (1, 0)
    assert [item.get("copy_of") for item in body["items"]] == [None, None, "a/1.png"]
    listed = {one["filename"]: one for one in client.get("/images").json()["images"]}
    assert (listed["mug@1"]["path"], listed["mug@1"]["copies"]) == ("a/1.png", ["b/2.png"])
    assert (listed["fish"]["path"], listed["fish"]["copies"]) == (None, [])
    found = client.post("/search", files={"file": picture("mug")}).json()["matches"][0]
    assert (found["path"], found["copies"]) == ("a/1.png", ["b/2.png"])


def test_a_copy_with_other_metadata_is_told(client: TestClient) -> None:
    fields = {"paths": ["a/1.png", "b/2.png"], "metadata": '[{"label": "a"}, {"label": "b"}]'}
    for _ in range(2):
        body = send(client, "mug@1", "mug@2", **fields).json()
        assert (body["copies"], body["conflicts"]) == (1, 1)
        assert [item.get("metadata_kept") for item in body["items"]] == [None, True]
    assert client.get("/images").json()["images"][0]["metadata"] == {"label": "a"}


def test_equal_paths_of_two_roots_are_two(client: TestClient) -> None:
    for root in ("/one", "/two", "/two"):
        send(client, "mug", paths="1.png", root=root)
    image = client.get("/images").json()["images"][0]
    assert (image["path"], image["copies"]) == ("1.png", ["1.png"])
    assert "/two" not in client.get("/images").text, "roots are not told"


@pytest.mark.parametrize(
    "paths", [["a", "b"], "[1]", "[", '["a", "b"]', "../a", "/a", "a/../../b", "x" * 5000, "[{}]"]
)
def test_what_is_no_path_is_refused(client: TestClient, paths: Any) -> None:
    answer = send(client, "mug", paths=paths)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


@pytest.mark.parametrize("path", ["a\\b.png", "./a//b.png"])
def test_paths_are_written_with_slashes(client: TestClient, path: str) -> None:
    assert send(client, "mug", paths=path).status_code == 201
    assert client.get("/images").json()["images"][0]["path"] == "a/b.png"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    made = Server(folder / "data", import_dirs=str(folder))
    yield made
    made.close()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for path, number in (("a/1.png", 1), ("a/2.png", 2), ("b/1.png", 1), ("b/3.cr2", 3)):
        (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        colors = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colors).save(tmp_path / "photos" / path, "png")
    return tmp_path / "photos"


def test_a_client_sends_its_paths(service: Server, photos: Path) -> None:
    with HttpClient(service.url, ADMIN_KEY) as client:
        for _ in range(3):
            outcomes = client.index(photos, folder_field="label", collection="sent")
            assert [one.copy_of for one in outcomes if one.copy_of] == ["a/1.png"]
            assert sum(one.kept_metadata for one in outcomes) == 1
            assert outcomes.passed == {"raw": 1}
            listed = {one.path: (one.copies, one.metadata) for one in client.list("sent")}
            assert listed == {
                "a/1.png": (["b/1.png"], {"label": "a"}),
                "a/2.png": ([], {"label": "a"}),
            }
        for root in ("a", "b"):
            client.index(photos / root, collection="sent")
        assert len(list(client.list("sent"))) == 2


def test_a_copy_under_an_equal_path_of_another_folder_is_sent(
    service: Server, photos: Path
) -> None:
    with HttpClient(service.url, ADMIN_KEY) as client:
        client.index(photos / "a", photos / "b", collection="two")
        client.index(photos / "a", photos / "b", collection="two")
        copies = {one.path: one.copies for one in client.list("two")}
    assert copies == {"1.png": ["1.png"], "2.png": []}


def test_imports_exclude_and_tell(service: Server, photos: Path) -> None:
    folder = service.data_dir.parent / "mounted"
    photos.rename(folder)
    with HttpClient(service.url, ADMIN_KEY) as client:
        job = client.index_folder(str(folder), exclude=["2.*"], collection="mounted")
        ended = client.wait_for_job(job.id)
        counts = "1 created, 1 unchanged; 1 is a copy of others; passed over: 1 excluded, 1 raw"
        assert ended.message.endswith(f": {counts}")
        again = client.index_folder(
            str(folder), exclude=["2.*"], folder_field="label", collection="mounted"
        )
        message = client.wait_for_job(again.id).message
        assert "1 of them came with other metadata, and the first file's stays (b/1.png)" in message
        (image,) = client.list("mounted")
        assert (image.path, image.copies) == ("a/1.png", ["b/1.png"])
        for exclude in ([""], ["!a"], ["x" * 2000], ["a"] * 200):
            with pytest.raises(Exception, match=r"invalid|glob|exclude"):
                client.index_folder(str(folder), exclude=exclude, collection="mounted")
        for inside in (service.data_dir, service.data_dir / "images"):
            with pytest.raises(Exception, match="folder of Lookalike itself"):
                client.index_folder(str(inside), collection="mounted")
