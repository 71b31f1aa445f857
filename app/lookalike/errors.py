"""Every exception that Lookalike raises on purpose.

```
LookalikeError
├── InvalidImageError
│   ├── NotAnImageError               the bytes are no picture that can be read
│   ├── UnsupportedImageError         a picture of a kind that is not read
│   ├── UnreadableImageError          a picture, but truncated or broken
│   ├── DecodeTimeoutError            takes longer to decode than the limit allows
│   ├── ImageTooLargeError            too many bytes
│   └── TooManyPixelsError            too many pixels, read from the header
├── ArchiveError                      an archive that is broken, or beyond a bound
│   ├── NotAnArchiveError             the bytes are no archive that can be read
│   └── ArchiveTooLargeError          too many bytes
├── BackupError                       a backup or an export that is broken, or none at all
├── InvalidRequestError
│   ├── MalformedRequestError         the body cannot be taken apart
│   ├── InvalidParameterError         a value out of its range, an unknown field
│   ├── InvalidIdError
│   ├── InvalidCollectionNameError
│   ├── InvalidMetadataError
│   ├── InvalidFilterError
│   ├── MetadataTooLargeError
│   ├── TooManyFilesError
│   ├── NotExplainableError           the model's vectors are no means over positions
│   ├── RequestTooLargeError          the whole body has too many bytes
│   └── UploadStalledError            the body stopped coming
├── NotFoundError
│   ├── ImageNotFoundError
│   ├── CollectionNotFoundError
│   ├── VectorSpaceNotFoundError      no vectors of this collection under this spec
│   ├── JobNotFoundError
│   ├── KeyNotFoundError
│   ├── JudgementNotFoundError
│   ├── CalibrationNotFoundError      the scores of this collection are not calibrated
│   └── OriginalNotKeptError          the picture is known, its original file is not here
│       └── OriginalDamagedError      its original file is here, but its bytes are not what was sent
├── ConflictError
│   ├── ImageExistsError              the id is taken, and on_conflict is `error`
│   ├── SpecMismatchError             vectors made by another model
│   ├── ReembeddingIncompleteError    pictures without a vector by the new model
│   └── CalibrationError              too little to say what scores mean, or to learn from
├── ClientGoneError                   the client left before its answer was there
├── UnauthorizedError                 no key, or a wrong one
├── ForbiddenError                    a key that may not do this
├── TooManyAttemptsError              too many wrong keys from one address
├── UnavailableError
│   ├── QueueFullError
│   ├── NotReadyError                 starting, shutting down, or the canary failed
│   ├── FilterTooSlowError            a filter that takes longer than it may
│   ├── EmbeddingFailedError          the network failed on a batch
│   └── OutOfMemoryError              too little memory for what was asked
├── StorageError
│   ├── StorageFullError              no room left on the disk
│   ├── DataFolderInUseError          another process owns the data folder
│   └── DataFolderError               the data folder cannot be used or is damaged
├── ConfigurationError                a setting that cannot work
│   ├── NotConvertibleError           a network that OpenVINO does not run as torch does
│   ├── MissingFileError              a file that is not there; a FileNotFoundError as well
│   └── WeightsError
│       ├── WeightsNotFoundError      the file is not here and cannot be downloaded
│       └── WeightsMismatchError      the file does not fit the model
├── FetchError                        the picture at an address cannot be had
│   ├── FetchTimeoutError             not within the time
│   └── UrlNotAllowedError            an address that is never fetched
├── ImportsDisabledError              no folder of the server may be read
├── BackupsDisabledError              no folder of the server is named for backups
├── PathNotAllowedError               a path outside of the folders that may be read
├── FetchingDisabledError             fetching from addresses is not turned on
└── ServerError                       a remote service (--server) cannot be reached or refuses
```

A `code` is stable: it is part of the HTTP interface and documented in `docs/api.md`.
"""

from __future__ import annotations

import errno
import re
from typing import ClassVar


class LookalikeError(Exception):
    """The root of the tree; its text says what is wrong and what to do next."""

    code: ClassVar[str] = "internal_error"

    def __init_subclass__(cls, *, code: str) -> None:
        """Gives each class its own code."""
        cls.code = code


class InvalidImageError(LookalikeError, code="invalid_image"):
    """What was sent cannot be used as a picture."""


class NotAnImageError(InvalidImageError, code="not_an_image"):
    """The bytes are not a picture in a format that can be read."""


class UnsupportedImageError(InvalidImageError, code="unsupported_image"):
    """A picture in a format that can be read, but of a kind that cannot."""


class UnreadableImageError(InvalidImageError, code="unreadable_image"):
    """The file starts like a picture but is truncated or broken."""


