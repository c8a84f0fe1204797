"""Chest lesions painted into the volume: fluid, consolidation, nodules, masses, emphysema, metal and calcium.

`paint` adds to the volume (HU; axes Z Y X) all findings that CT and X-ray show for a state.
"""

import numpy as np
from numpy.typing import NDArray

from m3bind.data.phantom.grid import F32, Point, X, Y, Z, blobs, ellipsoid, smooth_noise, tube
from m3bind.data.phantom.state import PatientState

Mask = NDArray[np.bool_]
METAL, CALCIUM = 3000.0, 1300.0


def paint(
    volume: F32,
    state: PatientState,
    lungs: tuple[Mask, Mask],
    base: tuple[float, float],
    dome: float,
    rng: np.random.Generator,
) -> None:
    """Paint the chest findings of `state`; `base`, `dome`: diaphragm levels (mm); `lungs`: right and left mask."""
    side = 0 if state.side == "right" else 1
    sign, mask, grade = (-1.0, 1.0)[side], lungs[side], state.grade
    if state.has("ct", "pulmonary oedema"):
        _oedema(volume, lungs, grade)
    if state.has("ct", "pleural effusion"):
        both = state.syndrome == "atrial fibrillation with heart failure"
        for which in (0, 1) if both else (1,):
            _effusion(volume, lungs[which], (-1, 1)[which] * 76, base[which], dome, (10 if both else 30) + 60 * grade)
    if state.has("ct", "consolidation"):
        _consolidation(volume, mask, sign, grade, rng)
    if state.has("ct", "malignant nodule"):
        _spiculated(volume, mask, sign, grade, rng)
    if state.has("ct", "cavitating mass"):
        _cavity(volume, sign, grade, rng)
    if state.has("ct", "hilar lymphadenopathy"):
        _lymph_nodes(volume, lungs, state, rng)
    if state.has("ct", "benign nodule"):
        _popcorn(volume, sign, grade, rng)
    if state.has("ct", "emphysema"):
        _bullae(volume, lungs, grade, rng)
    if state.has("ct", "sternal wires"):
        _bypass(volume, grade, rng)
    if state.has("ct", "pacemaker"):
        _pacemaker(volume)
    if state.has("ct", "calcified granuloma"):
        centre = (-sign * float(rng.uniform(70, 100)), float(rng.uniform(-20, 20)), float(rng.uniform(20, 60)))
        ellipsoid(volume, centre, (4, 4, 4), 500)


def _oedema(volume: F32, lungs: tuple[Mask, Mask], grade: float) -> None:
    for sign, mask in zip((-1, 1), lungs):
        far = (
            ((X - sign * 45) / 48)[None, None, :] ** 2
            + ((Z + 5) / 62)[:, None, None] ** 2
            + (Y / 60)[None, :, None] ** 2
        )
        haze = (140 + 420 * grade) * np.exp(-far)
        inside = mask & (volume < -300)
        volume[inside] = np.minimum(volume[inside] + haze[inside], -60)


def _effusion(volume: F32, mask: Mask, middle: float, base: float, dome: float, height: float) -> None:
    """Fluid below a meniscus `height` mm over the base, higher at the chest wall than in the middle."""
    rim = ((X - middle) / 60)[None, :] ** 2 + ((Y + 4) / 84)[:, None] ** 2
    level = base + 0.55 * dome + height * (0.3 + 0.7 * np.clip(rim, 0, 1.1) ** 1.5)
    volume[mask & (Z[:, None, None] < level[None])] = 12


def _consolidation(volume: F32, mask: Mask, sign: float, grade: float, rng: np.random.Generator) -> None:
    """Airspace opacity of one lobe with a ragged edge and air bronchograms."""
    low = rng.random() < 0.6
    centre = (
        sign * float(rng.uniform(76, 88)),
        float(rng.uniform(-20, 20)),
        float(rng.uniform(-45, -25) if low else rng.uniform(35, 55)),
    )
    reach = 32 + 34 * grade
    far = ((X - centre[0]) / reach)[None, None, :] ** 2 + ((Y - centre[1]) / (reach * 1.3))[None, :, None] ** 2
    far = far + ((Z - centre[2]) / (reach * 0.9))[:, None, None] ** 2
    ragged = far + 0.32 * smooth_noise(rng, volume.shape, 12)
    inside = mask & (ragged < 1)
    volume[inside] = np.maximum(volume[inside], -20 - 260 * np.clip(ragged[inside], 0, 1) ** 2)
    for _ in range(3):
        end = (
            centre[0] + float(rng.normal(0, 20)),
            centre[1] + float(rng.normal(0, 15)),
            centre[2] + float(rng.normal(0, 20)),
        )
        for share in np.linspace(0, 1, 14):
            spot = tuple(a + (b - a) * float(share) for a, b in zip((sign * 42, 8.0, 0.0), end))
            if share > 0.4:
                ellipsoid(volume, (spot[0], spot[1], spot[2]), (2.6, 2.6, 2.6), -800, mask)


def _spiculated(volume: F32, mask: Mask, sign: float, grade: float, rng: np.random.Generator) -> None:
    """A lobulated peripheral nodule with rays into the lung."""
    radius = 12 + 14 * grade
    centre: Point = (sign * float(rng.uniform(92, 102)), float(rng.uniform(-30, 25)), float(rng.uniform(5, 60)))
    ellipsoid(volume, centre, (radius, radius * 0.95, radius), 50, lumps=0.22)
    rays = rng.standard_normal((22, 3))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    for ray in rays:
        end = np.array(centre) + ray * radius * float(rng.uniform(1.5, 2.0))
        tube(volume, [centre, (float(end[0]), float(end[1]), float(end[2]))], 1.3, 0, mask)


