"""Every few-shot method: learns from the samples, leaves the random state unchanged, and follows its formula."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from m3bind.errors import M3BindError, UnknownNameError
from m3bind.evaluate import adapters
from m3bind.evaluate.adapters import FewShotProblem, Samples, descent, linear_probe
from m3bind.evaluate.adapters.clip_adapter import label_bias
from m3bind.evaluate.adapters.tip_adapter import MAX_KEYS, build_cache
from m3bind.evaluate.classification import auroc, balanced_accuracy
from m3bind.evaluate.confidence import Resampling

NONE = Resampling(resamples=0)
DIM, CLASSES = 16, 3
CENTRES = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0][:CLASSES]


def make(n, seed, several=False, noise=0.35):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (n, CLASSES)) if several else np.arange(n) % CLASSES
    signal = y @ CENTRES if several else CENTRES[y]
    rows = signal + noise * rng.normal(size=(n, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"{seed}-{i}" for i in range(n)]
    return Samples(rows.astype(np.float32), rows.astype(np.float32), y, names, names)


TEXTS = CENTRES + 0.4 * np.random.default_rng(6).normal(size=CENTRES.shape)
TEXTS /= np.linalg.norm(TEXTS, axis=1, keepdims=True)


def value(samples, scores):
    if samples.several:
        return auroc(samples.labels, scores, NONE).value
    return balanced_accuracy(samples.labels, scores.argmax(1), draw=NONE).value


def test_every_method_is_found_by_itself():
    assert set(adapters.names()) >= {"linear_probe", "clip_adapter", "tip_adapter", "tip_adapter_f"}
    assert {f"linear_probe_{name}" for name in linear_probe.PRESETS} <= set(adapters.names())
    with pytest.raises(UnknownNameError, match="clip_adapter"):
        adapters.get("clip_adaptor")


def test_a_method_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "nearest_mean.py").write_text(
        "import numpy as np\nfrom m3bind.evaluate.adapters.base import Adapter\n\n"
        "class NearestMean(Adapter):\n    name = 'nearest_mean'\n\n"
        "    def fit(self, train, valid, problem):\n"
        "        means = np.stack([train.embeddings[train.labels == c].mean(0) for c in range(len(problem.classes))])\n"
        "        return lambda samples: samples.embeddings @ means.T\n"
    )
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    adapters.base._registry.refresh()
    try:
        scores = adapters.get("nearest_mean").fit(make(30, 0), None, FewShotProblem(TEXTS))(make(90, 2))
        assert value(make(90, 2), scores) > 0.8
    finally:
        adapters.base._registry.refresh()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", [n for n in adapters.names() if n != "linear_probe_lipro"])
def test_every_method_learns_and_can_be_repeated(name, several):
    train, valid, test = (make(n, seed, several) for n, seed in ((30, 0), (30, 1), (90, 2)))
    problem = FewShotProblem(TEXTS, 10.0, seed=3)
    state = torch.random.get_rng_state()
    scores = adapters.get(name).fit(train, valid, problem)(test)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert scores.shape == (90, CLASSES) and np.isfinite(scores).all()
    by_text = value(test, test.embeddings @ TEXTS.T)
    alone = adapters.get(name).fit(train, None, problem)(test)
    assert value(test, scores) > by_text and value(test, alone) > by_text
    np.testing.assert_array_equal(adapters.get(name).fit(train, None, problem)(test), alone)


def test_flairs_probe_is_scikit_learns_logistic_regression():
    train, test = make(30, 0), make(20, 1)
    model = LogisticRegression(C=0.316, max_iter=1000, class_weight="balanced", random_state=0)
    expected = model.fit(train.features.astype(float), train.labels).decision_function(test.features.astype(float))
    found = adapters.get("linear_probe").fit(train, None, FewShotProblem(TEXTS, modality="retina"))(test)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_two_classes_give_log_odds_and_an_unseen_class_is_never_the_answer():
    train, test = make(30, 0), make(30, 1)
    two = train.take(train.labels < 2)
    scores = adapters.get("linear_probe_flair").fit(two, None, FewShotProblem(TEXTS))(test)
    model = LogisticRegression(C=0.316, max_iter=1000, class_weight="balanced").fit(
        two.features.astype(float), two.labels
    )
    np.testing.assert_allclose(
        scores[:, 1] - scores[:, 0], model.decision_function(test.features.astype(float)), atol=1e-6
    )
    assert (scores[:, 2] == -np.inf).all()


def test_gradient_probe_reaches_the_optimum_of_its_loss():
    """A probe with enough steps is scikit-learn's without penalty on the data it was trained on."""
    train = make(60, 0, noise=1.0)
    settings = descent.Descent(0.3, 800, 60, schedule="cosine")
    layer = torch.nn.Linear(DIM, CLASSES)
    x, y = descent.tensors(train.features, train.labels)
    descent.descend(layer, (x, y), settings, seed=0)
    model = LogisticRegression(C=1e6, max_iter=5000).fit(train.features.astype(float), train.labels)
    best = -np.log(model.predict_proba(train.features.astype(float))[np.arange(60), train.labels]).mean()
    assert float(descent.task_loss(layer(x), y).detach()) == pytest.approx(best, abs=0.01)


