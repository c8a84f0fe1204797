"""The fundus photograph of a state: 224 x 224 RGB with disc, macula, branching vessels and graded lesions.

* `fundus`: the image. `Eye`: places of disc, macula and vessels. `lesion_count`: number of lesions.
Right eyes have the disc on the right of the image, as in photographs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3bind.data.phantom.canvas import SIZE, Canvas, Colour, Pen, grid, layer
from m3bind.data.phantom.grid import F32, smooth_noise
from m3bind.data.phantom.state import PatientState

CENTRE, FIELD = SIZE / 2, 106.0
BLOOD: Colour = (0.45, 0.04, 0.04)
YELLOW: Colour = (0.98, 0.88, 0.42)
CREAM: Colour = (0.97, 0.84, 0.55)
WHITE: Colour = (0.98, 0.95, 0.86)
Path = tuple[F32, float]  # points (n, 2), width


@dataclass(frozen=True)
class Eye:
    """Landmarks in pixels and the vessel tree of one eye."""

    disc: tuple[float, float]
    radius: float
    macula: tuple[float, float]
    arteries: list[Path]
    veins: list[Path]


def _branch(
    start: NDArray[np.float64],
    heading: float,
    bend: float,
    length: float,
    width: float,
    wiggle: float,
    depth: int,
    rng: np.random.Generator,
) -> list[Path]:
    """One vessel and its side branches, thinner at each fork."""
    steps = 26
    turn = (
        heading
        + bend * np.linspace(0, 1, steps)
        + wiggle * np.sin(np.linspace(0, rng.uniform(7, 11), steps) + rng.uniform(0, 6))
    )
    ahead = np.stack([np.cos(turn), np.sin(turn)], 1) * (length / steps)
    points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(ahead, 0)])
    third = steps // 3
    paths: list[Path] = [
        (points[i * third : (i + 1) * third + 2].astype(np.float32), width * (1 - 0.2 * i)) for i in range(3)
    ]
    if depth:
        for place in (7, 13, 19):
            side = float(rng.choice([-1, 1])) * float(rng.uniform(0.45, 0.9))
            paths += _branch(
                points[place],
                float(turn[place]) + side,
                -0.5 * side,
                length * float(rng.uniform(0.4, 0.6)),
                width * 0.6,
                wiggle,
                depth - 1,
                rng,
            )
    return paths


def _eye(state: PatientState, rng: np.random.Generator) -> Eye:
    """Landmarks and vessels; the state changes the width and the tortuosity of the vessels."""
    out = 1.0 if state.side == "right" else -1.0
    disc = (CENTRE + out * (44 + float(rng.normal(0, 3))), CENTRE + float(rng.normal(0, 4)))
    macula = (disc[0] - out * 62, disc[1] + 6)
    artery, vein, wiggle = 2.0, 2.8, 0.10
    grade = state.grade
    if state.has("retina", "hypertensive retinopathy"):
        artery *= 0.85 - 0.35 * grade
    if state.has("retina", "venous engorgement"):
        vein, wiggle = vein * (1.35 + 0.75 * grade), 0.16
    if state.has("retina", "retinal vein occlusion"):
        vein, wiggle = vein * (1.3 + 0.4 * grade), 0.30 + 0.2 * grade
    if state.has("retina", "pigmentary retinopathy"):
        artery, vein = artery * 0.6, vein * (0.7 - 0.2 * grade)
    arteries: list[Path] = []
    veins: list[Path] = []
    for up in (-1.0, 1.0):
        for heading, bend, length in ((1.15, 1.0, 125.0), (0.35, -0.5, 75.0)):
            for tree, width, shift in ((arteries, artery, 0.0), (veins, vein, 0.22)):
                towards = np.pi - heading - shift if length > 100 else heading - shift + 0.2
                turn = bend + float(rng.normal(0, 0.08))
                angle = towards if out > 0 else np.pi - towards
                curve = turn if out > 0 else -turn
                start = np.array(disc) + np.array([0.0, 4 * up])
                tree += _branch(start, up * angle, up * curve, length, width, wiggle, 2, rng)
    return Eye(disc, 17.0 + float(rng.normal(0, 0.8)), macula, arteries, veins)


def _draw(paths: list[Path], widen: float = 0.0) -> "NDArray[np.float32]":
    def strokes(pen: Pen) -> None:
        for points, width in paths:
            pen.line(points, max(width + widen, 0.5))

    return layer(strokes, 0.35)


def _background(eye: Eye, rng: np.random.Generator, pale: float) -> Canvas:
    """Orange-red retina, darker macula, faint choroidal texture."""
    canvas = Canvas((0.80 + float(rng.normal(0, 0.025)), 0.37 + float(rng.normal(0, 0.025)) + pale, 0.16 + pale))
    x, y = grid()
    texture = smooth_noise(rng, (SIZE, SIZE), 40) * 0.018 + smooth_noise(rng, (SIZE, SIZE), 8) * 0.02
    canvas.pixels *= (1 + texture)[..., None]
    light = 1.08 - 0.36 * (((x - CENTRE) ** 2 + (y - CENTRE) ** 2) / FIELD**2)
    canvas.pixels *= light[..., None]
    near = np.exp(-((x - eye.macula[0]) ** 2 + (y - eye.macula[1]) ** 2) / (2 * 15**2))
    canvas.blend(near.astype(np.float32), (0.45, 0.14, 0.06), 0.6)
    return canvas


def _disc(canvas: Canvas, eye: Eye, state: PatientState, rng: np.random.Generator) -> None:
    """The optic disc and its cup; the cup-to-disc ratio grows with glaucoma."""
    x, y = eye.disc
    colour: Colour = (0.98, 0.80, 0.48)
    if state.has("retina", "pigmentary retinopathy"):
        colour = (0.93, 0.88, 0.66)
    if state.has("retina", "peripapillary atrophy"):
        canvas.paint(lambda pen: pen.oval(x, y, eye.radius * 1.35, eye.radius * 1.3, 0), (0.93, 0.66, 0.42), 0.55, 1.0)
    swollen = state.has("retina", "retinal vein occlusion")
    canvas.paint(
        lambda pen: pen.oval(x, y, eye.radius * 0.95, eye.radius * 1.05, 0), colour, 0.92, 3.0 if swollen else 0.8
    )
    cup = float(rng.uniform(0.28, 0.36))
    if state.has("retina", "glaucomatous cupping"):
        cup = 0.52 + 0.42 * state.grade
    canvas.paint(lambda pen: pen.oval(x, y, eye.radius * cup, eye.radius * cup * 1.08, 0), (1.0, 0.97, 0.84), 0.95, 0.8)


def _scatter(
    rng: np.random.Generator,
    count: int,
    near: tuple[float, float],
    low: float,
    high: float,
    avoid: tuple[float, float] | None = None,
) -> NDArray[np.float64]:
    """`count` places between `low` and `high` pixels from `near`, inside the field, off the disc `avoid`."""
    places: list[tuple[float, float]] = []
    while len(places) < count:
        angle, far = float(rng.uniform(0, 2 * np.pi)), float(np.sqrt(rng.uniform(low**2, high**2)))
        x, y = near[0] + far * np.cos(angle), near[1] + far * np.sin(angle)
        clear = avoid is None or np.hypot(x - avoid[0], y - avoid[1]) > 24
        if clear and np.hypot(x - CENTRE, y - CENTRE) < FIELD - 10:
            places.append((float(x), float(y)))
    return np.array(places).reshape(-1, 2)


def lesion_count(state: PatientState, finding: str) -> int:
    """Number of single lesions of `finding` in the image; increases with the grade, 0 if the state lacks it."""
    low, high = {
        "flame haemorrhages": (2, 16), "cotton wool spots": (3, 10), "Roth spots": (3, 13),
        "choroidal tubercles": (3, 11),
        "diabetic retinopathy": (14, 95), "hard exudates": (6, 60), "retinal vein occlusion": (35, 130),
        "pigmentary retinopathy": (25, 130), "drusen": (9, 9),
    }[finding]  # fmt: skip
    return round(low + (high - low) * state.grade) if state.has("retina", finding) else 0


def _flames(
    canvas: Canvas, places: NDArray[np.float64], disc: tuple[float, float], long: float, rng: np.random.Generator
) -> None:
    """Flame haemorrhages: streaks along the nerve fibres, radial from the disc."""

    def draw(pen: Pen) -> None:
        for x, y in places:
            turn = float(np.arctan2(y - disc[1], x - disc[0])) + float(rng.normal(0, 0.25))
            pen.oval(x, y, long * float(rng.uniform(0.6, 1.2)), float(rng.uniform(1.3, 2.3)), turn, 0.95)

    canvas.paint(draw, BLOOD, 0.9, 0.5)


def _dots(
    canvas: Canvas,
    places: NDArray[np.float64],
    radius: tuple[float, float],
    colour: Colour,
    rng: np.random.Generator,
    strength: float = 0.9,
    blur: float = 0.4,
) -> None:
    """Round spots of random size."""
    sizes = rng.uniform(*radius, len(places))

    def draw(pen: Pen) -> None:
        for (x, y), size in zip(places, sizes):
            pen.disc(x, y, float(size))

    canvas.paint(draw, colour, strength, blur)


def _vascular_lesions(canvas: Canvas, eye: Eye, state: PatientState, rng: np.random.Generator) -> None:
    """Haemorrhages, exudates, cotton wool and new vessels."""
    if count := lesion_count(state, "flame haemorrhages"):
        _flames(canvas, _scatter(rng, count, eye.disc, 24, 75), eye.disc, 9.0, rng)
    if count := lesion_count(state, "retinal vein occlusion"):
        _flames(canvas, _scatter(rng, count, eye.disc, 18, 160), eye.disc, 8.0, rng)
    if count := lesion_count(state, "cotton wool spots"):
        places = _scatter(rng, count, eye.disc, 26, 80, eye.disc)
        _dots(canvas, places, (4.5, 7.5), WHITE, rng, 1.0, 2.0)
    if count := lesion_count(state, "Roth spots"):
        places = _scatter(rng, count, (CENTRE, CENTRE), 10, 92, eye.disc)
        _dots(canvas, places, (6.0, 8.5), BLOOD, rng, 0.95, 0.7)
        _dots(canvas, places, (2.4, 3.2), WHITE, rng, 1.0, 0.5)
    if count := lesion_count(state, "diabetic retinopathy"):
        places = _scatter(rng, count, (CENTRE, CENTRE), 0, 96, eye.disc)
        _dots(canvas, places[: count // 2], (0.9, 1.6), BLOOD, rng)
        _dots(canvas, places[count // 2 :], (1.8, 3.4), BLOOD, rng)
        places = _scatter(rng, lesion_count(state, "hard exudates"), eye.macula, 12, 34)
        _dots(canvas, places, (1.0, 2.2), YELLOW, rng, 1.0, 0.3)
    if state.has("retina", "neovascularisation"):
        for _ in range(16):
            start = np.array(eye.disc) + rng.normal(0, 5, 2)
            fine = _branch(start, float(rng.uniform(0, 6.3)), float(rng.normal(0, 2)), 30, 0.9, 0.8, 1, rng)
            canvas.blend(_draw(fine), (0.62, 0.05, 0.05), 0.8)


def _deep_lesions(canvas: Canvas, eye: Eye, state: PatientState, rng: np.random.Generator) -> None:
    """Lesions of the choroid and pigment: below the vessels."""
    grade = state.grade
    if count := lesion_count(state, "choroidal tubercles"):
        _dots(canvas, _scatter(rng, count, (CENTRE, CENTRE), 15, 90, eye.disc), (7.0, 11.0), YELLOW, rng, 0.95, 2.2)
    if count := lesion_count(state, "drusen"):
        _dots(canvas, _scatter(rng, count, eye.macula, 6, 28), (0.8, 1.3), YELLOW, rng, 0.7)
    if state.has("retina", "choroidal metastasis"):
        x, y = _scatter(rng, 1, eye.macula, 22, 46, eye.disc)[0]
        size = 16 + 28 * grade
        canvas.paint(lambda pen: pen.oval(x, y, size * 1.2, size, float(rng.uniform(0, 3))), CREAM, 0.93, 3.5)
        spots = _scatter(rng, round(5 + 14 * grade), (x, y), 0, size * 0.8)
        _dots(canvas, spots, (1.5, 3.0), (0.55, 0.33, 0.15), rng, 0.8, 0.8)
    if state.has("retina", "choroidal naevus"):
        x, y = _scatter(rng, 1, eye.macula, 26, 52, eye.disc)[0]
        size = 13 + 22 * grade
        canvas.paint(
            lambda pen: pen.oval(x, y, size * 1.15, size, float(rng.uniform(0, 3))), (0.27, 0.25, 0.27), 0.85, 2.0
        )
    if state.has("retina", "nerve fibre layer defect"):
        out = np.sign(eye.macula[0] - eye.disc[0])
        for up in (1.0, -1.0) if grade > 1 / 3 else (1.0,):
            wedge = np.array([[0, 0], [(35 + 40 * grade) * out, 66 * up], [20 * out, 92 * up]]) + np.array(eye.disc)
            canvas.paint(lambda pen, w=wedge: pen.shape(w), (0.42, 0.16, 0.08), 0.35 + 0.3 * grade, 3.0)  # type: ignore[misc]


def _spicules(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Bone-spicule pigment in the mid-periphery: small black branching stars."""
    places = _scatter(rng, lesion_count(state, "pigmentary retinopathy"), (CENTRE, CENTRE), 56, 98)

    def draw(pen: Pen) -> None:
        for x, y in places:
            for turn in rng.uniform(0, 2 * np.pi, 3):
                end = (x + 5.5 * np.cos(turn), y + 5.5 * np.sin(turn))
                pen.line(np.array([(x, y), end]), 1.3)

    if len(places):
        canvas.paint(draw, (0.08, 0.05, 0.05), 0.95, 0.3)


