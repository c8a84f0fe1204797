"""Painting of small colour images at twice their size: soft layers on an RGB array, shapes drawn with PIL.

* `Canvas`: a float RGB image (H, W, 3 in 0..1, W = H) with blended layers. `Pen`, `layer`: shapes as opacity.
Coordinates are x, y in pixels of the final image.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from m3bind.data.phantom.grid import F32

SIZE = 224
SCALE = 2
Colour = tuple[float, float, float]
F64 = NDArray[np.float64]
Draw = Callable[["Pen"], None]


class Pen:
    """Draws filled shapes of intensity 0..1 in pixels of the final image."""

    def __init__(self) -> None:
        """An empty layer."""
        self.image = Image.new("L", (SIZE * SCALE, SIZE * SCALE), 0)
        self._draw = ImageDraw.Draw(self.image)

    def disc(self, x: float, y: float, radius: float, value: float = 1.0) -> None:
        """A filled circle."""
        self.oval(x, y, radius, radius, 0.0, value)

    def oval(self, x: float, y: float, long: float, short: float, turn: float, value: float = 1.0) -> None:
        """A filled ellipse with half axes `long` and `short`, turned by `turn` radians."""
        if long == short:
            box = [(x - long) * SCALE, (y - long) * SCALE, (x + long) * SCALE, (y + long) * SCALE]
            self._draw.ellipse(box, fill=int(255 * value))
            return
        self.ovals(np.array([[x, y]]), np.array([long]), np.array([short]), np.array([turn]), np.array([value]))

    def ovals(self, places: F64, long: F64, short: F64, turn: F64, value: F64) -> None:
        """Many filled ellipses at `places` (n, 2); half axes, turns and values are (n,)."""
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        a, b = long[:, None] * np.cos(angle), short[:, None] * np.sin(angle)
        cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
        x, y = places[:, :1] + a * cos - b * sin, places[:, 1:] + a * sin + b * cos
        outlines = (np.stack([x, y], -1) * SCALE).reshape(len(places), -1).tolist()
        for outline, fill in zip(outlines, (255 * value).astype(int).tolist()):
            self._draw.polygon(outline, fill=fill)

    def shape(self, points: NDArray[np.floating], value: float = 1.0) -> None:
        """A filled polygon through `points` (n, 2)."""
        self._draw.polygon((points * SCALE).ravel().tolist(), fill=int(255 * value))

    def line(self, points: NDArray[np.floating], width: float, value: float = 1.0) -> None:
        """A polyline of `width` pixels through `points` (n, 2)."""
        flat = (points * SCALE).ravel().tolist()
        self._draw.line(flat, fill=int(255 * value), width=max(1, round(width * SCALE)), joint="curve")


def layer(draw: Draw, blur: float = 0.0) -> F32:
    """The shapes of `draw` as opacity (SIZE, SIZE) in 0..1, antialiased, blurred by `blur` pixels."""
    pen = Pen()
    draw(pen)
    small: F32 = np.asarray(pen.image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / np.float32(255)
    if blur:
        small = gaussian_filter(small, blur)
    return small


class Canvas:
    """An RGB image in 0..1 onto which layers are blended."""

    def __init__(self, colour: Colour) -> None:
        """An image of one colour."""
        self.pixels: F32 = np.empty((SIZE, SIZE, 3), np.float32)
        self.pixels[:] = colour

    def blend(self, opacity: F32, colour: Colour, strength: float = 1.0) -> None:
        """Move towards `colour` by `opacity` (SIZE, SIZE) times `strength`."""
        share = (opacity * np.float32(strength))[..., None]
        self.pixels += share * (np.asarray(colour, np.float32) - self.pixels)

    def paint(self, draw: Draw, colour: Colour, strength: float = 1.0, blur: float = 0.0) -> None:
        """Blend the shapes of `draw`."""
        self.blend(layer(draw, blur), colour, strength)

    def finish(self, rng: np.random.Generator, noise: float) -> NDArray[np.uint8]:
        """The image as uint8 RGB with sensor noise of standard deviation `noise`."""
        noisy = self.pixels + noise * rng.standard_normal(self.pixels.shape).astype(np.float32)
        return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def grid() -> tuple[F32, F32]:
    """x and y of every pixel of an image, (SIZE, SIZE) each."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    return x, y
