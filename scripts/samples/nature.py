"""Fish, butterfly, flower, leaf."""

from __future__ import annotations

import math

import numpy as np

from scripts.samples.geometry import arc, curve, ellipse, mirrored, polygon, turned
from scripts.samples.pen import CREAM, INK, WHITE, Look, Pen, shade

STEM = (78, 132, 70)


def fish(pen: Pen, look: Look) -> None:
    """Seen from its left side, tail to the right."""
    deep = look.vary(20, 27)
    fin = look.accent
    tail = look.vary(16, 22)
    pen.fill(
        curve(
            [(68, 50), (82, 50 - tail), (96, 46 - tail), (90, 50), (96, 54 + tail), (82, 52 + tail)]
        ),
        fin,
    )
    pen.fill(
        curve([(34, 55 - deep), (48, 38 - deep), (66, 42 - deep), (70, 50)]), shade(fin, -0.12)
    )
    pen.fill(
        curve([(44, 46 + deep), (50, 58 + deep), (64, 56 + deep), (60, 52)]), shade(fin, -0.12)
    )
    body = curve([(5, 51), (16, 52 - deep * 0.75), (40, 50 - deep), (66, 50 - deep * 0.5), (80, 49),
                  (66, 51 + deep * 0.5), (40, 51 + deep), (16, 50 + deep * 0.75)])  # fmt: skip
    pen.fill(body, look.cloth)
    head = curve([(5, 51), (14, 54 - deep * 0.72), (25, 51 - deep * 0.92), (30, 50),
                  (25, 50 + deep * 0.92), (14, 48 + deep * 0.72)])  # fmt: skip
    pen.fill(head, shade(look.main, -0.18))
    pen.fill(curve([(42, 52), (58, 48), (62, 58), (54, 66)]), fin)
    pen.fill(ellipse(18, 44, 5.2), WHITE)
    pen.fill(ellipse(17.4, 44, 2.9), INK)
    pen.stroke(arc(6, 52, 7, 5, start=20, stop=80), 1.4, INK)


def butterfly(pen: Pen, look: Look) -> None:
    """Seen from above, wings spread."""
    wide, high = look.vary(0.9, 1.06), look.vary(0.88, 1.05)
    upper = curve([(51, 48), (58, 26), (76, 11), (93, 12), (94, 32), (84, 50), (66, 55)])
    lower = curve([(51, 52), (68, 53), (84, 62), (86, 80), (72, 91), (60, 80), (53, 66)])
    spot = look.vary(4, 6.5)
    spots = [ellipse(84, 23, spot), ellipse(74, 76, spot * 1.15), ellipse(70, 33, spot * 0.6)]
    stretch = np.array((wide, high))
    for side in (lower, upper):
        center = side.mean(axis=0)
        for flip in (False, True):
            rim = (side - 50) * stretch + 50
            inner = (((side - center) * 0.8 + center) - 50) * stretch + 50
            pen.fill(mirrored(rim) if flip else rim, look.trim)
            pen.fill(mirrored(inner) if flip else inner, look.cloth)
    for round_spot in spots:
        placed = (round_spot - 50) * stretch + 50
        for side in (placed, mirrored(placed)):
            pen.fill(side, look.accent)
    feeler = curve([(50.5, 32), (54, 20), (61, 13)], closed=False)
    for side in (feeler, mirrored(feeler)):
        pen.stroke(side, 1.3, INK)
        pen.fill(ellipse(side[-1, 0], side[-1, 1], 1.9), INK)
    pen.fill(ellipse(50, 54, 3.4, 24), INK)
    pen.fill(ellipse(50, 32, 4.2), INK)


def flower(pen: Pen, look: Look) -> None:
    """A blossom on a stem with two leaves."""
    x, y = 50.0, 36.0
    petals = look.count(5, 9)
    length = look.vary(17, 20)
    half = min(11.5, 74 / petals) * look.vary(0.85, 1.05)
    pen.stroke(curve([(50, 40), (52, 70), (49, 97)], closed=False), 3.4, STEM)
    for bend in (1, -1):
        leaf = curve([(51, 86), (51 + bend * 12, 70), (51 + bend * 30, 64), (51 + bend * 20, 80)])
        pen.fill(leaf, shade(STEM, 0.12 * bend))
    for ring, paint in ((1.0, look.cloth), (0.62, shade(look.main, 0.22))):
        for petal in range(petals):
            angle = (petal + (0.5 if ring < 1 else 0)) * 360 / petals
            outline = ellipse(x, y - length * ring * 0.85, half * ring, length * ring * 0.85)
            pen.fill(turned(outline, angle, around=(x, y)), paint)
    pen.fill(ellipse(x, y, look.vary(7, 10)), look.accent)
    for seed in range(8):
        angle = seed * math.tau / 8
        pen.fill(ellipse(x + 4.5 * math.cos(angle), y + 4.5 * math.sin(angle), 1), INK)


def leaf(pen: Pen, look: Look) -> None:
    """One broad leaf with its veins, stem at the bottom."""
    wide, teeth = look.vary(22, 35), look.count(5, 8)
    jag = look.vary(1.5, 4)
    right = []
    for step in range(2 * teeth + 1):
        down = step / (2 * teeth)
        reach = wide * math.sin(math.pi * down**0.75) ** 0.8 + (jag if step % 2 else 0)
        right.append((50 + reach, 6 + 76 * down))
    half = polygon(right[:-1])
    outline = np.vstack([half, [(50, 83)], mirrored(half)[::-1]])
    pen.stroke(curve([(50, 80), (51, 90), (56, 97)], closed=False), 3, shade(look.main, -0.35))
    pen.fill(outline, look.cloth)
    vein = shade(look.main, 0.45)
    for tip in range(1, teeth):
        down = tip / teeth
        reach = 0.72 * wide * math.sin(math.pi * down**0.75) ** 0.8
        path = curve([(50, 16 + 66 * down), (50 + reach, 4 + 70 * down)], closed=False)
        pen.stroke(path, 1.1, vein)
        pen.stroke(mirrored(path), 1.1, vein)
    pen.stroke(polygon([(50, 12), (50, 83)]), 1.9, vein)
    pen.fill(ellipse(50, 12, 1), CREAM)
