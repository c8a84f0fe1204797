"""The chest of a virtual patient: one volume in Hounsfield units that CT and X-ray share.

Axes Z (superior), Y (posterior), X (patient's left); 2.5 mm voxels.
* `chest`: the volume of a state, a pure function of the state.
* `ct`: the CT as a scanner would store it: 32 slices of 96 x 96, int16.
* `xray`: the radiograph projected from the same volume.
Analytic anatomy; simplified and synthetic.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from m3bind.data.phantom import lesions
from m3bind.data.phantom.grid import F32, SHAPE, STEP, Point, X, Y, Z, blobs, ellipsoid, polyline, tube
from m3bind.data.phantom.state import PatientState

AIR, LUNG, FAT, MUSCLE, BLOOD, LIVER, SPONGY, BONE = -1000.0, -850.0, -100.0, 45.0, 40.0, 60.0, 180.0, 650.0
CT_SHAPE = (32, 96, 96)
CT_SPACING = (10.0, 3.75, 3.75)  # mm, Z Y X
XRAY_SIZE = 224


@dataclass(frozen=True)
class Body:
    """Measurements of one body (mm, ratios) for the painters below and the lesions."""

    size: float  # overall scale of the chest wall
    lung_x: float  # middle of a lung beside the mid-line
    lung_rx: float
    lung_ry: float
    lung_top: float
    base: tuple[float, float]  # lowest lung level, right and left
    dome: float  # height of the diaphragm's dome
    heart_ratio: float  # cardiothoracic ratio
    heart_tilt: float
    lung_value: float


def measure(state: PatientState, rng: np.random.Generator) -> Body:
    """The body of a state: normal variation of anatomy, and the changes of the syndrome."""
    grade, size = state.grade, float(rng.uniform(0.94, 1.05))
    ratio, tilt = float(rng.uniform(0.42, 0.46)), float(rng.uniform(28, 38))
    low, dome, deep, value, top = -92.0 + float(rng.uniform(-5, 5)), float(rng.uniform(34, 40)), 84.0, LUNG, 122.0
    if state.syndrome == "hypertensive heart disease":
        ratio = 0.50 + 0.13 * grade
    elif state.syndrome == "atrial fibrillation with heart failure":
        ratio, value = 0.52 + 0.12 * grade, LUNG + 30
    elif state.syndrome == "tuberculous pericardial effusion":
        ratio, tilt = 0.52 + 0.17 * grade, 8.0
    elif state.syndrome == "mitochondrial cardiomyopathy":
        ratio, tilt = 0.52 + 0.12 * grade, 22.0
    elif state.syndrome == "diabetes with coronary disease":
        ratio = 0.46 + 0.03 * grade
    elif state.syndrome == "COPD with glaucoma":
        ratio, tilt = 0.40 - 0.06 * grade, 58.0
        low, dome, deep, value, top = low - 6 - 26 * grade, dome - 12 - 20 * grade, 88.0, LUNG - 30 - 60 * grade, 128.0
    raised = 24.0 if state.has("ct", "raised hemidiaphragm") else 0.0
    base = (low + 8 + raised, low)
    return Body(size, 76.0 * size, 61.0 * size, deep * size, top, base, dome, ratio, tilt, value)


def _lungs(body: Body) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the right and left lung."""
    masks = []
    for sign, base in ((-1, body.base[0]), (1, body.base[1])):
        middle = sign * body.lung_x
        across = ((X - middle) / body.lung_rx) ** 2
        deep = ((Y + 4) / body.lung_ry) ** 2
        above = np.clip((Z + 20) / (body.lung_top + 20), 0, 1)
        room = 1 - above**2.2
        inside = (across[None, None, :] + deep[None, :, None]) < room[:, None, None]
        hill = np.exp(-(((X[None, :] - middle * 0.85) / 48) ** 2) - (((Y[:, None] + 15) / 58) ** 2))
        floor = base + body.dome * hill - 6 * (Y[:, None] / 80).clip(0, 1)
        inside &= Z[:, None, None] > floor[None]
        masks.append(inside)
    return masks[0], masks[1]


def _trunk(body: Body) -> F32:
    """Skin, fat and muscle: an oval trunk that narrows to shoulders and neck."""
    shoulder = 1 / (1 + np.exp((Z - 138) / 7))
    wide = (62 + (162 - 62) * shoulder) * body.size
    deep = (70 + (112 - 70) * shoulder) * body.size

    def inside(shrink: float) -> NDArray[np.bool_]:
        across = np.abs(X[None, :] / (wide[:, None] - shrink)) ** 2.6
        back = np.abs(Y[None, :] / (deep[:, None] - shrink)) ** 2.4
        mask: NDArray[np.bool_] = (across[:, None, :] + back[:, :, None]) < 1
        return mask

    volume = np.full(SHAPE, AIR, np.float32)
    volume[inside(0)] = FAT
    volume[inside(9)] = MUSCLE
    return volume


