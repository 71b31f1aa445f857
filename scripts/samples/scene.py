"""One view of an object: its pose, what is behind it, its shadow, the light, the camera."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from scripts.samples.pen import Color, Field, oklch, shade

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Pose:
    """Where the camera stands.

    Attributes:
        roll: Turn in the picture's plane; like all angles, in degrees.
        yaw: Turn around the vertical axis.
        pitch: Turn around the horizontal axis.
        scale: Side of the object's square, in shorter sides of the picture.
        x: Its center, in widths of the picture.
        y: Its center, in heights of the picture.
    """

    roll: float
    yaw: float
    pitch: float
    scale: float
    x: float
    y: float

    @classmethod
    def pick(cls, rng: np.random.Generator, *, stands: bool) -> Pose:
        """A moderate pose: the object stays easy to recognize, now and then it is cropped."""
        close = rng.random() < 0.12
        return cls(
            roll=float(rng.uniform(-1, 1)) * (4 if stands else 13),
            yaw=float(rng.uniform(-22, 22)),
            pitch=float(rng.uniform(-11, 11)),
            scale=float(rng.uniform(1.08, 1.2) if close else rng.uniform(0.94, 1.03)),
            x=0.5 + float(rng.uniform(-0.04, 0.04)),
            y=0.5 + float(rng.uniform(-0.03, 0.03)),
        )

    def project(self, layer: Image.Image, size: Size) -> Image.Image:
        """The layer as the camera sees it, on a transparent picture of this size."""
        camera = 4.0  # distance, in halves of the object's side
        roll, yaw, pitch = (math.radians(angle) for angle in (self.roll, self.yaw, self.pitch))
        across = np.array(
            [math.cos(yaw), math.sin(yaw) * math.sin(pitch), math.sin(yaw) * math.cos(pitch)]
        )
        down = np.array([0.0, math.cos(pitch), -math.sin(pitch)])
        turn = np.array(
            [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]]
        )
        half = layer.width / 2
        to_plane = np.array([[1 / half, 0, -1], [0, 1 / half, -1], [0, 0, 1]])
        in_space = turn @ np.stack([across, down, [0, 0, camera]], axis=1)
        focal = camera * self.scale * min(size) / 2
        lens = np.array([[focal, 0, self.x * size[0]], [0, focal, self.y * size[1]], [0, 0, 1]])
        back = np.linalg.inv(lens @ in_space @ to_plane)
        coefficients = tuple((back / back[2, 2]).ravel()[:8].tolist())
        return layer.transform(
            size, Image.Transform.PERSPECTIVE, coefficients, resample=Image.Resampling.BILINEAR
        )


def _enlarged(field: NDArray[np.floating], size: Size) -> Image.Image:
    """Numbers from 0 to 1 as a smooth gray picture."""
    small = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def _ramp(rng: np.random.Generator) -> Field:
    """From 0 to 1 across the picture, in any direction."""
    angle = rng.uniform(0, math.tau)
    x = np.linspace(-0.5, 0.5, 40, dtype=np.float32)[None, :] * np.float32(math.cos(angle))
    y = np.linspace(-0.5, 0.5, 30, dtype=np.float32)[:, None] * np.float32(math.sin(angle))
    ramp: Field = x + y + np.float32(0.5)
    return ramp


def _mixed(first: Color, second: Color, share: Image.Image) -> Image.Image:
    """The first color where the share is white, the second where it is black."""
    picture = Image.new("RGB", share.size, second)
    picture.paste(first, mask=share)
    return picture


def _muted(rng: np.random.Generator) -> Color:
    """A wall's or a cloth's color: quiet, mostly light."""
    return oklch(rng.uniform(0.82, 0.9), rng.uniform(0.004, 0.02), rng.uniform(0, 360))


def plain(rng: np.random.Generator, size: Size) -> Image.Image:
    """A studio's paper."""
    paper = _muted(rng)
    return _mixed(shade(paper, 0.1), paper, _enlarged(_ramp(rng), size))


def gradient(rng: np.random.Generator, size: Size) -> Image.Image:
    """From one color to another."""
    return _mixed(_muted(rng), _muted(rng), _enlarged(_ramp(rng), size))


def cloth(rng: np.random.Generator, size: Size) -> Image.Image:
    """Woven: fine threads both ways."""
    ground = _muted(rng)
    threads = rng.random((120, 1), np.float32) + rng.random((1, 160), np.float32)
    return _mixed(shade(ground, 0.16), shade(ground, -0.1), _enlarged(threads / 2, size))


def plaster(rng: np.random.Generator, size: Size) -> Image.Image:
    """Cloudy spots, large and small."""
    ground = _muted(rng)
    spots = _enlarged(rng.random((7, 9), np.float32), size)
    grain = _enlarged(rng.random((75, 100), np.float32), size)
    return _mixed(shade(ground, 0.16), shade(ground, -0.12), Image.blend(spots, grain, 0.35))


