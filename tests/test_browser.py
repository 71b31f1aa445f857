"""Swagger UI in a real browser, without the internet: every example works when it is pressed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.samples import Sample, draw
from tests.servers import ADMIN_KEY, Server

CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory):
    from playwright.sync_api import sync_playwright

    server = Server(tmp_path_factory.mktemp("browser") / "data")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        foreign: list[str] = []
        page.on(
            "request",
            lambda request: (
                foreign.append(request.url)
                if not request.url.startswith((server.url, "data:", "blob:"))
                else None
            ),
        )
        page.goto(f"{server.url}/docs")
        page.wait_for_selector(".opblock", timeout=30_000)
        yield page
        assert foreign == []
        browser.close()
    server.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    draw(Sample("mug", 0, 0), size=(96, 72)).save(path)
    return path


def press(page, operation: str, file: Path | None = None) -> int:
    """Opens an operation, gives it a file, presses Execute; returns the status that is shown."""
    block = page.locator(f"[id$='-{operation}'].opblock")
    if "is-open" not in (block.get_attribute("class") or ""):
        block.locator(".opblock-summary-control").click()
    if file is not None:
        if not block.locator("input[type=file]").count():  # a list that may be empty
            block.locator("tr:has(.parameter__name) button").first.click()
        block.locator("input[type=file]").first.set_input_files(file)
    block.locator("button.execute").click()
    shown = block.locator(".live-responses-table tbody td.response-col_status").first
    shown.wait_for(timeout=20_000)
    return int(shown.inner_text().split()[0])


def filled_in(page, operation: str) -> dict[str, str]:
    """Opens an operation; gives what stands in its fields, and in the text of its body."""
    block = page.locator(f"[id$='-{operation}'].opblock")
    if "is-open" not in (block.get_attribute("class") or ""):
        block.locator(".opblock-summary-control").click()
    block.locator("button.execute").wait_for()
    body = block.locator("textarea.body-param__text")
    found = {"body": body.input_value()} if body.count() else {}
    for row in block.locator("tr:has(.parameter__name)").all():
        field = row.locator("input:not([type=checkbox]), select, textarea")
        name = row.locator(".parameter__name").inner_text().split()[0]
        if field.count():
            found[name] = field.first.input_value()
    return found


EFFORT = {"nprobe": "", "ef_search": "", "k_factor": "", "exact": "false"}


def test_what_is_filled_in_changes_nothing(page):
    search = filled_in(page, "search")
    common = {
        "k": "10",
        "offset": "0",
        "min_score": "-1",
        "filter": "",
        "group_by": "",
        "collection": "default",
    }
    assert search == {"combine": "mean", "flip": "false", **common, **EFFORT}
    similar = filled_in(page, "similar_images")
    assert similar == {"image_id": "", **common, "min_score": "", **EFFORT}
    assert json.loads(filled_in(page, "search_url")["body"]) == {
        "url": "https://example.com/photo.jpg"
    }
    assert json.loads(filled_in(page, "reembed")["body"]) == {}
    assert json.loads(filled_in(page, "index_folder")["body"]) == {"path": "/mnt/photos/2026"}


def test_pictures_are_searched_and_indexed_from_the_page(page, photo):
    page.locator("button.authorize").first.click()
    first = page.locator(".auth-container input").first
    first.fill(ADMIN_KEY)
    page.locator(".auth-container button[type=submit]").first.click()
    page.locator(".btn-done").first.click()
    assert press(page, "search", file=photo) == 200
    assert press(page, "index", file=photo) == 201
    assert press(page, "search", file=photo) == 200


@pytest.mark.parametrize(
    "operation", ["list_images", "list_collections", "info", "live", "ready", "metrics"]
)
def test_reading_calls_work_as_they_stand(page, operation):
    assert press(page, operation) == 200


def test_the_page_works_below_a_path_of_a_proxy(page, tmp_path, photo):
    server = Server(tmp_path / "data", root_path="/lookalike")
    below = page.context.browser.new_page()
    try:
        asked: list[str] = []
        below.on("request", lambda request: asked.append(request.url))
        below.goto(f"{server.url}/lookalike/docs")
        below.wait_for_selector(".opblock", timeout=30_000)
        assert press(below, "live") == 200
        assert press(below, "search", file=photo) == 200
        outside = [
            url for url in asked if not url.startswith((f"{server.url}/lookalike/", "data:"))
        ]
        assert outside == []
    finally:
        below.close()
        server.close()