@lru_cache(maxsize=1)
def _rib_paths() -> tuple[F32, F32]:
    """Points (n, 3) of all ribs of a chest of size 1: bony arcs, and cartilage in front."""
    bone, cartilage = [], []
    turn = np.linspace(0, np.pi * 0.95, 150)
    for rib in range(10):
        top, slope = 112 - 23 * rib, 26 + 3.5 * rib
        narrow = 1 - 0.42 * np.exp(-rib / 1.6)
        for sign in (-1, 1):
            x, y = sign * (16 + 128 * narrow * np.sin(turn) ** 0.85), 90 * np.cos(turn) * (0.75 + 0.25 * narrow) - 2
            points = np.stack([x, y, top - slope * (1 - np.cos(turn))], 1)
            bone.append(points[:115])
            cartilage.append(points[115:])
    return np.concatenate(bone).astype(np.float32), np.concatenate(cartilage).astype(np.float32)


def _skeleton(volume: F32, body: Body) -> None:
    """Ribs, sternum, clavicles, shoulder blades and spine."""
    bone, cartilage = _rib_paths()
    size = np.array([body.size, body.size, 1], np.float32)
    blobs(volume, cartilage * size, 3.0, 110)
    blobs(volume, bone * size, 3.6, BONE * 0.75)
    for sign in (-1.0, 1.0):
        clavicle: list[Point] = [(14 * sign, -80, 100), (60 * sign, -72, 112), (128 * sign, -20, 122)]
        tube(volume, clavicle, 5.0, BONE * 0.7)
        ellipsoid(volume, (118 * sign * body.size, 84 * body.size, 78), (30, 4, 44), BONE * 0.4, tilt=12 * sign)
    ellipsoid(volume, (0, -92 * body.size, 35), (15, 6, 68), SPONGY + 60)
    for level in range(14):
        height = -158 + 23 * level
        ellipsoid(volume, (0, 66, height + 11), (17, 16, 5), 90)
        ellipsoid(volume, (0, 66, height), (19, 17, 11.5), SPONGY)
        ellipsoid(volume, (0, 92, height - 6), (4, 14, 7), SPONGY + 120)
    ellipsoid(volume, (0, 86, 0), (8, 6, 400), 30)  # spinal canal


def _great_vessels(volume: F32, body: Body, state: PatientState) -> None:
    """Aorta, pulmonary arteries, superior vena cava, trachea and main bronchi."""
    unfold = (0.5 + state.grade) if state.has("ct", "unfolded aorta") else 0.0
    knob = 26 + 16 * unfold
    arch: list[Point] = [(-12 - 10 * unfold, -25, -5), (-14 - 10 * unfold, -28, 40), (5, -12, 66 + 4 * unfold)]
    arch += [(knob, 20, 60 + 4 * unfold), (knob + 3, 42, 35), (24 + 8 * unfold, 46, -40), (14, 48, -110), (8, 48, -158)]
    tube(volume, arch, 13 + 4 * unfold, BLOOD)
    tube(volume, [(-24, -10, 0), (-24, -10, 95)], 9, BLOOD)
    for sign in (-1.0, 1.0):
        tube(volume, [(6, -22, 12), (22 * sign, -2, 20), (44 * sign, 6, 8), (50 * sign, 10, -18)], 9, BLOOD)
    tube(volume, [(6, -35, -20), (14, -28, 22), (10, -5, 26)], 13, BLOOD)


def _airway(volume: F32) -> None:
    fork: Point = (-2, 12, 40)
    ends: list[tuple[Point, float]] = [((-2, 12, 158), 8.0), ((-34, 14, 12), 5.5), ((38, 16, 8), 5.0)]
    for end, radius in ends:
        for x, y, z in polyline([fork, end])[::2]:
            ellipsoid(volume, (float(x), float(y), float(z)), (radius, radius, radius), -980)


def _vessels(
    volume: F32, lungs: tuple[NDArray[np.bool_], NDArray[np.bool_]], body: Body, rng: np.random.Generator, thick: float
) -> None:
    """Lung vessels: trunks from each hilum that fork, thinner at each fork."""
    for sign, mask in ((-1.0, lungs[0]), (1.0, lungs[1])):
        count = 9
        start = np.tile([sign * 40, 8.0, 5.0], (count, 1)) + rng.normal(0, 4, (count, 3))
        way = rng.normal(0, 1, (count, 3)) * [0.35, 0.75, 1.0] + [sign * 0.75, 0, -0.1]
        length = 34.0
        for level in range(4):
            way /= np.linalg.norm(way, axis=1, keepdims=True)
            end = start + way * length * rng.uniform(0.7, 1.2, (len(way), 1))
            steps = np.linspace(0, 1, 16)[None, :, None]
            points = (start[:, None] + (end - start)[:, None] * steps).reshape(-1, 3).astype(np.float32)
            blobs(volume, points, (4.2, 2.6, 1.2, 1.2)[level] * thick, (30, -60, -250, -480)[level], mask)
            start = np.repeat(end, 2, 0)
            way = np.repeat(way, 2, 0) + rng.normal(0, 0.55, (2 * len(way), 3))
            length *= 0.72


