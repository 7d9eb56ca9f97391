"""General pictures: coloured shapes to count and everyday things to name."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.testbed.faces import backdrop, develop, tilt

COLOURS = {
    "red": (220, 30, 36),
    "blue": (30, 70, 220),
    "green": (30, 150, 60),
    "yellow": (246, 200, 20),
    "purple": (140, 40, 180),
    "black": (20, 20, 20),
    "orange": (250, 130, 20),
    "pink": (255, 120, 180),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COUNTS = ("one", "two", "three", "four")
THINGS = ("house", "tree", "car", "fish", "sun", "flower", "boat", "cup", "ladder", "umbrella")


@dataclass(frozen=True)
class Shapes:
    """`count` copies of one shape in one colour."""

    shape: str
    colour: str
    count: str


@dataclass(frozen=True)
class Thing:
    """One everyday thing."""

    thing: str


Picture = Shapes | Thing


def random_shapes(rng: np.random.Generator) -> Shapes:
    """Shape, colour and count, each drawn uniformly."""
    return Shapes(str(rng.choice(SHAPES)), str(rng.choice(tuple(COLOURS))), str(rng.choice(COUNTS)))


def draw_picture(picture: Picture, rng: np.random.Generator) -> Image.Image:
    """One drawing, 64 x 64 RGB; places, sizes, background and light come from `rng`."""
    image = backdrop(rng)
    draw = ImageDraw.Draw(image)
    if isinstance(picture, Thing):
        x, y = 64 + rng.integers(-14, 15), 64 + rng.integers(-14, 15)
        _draw_thing(draw, picture.thing, x, y, rng.uniform(0.8, 1.15))
        return develop(tilt(image, rng.uniform(-6, 6)), rng)
    # One cell of a 2 x 2 grid each, so that the shapes never touch and can be counted.
    count = COUNTS.index(picture.count) + 1
    for cell in rng.permutation(4)[:count]:
        x, y = (
            32 + 64 * (cell % 2) + rng.integers(-5, 6),
            32 + 64 * (cell // 2) + rng.integers(-5, 6),
        )
        _draw_shape(draw, picture.shape, x, y, rng.uniform(17, 25), COLOURS[picture.colour])
    return develop(image, rng)


def _draw_shape(draw, shape, x, y, r, colour) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        draw.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=colour)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], fill=colour)
    elif shape == "cross":
        draw.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill=colour)
        draw.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill=colour)
    elif shape == "heart":
        draw.ellipse((x - r, y - r * 0.9, x + r * 0.1, y + r * 0.2), fill=colour)
        draw.ellipse((x - r * 0.1, y - r * 0.9, x + r, y + r * 0.2), fill=colour)
        draw.polygon([(x - r * 0.9, y), (x + r * 0.9, y), (x, y + r)], fill=colour)
    else:
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, r * 1.1, r * 0.45)
        corners = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
        draw.polygon([(float(a), float(b)) for a, b in corners], fill=colour)


def _draw_thing(draw, thing, x, y, s) -> None:
    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return (x + left * s, y + top * s, x + right * s, y + bottom * s)

    def points(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + a * s, y + b * s) for a, b in pairs]

    if thing == "house":
        draw.rectangle(box(-28, -8, 28, 34), fill=(214, 160, 110))
        draw.polygon(points((-36, -8), (0, -38), (36, -8)), fill=(160, 40, 40))
        draw.rectangle(box(-7, 12, 7, 34), fill=(90, 50, 30))
    elif thing == "tree":
        draw.rectangle(box(-6, 8, 6, 40), fill=(110, 70, 40))
        draw.ellipse(box(-28, -40, 28, 14), fill=(40, 140, 50))
    elif thing == "car":
        draw.rectangle(box(-40, -4, 40, 18), fill=(200, 40, 50))
        draw.polygon(points((-24, -4), (-14, -22), (14, -22), (26, -4)), fill=(150, 200, 230))
        draw.ellipse(box(-30, 10, -12, 28), fill=(30, 30, 30))
        draw.ellipse(box(12, 10, 30, 28), fill=(30, 30, 30))
    elif thing == "fish":
        draw.ellipse(box(-32, -18, 24, 18), fill=(240, 140, 40))
        draw.polygon(points((18, 0), (42, -18), (42, 18)), fill=(240, 140, 40))
        draw.ellipse(box(-24, -8, -17, -1), fill=(10, 10, 10))
    elif thing == "sun":
        for angle in np.arange(8) * np.pi / 4:
            end = points((0, 0), (40 * np.cos(angle), 40 * np.sin(angle)))
            draw.line(end, fill=(250, 190, 0), width=5)
        draw.ellipse(box(-22, -22, 22, 22), fill=(255, 210, 30))
    elif thing == "flower":
        draw.line(points((0, 0), (0, 42)), fill=(40, 140, 50), width=6)
        for angle in np.arange(5) * np.pi * 0.4:
            cx, cy = 16 * np.cos(angle), -12 + 16 * np.sin(angle)
            draw.ellipse(box(cx - 11, cy - 11, cx + 11, cy + 11), fill=(230, 80, 160))
        draw.ellipse(box(-8, -20, 8, -4), fill=(250, 210, 40))
    elif thing == "boat":
        draw.polygon(points((-38, 12), (38, 12), (24, 32), (-24, 32)), fill=(120, 70, 40))
        draw.polygon(points((0, -40), (0, 6), (30, 6)), fill=(250, 250, 250), outline=(90, 90, 90))
        draw.line(points((-2, -40), (-2, 12)), fill=(60, 40, 30), width=4)
    elif thing == "cup":
        draw.ellipse(box(10, -14, 40, 16), outline=(60, 110, 200), width=6)
        draw.rectangle(box(-26, -24, 22, 28), fill=(60, 110, 200))
    elif thing == "ladder":
        for side in (-16, 16):
            draw.line(points((side, -42), (side, 42)), fill=(140, 90, 40), width=6)
        for rung in range(-34, 40, 14):
            draw.line(points((-16, rung), (16, rung)), fill=(140, 90, 40), width=5)
    else:
        draw.pieslice(box(-40, -36, 40, 40), 180, 360, fill=(110, 60, 180))
        draw.line(points((0, 2), (0, 38)), fill=(60, 60, 60), width=5)
        draw.arc(box(-14, 28, 0, 42), 0, 180, fill=(60, 60, 60), width=5)
