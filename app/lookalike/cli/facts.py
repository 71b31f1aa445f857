"""What `lookalike info` says of a collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lookalike.cli.tables import size_text

Facts = Mapping[str, Any]


def about(collection: Facts, facts: Facts) -> Iterator[tuple[str, str]]:
    """Lines about a collection, each with what it is about.

    Args:
        collection: One of `collections` in `facts`.
        facts: What `GET /info` answers, or a data folder says of itself.
    """
    index = facts["store"].get("collections", {}).get(collection["name"], {})
    yield "model", _model(collection["passport"], collection["provenance"])
    yield "index", _index(index, collection["index"])
    if building := index.get("building"):
        yield "building", f"{building['stage']}, {building['done']:,} of {building['total']:,}"
    if "failure" in index:
        yield "failure", index["failure"]
    if "type" in index:
        yield "memory", _memory(index)
    if recall := _recall(index, facts.get("recall", {}).get(collection["name"])):
        yield "recall", recall


def _model(spec: Facts, provenance: Facts) -> str:
    parts = [f"{spec['model']} with {spec['weights']} weights"]
    if spec["head"]:
        parts.append(f"head {spec['head'][:8]}")
    parts.append(f"{spec['dim']:,} numbers")
    if "precision" in provenance:
        parts.append(provenance["precision"])
    return ", ".join(parts)


def _index(index: Facts, setting: str) -> str:
    """The type that is in use, or what a folder has saved of one that nobody has loaded here."""
    if "type" in index:
        return f"{index['type']}: {index['reason']}"
    saved = index.get("saved")
    if saved is None:
        return f"not loaded, and nothing is saved; as set here: {setting}"
    return (
        f"not loaded; saved: {saved['type']} of {saved['count']:,} pictures, "
        f"{size_text(saved['bytes'])} on the disk"
    )


def _memory(index: Facts) -> str:
    text = f"{size_text(index['bytes'])}, {index['bytes_per_picture']:,.0f} bytes a picture"
    mapped = index.get("mapped_bytes", 0)
    return f"{text}; {size_text(mapped)} mapped" if mapped else text


def _recall(index: Facts, measured: Facts | None) -> str | None:
    """As measured on searches; before the first of them as found when the index was built."""
    if measured and measured["mean"] is not None:
        from lookalike.services.recall_meter import WINDOW  # noqa: PLC0415 - imports numpy

        count = min(measured["samples"], WINDOW)
        return f"{measured['mean']:.4f}, mean of the last {count:,} searches that were measured"
    levels = index.get("calibration", [])
    parts = [f"{level['recall']:.4f} for {level['k']:,} matches" for level in levels]
    return f"when it was built {', '.join(parts)}" if parts else None
