"""Pictures with labels to measure with, from the formats in which people keep them.

Every picture is opened as a `PictureSource`, so that it goes through the one decoder with its
limits, whatever it came from.
"""

from __future__ import annotations

from lookalike.evaluation.datasets.base import Dataset, FileDataset, Stamp, sample
from lookalike.evaluation.datasets.opening import Kind, open_dataset

__all__ = ["Dataset", "FileDataset", "Kind", "Stamp", "open_dataset", "sample"]
