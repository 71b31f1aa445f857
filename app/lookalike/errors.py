"""Every exception that Lookalike raises on purpose.

```
LookalikeError
├── InvalidImageError
│   ├── NotAnImageError           the bytes are no picture that can be read
│   ├── UnreadableImageError      a picture, but truncated or broken
│   ├── ImageTooLargeError        too many bytes
│   └── TooManyPixelsError        too many pixels, read from the header
├── ArchiveError                  an archive that is broken, or beyond a bound
│   ├── NotAnArchiveError         the bytes are no archive that can be read
│   └── ArchiveTooLargeError      too many bytes
├── InvalidRequestError
│   ├── MalformedRequestError     the body cannot be taken apart
│   ├── InvalidParameterError     a value out of its range, an unknown field
│   ├── InvalidIdError
│   ├── InvalidCollectionNameError
│   ├── InvalidMetadataError
│   ├── InvalidFilterError
│   ├── MetadataTooLargeError
│   ├── TooManyFilesError
│   ├── RequestTooLargeError      the whole body has too many bytes
│   └── UploadStalledError        the body stopped coming
├── NotFoundError
│   ├── ImageNotFoundError
│   ├── CollectionNotFoundError
│   ├── EmbeddingSetNotFoundError no vectors of this collection under this spec
│   ├── JobNotFoundError
│   └── OriginalNotKeptError      the picture is known, its original file is not here
├── ConflictError
│   ├── ImageExistsError          the id is taken, and on_conflict is `error`
│   ├── SpecMismatchError     vectors made by another model
│   └── ReembeddingIncompleteError  pictures without a vector by the new model
├── UnauthorizedError             no key, or a wrong one
├── UnavailableError
│   ├── QueueFullError
│   ├── NotReadyError             starting, shutting down, or the canary failed
│   ├── FilterTooSlowError        a filter that takes longer than it may
│   └── EmbeddingFailedError      the network failed on a batch
├── StorageError
│   ├── StorageFullError          no room left on the disk
│   ├── DataFolderInUseError      another process owns the data folder
│   └── DataFolderError           the data folder cannot be used or is damaged
├── ConfigurationError            a setting that cannot work
│   ├── MissingFileError          a file that is not there; a FileNotFoundError as well
│   └── WeightsError
│       ├── WeightsNotFoundError  the file is not here and cannot be downloaded
│       └── WeightsMismatchError  the file does not fit the model
├── FetchError                    the picture at an address cannot be had
│   ├── FetchTimeoutError         not within the time
│   └── UrlNotAllowedError        an address that is never fetched
├── ImportsDisabledError          no folder of the server may be read
├── PathNotAllowedError           a path outside of the folders that may be read
├── FetchingDisabledError         fetching from addresses is not turned on
└── ServerError                   a remote service (--server) cannot be reached or refuses
```

`code` is stable: it is part of the HTTP interface and documented in `docs/api.md`.
"""

from __future__ import annotations

from typing import ClassVar


class LookalikeError(Exception):
    """The root of the tree; its text says what is wrong and what to do next."""

    code: ClassVar[str] = "internal_error"


class InvalidImageError(LookalikeError):
    """What was sent cannot be used as a picture."""

    code = "invalid_image"


class NotAnImageError(InvalidImageError):
    """The bytes are not a picture in a format that can be read."""

    code = "not_an_image"


class UnreadableImageError(InvalidImageError):
    """The file starts like a picture but is truncated or broken."""

    code = "unreadable_image"


class ImageTooLargeError(InvalidImageError):
    """The file has more bytes than the limit allows."""

    code = "image_too_large"


class TooManyPixelsError(InvalidImageError):
    """The header claims more pixels than the limit allows."""

    code = "too_many_pixels"


class ArchiveError(LookalikeError):
    """An archive that is broken, or made to unpack beyond every bound."""

    code = "invalid_archive"


class NotAnArchiveError(ArchiveError):
    """The bytes are not an archive in a format that can be read."""

    code = "not_an_archive"


class ArchiveTooLargeError(ArchiveError):
    """The archive has more bytes than the limit allows."""

    code = "archive_too_large"


class InvalidRequestError(LookalikeError):
    """A request that cannot be carried out as it was sent."""

    code = "invalid_request"


class MalformedRequestError(InvalidRequestError):
    """The body cannot be taken apart: broken multipart or JSON."""

    code = "malformed_request"


class InvalidParameterError(InvalidRequestError):
    """A parameter is missing, unknown, or out of its range."""

    code = "invalid_parameter"


class InvalidIdError(InvalidRequestError):
    """A picture's id has characters or a length that ids do not have."""

    code = "invalid_id"


class InvalidCollectionNameError(InvalidRequestError):
    """A collection's name has characters or a length that names do not have."""

    code = "invalid_collection_name"


class InvalidMetadataError(InvalidRequestError):
    """Metadata is not a JSON object that can be stored."""

    code = "invalid_metadata"


class InvalidFilterError(InvalidRequestError):
    """A filter is not a JSON object in the filter language."""

    code = "invalid_filter"


class MetadataTooLargeError(InvalidRequestError):
    """A picture's metadata has more bytes than the limit allows."""

    code = "metadata_too_large"