def blurred(rng: np.random.Generator, size: Size) -> Image.Image:
    """A room far out of focus."""
    picture = Image.new("RGB", (40, 30), _muted(rng))
    pencil = ImageDraw.Draw(picture)
    for _ in range(7):
        x, y, r = rng.uniform(0, 40), rng.uniform(0, 30), rng.uniform(4, 9)
        pencil.ellipse((x - r, y - r, x + r, y + r), fill=_muted(rng))
    return picture.filter(ImageFilter.GaussianBlur(2)).resize(size, Image.Resampling.BICUBIC)


def tabletop(rng: np.random.Generator, size: Size) -> Image.Image:
    """A wall and a wooden table."""
    width, height = size
    edge = round(height * rng.uniform(0.5, 0.68))
    picture = plain(rng, size)
    wood = oklch(rng.uniform(0.74, 0.82), rng.uniform(0.03, 0.06), rng.uniform(50, 80))
    grain = _enlarged(rng.random((45, 5), np.float32), (width, height - edge))
    picture.paste(_mixed(shade(wood, 0.14), shade(wood, -0.08), grain), (0, edge))
    line = max(1, height // 150)
    ImageDraw.Draw(picture).rectangle((0, edge, width, edge + line), fill=shade(wood, -0.3))
    return picture


BACKDROPS: tuple[tuple[Callable[[np.random.Generator, Size], Image.Image], bool], ...] = (
    (plain, False),
    (gradient, False),
    (cloth, False),
    (plaster, False),
    (blurred, False),
    (tabletop, True),
)
"""What can be behind an object, and whether it stands on it or lies on it."""


def _relief(layer: Image.Image, angle: float) -> Image.Image:
    """The layer lit from one side: edges towards the light are brighter, those away darker."""
    alpha = layer.getchannel("A")
    small = alpha.resize((64, 64), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(4))
    gray = np.asarray(small, dtype=np.float32) / np.float32(255)
    down, across = np.asarray(np.gradient(gray), dtype=np.float32)
    slope = across * math.cos(angle) + down * math.sin(angle)
    light = _enlarged(0.5 + 4.5 * slope, layer.size)
    lit = ImageChops.soft_light(layer.convert("RGB"), Image.merge("RGB", (light, light, light)))
    lit.putalpha(alpha)
    return lit


def _shadow(alpha: Image.Image, *, stands: bool, angle: float) -> Image.Image:
    """Where the object takes the light from what is behind it, as a gray picture."""
    width, height = alpha.size
    small = alpha.resize((width // 4 or 1, height // 4 or 1), Image.Resampling.BILINEAR)
    fallen = Image.new("L", small.size)
    found = small.getbbox() or (0, 0, 1, 1)
    left, top, right, bottom = found
    if stands:
        flat = max(2, round((bottom - top) * 0.16))
        shape = small.crop(found).resize((right - left, flat), Image.Resampling.BILINEAR)
        fallen.paste(
            shape, (left + round(flat * 0.4 * math.cos(angle)), bottom - round(flat * 0.8))
        )
    else:
        reach = small.height * 0.035
        shift = (round(-reach * math.cos(angle)), round(reach * (1 + 0.3 * math.sin(angle))))
        fallen.paste(small, shift)
    soft = fallen.filter(ImageFilter.GaussianBlur(small.height * 0.022))
    return soft.resize(alpha.size, Image.Resampling.BILINEAR)


def _light(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, warmth and a fall-off to one side."""
    gain, warmth, falloff = (
        rng.uniform(0.93, 1.06),
        rng.uniform(-0.035, 0.045),
        rng.uniform(0.0, 0.06),
    )
    gains = np.array([1 + warmth, 1, 1 - warmth]) * gain * (1 + falloff / 2)
    table = np.minimum(np.outer(gains, np.arange(256)), 255).astype(int).ravel().tolist()
    side = _enlarged(1 - falloff * _ramp(rng), picture.size)
    return ImageChops.multiply(picture.point(table), Image.merge("RGB", (side, side, side)))


def _camera(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A little out of focus, and a little noise."""
    radius, strength = rng.uniform(0.0, 0.0028), rng.uniform(1.0, 4.5)
    picture = picture.filter(ImageFilter.BoxBlur(radius * picture.height))
    noise = rng.standard_normal((picture.height, picture.width), np.float32)
    noise *= np.float32(strength)
    noise += np.float32(128.5)
    grain = Image.fromarray(noise.astype(np.uint8))
    return ImageChops.add(picture, Image.merge("RGB", (grain, grain, grain)), offset=-128)


def photograph(layer: Image.Image, rng: np.random.Generator, size: Size) -> Image.Image:
    """A picture of the object.

    Args:
        layer: The object on a transparent square.
        rng: The view's randomness: everything that is not the object comes from here.
        size: Width and height of the picture.
    """
    backdrop, stands = BACKDROPS[int(rng.integers(len(BACKDROPS)))]
    pose = Pose.pick(rng, stands=stands)
    angle = float(rng.uniform(0.6, 2.5))  # of the light: from above, left to right
    strength = rng.uniform(0.25, 0.5)
    picture = backdrop(rng, size)
    seen = pose.project(_relief(layer, angle), size)
    alpha = seen.getchannel("A")
    dark = _shadow(alpha, stands=stands, angle=angle).point(lambda v: v * strength)
    picture.paste((24, 22, 30), mask=dark)
    picture.paste(seen, mask=alpha)
    return _camera(_light(picture, rng), rng)
