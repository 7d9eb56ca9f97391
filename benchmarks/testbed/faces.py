"""Parametric faces: fixed attributes make the person, a random generator makes the drawing."""

from dataclasses import astuple, dataclass, fields

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 64  # pixels, what the vision tower sees
CANVAS = 128  # drawn at twice the size, then averaged down: smooth edges

SKINS = {
    "pale": (250, 224, 205),
    "tan": (226, 178, 136),
    "brown": (164, 112, 74),
    "dark": (98, 64, 44),
}
HAIRS = {
    "black": (28, 24, 26),
    "blond": (240, 208, 104),
    "red": (200, 72, 28),
    "grey": (168, 170, 176),
    "blue": (48, 92, 220),
    "green": (44, 160, 76),
}
STYLES = ("short", "long", "curly", "bun")
GLASSES = ("none", "round", "dark")
HATS = ("none", "cap", "beanie", "crown")
BEARDS = ("none", "moustache", "full")
SHAPES = {"round": (31, 33), "long": (25, 37), "wide": (36, 31)}  # half axes on the canvas
SHIRTS = {
    "white": (246, 246, 246),
    "black": (34, 34, 38),
    "red": (206, 40, 44),
    "blue": (44, 84, 204),
    "green": (40, 150, 70),
    "yellow": (246, 206, 50),
    "purple": (134, 60, 170),
}


@dataclass(frozen=True)
class Face:
    """The attributes that stay the same in every drawing of a person."""

    skin: str
    hair: str
    style: str
    glasses: str
    hat: str
    beard: str
    shape: str
    shirt: str

    def distance(self, other: "Face") -> int:
        """The number of attributes in which two faces differ."""
        return sum(a != b for a, b in zip(astuple(self), astuple(other), strict=True))


CHOICES: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKINS),
    "hair": tuple(HAIRS),
    "style": STYLES,
    "glasses": GLASSES,
    "hat": HATS,
    "beard": BEARDS,
    "shape": tuple(SHAPES),
    "shirt": tuple(SHIRTS),
}
assert tuple(CHOICES) == tuple(field.name for field in fields(Face))


def random_face(rng: np.random.Generator) -> Face:
    """A face with every attribute drawn uniformly."""
    return Face(**{name: values[rng.integers(len(values))] for name, values in CHOICES.items()})


def distinct_faces(count: int, seed: int, min_distance: int = 5) -> list[Face]:
    """`count` faces, any two of which differ in at least `min_distance` of the 8 attributes."""
    rng = np.random.default_rng(seed)
    faces: list[Face] = []
    while len(faces) < count:
        candidate = random_face(rng)
        if all(candidate.distance(face) >= min_distance for face in faces):
            faces.append(candidate)
    return faces


def draw_face(face: Face, rng: np.random.Generator) -> Image.Image:
    """One drawing, 64 x 64 RGB; place, size, tilt, mood, background and light come from `rng`."""
    image = backdrop(rng)
    draw = ImageDraw.Draw(image)
    x, y = 64 + rng.integers(-8, 9), 62 + rng.integers(-6, 7)
    scale = rng.uniform(0.88, 1.08)
    half_width, half_height = (round(axis * scale) for axis in SHAPES[face.shape])
    skin, hair = SKINS[face.skin], HAIRS[face.hair]
    _draw_back_hair(draw, face.style, hair, x, y, half_width, half_height)
    neck = half_width // 3
    draw.rectangle((x - neck, y + half_height - 8, x + neck, y + half_height + 16), fill=skin)
    top = y + half_height + 6
    draw.ellipse((x - 46, top, x + 46, top + 90), fill=SHIRTS[face.shirt], outline=(60, 60, 60))
    draw.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=skin)
    _draw_fringe(draw, face.style, hair, x, y, half_width, half_height)
    _draw_beard(draw, face.beard, hair, x, y, half_width, half_height)
    _draw_eyes(draw, face.glasses, x, y, half_width, rng)
    mouth = y + round(half_height * 0.55)
    mood = rng.integers(3)
    if mood == 0:
        draw.arc((x - 10, mouth - 8, x + 10, mouth + 4), 20, 160, fill=(160, 40, 50), width=3)
    elif mood == 1:
        draw.line((x - 8, mouth, x + 8, mouth), fill=(160, 40, 50), width=3)
    else:
        draw.ellipse((x - 7, mouth - 3, x + 7, mouth + 5), fill=(160, 40, 50))
    _draw_hat(draw, face.hat, x, y, half_width, half_height)
    return develop(tilt(image, rng.uniform(-8, 8)), rng)