def test_linear_probe_refuses_one_class():
    one = make(30, 0)
    with pytest.raises(M3BindError, match="fewer than two"):
        adapters.get("linear_probe").fit(one.take(one.labels == 1), None, FewShotProblem(TEXTS))


def test_weight_decay_is_searched_around_the_best(monkeypatch):
    asked = []

    def network(x, y, classes, probe, valid, seed):
        asked.append(probe.solver.weight_decay)
        return lambda rows: np.full((len(rows), 1), probe.solver.weight_decay)

    peak = linear_probe.DECAYS[37]
    monkeypatch.setattr(linear_probe, "_network", network)
    monkeypatch.setattr(linear_probe, "quality", lambda y, scores: -abs(np.log(scores[0, 0] / peak)))
    probe = linear_probe.PRESETS["clip_benchmark"]
    x, y = np.zeros((2, 1)), np.array([0, 1])
    found = linear_probe._decayed(probe, x, y, 2, (x, y), FewShotProblem(TEXTS))
    assert found.weight_decay == peak and len(asked) == len(set(asked)) <= 15
    assert linear_probe._decayed(probe, x, y, 2, None, FewShotProblem(TEXTS)).weight_decay == 0


def test_learning_rates():
    cosine = descent.Descent(0.1, 10, 64, schedule="cosine", warmup=2)
    assert [descent.rate(cosine, s, 0, 12) for s in (0, 1, 2, 7)] == pytest.approx([0.05, 0.1, 0.1, 0.05])
    step = descent.Descent(1e-3, 100, 16, schedule="step", step_at=40)
    assert descent.rate(step, 0, 39, 9) == 1e-3 and descent.rate(step, 0, 40, 9) == pytest.approx(1e-4)


def test_early_stop_keeps_the_best_epoch():
    x, y = descent.tensors(np.ones((4, 1)), np.array([0, 0, 1, 1]))
    far = (torch.full((2, 1), 1.0), torch.tensor([1, 1]))  # training on 0 makes it worse from the first epoch on
    layer = torch.nn.Linear(1, 2)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    descent.descend(layer, (x[:2], y[:2]), descent.Descent(0.1, 50, 2, patience=3), 0, far)
    assert float(layer.weight.abs().max()) <= 0.1 + 1e-6  # the state after the first step, not the last


def test_unknown_labels_do_not_count_in_the_loss():
    logits, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0, -1]] * 5)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, :2], y[:, :2])
    assert float(descent.task_loss(logits, y)) == pytest.approx(float(expected))


def test_tip_adapter_is_its_formula():
    train, test = make(12, 0), make(7, 1)
    problem = FewShotProblem(TEXTS, 20.0)
    found = adapters.get("tip_adapter").fit(train, None, problem)(test)
    for i, row in enumerate(test.embeddings.astype(float)):
        votes = np.zeros(CLASSES)
        for key, label in zip(train.embeddings.astype(float), train.labels):
            votes[label] += np.exp(-5.5 * (1 - row @ key))
        np.testing.assert_allclose(found[i], 20.0 * TEXTS @ row + 1.0 * votes, rtol=1e-5)


def test_tip_adapter_refuses_a_cache_without_end():
    many = make(3, 0).take(np.zeros(MAX_KEYS + 1, dtype=int))
    with pytest.raises(M3BindError, match="linear_probe"):
        build_cache(many, FewShotProblem(TEXTS))


def test_label_bias_centres_the_logits_on_the_log_odds():
    train = make(40, 0, several=True)
    problem = FewShotProblem(TEXTS, 20.0)
    logits = 20.0 * train.embeddings @ TEXTS.T + label_bias(train, problem)
    share = (train.labels.sum(0) + 0.5) / 41
    np.testing.assert_allclose(logits.mean(0), np.log(share / (1 - share)), atol=1e-5)
    assert not label_bias(make(9, 0), problem).any()
