"""A 12-lead, 10 s ECG of a state, in mV at 100 Hz.

The waves come from neurokit2's ECGSYN simulator (McSharry et al. 2003): its equation is linear in the wave amplitudes,
so each wave (P, Q, R, S, ST, T) is simulated once by itself, on one beat, and beats are sums of waves. A wave has a
heart vector (mV; x patient's left, y down, z front), which the lead directions convert to twelve leads; the simulator's
own 12-lead mode takes 2 s per record and scales each lead to the same height, which would lose voltage and axis.
* `ecg`: the record; `LEADS`, `RATE`.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from m3bind.data.phantom.grid import F32
from m3bind.data.phantom.state import PatientState

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
RATE, SECONDS = 100, 10
BEAT_RATE = 500  # Hz of the simulated single waves
Vector = tuple[float, float, float]

_LIMB = np.array(
    [[1, 0, 0], [0.5, 0.866, 0], [-0.5, 0.866, 0], [-0.75, -0.433, 0], [0.75, -0.433, 0], [0, 0.866, 0]], np.float64
)
_CHEST = np.array(
    [[-0.45, -0.05, 0.95], [0.15, 0.0, 1.25], [0.55, 0.1, 1.1], [0.95, 0.2, 0.75], [1.0, 0.2, 0.25], [0.9, 0.2, -0.1]]
)
DIRECTIONS = np.concatenate([_LIMB, _CHEST])
# Twelve leads from the eight measured ones (I, II, V1-V6): III = II - I, aVR = -(I + II) / 2 etc.
_MEASURED = np.zeros((12, 8))
_MEASURED[:6, :2] = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])
_MEASURED[6:, 2:] = np.eye(6)


@dataclass(frozen=True)
class Wave:
    """One wave of a beat: its time as an angle of a 60/min cycle (360 degrees = 1 s), width (radians), vector (mV)."""

    angle: float
    width: float
    vector: Vector

    def scaled(self, factor: float) -> "Wave":
        """The same wave with another height."""
        x, y, z = self.vector
        return replace(self, vector=(x * factor, y * factor, z * factor))


NORMAL = {
    "P": Wave(-58, 0.16, (0.09, 0.11, 0.02)),
    "Q": Wave(-11, 0.07, (-0.12, -0.06, 0.20)),
    "R": Wave(0, 0.085, (0.95, 0.85, -0.12)),
    "S": Wave(12, 0.08, (-0.22, -0.20, -0.45)),
    "ST": Wave(50, 0.35, (0.0, 0.0, 0.0)),
    "T": Wave(100, 0.40, (0.24, 0.20, 0.12)),
}


@dataclass(frozen=True)
class RhythmPlan:
    """Parameters of a record: waves, rate (per minute), relative spread of RR, and rhythm features."""

    waves: dict[str, Wave]
    rate: float
    spread: float = 0.02
    fibrillation: bool = False
    alternans: float = 0.0
    ectopics: int = 0
    voltage: float = 1.0


@lru_cache(maxsize=256)
def _wave(angle: float, width: float) -> tuple[float, ...]:
    """One wave alone, simulated by ECGSYN at 60/min: 1 s around the R peak at BEAT_RATE, peak height 1."""
    import neurokit2

    signal = neurokit2.ecg_simulate(
        duration=4, sampling_rate=BEAT_RATE, noise=0, heart_rate=60, heart_rate_std=0, method="ecgsyn", random_state=0,
        ti=(-70, -15, angle, 15, 100), ai=(0, 0, 30, 0, 0), bi=(0.25, 0.1, width, 0.1, 0.4),
    )  # fmt: skip
    beat = np.asarray(signal)[int(1.5 * BEAT_RATE) : int(2.5 * BEAT_RATE)]
    beat = beat - np.median(beat)
    beat = beat * np.hanning(len(beat)) ** 0.1 / np.abs(beat).max()
    return tuple(float(value) for value in beat)


def _plan(state: PatientState, rng: np.random.Generator) -> RhythmPlan:
    """The record's plan: normal variation, then the changes of the state."""
    grade, waves = state.grade, {name: wave.scaled(float(rng.uniform(0.85, 1.15))) for name, wave in NORMAL.items()}
    plan = RhythmPlan(waves, float(rng.uniform(62, 78)))
    if state.has("ecg", "left ventricular hypertrophy"):
        plan = _hypertrophy(plan, grade)
    if state.has("ecg", "atrial fibrillation"):
        waves["P"] = waves["P"].scaled(0)
        plan = replace(plan, rate=85 + 55 * grade, spread=0.24, fibrillation=True)
    if state.has("ecg", "sinus tachycardia"):
        waves["T"] = replace(waves["T"], angle=92.0)
        plan = replace(plan, rate=100 + 45 * grade)
    if state.has("ecg", "low voltage"):
        plan = replace(plan, voltage=0.52 - 0.28 * grade, rate=float(rng.uniform(80, 95)))
        plan = replace(plan, alternans=0.35 if state.has("ecg", "electrical alternans") else 0.0)
    if state.has("ecg", "ischaemic ST depression"):
        low = 0.10 + 0.26 * grade
        waves["ST"] = replace(waves["ST"], vector=(-low, -0.8 * low, -0.4 * low))
        waves["T"] = replace(waves["T"], vector=(-0.16 - 0.3 * grade, -0.14 - 0.22 * grade, -0.12 - 0.16 * grade))
    if state.has("ecg", "right heart strain"):
        waves["S"] = Wave(14, 0.10, (-0.55 - 0.55 * grade, 0.1, 0.1))
        waves["Q"] = Wave(-12, 0.08, (0.10, -0.40 - 0.2 * grade, 0.15))
        waves["T"] = replace(waves["T"], vector=(0.34, -0.12 - 0.1 * grade, -0.22 - 0.40 * grade))
        plan = replace(plan, rate=float(rng.uniform(88, 100)))
    if state.has("ecg", "short QT interval"):
        waves["T"] = Wave(58.0 - round(16 * grade), 0.22, (0.42, 0.36, 0.26))
        plan = replace(plan, ectopics=1 + round(3.4 * grade))
    if state.has("ecg", "right bundle branch block"):
        waves["S"] = Wave(22, 0.13, (-0.38 - 0.4 * grade, -0.08, 0.55 + 0.5 * grade))
        waves["T"] = replace(waves["T"], vector=(0.26, 0.2, -0.16))
    if state.has("ecg", "right axis deviation"):
        waves["R"] = replace(waves["R"], vector=(-0.15 - 0.55 * grade, 0.95, 0.05))
        waves["S"] = Wave(12, 0.08, (-0.30 - 0.3 * grade, -0.05, -0.2))
        waves["P"] = Wave(-58, 0.12, (0.02, 0.20 + 0.2 * grade, 0.08))
    if state.has("ecg", "left bundle branch block"):
        waves["Q"] = waves["Q"].scaled(0)
        waves["R"] = Wave(0, 0.14 + 0.01 * round(5 * grade), (0.85, 0.25, -0.75 - 0.3 * grade))
        waves["S"] = Wave(22, 0.13, (0.75, 0.2, -0.5 - 0.2 * grade))
        waves["T"] = replace(waves["T"], angle=112.0, vector=(-0.36, -0.12, 0.5))
    if state.has("ecg", "first-degree AV block"):
        waves["P"] = replace(waves["P"], angle=-72.0 - 4 * round(9 * grade)).scaled(1.2)
        plan = replace(plan, rate=58 - 18 * grade)
    if state.has("ecg", "sinus arrhythmia") and not plan.fibrillation:
        plan = replace(plan, spread=0.06)
    return plan


