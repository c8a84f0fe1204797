"""An H&E-like tile of a state: 224 x 224 RGB of lung (or heart muscle) tissue.

* `tile`: the image. One painter per tissue pattern (`PATTERNS`); haematoxylin: violet nuclei, eosin: pink background.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from m3bind.data.phantom.canvas import SIZE, Canvas, Colour, Pen, grid, layer
from m3bind.data.phantom.grid import F32, smooth_noise
from m3bind.data.phantom.state import PatientState

NUCLEUS: Colour = (0.33, 0.19, 0.52)
DARK: Colour = (0.22, 0.12, 0.40)
PINK: Colour = (0.90, 0.62, 0.75)
STROMA: Colour = (0.91, 0.70, 0.80)
EOSIN: Colour = (0.88, 0.42, 0.58)
SLIDE: Colour = (0.96, 0.94, 0.96)
OEDEMA: Colour = (0.95, 0.72, 0.80)
RED: Colour = (0.80, 0.18, 0.24)
BROWN: Colour = (0.50, 0.30, 0.12)
Places = NDArray[np.float64]


def _spread(rng: np.random.Generator, count: int, distance: float) -> Places:
    """Up to `count` random places at least `distance` pixels apart."""
    raw = rng.uniform(0, SIZE, (count * 4, 2))
    tree = cKDTree(raw)
    taken = np.zeros(len(raw), bool)
    blocked = np.zeros(len(raw), bool)
    for i in range(len(raw)):
        if not blocked[i]:
            taken[i] = True
            blocked[tree.query_ball_point(raw[i], distance)] = True
    return raw[taken][:count]


def _nuclei(
    canvas: Canvas,
    places: Places,
    radius: float,
    rng: np.random.Generator,
    colour: Colour = NUCLEUS,
    stretch: float = 1.25,
    turn: NDArray[np.float64] | None = None,
) -> None:
    """Ovals of about `radius` pixels, at random angles unless `turn` (n,) is given."""
    turns = rng.uniform(0, np.pi, len(places)) if turn is None else turn
    sizes = radius * rng.uniform(0.8, 1.25, len(places))
    depth = rng.uniform(0.75, 1.0, len(places))

    def draw(pen: Pen) -> None:
        pen.ovals(places, sizes * stretch, sizes, turns, depth)

    canvas.paint(draw, colour, 0.92, 0.3)


def _air_spaces(rng: np.random.Generator, cells: int, thick: float) -> tuple[F32, NDArray[np.int64]]:
    """Walls of `cells` air spaces: opacity (SIZE, SIZE), and the index of each pixel's space."""
    seeds = _spread(rng, cells, 0.75 * SIZE / np.sqrt(cells))
    step = 2
    y, x = np.mgrid[0:SIZE:step, 0:SIZE:step]
    bend = 6 * np.stack([smooth_noise(rng, x.shape, 9), smooth_noise(rng, x.shape, 9)], -1)
    far, owner = cKDTree(seeds).query(np.stack([x, y], -1) + bend, k=2)
    wall = 1 / (1 + np.exp(((far[..., 1] - far[..., 0]) - thick) / 0.7))
    full = gaussian_filter(np.kron(wall, np.ones((step, step))), 0.8).astype(np.float32)
    return full, np.kron(owner[..., 0], np.ones((step, step), np.int64))


