"""Things one meets outside: backpack, sneaker, umbrella, guitar, car, house."""

from __future__ import annotations

import numpy as np

from scripts.samples.geometry import arc, box, curve, ellipse, polygon, symmetric
from scripts.samples.pen import CREAM, INK, STEEL, WHITE, WOOD, Look, Pen, shade

GLASS = (178, 212, 226)


def backpack(pen: Pen, look: Look) -> None:
    """Seen from the front, with a pocket."""
    wide, top = look.vary(27, 32), look.vary(13, 19)
    pen.stroke(arc(50, top, 10, 9, start=180, stop=360), 3.6, look.trim)
    for side in (-1, 1):
        strap = curve([(50 + side * (wide - 4), 34), (50 + side * (wide + 8), 56),
                       (50 + side * (wide - 1), 86)], closed=False)  # fmt: skip
        pen.stroke(strap, 6, look.trim)
    half = curve([(50, top), (56 - wide, top + 4), (50 - wide, top + 26), (49 - wide, 80),
                  (54 - wide, 93), (50, 95)], closed=False)  # fmt: skip
    pen.fill(symmetric(half), look.cloth)
    seam = shade(look.main, -0.4)
    pen.stroke(arc(50, top + 24, wide - 5, 15, start=180, stop=360), 1.6, seam)
    pocket = look.vary(52, 58)
    pen.fill(box(56 - wide, pocket, 44 + wide, 89, radius=6), look.accent)
    pen.stroke(polygon([(60 - wide, pocket + 8), (40 + wide, pocket + 8)]), 1.8, INK)
    pen.fill(box(40 + wide - 5, pocket + 7, 40 + wide - 2, pocket + 14, radius=1), STEEL)
    pen.fill(box(43, top + 14, 57, top + 22, radius=2), look.trim)


def sneaker(pen: Pen, look: Look) -> None:
    """Seen from its right side, toe to the right."""
    heel, tongue = look.vary(26, 34), look.vary(18, 25)
    upper = curve([(6, 75), (5, 56), (5, heel + 4), (10, heel), (17, heel + 7), (28, heel + 10),
                   (37, tongue + 9), (46, tongue + 8), (56, 43), (74, 51), (90, 56), (97, 68),
                   (92, 76), (50, 77)])  # fmt: skip
    tongue_tip = curve([(29, heel + 12), (34, tongue + 2), (42, tongue - 2), (48, tongue + 4),
                        (52, 44)])  # fmt: skip
    pen.fill(tongue_tip, shade(look.accent, -0.2))
    pen.fill(upper, look.cloth)
    pen.fill(curve([(78, 52), (92, 56), (97, 70), (88, 76), (76, 76), (74, 62)]), look.accent)
    pen.fill(
        curve([(6, 75), (5, 56), (6, heel + 9), (15, heel + 18), (18, 62), (20, 75)]), look.accent
    )
    pen.fill(ellipse(34, 59, 7.5), WHITE)
    pen.fill(ellipse(34, 59, 5.5), look.trim)
    for lace in range(4):
        x, y = 45 + lace * 6.2, tongue + 14 + lace * 6
        pen.stroke(polygon([(x, y), (x + 7, y - 5)]), 2.4, WHITE)
    thick = look.vary(8, 12)
    pen.fill(box(4, 74, 97, 74 + thick, radius=4), WHITE)
    pen.fill(box(4, 71 + thick, 97, 76 + thick, radius=2), look.trim)


def umbrella(pen: Pen, look: Look) -> None:
    """Open, handle down."""
    dome, panels = look.vary(40, 48), look.count(4, 7)
    pen.stroke(polygon([(50, 12), (50, 82)]), 2.6, INK)
    pen.stroke(arc(57, 83, 7, 10, start=180, stop=20), 4.4, look.trim)
    pen.stroke(polygon([(50, 3), (50, 12)]), 2.4, INK)
    hem = [
        (4 + 92 * step / (panels * 2), 54 - (5 if step % 2 else 0))
        for step in range(2 * panels + 1)
    ]
    canopy = np.vstack([arc(50, 54, 46, dome, start=180, stop=360), curve(hem, closed=False)[::-1]])
    pen.fill(canopy, look.cloth)
    rib = shade(look.main, -0.4)
    for panel in range(1, panels):
        x = 4 + 92 * panel / panels
        pen.stroke(
            curve([(50, 54 - dome), ((x * 1.8 + 50) / 2.8, 30), (x, 54)], closed=False), 1.1, rib
        )


