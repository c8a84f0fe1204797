"""Linear probe: a supervised linear classifier on frozen features, with each field's own settings.

* `PRESETS`: the settings of FLAIR, MGCA, CLIP_benchmark (QuiltNet), CT-CLIP's LiPro and MERL, and this package's own.
* `LinearProbe`: `linear_probe` uses the preset of the modality, `linear_probe_NAME` the named one.

Shapes: n samples, f features, c classes or labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from m3bind.errors import M3BindError
from m3bind.evaluate.adapters.base import Adapter, FewShotProblem, Samples, Scorer, quality
from m3bind.evaluate.adapters.descent import Descent, descend, tensors
from m3bind.evaluate.confidence import Floats
from m3bind.evaluate.zero_shot import unit

DECAYS = np.logspace(-6, 2, 97)


@dataclass(frozen=True)
class Logistic:
    """Logistic regression with balanced class weights; the inverse penalty is chosen on valid, or the middle one."""

    strengths: tuple[float, ...]


@dataclass(frozen=True)
class Probe:
    """Inputs and solver."""

    source: Literal["features", "embeddings"]
    scaling: Literal["raw", "unit", "standard"]  # unchanged, unit rows, columns of mean 0 and deviation 1
    solver: Logistic | Descent
    sweep: bool = False  # weight decay chosen on valid among `DECAYS`
    dropout: float = 0.0  # after a ReLU; 0: no dropout and no ReLU
    balance: bool = False  # positives of a label weighted by negatives / positives


PRESETS: Mapping[str, Probe] = {
    "standard": Probe("features", "standard", Logistic((0.001, 0.01, 0.1, 1.0))),
    # FLAIR, transferability/modeling/adapters.py: unprojected, unnormalised features
    "flair": Probe("features", "raw", Logistic((0.316,))),
    # MGCA, mgca_finetuner.py: backbone features, early stop on the validation loss
    "mgca": Probe("features", "raw", Descent(5e-4, 50, 48, weight_decay=1e-6, patience=10)),
    # CLIP_benchmark, metrics/linear_probe.py, with QuiltNet's pathology sets
    "clip_benchmark": Probe("embeddings", "unit", Descent(0.1, 10, 64, schedule="cosine"), sweep=True),
    # CT-CLIP, ct_lipro_train.py and README: for 47,000 volumes; on a few shots its warm-up never ends
    "lipro": Probe(
        "embeddings",
        "unit",
        Descent(1e-5, 10, 8, weight_decay=0.1, schedule="cosine", warmup=10_000, clip=1.0),
        dropout=0.3,
        balance=True,
    ),
    # ours: LiPro with a rate and a length for few volumes (upstream has no k-shot protocol)
    "lipro_shots": Probe(
        "embeddings",
        "unit",
        Descent(1e-2, 10, 8, weight_decay=0.1, schedule="cosine", clip=1.0, min_steps=600),
        dropout=0.3,
        balance=True,
    ),
    # MERL, finetune/main_single.py and its scripts
    "merl": Probe("features", "raw", Descent(1e-3, 100, 16, optimizer="adam", schedule="step", step_at=40)),
}
BY_MODALITY = {"retina": "flair", "xray": "mgca", "pathology": "clip_benchmark", "ct": "lipro_shots", "ecg": "merl"}


class LinearProbe(Adapter):
    """A linear classifier on frozen features."""

    name = "linear_probe"
    names = ("linear_probe", *(f"linear_probe_{preset}" for preset in PRESETS))

    def fit(self, train: Samples, valid: Samples | None, problem: FewShotProblem) -> Scorer:
        """A scorer with the preset of the method's name, or of the modality.

        Raises:
            M3BindError: fewer than two classes in `train`.
        """
        preset = self.method.removeprefix("linear_probe").lstrip("_")
        probe = PRESETS[preset or BY_MODALITY.get(problem.modality, "standard")]
        y, classes = train.labels, len(problem.classes)
        columns = y.T if train.several else y[None]
        if not any(len(np.unique(column[column >= 0])) > 1 for column in columns):
            raise M3BindError(
                f"linear probe of {problem.modality or 'features'}: fewer than two classes to train on; skip it."
            )
        prepare = _scaling(probe, train)
        x = prepare(train)
        checked = None if valid is None or not len(valid) else (prepare(valid), valid.labels)
        if isinstance(probe.solver, Logistic):
            scores = _best_logistic(x, y, classes, probe.solver, checked)
        else:
            scores = _network(x, y, classes, replace(probe, solver=_decayed(probe, x, y, classes, checked, problem)),
                              checked, problem.seed)  # fmt: skip
        return lambda samples: scores(prepare(samples))


Matrix = NDArray[np.float64]
Rows = Callable[[Matrix], Floats]  # features (n, f) -> scores (n, c)
Checked = tuple[Matrix, NDArray[np.int64]] | None


def _scaling(probe: Probe, train: Samples) -> Callable[[Samples], Matrix]:
    """A function from samples to the probe's inputs; columns are standardised by mean and deviation of `train`."""

    def inputs(samples: Samples) -> Matrix:
        return np.asarray(getattr(samples, probe.source), dtype=np.float64)

    if probe.scaling == "unit":
        return lambda samples: unit(inputs(samples))
    if probe.scaling == "standard":
        mean, spread = inputs(train).mean(0), inputs(train).std(0)
        return lambda samples: np.asarray((inputs(samples) - mean) / np.where(spread > 0, spread, 1))
    return inputs


