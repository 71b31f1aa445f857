"""The interactive map in a real browser, from one file, without the internet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lookalike.visualization.map import make_map, write_map
from tests.visualization.drawn import drawn_set

CHROMIUM = Path("/usr/bin/chromium")
LOST = 4

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@pytest.fixture(scope="module")
def vectors():
    return drawn_set(lost={LOST})


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(vectors, tmp_path_factory: pytest.TempPathFactory):
    files = write_map(make_map(vectors), vectors, tmp_path_factory.mktemp("map"))
    return files.page.as_uri()


@pytest.fixture(params=[(1200, 800), (400, 800)], ids=["wide", "narrow"])
def page(browser, address, request):
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text))
    page.on(
        "request",
        lambda asked: (
            trouble.append(asked.url) if not asked.url.startswith((address, "data:")) else None
        ),
    )
    page.goto(address)
    page.wait_for_function("window.lookalike && lookalike.view.scale > 1")
    yield page
    assert trouble == []
    page.close()


def place(page, position: int) -> tuple[float, float]:
    """Where a picture is, in pixels of the window."""
    box = page.locator("#map").bounding_box()
    x, y = page.evaluate(f"lookalike.screenOf({position})")
    return box["x"] + x, box["y"] + y


def lonely(page, count: int) -> int:
    """The picture with the most room around it."""
    places = np.array([place(page, position) for position in range(count)])
    away = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(away, np.inf)
    return int(away.min(axis=1).argmax())


def nearest(vectors, position: int) -> list[int]:
    cosines = vectors.vectors @ vectors.vectors[position]
    cosines[position] = -2
    return np.argsort(-cosines, kind="stable")[:5].tolist()


def shown_neighbors(page) -> list[int]:
    buttons = page.locator("#details .near button").all()
    return [int(button.get_attribute("data-picture")) for button in buttons]


def test_hovering_shows_the_picture_and_its_nearest(page, vectors):
    position = lonely(page, len(vectors))
    assert page.locator("#details").is_hidden()
    page.mouse.move(*place(page, position))
    details = page.locator("#details")
    assert details.locator("h2").inner_text() == vectors.names[position]
    assert details.locator(".class").inner_text() == vectors.labels[position]
    assert shown_neighbors(page) == nearest(vectors, position)
    page.mouse.move(1, 1)
    assert details.is_hidden()


def test_a_click_holds_a_picture_and_a_neighbor_can_be_visited(page, vectors):
    position = lonely(page, len(vectors))
    page.mouse.click(*place(page, position))
    page.mouse.move(1, 1)
    assert page.locator("#details h2").inner_text() == vectors.names[position]
    neighbor = nearest(vectors, position)[0]
    page.locator("#details .near button").first.click()
    assert page.locator("#details h2").inner_text() == vectors.names[neighbor]
    assert shown_neighbors(page) == nearest(vectors, neighbor)
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()


def test_the_wheel_zooms_where_it_points_until_dots_become_pictures(page, vectors):
    position = lonely(page, len(vectors))
    before, scale = place(page, position), page.evaluate("lookalike.view.scale")
    page.mouse.move(*before)
    page.mouse.wheel(0, -600)
    page.wait_for_function(f"lookalike.view.scale > {scale * 1.5}")
    np.testing.assert_allclose(place(page, position), before, atol=1)
    assert page.evaluate("lookalike.asTiles()")
    page.locator("#fit").click()
    assert page.evaluate("lookalike.view.scale") == pytest.approx(scale)
    page.locator("#in").click()
    assert page.evaluate("lookalike.view.scale") == pytest.approx(1.6 * scale)


def test_dragging_moves_the_map(page):
    page.locator("#in").click()
    before = place(page, 0)
    box = page.locator("#map").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y - 20, steps=4)
    page.mouse.up()
    np.testing.assert_allclose(np.subtract(place(page, 0), before), (30, -20), atol=8)
    assert page.locator("#details").is_hidden()  # a drag is no click


def test_the_keyboard_is_enough(page, vectors):
    scale = page.evaluate("lookalike.view.scale")
    page.locator("#map").focus()
    page.keyboard.press("+")
    assert page.evaluate("lookalike.view.scale") > scale
    before = place(page, 0)
    page.keyboard.press("ArrowLeft")
    assert place(page, 0)[0] > before[0]
    page.keyboard.press("Enter")
    assert page.locator("#details h2").inner_text() in vectors.names
    page.keyboard.press("0")
    assert page.evaluate("lookalike.view.scale") == pytest.approx(scale)


def test_a_picture_is_found_by_its_name(page, vectors):
    position = 17
    page.locator("#search").fill(vectors.names[position].upper())
    assert page.locator("#found li").count() == 1
    page.keyboard.press("Enter")
    assert page.locator("#details h2").inner_text() == vectors.names[position]
    box = page.locator("#map").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    np.testing.assert_allclose(place(page, position), middle, atol=1)
    page.locator("#search").fill("no such name")
    assert "No picture" in page.locator("#found").inner_text()


def test_a_class_that_is_switched_off_cannot_be_pointed_at(page, vectors):
    if not page.locator("#classes").is_visible():
        page.locator("#legend summary").click()
    labels = page.locator("#classes label span").all_inner_texts()
    assert labels == ["car", "leaf", "mug"]
    position = lonely(page, len(vectors))
    page.get_by_label(vectors.labels[position]).uncheck()
    page.mouse.move(*place(page, position))
    if page.locator("#details").is_visible():  # another one lies near
        assert page.locator("#details h2").inner_text() != vectors.names[position]
    page.locator("#all").click()
    page.mouse.move(1, 1)
    page.mouse.move(*place(page, position))
    assert page.locator("#details h2").inner_text() == vectors.names[position]


def test_a_lost_picture_is_said_to_be_lost(page):
    page.evaluate(f"lookalike.goTo({LOST})")
    assert "cannot be read" in page.locator("#details").inner_text()


def test_the_page_fits_its_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_two_fingers_zoom_and_a_tap_holds(browser, address, vectors):
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(address)
    page.wait_for_function("window.lookalike && lookalike.view.scale > 1")
    position = lonely(page, len(vectors))
    page.touchscreen.tap(*place(page, position))
    assert page.locator("#details h2").inner_text() == vectors.names[position]
    scale = page.evaluate("lookalike.view.scale")
    devtools = context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[int, int]) -> None:
        at = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (180, 250), (220, 250))
    touch("touchMove", (140, 250), (260, 250))
    touch("touchEnd")
    assert page.evaluate("lookalike.view.scale") == pytest.approx(3 * scale, rel=0.1)
    context.close()
