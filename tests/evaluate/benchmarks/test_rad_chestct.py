"""RAD-ChestCT: abnormalities at locations become sixteen labels."""

import numpy as np
import pytest

from evaluate.benchmarks._checks import assert_few_shot, made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make
from evaluate.benchmarks.trees import rad_chestct as tree
from m3bind.evaluate.benchmarks.ct_rate import LABELS
from m3bind.evaluate.benchmarks.rad_chestct import MAPPING
from m3bind.modalities.base import get as modality


def test_labels_and_faults(tmp_path):
    done, records = made("rad_chestct", tmp_path)
    assert_few_shot(records, MAPPING)
    assert kinds(done) == {"with a missing file": 3}
    for k in range(8):
        wanted = tuple(label for j, label in enumerate(MAPPING) if tree.present(k, j))
        assert records[f"tst{k + 1:05d}"].labels == wanted
    sample = modality("ct").read(records["tst00001"].path)
    assert sample.spacing == (0.8, 0.8, 0.8)
    wanted = tree.chest(np.random.default_rng(0), 0).shape
    assert sample.array.shape == wanted[::-1] and sample.array.min() >= -1000


def test_sixteen_of_eighteen_in_order():
    kept = [label for label in LABELS if label not in ("Coronary artery wall calcification",
                                                       "Mosaic attenuation pattern")]  # fmt: skip
    assert list(MAPPING) == kept and len(kept) == 16
    assert len({name for group in MAPPING.values() for name in group}) == sum(map(len, MAPPING.values()))


def test_records_without_findings_remain(tmp_path):
    root = make("rad_chestct", tmp_path)
    np.savez_compressed(root / "tst99999.npz", ct=np.zeros((4, 6, 6), np.int16))
    _, records = run("rad_chestct", root, tmp_path / "out")
    assert records["tst99999"].labels == () and records["tst99999"].split == "test"
    assert records["tst99999"].captions[0] == "Chest CT with none of the findings looked for."
    assert records["tst00001"].captions[0].startswith("Chest CT showing medical material")


def test_half_present(tmp_path):
    root = make("rad_chestct", tmp_path)
    assert_incomplete("rad_chestct", tmp_path, ("imgtest_Abnormality_and_Location_Labels.csv",))
    (root / "imgvalid_Abnormality_and_Location_Labels.csv").unlink()
    table = root / "imgtrain_Abnormality_and_Location_Labels.csv"
    table.write_text(table.read_text().replace("emphysema*", "emphysem*"))
    done, records = run("rad_chestct", root, tmp_path / "out")
    assert kinds(done)["without a table"] == 1 and kinds(done)["without labels"] == 13
    assert {r.split for r in records.values()} == {"test"}
    assert any("no column for Emphysema" in fault.reason for fault in done.faults)


@pytest.mark.parametrize("label", list(MAPPING))
def test_every_abnormality_is_of_one_label(label):
    assert MAPPING[label] and all(name == name.lower() and "*" not in name for name in MAPPING[label])
