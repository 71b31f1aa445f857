"""`lookalike sync` adds what is new, and deletes exactly what is gone after a dry run named it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from lookalike import Client
from lookalike.media.sources import PictureSource
from tests.api.conftest import picture
from tests.cli.test_manifest import ROWS, listed, write
from tests.servers import ADMIN_KEY, Server
from tests.unreadable import refuse
from tests.web import Web, page_of


def sync(lookalike: Any, *words: str, code: int = 0) -> dict[str, Any]:
    done = lookalike("sync", *words, "--json")
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(picture("mug", number))
    return folder


def test_a_folder(lookalike: Any, shop: Path, tmp_path: Path) -> None:
    sync(lookalike, str(shop))
    assert len(listed(lookalike, [])) == 6
    lookalike("index", str(shop / "5.png"))  # the same file, from the same folder
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(shop / "0.png", other / "copy.png")
    lookalike("index", str(other))
    ids = {one["path"]: key for key, one in listed(lookalike, []).items()}
    (shop / "0.png").unlink()  # it is still in the other folder
    (shop / "1.png").unlink()
    (shop / "2.png").write_bytes(picture("fish", 2))
    (shop / "3.png").write_bytes(b"broken")
    (shop / "4.png").rename(shop / "moved.png")
    (shop / "new.png").write_bytes(picture("fish", 9))
    named = sync(lookalike, str(shop), "--dry-run")["deleted"]
    done = sync(lookalike, str(shop), code=1)
    assert done["deleted"] == {ids["1.png"]: "1.png", ids["2.png"]: "2.png"}
    assert done["deleted"].items() <= named.items()
    assert named.keys() - done["deleted"].keys() <= {ids["3.png"]}, "broken: told by indexing alone"
    left = {one["path"] for one in listed(lookalike, []).values()}
    assert left == {"copy.png", "2.png", "5.png", "moved.png", "new.png"} | ({"3.png"} & left)
    assert ids["3.png"] in listed(lookalike, [])
    (shop / "3.png").write_bytes(picture("mug", 3))
    again = sync(lookalike, str(shop))
    assert (again["unchanged"], again["deleted"]) == (5, {})


def test_what_somebody_sent_stays_although_a_folder_had_it_too(
    lookalike: Any, shop: Path, tmp_path: Path
) -> None:
    with Client(tmp_path / "data") as client:  # as POST /index would, without a path
        sent = picture("mug", 0)
        source = PictureSource(filename="sent.png", size=len(sent), file=BytesIO(sent))
        (item,) = client._services.indexing.index([source])
    sync(lookalike, str(shop))
    for number in (0, 1):
        (shop / f"{number}.png").unlink()
    named = sync(lookalike, str(shop), "--dry-run")["deleted"]
    done = sync(lookalike, str(shop))
    assert named == done["deleted"]
    assert list(done["deleted"].values()) == ["1.png"]
    assert listed(lookalike, [])[str(item.id)]["path"] is None
    assert sync(lookalike, str(shop))["deleted"] == {}


def test_a_manifest_of_many_rows(lookalike: Any, shop: Path) -> None:
    rows = [{"id": f"p-{n}", "path": f"{n % 6}.png", "n": str(n)} for n in range(ROWS)]
    manifest = write(shop / "shop.csv", rows)
    named = sync(lookalike, str(manifest), "--dry-run")
    assert len(named["added"]) == ROWS
    assert sync(lookalike, str(manifest))["created"] == ROWS
    gone = {f"p-{n}" for n in range(0, ROWS, 50)}
    write(manifest, [row for row in rows if row["id"] not in gone])
    named = sync(lookalike, str(manifest), "--dry-run")
    assert named["deleted"].keys() == gone
    assert named["added"] == []
    assert len(listed(lookalike, [])) == ROWS
    done = sync(lookalike, str(manifest))
    assert done["deleted"] == named["deleted"]
    assert done["unchanged"] == ROWS - len(gone)
    assert listed(lookalike, []).keys() == {row["id"] for row in rows} - gone
    again = sync(lookalike, str(manifest))
    assert (again["unchanged"], again["deleted"]) == (ROWS - len(gone), {})


def test_rows_that_cannot_be_used_keep_their_pictures(lookalike: Any, shop: Path) -> None:
    manifest = write(shop / "shop.csv", [{"id": f"p-{n}", "path": f"{n}.png"} for n in range(3)])
    sync(lookalike, str(manifest))
    lines = ["id,path", "p-0,0.png", ",0.png", "p-0,1.png", "p-2,2.png"]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    named = sync(lookalike, str(manifest), "--dry-run")
    assert (named["added"], named["deleted"]) == ([], {})
    assert sync(lookalike, str(manifest), code=1)["deleted"] == {}
    assert list(listed(lookalike, [])) == ["p-0", "p-1", "p-2"]


def test_what_is_not_whole_deletes_nothing(
    lookalike: Any, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "inner").mkdir()
    (shop / "inner" / "a.png").write_bytes(picture("car", 1))
    sync(lookalike, str(shop))
    with monkeypatch.context() as patch:
        refuse(patch, shop / "inner")
        (shop / "0.png").unlink()
        assert "cannot be read" in sync(lookalike, str(shop), code=1)["refused"]
        assert sync(lookalike, str(shop), "--dry-run", code=1)["deleted"] == {}
    away = shop.with_name("away")
    shop.rename(away)
    assert lookalike("sync", str(shop)).exit_code != 0
    shop.mkdir()
    assert "mounted" in sync(lookalike, str(shop), code=1)["refused"]
    assert len(listed(lookalike, [])) == 7
    shutil.copy(away / "1.png", shop)
    assert "--delete-most" in sync(lookalike, str(shop), code=1)["refused"]
    assert len(listed(lookalike, [])) == 7
    named = sync(lookalike, str(shop), "--dry-run", code=1)
    assert "nothing would be deleted: 6 pictures of 7" in named["refused"]
    shown = lookalike("sync", str(shop), "--dry-run").stdout.splitlines()
    assert {f"gone {key} {name}" for key, name in named["deleted"].items()} < set(shown)
    assert len(listed(lookalike, [])) == 7
    done = sync(lookalike, str(shop), "--delete-most")["deleted"]
    assert (len(done), done) == (6, named["deleted"])
    manifest = write(shop / "shop.csv", [{"id": f"p-{n}", "path": "1.png"} for n in range(4)])
    sync(lookalike, str(manifest))
    manifest.write_text("id,path\np-0,1.png\np-1,1.png\np-2,1.png\nbroken\n", encoding="utf-8")
    assert "line 5" in sync(lookalike, str(manifest), code=1)["refused"]
    assert len(listed(lookalike, [])) == 5


SCRIPT = Path(__file__).parents[2] / "docs" / "how-to" / "catalog-sync" / "nightly.sh"


def test_the_nightly_sync_of_the_how_to(tmp_path: Path) -> None:
    web = Web()
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LOOKALIKE_DATA_DIR": str(tmp_path / "data"),
        "LOOKALIKE_MODEL": "color",
        "LOOKALIKE_FETCH_URLS": "true",
        "LOOKALIKE_FETCH_ALLOW": "127.0.0.1",
        "LOOKALIKE_FETCH_PORTS": str(web.port),
    }

    def night(
        *numbers: int, broken: str = "", words: list[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        rows = [
            {"id": f"mug-{n}", "url": f"{web.url}/{n}.png", "price": "9.50", "version": "1"}
            for n in numbers
        ]
        catalog = write(tmp_path / "catalog.csv", rows)
        with catalog.open("a", encoding="utf-8") as file:
            file.write(broken)
        environment = {**os.environ, **settings}
        ended = subprocess.run(
            ["sh", SCRIPT, catalog, *(words or [])], env=environment, check=False, cwd=tmp_path
        ).returncode
        assert ended == (1 if broken else 0)
        planned, done = (
            json.loads(Path(f"{catalog}.{name}.json").read_text()) for name in ("planned", "done")
        )
        return planned, done

    try:
        for number in range(4):
            web.pages[f"/{number}.png"] = page_of(picture("mug", number))
        planned, done = night(0, 1, 2)
        assert (len(planned["added"]), done["created"]) == (3, 3)
        web.requests.clear()
        planned, done = night(0, 2, 3)
        assert planned["added"] == [f"{web.url}/3.png"]
        assert planned["deleted"] == done["deleted"] == {"mug-1": f"{web.url}/1.png"}
        assert (done["created"], done["unchanged"], len(web.requests)) == (1, 2, 1)
        planned, done = night(0, 1, broken="no row\n")
        assert planned["refused"].replace("would be", "was") == done["refused"]
        assert (done["created"], done["deleted"]) == (1, {}), "what is new was added all the same"
        fetching = {"fetch_urls": True, "fetch_allow": "127.0.0.1", "fetch_ports": web.port}
        settings["LOOKALIKE_ADMIN_KEY"] = ADMIN_KEY
        with closing(Server(tmp_path / "data", **fetching)) as server:
            planned, done = night(0, 2, words=["--server", server.url])
        assert planned["deleted"].keys() == done["deleted"].keys() == {"mug-1", "mug-3"}
    finally:
        web.close()
