"""The JSON of jobs, and of what starts one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field

from lookalike.api.schemas import Schema
from lookalike.records import DEFAULT_COLLECTION, OnConflict
from lookalike.services.job_run import JobStatus
from lookalike.store.jobs import JobState

ACCEPTED = {
    "description": "The job waits or runs; GET its Location to see how far it is",
    "headers": {"Location": {"schema": {"type": "string"}, "description": "/jobs/{id}"}},
}
"""What OpenAPI says of an answer 202 with a job."""

_PATH = r"^[^\x00-\x1f\x7f]+$"


class ReembedIn(Schema):
    """The model to move a collection to; what is left out is the service's own setting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(
        None, pattern="^[a-z0-9_]{1,64}$", description="resnet18, 34, 50, 101 or 152"
    )
    weights: str | None = Field(
        None,
        pattern=_PATH,
        max_length=1024,
        description="A torchvision weights name, a path on the service's machine, or random",
    )
    pooling: Literal["avg", "flatten"] | None = None
    resize: Literal["squash", "crop"] | None = None
    input_size: int | None = Field(
        None, ge=32, le=1024, description="Side of the network's input; null: the model's own"
    )
    head: str | None = Field(
        None,
        pattern=_PATH,
        max_length=1024,
        description="A head's file on the service's machine; null: no head",
    )
    int8: bool | None = Field(
        None, description="Whether the newest int8 network of these settings makes the vectors"
    )

    def given(self) -> dict[str, Any]:
        """What was sent: null counts for `head` and `input_size` alone."""
        sent = {name: getattr(self, name) for name in self.model_fields_set}
        return {
            name: value
            for name, value in sent.items()
            if value is not None or name in {"head", "input_size"}
        }


class FolderIn(Schema):
    """A folder of the server whose pictures are indexed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str = Field(
        pattern=_PATH, min_length=1, max_length=4096, description="Whole path on the server"
    )
    collection: str = Field(
        DEFAULT_COLLECTION, max_length=63, description="Made where it does not exist"
    )
    on_conflict: OnConflict = Field(
        OnConflict.REPLACE, strict=False, description="What to do with ids that exist"
    )
    metadata: dict[str, Any] | None = Field(None, description="For every picture")
    folder_field: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Metadata field for the name of the picture's folder",
    )


class JobOut(Schema):
    """A piece of long work."""

    id: str
    kind: str = Field(description="What it does: reembed, index_archive, index_folder")
    parameters: dict[str, Any]
    state: JobState
    cancel_requested: bool = Field(description="Whether it ends at its next step")
    done: int = Field(
        description="Steps that are done; of reembed, pictures with a new vector; of an import, "
        "pictures that were met"
    )
    total: int | None = Field(description="Steps in all; null: not known yet")
    errors: int = Field(
        description="Steps that failed; of reembed, since it last began after a restart"
    )
    error_texts: list[str] = Field(description="The first few errors")
    message: str
    rate: float | None = Field(description="Steps a second while it runs")
    seconds_left: float | None = Field(description="At this rate")
    created_at: str
    started_at: str | None
    updated_at: str
    finished_at: str | None

    @classmethod
    def of(cls, status: JobStatus) -> Self:
        """A job as JSON."""
        job = status.job
        return cls(
            id=job.id,
            kind=job.kind,
            parameters=_as_text(job.parameters),
            state=job.state,
            cancel_requested=job.cancel_requested,
            done=job.done,
            total=job.total,
            errors=job.errors,
            error_texts=list(job.error_texts),
            message=job.message,
            rate=status.rate,
            seconds_left=status.seconds_left,
            created_at=job.created_at,
            started_at=job.started_at,
            updated_at=job.updated_at,
            finished_at=job.finished_at,
        )


def _as_text(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that can be answered: a path on the server need not be UTF-8."""
    text = json.dumps(dict(parameters), ensure_ascii=False)
    shown: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return shown


class JobsOut(Schema):
    """A stretch of jobs, newest first."""

    jobs: list[JobOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next stretch; null: end")