class TooManyFilesError(InvalidRequestError):
    """A request carries more files than the limit allows."""

    code = "too_many_files"


class RequestTooLargeError(InvalidRequestError):
    """The whole body has more bytes than the limits allow."""

    code = "request_too_large"


class UploadStalledError(InvalidRequestError):
    """The body stopped coming before it was complete."""

    code = "upload_stalled"


class NotFoundError(LookalikeError):
    """What was asked for is not here."""

    code = "not_found"


class ImageNotFoundError(NotFoundError):
    """No picture has this id in this collection."""

    code = "image_not_found"


class CollectionNotFoundError(NotFoundError):
    """No collection has this name."""

    code = "collection_not_found"


class EmbeddingSetNotFoundError(NotFoundError):
    """The collection has no embedding set under this spec."""

    code = "embedding_set_not_found"


class JobNotFoundError(NotFoundError):
    """No job has this id; those that ended long ago are forgotten."""

    code = "job_not_found"


class OriginalNotKeptError(NotFoundError):
    """The picture is known, but its original file is not in the data folder."""

    code = "original_not_kept"


class ConflictError(LookalikeError):
    """The request contradicts what is stored."""

    code = "conflict"


class ImageExistsError(ConflictError):
    """The id is taken, and the request asked for an error then."""

    code = "image_exists"


class SpecMismatchError(ConflictError):
    """A collection's vectors were made by another model than the one asked for."""

    code = "passport_mismatch"


class ReembeddingIncompleteError(ConflictError):
    """Some pictures have no vector by the new model, so the collection stays on the old one."""

    code = "reembedding_incomplete"


class UnauthorizedError(LookalikeError):
    """No key was sent, or a wrong one."""

    code = "unauthorized"


class UnavailableError(LookalikeError):
    """The service cannot answer now; the same request may succeed later."""

    code = "unavailable"
    retry_after_s: ClassVar[int] = 1


class QueueFullError(UnavailableError):
    """As many pictures wait as the queue holds."""

    code = "queue_full"


class NotReadyError(UnavailableError):
    """The service is starting, shutting down, or its canary failed."""

    code = "not_ready"
    retry_after_s = 5


class FilterTooSlowError(UnavailableError):
    """A filter looked at pictures for longer than it may."""

    code = "filter_too_slow"
    retry_after_s = 60


class EmbeddingFailedError(UnavailableError):
    """The network failed on the batch that held this picture."""

    code = "embedding_failed"


class StorageError(LookalikeError):
    """The data folder cannot do what was asked."""

    code = "storage_error"


class StorageFullError(StorageError):
    """There is no room left on the disk of the data folder."""

    code = "storage_full"


class DataFolderInUseError(StorageError):
    """Another process owns the data folder."""

    code = "data_folder_in_use"


class DataFolderError(StorageError):
    """The data folder cannot be used, or was written by a newer version."""

    code = "data_folder_unusable"


class ConfigurationError(LookalikeError):
    """A setting that cannot work, or settings that contradict each other."""

    code = "invalid_configuration"


class MissingFileError(ConfigurationError, FileNotFoundError):
    """A file or folder that was named is not there."""

    code = "file_not_found"


class WeightsError(ConfigurationError):
    """The network's weights cannot be used."""

    code = "weights_unusable"


class WeightsNotFoundError(WeightsError):
    """The weights are not on this machine and cannot be downloaded."""

    code = "weights_not_found"


class WeightsMismatchError(WeightsError):
    """The weights file lacks layers of the model, or has layers the model lacks."""

    code = "weights_mismatch"


class FetchError(LookalikeError):
    """The picture at an address cannot be reached, or something else is there."""

    code = "fetch_failed"


class FetchTimeoutError(FetchError):
    """The picture at an address did not come within the time."""

    code = "fetch_timeout"


class UrlNotAllowedError(FetchError):
    """An address, or one that it leads to, that is never fetched."""

    code = "url_not_allowed"


class ImportsDisabledError(LookalikeError):
    """A server-side folder where none may be read."""

    code = "imports_disabled"

    def __init__(self) -> None:
        super().__init__(
            "Folders of the server are not read here: name those that may be in "
            "LOOKALIKE_IMPORT_DIRS (--import-dirs), or send the pictures themselves"
        )


class PathNotAllowedError(LookalikeError):
    """A path that is not below a folder which may be read."""

    code = "path_not_allowed"


class FetchingDisabledError(LookalikeError):
    """A search by address where fetching from addresses is not turned on."""

    code = "fetching_disabled"

    def __init__(self) -> None:
        super().__init__(
            "Pictures are not fetched from addresses here: set LOOKALIKE_FETCH_URLS=true "
            "(--fetch-urls) to turn it on, or send the picture itself"
        )


class ServerError(LookalikeError):
    """A remote service cannot be reached, or refuses what was asked of it.

    Attributes:
        passing: Whether the same may succeed soon: it does not answer, or cannot now.
    """

    code = "server_error"

    def __init__(self, text: str, *, passing: bool = False) -> None:
        Exception.__init__(self, text)  # subclasses mix this class with errors of other arguments
        self.passing = passing
