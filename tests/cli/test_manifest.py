"""`lookalike index` of manifests: files and addresses, on a data folder and on a service."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import picture, solid
from tests.servers import ADMIN_KEY, Server
from tests.web import Web, page_of

ROWS = int(os.environ.get("LOOKALIKE_TEST_MANIFEST_ROWS", "300"))


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shops").resolve()


@pytest.fixture
def shop(shops: Path) -> Iterator[Path]:
    folder = shops / "shop"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, web: Web, shops: Path) -> Iterator[Server]:
    """A service that fetches from this machine, and reads the shop's folder."""
    allowed = {"fetch_allow": "127.0.0.1", "fetch_ports": web.port, "import_dirs": shops}
    made = Server(tmp_path_factory.mktemp("service") / "data", fetch_urls=True, **allowed)
    yield made
    made.close()


@pytest.fixture(params=["folder", "server"])
def place(request: Any, web: Web) -> tuple[list[str], list[str]]:
    """Words for commands that read, and for those that index."""
    if request.param == "folder":
        return [], ["--fetch-urls", "--fetch-allow", "127.0.0.1", "--fetch-ports", str(web.port)]
    service: Server = request.getfixturevalue("service")
    service.http.delete("/collections/default")
    words = ["--server", service.url, "--api-key", ADMIN_KEY]
    return words, words


def write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return file


def counts(answer: Any) -> str:
    """How many became what, on a data folder or as a job."""
    found = json.loads(answer.stdout)
    if found.get("jobs"):
        return str(found["jobs"][0]["message"])
    states = ("created", "updated", "replaced", "unchanged", "failed")
    return ", ".join(f"{found[name]} {name}" for name in states if found.get(name))


def listed(lookalike: Any, words: list[str]) -> dict[str, dict[str, Any]]:
    found = lookalike("list", "--json", "--limit", "10000", *words)
    assert found.exit_code == 0, found.output
    return {one["id"]: one for one in json.loads(found.stdout)}


def test_files_and_addresses_with_ids_and_metadata(
    lookalike: Any, place: Any, shop: Path, web: Web
) -> None:
    reading, indexing = place
    (shop / "pics").mkdir()
    (shop / "pics" / "1.png").write_bytes(picture("mug", 1))
    web.pages["/2.png"] = page_of(picture("mug", 2))
    rows = [
        {"id": "mug-1", "path": "pics/1.png", "price": "12.50", "brand": "Acme"},
        {"id": "mug-2", "path": f"{web.url}/2.png", "price": "9", "brand": ""},
    ]
    manifest = write(shop / "shop.csv", rows)
    done = lookalike("index", str(manifest), "--metadata", '{"shop": 1}', "--json", *indexing)
    assert done.exit_code == 0, done.output
    assert "2 created" in counts(done)
    found = listed(lookalike, reading)
    assert found["mug-1"]["metadata"] == {"shop": 1, "price": 12.5, "brand": "Acme"}
    assert found["mug-1"]["path"] == "pics/1.png"
    assert found["mug-2"]["metadata"] == {"shop": 1, "price": 9}
    assert (found["mug-2"]["path"], found["mug-2"]["filename"]) == (f"{web.url}/2.png", "2.png")

    rows[0]["brand"] = "Other"
    write(manifest, rows)
    again = lookalike("index", str(manifest), "--metadata", '{"shop": 1}', "--json", *indexing)
    assert "1 updated" in counts(again)
    assert "1 unchanged" in counts(again)


def test_rows_that_fail_are_listed_and_end_nothing(
    lookalike: Any, place: Any, shop: Path, web: Web
) -> None:
    reading, indexing = place
    (shop / "bad.png").write_bytes(b"no picture")
    (shop / "good.png").write_bytes(picture("mug", 3))
    lines = [
        "id,path",
        "a,bad.png",
        "b,missing.png",
        "c,good.png,more",
        f"d,{web.url}/none.png",
        f"e,http://169.254.169.254:{web.port}/latest",
        "f,http://[::1/1.png",
        "not an id,good.png",
        "g,good.png",
    ]
    manifest = shop / "shop.csv"
    manifest.write_text("\n".join(lines), encoding="utf-8")
    done = lookalike("index", str(manifest), *indexing)
    assert done.exit_code == 1
    assert list(listed(lookalike, reading)) == ["g"]
    for part in ("bad.png", "missing.png", "3 cells", "404", "public internet", "[::1", "is no id"):
        assert part in done.output, part


