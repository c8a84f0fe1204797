"""The table of binding methods: its settings, its significance, and one small table from start to end, resumed."""

import json

import numpy as np
import pytest

from m3bind.align import methods
from m3bind.config import load_config, validate
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.experiments import method_comparison
from m3bind.experiments.method_comparison import ENTRIES, as_text, compare_methods, entry_config, paired, uses
from pipeline.test_run import SETTINGS


@pytest.mark.parametrize("preset", ["demo", "mini5", "quick"])
def test_every_row_has_valid_settings_and_known_options(preset):
    base = load_config(preset)
    for name, entry in ENTRIES.items():
        config = entry_config(base, entry, 3)
        methods.get(config.align.method).options(config.align)
        assert config.seed == 3 and config.pretrain == base.pretrain and config.data == base.data
        assert (config.align == base.align) == (name in ("default", "unbound"))


def test_a_row_does_not_inherit_options_or_post_steps_of_another_method():
    base = load_config("demo", ["align.method=cmcr", "align.options.tau=0.2", "align.post.gap=centre"])
    config = entry_config(base, ENTRIES["textme"], 0)
    assert config.align.options == {} and config.align.post.gap == "none"
    assert entry_config(base, ENTRIES["default"], 0).align == base.align


def test_what_a_row_is_trained_on_is_stated():
    base = load_config("mini5")
    said = {name: uses(entry_config(base, entry, 0)) for name, entry in ENTRIES.items()}
    assert said["procrustes"] == "texts alone" and said["cmcr"] == "images"
    assert said["default"] == "image-text pairs, labels" and said["m3bind_literal"] == "image-text pairs"
    assert "pairs of modalities" in said["medbind_bridges"]


def test_a_difference_is_significant_only_beyond_its_own_spread():
    random = np.random.default_rng(0)
    patients, seeds = random.normal(0, 0.05, 200), random.normal(0, 0.02, (5, 1))
    drawn = 0.5 + patients + seeds + random.normal(0, 0.002, (5, 200))
    ours = [{"value": v, "replicates": d.tolist(), "freedom": 99.0} for v, d in zip(0.5 + seeds[:, 0], drawn)]
    worse = [
        {**cell, "value": cell["value"] - 0.03, "replicates": np.subtract(cell["replicates"], 0.03)} for cell in ours
    ]
    worse = [{**cell, "replicates": cell["replicates"] + random.normal(0, 0.002, 200)} for cell in worse]
    found = paired(ours, worse)
    assert found["ci_low"] > 0.02 and found["ci_high"] < 0.04 and found["p"] < 0.01
    assert paired(worse, ours)["ci_high"] == pytest.approx(-found["ci_low"])
    alike = paired(ours, ours[::-1])  # the same values in another order of seeds: a difference of zero
    assert alike["ci_low"] < 0 < alike["ci_high"] and alike["p"] > 0.3
    assert paired(ours, ours) == {"difference": 0, "ci_low": 0, "ci_high": 0, "p": 1.0}


@pytest.fixture
def config(tmp_path, make_picture):
    rows = ["modality,path,label,caption,patient,split"]
    for number in range(60):
        kind = "xray" if number % 2 else "retina"
        make_picture(tmp_path / f"{number}.png", kind, seed=number)
        finding = ["normal", "large opacity", "small lesion"][number % 3]
        split = "test" if number % 10 < 4 else "train"
        rows.append(f"{kind},{number}.png,{finding},{kind} with {finding} number {number % 5},p{number // 2},{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    tree = {**SETTINGS, "data": {"manifest": str(tmp_path / "manifest.csv"), "valid_fraction": 0}}
    return validate(tree)


def test_a_table_from_start_to_end_and_again_from_its_files(config, tmp_path, monkeypatch):
    wanted = ("unbound", "procrustes", "relative", "medbind_bridges")
    for name in ("relative", "medbind_bridges"):
        entry = ENTRIES[name]
        change = {**entry.change, "dim": 8} if name == "relative" else {**entry.change, "options": {"steps": 3}}
        monkeypatch.setitem(ENTRIES, name, method_comparison.MethodRow(entry.title, change))
    table = compare_methods(config, tmp_path / "t", [0, 1], wanted)
    by_name = {row["method"]: row for row in table["rows"]}
    assert set(by_name) == {*wanted, "default"}
    plain = by_name["procrustes"]["post"][""]
    assert plain["zero-shot"]["mean"] == pytest.approx(by_name["unbound"]["post"][""]["zero-shot"]["mean"])
    assert by_name["procrustes"]["kept"] == pytest.approx(1)
    assert plain["patient R@10"]["gallery"] == 12 and plain["patient R@10"]["chance"] == pytest.approx(10 / 12)
    assert {"centre", "rotate", "realign", "pc"} <= set(by_name["default"]["post"])
    assert by_name["default"]["post"][""]["zero-shot"]["ci_low"] == 0  # against itself
    shown = as_text(table)
    assert all(name in shown for name in by_name) and "(12)" in shown and "pairs of modalities" in shown
    before = (tmp_path / "t/seed1/relative.json").read_text()
    (tmp_path / "t/seed1/relative.json").unlink()  # killed before it was written
    compare_methods(config, tmp_path / "t", [0, 1], wanted)
    again, first = json.loads((tmp_path / "t/seed1/relative.json").read_text()), json.loads(before)
    assert again["metrics"] == first["metrics"]
    table = json.loads((tmp_path / "t/methods.json").read_text())
    monkeypatch.setattr(method_comparison, "_bind_and_measure", lambda *a: pytest.fail("measured again"))
    assert compare_methods(config, tmp_path / "t", [0, 1], wanted) == table
    changed = config.model_copy(update={"align": config.align.model_copy(update={"mse_weight": 3.0})})
    with pytest.raises(ConfigError, match="other settings"):
        compare_methods(changed, tmp_path / "t", [0], wanted)


def test_a_method_that_cannot_be_run_is_left_out_with_its_reason(config, tmp_path):
    manifest = tmp_path / "manifest.csv"
    lines = manifest.read_text().splitlines()
    own = [
        ",".join([*row.split(",")[:4], f"{row.split(',')[0]}{i}", row.split(",")[5]]) for i, row in enumerate(lines[1:])
    ]
    manifest.write_text("\n".join([lines[0], *own]) + "\n")
    table = compare_methods(config, tmp_path / "t", [0], ["medbind_bridges"])
    row = next(r for r in table["rows"] if r["method"] == "medbind_bridges")
    assert "patients with two modalities" in row["skipped"] and "skipped" in as_text(table)


def test_an_unknown_row_offers_the_nearest(config, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'textme'"):
        compare_methods(config, tmp_path, [0], ["textmee"])


def test_rows_of_settings_with_a_term_that_only_the_default_has():
    """Every row is valid: a method or form without copies of images drops their term."""
    base = load_config("mini5", ["align.consistency=1", "pretrain.views=2"])
    weights = {name: entry_config(base, entry, 0).align.consistency for name, entry in ENTRIES.items()}
    assert {name for name, weight in weights.items() if weight} == {"unbound", method_comparison.DEFAULT}
