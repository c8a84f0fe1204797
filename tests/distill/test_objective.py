import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.distill.objective import DistillPairs, kd_loss, seskd_loss
from m3bind.errors import ConfigError
from m3bind.training.contrastive import identical_positives
from reference import losses as oracle
from reference.compare import assert_same, unit_rows


@pytest.mark.parametrize("towers", range(1, 7))
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 5), (7, 4)])
def test_kd_all_equals_the_sum_over_teachers_and_its_mean_has_the_same_gradient(n, d, towers):
    student, teachers = unit_rows(n, d, seed=0), unit_rows(n, d, seed=1, count=towers)
    assert_same(lambda: kd_loss(student, teachers), lambda: oracle.kd_loss(student, teachers), [student, *teachers])
    assert torch.equal(kd_loss(student, torch.stack(teachers)), kd_loss(student, teachers))
    mean = torch.stack(teachers).mean(0)
    of_mean = torch.autograd.grad(kd_loss(student, mean, count=towers), student)[0]
    torch.testing.assert_close(of_mean, torch.autograd.grad(oracle.kd_loss(student, teachers), student)[0])


@pytest.mark.parametrize("towers", range(1, 7))
@pytest.mark.parametrize("n", [1, 6])
def test_kd_own_takes_each_text_from_its_teacher(n, towers):
    student, teachers = unit_rows(n, 4, seed=2), unit_rows(n, 4, seed=3, count=towers)
    owner = torch.arange(n) % towers
    assert_same(
        lambda: kd_loss(student, teachers, "own", owner),
        lambda: oracle.kd_loss(student, teachers, "own", owner),
        [student, *teachers],
    )
    gathered = torch.stack([teachers[int(m)][i] for i, m in enumerate(owner)])
    torch.testing.assert_close(kd_loss(student, gathered), kd_loss(student, teachers, "own", owner))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6), st.floats(0.1, 10))
def test_laws_of_kd(towers, n, seed, factor):
    student, teachers = unit_rows(n, 4, seed=seed), unit_rows(n, 4, seed=seed + 1, count=towers)
    loss = kd_loss(student, teachers)
    torch.testing.assert_close(kd_loss(student, teachers[::-1]), loss, rtol=1e-9, atol=1e-12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(kd_loss(student[order], [x[order] for x in teachers]), loss, rtol=1e-9, atol=1e-12)
    scaled = kd_loss(factor * student, [factor * x for x in teachers])
    torch.testing.assert_close(scaled, factor**2 * loss, rtol=1e-9, atol=1e-12)
    best = torch.stack(teachers).mean(0)
    assert kd_loss(best, teachers) <= loss + 1e-12
    assert kd_loss(teachers[0], [teachers[0]] * towers).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("direction", "reduction"), [("both", "mean"), ("t2i", "sum")])
def test_seskd_is_equation_9(direction, reduction):
    student, teachers = unit_rows(5, 4, seed=4), unit_rows(5, 4, seed=5, count=3)
    image, text = unit_rows(4, 4, seed=6, count=2)
    images, texts = unit_rows(3, 4, seed=7, count=2)
    same = identical_positives(["a", "b", "a", "c"])
    pairs = {"ct": DistillPairs(image, text, 20.0, same), "ecg": DistillPairs(images, texts, 7.0)}

    def ours():
        named = seskd_loss(kd_loss(student, teachers), pairs, direction, reduction, contrastive_weight=0.7)
        assert list(named) == ["kd", "clip/ct", "clip/ecg", "loss"]
        return named["loss"]

    def naive():
        first = oracle.clip_loss(image, text, 20.0, direction, same, reduction)
        second = oracle.clip_loss(images, texts, 7.0, direction, None, reduction)
        return oracle.kd_loss(student, teachers) + 0.7 * (first + second)

    assert_same(ours, naive, [student, image, text, images, texts])


def test_phase_a_is_equation_7_alone():
    student, teachers = unit_rows(5, 4, seed=4), unit_rows(5, 4, seed=5, count=2)
    owner = torch.tensor([0, 1, 1, 0, 1])
    kd = kd_loss(student, teachers, "own", owner)
    named = seskd_loss(kd, {})
    assert list(named) == ["kd", "loss"]
    assert named["loss"] == named["kd"] == kd


def test_wrong_use():
    student = torch.ones(2, 3)
    with pytest.raises(ConfigError, match="unknown mode 'some'"):
        kd_loss(student, [student], "some")
    with pytest.raises(ConfigError, match="no teachers"):
        kd_loss(student, [])
    with pytest.raises(ConfigError, match="do not fit"):
        kd_loss(student, [torch.ones(2, 4)])
    with pytest.raises(ConfigError, match="needs `owner`"):
        kd_loss(student, [student, student], "own")