def _hypertrophy(plan: RhythmPlan, grade: float) -> RhythmPlan:
    """High lateral voltage; from moderate severity on also strain: ST depression and inverted T opposite to R."""
    waves, tall = plan.waves, 1.35 + 1.0 * grade
    x, y, z = waves["R"].vector
    waves["R"] = replace(waves["R"], vector=(x * tall * 1.1, y * tall * 0.6, z - 0.5 * tall))
    waves["S"] = waves["S"].scaled(tall)
    if grade > 1 / 3:
        waves["ST"] = replace(waves["ST"], vector=(-0.25 * grade, -0.1 * grade, 0.12 * grade))
        waves["T"] = replace(waves["T"], vector=(-0.42 * grade, -0.12 * grade, 0.35 * grade))
    return plan


def _beat_times(
    plan: RhythmPlan, state: PatientState, rng: np.random.Generator
) -> tuple[NDArray[np.float64], set[int]]:
    """R peak times (s) from before 0 to after the end, and the indices of premature ventricular beats."""
    mean = 60 / plan.rate
    count = int(SECONDS / mean) + 6
    if plan.fibrillation:
        intervals = mean * np.exp(plan.spread * rng.standard_normal(count) - plan.spread**2 / 2)
        intervals = np.maximum(intervals, 0.34)
    else:
        breath = np.sin(2 * np.pi * (np.arange(count) * mean / 4 + rng.random()))
        intervals = mean * (1 + plan.spread * breath + 0.008 * rng.standard_normal(count))
    ectopic: set[int] = set()
    if plan.ectopics:
        places = np.arange(3, count - 3, 2)
        ectopic = {int(place) for place in rng.permutation(places)[: plan.ectopics]}
        for place in ectopic:
            intervals[place - 1], intervals[place] = 0.58 * mean, 1.42 * mean  # early beat, compensatory pause
    return -2 * mean + rng.random() * mean + np.concatenate([[0], np.cumsum(intervals)]), ectopic