def _cavity(volume: F32, sign: float, grade: float, rng: np.random.Generator) -> None:
    """A large mass at the hilum with a thick wall, air inside and a fluid level."""
    radius = 22 + 18 * grade
    centre: Point = (sign * (46 + 0.55 * radius), float(rng.uniform(-5, 15)), float(rng.uniform(14, 34)))
    ellipsoid(volume, centre, (radius, radius, radius * 0.95), 48, lumps=0.12)
    hole = radius * 0.62
    ellipsoid(volume, centre, (hole, hole, hole), -960, lumps=0.15)
    lower = (centre[0], centre[1], centre[2] - 0.62 * hole)
    ellipsoid(volume, lower, (hole * 0.75, hole * 0.75, hole * 0.36), 20)


def _lymph_nodes(volume: F32, lungs: tuple[Mask, Mask], state: PatientState, rng: np.random.Generator) -> None:
    """Potato-like nodes at both hila; with `small nodules` also upper-zone nodules, some calcified."""
    size = 13 + 12 * state.grade
    for sign in (-1.0, 1.0):
        for x, y, z in ((48, 4, 18), (58, 10, -8), (40, 0, 38)):
            centre = (sign * (x + 0.45 * (size - 13)), y + float(rng.normal(0, 3)), z + float(rng.normal(0, 3)))
            ellipsoid(volume, centre, (size, size * 0.9, size * 0.95), 55, lumps=0.1)
    ellipsoid(volume, (-18, 0, 55), (size * 0.8, size * 0.8, size), 55)
    if state.has("ct", "small nodules"):
        for sign, mask in zip((-1, 1), lungs):
            count = int(10 + 26 * state.grade)
            points = np.stack(
                [sign * rng.uniform(50, 115, count), rng.uniform(-45, 45, count), rng.uniform(25, 92, count)], 1
            )
            blobs(volume, points.astype(np.float32), 3.6, 60, mask)
            blobs(volume, points[: count // 5].astype(np.float32), 2.0, 400, mask)


def _popcorn(volume: F32, sign: float, grade: float, rng: np.random.Generator) -> None:
    """A smooth round nodule with coarse calcium in its middle."""
    radius = 12 + 14 * grade
    centre: Point = (sign * float(rng.uniform(72, 88)), float(rng.uniform(-30, 20)), float(rng.uniform(-25, 25)))
    ellipsoid(volume, centre, (radius, radius, radius), 30)
    for _ in range(6):
        shift = rng.normal(0, radius * 0.32, 3)
        spot = (centre[0] + float(shift[0]), centre[1] + float(shift[1]), centre[2] + float(shift[2]))
        ellipsoid(volume, spot, (radius * 0.26,) * 3, CALCIUM)


def _bullae(volume: F32, lungs: tuple[Mask, Mask], grade: float, rng: np.random.Generator) -> None:
    for sign, mask in zip((-1, 1), lungs):
        for _ in range(int(3 + 12 * grade)):
            size = float(rng.uniform(7, 12 + 12 * grade))
            centre = (sign * float(rng.uniform(60, 115)), float(rng.uniform(-50, 50)), float(rng.uniform(20, 105)))
            only = mask & (volume < -700)
            ellipsoid(volume, centre, (size + 2, size + 2, size + 2), -700, only)
            ellipsoid(volume, centre, (size, size, size), -1000, mask)


def _bypass(volume: F32, grade: float, rng: np.random.Generator) -> None:
    """Sternal wires after bypass surgery, calcium in the coronary arteries and the aortic arch."""
    turn = np.linspace(0, 2 * np.pi, 40)
    for height in np.linspace(-18, 88, 6):
        loop = np.stack([12 * np.cos(turn), -96 + 4 * np.sin(turn), height + 3 * np.sin(turn) + 2 * np.cos(turn)], 1)
        blobs(volume, loop.astype(np.float32), 1.2, METAL)
    left = np.stack([np.linspace(10, 62, 40), np.linspace(-72, -66, 40), np.linspace(-2, -62, 40)], 1)
    right = np.stack([np.linspace(-14, -38, 30), np.linspace(-50, -55, 30), np.linspace(-5, -68, 30)], 1)
    share = 0.25 + 0.75 * grade
    for vessel in (left, right):
        part = vessel[: int(len(vessel) * share)]
        part = part + rng.normal(0, 1.5, part.shape)
        blobs(volume, part.astype(np.float32), 1.3 + 2.6 * grade, CALCIUM)
    bend = np.linspace(0.2, np.pi - 0.2, 30)[: int(30 * share)]
    knob = np.stack([26 + 13 * np.sin(bend), np.full(len(bend), 20.0), 58 + 15 * np.cos(bend)], 1)
    blobs(volume, knob.astype(np.float32), 1.3 + 1.8 * grade, CALCIUM)


def _pacemaker(volume: F32) -> None:
    """Generator under the left clavicle, lead through the superior vena cava to the right ventricle."""
    ellipsoid(volume, (92, -96, 82), (24, 6, 19), METAL)
    lead: list[Point] = [(84, -94, 96), (60, -70, 106), (20, -40, 96), (-22, -12, 84)]
    lead += [(-25, -12, 20), (-22, -20, -30), (5, -42, -62), (34, -50, -70)]
    tube(volume, lead, 1.3, METAL)
