"""Settings: presets, overrides, inheritance, and messages that name the fault."""

import json
from contextlib import nullcontext

import pytest
import yaml

from m3bind.config import RunConfig, load_config, merge, presets
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.experiments.suite import load_suite


@pytest.mark.parametrize(
    "name", ["demo", "quick", "mini5", "open5", "paper", "paper-literal", "unlike_mini5", "unlike_demo"]
)
def test_every_preset_is_valid_and_survives_saving(name, tmp_path):
    assert name in presets()
    config = load_config(name)
    config.save(tmp_path / "config.yaml")
    assert RunConfig(**yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


def test_the_literal_preset_sets_every_literal_reading():
    config = load_config("paper-literal")
    assert config.align.bridge == "identity" and not config.align.train_bridge
    assert config.align.balance.literal
    assert (config.align.contrastive.direction, config.align.contrastive.reduction) == ("i2t", "sum")
    assert (config.distill.contrastive.direction, config.distill.contrastive.reduction) == ("t2i", "sum")
    assert config.align.mse_weight == 10 and config.align.steps == 15000 and config.align.batches == {"ct": 8}


def test_overrides_reach_nested_settings():
    config = load_config("demo", ["align.mse_weight=3", "data.phantom.patients=50", "pretrain.batches={ct: 4}"])
    assert config.align.mse_weight == 3 and config.data.phantom.patients == 50 and config.pretrain.batches == {"ct": 4}


def test_a_file_extends_another_key_by_key(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: demo\nalign: {mse_weight: 7}\n")
    config = load_config(str(tmp_path / "a.yaml"))
    assert config.align.mse_weight == 7 and config.align.steps == load_config("demo").align.steps
    (tmp_path / "b.yaml").write_text(f"extends: {tmp_path}/c.yaml\n")
    (tmp_path / "c.yaml").write_text(f"extends: {tmp_path}/b.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(str(tmp_path / "b.yaml"))


def test_settings_of_one_modality_replace_those_of_all():
    config = load_config("demo", ["pretrain.per_modality={ct: {steps: 7}}"])
    assert config.pretrain_for("ct").steps == 7
    assert config.pretrain_for("xray").steps == config.pretrain.steps
    assert config.pretrain_for("ct").batch == config.pretrain.batch


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("align.mse_weigh=1", "did you mean mse_weight"),
        ("align.steps=-1", "setting 'align.steps'"),
        ("align", "section.key=value"),
        ("align.mse_weight.deep=1", "is a value, not a section"),
        ("align.text=some", "setting 'align.text'"),
        ("compute.workers=0", r"setting 'compute.workers': Input should be 'auto' or greater than .* 1 \(got '0'\)"),
        ("compute.workers=two", r"setting 'compute.workers': Input should be 'auto' or a valid integer"),
        ("compute.trackers=[x]", r"setting 'compute.trackers.0': Input should be"),
    ],
)
def test_bad_settings_are_named(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config("demo", [override])


def test_unknown_preset_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'mini5'"):
        load_config("mini")


def test_merge_replaces_values_and_joins_mappings():
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", ".", "a/b", "", "x" * 300, "a\\b", "a\nb"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(name, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({"name": name}))
    with pytest.raises(ConfigError, match="the name of one folder"):
        load_config(str(settings))
    with pytest.raises(ConfigError, match="the name of one folder"):
        load_suite(str(settings))


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        (["align.consistency=1"], False),
        (["align.consistency=1", "pretrain.views=2"], True),
        (["align.consistency=1", "pretrain.per_modality={ecg: {views: 2}}"], True),
        (["align.consistency=1", "pretrain.views=2", "align.image=lora"], False),
        (["align.consistency=1", "pretrain.views=2", "align.image=frozen"], False),
        (["align.consistency=1", "pretrain.views=2", "align.train_bridge=false"], False),
        (["align.consistency=1", "pretrain.views=2", "align.image=head", "align.train_bridge=false"], True),
        (["align.consistency=1", "pretrain.views=2", "align.method=procrustes"], False),
        (["align.consistency=.inf", "pretrain.views=2"], False),
        (["align.image=lora"], True),
    ],
)
def test_consistency_needs_copies(changes, fits):
    with nullcontext() if fits else pytest.raises(ConfigError, match=r"align\.consistency"):
        load_config("mini5", changes)
