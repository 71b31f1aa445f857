"""What `Client` and `HttpClient` promise alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from lookalike import Client, HttpClient
from lookalike.bootstrap import restore_backup
from lookalike.client import BaseClient, Outcome
from lookalike.errors import (
    CalibrationNotFoundError,
    CollectionNotFoundError,
    ConflictError,
    FetchingDisabledError,
    ForbiddenError,
    ImageExistsError,
    ImageNotFoundError,
    InvalidCollectionNameError,
    InvalidFilterError,
    InvalidIdError,
    InvalidMetadataError,
    InvalidParameterError,
    JobNotFoundError,
    JudgementNotFoundError,
    KeyNotFoundError,
    LookalikeError,
    MissingFileError,
    NotAnImageError,
    ServerError,
    UnauthorizedError,
    VectorSpaceNotFoundError,
)
from lookalike.models.head import save_head
from lookalike.progress import Progress, TaskEndedError
from lookalike.records import Access, DuplicateKind, Effort, OnConflict
from lookalike.schemas import CollectionOut, CountOut, DuplicatesOut, ImageOut, SearchOut
from scripts.samples import write_samples
from tests.servers import ADMIN_KEY, Server
from tests.services.moving import make_head
from tests.services.test_calibrating import draw
from tests.unreadable import refuse


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_samples(folder, classes=["mug", "fish"], instances=3, views=2, size=(96, 72))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("service") / "data")
    yield made
    made.close()


@pytest.fixture(params=["folder", "service"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseClient]:
    """Each client, over no pictures."""
    made: BaseClient
    if request.param == "folder":
        made = Client(tmp_path / "data", model="color")
    else:
        made = HttpClient(request.getfixturevalue("server").url, ADMIN_KEY)
        for collection in made.collections():
            made.drop(collection.name)
    with made:
        yield made


@pytest.fixture
def filled(client: BaseClient, photos: Path) -> BaseClient:
    """Each client, over twelve pictures."""
    outcomes = client.index(photos, folder_field="label")
    assert [outcome.status for outcome in outcomes] == ["created"] * 12
    return client


class Told(Progress):
    """Notes what it is told, and ends the task after so many reports."""

    def __init__(self, end_after: int = 1_000_000) -> None:
        super().__init__()
        self.reports: list[tuple[int, int]] = []
        self.errors: list[str] = []
        self._end_after = end_after

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        self.reports.append((done, total))

    def error(self, text: str) -> None:
        self.errors.append(text)

    def check(self) -> None:
        if len(self.reports) >= self._end_after:
            raise TaskEndedError


@contextmanager
def raises(
    client: BaseClient, kind: type[LookalikeError], match: str | None = None
) -> Iterator[None]:
    """Both raise the same class; that of a service is a `ServerError` as well."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert isinstance(client, Client) or isinstance(caught.value, ServerError)