class DecodeTimeoutError(InvalidImageError, code="decode_timeout"):
    """Decoding the picture takes longer than the limit allows."""


class ImageTooLargeError(InvalidImageError, code="image_too_large"):
    """The file has more bytes than the limit allows."""


class TooManyPixelsError(InvalidImageError, code="too_many_pixels"):
    """The header claims more pixels than the limit allows."""


class ArchiveError(LookalikeError, code="invalid_archive"):
    """An archive that is broken, or made to unpack beyond every bound."""


class NotAnArchiveError(ArchiveError, code="not_an_archive"):
    """The bytes are not an archive in a format that can be read."""


class ArchiveTooLargeError(ArchiveError, code="archive_too_large"):
    """The archive has more bytes than the limit allows."""


class BackupError(LookalikeError, code="invalid_backup"):
    """A backup or an export that is broken or half, or no such thing at all."""


class InvalidRequestError(LookalikeError, code="invalid_request"):
    """A request that cannot be carried out as it was sent."""


class NotExplainableError(InvalidRequestError, code="not_explainable"):
    """The model's vectors are no means over positions, so that no position has a share."""


class MalformedRequestError(InvalidRequestError, code="malformed_request"):
    """The body cannot be taken apart: broken multipart or JSON."""


class InvalidParameterError(InvalidRequestError, code="invalid_parameter"):
    """A parameter is missing, unknown, or out of its range."""


class InvalidIdError(InvalidRequestError, code="invalid_id"):
    """A picture's id has characters or a length that ids do not have."""


class InvalidCollectionNameError(InvalidRequestError, code="invalid_collection_name"):
    """A collection's name has characters or a length that names do not have."""


class InvalidMetadataError(InvalidRequestError, code="invalid_metadata"):
    """Metadata is not a JSON object that can be stored."""


class InvalidFilterError(InvalidRequestError, code="invalid_filter"):
    """A filter is not a JSON object in the filter language."""


class MetadataTooLargeError(InvalidRequestError, code="metadata_too_large"):
    """A picture's metadata has more bytes than the limit allows."""


class TooManyFilesError(InvalidRequestError, code="too_many_files"):
    """A request carries more files than the limit allows."""


class RequestTooLargeError(InvalidRequestError, code="request_too_large"):
    """The whole body has more bytes than the limits allow."""


class UploadStalledError(InvalidRequestError, code="upload_stalled"):
    """The body stopped coming before it was complete."""


class NotFoundError(LookalikeError, code="not_found"):
    """What was asked for is not here."""


class ImageNotFoundError(NotFoundError, code="image_not_found"):
    """No picture has this id in this collection."""


class CollectionNotFoundError(NotFoundError, code="collection_not_found"):
    """No collection has this name."""


class VectorSpaceNotFoundError(NotFoundError, code="embedding_set_not_found"):
    """The collection has no vectors under this spec."""


class JobNotFoundError(NotFoundError, code="job_not_found"):
    """No job has this id; those that ended long ago are forgotten."""


class KeyNotFoundError(NotFoundError, code="key_not_found"):
    """No key has this name or id."""


class JudgementNotFoundError(NotFoundError, code="judgement_not_found"):
    """There is no judgement with this id in the collection."""


class CalibrationNotFoundError(NotFoundError, code="calibration_not_found"):
    """The scores of the collection are not calibrated under its model."""


class OriginalNotKeptError(NotFoundError, code="original_not_kept"):
    """The picture is known, but its original file is not in the data folder."""


class OriginalDamagedError(OriginalNotKeptError, code="original_damaged"):
    """The original is in the data folder, but its bytes are not those that were sent."""


class ConflictError(LookalikeError, code="conflict"):
    """The request contradicts what is stored."""


class ImageExistsError(ConflictError, code="image_exists"):
    """The id is taken, and the request asked for an error then."""


class SpecMismatchError(ConflictError, code="passport_mismatch"):
    """A collection's vectors were made by another model than the one asked for."""


class ReembeddingIncompleteError(ConflictError, code="reembedding_incomplete"):
    """Some pictures have no vector by the new model, so the collection stays on the old one."""


class CalibrationError(ConflictError, code="cannot_calibrate"):
    """The collection has too little to say what its scores mean, or to learn from."""


class ClientGoneError(LookalikeError, code="client_gone"):
    """The client left before its answer was there; nobody reads this."""

    def __init__(self) -> None:
        super().__init__("The connection ended before the answer was there")


class UnauthorizedError(LookalikeError, code="unauthorized"):
    """No key was sent, or a wrong one."""


class ForbiddenError(LookalikeError, code="forbidden"):
    """The key that was sent is valid, but its scope does not include this call."""