def guitar(pen: Pen, look: Look) -> None:
    """Leaning, neck up."""
    pen.tilt, pen.zoom = 32.0, 0.86
    waist, bout = look.vary(13, 16), look.vary(24, 28)
    pen.fill(box(46, 2, 54, 56), WOOD)
    pen.fill(polygon([(44, -9), (56, -9), (54.5, 5), (45.5, 5)]), look.trim)
    for peg in range(3):
        for x in (42, 58):
            pen.fill(ellipse(x, -6.5 + peg * 4.5, 1.9), STEEL)
    half = curve([(50, 45), (41, 44), (50 - bout * 0.76, 52), (50 - waist, 66), (51 - bout, 78),
                  (52 - bout, 95), (62 - bout, 106), (50, 109)], closed=False)  # fmt: skip
    outline = symmetric(half)
    pen.fill(outline, shade(look.main, -0.45))
    center = outline.mean(axis=0)
    pen.fill((outline - center) * 0.93 + center, look.cloth)
    pen.fill(ellipse(50, 67, 9.5), look.accent)
    pen.fill(ellipse(50, 67, 7.3), INK)
    pen.fill(box(47, 4, 53, 61), shade(WOOD, -0.5))
    for fret in range(8):
        y = 9 + fret * 6
        pen.stroke(polygon([(47, y), (53, y)]), 0.7, STEEL)
    pen.fill(box(39, 91, 61, 95, radius=1.5), look.trim)
    for string in range(4):
        across = 47.8 + string * 1.45
        pen.stroke(polygon([(across, -2), (across, 92)]), 0.5, CREAM)


def car(pen: Pen, look: Look) -> None:
    """Seen from its left side, driving left."""
    roof, hood = look.vary(26, 33), look.vary(48, 52)
    back = look.vary(74, 84)
    cabin = curve(
        [(22, hood + 2), (36, roof + 2), (52, roof - 1), (back - 6, roof + 2), (back + 8, hood + 2)]
    )
    pen.fill(np.vstack([cabin, [(back + 8, 58), (22, 58)]]), shade(look.main, -0.22))
    pen.fill(polygon([(29, hood), (38, roof + 5), (51, roof + 4), (51, hood)]), GLASS)
    pen.fill(polygon([(55, hood), (55, roof + 4), (back - 8, roof + 6), (back + 1, hood)]), GLASS)
    pen.fill(polygon([(34, hood), (42, roof + 5), (46, roof + 5), (38, hood)]), shade(GLASS, 0.5))
    body = curve([(3, 70), (3, 58), (10, hood + 2), (26, hood - 1), (60, hood - 2), (90, hood),
                  (97, 58), (97, 70), (90, 75), (50, 75), (10, 75)])  # fmt: skip
    pen.fill(body, look.cloth)
    pen.fill(box(2, 66, 98, 72, radius=2), shade(look.main, -0.5))
    pen.fill(ellipse(6.5, hood + 8, 3.4, 4), (255, 236, 160))
    pen.fill(box(93, hood + 4, 97, hood + 11, radius=1.5), (206, 48, 44))
    pen.stroke(polygon([(53, hood), (53, 66)]), 1, shade(look.main, -0.5))
    pen.fill(box(57, hood + 4, 64, hood + 6, radius=0.8), STEEL)
    for x in (23, 77):
        pen.fill(ellipse(x, 73, 12), INK)
        pen.fill(ellipse(x, 73, 7), look.accent)
        pen.fill(ellipse(x, 73, 2.6), STEEL)


def house(pen: Pen, look: Look) -> None:
    """Seen from the front: roof, door, windows, chimney."""
    eaves, peak = look.vary(42, 48), look.vary(5, 12)
    pen.fill(box(66, peak + 4, 76, eaves), shade(look.accent, -0.45))
    pen.fill(box(64.5, peak + 2, 77.5, peak + 7), INK)
    pen.fill(box(14, eaves - 2, 86, 95), look.cloth)
    pen.fill(polygon([(5, eaves + 2), (50, peak), (95, eaves + 2)]), look.accent)
    for row in range(1, 5):
        y = peak + (eaves + 2 - peak) * row / 5
        reach = 45 * row / 5
        pen.stroke(polygon([(50 - reach, y), (50 + reach, y)]), 0.9, shade(look.accent, -0.25))
    door = 42 if look.rng.random() < 0.5 else 56
    pen.fill(box(door - 1.5, 64, door + 15.5, 95), WHITE)
    pen.fill(box(door, 66, door + 14, 95), look.trim)
    pen.fill(ellipse(door + 11, 81, 1.3), CREAM)
    for x in (door - 21, door + 20):
        size = 7.5 if 15 < x < 72 else 5
        pen.fill(box(x, 58, x + 2 * size, 58 + 2.2 * size), WHITE)
        pen.fill(box(x + 1.5, 59.5, x + 2 * size - 1.5, 56.5 + 2.2 * size), GLASS)
        pen.stroke(polygon([(x + size, 59), (x + size, 57 + 2.2 * size)]), 1.2, WHITE)
        pen.stroke(
            polygon([(x + 1, 58 + 1.1 * size), (x + 2 * size - 1, 58 + 1.1 * size)]), 1.2, WHITE
        )
    pen.fill(ellipse(50, (eaves + peak) / 2 + 5, 5), GLASS)
    pen.fill(box(10, 93, 90, 97, radius=1), shade(look.trim, 0.2))
