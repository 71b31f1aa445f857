"""Things of the house: mug, teapot, bottle, lamp, chair, clock."""

from __future__ import annotations

import math

from scripts.samples.geometry import arc, box, curve, ellipse, polygon, symmetric
from scripts.samples.pen import CREAM, INK, STEEL, WHITE, Look, Pen, shade


def mug(pen: Pen, look: Look) -> None:
    """Handle on the right, filled."""
    top, wide, taper = look.vary(18, 26), look.vary(25, 29), look.vary(0, 5)
    grip = look.vary(14, 18)
    left, right = 42 - wide, 42 + wide
    handle = arc(right - 3, 52, grip + 4, grip + 2, start=-95, stop=95)
    pen.stroke(handle, 7, shade(look.main, -0.2))
    body = curve([(right - taper / 2, 70), (right - taper - 4, 86), (42, 90),
                  (left + taper + 4, 86), (left + taper / 2, 70)], closed=False)  # fmt: skip
    pen.fill(polygon([(left, top), *map(tuple, body[::-1]), (right, top)]), look.cloth)
    pen.fill(ellipse(42, top, wide, 6.5), shade(look.main, 0.45))
    pen.fill(ellipse(42, top + 0.8, wide - 3, 4.8), (92, 58, 38))
    pen.fill(ellipse(42, top + 2, wide - 6, 3.2), (110, 72, 48))


def teapot(pen: Pen, look: Look) -> None:
    """Spout on the left, handle on the right."""
    wide, high = look.vary(25, 29), look.vary(20, 25)
    pen.stroke(arc(50 + wide, 55, 16, 15, start=-115, stop=110), 5.5, look.trim)
    spout = curve([(36, 70), (20, 60), (14, 44), (4, 34), (13, 33), (24, 42), (36, 50)])
    pen.fill(spout, shade(look.main, -0.18))
    pen.fill(box(36, 74, 64, 85, radius=3), look.trim)
    pen.fill(ellipse(50, 58, wide, high), look.cloth)
    lid = arc(50, 62 - high, wide * 0.56, 11, start=180, stop=360)
    pen.fill(lid, look.accent)
    pen.stroke(arc(50, 60 - high, wide * 0.57, 4, start=10, stop=170), 2, shade(look.accent, -0.3))
    pen.fill(ellipse(50, 49 - high, look.vary(3.5, 5.5)), look.trim)


def bottle(pen: Pen, look: Look) -> None:
    """Glass with a patterned label and a cap."""
    wide, neck, shoulder = look.vary(16, 22), look.vary(6, 8), look.vary(30, 42)
    glass = look.main
    half = curve([(50 - neck, 10), (50 - neck, shoulder - 10), (50 - wide * 0.75, shoulder),
                  (50 - wide, shoulder + 12), (50 - wide, 80), (50 - wide + 1, 94),
                  (50 - wide + 6, 97)], closed=False)  # fmt: skip
    pen.fill(symmetric(half), glass)
    pen.stroke(polygon([(54 - wide, shoulder + 12), (54 - wide, 90)]), 2.2, shade(glass, 0.5))
    label = box(50 - wide, shoulder + 17, 50 + wide, 86)
    pen.fill(label, look.cloth)
    for y in (shoulder + 17, 86):
        pen.stroke(polygon([(51 - wide, y), (49 + wide, y)]), 2, CREAM)
    mark = look.vary(6, 9)
    pen.fill(ellipse(50, (shoulder + 103) / 2, mark), CREAM)
    pen.fill(ellipse(50, (shoulder + 103) / 2, mark * 0.55), look.accent)
    pen.fill(box(49 - neck, 3, 51 + neck, 13, radius=2), look.accent)