class TooManyAttemptsError(LookalikeError, code="too_many_attempts"):
    """Too many wrong keys were sent from the client's address."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            f"Too many wrong keys came from your address; wait {retry_after_s} s, then send the "
            "right one. A right key of 32 characters or more does not have to wait"
        )
        self.retry_after_s = retry_after_s


class UnavailableError(LookalikeError, code="unavailable"):
    """The service cannot answer now; the same request may succeed later."""

    retry_after_s: ClassVar[int] = 1


class QueueFullError(UnavailableError, code="queue_full"):
    """As many pictures wait as the queue holds."""


class NotReadyError(UnavailableError, code="not_ready"):
    """The service is starting, shutting down, or its canary failed."""

    retry_after_s = 5


class FilterTooSlowError(UnavailableError, code="filter_too_slow"):
    """A filter looked at pictures for longer than it may."""

    retry_after_s = 60


class EmbeddingFailedError(UnavailableError, code="embedding_failed"):
    """The network failed on the batch that held this picture."""


class OutOfMemoryError(UnavailableError, code="out_of_memory"):
    """There is too little memory for what was asked; that says nothing about a picture."""

    retry_after_s = 5


_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|memory allocation|bad_alloc|start new thread"
    r"|(can't|cannot|unable to|failed to) allocate|allocation failed",
    re.IGNORECASE,
)


def lacks_memory(exc: BaseException) -> bool:
    """Whether a library's error, or what it came from, says that there is too little memory."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, (MemoryError, OutOfMemoryError)):
            return True
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno == errno.ENOMEM
        if not isinstance(seen, LookalikeError) and _NO_MEMORY.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class StorageError(LookalikeError, code="storage_error"):
    """The data folder cannot do what was asked."""


class StorageFullError(StorageError, code="storage_full"):
    """There is no room left on the disk of the data folder."""


class DataFolderInUseError(StorageError, code="data_folder_in_use"):
    """Another process owns the data folder."""


class DataFolderError(StorageError, code="data_folder_unusable"):
    """The data folder cannot be used, or was written by a newer version."""


class ConfigurationError(LookalikeError, code="invalid_configuration"):
    """A setting that cannot work, or settings that contradict each other."""


class NotConvertibleError(ConfigurationError, code="network_not_convertible"):
    """OpenVINO cannot run a network as torch does."""


class MissingFileError(ConfigurationError, FileNotFoundError, code="file_not_found"):
    """A file or folder that was named is not there."""


class WeightsError(ConfigurationError, code="weights_unusable"):
    """The network's weights cannot be used."""


class WeightsNotFoundError(WeightsError, code="weights_not_found"):
    """The weights are not on this machine and cannot be downloaded."""


class WeightsMismatchError(WeightsError, code="weights_mismatch"):
    """The weights file lacks layers of the model, or has layers the model lacks."""


class FetchError(LookalikeError, code="fetch_failed"):
    """The picture at an address cannot be reached, or something else is there."""


class FetchTimeoutError(FetchError, code="fetch_timeout"):
    """The picture at an address did not come within the time."""


class UrlNotAllowedError(FetchError, code="url_not_allowed"):
    """An address, or one that it leads to, that is never fetched."""


class ImportsDisabledError(LookalikeError, code="imports_disabled"):
    """A server-side folder where none may be read."""

    def __init__(self) -> None:
        super().__init__(
            "Folders of the server are not read here: name those that may be in "
            "LOOKALIKE_IMPORT_DIRS (--import-dirs), or send the pictures themselves"
        )


class BackupsDisabledError(LookalikeError, code="backups_disabled"):
    """A backup into a folder of the server, where none is named."""

    def __init__(self) -> None:
        super().__init__(
            "This service has no folder for backups: name one in LOOKALIKE_BACKUP_DIR "
            "(--backup-dir), or download a backup with GET /backup"
        )


class PathNotAllowedError(LookalikeError, code="path_not_allowed"):
    """A path that is not below a folder which may be read."""


class FetchingDisabledError(LookalikeError, code="fetching_disabled"):
    """A search by address where fetching from addresses is not turned on."""

    def __init__(self) -> None:
        super().__init__(
            "Pictures are not fetched from addresses here: set LOOKALIKE_FETCH_URLS=true "
            "(--fetch-urls) to turn it on, or send the picture itself"
        )


class ServerError(LookalikeError, code="server_error"):
    """A remote service cannot be reached, or refuses what was asked of it.

    Attributes:
        passing: Whether the same may succeed soon: it does not answer, or cannot now.
    """

    def __init__(self, text: str, *, passing: bool = False) -> None:
        Exception.__init__(self, text)  # subclasses mix this class with errors of other arguments
        self.passing = passing
