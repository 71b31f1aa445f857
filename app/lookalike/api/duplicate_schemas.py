"""The JSON of GET /duplicates."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from lookalike.api.schemas import Schema, Score, picture_url
from lookalike.records import DuplicateKind, ImageRecord
from lookalike.services.duplicates.service import Duplicates, Progress
from lookalike.services.duplicates.stars import DuplicateGroup, Member


class KeptOut(Schema):
    """The picture of a group to keep: most pixels, then most bytes, then oldest."""

    id: str
    filename: str
    width: int
    height: int
    bytes: int
    image_url: str
    thumbnail_url: str

    @classmethod
    def of(cls, record: ImageRecord) -> Self:
        """A row as JSON."""
        return cls(
            id=record.id,
            filename=record.filename,
            width=record.width,
            height=record.height,
            bytes=record.bytes,
            image_url=picture_url(record, "file"),
            thumbnail_url=picture_url(record, "thumbnail"),
        )


class DuplicateOut(KeptOut):
    """A duplicate of the picture to keep."""

    kind: DuplicateKind = Field(description="What it is to the picture to keep")
    score: Score

    @classmethod
    def of_member(cls, member: Member) -> Self:
        """A member as JSON."""
        kept = KeptOut.of(member.record)
        return cls(**kept.model_dump(), kind=member.kind, score=member.score)


class DuplicateGroupOut(Schema):
    """A picture to keep, and those that are directly like it."""

    kind: DuplicateKind = Field(description="The weakest kind among the members")
    bytes_saved: int = Field(description="By deleting the members")
    keep: KeptOut
    members: list[DuplicateOut] = Field(min_length=1)

    @classmethod
    def of(cls, group: DuplicateGroup) -> Self:
        """A group as JSON."""
        return cls(
            kind=group.kind,
            bytes_saved=group.bytes_saved,
            keep=KeptOut.of(group.keep),
            members=[DuplicateOut.of_member(member) for member in group.members],
        )


class DuplicatesOut(Schema):
    """Groups of duplicates, the largest first."""

    state: Literal["ready"] = "ready"
    collection: str
    kind: DuplicateKind
    threshold: float
    total_groups: int
    total_duplicates: int = Field(description="Pictures of all groups but those to keep")
    bytes_saved: int = Field(description="By deleting the members of all groups")
    truncated: int = Field(
        description="Pictures with more neighbors than are looked at; their groups may lack some"
    )
    groups: list[DuplicateGroupOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next groups; null: end")

    @classmethod
    def of(cls, found: Duplicates) -> Self:
        """A service's answer as JSON."""
        return cls(
            collection=found.options.collection,
            kind=found.options.kind,
            threshold=found.options.threshold,
            total_groups=found.total_groups,
            total_duplicates=found.total_duplicates,
            bytes_saved=found.bytes_saved,
            truncated=found.truncated,
            groups=[DuplicateGroupOut.of(group) for group in found.groups],
            next_cursor=found.next_cursor,
        )


class DuplicatesRunning(Schema):
    """The search for duplicates is under way; ask again."""

    state: Literal["running"] = "running"
    done: int = Field(description="Pictures that were searched for")
    total: int = Field(description="Pictures to search for, as counted at the start")

    @classmethod
    def of(cls, progress: Progress) -> Self:
        """How far it is, as JSON."""
        return cls(done=progress.done, total=progress.total)
