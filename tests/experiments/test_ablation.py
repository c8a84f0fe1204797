"""Ablations: what a variant changes, what a row shows."""

import math

import pytest

from m3bind.config import load_config
from m3bind.errors import UnknownNameError
from m3bind.evaluate.results import ResultTable, Row
from m3bind.experiments import ablation


def row(**values) -> Row:
    base = {"protocol": "zero_shot", "dataset": "d", "modality": "xray", "split": "test", "text_encoder": "teacher"}
    numbers = {"metric": "auc", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 10, "chance": 0.5, "stage": "aligned"}
    return Row(**{**base, **numbers, **values})


def test_a_variant_changes_only_its_own_settings():
    base = load_config("demo")
    changed = ablation.variant_config(base, ablation.VARIANTS["amb_off"], seed=4)
    assert changed.align.balance.proportional and not changed.align.balance.weights and not changed.align.balance.lr
    assert changed.distill.balance.proportional
    assert changed.seed == 4 and changed.data.phantom == base.data.phantom
    restored = changed.model_copy(update={"seed": base.seed})
    restored.align.balance, restored.distill.balance = base.align.balance, base.distill.balance
    assert restored == base


@pytest.mark.parametrize(("name", "kept"), [("two", ["xray", "ecg"]), ("three", ["xray", "ecg", "retina"])])
def test_table_4_adds_modalities_in_the_order_of_the_paper(name, kept):
    config = ablation.variant_config(load_config("demo"), ablation.VARIANTS[name], seed=0)
    assert list(config.modalities) == kept


def test_every_variant_gives_valid_settings():
    for variant in ablation.VARIANTS.values():
        ablation.variant_config(load_config("mini5"), variant, seed=1)


def test_unlike_text_towers_change_the_models_and_train_them_again():
    variant = ablation.VARIANTS["unlike_text"]
    config = ablation.variant_config(load_config("mini5"), variant, seed=0)
    shapes = {
        (m.settings.get("text_layers"), m.settings.get("text_pooling", "mean")) for m in config.modalities.values()
    }
    assert len(shapes) == len(config.modalities) == 5
    assert config.align == load_config("mini5").align
    assert not ablation._applies(variant, load_config("paper"))


def test_headline_takes_one_metric_per_task_and_the_means_over_pairs():
    across = {"protocol": "image_to_image", "modality": "mean", "text_encoder": "", "task": "patient", "metric": "R@10"}
    table = ResultTable(
        [
            row(task="a", value=0.8),
            row(task="a", metric="macro_f1", value=0.1),
            row(task="b", modality="ct", value=0.6),
            row(task="a", text_encoder="student", value=0.2),
            row(**across, value=0.5, chance=0.1),
            row(**across, value=0.9, chance=0.1, variant="gap-corrected"),
            row(**{**across, "modality": "ct->ecg"}, value=0.0, chance=0.1),
            row(protocol="text_agreement", modality="mean", task="towers", metric="R@1", value=0.7),
        ]
    )
    found = ablation.headline(table, "aligned", "teacher")
    assert found["zero-shot"] == pytest.approx(0.7)
    assert found["patient R@10"] == 0.5 and found["R@10 / chance"] == pytest.approx(5)
    assert found["patient R@10, gap-corrected"] == 0.9 and found["text R@1"] == 0.7
    assert math.isnan(found["ccos"]) and math.isnan(ablation.headline(table, "distilled", "student")["zero-shot"])


def test_rows_hold_mean_and_spread_over_seeds():
    made = ablation._row(ablation.VARIANTS["base"], "base", "aligned", "teacher", [{"x": 1.0}, {"x": 3.0}])
    assert made["x"] == 2 and made["x sd"] == pytest.approx(math.sqrt(2)) and made["seeds"] == 2
    text = ablation.as_text([made])
    assert "2.000±1.414" in text and "base" in text


def test_an_unknown_variant_offers_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'amb_off'"):
        ablation.ablate(load_config("demo"), tmp_path, [0], ["amb_of"])


def test_variants_of_settings_with_copies_of_images():
    """Every variant is valid: those that train no image side drop the term that needs it."""
    base = load_config("mini5", ["align.consistency=1", "pretrain.views=2"])
    kept = {name: ablation.variant_config(base, each, 0).align.consistency for name, each in ablation.VARIANTS.items()}
    assert {name for name, weight in kept.items() if not weight} == {
        "paper_literal",
        "paper_sensible",
        "lora_no_bridge",
    }