class NewerService(httpx2.HTTPTransport):
    """The way to a service whose answers have one more field in every object."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().handle_request(request)
        if not (content := answer.read()):
            return answer
        more = json.loads(content, object_hook=lambda found: {**found, "made_up": 1})
        return httpx2.Response(answer.status_code, json=more)


def test_what_a_newer_service_says_beside_is_passed_over(
    server: Server, photos: Path, tmp_path: Path
) -> None:
    with HttpClient(server.url, ADMIN_KEY) as client:
        client._http = httpx2.Client(
            base_url=server.url, transport=NewerService(), headers={"X-API-Key": ADMIN_KEY}
        )
        client.index(photos / "mug", collection="newer")
        first, second, *others = client.list("newer")
        assert len(others) == 4
        assert client.get(first.id, collection="newer").sha256 == first.sha256
        assert client.update(first.id, {"a": 2}, collection="newer").metadata["a"] == 2
        assert client.similar(first.id, collection="newer", k=1).matches[0].score > 0
        assert client.duplicates("newer", kind=DuplicateKind.EXACT).total_groups == 0
        judged = client.judge(second.id, right=True, query=first.id, collection="newer")
        assert [*client.judgements("newer")] == [judged]
        assert client.delete_many([first.id], collection="newer", dry_run=True).matched == 1
        assert client.jobs(limit=1) is not None
        client.drop("newer")


def test_pictures_are_indexed_and_unchanged_the_second_time(
    filled: BaseClient, photos: Path
) -> None:
    told = Told()
    again = filled.index(photos, progress=told)
    assert {outcome.status for outcome in again} == {"unchanged"}
    assert {outcome.path for outcome in again} == set(photos.rglob("*.jpg"))
    assert all(isinstance(outcome, Outcome) and outcome.id for outcome in again)
    assert told.reports[-1] == (12, 12)


def test_metadata_of_all_and_of_each(client: BaseClient, photos: Path) -> None:
    fish = photos / "fish" / "fish-00-0.jpg"
    client.index(photos / "mug", metadata={"year": 2026, "label": "x"}, folder_field="label")
    assert [one.metadata for one in client.list()] == [{"label": "mug", "year": 2026}] * 6
    client.index(fish, metadata=lambda path: {"label": path.stem}, folder_field="label")
    (found,) = client.list(filter={"label": "fish-00-0"})
    assert found.filename == fish.name


def test_counts_facets_and_warnings(filled: BaseClient, photos: Path) -> None:
    first = next(iter(filled.list()))
    filled.update(first.id, {"size": {"w": 3}, "tags": ["new"], "day": "2026-01-31"})
    assert filled.count().count == 12
    found = filled.count(filter={"or": [{"label": "mug"}, {"size.w": {"gte": 3}}]})
    assert (found.count, found.warnings) == (6 + (first.metadata["label"] == "fish"), [])
    misspelled = {"labl": "mug"}
    text = "No picture has the field 'labl'"
    assert filled.count(filter=misspelled) == CountOut(
        collection="default", count=0, warnings=[text]
    )
    assert filled.search(photos / "mug" / "mug-00-0.jpg", filter=misspelled).warnings == [text]
    assert filled.similar(first.id, filter={"not": misspelled}).warnings == [text]
    assert filled.similar(first.id, group_by="labl").warnings == [text]
    assert filled.similar(first.id, group_by="size.w", k=1).warnings == []
    facets = filled.facets(filter={"not": {"tags": "old"}})
    assert (facets.count, facets.total_fields, facets.warnings) == (12, 4, [])
    label, day, width, tags = facets.facets
    assert [one.field for one in facets.facets] == ["label", "day", "size.w", "tags"]
    assert [(one.value, one.count) for one in label.values] == [("fish", 6), ("mug", 6)]
    assert day.dates is not None
    assert width.numbers is not None
    assert (day.dates.min, width.numbers.max, tags.values[0].value) == ("2026-01-31", 3, "new")
    named = filled.facets(fields=["no", "label"], limit=1, filter={"label": 3})
    assert [(one.field, one.count) for one in named.facets] == [("no", 0), ("label", 0)]
    assert len(named.warnings) == 2
    with raises(filled, CollectionNotFoundError):
        filled.count("nowhere")
    with raises(filled, CollectionNotFoundError):
        filled.facets("nowhere")
    with raises(filled, InvalidFilterError, match="write `gte`"):
        filled.facets(filter={"price": {"$gte": 3}})
    with raises(filled, InvalidFilterError):
        filled.facets(fields=["x" * 257])
    with raises(filled, InvalidParameterError):
        filled.facets(limit=0)


def test_groups_by_a_field_of_which_some_are_lists(client: BaseClient, photos: Path) -> None:
    """A list is a group of its own, also where one of its items is another group."""
    values = iter([["a"], "a", "e\u0301", "\u00e9", {"x": 1}, 1, 1.0, ["a"], True, None, [], "a"])
    client.index(photos, metadata=lambda _: {"in": {"of": next(values)}})
    found = client.similar(next(iter(client.list())).id, k=12, group_by="in.of")
    values_found = [match.metadata["in"]["of"] for match in found.matches]
    assert len(values_found) == 8
    assert ["a"] in values_found
    assert "a" in values_found


def test_a_file_that_fails_harms_no_other(
    client: BaseClient, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "hidden").mkdir()
    refuse(monkeypatch, tmp_path / "hidden")
    outcomes = client.index(photos, tmp_path / "notes.jpg", tmp_path / "hidden")
    failed = {one.path.name: one.error for one in outcomes if one.failed}
    assert set(failed) == {"notes.jpg", "hidden"}
    assert isinstance(failed["notes.jpg"], NotAnImageError)
    assert sum(one.status == "created" for one in outcomes) == 12


def test_ids_that_exist(client: BaseClient, photos: Path) -> None:
    path = photos / "mug" / "mug-00-0.jpg"
    client.index(path, metadata={"a": 1})
    (same,) = client.index(path, metadata={"a": 2}, on_conflict=OnConflict.SKIP)
    assert same.status == "skipped"
    (taken,) = client.index(path, metadata={"a": 2}, on_conflict=OnConflict.ERROR)
    assert isinstance(taken.error, ImageExistsError)
    (changed,) = client.index(path, metadata={"a": 2})
    assert changed.status == "updated"


def test_what_is_missing_is_a_file_not_found_error(client: BaseClient, tmp_path: Path) -> None:
    for call in (client.index, client.search):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            call(tmp_path / "nowhere.jpg")
    with pytest.raises(LookalikeError, match="no regular file"):
        client.search(tmp_path)


def test_indexing_ends_when_the_progress_says_so(client: BaseClient, photos: Path) -> None:
    with pytest.raises(TaskEndedError):
        client.index(photos, progress=Told(end_after=3))


def test_every_kind_of_query_finds_itself(filled: BaseClient, photos: Path) -> None:
    path = photos / "fish" / "fish-01-0.jpg"
    for query in (path, str(path), path.read_bytes(), Image.open(path)):
        result = filled.search(query, k=3)
        assert isinstance(result, SearchOut)
        assert [match.rank for match in result.matches] == [1, 2, 3]
        best = result.matches[0]
        assert (best.filename, best.metadata) == (path.name, {"label": "fish"})
        assert best.score == pytest.approx(1.0, abs=1e-6)
        assert (result.query.width, result.model.name) == (96, "color")


def test_searches_can_be_narrowed(filled: BaseClient, photos: Path) -> None:
    path = photos / "fish" / "fish-01-0.jpg"
    mugs = filled.search(path, filter={"label": "mug"}).matches
    assert [match.metadata["label"] for match in mugs] == ["mug"] * 6
    assert len(filled.search(path, group_by="label").matches) == 2
    assert filled.search(path, min_score=1.0, filter={"label": "mug"}).matches == []
    own = filled.search(path).matches
    for effort in (Effort(exact=True), Effort(nprobe=9, k_factor=2)):
        assert [m.id for m in filled.search(path, effort=effort).matches] == [m.id for m in own]


def test_similar_leaves_itself_out(filled: BaseClient, photos: Path) -> None:
    best = filled.search(photos / "fish" / "fish-01-0.jpg", k=1).matches[0]
    found = filled.similar(best.id, k=11, filter={"label": {"in": ["mug", "fish"]}})
    assert len(found.matches) == 11
    assert best.id not in [match.id for match in found.matches]
    assert len(filled.similar(best.id, effort=Effort(exact=True), group_by="label").matches) == 2
    with raises(filled, ImageNotFoundError):
        filled.similar("unknown")


def test_bad_searches(filled: BaseClient, photos: Path) -> None:
    path = photos / "fish" / "fish-01-0.jpg"
    with raises(filled, InvalidParameterError, "k"):
        filled.search(path, k=0)
    with raises(filled, InvalidFilterError):
        filled.search(path, filter={"label": {"like": "x"}})
    with raises(filled, CollectionNotFoundError, "shoes"):
        filled.search(path, collection="shoes")
    with raises(filled, NotAnImageError):
        filled.search(b"just some text")
    with raises(filled, FetchingDisabledError, "--fetch-urls"):
        filled.search_url("https://example.com/a.jpg")


def test_many_are_changed_and_deleted_in_steps(
    filled: BaseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.client.MOST_CHANGED", 5)
    monkeypatch.setattr("lookalike.services.pictures.MOST_CHANGED", 5)  # of the folder's
    everything = [one.id for one in filled.list()]
    named = [*everything[:7], "gone", everything[0]]
    dry = filled.delete_many(named, dry_run=True)
    assert (dry.dry_run, dry.matched, dry.changed, dry.failed) == (True, 7, 0, 1)
    assert [one.id for one in dry.images] == everything[:7]
    done = filled.update_many({"label": None, "n": 1}, filter={"label": "mug"})
    assert (done.matched, done.changed, done.next_cursor) == (6, 6, None)
    assert [one.metadata for one in filled.list(filter={"n": 1})] == [{"n": 1}] * 6
    replaced = filled.update_many({"m": 2}, everything=True, replace=True)
    assert [one.id for one in replaced.items] == everything
    assert {str(one.metadata) for one in filled.list()} == {"{'m': 2}"}
    done = filled.delete_many(iter(named))
    assert (done.matched, done.changed, done.failed) == (7, 7, 1)
    assert {one.id: one.status for one in done.items} == {
        "gone": "failed",
        **dict.fromkeys(everything[:7], "deleted"),
    }
    assert [one.id for one in filled.list()] == everything[7:]
    wrong: dict[str, Any]
    for wrong in ({}, {"filter": {}}, {"ids": ["a"], "everything": True}):
        with raises(filled, InvalidParameterError):
            filled.delete_many(**wrong)
    with raises(filled, CollectionNotFoundError):
        filled.delete_many(everything=True, collection="none")
    with raises(filled, InvalidFilterError):
        filled.update_many({}, filter={"m": {"over": 1}})
    assert filled.delete_many(filter={"m": 2}).changed == 5
    assert filled.count().count == 0


def test_collections_are_made_and_renamed(filled: BaseClient, photos: Path) -> None:
    made = filled.make("summer")
    assert (made.name, made.count, made.searchable) == ("summer", 0, True)
    assert filled.search(photos / "mug" / "mug-00-0.jpg", collection="summer").matches == []
    assert filled.make("default").count == 12
    with raises(filled, ConflictError):
        filled.rename("default", "summer")
    with raises(filled, CollectionNotFoundError):
        filled.rename("none", "winter")
    for make in (lambda: filled.make("No name"), lambda: filled.rename("default", "../x")):
        with pytest.raises(InvalidCollectionNameError):  # both before anything is sent
            make()
    assert filled.duplicates(kind=DuplicateKind.EXACT).groups == []
    filled.rename("default", "winter")
    filled.rename("summer", "default")
    assert {one.name: one.count for one in filled.collections()} == {"default": 0, "winter": 12}
    best = filled.search(photos / "fish" / "fish-00-0.jpg", collection="winter", k=1).matches[0]
    assert best.filename == "fish-00-0.jpg"
    assert "collection=winter" in best.image_url
    assert filled.thumbnail(best.id, collection="winter")[:2] == b"\xff\xd8"


def test_an_alias_is_moved_from_a_collection_to_the_next(filled: BaseClient, photos: Path) -> None:
    filled.alias("shop", "default")
    assert [one.aliases for one in filled.collections()] == [["shop"]]
    assert filled.index(photos / "fish", collection="shop")[0].status == "unchanged"
    filled.index(photos / "fish", collection="shop_2")
    filled.alias("shop", "shop_2")
    assert filled.count("shop").count == filled.count("shop_2").count == 6
    best = filled.search(photos / "fish" / "fish-00-0.jpg", collection="shop", k=1).matches[0]
    assert "collection=shop_2" in best.image_url
    assert filled.thumbnail(best.id, collection="shop")[:2] == b"\xff\xd8"
    assert filled.duplicates("shop", kind=DuplicateKind.EXACT).groups == []
    assert filled.vectors("shop")[0].count == 6
    filled.update(best.id, {"new": True}, collection="shop")
    assert filled.get(best.id, collection="shop_2").metadata["new"] is True
    assert filled.make("shop").name == "shop_2"
    for refused in (
        lambda: filled.alias("default", "shop_2"),
        lambda: filled.rename("default", "shop"),
        lambda: filled.rename("shop", "new"),
        lambda: filled.drop("shop"),
        lambda: filled.drop("shop_2"),
    ):
        with raises(filled, ConflictError):
            refused()
    with raises(filled, CollectionNotFoundError):
        filled.alias("shop", "none")
    filled.unalias("shop")
    with raises(filled, CollectionNotFoundError):
        filled.unalias("shop")
    filled.drop("shop_2")
    assert [one.name for one in filled.collections()] == ["default"]


def test_records_are_read_changed_and_deleted(filled: BaseClient) -> None:
    first, *others = filled.list()
    assert isinstance(first, ImageOut)
    assert len(others) == 11
    assert filled.get(first.id) == first
    changed = filled.update(first.id, {"label": None, "price": 3})
    assert changed.metadata == {"price": 3}
    assert filled.get(first.id).metadata == {"price": 3}
    assert [one.id for one in filled.list(filter={"price": {"gte": 3}})] == [first.id]
    assert filled.thumbnail(first.id)[:2] == b"\xff\xd8"
    filled.delete(first.id)
    for call in (filled.get, filled.delete, filled.thumbnail):
        with raises(filled, ImageNotFoundError):
            call(first.id)
    with raises(filled, ImageNotFoundError):
        filled.update(first.id, {"price": 4})
    with pytest.raises(InvalidIdError):
        filled.delete("../collections/default")
    with raises(filled, InvalidMetadataError):
        filled.update(others[0].id, {"\0": 1})


def test_duplicates(filled: BaseClient, photos: Path, tmp_path: Path) -> None:
    original = photos / "mug" / "mug-00-0.jpg"
    with Image.open(original) as image:
        image.save(tmp_path / "again.png")
    filled.index(tmp_path / "again.png")
    found = filled.duplicates(kind=DuplicateKind.REENCODED, threshold=0.9)
    assert isinstance(found, DuplicatesOut)
    (group,) = found.groups
    names = {group.keep.filename, *(one.filename for one in group.members)}
    assert names == {"again.png", "mug-00-0.jpg"}
    with raises(filled, CollectionNotFoundError):
        filled.duplicates("shoes")
    with raises(filled, InvalidParameterError):
        filled.duplicates(threshold=0.1)


def test_collections(filled: BaseClient, photos: Path) -> None:
    filled.index(photos / "mug", collection="mugs")
    found = filled.collections()
    assert all(isinstance(one, CollectionOut) for one in found)
    assert [(one.name, one.count, one.searchable) for one in found] == [
        ("default", 12, True),
        ("mugs", 6, True),
    ]
    assert filled.info()["collections"][1]["name"] == "mugs"
    filled.drop("mugs")
    assert [one.name for one in filled.collections()] == ["default"]
    with raises(filled, CollectionNotFoundError):
        filled.drop("mugs")
    with raises(filled, CollectionNotFoundError):
        list(filled.list("mugs"))


def test_a_collection_moves_to_another_model_and_its_old_vectors_go(
    filled: BaseClient, photos: Path, tmp_path: Path
) -> None:
    told = Told()
    assert "already" in filled.reembed(model={"model": "color"}, progress=told)
    head = save_head(make_head(7), tmp_path / "head.safetensors")
    assert "6 numbers a picture" in filled.reembed(model={"head": str(head)}, progress=told)
    assert told.errors == []
    old, new = filled.vectors()
    assert [one.active for one in (old, new)] == [False, True]
    assert [one.passport.dim for one in (old, new)] == [48, 6]
    assert filled.search(photos / "mug" / "mug-00-0.jpg", k=1).model.dim == 6
    with raises(filled, ConflictError):
        filled.discard_vectors(new.passport.digest)
    filled.discard_vectors(old.passport.digest)
    assert filled.vectors() == [new]
    with raises(filled, VectorSpaceNotFoundError):
        filled.discard_vectors(old.passport.digest)
    with raises(filled, CollectionNotFoundError):
        filled.vectors("shoes")


def test_labels_by_texts(filled: BaseClient) -> None:
    told = Told()
    said = filled.tag(["red", "white"], field="color", k=2, min_score=-1, progress=told)
    assert "were labeled in 'color'" in said
    assert told.errors == []
    for image in filled.list():
        assert sorted(image.metadata["color"]["labels"]) == ["red", "white"]
    assert "0 of them changed" in filled.tag(["red", "white"], field="color", k=2)
    with raises(filled, InvalidParameterError):
        filled.tag(["red mug"])
    with raises(filled, CollectionNotFoundError):
        filled.tag(["red"], collection="shoes")


def test_judgements_are_given_listed_and_taken_back(filled: BaseClient, photos: Path) -> None:
    first, second, third, *_ = filled.list()
    one = filled.judge(second.id, right=True, query=first.id)
    assert (one.query, one.match, one.right) == (first.id, second.id, True)
    outside = photos.parent / "outside.png"
    Image.new("RGB", (60, 40), "teal").save(outside)
    other = filled.judge(third.id, right=False, picture=outside)
    assert (other.query, other.match, other.right) == (None, third.id, False)
    assert other.query_sha256 == hashlib.sha256(outside.read_bytes()).hexdigest()
    assert [*filled.judgements()] == [one, other]
    last = filled.judge(second.id, right=False, query=first.id)
    assert (last.id, last.right) == (one.id, False)
    assert [(each.id, each.right) for each in filled.judgements()] == [
        (one.id, False),
        (other.id, False),
    ]
    filled.delete_judgement(one.id)
    assert [*filled.judgements()] == [other]
    with raises(filled, JudgementNotFoundError):
        filled.delete_judgement(one.id)


def test_judgements_come_in_pages(filled: BaseClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.client.scores._PAGE", 2)
    query, *matches = (image.id for image in filled.list())
    for match in matches[:5]:
        filled.judge(match, right=True, query=query)
    assert [one.match for one in filled.judgements()] == matches[:5]


def test_judgements_that_are_refused(filled: BaseClient, photos: Path, tmp_path: Path) -> None:
    first, second, *_ = (image.id for image in filled.list())
    mug = photos / "mug" / "mug-00-0.jpg"
    for given in ({}, {"query": first, "picture": mug}, {"query": second}):
        with raises(filled, InvalidParameterError):
            filled.judge(second, right=True, **given)
    with raises(filled, ImageNotFoundError):
        filled.judge("nothing", right=True, query=first)
    with raises(filled, ImageNotFoundError):
        filled.judge(second, right=True, query="nothing")
    with raises(filled, NotAnImageError):
        filled.judge(second, right=True, picture=b"no picture")
    with pytest.raises(MissingFileError):
        filled.judge(second, right=True, picture=tmp_path / "none.jpg")
    with raises(filled, CollectionNotFoundError):
        filled.judge(second, right=True, query=first, collection="shoes")
    assert [*filled.judgements()] == []
    with raises(filled, CollectionNotFoundError):
        list(filled.judgements("shoes"))


def test_scores_are_calibrated(client: BaseClient, tmp_path: Path) -> None:
    draw(tmp_path / "drawn", 48)
    client.index(tmp_path / "drawn", folder_field="label")
    first = next(iter(client.list())).id
    with raises(client, CalibrationNotFoundError):
        client.calibration()
    assert client.similar(first).matches[0].copy_probability is None
    told = Told()
    made = client.calibrate(label_field="label", sample=20, progress=told)
    assert (made.copy_model.pictures, made.options.label_field) == (20, "label")
    assert made.no_match is not None
    assert told.errors == []
    assert told.reports or isinstance(client, HttpClient)  # whose job may have ended at once
    assert client.calibration() == made
    assert client.similar(first).matches[0].copy_probability is not None
    client.delete_calibration()
    assert client.similar(first).matches[0].copy_probability is None
    for forget in (client.calibration, client.delete_calibration):
        with raises(client, CalibrationNotFoundError):
            forget()
    with pytest.raises(LookalikeError, match="'none'"):
        client.calibrate(label_field="none")
    with raises(client, InvalidParameterError):
        client.calibrate(sample=1)
    with raises(client, CollectionNotFoundError):
        client.calibrate("shoes")


def test_a_collection_goes_back_to_vectors_that_were_kept(
    filled: BaseClient, tmp_path: Path
) -> None:
    with raises(filled, VectorSpaceNotFoundError):
        filled.rollback()
    head = save_head(make_head(7), tmp_path / "head.safetensors")
    filled.reembed(model={"head": str(head)})
    old, new = filled.vectors()
    assert new.active
    assert filled.rollback()
    assert [one.passport.digest for one in filled.vectors() if one.active] == [old.passport.digest]
    assert filled.rollback(digest=new.passport.digest)
    assert [one.passport.digest for one in filled.vectors() if one.active] == [new.passport.digest]
    with raises(filled, VectorSpaceNotFoundError):
        filled.rollback(digest="0" * 16)


def test_a_collection_that_cannot_move(filled: BaseClient) -> None:
    with pytest.raises(LookalikeError, match="resnet51"):
        filled.reembed(model={"model": "resnet51"})
    with pytest.raises(LookalikeError, match="nowhere"):
        filled.reembed(model={"head": "/nowhere.safetensors"})
    with raises(filled, CollectionNotFoundError):
        filled.reembed("shoes")


def test_jobs(filled: BaseClient) -> None:
    for call in (filled.job, filled.cancel_job, filled.wait_for_job):
        with raises(filled, JobNotFoundError):
            call("0" * 16)
    if isinstance(filled, HttpClient):
        begun = filled.begin_reembed()
        ended = filled.wait_for_job(begun.id)
        assert (ended.state, filled.job(begun.id), filled.cancel_job(begun.id)) == (
            "done",
            ended,
            ended,
        )
        assert filled.jobs(limit=1) == [ended]
    else:
        assert filled.jobs() == []


def test_keys(client: BaseClient) -> None:
    made = client.create_key("import", Access.WRITE)
    assert made.key.startswith(f"lk_{made.id}_")
    assert [key.model_dump() for key in client.access_keys()] == [made.model_dump(exclude={"key"})]
    with raises(client, ConflictError):
        client.create_key("import", Access.READ)
    with raises(client, InvalidParameterError):
        client.create_key("two words", Access.READ)
    with raises(client, InvalidParameterError):
        client.create_key("other", "root")  # type: ignore[arg-type]
    client.revoke_key(made.key)
    assert list(client.access_keys()) == []
    with raises(client, KeyNotFoundError):
        client.revoke_key("import")


def test_the_audit_log_names_changes(filled: BaseClient) -> None:
    filled.drop("default")
    newest, *others = filled.audit(limit=3)
    assert (newest.call, newest.outcome) == ("delete_collection", "done")
    assert newest.details["name"] == "default"
    assert "index" in [entry.call for entry in others]
    assert len(filled.audit(limit=1)) == 1


def test_a_key_that_may_not_do_it(client: BaseClient) -> None:
    if not isinstance(client, HttpClient):
        return
    made = client.create_key("reader", Access.READ)
    with HttpClient(client._server, made.key) as reader, raises(reader, ForbiddenError):
        reader.drop("shoes")
    client.revoke_key("reader")
    with HttpClient(client._server, made.key) as nobody, raises(nobody, UnauthorizedError):
        nobody.drop("shoes")


def test_a_backup_is_one_file(filled: BaseClient, tmp_path: Path) -> None:
    for name in ("b.tar", "b.tar.gz"):
        told = Told()
        filled.backup(tmp_path / name)  # an older one, which the next replaces
        assert filled.backup(tmp_path / name, progress=told)
        assert told.reports
        restore_backup(tmp_path / name, new := tmp_path / f"new-{name}", at=None, progress=told)
        with Client(new, model="color") as restored:
            assert list(restored.list()) == list(filled.list())
    with pytest.raises(LookalikeError):
        filled.backup(tmp_path)  # a folder that is not empty, or any folder
    (tmp_path / "file").touch()
    with pytest.raises(LookalikeError):
        filled.backup(tmp_path / "file" / "b.tar")
    assert {path.name for path in tmp_path.iterdir() if path.name[0] == "."} == set()
