"""Groups as stars, and the comparison of pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lookalike.errors import OriginalNotKeptError, UnreadableImageError
from lookalike.media.comparison import Sameness
from lookalike.records import DuplicateKind, ImageRecord, Why
from lookalike.services.duplicates import DuplicateGroup, Member, keep_best, keep_order, stars
from lookalike.services.neighbor_graph import (
    EDGE,
    Edges,
    PixelComparer,
    Snapshot,
    reduced,
    same_pixels,
    same_shape,
)
from scripts.samples import Sample, draw


def record(name: str, *, sha256: str = "", source: str | None = None, **facts) -> ImageRecord:
    return ImageRecord(
        collection="default",
        id=name,
        sha256=sha256 or name,
        filename=name,
        media_type="image/png",
        created_at=facts.pop("created_at", "2026"),
        updated_at="2026",
        source=source,
        **{"width": 10, "height": 10, "bytes": 100, **facts},
    )


def edges(*pairs: tuple[int, int, float, int]) -> Edges:
    return np.array(list(pairs), dtype=EDGE)


def plain_stars(contents, pairs):
    """The definition, with nothing but loops."""
    order = sorted(contents, key=lambda node: min(map(keep_order, contents[node])))
    taken: set[int] = set()
    groups = []
    for node in order:
        if node in taken:
            continue
        taken.add(node)
        own = sorted(contents[node], key=keep_order)
        members = [(one.id, "exact", 1.0) for one in own[1:]]
        for other in order:
            both = [p for p in pairs if {p[0], p[1]} == {node, other} and node != other]
            if other in taken or not both:
                continue
            taken.add(other)
            kind = "reencoded" if any(same for *_, same in both) else "near"
            members += [(o.id, kind, max(p[2] for p in both)) for o in contents[other]]
        if members:
            kinds = ["exact", "reencoded", "near"]
            groups.append(
                (own[0].id, sorted(members, key=lambda m: (kinds.index(m[1]), -m[2], m[0])))
            )
    return groups


@given(st.data())
def test_stars_are_what_the_definition_says(data):
    here = data.draw(st.sets(st.integers(0, 9), max_size=8))
    small = st.integers(1, 3)
    contents = {
        node: [
            record(
                f"{node}-{copy}",
                sha256=f"{node}",
                width=data.draw(small),
                height=data.draw(small),
                bytes=data.draw(small),
                created_at=f"{data.draw(small)}",
            )
            for copy in range(data.draw(small))
        ]
        for node in here
    }
    scores = st.sampled_from([0.95, 0.96, 0.99, 1.0])
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), scores, st.booleans()))
    )
    groups = stars(contents, edges(*pairs))
    found = [(g.keep.id, [(m.record.id, m.kind.value, m.score) for m in g.members]) for g in groups]
    assert found == plain_stars(contents, pairs)
    shown = [image_id for keep, members in found for image_id in (keep, *(m[0] for m in members))]
    assert len(shown) == len(set(shown))


def test_a_chain_is_not_one_group():
    chain = {n: [record(f"{n}", width=100 - n)] for n in range(5)}
    found = stars(chain, edges(*[(n, n + 1, 0.97, False) for n in range(4)]))
    assert [(g.keep.id, [m.record.id for m in g.members]) for g in found] == [
        ("0", ["1"]),
        ("2", ["3"]),
    ]


def test_the_best_picture_is_kept():
    best = record("z", width=20)
    order = [
        best,
        record("y", bytes=101),
        record("x", created_at="2025"),
        record("a"),
        record("b"),
    ]
    shuffled = [order[place] for place in (3, 1, 4, 0, 2)]
    assert sorted(shuffled, key=keep_order) == order


FIRST, SECOND, YES, NO = Sameness.FIRST, Sameness.SECOND, Sameness.YES, Sameness.NO
OLD, NEW = {"created_at": "2025"}, {"created_at": "2026"}


def chosen(star, *others, cameras=(), links=None, ages=None) -> tuple[str, Why | None, list[str]]:
    """What is kept of a group, why, and the others. All pairs are `near` unless `links` says."""
    one_each = list({one.sha256: one for one in (star, *others)}.values())
    numbers = {one.sha256: number for number, one in enumerate(one_each)}
    pairs = {(a, b): NO for a in numbers.values() for b in numbers.values() if a < b}
    pairs |= {(numbers[a], numbers[b]): same for (a, b), same in (links or {}).items()}
    known = Snapshot(
        ids=[],
        numbers=numbers,
        edges=edges(*((a, b, 0.97, same) for (a, b), same in pairs.items() if same is not None)),
        truncated=set(),
        camera={numbers[name] for name in cameras},
    )
    group = DuplicateGroup(star, [Member(one, DuplicateKind.NEAR, 0.97) for one in others])
    ages = ages or {}
    (found,) = keep_best([group], known, lambda one: ages.get(one.id))
    return found.keep.id, found.why, [f"{one.record.id} {one.kind}" for one in found.members]


def test_most_pixels_come_first():
    assert chosen(record("a", **NEW), record("b", width=9, **OLD)) == ("a", Why.PIXELS, ["b near"])


@pytest.mark.parametrize(("same", "links"), [(FIRST, ("a", "b")), (SECOND, ("b", "a"))])
def test_what_was_saved_again_is_not_kept(same, links):
    again = record("b", bytes=900, **OLD)
    found = chosen(again, record("a", **NEW), cameras=["b"], links={links: same})
    assert found == ("a", Why.MADE_FROM, ["b reencoded"])


def test_a_pair_that_was_compared_twice_is_known_from_either_time():
    links = {("a", "b"): FIRST, ("b", "a"): YES}
    assert chosen(record("b"), record("a"), links=links)[:2] == ("a", Why.MADE_FROM)


def test_what_a_camera_wrote_comes_before_what_is_older():
    found = chosen(record("b", bytes=900, **OLD), record("a", **NEW), cameras=["a"])
    assert found == ("a", Why.CAMERA, ["b near"])


def test_what_is_older_comes_before_what_has_more_bytes():
    later, earlier = record("a", bytes=900, **NEW), record("b", **OLD)
    assert chosen(later, earlier)[:2] == ("b", Why.OLDER)
    of_files = {"a": "2001", "b": "2002"}  # of files that are referred to
    assert chosen(later, earlier, ages=of_files)[:2] == ("a", Why.OLDER)


def test_bytes_and_ids_come_last():
    assert chosen(record("b", bytes=900), record("a"))[:2] == ("b", Why.BYTES)
    assert chosen(record("a"), record("b"))[:2] == ("a", Why.ID)


def test_copies_go_with_the_content_that_is_kept():
    again = [record(name, sha256="s", bytes=900) for name in ("a", "b")]
    original = [record("d", sha256="o", **OLD), record("c", sha256="o", **NEW)]
    found = chosen(*again, *original, links={("o", "s"): FIRST})
    assert found == ("d", Why.MADE_FROM, ["c exact", "a reencoded", "b reencoded"])
    assert chosen(*original)[:2] == ("d", Why.OLDER)
    assert chosen(*again)[:2] == ("a", Why.ID)


def test_only_a_picture_that_is_like_all_others_is_kept():
    trio = [record("a", bytes=900), record("b", **OLD), record("c")]
    assert chosen(*trio, links={("b", "c"): None})[:2] == ("a", Why.CENTER)
    assert chosen(*trio)[:2] == ("b", Why.OLDER)


def test_no_member_becomes_less_than_it_was():
    trio = [record("a", bytes=900), record("b"), record("c", **OLD)]
    found = chosen(*trio, links={("a", "b"): YES})
    assert found == ("a", Why.BYTES, ["b reencoded", "c near"])


def test_a_group_is_as_weak_as_its_weakest_member():
    kinds = [DuplicateKind.EXACT, DuplicateKind.NEAR, DuplicateKind.REENCODED]
    members = [Member(record(kind.value), kind, 1.0) for kind in kinds]
    assert DuplicateGroup(record("keep"), members).kind is DuplicateKind.NEAR
    assert DuplicateGroup(record("keep"), members[:1]).kind is DuplicateKind.EXACT


def test_bytes_are_saved_once_for_each_file():
    members = [
        Member(record("copy", sha256="k"), DuplicateKind.EXACT, 1.0),  # shares the file that stays
        Member(record("one", sha256="s", bytes=30), DuplicateKind.NEAR, 1.0),
        Member(record("two", sha256="s", bytes=30), DuplicateKind.NEAR, 1.0),
        Member(record("own", sha256="k", source="/own.jpg", bytes=5), DuplicateKind.EXACT, 1.0),
    ]
    assert DuplicateGroup(record("keep", sha256="k"), members).bytes_saved == 35


def encoded(image: Image.Image, **options) -> Image.Image:
    out = io.BytesIO()
    image.save(out, options.pop("form", "JPEG"), **options)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


PICTURES = [draw(Sample(*which), size=(300, 225)) for which in [("mug", 0, 0), ("fish", 1, 0)]]
FLAT = Image.new("RGB", (300, 225), (200, 30, 90))


def same(one: Image.Image, other: Image.Image) -> bool:
    forth = bool(same_pixels(reduced(one), reduced(other)[None])[0])
    assert forth == bool(same_pixels(reduced(other), reduced(one)[None])[0])
    return forth


@pytest.mark.parametrize("image", [*PICTURES, FLAT])
def test_re_encoded_and_resized_pictures_are_the_same(image):
    assert same(image, encoded(image, quality=50))
    assert same(image, encoded(image.resize((150, 112)), quality=90))
    assert same(image, encoded(image, form="PNG"))


@pytest.mark.parametrize("image", PICTURES)
def test_edited_pictures_are_not_the_same(image):
    patched = image.copy()
    ImageDraw.Draw(patched).rectangle((90, 90, 120, 120), fill="red")
    assert not same(image, patched)
    assert not same(image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert not same(image, image.crop((15, 11, 285, 214)))


def test_different_pictures_are_not_the_same():
    assert not same(*PICTURES)
    assert not same(PICTURES[0], FLAT)
    assert not same(FLAT, Image.new("RGB", (300, 225), (190, 30, 90)))


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(0.01, 1), st.booleans())
def test_a_scaled_size_has_the_same_shape(width, height, scale, up):
    around = np.ceil if up else np.floor
    small = (max(1, int(around(width * scale))), max(1, int(around(height * scale))))
    large = record("a", width=width, height=height)
    assert same_shape(large, record("b", width=small[0], height=small[1]))


@pytest.mark.parametrize("size", [(300, 215), (225, 300), (400, 225)])
def test_other_shapes_differ(size):
    other = record("b", width=size[0], height=size[1])
    assert not same_shape(record("a", width=300, height=225), other)


def test_a_picture_that_cannot_be_opened_is_the_same_as_none(caplog):
    def open_picture(image_id: str, sha256: str) -> Image.Image:
        if image_id == "lost":
            raise UnreadableImageError("planted")
        return FLAT

    comparer = PixelComparer(open_picture, lambda *_: Sameness.YES, lambda _: False)
    here, lost, wide = record("here"), record("lost"), record("wide", width=90)
    assert comparer.same(here, [lost, record("b"), wide]).tolist() == [False, True, False]
    assert comparer.same(lost, [here]).tolist() == [False]
    assert caplog.text.count("lost cannot be compared") == 1


@pytest.mark.parametrize("error", [OriginalNotKeptError("planted"), OSError("planted")])
def test_a_picture_that_cannot_be_opened_is_from_no_camera(error):
    def from_camera(one: ImageRecord) -> bool:
        raise error

    comparer = PixelComparer(lambda *_: FLAT, lambda *_: Sameness.YES, from_camera)
    assert comparer.from_camera(record("a")) is False


def test_originals_have_the_last_word(caplog):
    def same_files(one, other):
        if other.id == "gone":
            raise OriginalNotKeptError("planted")
        if other.id == "broken":
            raise UnreadableImageError("planted")
        return Sameness(other.id == "same")

    comparer = PixelComparer(lambda *_: FLAT, same_files, lambda _: False)
    others = [record(name) for name in ("same", "another", "gone", "broken")]
    assert comparer.same(record("a"), others).tolist() == [True, False, False, False]
    assert caplog.text.count("cannot be compared in detail") == 1
