"""The page of duplicates: escaped, self-contained, cut where it would be too long."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from lookalike.cli.duplicates import MAX_GROUPS, MAX_MEMBERS, bytes_text, duplicates_page
from lookalike.errors import OriginalNotKeptError
from lookalike.records import DuplicateKind
from lookalike.schemas import DuplicateGroupOut, DuplicateOut, DuplicatesOut, KeptOut


def shown(name: str, kind: str | None = None) -> KeptOut:
    facts = {"id": name, "filename": name, "width": 30, "height": 20, "bytes": 1500}
    facts |= {"image_url": "", "thumbnail_url": ""}
    if kind is None:
        return KeptOut.model_validate(facts)
    return DuplicateOut.model_validate({**facts, "kind": kind, "score": 0.97})


def group(keep: KeptOut, members: list[KeptOut]) -> DuplicateGroupOut:
    facts = {"kind": "near", "bytes_saved": 1500, "keep": keep, "members": members}
    return DuplicateGroupOut.model_validate(facts)


def page(
    groups: list[DuplicateGroupOut],
    truncated: int = 0,
    thumbnail=lambda image_id: Image.new("RGB", (30, 20)),
) -> str:
    found = DuplicatesOut(
        collection="shoes",
        kind=DuplicateKind.NEAR,
        threshold=0.95,
        total_groups=len(groups),
        total_duplicates=1,
        bytes_saved=1500,
        truncated=truncated,
        groups=groups,
        next_cursor=None,
    )
    return duplicates_page(found, thumbnail)


def test_it_shows_what_to_keep_first_and_what_the_others_are():
    text = page([group(shown("a<b>.jpg"), [shown("c.jpg", "near")])])
    keep, member = re.findall(r'<figure class="(\w+)">', text)
    assert (keep, member) == ("keep", "near")
    assert "a&lt;b&gt;.jpg" in text
    assert "<b>.jpg" not in text
    assert "near 0.9700" in text
    assert "30 &times; 20, 1.5 kB" in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_a_name_cannot_look_like_another():
    text = page([group(shown("a"), [shown("x\u202egpj.exe", "near")])])
    assert "x\ufffdgpj.exe" in text
    assert "\u202e" not in text.replace("<code>x\u202egpj.exe</code>", "")


def test_it_says_where_it_is_cut():
    many = [shown(f"m{n}", "exact") for n in range(MAX_MEMBERS + 3)]
    groups = [group(shown("k"), many)]
    groups += [group(shown("k"), [shown("m", "exact")])] * MAX_GROUPS
    text = page(groups)
    assert f"The first {MAX_GROUPS} of {MAX_GROUPS + 1} groups" in text
    assert "and 3 more" in text
    assert text.count("<section>") == MAX_GROUPS


def test_a_picture_that_is_lost_has_a_gray_tile():
    def lost(image_id: str) -> Image.Image:
        raise OriginalNotKeptError("planted")

    text = page([group(shown("a"), [shown("b", "near")])], thumbnail=lost)
    assert text.count("data:image/jpeg") == 2


def test_nothing_found_and_truncation_are_said():
    assert "No duplicates were found" in page([])
    assert "2 pictures have more neighbors" in page([], truncated=2)
    assert "1 picture has more neighbors" in page([], truncated=1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (5_250_000_000_000, "5250.0 GB")],
)
def test_bytes_for_people(count, text):
    assert bytes_text(count) == text
