"""Names of files and values of metadata, as clients write them."""

import json
import unicodedata
from urllib.parse import quote

import pytest

from lookalike.store.filters import Filter, check_metadata, merge_patch
from tests.api.conftest import ADMIN, picture
from tests.api.test_uploads import END, FORM

NFC, NFD = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))

NAMED = {
    'filename="plain.jpg"': "plain.jpg",
    'filename="été.jpg"': "été.jpg",
    f'filename="{NFD}.jpg"': f"{NFC}.jpg",
    'filename="my \\"cat\\".jpg"': 'my "cat".jpg',
    'filename="my %22cat%22.jpg"': 'my "cat".jpg',
    'filename="a;b.jpg"': "a;b.jpg",
    f"filename*=UTF-8''{quote('naïve café.jpg')}": "naïve café.jpg",
    f"filename*=utf-8'fr'{quote(NFD)}.jpg": f"{NFC}.jpg",
    "filename*=iso-8859-1''caf%E9.jpg": "café.jpg",
    f"filename=\"fallback.jpg\"; filename*=UTF-8''{quote('猫.jpg')}": "猫.jpg",
    f"filename*=UTF-8''{quote('猫.jpg')}; filename=\"fallback.jpg\"": "猫.jpg",
    "filename=\"x; filename*=UTF-8''y.jpg\"": "x; filename*=UTF-8''y.jpg",
    "filename*=UTF-8''bad%FF%00%0A.jpg": "bad\N{REPLACEMENT CHARACTER}??.jpg",
    "FileName*=utf-8''x%22y.jpg": 'x"y.jpg',
    'filename="caf\udce9.jpg"': "café.jpg",  # the bytes of Latin-1
}


@pytest.mark.parametrize("disposition", NAMED)
def test_names_of_uploads(client, disposition):
    head = f'--frontier\r\nContent-Disposition: form-data; name="files"; {disposition}\r\n\r\n'
    body = head.encode("utf-8", "surrogateescape") + picture() + b"\r\n" + END
    answer = client.post("/index", content=body, headers={**FORM, **ADMIN})
    assert answer.status_code == 201, answer.text
    assert answer.json()["items"][0]["filename"] == NAMED[disposition]
    found = client.post("/search", content=body.replace(b'"files"', b'"file"'), headers=FORM)
    assert found.status_code == 200


def test_both_forms_of_unicode_are_one_value(client, index):
    metadata = [{"place": NFC}, {"place": NFD}, {NFD: [NFD, {"x": NFD}]}]
    pictures = [(f"{n}.png", picture(instance=n)) for n in range(3)]
    index(*pictures, ids=["a", "b", "c"], metadata=json.dumps(metadata))
    assert client.get("/images/b").json()["metadata"] == {"place": NFC}
    assert client.get("/images/c").json()["metadata"] == {NFC: [NFC, {"x": NFC}]}
    for form in (NFC, NFD):
        params = {"filter": json.dumps({"place": form})}
        assert client.get("/collections/default/count", params=params).json()["count"] == 2
    again = index(pictures[1], ids="b", metadata=json.dumps({"place": NFD}))
    assert again["items"][0]["status"] == "unchanged"
    patched = client.patch("/images/c", headers=ADMIN, json={"metadata": {NFD: None, "n": NFD}})
    assert patched.json()["metadata"] == {"n": NFC}


def test_what_was_stored_before_in_another_form_is_found_and_changed():
    assert Filter.parse({NFC: NFC}).matches({NFD: NFD})
    assert merge_patch({NFD: 1, "n": {NFD: 2}}, {NFC: None, "n": {NFC: 3}}) == {"n": {NFC: 3}}
    assert check_metadata({NFD: NFD}) == {NFC: NFC}
