"""The further terms of distillation against their definitions, and their relations to each other."""

import pytest
import torch

from m3bind.config import DistillConfig
from m3bind.distill.terms import (
    TERMS,
    affinity_loss,
    distillation_terms,
    feature_loss,
    interactive_loss,
    relation_loss,
)
from reference import binding as oracle
from reference import losses
from reference.compare import assert_same, unit_rows


@pytest.mark.parametrize("n", [1, 5])
def test_affinity_mimicking_and_relational_distillation_are_their_definitions(n):
    image, student, teacher = unit_rows(n, 4, seed=0, count=3)
    for ours, naive in ((affinity_loss, oracle.affinity_loss), (relation_loss, oracle.relation_loss)):
        assert_same(
            lambda ours=ours: ours(image, student, teacher, 6.0),
            lambda naive=naive: naive(image, student, teacher, 6.0),
            [image, student, teacher],
        )


def test_with_frozen_images_the_relation_has_twice_the_gradient_of_the_affinity():
    image, student, teacher = unit_rows(6, 4, seed=1, count=3)
    image, teacher = image.detach(), teacher.detach()
    one = torch.autograd.grad(affinity_loss(image, student, teacher, 9.0), student)[0]
    two = torch.autograd.grad(relation_loss(image, student, teacher, 9.0), student)[0]
    torch.testing.assert_close(two, 2 * one)
    assert float(relation_loss(image, teacher, teacher, 9.0)) == pytest.approx(0, abs=1e-12)


def test_feature_distillation_is_equation_7_with_one_teacher():
    student, teacher = unit_rows(5, 4, seed=2, count=2)
    assert_same(lambda: feature_loss(student, teacher), lambda: losses.kd_loss(student, [teacher]), [student, teacher])


def test_interactive_contrast_is_info_nce_to_the_teacher_with_equal_texts_as_positives():
    student, teacher = unit_rows(5, 4, seed=3, count=2)
    ids = torch.tensor([0, 1, 0, 2, 3])
    same = ids[:, None] == ids[None, :]
    assert_same(
        lambda: interactive_loss(student, teacher, ids, 6.0),
        lambda: losses.clip_loss(student, teacher, 6.0, "i2t", same),
        [student, teacher],
    )


def test_only_weighted_terms_are_computed_and_every_term_has_a_setting():
    image, student, teacher = unit_rows(3, 4, seed=4, count=3)
    ids = torch.arange(3)
    weights = {name: getattr(DistillConfig(), name) for name in TERMS}
    assert distillation_terms(weights, image, student, teacher, ids, 5.0) == {}
    found = distillation_terms(weights | {"feature": 2.0}, image, student, teacher, ids, 5.0)
    assert list(found) == ["feature"] and torch.equal(found["feature"], feature_loss(student, teacher))
