"""Renders images of pizza and steak: the dataset `pizza_steak/sample`, which needs no network.

A scene is drawn twice, as colour and as height above the table, so that shading and shadows follow
from the light. Both classes share tables, dishes and side dishes. The camera exposes every scene
towards a random tint, so that the mean colour of an image does not reveal its class.
"""

import copy
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageStat

CLASSES = ("pizza", "steak")
PICTURES = {"train": 120, "test": 40}  # Of each class.

_TABLES = ["4a3020", "6e5038", "94785a", "3e4044", "5a4a40", "6a4438", "586470"]
_CLOTHS = ["a83226", "2f5d8a", "4a7040", "c08a3c"]
_DISHES = ["eeeae2", "cec6b8", "e2dccf", "8c8478", "b98a5a", "d0dade"]
_CRUSTS = ["ce9a58", "b6783e", "deb478"]
_SAUCES = ["b0341c", "962818", "c45628", "b8481c"]
_CHEESES = ["f4c85c", "f6d88c", "eeb648"]
_MEATS = ["623a28", "6e422c", "783c30", "7a5034", "642c22"]
_FATS = ["e0be8a", "cea068", "ecd4ac"]


class _Morsel(NamedTuple):
    """A small piece of food, whose core has another colour than its rim."""

    rim: str
    core: str
    core_ratio: float
    radius: float
    stretch: float = 1.0
    squareness: float = 2.0


_PEPPERONI = _Morsel("96261a", "b83e2a", 0.84, 0.13)
_TOMATO = _Morsel("be2a1c", "de623e", 0.7, 0.13)
_OLIVE = _Morsel("2c2a20", "784628", 0.45, 0.065)
_MUSHROOM = _Morsel("b08e64", "e4d0ac", 0.75, 0.1, 1.2, 2.4)
_LEAF = _Morsel("345e22", "548436", 0.5, 0.1, 1.5)
_FRY = _Morsel("ce9a44", "eec66e", 0.75, 0.1, 2.4, 6.0)
_BUTTER = _Morsel("ecd07c", "f6e4a0", 0.8, 0.12, 1.1, 3.0)


def _turns(rng, count=None):
    return np.exp(2j * np.pi * rng.random(count))


def _scattered(rng, count, radius):
    """Returns `count` points spread evenly over the disc of that radius around 0."""
    return radius * np.sqrt(rng.random(count)) * _turns(rng, count)


def _outlines(rng, places, radius, *, wobble=0.03, stretch=1.0, squareness=2.0, points=24):
    """Returns closed curves around `places`, each turned at random.

    Args:
      rng: The image's random generator.
      places: N centres; complex numbers, as are all positions in this module.
      radius: Least and greatest radius.
      wobble: Standard deviation of the longest of four waves on the curve, relative to its radius.
      stretch: Length over the round shape's; the width shrinks as much.
      squareness: Exponent of a superellipse: 2 is round, 6 nearly a square.
      points: Number of points of a curve.

    Returns:
      complex array of shape (N, points).
    """
    count = len(places)
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = np.cos(angles), np.sin(angles)
    waves = np.arange(2, 6)[:, None]
    phases = rng.uniform(0, 2 * np.pi, (count, 4, 1))
    heights = rng.normal(0, 2 * wobble / waves, (count, 4, 1))
    swing = (heights * np.cos(waves * angles + phases)).sum(1)
    ellipse = (np.abs(x) ** squareness + np.abs(y) ** squareness) ** (-1 / squareness)
    radii = rng.uniform(*radius, (count, 1)) * ellipse * (1 + swing)
    curves = radii * (x * stretch + 1j * y / stretch)
    return np.asarray(places)[:, None] + curves * _turns(rng, (count, 1))


def _tones(rng, colour, count=1, *, opacity=255, spread=10):
    """Returns `count` RGBA tuples near `colour`, whose brightness deviates by `spread`."""
    rgb = np.array([*bytes.fromhex(colour)])
    rgb = rgb + rng.normal(0, spread, (count, 1)) + rng.normal(0, spread / 3, (count, 3))
    return [(*tone, opacity) for tone in rgb.clip(0, 255).astype(int).tolist()]


