"""Stage 2 on toys: phases, what trains, the mean teacher, both readings of Eq. 7."""

import numpy as np
import pytest
import torch

from m3bind.config import ContrastiveConfig, DistillConfig, StudentConfig
from m3bind.data.tokens import TokenStore
from m3bind.distill.stage import DistillSampler, DistillStage, Teachers
from m3bind.distill.student import StudentTexts
from m3bind.errors import ConfigError
from m3bind.models.layers.text_encoder import make_text_encoder, train_wordpiece
from m3bind.training.loop import train
from toys import toy_inputs, toy_pairs

SIZES = {"xray": 40, "ct": 12, "ecg": 30}
D = 16


@pytest.fixture
def setting(tmp_path):
    pairs = toy_pairs(SIZES)
    table = pairs["xray"].texts.table
    train_wordpiece(table, vocab_size=200).save(str(tmp_path / "tokenizer.json"))
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    student = make_text_encoder("bert", dim=D, assets=tmp_path, config=config)
    random = np.random.default_rng(0)

    def unit(x):
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    base = random.standard_normal((len(table), D))
    texts = {m: unit(base + 0.2 * random.standard_normal(base.shape)) for m in pairs}
    images = {
        m: unit(base[np.concatenate(p.captions)] + 0.3 * random.standard_normal((len(p), D))) for m, p in pairs.items()
    }
    teachers = Teachers(texts, images, dict.fromkeys(pairs, 10.0))
    inputs = toy_inputs(pairs, tmp_path)
    return (
        pairs,
        StudentTexts(student, TokenStore(tmp_path / "tokens", student.tokenize).table(table)),
        teachers,
        inputs,
    )


def losses(made, step):
    return made.losses(made.batch(step))


def stage(setting, phase, **changes):
    pairs, student, teachers, inputs = setting
    settings = DistillConfig(
        **{"steps": 60, "batch": 8, "shared_batch": 16, "lr": 5e-3, "student": StudentConfig(text="bert")} | changes
    )
    shares = inputs.pool_probabilities(settings.balance)
    sampler = DistillSampler(phase, pairs, inputs.pool, shares, settings, 0)
    return DistillStage(sampler, student, teachers, settings), settings


def test_phase_a_is_equation_7_alone_and_phase_b_adds_equation_8(setting):
    assert set(losses(stage(setting, "a")[0], 0)) == {"kd", "loss"}
    assert set(losses(stage(setting, "b")[0], 0)) == {"kd", "clip/xray", "clip/ct", "clip/ecg", "loss"}


def test_equation_7_with_all_teachers_has_the_gradient_of_the_naive_sum(setting):
    made, _ = stage(setting, "a")
    pairs, student, teachers, _ = setting
    student.encoder.eval()
    ids, _ = made.sampler.pool.batch(3)
    losses(made, 3)["loss"].backward()
    ours = {n: p.grad.clone() for n, p in student.encoder.named_parameters() if p.grad is not None}
    student.encoder.zero_grad()
    embedded = student.encode(student.load(ids))
    naive = sum(((torch.from_numpy(teachers.texts[m][ids]) - embedded) ** 2).sum(-1).mean() for m in pairs)
    naive.backward()
    for name, parameter in student.encoder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_with_own_teachers_each_text_has_the_one_of_its_modality(setting):
    made, _ = stage(setting, "a", teachers="own")
    pairs, student, teachers, _ = setting
    student.encoder.eval()
    ids, source = made.sampler.pool.batch(2)
    names = list(pairs)
    target = np.stack([teachers.texts[names[m]][i] for i, m in zip(ids, source)])
    expected = ((torch.from_numpy(target) - student.encode(student.load(ids))) ** 2).sum(-1).mean()
    torch.testing.assert_close(losses(made, 2)["loss"], expected)


def test_the_paper_form_of_equation_8_is_text_to_image_and_summed(setting):
    form = ContrastiveConfig(direction="t2i", reduction="sum", positives="diagonal")
    made, _ = stage(setting, "b", contrastive=form)
    pairs, student, teachers, _inputs = setting
    student.encoder.eval()
    values = losses(made, 1)
    m = "ecg"
    indices = made.sampler.samplers[m].batch(1)
    captions = pairs[m].draw_captions(indices, 0, 1)
    text, image = student.encode(student.load(captions)), torch.from_numpy(teachers.images[m][indices])
    logits = 10.0 * text @ image.T
    expected = sum(torch.logsumexp(logits[i], 0) - logits[i, i] for i in range(len(indices)))
    torch.testing.assert_close(values["clip/ecg"], expected, rtol=1e-4, atol=1e-4)


def test_the_student_comes_to_agree_with_its_teachers(setting, tmp_path):
    _pairs, student, teachers, _ = setting

    def agreement():
        student.encoder.eval()
        with torch.no_grad():
            rows = student.encode(student.load(np.arange(len(student.tokens))))
        return float((rows * torch.nn.functional.normalize(torch.from_numpy(teachers.mean), dim=-1)).sum(-1).mean())

    before = agreement()
    for phase in "ab":
        made, settings = stage(setting, phase)
        train(made, settings, tmp_path / phase, seed=0)
    assert agreement() > before + 0.3


def test_training_the_head_alone_needs_features_and_leaves_the_trunk(setting, tmp_path):
    with pytest.raises(ConfigError, match="features"):
        stage(setting, "a", student=StudentConfig(text="bert", train="head"))
    pairs, student, teachers, inputs = setting
    student.encoder.eval()
    with torch.no_grad():
        features = student.encoder.features(student.tokens.padded(np.arange(len(student.tokens)))).numpy()
    trunk = {k: v.clone() for k, v in student.encoder.trunk.state_dict().items()}
    wrapped = StudentTexts(student.encoder, student.tokens, features)
    made, settings = stage(
        (pairs, wrapped, teachers, inputs), "a", student=StudentConfig(text="bert", train="head"), steps=5
    )
    train(made, settings, tmp_path / "head", seed=0)
    assert all(torch.equal(trunk[k], v) for k, v in student.encoder.trunk.state_dict().items())


def test_further_terms_join_phase_b_with_the_teacher_of_the_texts_modality(setting):
    weights = {"affinity": 0.5, "feature": 2.0, "interactive": 0.3}
    made, _ = stage(setting, "b", kd_weight=0.0, **weights)
    pairs, student, teachers, _inputs = setting
    student.encoder.eval()
    found = losses(made, 1)
    expected = sum(v for k, v in found.items() if k.startswith("clip/"))
    for name, weight in weights.items():
        expected = expected + weight * sum(v for k, v in found.items() if k.startswith(f"{name}/"))
    torch.testing.assert_close(found["loss"], expected)
    m = "ecg"
    captions = pairs[m].draw_captions(made.sampler.samplers[m].batch(1), 0, 1)
    own = torch.from_numpy(teachers.texts[m][captions])
    text = student.encode(student.load(captions))
    torch.testing.assert_close(found[f"feature/{m}"], (own - text).square().sum(1).mean())
    assert set(losses(stage(setting, "a", kd_weight=0.0, **weights)[0], 0)) == {"kd", "loss"}
