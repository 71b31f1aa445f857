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
