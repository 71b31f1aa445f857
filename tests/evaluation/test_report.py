"""The report: what stands in the JSON, and that the page holds whatever the names are."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lookalike.evaluation.report import write_html, write_json
from lookalike.evaluation.runner import Evaluation, evaluate
from lookalike.services.vector_set import Skipped, VectorSet
from tests.evaluation.made import GONE, clouds, drawn_set, vector_set

_VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page, and fails where tags do not close; holds text and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "

    def named(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        """Attributes of the tags of this name that have the class, if one is given."""
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and (not css or css in (attrs.get("class") or "").split())
        ]


def page_of(vectors: VectorSet, folder: Path, **options: Any) -> tuple[Page, Evaluation]:
    found = evaluate(vectors, **options)
    path = folder / "deep" / "report.html"
    write_html(found, vectors, path)
    html = path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", html)  # nothing is loaded from elsewhere
    assert "<script" not in html
    return Page(html), found


@pytest.fixture(scope="module")
def drawn() -> VectorSet:
    return drawn_set(classes=["leaf", "clock", "car", "mug"], instances=3, views=3)


def test_json_holds_all_that_was_found(tmp_path: Path) -> None:
    vectors, labels = clouds([8, 12, 1])
    made = vector_set(vectors, labels, weights="random", skipped=[Skipped("x.gif", "broken")])
    found = evaluate(made, k=3, ks=(1, 50), queries=15, seed=4)
    path = tmp_path / "deep" / "report.json"
    write_json(found, path)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert list(read) == [
        *("format", "dataset", "model", "provenance", "settings", "queries", "chance"),
        *("metrics", "per_class", "confusion", "worst_queries", "notes", "seconds"),
        *("versions", "created_at"),
    ]
    assert read["dataset"] == {
        "name": "made",
        "sha256": found.dataset_sha256,
        "pictures": 21,
        "classes": 3,
        "skipped": [{"name": "x.gif", "reason": "broken"}],
    }
    assert read["model"] == made.spec.to_dict()
    settings = read["settings"]
    assert (settings["k"], settings["ks"], settings["queries"]) == (3, [1, 3], 15)
    assert (settings["seed"], settings["index"], settings["depth"]) == (4, "Flat", found.depth)
    assert (read["queries"]["asked"], read["queries"]["left_out"]) == (15, 1)
    assert read["notes"] == list(found.notes) != []
    for metric, own in zip(read["metrics"], found.metrics, strict=True):
        assert metric == asdict(own) | {"title": own.title}
    assert [entry["label"] for entry in read["per_class"]] == ["class 000", "class 001"]
    assert read["confusion"]["labels"] == ["class 000", "class 001", "class 002"]
    assert read["confusion"]["shares"][2] is None
    assert sum(read["confusion"]["shares"][0]) == pytest.approx(1)
    assert read["confusion"]["pairs"][0]["match"]["relevant"] is False
    assert len(read["worst_queries"]) == 12
    assert read["worst_queries"][0]["matches"][0]["rank"] == 1


def test_json_of_many_classes_has_no_matrix(tmp_path: Path) -> None:
    vectors, labels = clouds([2] * 101, dim=6)
    found = evaluate(vector_set(vectors, labels))
    write_json(found, tmp_path / "report.json")
    confusion = json.loads((tmp_path / "report.json").read_text())["confusion"]
    assert confusion["shares"] is None
    assert len(confusion["labels"]) == 101
    assert len(confusion["pairs"]) == 20


def test_the_page_shows_figures_and_pictures(drawn: VectorSet, tmp_path: Path) -> None:
    page, found = page_of(drawn, tmp_path, k=4)
    assert "drawn" in page.text
    assert "color" in page.text
    for metric in found.metrics:
        if metric.k != 1 or metric.name in {"precision", "recall"}:
            assert f"{metric.value:.3f} {metric.low:.3f}\u2013{metric.high:.3f}" in page.text
    for result in found.per_class:
        assert f"{result.label} {result.precision.value:.2f} {result.queries}" in page.text
    bars = [attrs["style"] for attrs in page.named("i")]
    assert f"width:{100 * found.metric('precision', 4).value:.2f}%" in bars
    assert len(page.named("table", "heat")) == 1
    assert "Random weights" not in page.text
    assert "file cannot be opened" not in page.text
    assert found.spec.weights_sha256 in page.text


def test_right_and_wrong_differ_by_more_than_color(drawn: VectorSet, tmp_path: Path) -> None:
    page, found = page_of(drawn, tmp_path, k=12)
    shown = [match for query in found.worst for match in query.matches[:10]]
    right = sum(bool(match.relevant) for match in shown)
    assert 0 < right < len(shown)
    assert len(page.named("li", "right")) == right
    assert len(page.named("li", "wrong")) == len(shown) - right
    marks = [attrs["d"] for attrs in page.named("path")]
    assert marks.count(marks[0]) == right + 1  # the legend comes first: right, then wrong
    assert marks.count(marks[1]) == len(shown) - right + 1
    texts = [attrs["alt"] or "" for attrs in page.named("img")]
    assert sum(text.endswith(", right") for text in texts) == right
    assert {"rank 1", "rank 10"} <= {text.split(",")[0] for text in texts}


def test_confused_classes_are_shown_once_with_both_ways(drawn: VectorSet, tmp_path: Path) -> None:
    page, found = page_of(drawn, tmp_path, k=4)
    shares = found.confusion.by_name()
    seen: set[frozenset[str]] = set()
    for pair in found.confused_pairs:
        if {pair.asked, pair.found} in seen:
            continue
        seen.add(frozenset((pair.asked, pair.found)))
        back = shares.get((pair.found, pair.asked), 0)
        text = f"{pair.asked} finds {pair.found} : {100 * pair.share:.0f}% of matches"
        text += f"; {100 * back:.0f}% the other way round" * (back > 0)
        assert text in page.text
    assert page.text.count("this pair: rank") == len(seen) > 1
    assert "the other way round" in page.text


def test_random_weights_are_a_warning(tmp_path: Path) -> None:
    vectors, labels = clouds([6, 6])
    page, _ = page_of(vector_set(vectors, labels, weights="random"), tmp_path)
    assert len(page.named("p", "warning")) == 1
    assert "Random weights" in page.text


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    vectors, labels = clouds([6, 1])
    skipped = [Skipped(f"bad{n}.jpg", "truncated") for n in range(60)]
    page, _ = page_of(vector_set(vectors, labels, skipped=skipped), tmp_path, k=5)
    assert "The cut-off 10 is left out" in page.text
    assert "Pictures alone in their class have nothing to find" in page.text
    assert "skipped 60" in page.text
    assert "bad49.jpg : truncated" in page.text
    assert "bad50.jpg" not in page.text
    assert "and 10 more" in page.text
    assert "no query" in page.text  # the row of the lone class


def test_pictures_that_are_gone_leave_a_place(tmp_path: Path) -> None:
    vectors, labels = clouds([6, 6])
    page, found = page_of(vector_set(vectors, labels), tmp_path)
    places = [query.position for query in found.worst]
    places += [match.position for query in found.worst for match in query.matches]
    gone = [attrs["aria-label"] or "" for attrs in page.named("span", "gone")]
    assert len(gone) >= places.count(GONE) > 0
    assert all("the file cannot be opened" in text for text in gone)


@pytest.mark.parametrize("classes", [1, 2, 25, 26, 150])
def test_any_number_of_classes_fits(classes: int, tmp_path: Path) -> None:
    vectors, labels = clouds([12] if classes == 1 else [3] * classes, dim=6)
    page, found = page_of(vector_set(vectors, labels), tmp_path, k=5)
    assert len(page.named("table", "heat")) == (1 < classes <= 25)
    assert ("No query found a picture of another class" in page.text) == (classes == 1)
    assert ("50 classes between" in page.text) == (classes == 150)
    assert len(page.named("ol", "classes")) == 1
    assert len(page.named("span", "count")) == min(classes, 100)
    if classes > 25:
        sides = {frozenset((pair.asked, pair.found)) for pair in found.confused_pairs}
        assert page.text.count("this pair: rank") == len(sides)


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    vectors, codes = clouds([5, 5, 5])
    strange = {
        "class 000": "<script>alert('x')</script>\"&amp;{{ title }}",
        "class 001": "猫 \u202eright to left\u202c قطة " + "long" * 60,
        "class 002": "",
    }
    labels = [strange[code] for code in codes]
    made = vector_set(vectors, labels, name='</title><b>set & "name"\'s')
    page, _ = page_of(made, tmp_path, k=6)
    assert '</title><b>set & "name"\'s' in page.text
    assert len(page.named("b")) == len(page.named("i"))  # whiskers and bars alone
    assert strange["class 000"] in page.text
    assert strange["class 001"] in page.text
    titles = {attrs.get("title") for attrs in page.named("span", "label")}
    assert set(strange.values()) <= titles