def _best_logistic(x: Matrix, y: NDArray[np.int64], classes: int, solver: Logistic, valid: Checked) -> Rows:
    if valid is None or len(solver.strengths) == 1:
        return _logistic(x, y, classes, solver.strengths[(len(solver.strengths) - 1) // 2])
    fitted = [_logistic(x, y, classes, strength) for strength in solver.strengths]
    return max(fitted, key=lambda scores: quality(valid[1], scores(valid[0])))


def _logistic(x: Matrix, y: NDArray[np.int64], classes: int, strength: float) -> Rows:
    """Class numbers: one model. Labels: one model per label, 0 for a label that is always or never present."""
    if y.ndim == 2:
        parts = [_logistic(x[column >= 0], column[column >= 0], 2, strength) for column in y.T]
        return lambda rows: np.stack([_difference(part(rows)) for part in parts], axis=1)
    known = np.unique(y)
    if len(known) == 1:
        return lambda rows: np.zeros((len(rows), classes))
    model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced", random_state=0).fit(x, y)

    def scores(rows: Matrix) -> Floats:
        values = np.asarray(model.decision_function(rows))
        table = np.full((len(rows), classes), -np.inf)  # a class without samples is never predicted
        table[:, known] = np.stack([-values / 2, values / 2], axis=1) if values.ndim == 1 else values
        return table

    return scores


def _difference(scores: Floats) -> Floats:
    return np.asarray(scores[:, 1] - scores[:, 0])


def _network(x: Matrix, y: NDArray[np.int64], classes: int, probe: Probe, valid: Checked, seed: int) -> Rows:
    """A linear layer with zero initialisation, trained by gradient descent."""
    assert isinstance(probe.solver, Descent)
    layer = nn.utils.skip_init(nn.Linear, x.shape[1], classes)  # type: ignore[no-untyped-call]
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    module = nn.Sequential(nn.ReLU(), nn.Dropout(probe.dropout), layer) if probe.dropout else layer
    positive = None
    if probe.balance and y.ndim == 2:
        present, absent = (y == 1).sum(0), (y == 0).sum(0)
        positive = torch.from_numpy(absent / np.maximum(present, 1)).float().clamp(min=1e-3)
    checked = None if valid is None else tensors(*valid)
    descend(module, tensors(x, y), probe.solver, seed, checked, positive)

    @torch.no_grad()
    def scores(rows: Matrix) -> Floats:
        return module(torch.from_numpy(np.asarray(rows, dtype=np.float32))).double().numpy()  # type: ignore[no-any-return]

    return scores


def _decayed(
    probe: Probe, x: Matrix, y: NDArray[np.int64], classes: int, valid: Checked, problem: FewShotProblem
) -> Descent:
    """The solver with the best weight decay on `valid`: every 16th of 97, then halving steps around the best."""
    assert isinstance(probe.solver, Descent)
    if not probe.sweep or valid is None:
        return probe.solver
    solver = probe.solver

    @cache
    def value(at: int) -> float:
        candidate = replace(probe, solver=replace(solver, weight_decay=float(DECAYS[at])))
        return quality(valid[1], _network(x, y, classes, candidate, None, problem.seed)(valid[0]))

    best = max(range(0, len(DECAYS), 16), key=value)
    for span in (8, 4, 2, 1):
        best = max((max(best - span, 0), best, min(best + span, len(DECAYS) - 1)), key=value)
    return replace(solver, weight_decay=float(DECAYS[best]))