class _Scene:
    """Colour and height of a scene; its origin is the dish's centre, its unit the dish's radius."""

    def __init__(self, rng, size):
        self.rng = rng
        self.colour = Image.new("RGB", size, _tones(rng, rng.choice(_TABLES), spread=16)[0][:3])
        self.height = Image.new("L", size, 20)
        self.centre = np.array(size) * rng.uniform(0.36, 0.64, 2)
        self.scale = min(size) * rng.uniform(0.44, 0.66) * _turns(rng)
        self.tilt = np.array([1.0, rng.uniform(0.72, 1.0)])

    def _pixels(self, outlines):
        points = np.asarray(outlines * self.scale)
        points = np.stack([points.real, points.imag], -1) * self.tilt + self.centre
        return points.reshape(len(points), -1).tolist()

    def draw(self, outlines, tones, height=None):
        """Fills each outline with its tone; without a height it only changes colour."""
        paint, raise_to = ImageDraw.Draw(self.colour, "RGBA"), ImageDraw.Draw(self.height)
        for polygon, tone in zip(self._pixels(outlines), tones, strict=True):
            paint.polygon(polygon, tone)
            if height is not None:
                raise_to.polygon(polygon, height)

    def dab(self, places, radius, colour, *, opacity=255, spread=10, height=None, **shape):
        """Draws a blob at each of `places`, no two alike."""
        tones = _tones(self.rng, colour, len(places), opacity=opacity, spread=spread)
        self.draw(_outlines(self.rng, places, radius, **shape), tones, height)

    def bars(self, direction, pitch, width, tone, height=None):
        """Draws parallel bars across the whole scene."""
        bar = np.array([-4 - 0.5j * width, 4 - 0.5j * width, 4 + 0.5j * width, -4 + 0.5j * width])
        offsets = np.arange(-3 - self.rng.uniform(0, pitch), 3, pitch)[:, None]
        self.draw((bar + 1j * offsets) * direction, [tone] * len(offsets), height)

    def serve(self, morsel, places, height):
        """Draws a `morsel` at each of `places`; the later ones lie on the earlier."""
        shape = {"stretch": morsel.stretch, "squareness": morsel.squareness}
        radius = (0.8 * morsel.radius, 1.2 * morsel.radius)
        rims = _outlines(self.rng, places, radius, **shape)
        cores = (rims - places[:, None]) * morsel.core_ratio + places[:, None]
        outlines = np.stack([rims, cores], axis=1).reshape(-1, rims.shape[1])
        tones = [None] * len(outlines)
        tones[::2] = _tones(self.rng, morsel.rim, len(places))
        tones[1::2] = _tones(self.rng, morsel.core, len(places))
        self.draw(outlines, tones, height)

    def melt(self, radius):
        """Blurs the colours over a distance of `radius`."""
        blur = ImageFilter.BoxBlur(float(radius * abs(self.scale)))
        self.colour = self.colour.filter(blur)

    def layer(self, zoom=1.0, centre=0j):
        """Returns a copy to draw on, enlarged around `centre`, which moves to the dish's centre."""
        layer = copy.copy(self)
        layer.colour, layer.height = self.colour.copy(), self.height.copy()
        layer.scale = self.scale * zoom
        (shift,) = self._pixels(np.array([[zoom * centre]]))
        layer.centre = 2 * self.centre - shift
        return layer

    def keep(self, layer, outline):
        """Copies what `layer` shows inside `outline`."""
        mask = Image.new("L", self.colour.size)
        (polygon,) = layer._pixels(outline[None])
        ImageDraw.Draw(mask).polygon(polygon, 255)
        self.colour.paste(layer.colour, mask=mask)
        self.height.paste(layer.height, mask=mask)


