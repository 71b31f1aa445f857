"""Pictures for the tests: shapes on a gradient, a little noise."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def draw(seed, size=(160, 120)):
    rng = np.random.default_rng(seed)
    width, height = size
    top, bottom = rng.integers(0, 256, (2, 3))
    down = np.linspace(0, 1, height)[:, None, None]
    sky = np.broadcast_to(top * (1 - down) + bottom * down, (height, width, 3))
    image = Image.fromarray(sky.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 12))):
        x, y = int(rng.integers(-width // 4, width)), int(rng.integers(-height // 4, height))
        box = (
            x,
            y,
            x + int(rng.integers(width // 10, width // 2)),
            y + int(rng.integers(height // 10, height // 2)),
        )
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=color)
    image = image.filter(ImageFilter.GaussianBlur(1.2))
    pixels = np.asarray(image, dtype=np.int16) + rng.integers(-9, 10, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encode(image, kind, **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()
