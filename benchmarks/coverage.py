"""Coverage of the 95 % intervals by simulation: how often do they contain the true value?

Every repeat draws new patients, files and embeddings from one generator, computes a metric with its interval, and
checks whether the interval contains the metric's mean over many such draws (of the same size, since R@K depends on the
size of the gallery). Patients have one to `files` files, which resemble each other.

    .venv/bin/python benchmarks/coverage.py [--repeats 2000] [--resamples 1000] [--truth 4000] [--only R@10]
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m3bind.evaluate.classification import classification
from m3bind.evaluate.compare import paired
from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.pivot import cell_of
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.retrieval import concept_retrieval_rows, patient_retrieval_rows
from m3bind.evaluate.zero_shot import unit

Array = NDArray[np.float64]
DIM, TRUTH = 16, 4000  # dimensions of the embeddings; draws that give the true value


@dataclass
class Cohort:
    """Files of several modalities: embeddings, patients and classes."""

    vectors: dict[str, Array] = field(default_factory=dict)
    patients: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    scores: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """What cohorts are drawn from; `shared`: patients have files of all modalities."""

    patients: int = 100
    files: int = 3
    classes: int = 2
    modalities: int = 2
    shared: bool = True
    rare: float = 0.5  # share of the last class
    signal: float = 0.8  # of the class
    person: float = 1.0  # of the patient
    noise: float = 0.9  # of the file
    hubs: float = 0.4  # of the patient in one modality, shared by no other

    def draw(self, seed: int, method: int = 0, training: int = 0) -> Cohort:
        """A cohort; `method` and `training` change the embeddings, not the patients or files."""
        rng, centres = np.random.default_rng((seed, 0)), np.random.default_rng(0).normal(size=(self.classes, DIM))
        own, extra = np.random.default_rng((seed, 1, method)), np.random.default_rng((seed, 2, method, training))
        shift = np.random.default_rng((3, method, training)).normal(size=DIM) * 0.15 * bool(training)
        cohort = Cohort()
        rest = (1 - self.rare) / max(1, self.classes - 1)
        odds = [rest] * (self.classes - 1) + [self.rare]
        people = rng.choice(self.classes, self.patients, p=odds), rng.normal(size=(self.patients, DIM))
        for i in range(self.modalities):
            if i and not self.shared:
                people = rng.choice(self.classes, self.patients, p=odds), rng.normal(size=(self.patients, DIM))
            who = np.repeat(np.arange(self.patients), rng.integers(1, self.files + 1, self.patients))
            classes, vectors = people[0][who], self.person * people[1][who]
            vectors = vectors + self.hubs * rng.normal(size=(self.patients, DIM))[who]
            vectors = vectors + (self.signal + 0.2 * method) * centres[classes]
            vectors = vectors + self.noise * rng.normal(size=(len(who), DIM)) + 0.5 * own.normal(size=(len(who), DIM))
            vectors = vectors + shift + 0.3 * bool(training) * extra.normal(size=vectors.shape)
            name = f"m{i}"
            cohort.vectors[name], cohort.classes[name] = unit(vectors), classes
            cohort.scores[name] = cohort.vectors[name] @ unit(centres).T
            cohort.patients[name] = [f"{seed} {'' if self.shared else i} {p}" for p in who]
        return cohort


def zero_shot(cohort: Cohort, metric: str, resamples: int, seed: int = 0) -> Row:
    """A classification metric of the first modality."""
    draw = Resampling(cohort.patients["m0"], resamples)
    found = classification(cohort.classes["m0"], cohort.scores["m0"], draw, [metric])[metric]
    return Context(seed=seed).row("zero_shot", metric, found)


def concept(cohort: Cohort, metric: str, resamples: int, seed: int = 0, modality: str = "mean") -> Row:
    """Search by class, the mean over ordered pairs or one pair."""
    context = Context(seed=seed)
    rows = concept_retrieval_rows(cohort.vectors, cohort.classes, context, cohort.patients, resamples=resamples)
    return next(row for row in rows if (row.metric, row.modality) == (metric, modality))


def instance(cohort: Cohort, metric: str, resamples: int, seed: int = 0, modality: str = "mean") -> Row:
    """Search by patient, the mean over ordered pairs or one pair."""
    ks = [int(metric[2:])] if metric.startswith("R@") else []
    context = Context(seed=seed)
    rows = patient_retrieval_rows(cohort.vectors, cohort.patients, context, ks=ks, resamples=resamples)
    return next(row for row in rows if (row.metric, row.modality) == (metric, modality))


ONE, APART, THREE = World(), World(shared=False), World(modalities=3, patients=60)
CASES: Mapping[str, tuple[Callable[..., Row], str, World]] = {
    "zero-shot AUC": (zero_shot, "auc", World(hubs=0.8, noise=1.5)),
    "zero-shot AUC, a fifth positive": (zero_shot, "auc", World(rare=0.2, patients=60, noise=1.5)),
    "zero-shot balanced accuracy, 4 classes": (zero_shot, "balanced_accuracy", World(classes=4, rare=0.2)),
    "zero-shot AUC, 30 patients": (zero_shot, "auc", World(patients=30, files=1, noise=1.5)),
    "concept AUC, other patients": (partial(concept, modality="m0->m1"), "auc", APART),
    "concept AUC, same patients": (partial(concept, modality="m0->m1"), "auc", ONE),
    "concept AUC, 30 patients": (partial(concept, modality="m0->m1"), "auc", World(patients=30, shared=False)),
    "concept P@5, other patients": (partial(concept, modality="m0->m1"), "precision@5", APART),
    "concept AUC, mean of 6 pairs": (concept, "auc", THREE),
    "R@1": (partial(instance, modality="m0->m1"), "R@1", ONE),
    "R@10": (partial(instance, modality="m0->m1"), "R@10", ONE),
    "MRR": (partial(instance, modality="m0->m1"), "mrr", ONE),
    "R@10, hubs": (partial(instance, modality="m0->m1"), "R@10", World(hubs=1.2)),
    "R@10, 40 patients": (partial(instance, modality="m0->m1"), "R@10", World(patients=40, files=1, person=0.7)),
    "R@10, mean of 6 pairs": (instance, "R@10", THREE),
}
DIFFERENCES = ("zero-shot AUC", "concept AUC, other patients", "R@10", "R@10, mean of 6 pairs")


def value_case(case: str, seed: int, resamples: int) -> tuple[float, float, float]:
    """Value and interval of one draw."""
    function, metric, world = CASES[case]
    row = function(world.draw(seed), metric, resamples)
    return row.value, row.ci_low, row.ci_high


def difference_case(case: str, seed: int, resamples: int) -> tuple[float, float, float]:
    """Difference of two methods on the same patients, and its interval."""
    function, metric, world = CASES[case]
    first, second = (function(world.draw(seed, method), metric, resamples) for method in (0, 1))
    if not resamples:
        return second.value - first.value, np.nan, np.nan
    found = paired([first], [second])
    return found.change, found.low, found.high


def seeds_case(case: str, seed: int, resamples: int, seeds: int = 5) -> tuple[float, float, float]:
    """Mean over training seeds on the same patients, and its interval."""
    function, metric, world = CASES[case]
    rows = [function(world.draw(seed, 0, 1 + seed * seeds + s), metric, resamples, seed=s) for s in range(seeds)]
    cell = cell_of(rows)
    return cell.value, cell.ci_low, cell.ci_high


def coverage(case: Callable[[int, int], tuple[float, float, float]], repeats: int, resamples: int, truth: int) -> Array:
    """True value, and shares of the intervals that contain it, lie above it, lie below it."""
    real = float(np.mean([case(1_000_000 + seed, 0)[0] for seed in range(truth)]))
    drawn = np.array([case(seed, resamples) for seed in range(repeats)])
    above, below = (drawn[:, 1] > real).mean(), (drawn[:, 2] < real).mean()
    return np.array([real, 1 - above - below, above, below, float((drawn[:, 2] - drawn[:, 1]).mean() / 2)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--truth", type=int, default=TRUTH)
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    options = parser.parse_args()
    cases = {name: partial(value_case, name) for name in CASES}
    cases |= {f"difference: {name}": partial(difference_case, name) for name in DIFFERENCES}
    cases |= {f"5 seeds: {name}": partial(seeds_case, name) for name in DIFFERENCES[:3]}
    print(f"{'case':45} {'true':>7} {'covered':>8} {'above':>6} {'below':>6} {'half-width':>10}")
    for name, case in cases.items():
        if options.only in name:
            found = coverage(case, options.repeats, options.resamples, options.truth)
            print(
                f"{name:45} {found[0]:7.3f} {found[1]:8.3f} {found[2]:6.3f} {found[3]:6.3f} {found[4]:10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
