"""The front end of docs/how-to/browser-front-end.md: its page in a real browser, and its types."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.samples import Sample, draw
from tests.api.conftest import picture
from tests.servers import Server
from tests.waiting import wait_for

FRONT_END = Path(__file__).parent.parent / "docs" / "how-to" / "front-end"
CHROMIUM = Path("/usr/bin/chromium")
READ_KEY = "read-key-1"


class Pages(ThreadingHTTPServer):
    """Serves the how-to's page from an origin of its own."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), partial(Quiet, directory=FRONT_END))
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(timeout=30)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def pages():
    made = Pages()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pages: Pages):
    data = tmp_path_factory.mktemp("front-end") / "data"
    a_year = 31_536_000  # so that links change once a year, and not amid a test
    settings = {"read_key": READ_KEY, "cors_origins": pages.origin, "log_format": "json"}
    made = Server(data, **settings, link_lifetime=a_year)
    files = [("files", (f"mug-{n}.png", picture("mug", n))) for n in range(3)]
    assert made.http.post("/index", files=files).status_code == 201
    yield made
    made.close()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_the_page_searches_and_shows_pictures_that_need_no_key(pages, server, tmp_path):
    from playwright.sync_api import sync_playwright

    photo = tmp_path / "photo.png"
    draw(Sample("mug", 0, 1), size=(96, 72)).save(photo)

    def thumbnails() -> list[int]:
        """The status of every answer with a thumbnail so far."""
        lines = [line for line in server.log.read_text().splitlines() if "/thumbnail" in line]
        return [json.loads(line)["status"] for line in lines]

    def search(page, key: str) -> str:
        page.locator("#service").fill(server.url)
        page.locator("#key").fill(key)
        page.locator("#picture").set_input_files([])
        page.locator("#picture").set_input_files(photo)
        page.wait_for_function(
            "!['', 'Searching...'].includes(document.getElementById('said').textContent)"
        )
        return page.locator("#said").inner_text()

    def shown(page) -> int:
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        return page.evaluate("[...document.images].filter((image) => image.naturalWidth).length")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page()
        page.goto(f"{pages.origin}/index.html")
        assert search(page, "wrong-wrong").startswith("The key that was sent is not valid")
        assert search(page, READ_KEY) == "3 found"
        assert shown(page) == 3
        wait_for(lambda: len(thumbnails()) >= 3)
        page.reload()
        assert search(page, READ_KEY) == "3 found"
        assert shown(page) == 3
        assert thumbnails() == [200] * 3  # the browser has them
        page.goto(page.locator("#matches a").first.get_attribute("href") or "")
        assert page.evaluate("document.images[0].naturalWidth") == 96
        # The same page of another origin is told nothing.
        page.goto(f"{pages.origin.replace('127.0.0.1', 'localhost')}/index.html")
        assert search(page, READ_KEY) == "Failed to fetch"
        browser.close()


USE = """
import { connect } from "./client";
const { search, calls, address } = connect("http://localhost:8000", "key");
declare const file: File;
const found = await search({ file });
const score: number = found[0].score;
const source: string = address(found[0].thumbnail_url);
await search({ file: [file, file], file_weight: ["1", "-0.25"], offset: 10 });
await search({ text: ["red car"], id: ["a"], flip: false });
await search({ file, k: 5, nprobe: 4, filter: JSON.stringify({ label: "mug" }) });
const { data } = await calls.GET("/images", { params: { query: { limit: 5 } } });
const names: string[] = data!.images.map((image) => image.filename);
"""
WRONG = [
    "await search({});",
    "await search({ file, kk: 5 });",
    "await search({ k: 5 });",
    'await search({ text: "red car" });',
    'await search({ file, k: "five" });',
    "const text: string = found[0].score;",
    'await calls.GET("/images", { params: { query: { colection: "default" } } });',
]
"""Each must be an error."""


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_a_client_from_openapi_json_checks_what_is_sent_and_answered(server, tmp_path):
    folder = tmp_path / "front-end"
    shutil.copytree(FRONT_END, folder)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, check=False, capture_output=True, text=True, timeout=240
        )

    options = (
        "--prefer-offline",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--fetch-timeout=20000",
    )
    installed = run("npm", "install", "--no-package-lock", "--fetch-retries=0", *options)
    if installed.returncode:
        pytest.skip(f"npm cannot install what generates the client: {installed.stderr[-300:]}")
    made = run("node", "types.mjs", server.url)
    assert made.returncode == 0, made.stderr
    wrong = "".join(f"// @ts-expect-error\n{line}\n" for line in WRONG)
    (folder / "use.ts").write_text(USE + wrong)
    checked = run("npx", "tsc")
    assert checked.returncode == 0, checked.stdout
