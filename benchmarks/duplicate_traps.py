"""Pictures that differ to any eye, and share most of what a search for duplicates looks at.

`TRAPS` maps the name of each set to a function that makes its files: (file name, bytes). Any two
files of a set are different pictures. Sets of single pictures come from `DRAWN`, whose pictures
can be saved in other ways.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

File = tuple[str, bytes]
INK, PAPER = (20, 20, 30), (250, 250, 248)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file."""
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int = 14, fill: Any = INK
) -> None:
    """Draws a line of text."""
    draw.text(at, text, fill=fill, font=ImageFont.load_default(size))


# Pictures: each function draws a few that differ


def shapes(fill: tuple[int, ...], ground: tuple[int, ...]) -> list[Image.Image]:
    """Four logos as RGBA."""
    out = []
    for kind in range(4):
        image = Image.new("RGBA", (240, 240), ground)
        draw = ImageDraw.Draw(image)
        if kind == 0:
            draw.ellipse((30, 30, 210, 210), outline=fill, width=36)
        elif kind == 1:
            draw.polygon([(120, 20), (220, 210), (20, 210)], fill=fill)
        elif kind == 2:
            for row in range(4):
                draw.rectangle((24, 30 + 50 * row, 216 - 40 * row, 58 + 50 * row), fill=fill)
        else:
            draw.line((40, 40, 200, 200), fill=fill, width=34)
            draw.line((40, 200, 200, 40), fill=fill, width=34)
        out.append(image)
    return out


def shades() -> list[Image.Image]:
    """One product in near colors."""
    out = []
    for color in ((180, 60, 60), (184, 60, 60), (180, 66, 60), (176, 62, 64), (180, 60, 66)):
        image = Image.new("RGB", (320, 320), (246, 246, 246))
        ImageDraw.Draw(image).rounded_rectangle((60, 60, 260, 260), 30, fill=color)
        out.append(image)
    return out


def swatches() -> list[Image.Image]:
    """Sheets of one color, some steps apart."""
    return [Image.new("RGB", (200, 200), (120 + 3 * n, 130, 140 - 3 * n)) for n in range(5)]


def night_skies(brightest: int, noise: float = 0.0) -> list[Image.Image]:
    """Each with other stars, over the same dark gradient."""
    out = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sky = np.linspace(4, 22, 400)[:, None, None] * np.array([0.7, 0.8, 1.3])
        pixels = np.repeat(sky, 600, axis=1)
        for y, x in zip(rng.integers(2, 398, 90), rng.integers(2, 598, 90), strict=True):
            pixels[y : y + 2, x : x + 2] += rng.uniform(0.3, 1.0) * brightest
        pixels += rng.normal(0, noise, pixels.shape)
        out.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return out


def moons() -> list[Image.Image]:
    """A moon at other places and phases in a black sky."""
    out = []
    for shift, bite in ((0, 8), (3, 8), (0, 14), (0, 0)):
        image = Image.new("RGB", (640, 480), (6, 7, 12))
        draw = ImageDraw.Draw(image)
        draw.ellipse((300 + shift, 200, 330 + shift, 230), fill=(235, 232, 210))
        draw.ellipse((300 + shift + bite - 26, 196, 334 + shift + bite - 30, 234), fill=(6, 7, 12))
        out.append(image)
    return out


def signed_sheets() -> list[Image.Image]:
    """An empty sheet with one signature."""
    out = []
    for seed in range(4):
        r = random.Random(seed)
        image = Image.new("RGB", (620, 877), PAPER)
        points = [
            (330 + 12 * n + r.randrange(-9, 9), 760 + r.randrange(-24, 24)) for n in range(16)
        ]
        ImageDraw.Draw(image).line(points, fill=(30, 40, 120), width=2, joint="curve")
        out.append(image)
    return out


TEXT = (
    "the quick report of this quarter says that sales in the north grew by a tenth while "
    "costs stayed where they were and the board has agreed to open two more shops before the "
    "end of the year provided that the bank keeps its word and the staff that was hired in "
    "spring is trained by then"
)
WORDS = TEXT.split()


