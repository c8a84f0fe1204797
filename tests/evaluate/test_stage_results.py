"""Zero-shot and probe rows of a space at one stage, with one class and with several labels per record."""

import numpy as np
import pytest
from scipy.special import expit

from m3bind.config import EvaluateConfig
from m3bind.data.records import Record
from m3bind.evaluate import scoring, zero_shot
from m3bind.evaluate.stage_results import View, measure
from m3bind.evaluate.tasks import tasks_for

LABELS = [("Emphysema",), (), ("Emphysema", "Atelectasis"), ("Atelectasis", "Lung nodule")]


def records(n, split, tmp_path, several):
    rows = []
    for i in range(n):
        labels = LABELS[i % 4] if several else ()
        label = "" if several else ("normal", "pathologic myopia", "cataract")[i % 3]
        where = ("ct", "ct_rate") if several else ("retina", "odir200x3")
        name, patient = f"{split}{i}", f"{split}{i // 2}"
        rows.append(Record(name, where[0], tmp_path / name, label, labels, ("a text",), (), patient, split, where[1]))
    return rows


def encode(texts, path="ct"):
    return zero_shot.unit(np.stack([np.random.default_rng(list(t.encode())).normal(size=8) for t in texts]))


@pytest.mark.parametrize("several", [True, False])
def test_rows_of_a_state(tmp_path, several):
    m = "ct" if several else "retina"
    test, train = records(40, "test", tmp_path, several), records(60, "train", tmp_path, several)
    images = [zero_shot.unit(np.random.default_rng(s).normal(size=(n, 8))) for s, n in ((0, 40), (1, 60))]
    view = View("unbound", {m: images[0]}, {m: test}, {m: images[1]}, {m: train}, encode, scales={m: 40.0})
    rows = measure(view, [], EvaluateConfig(bootstrap=10, gap_correction=False), "test", 0)
    shot = {(r.task, r.metric, r.variant): r for r in rows if r.protocol == "zero_shot"}
    probe = {(r.task, r.metric, r.variant): r for r in rows if r.protocol == "linear_probe"}
    if several:
        assert {key[0] for key in shot} == {"ct_rate", "ct_rate_training"} == {key[0] for key in probe}
        task = next(t for t in tasks_for(test) if t.name == "ct_rate")
        chances = expit(zero_shot.task_logits(task, images[0], encode, 40.0))
        y = task.labels(test)
        said = chances > scoring.corner_thresholds(y, chances, (0.0, 1.0))
        assert shot["ct_rate", "accuracy", "threshold=test"].value == pytest.approx((said == y).mean())
        assert probe["ct_rate", "auroc", ""].n == 40
    else:
        assert {key[1] for key in shot} == {"balanced_accuracy", "accuracy", "macro_f1", "auroc"}
        assert probe["odir200x3_naive", "balanced_accuracy", ""].chance == pytest.approx(1 / 3)
