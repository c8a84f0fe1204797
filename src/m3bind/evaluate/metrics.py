"""All metrics, each an `Estimate` with n, chance level and bootstrap interval.

* estimate.py: `Estimate`, `Resampling`, and how metrics are resampled and averaged.
* classification.py: accuracy, F1, precision, AUROC, kappa, calibration error; one label or several per sample.
* ranking.py: R@K, MRR, median rank, precision@K.
"""

from m3bind.evaluate.classification import (
    accuracy,
    auc,
    auroc,
    balanced_accuracy,
    classification,
    expected_calibration_error,
    kappa,
    macro_f1,
    macro_precision,
    multilabel,
    weighted_f1,
    weighted_precision,
)
from m3bind.evaluate.estimate import (
    DEFAULT,
    Estimate,
    Floats,
    Groups,
    Resampling,
    average,
    mean_estimate,
    resampled,
)
from m3bind.evaluate.ranking import (
    RankStats,
    median_rank,
    mrr,
    precision_at_k,
    precision_values,
    rank_stats,
    recall_at_k,
)

__all__ = [
    "DEFAULT",
    "Estimate",
    "Floats",
    "Groups",
    "RankStats",
    "Resampling",
    "accuracy",
    "auc",
    "auroc",
    "average",
    "balanced_accuracy",
    "classification",
    "expected_calibration_error",
    "kappa",
    "macro_f1",
    "macro_precision",
    "mean_estimate",
    "median_rank",
    "mrr",
    "multilabel",
    "precision_at_k",
    "precision_values",
    "rank_stats",
    "recall_at_k",
    "resampled",
    "weighted_f1",
    "weighted_precision",
]
