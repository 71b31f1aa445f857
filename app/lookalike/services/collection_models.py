"""The extractors that collections need beside the service's own, made by their recipes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import combinations

from lookalike.errors import PassportMismatchError
from lookalike.models.base import Extractor
from lookalike.models.extractors import Extractors, LiveExtractor
from lookalike.models.head import Head
from lookalike.models.headed_extractor import HeadedExtractor
from lookalike.records import Passport
from lookalike.store.base import Store
from lookalike.store.embedding_sets import EmbeddingSet, Recipe

RECIPE_SETTINGS = ("model", "weights", "pooling", "resize", "input_size", "head")
"""Settings that a recipe holds beside `INT8`; device and float precision are the service's own."""

INT8 = "int8"
"""What a recipe says of quantization: false for floats, true for the newest int8 network of the
recipe's settings, or the digest of the int8 network's passport."""

MakeExtractor = Callable[[Recipe], Extractor]
"""Makes an extractor as a recipe says; raises `ConfigurationError` where that cannot be."""

log = logging.getLogger(__name__)


class CollectionModels:
    """Makes extractors live as long as a collection needs them.

    Args:
        extractors: The live ones; those that are made join them.
        store: Where the collections are.
        make: Makes an extractor by its recipe.
        default_recipe: How the default extractor was made.
        keep_head: Keeps a head and gives the path to name in a recipe, so that whatever happens to
            the file that it came from, it can be made again.
    """

    def __init__(
        self,
        extractors: Extractors,
        store: Store,
        *,
        make: MakeExtractor,
        default_recipe: Recipe,
        keep_head: Callable[[Head], str],
    ) -> None:
        self._extractors = extractors
        self._store = store
        self._make = make
        self._default_recipe = dict(default_recipe)
        self._keep_head = keep_head
        self._made: list[Passport] = []

    def restore(self) -> None:
        """Makes the extractors live again that active sets need and whose recipe is known.

        What cannot be made is said in the log; calls on such a collection raise
        `PassportMismatchError`.
        """
        for info in self._store.collections():
            active = self.active(info.name)
            recipe = active.recipe or _recipe_of_int8(active.passport)
            if self._is_live(active.passport) or recipe is None:
                continue
            if not self._try_live(active.passport, recipe):
                log.warning("searches in the collection %s are refused", info.name)

    def live(self, recipe: Recipe) -> LiveExtractor:
        """The extractor of a recipe, made anew: the same path may hold another head by now.

        Raises:
            ConfigurationError: It cannot be made.
        """
        if recipe == self._default_recipe and not recipe.get("head"):
            return self._extractors.default
        extractor = self._make(recipe)
        if not self._is_live(extractor.passport):
            self._made.append(extractor.passport)
        return self._extractors.add(extractor)

    def lasting(self, recipe: Recipe, extractor: Extractor) -> Recipe:
        """A recipe that names what is kept, whatever else is made later: a head, a network."""
        kept, below = dict(recipe), extractor
        if isinstance(extractor, HeadedExtractor):
            kept["head"] = self._keep_head(extractor.head)
            below = extractor.extractor
        if below.passport.int8:
            kept[INT8] = below.passport.digest
        return kept

    def keep_live(self, collection: str, target: Recipe) -> None:
        """Has searches in the active set go on, now and after a restart, wherever that can be.

        Args:
            collection: That is about to move.
            target: Where to.
        """
        active = self.active(collection)
        recipe = active.recipe
        if active.passport.digest == self._extractors.default.passport.digest:
            recipe = self.lasting(self._default_recipe, self._extractors.default.extractor)
        elif not self._is_live(active.passport):
            guesses = [recipe] if recipe is not None else _akin(target)
            passport = active.passport
            recipe = next((one for one in guesses if self._try_live(passport, one)), None)
        if recipe is not None and recipe != active.recipe:
            self._store.sets.begin(collection, active.passport, provenance={}, recipe=recipe)

    def retire(self) -> None:
        """Lets go of the extractors made here that no collection needs."""
        needed = {info.passport.digest for info in self._store.collections()}
        needed.add(self._extractors.default.passport.digest)
        for passport in list(self._made):
            if passport.digest not in needed:
                self._made.remove(passport)
                self._extractors.remove(passport)

    def active(self, collection: str) -> EmbeddingSet:
        """The set of a collection that is searched."""
        return next(one for one in self._store.sets.all(collection) if one.active)

    def _try_live(self, passport: Passport, recipe: Recipe) -> bool:
        """Makes an extractor live if its recipe still gives what the passport says."""
        try:
            extractor = self._make(recipe)
        except Exception as exc:  # one collection's model must not keep a service from starting
            log.warning("the model of %s cannot be made again: %s", passport.digest, exc)
            return False
        apart = passport.differences(extractor.passport)
        if apart:
            log.warning("the recipe of %s makes another model now: %s", passport.digest, apart)
            return False
        self._extractors.add(extractor)
        self._made.append(passport)
        return True

    def _is_live(self, passport: Passport) -> bool:
        try:
            self._extractors.for_passport(passport)
        except PassportMismatchError:
            return False
        return True


def _akin(target: Recipe) -> Iterator[Recipe]:
    """What a set may have been made by that moves to `target`: in floats, without its head."""
    less = {INT8: False, "head": None}
    there = [name for name in less if target.get(name)]
    for count in range(1, len(there) + 1):
        for names in combinations(there, count):
            yield {**target, **{name: less[name] for name in names}}


def _recipe_of_int8(passport: Passport) -> Recipe | None:
    """How an int8 network of the service's own is made again: it is kept under its passport."""
    if not passport.int8 or passport.head is not None:
        return None
    return {name: getattr(passport, name) for name in RECIPE_SETTINGS} | {INT8: passport.digest}
