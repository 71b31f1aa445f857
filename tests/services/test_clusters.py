"""Groups by k-means: their order, their choice, and what labels say of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import InvalidParameterError
from lookalike.progress import Progress
from lookalike.services.clusters import Sizes, cluster_pictures
from lookalike.services.vector_set import VectorSet
from tests.store.helpers import SPEC, digest


def blobs(*sizes: int, dim: int = 16, labels: list[str] | None = None) -> VectorSet:
    """Groups of unit vectors around the axes, in mixed order."""
    random = np.random.default_rng(0)
    which = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = np.eye(dim)[which] + random.normal(0, 0.05, (len(which), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"{which[place]}-{place}" for place in range(len(which))]
    return VectorSet(
        name="blobs",
        spec=SPEC,
        provenance={},
        vectors=rows.astype(np.float32),
        ids=ids,
        names=ids,
        labels=labels or [f"class {one}" for one in which],
        sha256s=[digest(one) for one in ids],
        picture=lambda position, *, size: Image.new("RGB", (size, size)),
    )


def of_axis(vectors: VectorSet, group) -> set[str]:
    return {vectors.ids[position].split("-")[0] for position in group.positions}


@pytest.mark.parametrize("clusters", [None, 4])
def test_groups_are_found_the_largest_first(clusters):
    vectors = blobs(30, 80, 20, 50)
    found = cluster_pictures(vectors, clusters=clusters)
    assert [len(group) for group in found.groups] == [80, 50, 30, 20]
    assert [of_axis(vectors, group) for group in found.groups] == [{"1"}, {"3"}, {"0"}, {"2"}]
    assert found.purity == 1.0
    assert found.nmi == pytest.approx(1.0)
    assert bool(found.tried) == (clusters is None)
    if clusters is None:
        assert max(found.tried, key=found.tried.__getitem__) == 4


def test_every_picture_is_in_one_group_and_the_most_central_come_first():
    vectors = blobs(30, 20)
    found = cluster_pictures(vectors, clusters=2)
    together = np.concatenate([group.positions for group in found.groups])
    assert sorted(together) == list(range(50))
    for number, group in enumerate(found.groups):
        center = vectors.vectors[group.positions].mean(axis=0)
        center /= np.linalg.norm(center)
        expected = vectors.vectors[group.positions] @ center
        assert np.allclose(group.scores, expected, atol=1e-5)
        assert np.all(np.diff(group.scores) <= 0)
        assert set(found.of_pictures()[group.positions]) == {number}


def test_the_seed_decides():
    vectors = blobs(40, 40, 40)
    first, again = (cluster_pictures(vectors, clusters=7, seed=3) for _ in range(2))
    assert np.array_equal(first.of_pictures(), again.of_pictures())


def test_agreement_with_labels_is_what_the_definition_says():
    vectors = blobs(3, 1)
    big = [place for place, name in enumerate(vectors.ids) if name.startswith("0")]
    labels = ["b"] * 4
    for place in big[:2]:
        labels[place] = "a"
    found = cluster_pictures(blobs(3, 1, labels=labels), clusters=2)
    assert found.purity == 3 / 4  # two a and one b in the one group, one b in the other
    entropy = lambda *shares: -sum(p * math.log(p) for p in shares)  # noqa: E731
    information = entropy(3 / 4, 1 / 4) + entropy(1 / 2, 1 / 2) - entropy(1 / 2, 1 / 4, 1 / 4)
    mean = (entropy(3 / 4, 1 / 4) + entropy(1 / 2, 1 / 2)) / 2
    assert found.nmi == pytest.approx(information / mean)


def test_long_vectors_and_many_pictures_take_other_ways():
    vectors = blobs(30, 60, 40)
    small = Sizes(sample=60, longest=8, kept=4, fitted=60, whole=50)
    found = cluster_pictures(vectors, sizes=small)
    assert [len(group) for group in found.groups] == [60, 40, 30]


def test_equal_vectors_make_fewer_groups():
    vectors = blobs(6)
    vectors.vectors[:] = vectors.vectors[0]
    assert len(cluster_pictures(vectors, clusters=3).groups) == 1
    assert len(cluster_pictures(vectors).groups) == 1


def test_progress_is_told():
    told = []
    cluster_pictures(blobs(5, 5), progress=Progress(lambda _, *at: told.append(at)))
    assert told == [(1, 1)]


@pytest.mark.parametrize(("size", "clusters"), [(1, None), (5, 0), (5, 6)])
def test_what_cannot_be_grouped(size, clusters):
    with pytest.raises(InvalidParameterError):
        cluster_pictures(blobs(size), clusters=clusters)