def test_an_address_whose_row_has_its_version_is_not_fetched_again(
    lookalike: Any, place: Any, shop: Path, web: Web
) -> None:
    _, indexing = place
    for number in range(3):
        web.pages[f"/{number}.png"] = page_of(picture("fish", number))
    rows = [{"url": f"{web.url}/{n}.png", "id": f"f-{n}", "version": f"v{n}"} for n in range(3)]
    manifest = write(shop / "shop.csv", rows)
    assert "3 created" in counts(lookalike("index", str(manifest), "--json", *indexing))
    web.requests.clear()
    assert "3 unchanged" in counts(lookalike("index", str(manifest), "--json", *indexing))
    assert not web.requests
    web.pages["/1.png"] = page_of(picture("fish", 7))
    rows[1]["version"] = "v1b"
    write(manifest, rows)
    again = counts(lookalike("index", str(manifest), "--json", *indexing))
    assert ("1 replaced" in again, "2 unchanged" in again) == (True, True)
    assert len(web.requests) == 1


@pytest.mark.parametrize("version", [{}, {"version": "v1"}])
def test_an_address_is_sent_again_only_if_its_server_says_that_it_changed(
    lookalike: Any, place: Any, shop: Path, web: Web, version: dict[str, str]
) -> None:
    reading, indexing = place
    fields = ['ETag: "a"', "Last-Modified: Sat, 28 Nov 2026 01:02:03 GMT", None, 'ETag: W/"c d"']
    rows: list[dict[str, str]] = []
    web.validators.clear()
    for number, field in enumerate(fields):
        path = f"/v{number}.png"
        web.pages[path] = page_of(picture("fish", number))
        if field is not None:
            web.validators[path] = field
        rows.append({"url": web.url + path, "price": "1", **version})
    manifest = write(shop / "shop.csv", rows)
    run = ["index", str(manifest), "--json", *indexing]
    assert "4 created" in counts(lookalike(*run))
    before = listed(lookalike, reading)

    web.requests.clear()
    write(manifest, [row | {"price": "2"} for row in rows])  # so that each is asked for
    assert "4 updated" in counts(lookalike(*run))
    asked = sorted((head.split()[1], "\r\nIf-" in head) for head in web.requests)
    assert asked == [("/v0.png", True), ("/v1.png", True), ("/v2.png", False), ("/v3.png", True)]
    found = listed(lookalike, reading)
    assert {one["metadata"]["price"] for one in found.values()} == {2}
    assert {key: one["sha256"] for key, one in found.items()} == {
        key: one["sha256"] for key, one in before.items()
    }

    web.validators["/v0.png"] = 'ETag: "b"'
    web.pages["/v0.png"] = page_of(picture("mug", 9))
    lookalike("delete", next(key for key, one in found.items() if "v3" in one["path"]), *reading)
    write(manifest, [row | {"price": "3"} for row in rows])
    web.requests.clear()
    assert "2 created, 2 updated" in counts(lookalike(*run))
    assert [head.split()[1] for head in web.requests if "\r\nIf-" not in head].count("/v3.png") == 1


def test_addresses_need_fetching_and_files_need_import_dirs(
    lookalike: Any, shop: Path, server: Server, web: Web
) -> None:
    there = ["--server", server.url, "--api-key", ADMIN_KEY]
    addresses = write(shop / "urls.csv", [{"url": f"{web.url}/1.png"}])
    files = write(shop / "files.csv", [{"path": "1.png"}])
    for words, part in (
        ([str(addresses)], "LOOKALIKE_FETCH_URLS"),
        ([str(addresses), *there], "LOOKALIKE_FETCH_URLS"),
        ([str(files), *there], "LOOKALIKE_IMPORT_DIRS"),
    ):
        done = lookalike("index", *words)
        assert done.exit_code == 1
        text = done.output + str(done.exception)
        assert part in text