_ECTOPIC = (Wave(0, 0.30, (-0.9, 1.2, 0.9)), Wave(34, 0.24, (-0.6, 0.5, 0.4)), Wave(112, 0.42, (0.6, -0.6, -0.5)))


def _add_beat(signal: NDArray[np.float64], moment: float, waves: list[Wave], cycle: float) -> None:
    """Add one beat (12, T) at `moment` s; outside the QRS, time scales with the square root of the cycle (Bazett)."""
    span = np.arange(max(0, int((moment - 0.7) * RATE)), min(signal.shape[1], int((moment + 0.8) * RATE)))
    if not len(span):
        return
    away = span / RATE - moment
    shrink = np.sqrt(np.clip(cycle, 0.35, 1.1))
    warped = np.where(np.abs(away) < 0.07, away, np.sign(away) * (0.07 + (np.abs(away) - 0.07) / shrink))
    grid = np.arange(BEAT_RATE) / BEAT_RATE - 0.5
    for wave in waves:
        shape = np.interp(warped, grid, _wave(wave.angle, round(wave.width, 3)), left=0, right=0)
        signal[:, span] += (DIRECTIONS @ np.array(wave.vector))[:, None] * shape


def ecg(state: PatientState, rng: np.random.Generator) -> F32:
    """The ECG of `state`: float32 (12, 1000) in mV, leads as LEADS, 100 Hz."""
    plan = _plan(state, rng)
    moments, ectopic = _beat_times(plan, state, rng)
    signal = np.zeros((12, RATE * SECONDS))
    for number, moment in enumerate(moments[:-1]):
        cycle = moments[number + 1] - moment if number not in ectopic else 60 / plan.rate
        if number in ectopic:
            waves = list(_ECTOPIC)
        else:
            swing = 1 + plan.alternans * (1 if number % 2 else -1)
            height = plan.voltage * swing * float(rng.uniform(0.97, 1.03))
            waves = [wave.scaled(height) for wave in plan.waves.values() if any(wave.vector)]
        _add_beat(signal, float(moment), waves, float(cycle if plan.fibrillation else min(cycle, 60 / plan.rate)))
    time = np.arange(signal.shape[1]) / RATE
    if plan.fibrillation:
        signal += _fibrillation(time, rng)
    drift = 0.25 if state.has("ecg", "baseline wander") else 0.04
    phases, sizes = rng.uniform(0, 2 * np.pi, (8, 1)), drift * rng.uniform(0.5, 1.0, (8, 1))
    disturbance = sizes * np.sin(2 * np.pi * 0.28 * time + phases) + 0.014 * rng.standard_normal((8, len(time)))
    signal += _MEASURED @ disturbance
    return signal.astype(np.float32)


def _fibrillation(time: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Fibrillatory waves: two wandering tones of 5-8 Hz, strongest in V1 and II."""
    total = np.zeros(len(time))
    for _ in range(2):
        wander = np.cumsum(rng.normal(0, 0.08, len(time)))
        total += np.sin(2 * np.pi * float(rng.uniform(5, 8)) * time + wander)
    vector = np.array([0.015, 0.035, 0.06])
    return np.asarray((DIRECTIONS @ vector)[:, None] * total)
