"""Collections as a whole: their deletion, their vector sets, and the encoders they need."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from lookalike.errors import ConflictError, EmbeddingSetNotFoundError
from lookalike.models.base import Encoder
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.models.head import Head
from lookalike.models.spec import ModelRequest
from lookalike.records import ModelSpec, check_collection_name
from lookalike.services.jobs import IMPORT_KINDS, REEMBED_KIND, JobService
from lookalike.services.pipeline import PutGate
from lookalike.store.base import Store, VectorSpace

MakeEncoder = Callable[[ModelRequest], Encoder]
"""Builds the encoder that is asked for; raises `ConfigurationError` if that is not possible."""

log = logging.getLogger(__name__)


class CollectionService:
    """Deletes collections and their vector sets.

    The gate holds back what imports are about to commit until they know that they are to end.
    """

    def __init__(self, store: Store, jobs: JobService, gate: PutGate) -> None:
        self._store = store
        self._jobs = jobs
        self._gate = gate

    def drop(self, collection: str, *, wait: bool = False) -> int:
        """Removes a collection and ends the imports into it; returns how many pictures it had.

        With `wait`, what it leaves on the disk is removed before this returns.

        Raises:
            CollectionNotFoundError: There is no such collection; imports that may make it go on.
            StorageError: The disk refuses; the collection is still there, but imports into it may
                have ended.
        """
        check_collection_name(collection)
        with self._gate.closed(collection):
            if self._store.collection(collection) is not None:
                # First: imports that could not be canceled any more would make it anew.
                why = f"Canceled by the deletion of the collection {collection!r}"
                for job in self._jobs.unfinished(collection):
                    if job.kind in IMPORT_KINDS:
                        self._jobs.cancel(job.id, why=why)
            return self._store.drop(collection, wait=wait)

    def vector_sets(self, collection: str) -> list[VectorSpace]:
        """All vector sets of a collection, in the order made; raises `CollectionNotFoundError`."""
        return self._store.spaces.all(check_collection_name(collection))

    def discard(self, collection: str, digest: str) -> None:
        """Removes the vectors that one model made, by its spec's digest, if they are not in use.

        Raises:
            CollectionNotFoundError: There is no such collection.
            EmbeddingSetNotFoundError: It has no vectors under this digest.
            ConflictError: Searches use these vectors, or a job may be making them.
        """
        sets = self.vector_sets(collection)
        found = next((one for one in sets if one.spec.digest == digest), None)
        if found is None:
            digests = ", ".join(one.spec.digest for one in sets)
            raise EmbeddingSetNotFoundError(
                f"The collection {collection!r} has no vectors under {digest!r}; it has {digests}"
            )
        if any(job.kind == REEMBED_KIND for job in self._jobs.unfinished(collection)):
            raise ConflictError(
                f"The collection {collection!r} is being re-embedded; wait for the job's end or "
                "cancel it, then discard the vectors"
            )
        self._store.spaces.discard(collection, found.spec)


class CollectionModels:
    """Keeps encoders live as long as a collection needs them.

    Args:
        encoders: The live ones; those that are built join them.
        store: Where the collections are.
        make: Builds an encoder.
        default: What the default encoder was built from.
        keep_head: Keeps a head and returns the path of what is kept, to ask for.
    """

    def __init__(
        self,
        encoders: Encoders,
        store: Store,
        *,
        make: MakeEncoder,
        default: ModelRequest,
        keep_head: Callable[[Head], str],
    ) -> None:
        self._encoders = encoders
        self._store = store
        self._make = make
        self._default = default
        self._keep_head = keep_head

    def restore(self) -> None:
        """Builds the encoders that active sets need, if it was recorded how; logs what fails."""
        for info in self._store.collections():
            active = self.active(info.name)
            spec, request = active.spec, _recorded(active)
            if request is None and spec.int8 and spec.head is None:  # it is kept under its spec
                request = ModelRequest.of(spec, weights=spec.weights, head=None)
            if request is None or self._is_live(spec):
                continue
            if not self._try_live(spec, request):
                log.warning("searches in the collection %s are refused", info.name)

    def live(self, request: ModelRequest) -> LiveEncoder:
        """The encoder that is asked for, built anew: the same path may hold another head by now."""
        if request == self._default and request.head is None:
            return self._encoders.default
        return self._encoders.add(self._make(request))

    def lasting(self, request: ModelRequest, encoder: Encoder) -> ModelRequest:
        """The request by what is kept, whatever is trained or quantized later: head and network."""
        network = encoder.spec
        if encoder.head is not None:
            network = encoder.head.backbone
            request = replace(request, head=self._keep_head(encoder.head))
        return replace(request, int8=network.digest) if network.int8 else request

    def keep_live(self, collection: str, target: ModelRequest) -> None:
        """Lets searches in the active set go on during and after a move, if that is possible."""
        active = self.active(collection)
        spec = active.spec
        request = recorded = _recorded(active)
        if spec.digest == self._encoders.default.spec.digest:
            request = self.lasting(self._default, self._encoders.default.encoder)
        elif not self._is_live(spec):
            request = recorded or _likely(spec, target)
            if request is None or not self._try_live(spec, request):
                return
        if request is not None and request != recorded:
            self._store.spaces.begin(collection, spec, provenance={}, recipe=request.to_dict())

    def retire(self) -> None:
        """Closes the encoders that no collection needs, but the default one."""
        needed = {info.spec.digest for info in self._store.collections()}
        needed.add(self._encoders.default.spec.digest)
        for live in self._encoders.live:
            if live.spec.digest not in needed:
                self._encoders.remove(live.spec)

    def active(self, collection: str) -> VectorSpace:
        """The set of a collection that is searched."""
        return next(one for one in self._store.spaces.all(collection) if one.active)

    def _is_live(self, spec: ModelSpec) -> bool:
        return any(live.spec.digest == spec.digest for live in self._encoders.live)

    def _try_live(self, spec: ModelSpec, request: ModelRequest) -> bool:
        """Builds an encoder, and makes it live if it still is what the spec says."""
        try:
            encoder = self._make(request)
        except Exception as exc:  # one collection's model must not keep a service from starting
            log.warning("the model of %s cannot be built again: %s", spec.digest, exc)
            return False
        apart = spec.differences(encoder.spec)
        if apart:
            log.warning("what built %s builds another model now: %s", spec.digest, apart)
            return False
        self._encoders.add(encoder)
        return True


def _recorded(one: VectorSpace) -> ModelRequest | None:
    return None if one.recipe is None else ModelRequest.from_dict(one.recipe)


def _likely(spec: ModelSpec, target: ModelRequest) -> ModelRequest | None:
    """What a set was probably built from that moves to `target` for its head or its int8."""
    without_head = target.head is not None and spec.head is None
    in_floats = bool(target.int8) and not spec.int8
    if not without_head and not in_floats:
        return None
    return ModelRequest.of(spec, weights=target.weights, head=target.head if spec.head else None)
