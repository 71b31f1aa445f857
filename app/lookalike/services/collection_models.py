"""The encoders that collections need beside the service's own, made by their recipes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import combinations

from lookalike.errors import SpecMismatchError
from lookalike.models.base import Encoder
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.models.head import Head
from lookalike.models.headed_encoder import HeadedEncoder
from lookalike.records import ModelSpec
from lookalike.store.base import Store
from lookalike.store.embedding_sets import EmbeddingSet, Recipe

RECIPE_SETTINGS = ("model", "weights", "pooling", "resize", "input_size", "head")
"""Settings that a recipe holds beside `INT8`; device and float precision are the service's own."""

INT8 = "int8"
"""What a recipe says of quantization: false for floats, true for the newest int8 network of the
recipe's settings, or the digest of the int8 network's spec."""

MakeEncoder = Callable[[Recipe], Encoder]
"""Makes an encoder as a recipe says; raises `ConfigurationError` where that cannot be."""

log = logging.getLogger(__name__)


class CollectionModels:
    """Makes encoders live as long as a collection needs them.

    Args:
        encoders: The live ones; those that are made join them.
        store: Where the collections are.
        make: Makes an encoder by its recipe.
        default_recipe: How the default encoder was made.
        keep_head: Keeps a head and gives the path to name in a recipe, so that whatever happens to
            the file that it came from, it can be made again.
    """

    def __init__(
        self,
        encoders: Encoders,
        store: Store,
        *,
        make: MakeEncoder,
        default_recipe: Recipe,
        keep_head: Callable[[Head], str],
    ) -> None:
        self._encoders = encoders
        self._store = store
        self._make = make
        self._default_recipe = dict(default_recipe)
        self._keep_head = keep_head
        self._made: list[ModelSpec] = []

    def restore(self) -> None:
        """Makes the encoders live again that active sets need and whose recipe is known.

        What cannot be made is said in the log; calls on such a collection raise
        `SpecMismatchError`.
        """
        for info in self._store.collections():
            active = self.active(info.name)
            recipe = active.recipe or _recipe_of_int8(active.spec)
            if self._is_live(active.spec) or recipe is None:
                continue
            if not self._try_live(active.spec, recipe):
                log.warning("searches in the collection %s are refused", info.name)

    def live(self, recipe: Recipe) -> LiveEncoder:
        """The encoder of a recipe, made anew: the same path may hold another head by now.

        Raises:
            ConfigurationError: It cannot be made.
        """
        if recipe == self._default_recipe and not recipe.get("head"):
            return self._encoders.default
        encoder = self._make(recipe)
        if not self._is_live(encoder.spec):
            self._made.append(encoder.spec)
        return self._encoders.add(encoder)

    def lasting(self, recipe: Recipe, encoder: Encoder) -> Recipe:
        """A recipe that names what is kept, whatever else is made later: a head, a network."""
        kept, below = dict(recipe), encoder
        if isinstance(encoder, HeadedEncoder):
            kept["head"] = self._keep_head(encoder.head)
            below = encoder.encoder
        if below.spec.int8:
            kept[INT8] = below.spec.digest
        return kept

    def keep_live(self, collection: str, target: Recipe) -> None:
        """Has searches in the active set go on, now and after a restart, wherever that can be.

        Args:
            collection: That is about to move.
            target: Where to.
        """
        active = self.active(collection)
        recipe = active.recipe
        if active.spec.digest == self._encoders.default.spec.digest:
            recipe = self.lasting(self._default_recipe, self._encoders.default.encoder)
        elif not self._is_live(active.spec):
            guesses = [recipe] if recipe is not None else _akin(target)
            spec = active.spec
            recipe = next((one for one in guesses if self._try_live(spec, one)), None)
        if recipe is not None and recipe != active.recipe:
            self._store.sets.begin(collection, active.spec, provenance={}, recipe=recipe)

    def retire(self) -> None:
        """Lets go of the encoders made here that no collection needs."""
        needed = {info.spec.digest for info in self._store.collections()}
        needed.add(self._encoders.default.spec.digest)
        for spec in list(self._made):
            if spec.digest not in needed:
                self._made.remove(spec)
                self._encoders.remove(spec)

    def active(self, collection: str) -> EmbeddingSet:
        """The set of a collection that is searched."""
        return next(one for one in self._store.sets.all(collection) if one.active)

    def _try_live(self, spec: ModelSpec, recipe: Recipe) -> bool:
        """Makes an encoder live if its recipe still gives what the spec says."""
        try:
            encoder = self._make(recipe)
        except Exception as exc:  # one collection's model must not keep a service from starting
            log.warning("the model of %s cannot be made again: %s", spec.digest, exc)
            return False
        apart = spec.differences(encoder.spec)
        if apart:
            log.warning("the recipe of %s makes another model now: %s", spec.digest, apart)
            return False
        self._encoders.add(encoder)
        self._made.append(spec)
        return True

    def _is_live(self, spec: ModelSpec) -> bool:
        try:
            self._encoders.for_spec(spec)
        except SpecMismatchError:
            return False
        return True


def _akin(target: Recipe) -> Iterator[Recipe]:
    """What a set may have been made by that moves to `target`: in floats, without its head."""
    less = {INT8: False, "head": None}
    there = [name for name in less if target.get(name)]
    for count in range(1, len(there) + 1):
        for names in combinations(there, count):
            yield {**target, **{name: less[name] for name in names}}


def _recipe_of_int8(spec: ModelSpec) -> Recipe | None:
    """How an int8 network of the service's own is made again: it is kept under its spec."""
    if not spec.int8 or spec.head is not None:
        return None
    return {name: getattr(spec, name) for name in RECIPE_SETTINGS} | {INT8: spec.digest}
