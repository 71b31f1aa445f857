"""A collection as a vector set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lookalike.bootstrap import Services, build_services
from lookalike.errors import CollectionNotFoundError, InvalidParameterError
from lookalike.media.sources import PictureSource
from lookalike.services.vector_set import stored_vectors
from lookalike.store.filters import Filter
from scripts.samples import write_samples
from tests.settings import make_settings
from tests.store.helpers import vector_of


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    settings = make_settings(
        data_dir=tmp_path / "data",
        model="color",
    )
    paths = write_samples(tmp_path / "in", classes=["mug", "fish"], instances=2, views=2)
    with closing(build_services(settings)) as made:
        sources = [
            PictureSource.from_path(path, metadata={"label": path.parent.name, "n": n})
            for n, path in enumerate(paths)
        ]
        sources.append(PictureSource.from_path(paths[0], id="unlabeled", metadata={}))
        assert not any(item.error for item in made.indexing.index(sources))
        yield made


def test_rows_vectors_and_pictures_belong_together(services: Services) -> None:
    found = stored_vectors(services.store, services.pictures, "default")
    assert len(found) == 9
    assert found.labels is None
    assert found.name == "default"
    for position, image_id in enumerate(found.ids):
        record = services.store.get("default", image_id)
        assert found.names[position] == record.filename
        assert found.sha256s[position] == record.sha256
        vector = vector_of(services.store, "default", image_id)
        assert np.array_equal(found.vectors[position], vector)
        small = found.picture(position, size=64)
        assert max(small.size) <= 256
        assert max(found.picture(position, size=300).size) == 400
        live = services.encoders.default.encoder
        again = live.encode(live.prepare(found.picture(position, size=400))[None])[0]
        assert np.dot(again, vector) > 0.9999


def test_labels_come_from_a_field_and_others_are_skipped(services: Services) -> None:
    found = stored_vectors(services.store, services.pictures, "default", label_field="label")
    assert found.labels == ["mug"] * 4 + ["fish"] * 4
    assert [skipped.name for skipped in found.skipped] == ["unlabeled"]
    numbers = stored_vectors(
        services.store,
        services.pictures,
        "default",
        label_field="n",
        where=Filter.parse({"label": "fish"}),
    )
    assert numbers.labels == ["4", "5", "6", "7"]
    services.store.update_metadata("default", "unlabeled", {"about": {"cafe\u0301": "e\u0301"}})
    found = stored_vectors(
        services.store, services.pictures, "default", label_field="about.caf\u00e9"
    )
    assert found.labels == ["\u00e9"]


def test_what_cannot_be_read_says_what_there_is(services: Services) -> None:
    with pytest.raises(CollectionNotFoundError, match="'nothing'"):
        stored_vectors(services.store, services.pictures, "nothing")
    with pytest.raises(InvalidParameterError, match="'kind'; the fields there are: label, n"):
        stored_vectors(services.store, services.pictures, "default", label_field="kind")
    none = Filter.parse({"label": "car"})
    with pytest.raises(InvalidParameterError, match=r"passes the filter; widen it$"):
        stored_vectors(services.store, services.pictures, "default", where=none)
    none = Filter.parse({"labl": "mug"})
    with pytest.raises(InvalidParameterError, match="No picture has the field 'labl'"):
        stored_vectors(services.store, services.pictures, "default", where=none)