def test_a_service_reads_no_file_outside_of_its_folders(
    lookalike: Any, service: Server, shop: Path, tmp_path: Path
) -> None:
    service.http.delete("/collections/default")
    (tmp_path / "secret.png").write_bytes(picture("mug", 4))
    (shop / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [{"path": str(tmp_path / "secret.png")}, {"path": "../../secret.png"}]
    manifest = write(shop / "shop.csv", [*rows, {"path": "link.png"}])
    there = ["--server", service.url, "--api-key", ADMIN_KEY]
    done = lookalike("index", str(manifest), "--json", *there)
    job = json.loads(done.stdout)["jobs"][0]
    assert (job["errors"], job["done"]) == (3, 3)
    assert all("LOOKALIKE_IMPORT_DIRS" in text for text in job["error_texts"])


def test_a_manifest_of_many_rows_with_broken_ones(lookalike: Any, shop: Path) -> None:
    broken = ROWS // 50
    rows = []
    for number in range(ROWS):
        color = number % 256, number // 256 % 256, 77
        if number % 50 != 49:
            (shop / f"{number}.png").write_bytes(solid(color))
        rows.append({"id": f"p-{number}", "path": f"{number}.png", "price": str(number)})
    manifest = write(shop / "shop.csv", rows)
    first = lookalike("index", str(manifest), "--json")
    assert first.exit_code == 1
    assert counts(first) == f"{ROWS - broken} created, {broken} failed"
    failed = [one for one in json.loads(first.stdout)["items"] if one["status"] == "failed"]
    assert [one["given"] for one in failed] == [f"{n}.png" for n in range(49, ROWS, 50)]
    assert failed[0]["path"] == f"{manifest}:51"
    before = listed(lookalike, [])
    assert counts(lookalike("index", str(manifest), "--json")) == (
        f"{ROWS - broken} unchanged, {broken} failed"
    )
    assert listed(lookalike, []) == before


def test_a_running_service_is_synced(
    lookalike: Any, service: Server, shop: Path, web: Web, tmp_path: Path
) -> None:
    """A folder, whose pictures are sent, and a manifest, which the service works off."""
    service.http.delete("/collections/default")
    there = ["--server", service.url, "--api-key", ADMIN_KEY]

    def sync(path: Path, *words: str, code: int = 0) -> Any:
        done = lookalike("sync", str(path), "--json", *there, *words)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
        for number in range(5):
            (folder / f"{number}.png").write_bytes(picture("mug", number))
    assert sync(mine, "--dry-run")["added"] == [f"{n}.png" for n in range(5)]
    assert listed(lookalike, there) == {}
    assert sync(mine)["created"] == 5
    ids = {one["path"]: key for key, one in listed(lookalike, there).items()}
    service.http.post("/index", files={"files": ("sent.png", picture("mug", 0))})
    (other / "2.png").unlink()
    assert sync(other)["unchanged"] == 4, "the same paths below another root"
    for number in range(3):  # one that was sent, one that lies in the other folder, and another
        (mine / f"{number}.png").unlink()
    (mine / "3.png").write_bytes(picture("fish", 3))
    (other / "3.png").unlink()
    gone = {ids["2.png"]: "2.png", ids["3.png"]: "3.png"}
    named = sync(mine, "--dry-run")
    assert (named["added"], named["deleted"]) == (["3.png"], {ids["2.png"]: "2.png"})
    assert len(listed(lookalike, there)) == 5
    assert sync(other)["deleted"] == {}
    named = sync(mine, "--dry-run")
    done = sync(mine)
    assert named["deleted"] == done["deleted"] == gone
    assert (done["created"], done["unchanged"]) == (1, 1)
    assert ids["0.png"] in listed(lookalike, there)
    for number in range(6, 10):
        (mine / f"{number}.png").write_bytes(picture("fish", number))
    assert sync(mine)["created"] == 4
    for number in (3, 6, 7, 8):
        (mine / f"{number}.png").unlink()
    assert "--delete-most" in sync(mine, "--dry-run", code=1)["refused"]
    assert "--delete-most" in sync(mine, code=1)["refused"]
    service.http.delete("/collections/default")

    web.validators.clear()
    for number in range(4):
        web.pages[f"/{number}.png"] = page_of(picture("car", number))
    (shop / "4.png").write_bytes(picture("car", 4))
    rows = [{"id": f"p-{n}", "path": f"{web.url}/{n}.png"} for n in range(4)]
    manifest = write(shop / "shop.csv", [*rows, {"id": "p-4", "path": "4.png"}])
    assert len(sync(manifest, "--dry-run")["added"]) == 5
    assert "5 created" in sync(manifest)["job"]["message"]
    write(manifest, [*rows[1:], {"id": "p-5", "path": f"{web.url}/none.png"}])
    named = sync(manifest, "--dry-run")
    assert (named["added"], named["deleted"].keys()) == ([f"{web.url}/none.png"], {"p-0", "p-4"})
    done = sync(manifest, code=1)
    assert "404" in done["errors"][0]["reason"]
    assert done["deleted"] == named["deleted"]
    assert listed(lookalike, there).keys() == {"p-1", "p-2", "p-3"}