def _lay_table(scene):
    rng = scene.rng
    pattern = rng.choice(["plain", "planks", "checks"])
    if pattern == "planks":
        scene.bars(_turns(rng), rng.uniform(0.3, 0.6), 0.02, (20, 12, 8, 170))
    elif pattern == "checks":
        pitch, (tone,) = rng.uniform(0.2, 0.5), _tones(rng, rng.choice(_CLOTHS), opacity=70)
        warp = _turns(rng)
        scene.bars(warp, pitch, pitch / 2, tone)
        scene.bars(1j * warp, pitch, pitch / 2, tone)
    if rng.random() < 0.85:
        shape = {"wobble": 0.0, "squareness": rng.choice([2.0, 2.0, 5.0]), "points": 72}
        dish, tones = _outlines(rng, [0], (1.1, 1.2), **shape), _tones(rng, rng.choice(_DISHES))
        scene.draw(dish, tones, 60)
        scene.draw(dish * rng.uniform(0.72, 0.95), tones, 48)


def _serve_pizza(scene):
    rng = scene.rng
    edge = _outlines(rng, [0], (0.98, 0.98), wobble=0.012, points=96)
    left = rng.choice([96, 96, 84, 72, 48, 14])  # Of the edge's 96 points; 14 make a slice.
    pizza = scene.layer(1.7, 0.6 * edge[0, left // 2]) if left == 14 else scene.layer()
    pizza.draw(edge, _tones(rng, rng.choice(_CRUSTS)), 110)
    char = rng.choice(edge[0], 24) * rng.uniform(0.9, 1, 24)
    pizza.dab(char, (0.03, 0.1), "6e3e1c", opacity=90, spread=30)
    pizza.draw(edge * rng.uniform(0.82, 0.9), _tones(rng, rng.choice(_SAUCES)), 80)
    cheese = _scattered(rng, rng.integers(35, 80), 0.76)
    pizza.dab(cheese, (0.06, 0.18), rng.choice(_CHEESES), opacity=225, height=92, wobble=0.1)
    pizza.dab(_scattered(rng, 20, 0.7), (0.02, 0.07), "a85c24", opacity=80, spread=20)
    pizza.melt(0.006)
    pizza.dab(_scattered(rng, 60, 0.8), (0.01, 0.022), "3a4a1c", stretch=1.3, points=6)
    toppings = (_PEPPERONI, _TOMATO, _OLIVE, _MUSHROOM, _LEAF)
    for kind in rng.permutation(len(toppings))[: rng.integers(1, 4)]:
        pizza.serve(toppings[kind], _scattered(rng, rng.integers(8, 18), 0.72), 104)
    if rng.random() < 0.5:
        cut = np.array([-1 - 0.008j, 1 - 0.008j, 1 + 0.008j, -1 + 0.008j])
        spokes = edge[0, 0] * np.exp(0.25j * np.pi * np.arange(4))[:, None]
        pizza.draw(cut * spokes, [(70, 36, 18, 150)] * 4, 70)
    scene.keep(pizza, edge[0] if left == 96 else np.append(edge[0, : left + 1], 0))


def _serve_steak(scene):
    rng = scene.rng
    side = _turns(rng)
    if rng.random() < 0.5:
        morsel = (_TOMATO, _MUSHROOM, _LEAF, _FRY)[rng.integers(4)]
        scene.serve(morsel, 0.62 * side + _scattered(rng, rng.integers(6, 18), 0.38), 80)
    steak = scene.layer(rng.uniform(0.95, 1.2), 0.2 * side)
    stretch = rng.uniform(1.05, 1.3)
    edge = _outlines(rng, [0], (0.62, 0.76), wobble=0.07, stretch=stretch, points=72)
    meat, fat = rng.choice(_MEATS), rng.choice(_FATS)
    steak.draw(edge, _tones(rng, fat), 130)
    steak.draw(edge * rng.uniform(0.88, 0.97) + 0.04 * _turns(rng), _tones(rng, meat), 140)
    steak.dab(_scattered(rng, 50, 0.8), (0.05, 0.2), meat, opacity=90, spread=26, wobble=0.1)
    veins = _scattered(rng, rng.integers(4, 26), 0.7)
    steak.dab(veins, (0.03, 0.07), fat, opacity=150, wobble=0.2, stretch=2.4)
    for _ in range(rng.integers(0, 3)):
        pitch, width = rng.uniform(0.16, 0.26), rng.uniform(0.04, 0.07)
        steak.bars(_turns(rng), pitch, width, (38, 20, 12, 190), 126)
    steak.melt(0.008)
    steak.dab(_scattered(rng, 12, 0.8), (0.01, 0.014), "1e1814", points=6)
    steak.dab(_scattered(rng, 8, 0.8), (0.01, 0.014), "f0eadc", points=6)
    scene.keep(steak, edge[0])
    if rng.random() < 0.5:
        garnish = (_BUTTER, _LEAF)[rng.integers(2)]
        scene.serve(garnish, _scattered(rng, rng.integers(1, 4), 0.3), 165)


def _photograph(scene):
    rng, size = scene.rng, scene.colour.size
    colour = scene.colour.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 1.1)))
    relief = scene.height.filter(ImageFilter.BoxBlur(1))
    height = np.asarray(relief, np.float32)
    grains = Image.fromarray(0.6 * rng.standard_normal((72, 72), np.float32))
    grain = np.asarray(grains.resize(size, Image.Resampling.BICUBIC))

    light = _turns(rng)  # The direction of the light.
    reach = 0.025 * min(size)
    shift = (1, 0, -reach * light.real, 0, 1, -reach * light.imag)
    shifted = relief.transform(size, Image.Transform.AFFINE, shift)
    shadow = np.asarray(shifted.filter(ImageFilter.BoxBlur(reach)), np.float32) - height
    down, across = np.gradient(height + 5 * grain * (height > 64))
    slope = across * np.float32(light.real) + down * np.float32(light.imag)
    shade = 1 + 0.06 * grain + 0.035 * slope.clip(-12, 12) - 0.012 * shadow.clip(0, 50)
    x, y = np.ogrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    falloff = rng.uniform(0, 0.25) * (x * light.real + y * light.imag).T
    shade *= 1 - falloff.astype(np.float32)

    tint = rng.uniform(105, 135) * np.array([1.15, 1.0, 0.85]) * rng.uniform(0.94, 1.06, 3)
    gains = tint / ImageStat.Stat(colour).mean
    gains = gains.mean() * np.clip(gains / gains.mean(), 0.8, 1.25)

    noise = rng.uniform(1, 7) * rng.standard_normal(shade.shape, np.float32)
    # Plane by plane, because NumPy is slow where the innermost axis has but three elements.
    planes = [
        (plane * shade * gain + noise).clip(0, 255).astype(np.uint8)
        for plane, gain in zip(colour.split(), gains.tolist(), strict=True)
    ]
    jpeg = io.BytesIO()
    photo = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    photo.save(jpeg, "JPEG", quality=int(rng.integers(60, 95)))
    return jpeg.getvalue()


def pictures(split: str) -> Iterator[tuple[str, str, bytes]]:
    """Renders a split, class after class.

    An image depends only on its split, class and number, not on images rendered before it. Its
    bytes are reproducible with the same NumPy and Pillow on the same platform.

    Args:
      split: A key of `PICTURES`.

    Yields:
      File name like "train/pizza/0007.jpg", class, and JPEG file of 180 to 448 pixels on the longer
      side.
    """
    for label, serve in zip(CLASSES, (_serve_pizza, _serve_steak), strict=True):
        for number in range(PICTURES[split]):
            rng = np.random.default_rng([list(PICTURES).index(split), CLASSES.index(label), number])
            longer = int(rng.integers(180, 449))
            sides = longer, round(longer * rng.uniform(0.66, 1.0))
            width, height = rng.permutation(sides).tolist()
            scene = _Scene(rng, (width, height))
            _lay_table(scene)
            serve(scene)
            yield f"{split}/{label}/{number:04}.jpg", label, _photograph(scene)