def _vessels(canvas: Canvas, eye: Eye, state: PatientState, rng: np.random.Generator) -> None:
    """Veins, arteries above them, and changes of their walls and crossings."""
    veins, arteries = _draw(eye.veins), _draw(eye.arteries)
    if state.has("retina", "periphlebitis"):
        count = int(len(eye.veins) * (0.25 + 0.65 * state.grade))
        segments = [eye.veins[i] for i in rng.permutation(len(eye.veins))[:count]]
        canvas.blend(_draw([path for path in segments if path[1] > 0.9], 5.0 + 3 * state.grade), CREAM, 0.85)
    if state.has("retina", "arteriovenous nicking"):
        veins = veins * (1 - np.clip(2.5 * _draw(eye.arteries, 3.5), 0, 1) * 0.95)
    canvas.blend(veins, (0.42, 0.05, 0.07), 0.85)
    copper = state.has("retina", "hypertensive retinopathy")
    canvas.blend(arteries, (0.92, 0.52, 0.22) if copper else (0.66, 0.10, 0.08), 0.9 if copper else 0.8)


def fundus(state: PatientState, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The fundus photograph of `state`: uint8 RGB (224, 224, 3)."""
    eye = _eye(state, rng)
    canvas = _background(eye, rng, 0.05 if state.has("retina", "pigmentary retinopathy") else 0.0)
    _deep_lesions(canvas, eye, state, rng)
    _disc(canvas, eye, state, rng)
    _vessels(canvas, eye, state, rng)
    _vascular_lesions(canvas, eye, state, rng)
    _spicules(canvas, state, rng)
    x, y = grid()
    field = np.clip(FIELD - np.hypot(x - CENTRE, y - CENTRE), 0, 1)
    canvas.pixels *= field[..., None]
    return canvas.finish(rng, 0.012)