def backdrop(rng: np.random.Generator) -> Image.Image:
    """A pale canvas of random colour that darkens a little from top to bottom."""
    colour = rng.integers(185, 256, size=3).astype(np.float32)
    shade = np.linspace(1.0, rng.uniform(0.82, 1.0), CANVAS, dtype=np.float32)
    pixels = np.broadcast_to(shade[:, None, None] * colour, (CANVAS, CANVAS, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def tilt(image: Image.Image, degrees: float) -> Image.Image:
    """Turn the canvas about its middle; the corners take the backdrop's colour."""
    corner = image.getpixel((0, 0))
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=corner)


def develop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Average the canvas down to 64 x 64, then light and camera noise."""
    pixels = np.asarray(image.reduce(CANVAS // IMAGE_SIZE), dtype=np.float32)
    light = rng.uniform(0.85, 1.1) * rng.uniform(0.97, 1.03, size=3).astype(np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(0, 6)
    return Image.fromarray(np.clip(pixels * light + noise, 0, 255).astype(np.uint8))


def _draw_back_hair(draw, style, hair, x, y, half_width, half_height) -> None:
    if style == "long":
        box = (x - half_width - 9, y - half_height - 8, x + half_width + 9, y + half_height + 30)
        draw.rounded_rectangle(box, 24, fill=hair)
    elif style == "curly":
        for angle in np.linspace(np.pi * 0.9, np.pi * 2.1, 10):
            cx = x + np.cos(angle) * (half_width + 3)
            cy = y + np.sin(angle) * half_height * 0.95
            draw.ellipse((cx - 13, cy - 13, cx + 13, cy + 13), fill=hair)
    else:
        draw.ellipse(
            (x - half_width - 4, y - half_height - 6, x + half_width + 4, y + half_height // 3),
            fill=hair,
        )
    if style == "bun":
        draw.ellipse((x + half_width - 8, y - 22, x + half_width + 18, y + 4), fill=hair)
        draw.ellipse((x - half_width - 18, y - 22, x - half_width + 8, y + 4), fill=hair)


def _draw_fringe(draw, style, hair, x, y, half_width, half_height) -> None:
    box = (x - half_width, y - half_height - 4, x + half_width, y + half_height * 0.5)
    draw.chord(box, 205 if style == "short" else 215, 335 if style == "short" else 325, fill=hair)


def _draw_beard(draw, beard, hair, x, y, half_width, half_height) -> None:
    if beard == "full":
        draw.chord(
            (x - half_width, y - half_height, x + half_width, y + half_height), 12, 168, fill=hair
        )
    elif beard == "moustache":
        lip = y + round(half_height * 0.38)
        draw.ellipse((x - 17, lip - 4, x + 1, lip + 5), fill=hair)
        draw.ellipse((x - 1, lip - 4, x + 17, lip + 5), fill=hair)


def _draw_eyes(draw, glasses, x, y, half_width, rng) -> None:
    apart, gaze = round(half_width * 0.42), rng.integers(-2, 3)
    for cx in (x - apart, x + apart):
        draw.ellipse((cx - 6, y - 8, cx + 6, y + 2), fill=(255, 255, 255))
        draw.ellipse((cx - 3 + gaze, y - 6, cx + 3 + gaze, y), fill=(30, 30, 40))
        if glasses == "round":
            draw.ellipse((cx - 12, y - 14, cx + 12, y + 9), outline=(20, 20, 20), width=4)
        elif glasses == "dark":
            draw.rectangle((cx - 13, y - 10, cx + 12, y + 5), fill=(16, 16, 20))
    if glasses != "none":
        draw.line((x - 4, y - 4, x + 4, y - 4), fill=(20, 20, 20), width=4)


def _draw_hat(draw, hat, x, y, half_width, half_height) -> None:
    brow, wide = y - round(half_height * 0.55), half_width + 6
    if hat == "cap":
        draw.pieslice((x - wide, brow - 34, x + wide, brow + 30), 180, 360, fill=(190, 30, 36))
        draw.rounded_rectangle((x, brow - 6, x + wide + 20, brow + 2), 4, fill=(130, 16, 22))
    elif hat == "beanie":
        draw.pieslice((x - wide, brow - 38, x + wide, brow + 34), 180, 360, fill=(40, 130, 140))
        draw.rectangle((x - wide, brow - 8, x + wide, brow + 2), fill=(230, 240, 240))
        draw.ellipse((x - 8, brow - 48, x + 8, brow - 32), fill=(230, 240, 240))
    elif hat == "crown":
        points = [(x - wide, brow)]
        for step in range(5):
            left = x - wide + step * wide * 2 / 5
            points += [(left, brow - 28), (left + wide / 5, brow - 12)]
        points += [(x + wide, brow - 28), (x + wide, brow)]
        draw.polygon(points, fill=(250, 190, 20), outline=(150, 100, 0))