def _on(mask: F32, rng: np.random.Generator, count: int) -> Places:
    """`count` random places where `mask` is high."""
    inside = np.flatnonzero(mask > 0.6)
    if not len(inside):
        return np.zeros((0, 2))
    chosen = rng.choice(inside, count)
    return np.stack([chosen % SIZE, chosen // SIZE], 1) + rng.uniform(0, 1, (count, 2))


def _lung(
    canvas: Canvas, rng: np.random.Generator, cells: int = 26, thick: float = 5.0
) -> tuple[F32, NDArray[np.int64]]:
    """Alveoli: thin pink walls with nuclei around white air spaces."""
    walls, owner = _air_spaces(rng, cells, thick)
    canvas.blend(walls, PINK, 0.95)
    _nuclei(canvas, _on(walls, rng, int(6 + 0.016 * float(walls.sum()))), 2.1, rng)
    return walls, owner


def _fill(
    canvas: Canvas,
    walls: F32,
    owner: NDArray[np.int64],
    share: float,
    colour: Colour,
    rng: np.random.Generator,
    strength: float = 0.95,
) -> F32:
    """Fill `share` of the air spaces; returns the filled area as opacity."""
    spaces = np.unique(owner)
    chosen = rng.permutation(spaces)[: max(1, round(share * len(spaces)))]
    filled: F32 = gaussian_filter(np.isin(owner, chosen).astype(np.float32), 1.0) * (1 - walls)
    canvas.blend(filled, colour, strength)
    return filled


def _ring(
    canvas: Canvas,
    x: float,
    y: float,
    outer: float,
    wall: float,
    colour: Colour,
    lumen: Colour,
    rng: np.random.Generator,
) -> None:
    """A vessel in cross-section: wall with concentric layers, lumen, nuclei."""
    canvas.paint(lambda pen: pen.disc(x, y, outer), colour, 0.97, 0.6)
    for share in (0.33, 0.66):
        ring = outer - wall * share

        def draw(pen: Pen, ring: float = ring) -> None:
            angle = np.linspace(0, 2 * np.pi, 40)
            pen.line(np.stack([x + ring * np.cos(angle), y + ring * np.sin(angle)], 1), 1.0)

        canvas.paint(draw, (0.75, 0.32, 0.55), 0.6)
    canvas.paint(lambda pen: pen.disc(x, y, max(outer - wall, 1.5)), lumen, 0.97, 0.6)
    angle = rng.uniform(0, 2 * np.pi, 10)
    away = outer - wall * rng.uniform(0.2, 0.8, 10)
    places = np.stack([x + away * np.cos(angle), y + away * np.sin(angle)], 1)
    _nuclei(canvas, places, 1.6, rng, stretch=2.0, turn=angle + np.pi / 2)


def _normal(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    _lung(canvas, rng)


def _hypertensive(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Congested walls, arterioles with thick walls, brown macrophages in air spaces."""
    walls, _ = _lung(canvas, rng, thick=7.0)
    _nuclei(canvas, _on(walls, rng, int(60 + 200 * state.grade)), 2.0, rng, RED, 1.0)
    spots = _spread(rng, 2 + round(3 * state.grade), 62)
    for x, y in np.clip(spots, 28, SIZE - 28):
        outer = 20 + 5 * state.grade
        _ring(canvas, x, y, outer, outer * (0.42 + 0.42 * state.grade), (0.85, 0.45, 0.65), SLIDE, rng)
    for _ in range(3):
        groups = _on(1 - walls, rng, 2 + round(4 * state.grade))
        _nuclei(canvas, np.repeat(groups, 4, 0) + rng.normal(0, 5, (4 * len(groups), 2)), 3.8, rng, BROWN, 1.1)


def _oedema(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    walls, owner = _lung(canvas, rng, thick=5.5)
    filled = _fill(canvas, walls, owner, 0.30 + 0.68 * state.grade, OEDEMA, rng)
    if state.has("pathology", "congestion"):
        _nuclei(canvas, _on(walls, rng, round(220 * state.grade)), 2.0, rng, RED, 1.0)
    _nuclei(canvas, _on(filled, rng, 12), 3.2, rng, (0.86, 0.52, 0.66), 1.0)


def _neutrophils(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Air spaces filled with small dark lobed nuclei."""
    walls, owner = _lung(canvas, rng, thick=5.0)
    filled = _fill(canvas, walls, owner, 0.30 + 0.7 * state.grade, (0.93, 0.80, 0.86), rng)
    places = _on(filled, rng, int(0.020 * float(filled.sum()) * (0.6 + 0.8 * state.grade)))
    lobes = np.concatenate([places, places + rng.normal(0, 1.8, places.shape)])
    _nuclei(canvas, lobes, 1.7, rng, DARK, 1.1)


def _round(x: float, y: float, radius: float) -> F32:
    """A soft disc as opacity."""
    return layer(lambda pen: pen.disc(x, y, radius), 1.5)


def _giant_cell(canvas: Canvas, x: float, y: float, rng: np.random.Generator) -> None:
    """A Langhans giant cell: pale body, nuclei in a horseshoe."""
    canvas.paint(lambda pen: pen.disc(x, y, 10), (0.90, 0.62, 0.74), 0.95, 0.8)
    angle = np.linspace(0, 1.5 * np.pi, 11) + float(rng.uniform(0, 6))
    _nuclei(canvas, np.stack([x + 7.5 * np.cos(angle), y + 7.5 * np.sin(angle)], 1), 1.9, rng)


def _caseation(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """A field of structureless pink necrosis with a rim of lymphocytes and giant cells."""
    _lung(canvas, rng, thick=7.0)
    x, y = grid()
    cx, cy = rng.uniform(80, SIZE - 80, 2)
    reach = 34 + 66 * state.grade
    far = np.hypot(x - cx, y - cy) + 9 * smooth_noise(rng, (SIZE, SIZE), 9)
    rim = 1 / (1 + np.exp((far - reach - 26) / 2))
    core = 1 / (1 + np.exp((far - reach) / 2))
    canvas.blend(rim.astype(np.float32), (0.86, 0.62, 0.76))
    _nuclei(canvas, _on((rim - core).astype(np.float32), rng, 420), 2.2, rng, DARK, 1.0)
    grain = np.clip(0.9 + 0.16 * rng.standard_normal((SIZE, SIZE)), 0, 1).astype(np.float32)
    canvas.blend(core.astype(np.float32) * grain, (0.93, 0.52, 0.62))
    for angle in rng.uniform(0, 2 * np.pi, 2 + round(3 * state.grade)):
        _giant_cell(canvas, cx + (reach + 12) * np.cos(angle), cy + (reach + 12) * np.sin(angle), rng)


def _fibres(canvas: Canvas, rng: np.random.Generator, colour: Colour, period: float, contrast: float) -> F32:
    """Wavy parallel bundles over the whole tile; returns the phase field (radians)."""
    x, y = grid()
    turn = float(rng.uniform(0, np.pi))
    along, across = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    wavy = across + 5 * np.sin(along / 24 + rng.uniform(0, 6)) + 5 * smooth_noise(rng, (SIZE, SIZE), 7)
    phase: F32 = (2 * np.pi / period * wavy).astype(np.float32)
    ripple: F32 = (0.5 + 0.5 * np.sin(phase)).astype(np.float32)
    canvas.blend(ripple, colour, contrast)
    return phase


def _hyaline(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Dense wavy collagen with glassy, thick-walled small vessels."""
    canvas.pixels[:] = (0.95, 0.80, 0.86)
    _fibres(canvas, rng, (0.88, 0.55, 0.70), 11, 0.35 + 0.5 * state.grade)
    places = rng.uniform(0, SIZE, (110, 2))
    _nuclei(canvas, places, 1.6, rng, stretch=2.8)
    for x, y in np.clip(_spread(rng, 4 + round(7 * state.grade), 40), 14, SIZE - 14):
        outer = 13 + 5 * state.grade
        _ring(canvas, x, y, outer, outer * (0.45 + 0.35 * state.grade), (0.93, 0.30, 0.55), SLIDE, rng)


def _glands(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Irregular malignant glands in desmoplastic stroma; more and darker with the grade."""
    canvas.pixels[:] = STROMA
    _fibres(canvas, rng, (0.86, 0.60, 0.74), 14, 0.5)
    _nuclei(canvas, rng.uniform(0, SIZE, (90, 2)), 1.6, rng, stretch=2.4)
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    outlines: dict[float, list[Places]] = {1.0: [], 0.5: [], 0.79: []}  # edge, lumen and nuclei of each gland
    for x, y in _spread(rng, 6 + round(15 * state.grade), 38 - 6 * state.grade):
        size = float(rng.uniform(15, 22)) * (1 + 0.22 * np.sin(rng.integers(2, 4) * angle + rng.uniform(0, 6)))
        for share, shapes in outlines.items():
            shapes.append(np.stack([x + share * size * np.cos(angle), y + share * size * np.sin(angle)], 1))
    for share, colour, strength in ((1.0, (0.72, 0.50, 0.72), 0.95), (0.5, SLIDE, 0.97)):

        def draw(pen: Pen, shapes: list[Places] = outlines[share]) -> None:
            for shape in shapes:
                pen.shape(shape)

        canvas.paint(draw, colour, strength, 0.6)
    rings = outlines[0.79]
    _nuclei(canvas, np.concatenate(rings), 2.1 + 0.7 * state.grade, rng, stretch=1.5, turn=np.tile(angle, len(rings)))


def _squamous(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Solid nests of polygonal cells with whorled keratin pearls."""
    canvas.pixels[:] = STROMA
    _nuclei(canvas, rng.uniform(0, SIZE, (130, 2)), 1.6, rng, stretch=2.4)
    x, y = grid()
    nests = np.zeros((SIZE, SIZE), np.float32)
    centres = _spread(rng, 3 + round(5 * state.grade), 64)
    ragged = 7 * smooth_noise(rng, (SIZE, SIZE), 8)
    for cx, cy in centres:
        far = np.hypot(x - cx, y - cy) + ragged
        nests = np.maximum(nests, 1 / (1 + np.exp((far - 30 - 14 * state.grade) / 1.5)))
    canvas.blend(nests.astype(np.float32), (0.74, 0.54, 0.76))
    _nuclei(canvas, _on(nests, rng, int(0.013 * float(nests.sum()))), 3.4, rng)
    size = 11 + 8 * state.grade
    for share in (1.0, 0.76, 0.52, 0.28):
        colour: Colour = (0.96, 0.45, 0.42) if share in (1.0, 0.52) else (1.0, 0.70, 0.62)

        def draw(pen: Pen, radius: float = size * share) -> None:
            for cx, cy in centres:
                pen.disc(cx, cy, radius)

        canvas.paint(draw, colour, 0.97, 0.5)


def _granulomas(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Compact pale epithelioid granulomas without necrosis, surrounded by lymphocytes, in lung."""
    _lung(canvas, rng, thick=6.0)
    for x, y in np.clip(_spread(rng, 2 + round(6 * state.grade), 58), 16, SIZE - 16):
        size = float(rng.uniform(19, 26))
        canvas.blend(_round(x, y, size + 6), (0.72, 0.60, 0.78), 0.97)
        angle = rng.uniform(0, 2 * np.pi, 90)
        away = size + rng.uniform(0, 7, 90)
        _nuclei(canvas, np.stack([x + away * np.cos(angle), y + away * np.sin(angle)], 1), 1.8, rng, DARK, 1.0)
        canvas.blend(_round(x, y, size), (0.91, 0.76, 0.84), 0.97)
        inside = rng.uniform(-1, 1, (26, 2)) * size * 0.68 + (x, y)
        _nuclei(canvas, inside, 2.1, rng, (0.55, 0.40, 0.66), 2.2)
        _giant_cell(canvas, x + float(rng.normal(0, 4)), y + float(rng.normal(0, 4)), rng)


def _emphysema(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Few, wide air spaces; thin walls with gaps."""
    walls, _ = _air_spaces(rng, max(4, round(13 - 9 * state.grade)), 3.2)
    gaps = smooth_noise(rng, (SIZE, SIZE), 11) > 0.9 - 0.8 * state.grade
    walls = walls * (1 - gaussian_filter(gaps.astype(np.float32), 2))
    canvas.blend(walls, PINK, 0.95)
    _nuclei(canvas, _on(walls, rng, int(4 + 0.016 * float(walls.sum()))), 2.0, rng)


def _muscle(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Bundles of heart muscle: some fibres ragged red, vacuoles inside."""
    canvas.pixels[:] = (0.90, 0.50, 0.58)
    phase = _fibres(canvas, rng, (0.97, 0.86, 0.88), 30, 0.25)
    gap = np.exp(-((np.cos(phase / 2) / 0.16) ** 2)).astype(np.float32)
    number = np.floor((phase - np.pi) / (2 * np.pi)).astype(np.int64)
    which = np.unique(number)
    ragged = rng.permutation(which)[: round(len(which) * (0.18 + 0.6 * state.grade))]
    grain = np.clip(0.65 + 0.35 * rng.standard_normal((SIZE, SIZE)), 0, 1).astype(np.float32)
    granules: F32 = np.isin(number, ragged).astype(np.float32) * gaussian_filter(grain, 0.7)
    canvas.blend(granules, (0.66, 0.08, 0.22), 0.9)
    canvas.blend(gap, (0.97, 0.90, 0.93), 0.95)
    inside = (1 - gap) * (np.abs(np.cos(phase / 2)) > 0.5)
    _nuclei(canvas, _on(inside, rng, round(12 + 75 * state.grade)), 3.4, rng, SLIDE, 1.2)
    _nuclei(canvas, _on(inside, rng, 45), 2.6, rng, stretch=2.2)


def _cartilage(canvas: Canvas, state: PatientState, rng: np.random.Generator) -> None:
    """Lobules of bluish cartilage with lacunae, and fat."""
    canvas.pixels[:] = STROMA
    walls, _ = _air_spaces(rng, 60, 2.4)
    canvas.blend(1 - walls, SLIDE, 0.92)
    x, y = grid()
    lobule = np.zeros((SIZE, SIZE), np.float32)
    for cx, cy in _spread(rng, 2 + round(3 * state.grade), 80):
        far = np.hypot(x - cx, y - cy) + 8 * smooth_noise(rng, (SIZE, SIZE), 7)
        lobule = np.maximum(lobule, 1 / (1 + np.exp((far - 36 - 26 * state.grade) / 2)))
    edge = gaussian_filter(lobule, 4)
    canvas.blend(np.clip(edge * 1.4, 0, 1), STROMA)
    canvas.blend(lobule.astype(np.float32), (0.66, 0.70, 0.87))
    cells = _on(lobule, rng, int(0.0032 * float(lobule.sum())))
    _nuclei(canvas, cells, 4.6, rng, (0.93, 0.93, 0.98), 1.15)
    _nuclei(canvas, cells, 2.0, rng)


PATTERNS: dict[str, Callable[[Canvas, PatientState, np.random.Generator], None]] = {
    "normal lung tissue": _normal,
    "thick-walled arterioles": _hypertensive,
    "alveolar oedema": _oedema,
    "alveolar neutrophils": _neutrophils,
    "necrotising granuloma": _caseation,
    "hyaline vessels": _hyaline,
    "adenocarcinoma": _glands,
    "squamous cell carcinoma": _squamous,
    "non-necrotising granulomas": _granulomas,
    "enlarged air spaces": _emphysema,
    "ragged red fibres": _muscle,
    "hamartoma cartilage": _cartilage,
}


def tile(state: PatientState, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The H&E tile of `state`: uint8 RGB (224, 224, 3)."""
    canvas = Canvas(SLIDE)
    for finding, paint in PATTERNS.items():
        if state.has("pathology", finding):
            paint(canvas, state, rng)
    if state.has("pathology", "focal haemorrhage"):
        middle = rng.uniform(50, SIZE - 50, 2)
        _nuclei(canvas, middle + rng.normal(0, 16, (130, 2)), 2.4, rng, RED, 1.0)
    if state.has("pathology", "anthracotic pigment"):
        middle = rng.uniform(40, SIZE - 40, 2)
        _nuclei(canvas, middle + rng.normal(0, 9, (70, 2)), 1.3, rng, (0.06, 0.05, 0.06), 1.0)
    stain = rng.normal(1, 0.025, 3).astype(np.float32)
    canvas.pixels = np.clip(canvas.pixels, 0.02, 1) ** stain
    return canvas.finish(rng, 0.018)