def page(changes: dict[int, str], *, size: int = 13) -> Image.Image:
    """A page of text, with some of its words changed."""
    image = Image.new("RGB", (620, 877), PAPER)
    draw = ImageDraw.Draw(image)
    words = [changes.get(n, WORDS[n % len(WORDS)]) for n in range(420)]
    write(draw, (60, 40), "Quarterly report", 26)
    for line in range(35):
        write(draw, (60, 90 + 21 * line), " ".join(words[12 * line : 12 * line + 12]), size)
    return image


def pages() -> list[Image.Image]:
    """A page with another word, or another line."""
    line = {n: WORDS[(n * 7 + 3) % len(WORDS)] for n in range(120, 132)}
    return [page({}), page({200: "four"}), page({201: "less"}), page(line), page({17: "cosfs"})]


def tables() -> list[Image.Image]:
    """A table of numbers with one digit changed."""
    out = []
    for row, change in (
        (3, "1,204.50"),
        (3, "7,204.50"),
        (3, "1,284.50"),
        (3, "1,204.58"),
        (4, ""),
    ):
        r = random.Random(5)
        image = Image.new("RGB", (560, 420), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        for y in range(12):
            draw.line((30, 40 + 28 * y, 530, 40 + 28 * y), fill=(190, 190, 190))
            for x in range(4):
                text = f"{r.randrange(1, 9)},{r.randrange(100, 999)}.{r.randrange(10, 99)}"
                if (y, x) == (row, 2) and change:
                    text = change
                write(draw, (50 + 125 * x, 46 + 28 * y), text, 13)
        out.append(image)
    return out


def scene(seed: int = 1, size: tuple[int, int] = (480, 360)) -> Image.Image:
    """Something with the texture of a photograph: smooth noise of all sizes."""
    return _texture(seed, size).copy()


@cache
def _texture(seed: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    layers = np.zeros((size[1], size[0], 3))
    for cells, strength in ((4, 60), (10, 40), (30, 25), (90, 16), (240, 9)):
        part = rng.normal(0, 1, (cells, cells, 3)) * strength
        part = 0.7 * part.mean(axis=2, keepdims=True) * 1.7 + 0.3 * part
        for channel in range(3):
            layer = Image.fromarray(part[..., channel].astype(np.float32))
            layers[..., channel] += np.asarray(layer.resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray((layers + 120).clip(0, 255).astype(np.uint8))


def burst() -> list[Image.Image]:
    """Frames of a burst: a hand-held camera, sensor noise, and something that moves."""
    base = scene(2, (520, 400))
    out = []
    for n, (x, y) in enumerate(((10, 10), (11, 10), (13, 12), (10, 10))):
        frame = base.crop((x, y, x + 480, y + 360))
        draw = ImageDraw.Draw(frame)
        draw.ellipse((200 + 7 * n, 150, 232 + 7 * n, 190), fill=(210, 170, 140))
        noisy = np.asarray(frame) + np.random.default_rng(n).normal(0, 3, (360, 480, 3))
        out.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return out


def still_burst() -> list[Image.Image]:
    """Frames from a tripod: only the noise and a blink differ."""
    out = []
    for n in range(3):
        frame = scene(7)
        draw = ImageDraw.Draw(frame)
        draw.ellipse((200, 120, 280, 220), fill=(214, 178, 150))
        for eye in (222, 258):
            if n == 1:
                draw.line((eye - 6, 158, eye + 6, 158), fill=(90, 60, 50), width=2)
            else:
                draw.ellipse((eye - 6, 154, eye + 6, 162), fill=(250, 250, 250))
                draw.ellipse((eye - 3 + n, 155, eye + 1 + n, 161), fill=(30, 30, 40))
        noisy = np.asarray(frame) + np.random.default_rng(n).normal(0, 2, (360, 480, 3))
        out.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return out


def marked(
    texts: list[str],
    *,
    size: int,
    at: tuple[int, int],
    opacity: int,
    fill: tuple[int, int, int] = (255, 255, 255),
    seed: int = 3,
) -> list[Image.Image]:
    """A scene with another text on it."""
    out = []
    for text in texts:
        base = scene(seed).convert("RGBA")
        layer = Image.new("RGBA", base.size, (*fill, 0))
        write(ImageDraw.Draw(layer), at, text, size, (*fill, opacity))
        out.append(Image.alpha_composite(base, layer).convert("RGB"))
    return out


def products() -> list[Image.Image]:
    """A shirt with other buttons, pockets and prints."""
    out = []
    for kind in range(5):
        image = Image.new("RGB", (400, 400), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        draw.polygon(
            [
                (120, 60),
                (280, 60),
                (360, 140),
                (310, 180),
                (300, 360),
                (100, 360),
                (90, 180),
                (40, 140),
            ],
            fill=(60, 90, 150),
        )
        for button in range(5 if kind == 1 else 4):
            draw.ellipse((196, 110 + 50 * button, 204, 118 + 50 * button), fill=(240, 240, 230))
        if kind == 2:
            draw.rectangle((230, 150, 266, 190), outline=(40, 60, 110), width=2)
        if kind == 3:
            draw.ellipse((236, 120, 250, 134), fill=(200, 40, 40))
        if kind == 4:
            draw.line((120, 340, 290, 340), fill=(70, 102, 160), width=3)
        out.append(image)
    return out


def differences() -> list[Image.Image]:
    """A busy drawing in which one small thing differs."""
    out = []
    for kind in range(6):
        r = random.Random(11)
        image = Image.new("RGB", (500, 380), (198, 224, 240))
        draw = ImageDraw.Draw(image)
        for n in range(70):
            x, y, s = r.randrange(480), r.randrange(360), r.randrange(10, 44)
            color = tuple(r.randrange(40, 240) for _ in range(3))
            if n == 60 and kind == 1:
                color = (color[2], color[0], color[1])
            if n == 65 and kind == 2:
                continue
            if n == 66 and kind == 3:
                x += 5
            if n == 69 and kind == 4:
                draw.ellipse((x, y, x + s, y + s), fill=color, outline=(0, 0, 0), width=2)
            elif n % 2:
                draw.ellipse((x, y, x + s, y + s), fill=color)
            else:
                draw.rectangle((x, y, x + s, y + s // 2), fill=color)
        if kind == 5:
            draw.ellipse((240, 200, 246, 206), fill=(10, 10, 10))
        out.append(image)
    return out


def maps() -> list[Image.Image]:
    """A map with one label changed, or one road."""
    out = []
    for label, road in (("Oakton", 0), ("Oakham", 0), ("Ashton", 0), ("Oakton", 1)):
        r = random.Random(4)
        image = Image.new("RGB", (640, 480), (232, 236, 220))
        draw = ImageDraw.Draw(image)
        for n in range(24):
            points = [(r.randrange(640), r.randrange(480)) for _ in range(4)]
            if n == 20 and road:
                points[1] = (points[1][0] + 14, points[1][1])
            draw.line(points, fill=(200, 150 + n, 90), width=1 + n % 4)
        for n in range(30):
            name = "".join(r.choice("aeioulnrst") for _ in range(7)).title()
            write(draw, (r.randrange(560), r.randrange(460)), label if n == 12 else name, 11)
        out.append(image)
    return out


def chess_boards() -> list[Image.Image]:
    """Positions that are one move apart, as a site draws them."""
    out = []
    for move in range(4):
        image = Image.new("RGB", (400, 400))
        draw = ImageDraw.Draw(image)
        for x in range(8):
            for y in range(8):
                color = (240, 217, 181) if (x + y) % 2 == 0 else (181, 136, 99)
                draw.rectangle((50 * x, 50 * y, 50 * x + 49, 50 * y + 49), fill=color)
        men = {(x, 1) for x in range(8)} | {(x, 6) for x in range(8)} | {(3, 0), (4, 7)}
        steps = {1: ((4, 6), (4, 4)), 2: ((3, 6), (3, 4)), 3: ((4, 7), (5, 7))}
        if move in steps:
            men = (men - {steps[move][0]}) | {steps[move][1]}
        for x, y in men:
            fill = (20, 20, 20) if y < 4 and y in (0, 1) else (250, 250, 250)
            draw.ellipse(
                (50 * x + 15, 50 * y + 12, 50 * x + 35, 50 * y + 40), fill=fill, outline=(0, 0, 0)
            )
        out.append(image)
    return out


def qr_codes() -> list[Image.Image]:
    """Random modules with the three finders; the last differs in few modules."""
    out = []
    for seed in range(4):
        rng = np.random.default_rng(min(seed, 2))
        modules = rng.integers(0, 2, (33, 33))
        if seed == 3:
            modules[14, 10:13] ^= 1
        finder = np.ones((7, 7), int)
        finder[1:6, 1:6] = 0
        finder[2:5, 2:5] = 1
        for y, x in ((0, 0), (0, 26), (26, 0)):
            modules[y : y + 7, x : x + 7] = finder
        pixels = np.pad(np.kron(1 - modules, np.ones((7, 7))), 28, constant_values=1)
        out.append(Image.fromarray((pixels * 255).astype(np.uint8)).convert("RGB"))
    return out


def bar_codes() -> list[Image.Image]:
    """Labels with other bars in the last digits, and another number below."""
    out = []
    for seed in range(4):
        image = Image.new("RGB", (360, 200), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        rng = np.random.default_rng(0)
        bars = rng.integers(0, 2, 95)
        bars[80:87] = np.random.default_rng(seed).integers(0, 2, 7)
        for n in np.flatnonzero(bars).tolist():
            draw.rectangle((38 + 3 * n, 20, 40 + 3 * n, 150), fill=(0, 0, 0))
        write(draw, (110, 160), f"4006381333{930 + seed}", 18)
        out.append(image)
    return out


def sheet_music() -> list[Image.Image]:
    """A line of music with one note a step higher, or sharp."""
    out = []
    for kind in range(4):
        r = random.Random(8)
        image = Image.new("RGB", (600, 420), (255, 255, 252))
        draw = ImageDraw.Draw(image)
        for staff in range(3):
            for line in range(5):
                y = 50 + 130 * staff + 10 * line
                draw.line((20, y, 580, y), fill=(0, 0, 0))
            for note in range(22):
                step = r.randrange(0, 9)
                chosen = (staff, note) == (1, 9)
                if chosen and kind == 1:
                    step += 1
                x, y = 40 + 25 * note, 50 + 130 * staff + 5 * step
                draw.ellipse(
                    (x, y - 4, x + 11, y + 4), fill=None if chosen and kind == 2 else 0, outline=0
                )
                draw.line((x + 11, y, x + 11, y - 30), fill=0)
                if chosen and kind == 3:
                    write(draw, (x - 9, y - 9), "#", 14, 0)
        out.append(image)
    return out


def pixel_art(scale: int) -> list[Image.Image]:
    """A sprite in which a few pixels differ."""
    rng = np.random.default_rng(3)
    colors = rng.integers(0, 255, (6, 3))
    left = rng.integers(0, 6, (24, 12))
    sprite = np.concatenate([left, left[:, ::-1]], axis=1)
    out = []
    for kind in range(4):
        one = sprite.copy()
        if kind == 1:
            one[10, 5] = (one[10, 5] + 1) % 6
        if kind == 2:
            one[10:12, 18] = (one[10:12, 18] + 2) % 6
        if kind == 3:
            one[3, 8], one[3, 9] = one[3, 9] + 1, one[3, 8]
            one %= 6
        pixels = colors[one].astype(np.uint8)
        out.append(Image.fromarray(np.kron(pixels, np.ones((scale, scale, 1), np.uint8))))
    return out


def screens() -> list[Image.Image]:
    """A phone's screen at another time, battery or count of messages."""
    out = []
    for clock, battery, unread in (
        ("10:41", 80, "3"),
        ("10:42", 80, "3"),
        ("10:41", 74, "3"),
        ("10:41", 80, "8"),
    ):
        image = Image.new("RGB", (360, 640), (28, 30, 38))
        draw = ImageDraw.Draw(image)
        write(draw, (12, 8), clock, 14, (255, 255, 255))
        draw.rectangle((318, 10, 346, 22), outline=(255, 255, 255))
        draw.rectangle((320, 12, 320 + battery // 4, 20), fill=(255, 255, 255))
        for row in range(6):
            for column in range(4):
                x, y = 20 + 85 * column, 60 + 95 * row
                color = (60 + 30 * row, 200 - 25 * column, 90 + 20 * (row + column))
                draw.rounded_rectangle((x, y, x + 64, y + 64), 14, fill=color)
        draw.ellipse((70, 52, 92, 74), fill=(220, 40, 40))
        write(draw, (77, 55), unread, 13, (255, 255, 255))
        out.append(image)
    return out


def charts() -> list[Image.Image]:
    """Bar charts with one bar a little longer, and a line chart with one point moved."""
    out = []
    for kind in range(4):
        r = random.Random(2)
        image = Image.new("RGB", (480, 320), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        for n in range(12):
            height = r.randrange(40, 230) + (6 if n == 5 and kind == 1 else 0)
            draw.rectangle((30 + 36 * n, 280 - height, 54 + 36 * n, 280), fill=(70, 120, 190))
        points = [(42 + 36 * n, 60 + (n * 37) % 90) for n in range(12)]
        if kind == 2:
            points[7] = (points[7][0], points[7][1] + 12)
        draw.line(points, fill=(220, 90, 40), width=2)
        write(draw, (180, 292), "2024" if kind == 3 else "2025", 14)
        out.append(image)
    return out


def forms() -> list[Image.Image]:
    """A form with another box ticked."""
    out = []
    for ticked in range(4):
        image = page({})
        draw = ImageDraw.Draw(image)
        draw.rectangle((50, 600, 580, 840), fill=PAPER)
        for box in range(4):
            x, y = 80, 620 + 50 * box
            draw.rectangle((x, y, x + 14, y + 14), outline=INK)
            write(draw, (110, y - 1), f"Option {box + 1}", 14)
            if box == ticked:
                draw.line((x + 2, y + 7, x + 6, y + 12, x + 13, y + 1), fill=INK, width=2)
        out.append(image)
    return out


def scans_of_tissue() -> list[Image.Image]:
    """Gray pictures with a small spot at another place."""
    base = scene(21, (420, 420)).convert("L").filter(ImageFilter.GaussianBlur(2))
    out = []
    for x, y in ((0, 0), (200, 180), (206, 180), (120, 260)):
        image = base.copy()
        if x:
            spot = Image.new("L", image.size, 0)
            ImageDraw.Draw(spot).ellipse((x, y, x + 12, y + 10), fill=150)
            spot = spot.filter(ImageFilter.GaussianBlur(2))
            image.paste(215, mask=spot)
        out.append(image.convert("RGB"))
    return out


def color_plates() -> list[Image.Image]:
    """Dots of one brightness whose hue draws another digit."""
    out = []
    for text in ("3", "8", "6"):
        mask = Image.new("L", (300, 300), 0)
        write(ImageDraw.Draw(mask), (90, 20), text, 220, 255)
        r = random.Random(1)
        image = Image.new("RGB", (300, 300), (170, 170, 170))
        draw = ImageDraw.Draw(image)
        for _ in range(900):
            x, y, s = r.randrange(290), r.randrange(290), r.randrange(5, 12)
            inside = mask.getpixel((min(299, x + s // 2), min(299, y + s // 2)))
            draw.ellipse((x, y, x + s, y + s), fill=(190, 140, 110) if inside else (140, 160, 110))
        out.append(image)
    return out


def subtitled() -> list[Image.Image]:
    """A frame of a film with another subtitle."""
    return marked(
        ["I will be back soon.", "I will be back then.", "I won't be back soon.", ""],
        size=18,
        at=(150, 325),
        opacity=255,
        seed=9,
    )


def faint_pages() -> list[Image.Image]:
    """Pencil on paper: gray writing, nearly as light as the paper."""
    out = []
    for word in ("Mueller", "Miller", "Muller", "Moeller"):
        image = Image.new("RGB", (400, 300), (246, 244, 240))
        write(ImageDraw.Draw(image), (120, 130), word, 26, (222, 220, 218))
        out.append(image)
    return out


def snow() -> list[Image.Image]:
    """White noise, of which no two pictures share anything but the mean."""
    return [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (200, 200, 3), np.uint8))
        for n in range(3)
    ]


def fine_patterns() -> list[Image.Image]:
    """Stripes, checks and dots as fine as pixels: the same gray from afar."""
    y, x = np.mgrid[:240, :240]
    kinds = (x % 2, y % 2, (x + y) % 2, (x // 2) % 2, (x // 2 + y // 2) % 2)
    return [Image.fromarray((kind * 255).astype(np.uint8)).convert("RGB") for kind in kinds]


def plates() -> list[Image.Image]:
    """A street with a car whose number plate has another letter."""
    out = []
    for text in ("KX 482 B", "KX 482 R", "KX 432 B", "HX 482 B"):
        image = scene(31)
        draw = ImageDraw.Draw(image)
        draw.rectangle((180, 220, 262, 240), fill=(245, 245, 240))
        write(draw, (186, 221), text, 15, (10, 10, 10))
        out.append(image)
    return out


def hats() -> list[Image.Image]:
    """A small thing in a large scene, there or not."""
    out = []
    for kind in range(4):
        image = scene(41)
        draw = ImageDraw.Draw(image)
        if kind == 1:
            draw.ellipse((300, 100, 312, 112), fill=(200, 60, 40))
        if kind == 2:
            draw.line((60, 300, 120, 290), fill=(240, 240, 240), width=1)
        if kind == 3:
            draw.rectangle((400, 40, 404, 44), fill=(0, 0, 0))
        out.append(image)
    return out


WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
STAMPS = ["12.03.2024", "12.08.2024", "12.03.2025", "13.03.2024"]

DRAWN: dict[str, Callable[[], list[Image.Image]]] = {
    "white logos": partial(shapes, WHITE, (255, 255, 255, 0)),
    "black line art": partial(shapes, BLACK, (0, 0, 0, 0)),
    "shades of a product": shades,
    "swatches": swatches,
    "night skies, bright": partial(night_skies, 230),
    "night skies, faint": partial(night_skies, 40),
    "night skies, noisy": partial(night_skies, 120, 3.0),
    "moons": moons,
    "signatures": signed_sheets,
    "pages, one word": pages,
    "tables, one digit": tables,
    "burst": burst,
    "burst on a tripod": still_burst,
    "date stamps": partial(
        marked, STAMPS, size=13, at=(380, 338), opacity=255, fill=(255, 150, 40)
    ),
    "watermarks": partial(marked, ["PROOF", "DRAFT", "SAMPLE"], size=60, at=(130, 140), opacity=70),
    "faint watermarks": partial(marked, ["PROOF", "DRAFT", ""], size=60, at=(130, 140), opacity=28),
    "small marks": partial(
        marked, ["(c) A. Moss", "(c) A. Ross", ""], size=10, at=(8, 345), opacity=160
    ),
    "products": products,
    "spot the difference": differences,
    "maps": maps,
    "chess": chess_boards,
    "QR codes": qr_codes,
    "bar codes": bar_codes,
    "sheet music": sheet_music,
    "pixel art": partial(pixel_art, 1),
    "pixel art, large": partial(pixel_art, 12),
    "screens": screens,
    "charts": charts,
    "forms": forms,
    "spots": scans_of_tissue,
    "color plates": color_plates,
    "subtitles": subtitled,
    "pencil": faint_pages,
    "snow": snow,
    "fine patterns": fine_patterns,
    "number plates": plates,
    "small things": hats,
}
"""Sets of single pictures, of which any two differ."""


# Files with more inside than the first picture


def frames(seed: int, count: int) -> list[Image.Image]:
    """A dot that runs on a line; all begin alike."""
    out = []
    for n in range(count):
        image = Image.new("RGB", (120, 80), (240, 240, 235))
        x = 10 + n * (8 + seed * 3)
        ImageDraw.Draw(image).ellipse((x, 30, x + 18, 48), fill=(180, 40, 40))
        out.append(image)
    return out


def animations(kind: str, **options: Any) -> list[File]:
    """Three with the same first frame, and one with a frame less."""
    chosen = [frames(seed, 4) for seed in range(3)] + [frames(0, 3)]
    return [
        (
            f"{n}.{kind.lower()}",
            saved(one[0], kind, save_all=True, append_images=one[1:], duration=100, **options),
        )
        for n, one in enumerate(chosen)
    ]


def paces() -> list[File]:
    """The same frames at another pace."""
    one = frames(0, 4)
    return [
        (
            f"{ms}.webp",
            saved(one[0], "WEBP", save_all=True, append_images=one[1:], duration=ms, lossless=True),
        )
        for ms in (60, 200)
    ]


def faxes(**options: Any) -> list[File]:
    """Multi-page scans with the same cover."""
    out = []
    for n in range(4):
        sheets = [page({}).convert("L"), page({n: "zebra", 60: "apple"}).convert("L")]
        sheets += [page({5: "x" * n}).convert("L")] * (n == 3)
        data = saved(sheets[0], "TIFF", save_all=True, append_images=sheets[1:], **options)
        out.append((f"fax-{n}.tif", data))
    return out


def icons() -> list[File]:
    """Icons with the same largest picture, and other small ones."""
    large = shapes((40, 90, 200, 255), (0, 0, 0, 0))
    out = []
    for n in range(3):
        small = large[n].resize((32, 32))
        data = saved(large[0], "ICO", sizes=[(240, 240), (32, 32)], append_images=[small])
        out.append((f"{n}.ico", data))
    return [*out, ("one.ico", saved(large[0], "ICO", sizes=[(240, 240)]))]


def stereo() -> list[File]:
    """Two views in one MPO file, of which only the first is the same."""
    return [
        (f"{n}.mpo", saved(scene(5), "MPO", save_all=True, append_images=[scene(50 + n)]))
        for n in range(3)
    ]


def deep() -> list[File]:
    """16-bit pictures that are the same, or black, in 8 bits."""
    ramp = np.linspace(0, 250, 256 * 256).reshape(256, 256)
    rng = np.random.default_rng(1)
    low = [ramp, ramp.T, ramp[::-1], rng.integers(0, 250, (256, 256))]
    high = [ramp * 4 + 256 * 100, ramp.T * 4 + 256 * 100]
    return [
        (f"{n}.png", saved(Image.fromarray(one.astype(np.uint16)), "PNG"))
        for n, one in enumerate([*low, *high])
    ]


def cutouts() -> list[File]:
    """The same picture with other parts of it cut out, and whole."""
    white = Image.new("RGB", (240, 240), (255, 255, 255))
    ImageDraw.Draw(white).rectangle((60, 60, 180, 180), fill=(30, 80, 200))
    out = []
    for n, box in enumerate(((0, 0, 240, 200), (60, 60, 181, 181), (40, 40, 200, 200))):
        image = white.convert("RGBA")
        alpha = Image.new("L", image.size, 0)
        alpha.paste(255, box)
        image.putalpha(alpha)
        out.append((f"{n}.png", saved(image, "PNG")))
    return [*out, ("whole.png", saved(white, "PNG"))]


def drawn(name: str) -> list[File]:
    """The pictures of a set as PNG files."""
    return [(f"{n}.png", saved(image, "PNG")) for n, image in enumerate(DRAWN[name]())]


TRAPS: dict[str, Callable[[], list[File]]] = {
    **{name: partial(drawn, name) for name in DRAWN},
    "GIF animations": partial(animations, "GIF"),
    "WebP animations": partial(animations, "WEBP", quality=80),
    "PNG animations": partial(animations, "PNG"),
    "AVIF animations": partial(animations, "AVIF", quality=70),
    "paces": paces,
    "faxes": faxes,
    "faxes, compressed": partial(faxes, compression="tiff_deflate"),
    "icons": icons,
    "stereo": stereo,
    "deep": deep,
    "cut-outs": cutouts,
}
"""All sets, as files."""
