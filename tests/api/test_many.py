"""POST /images/delete and POST /images/update: many pictures in one step."""

from __future__ import annotations

import pytest

from lookalike.records import MOST_CHANGED, SHOWN
from tests.api.conftest import ADMIN, picture, solid
from tests.api.test_audit import entries


@pytest.fixture
def filled(client, index):
    """Twelve pictures: `p0`, a cat of price 0, to `p11`, a dog of price 11."""
    files = [(f"{n}.png", solid((20 * n, 9, 200 - 9 * n))) for n in range(12)]
    metadata = [f'{{"label": "{"cat" if n < 6 else "dog"}", "price": {n}}}' for n in range(12)]
    index(*files, ids=[f"p{n}" for n in range(12)], metadata=f"[{', '.join(metadata)}]")

    def ask(call, **body):
        answer = client.post(f"/images/{call}", headers=ADMIN, json=body)
        return answer.status_code, answer.json()

    return ask


def ids(client, **query):
    return [one["id"] for one in client.get("/images", params=query).json()["images"]]


def test_ids_are_deleted_and_missing_ones_named(client, filled):
    status, answer = filled("delete", ids=["p1", "gone", "p2", "p1", "../p3"])
    assert status == 207
    assert (answer["matched"], answer["changed"], answer["failed"]) == (2, 2, 2)
    assert [(one["id"], one["status"]) for one in answer["items"]] == [
        ("p1", "deleted"),
        ("p2", "deleted"),
        ("../p3", "failed"),
        ("gone", "failed"),
    ]
    codes = {one["id"]: one["error"]["code"] for one in answer["items"] if one["error"]}
    assert codes == {"gone": "image_not_found", "../p3": "invalid_id"}
    assert ids(client) == ["p0", *(f"p{n}" for n in range(3, 12))]
    assert client.get("/images/p1").status_code == 404
    found = client.post("/search", files={"file": solid((20, 9, 191))}, data={"k": 12})
    assert "p1" not in [one["id"] for one in found.json()["matches"]]
    assert filled("delete", ids=["p3"]) == (
        200,
        {
            "collection": "default",
            "dry_run": False,
            "matched": 1,
            "changed": 1,
            "failed": 0,
            "items": [{"id": "p3", "status": "deleted", "error": None}],
            "images": [],
            "next_cursor": None,
            "warnings": [],
        },
    )
    assert filled("delete", ids=[])[0] == 200


def test_a_filter_chooses_what_is_deleted(client, filled):
    where = {"label": "cat", "price": {"gte": 2}}
    status, answer = filled("delete", filter=where, dry_run=True)
    assert (status, answer["matched"], answer["changed"]) == (200, 4, 0)
    assert [one["id"] for one in answer["images"]] == ["p2", "p3", "p4", "p5"]
    assert answer["images"][0]["metadata"] == {"label": "cat", "price": 2}
    assert len(ids(client)) == 12
    status, answer = filled("delete", filter=where)
    assert (status, answer["matched"], answer["changed"]) == (200, 4, 4)
    assert filled("delete", filter=where)[1]["changed"] == 0
    assert ids(client) == ["p0", "p1", *(f"p{n}" for n in range(6, 12))]
    _, answer = filled("delete", filter={"labl": {"exists": False}}, dry_run=True)
    assert answer["warnings"] == ["No picture has the field 'labl'"]


def test_a_dry_run_shows_the_first_few_and_names_what_would_fail(client, filled):
    status, answer = filled("delete", all=True, dry_run=True)
    assert (status, answer["matched"], len(answer["images"])) == (200, 12, SHOWN)
    assert answer["images"][0]["thumbnail_url"].startswith("/images/p0/thumbnail")
    status, answer = filled("update", ids=["p1", "gone"], metadata={"a": 1}, dry_run=True)
    assert (status, answer["matched"], answer["changed"]) == (207, 1, 0)
    assert [one["id"] for one in answer["items"]] == ["gone"]
    assert client.get("/images/p1").json()["metadata"] == {"label": "cat", "price": 1}
    assert len(ids(client)) == 12


def test_metadata_is_merged_or_replaced_as_by_patch(client, filled):
    patch = {"sale": True, "price": None, "size": {"w": 3}}
    status, answer = filled("update", filter={"label": "dog"}, metadata=patch)
    assert (status, answer["changed"], answer["items"][0]["status"]) == (200, 6, "updated")
    changed = {"label": "dog", "sale": True, "size": {"w": 3}}
    assert client.get("/images/p7").json()["metadata"] == changed
    assert ids(client, filter='{"size.w": 3}') == [f"p{n}" for n in range(6, 12)]
    one = client.patch("/images/p0", headers=ADMIN, json={"metadata": patch}).json()
    assert one["metadata"] == changed | {"label": "cat"}
    filled("update", ids=["p0", "p1"], metadata={"new": [1]}, replace=True)
    assert client.get("/images/p1").json()["metadata"] == {"new": [1]}
    assert ids(client, filter='{"new": 1}') == ["p0", "p1"]


