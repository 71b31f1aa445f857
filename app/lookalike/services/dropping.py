"""Deleting a collection, so that no import brings it back."""

from __future__ import annotations

from lookalike.services.importing import ARCHIVE_KIND, FOLDER_KIND
from lookalike.services.jobs import JobService
from lookalike.services.pictures import PictureService
from lookalike.services.switching import PutGate
from lookalike.store.jobs import Job


def drop_collection(
    collection: str, *, pictures: PictureService, jobs: JobService, gate: PutGate
) -> int:
    """Removes a collection, ends the imports into it, and tells how many pictures it had.

    Args:
        collection: Its name.
        pictures: Removes it.
        jobs: Where imports into it may wait or run.
        gate: Holds back what they are about to commit until they know that they are to end.

    Raises:
        CollectionNotFoundError: There is no such collection; imports that may make it go on.
        StorageError: The disk refuses; the collection is still there, but imports into it may have
            ended.
    """

    def into_it(job: Job) -> bool:
        return (
            job.kind in {ARCHIVE_KIND, FOLDER_KIND} and job.parameters["collection"] == collection
        )

    with gate.closed(collection):
        if any(info.name == collection for info in pictures.collections()):
            # First: imports that could not be canceled any more would make it anew.
            jobs.cancel_all(into_it, f"Canceled by the deletion of the collection {collection!r}")
        return pictures.drop(collection)