def lamp(pen: Pen, look: Look) -> None:
    """A table lamp, its shade patterned."""
    top, wide, low = look.vary(14, 22), look.vary(32, 39), look.vary(48, 55)
    pen.fill(box(48, low - 3, 52, 88), look.trim)
    belly = look.vary(6, 13)
    pen.fill(ellipse(50, 74, belly, 12), look.accent)
    pen.fill(arc(50, 95, look.vary(19, 25), 9, start=180, stop=360), look.trim)
    pen.fill(ellipse(50, low, wide * 0.9, 5), (255, 226, 150))
    pen.fill(ellipse(50, low + 1.5, 7, 6), (255, 244, 205))
    pen.fill(
        polygon([(50 - top, 6), (50 + top, 6), (50 + wide, low), (50 - wide, low)]), look.cloth
    )
    rim = shade(look.main, -0.3)
    pen.stroke(polygon([(51 - top, 6), (49 + top, 6)]), 2, rim)
    pen.stroke(polygon([(51 - wide, low), (49 + wide, low)]), 2, rim)


def chair(pen: Pen, look: Look) -> None:
    """Seen from the front and a little from the left."""
    top, slats = look.vary(4, 12), look.count(1, 4)
    wood = look.accent
    dark = shade(wood, -0.3)
    seat = look.vary(52, 57)
    for x in (32, 76):
        pen.fill(polygon([(x - 2.5, top), (x + 2.5, top), (x + 2.5, 86), (x - 2, 86)]), dark)
    pen.fill(box(29, top, 79, top + 9, radius=3), wood)
    gap = (seat - top - 12) / slats
    for slat in range(slats):
        y = top + 12 + slat * gap
        pen.fill(box(33, y, 75, y + gap * 0.62, radius=2), look.cloth)
    for x in (20, 68):
        pen.fill(polygon([(x - 3, seat + 6), (x + 3, seat + 6), (x + 2, 97), (x - 2, 97)]), wood)
    pen.fill(box(20, seat + 24, 69, seat + 28), dark)
    pen.fill(
        polygon([(32, seat - 4), (79, seat - 4), (73, seat + 10), (15, seat + 10)]), look.cloth
    )
    front = polygon([(15, seat + 10), (73, seat + 10), (73, seat + 16), (15, seat + 16)])
    pen.fill(front, shade(look.main, -0.3))
    side = polygon([(73, seat + 10), (79, seat - 4), (79, seat + 2), (73, seat + 16)])
    pen.fill(side, shade(look.main, -0.45))


def clock(pen: Pen, look: Look) -> None:
    """An alarm clock with two bells; each instance shows its own time."""
    x, y = 50.0, 56.0
    for side in (-1, 1):
        pen.stroke(polygon([(x + side * 20, 84), (x + side * 27, 96)]), 5, look.trim)
        bell = arc(x + side * 24, 24, 15, start=180 + side * 38, stop=360 + side * 38)
        pen.fill(bell, look.accent)
    pen.stroke(polygon([(50, 8), (50, 20)]), 4, look.trim)
    pen.stroke(polygon([(44, 8), (56, 8)]), 4, look.trim)
    pen.fill(ellipse(x, y, 38), look.cloth)
    face = look.vary(24, 29)
    pen.fill(ellipse(x, y, face + 2), shade(look.main, -0.35))
    pen.fill(ellipse(x, y, face), WHITE if look.rng.random() < 0.5 else CREAM)
    for hour in range(12):
        angle = hour * math.tau / 12
        cos, sin = math.cos(angle), math.sin(angle)
        inner = face * (0.74 if hour % 3 == 0 else 0.84)
        tick = polygon(
            [(x + inner * cos, y + inner * sin), (x + face * 0.92 * cos, y + face * 0.92 * sin)]
        )
        pen.stroke(tick, 2.2 if hour % 3 == 0 else 1.2, INK)
    minutes = look.count(0, 11)
    angles = (look.count(0, 11) / 12 + minutes / 144, minutes / 12)
    for turn, length, width in zip(angles, (0.5, 0.74), (3.2, 2.2), strict=True):
        tip = (
            x + face * length * math.sin(turn * math.tau),
            y - face * length * math.cos(turn * math.tau),
        )
        pen.stroke(polygon([(x, y), tip]), width, INK)
    pen.fill(ellipse(x, y, 2.6), look.accent)
    pen.stroke(arc(x, y, 36, start=200, stop=250), 1.6, shade(STEEL, 0.6))