def test_metadata_that_grows_too_large_harms_no_other_picture(clients, settings):
    client = clients(settings.model_copy(update={"max_metadata_bytes": 60}))
    given = {"ids": ["a", "b"], "metadata": '[{"long": "' + "x" * 40 + '"}, {}]'}
    files = [("files", (name, picture("mug", n))) for n, name in enumerate(["a.png", "b.png"])]
    assert client.post("/index", headers=ADMIN, files=files, data=given).status_code == 201
    body = {"ids": ["a", "b"], "metadata": {"more": "y" * 20}}
    answer = client.post("/images/update", headers=ADMIN, json=body)
    assert answer.status_code == 207
    found = {one["id"]: one["error"] and one["error"]["code"] for one in answer.json()["items"]}
    assert found == {"a": "metadata_too_large", "b": None}
    assert client.get("/images/a").json()["metadata"] == {"long": "x" * 40}
    assert client.get("/images/b").json()["metadata"] == {"more": "y" * 20}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_parameter"),
        ({"filter": {}}, "invalid_parameter"),
        ({"filter": {"and": [{}]}}, "invalid_parameter"),
        ({"filter": {"or": [{"label": "cat"}, {}]}}, "invalid_parameter"),
        ({"ids": ["p1"], "filter": {"label": "cat"}}, "invalid_parameter"),
        ({"ids": ["p1"], "all": True}, "invalid_parameter"),
        ({"filter": None, "dry_run": True}, "invalid_parameter"),
        ({"ids": ["p1"], "cursor": "x"}, "invalid_parameter"),
        ({"all": True, "cursor": "no cursor"}, "invalid_parameter"),
        ({"ids": ["p"] * (MOST_CHANGED + 1)}, "invalid_parameter"),
        ({"filter": {"price": {"over": 3}}}, "invalid_filter"),
        ({"filters": {"label": "cat"}}, "invalid_parameter"),
        ({"all": "yes"}, "invalid_parameter"),
        ({"ids": "p1"}, "invalid_parameter"),
        ({"ids": ["p1"], "collection": "none"}, "collection_not_found"),
    ],
)
def test_what_is_not_said_plainly_changes_nothing(client, filled, body, code):
    status, answer = filled("delete", **body)
    assert (status, answer["code"]) == (404 if code.endswith("found") else 422, code)
    assert len(ids(client)) == 12


def test_all_is_said_plainly(client, filled):
    assert filled("delete", all=True)[1]["changed"] == 12
    assert ids(client) == []
    assert [one["count"] for one in client.get("/collections").json()["collections"]] == [0]


def test_many_go_in_steps_that_a_cursor_puts_together(client, filled, monkeypatch):
    monkeypatch.setattr("lookalike.services.pictures.MOST_CHANGED", 5)
    seen, cursor = [], None
    while True:
        _, answer = filled("update", all=True, metadata={"seen": 1}, cursor=cursor)
        assert answer["matched"] == 12
        seen.append([one["id"] for one in answer["items"]])
        if (cursor := answer["next_cursor"]) is None:
            break
    assert [len(one) for one in seen] == [5, 5, 2]
    assert [one for step in seen for one in step] == ids(client, filter='{"seen": 1}')
    first = filled("delete", filter={"seen": 1})[1]
    assert (first["matched"], first["changed"]) == (12, 5)
    rest = filled("delete", filter={"seen": 1}, cursor=first["next_cursor"])[1]
    assert (rest["matched"], rest["changed"]) == (7, 5)
    assert len(ids(client)) == 2


def test_the_most_ids_at_their_longest_fit(client, filled):
    longest = [f"{n:0128}" for n in range(MOST_CHANGED)]
    status, answer = filled("delete", ids=[*longest[:-1], "p0"])
    assert (status, answer["changed"], answer["failed"]) == (207, 1, MOST_CHANGED - 1)


def test_a_picture_that_changes_before_it_is_deleted_stays_if_it_no_longer_passes(
    client, filled, monkeypatch
):
    store = client.app.state.parts.services.store
    real = store.delete_many

    def late(*given, **how):
        store.update_metadata("default", "p2", {"price": 100})
        return real(*given, **how)

    monkeypatch.setattr(store, "delete_many", late)
    assert filled("delete", filter={"price": {"lt": 4}})[1]["changed"] == 3
    assert ids(client, filter='{"label": "cat"}') == ["p2", "p4", "p5"]


def test_the_audit_log_says_what_was_chosen_and_done(client, filled):
    filled("update", filter={"label": "cat"}, metadata={"b": 1, "a": 2})
    filled("delete", ids=["p3", "gone"])
    deleted, updated, *_ = entries(client)
    assert (deleted["call"], updated["call"]) == ("delete_images", "update_images")
    facts = {name: deleted["details"][name] for name in ("ids", "changed", "failed", "dry_run")}
    assert facts == {"ids": ["p3"], "changed": 1, "failed": 1, "dry_run": False}
    assert updated["details"]["filter"] == '{"label": "cat"}'
    assert updated["details"]["fields"] == ["a", "b"]
    assert updated["details"]["ids"] == [f"p{n}" for n in range(6)]


def test_files_of_deleted_pictures_are_noted_for_the_sweep(client, filled):
    store = client.app.state.parts.services.store
    digests = {one["sha256"] for one in client.get("/images").json()["images"]}
    filled("delete", filter={"label": {"in": ["cat", "dog"]}})
    assert digests <= set(store.noted())
