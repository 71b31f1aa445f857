"""Listing collections, deleting them, and the vector sets that each one has."""

from __future__ import annotations

from lookalike.errors import ConflictError, EmbeddingSetNotFoundError
from lookalike.records import CollectionInfo, check_collection_name
from lookalike.services.importing import ARCHIVE_KIND, FOLDER_KIND
from lookalike.services.jobs import JobService
from lookalike.services.reembedding import REEMBED_KIND
from lookalike.services.switching import PutGate
from lookalike.store.base import Store, VectorSpace


class CollectionService:
    """What concerns a collection as a whole.

    Args:
        store: Where the collections are.
        jobs: Where imports into them may wait or run.
        gate: Holds back what imports are about to commit until they know that they are to end.
    """

    def __init__(self, store: Store, jobs: JobService, gate: PutGate) -> None:
        self._store = store
        self._jobs = jobs
        self._gate = gate

    def all(self) -> list[CollectionInfo]:
        """All collections, by name."""
        return self._store.collections()

    def drop(self, collection: str, *, wait: bool = False) -> int:
        """Removes a collection and ends the imports into it; returns how many pictures it had.

        Args:
            collection: Its name.
            wait: Remove what it leaves on the disk before returning.

        Raises:
            CollectionNotFoundError: There is no such collection; imports that may make it go on.
            StorageError: The disk refuses; the collection is still there, but imports into it may
                have ended.
        """
        check_collection_name(collection)
        with self._gate.closed(collection):
            if any(info.name == collection for info in self._store.collections()):
                # First: imports that could not be canceled any more would make it anew.
                why = f"Canceled by the deletion of the collection {collection!r}"
                for job in self._jobs.unfinished(collection):
                    if job.kind in {ARCHIVE_KIND, FOLDER_KIND}:
                        self._jobs.cancel(job.id, why=why)
            return self._store.drop(collection, wait=wait)

    def vector_sets(self, collection: str) -> list[VectorSpace]:
        """All vector sets of a collection, in the order they were made.

        Raises:
            CollectionNotFoundError: There is no such collection.
        """
        return self._store.spaces.all(check_collection_name(collection))

    def discard(self, collection: str, digest: str) -> None:
        """Removes the vectors that one model made, if they are not in use.

        Args:
            collection: Its name.
            digest: Of the model's spec.

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