def _heart(volume: F32, body: Body, state: PatientState) -> None:
    """The heart, scaled to the cardiothoracic ratio (its width over the inner chest width)."""
    chest = 2 * (body.lung_x + body.lung_rx)
    half = body.heart_ratio * chest / 2
    tilt = np.radians(body.heart_tilt)
    slim = 0.86 if state.syndrome == "tuberculous pericardial effusion" else 0.70
    long = half / np.sqrt(np.cos(tilt) ** 2 + (slim * np.sin(tilt)) ** 2)
    middle = (0.20 * half, -28.0, body.base[1] + body.dome * 0.75 + slim * long * 0.72)
    radius = (long, min(0.78 * long, 58.0), slim * long)
    if state.has("ct", "pericardial effusion"):
        ellipsoid(volume, middle, radius, 12, tilt=body.heart_tilt)
        radius = (radius[0] * 0.80, radius[1] * 0.82, radius[2] * 0.80)
    ellipsoid(volume, middle, radius, BLOOD + 5, tilt=body.heart_tilt)


def chest(state: PatientState) -> F32:
    """The chest of `state` in Hounsfield units, float32 (Z, Y, X) = (128, 96, 144), 2.5 mm; same state, same volume."""
    rng = np.random.default_rng([state.anatomy, 1])
    body = measure(state, rng)
    volume = _trunk(body)
    lungs = _lungs(body)
    both = lungs[0] | lungs[1]
    below = (min(body.base) + body.dome + 4 > Z)[:, None, None]
    volume[below & (volume == MUSCLE)] = 20
    ellipsoid(volume, (-62, -5, min(body.base) - 2), (88, 80, 62), LIVER)
    volume[both] = body.lung_value
    _skeleton(volume, body)
    ellipsoid(volume, (78, -10, body.base[1] - 14), (30, 28, 16), -900)  # stomach bubble
    _vessels(volume, lungs, body, rng, 1.35 if state.has("ct", "pulmonary oedema") else 1.0)
    middle = ((X / 21) ** 2)[None, :] + (((Y - 8) / 68) ** 2)[:, None] < 1
    volume[middle[None] & both] = 20
    _great_vessels(volume, body, state)
    _heart(volume, body, state)
    _airway(volume)
    lesions.paint(volume, state, lungs, body.base, body.dome, rng)
    return volume


def ct(state: PatientState, rng: np.random.Generator, volume: F32 | None = None) -> NDArray[np.int16]:
    """The CT of `state`: int16 HU (32, 96, 96), spacing CT_SPACING; averages of the fine volume plus scanner noise."""
    fine = chest(state) if volume is None else volume
    slices = fine.reshape(32, 4, *SHAPE[1:]).mean(1)
    padded = np.full((32, 144, 144), AIR, np.float32)
    padded[:, 24:120] = slices
    halves = padded.reshape(32, 48, 3, 48, 3)
    weight = np.array([[1, 0.5, 0], [0, 0.5, 1]], np.float32) / 1.5  # three voxels onto two
    small = np.einsum("ap,zypxq,bq->zyaxb", weight, halves, weight, optimize=True).reshape(CT_SHAPE)
    noise = gaussian_filter(rng.standard_normal(CT_SHAPE).astype(np.float32), (0, 0.6, 0.6)) * 30
    scan: NDArray[np.int16] = np.clip(np.rint(small + noise), -1024, 3071).astype(np.int16)
    return scan


def line_integrals(volume: F32, depth: float = STEP) -> F32:
    """Attenuation along Y (posterior-anterior beam), (Z, X): sum of mu over the ray, Beer-Lambert's exponent.

    mu = 0.02 / mm for water, linear in HU; above 100 HU calcium absorbs 1.8 times as much per HU. `depth`: voxel mm.
    """
    mu = np.maximum(volume + 1000, 0)
    mu += 0.8 * np.maximum(volume - 100, 0)
    total: F32 = mu.sum(1) * np.float32(0.02 * depth / 1000)
    return total


def xray(state: PatientState, rng: np.random.Generator, volume: F32 | None = None) -> NDArray[np.uint8]:
    """The frontal radiograph of `state`, uint8 (224, 224), bright = dense, patient's right on the image's left.

    I = exp(-integral mu dy) with photon noise and weak scatter; displayed as -log I in a window.
    """
    fine = chest(state) if volume is None else volume
    exponent = line_integrals(fine)[::-1, 8:136]
    image = Image.fromarray(exponent.astype(np.float32)).resize((XRAY_SIZE, XRAY_SIZE), Image.Resampling.BICUBIC)
    photons = np.exp(-np.asarray(image)) + 0.004
    density = -np.log(photons * (1 + 0.018 * rng.standard_normal(photons.shape)).clip(0.5, 1.5))
    density += 0.6 * (density - gaussian_filter(density, 6))  # edge enhancement of digital systems
    low, high = float(rng.uniform(0.9, 1.1)), float(rng.uniform(4.6, 4.9))
    shown = np.clip((density - low) / (high - low), 0, 1) ** 1.15
    radiograph: NDArray[np.uint8] = (shown * 255).astype(np.uint8)
    return radiograph
