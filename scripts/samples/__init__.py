"""A labelled set of pictures, drawn: for the demo, the tests and the benchmarks.

Three levels: a class (`mug`) has instances (`mug-03`: one mug, with its own colors, pattern and
proportions), and an instance has views (pictures of that mug, which differ in angle, light, crop
and background). So the same thing seen twice can be found, and what should be found is known.

```
for sample in samples(classes=["mug", "car"], instances=3, views=2):
    draw(sample).save(sample.filename)
```

Everything follows from the seed; with the same versions of Pillow and NumPy the pictures are the
same to the byte.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.samples import nature, outside, things
from scripts.samples.pen import CREAM, INK, STEEL, WOOD, Look, Pen, fabric, oklch
from scripts.samples.scene import photograph

__all__ = ["CLASSES", "Sample", "draw", "jpeg_bytes", "samples", "write_samples"]

_ANY = ("plain", "stripes", "dots", "checks", "gradient", "zigzag", "rings", "band")
_QUIET = ("plain", "gradient", "stripes", "dots")


@dataclass(frozen=True)
class _Kind:
    """What the instances of a class share.

    Attributes:
        draw: Draws one instance.
        hues: First hue and how far they reach from there, in degrees.
        patterns: Names of patterns that suit it.
    """

    draw: Callable[[Pen, Look], None]
    hues: tuple[float, float] = (0.0, 360.0)
    patterns: tuple[str, ...] = _ANY


_KINDS: dict[str, _Kind] = {
    "mug": _Kind(things.mug),
    "sneaker": _Kind(outside.sneaker),
    "chair": _Kind(things.chair),
    "lamp": _Kind(things.lamp),
    "backpack": _Kind(outside.backpack),
    "guitar": _Kind(outside.guitar, patterns=_QUIET),
    "car": _Kind(outside.car, patterns=_QUIET),
    "fish": _Kind(nature.fish),
    "butterfly": _Kind(nature.butterfly),
    "flower": _Kind(nature.flower, patterns=_QUIET),
    "leaf": _Kind(nature.leaf, hues=(25.0, 125.0), patterns=("plain", "gradient", "dots")),
    "clock": _Kind(things.clock),
    "teapot": _Kind(things.teapot),
    "house": _Kind(outside.house, patterns=("plain", "stripes", "checks", "gradient", "zigzag")),
    "umbrella": _Kind(outside.umbrella),
    "bottle": _Kind(things.bottle),
}

CLASSES: tuple[str, ...] = tuple(_KINDS)
"""The labels, in their order."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of the set; `draw` makes it.

    Attributes:
        label: One of `CLASSES`.
        instance: Which of the class's things, from 0.
        view: Which picture of it, from 0.
    """

    label: str
    instance: int
    view: int

    def __post_init__(self) -> None:
        """Checks the ranges; raises ValueError."""
        if self.label not in _KINDS:
            raise ValueError(f"no class {self.label!r}; there are: {', '.join(CLASSES)}")
        if self.instance < 0 or self.view < 0:
            raise ValueError(f"instance {self.instance} or view {self.view} is below 0")

    @property
    def instance_id(self) -> str:
        """The thing that is seen, e.g. `mug-03`."""
        return f"{self.label}-{self.instance:02d}"

    @property
    def filename(self) -> str:
        """E.g. `mug-03-1.jpg`."""
        return f"{self.instance_id}-{self.view}.jpg"


def samples(
    *, classes: Sequence[str] = CLASSES, instances: int = 10, views: int = 4
) -> Iterator[Sample]:
    """Names the pictures of a set, all views of one instance together.

    Args:
        classes: Labels, of `CLASSES`.
        instances: Of each class.
        views: Of each instance.
    """
    for label in classes:
        for instance in range(instances):
            for view in range(views):
                yield Sample(label, instance, view)


def draw(sample: Sample, *, size: tuple[int, int] = (400, 300), seed: int = 0) -> Image.Image:
    """Draws one picture, in RGB.

    Args:
        sample: Which one.
        size: Width and height; the same scene at any size.
        seed: Another seed gives other things, seen otherwise.
    """
    kind = CLASSES.index(sample.label)
    side = min(size)
    finer = 2 if side <= 1000 else 1  # drawn twice as large, edges come out smooth
    pen = Pen(side * finer)
    _KINDS[sample.label].draw(pen, _look(sample, pen.layer.width, seed))
    layer = pen.layer.reduce(finer)
    view = np.random.SeedSequence(seed, spawn_key=(kind, sample.instance, sample.view))
    return photograph(layer, np.random.default_rng(view), size)


def jpeg_bytes(
    sample: Sample, *, size: tuple[int, int] = (400, 300), seed: int = 0, quality: int = 90
) -> bytes:
    """Draws one picture, as a JPEG file."""
    file = io.BytesIO()
    draw(sample, size=size, seed=seed).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_samples(
    folder: Path,
    *,
    classes: Sequence[str] = CLASSES,
    instances: int = 10,
    views: int = 4,
    size: tuple[int, int] = (400, 300),
    seed: int = 0,
) -> list[Path]:
    """Writes a set of pictures, one folder for each class; returns their paths.

    Arguments as for `samples` and `draw`.
    """
    paths = []
    for sample in samples(classes=classes, instances=instances, views=views):
        path = folder / sample.label / sample.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg_bytes(sample, size=size, seed=seed))
        paths.append(path)
    return paths


def _look(sample: Sample, side: int, seed: int) -> Look:
    """What this instance looks like; neighbors in number are far apart in color and pattern."""
    kind = _KINDS[sample.label]
    own = CLASSES.index(sample.label)
    shared = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(own,)))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(own, sample.instance)))
    first, reach = kind.hues
    place = (shared.random() + sample.instance * 0.618034) % 1  # golden ratio: evenly spread
    hue = first + reach * place
    light = (0.62, 0.5, 0.76)[sample.instance % 3]
    other = (0.86, 0.84, 0.46)[sample.instance % 3]
    main = oklch(light, rng.uniform(0.11, 0.18), hue)
    accent = oklch(other, rng.uniform(0.07, 0.13), hue + rng.uniform(70, 290))
    start = int(shared.integers(len(kind.patterns)))
    pattern = kind.patterns[(start + sample.instance) % len(kind.patterns)]
    trim = (INK, CREAM, STEEL, WOOD)[int(rng.integers(4))]
    cloth = fabric(
        pattern, side, main, accent, repeats=rng.uniform(6, 10), tilt=rng.choice((0, 0, 30, 90))
    )
    return Look(main, accent, trim, cloth, rng)
