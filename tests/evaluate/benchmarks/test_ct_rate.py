"""CT-RATE: the rescaling trap of its second upload, bracketed spacing, splits and reports."""

import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.benchmarks._checks import assert_few_shot, made, run
from evaluate.benchmarks.prepared import assert_incomplete, kinds, make
from evaluate.benchmarks.trees import ct_rate as tree
from evaluate.benchmarks.trees._tiny import chest, save_nifti, write_csv
from m3bind.core.stored import StoredFileError
from m3bind.data.cache import FeatureCache
from m3bind.evaluate.benchmarks.ct_rate import LABELS, rescale_of, spacing_difference, stored_as
from m3bind.modalities.base import get as modality
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.stored_inputs import rescaled

SAID = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "XYSpacing": "[0.7, 0.7]", "ZSpacing": "1.5"}


def test_fixed_upload_is_not_rescaled(tmp_path):
    done, records = made("ct_rate", tmp_path)
    assert_few_shot(records, LABELS)
    assert [done.counts[split] for split in ("train", "valid", "test")] == [13, 2, 9]
    assert kinds(done) == {"unnamed": 2, "with a missing file": 2}
    assert {r.rescale for r in records.values()} == {None}
    record = records["valid_1_a_1"]
    assert record.split == "test" and record.captions == ("Findings of case 0 no effusion.",)
    assert record.labels == tuple(label for j, label in enumerate(LABELS) if tree.present(0, j))
    twins = [records[f"valid_2_a_{k}"] for k in (1, 2)]
    assert twins[0].visit == twins[1].visit != record.visit and twins[0].patient == twins[1].patient


def test_first_upload_is_rescaled(tmp_path):
    _, records = made("ct_rate", tmp_path, upload=1)
    assert {r.rescale for r in records.values()} == {(1.0, -1024.0)}


def test_both_uploads_read_as_the_same_hounsfield_units(tmp_path):
    found = [made("ct_rate", tmp_path / str(upload), upload=upload)[1] for upload in (1, 2)]
    for name in ("train_2_a_1", "valid_1_a_1"):
        first, second = (rescaled(modality("ct").read(records[name].path), records[name].rescale) for records in found)
        assert first.spacing == pytest.approx(second.spacing) and np.abs(first.array - second.array).max() <= 1
        assert first.array[:, 0, 0].mean() == pytest.approx(-1000, abs=20)


def test_inputs_of_models_are_rescaled(tmp_path):
    """Through the encoder, which keeps inputs: a rescaled volume is not the same input as the file alone."""
    _, records = made("ct_rate", tmp_path, upload=1)
    record = records["valid_1_a_1"]
    encoder = FeatureExtractor(FeatureCache(tmp_path / "cache"))
    raw, hu = (
        np.asarray(encoder.inputs([item], Plain())[0]) for item in (replace(record, rescale=None), record)
    )  # fmt: skip
    assert raw[:, 0, 0].mean() == pytest.approx(24, abs=20) and (hu == raw - 1024).all()


class Plain:
    """A model whose input is the volume."""

    def image_settings(self):
        return {}

    def levels(self):
        return None

    def preprocess(self, sample):
        return torch.from_numpy(sample.array)


def test_folder_of_the_first_upload_with_the_second_inside(tmp_path):
    root = make("ct_rate", tmp_path)
    for split in ("train", "valid"):
        (root / f"{split}_fixed").rename(root / split)
    _, records = run("ct_rate", root, tmp_path / "out")
    assert len(records) == 24 and {r.rescale for r in records.values()} == {None}  # the metadata still states -1024


def test_what_cannot_be_assigned_is_quarantined(tmp_path):
    root = make("ct_rate", tmp_path, upload=1)
    path = root / "valid/valid_1/valid_1_a/valid_1_a_1.nii.gz"
    save_nifti(path, np.full((16, 16, 6), 500.0), tree.SPACING)
    done, records = run("ct_rate", root, tmp_path / "out")
    assert "valid_1_a_1" not in records and kinds(done)["of unclear values"] == 1
    fault = next(f for f in done.faults if f.kind == "of unclear values")
    assert "valid_fixed" in fault.reason and "rename the folder" in fault.reason


def test_reasons_of_single_volumes(tmp_path):
    path = tmp_path / "v.nii.gz"
    save_nifti(path, chest(np.random.default_rng(0), 0) + 1024, (0.7, 0.7, 1.5))
    assert rescale_of(path, SAID) == ("1;-1024", "")
    assert rescale_of(path, SAID | {"RescaleIntercept": "0"}) == ("", "")
    assert "add the table" in rescale_of(path, None)[1]
    assert "the metadata 0.7 x 0.7 x 3" in rescale_of(path, SAID | {"ZSpacing": "3.0"})[1]
    save_nifti(path, chest(np.random.default_rng(0), 0) + 1024, (1, 1, 1))  # the blank header of the first upload
    rescale, reason = rescale_of(path, SAID)
    assert rescale == "" and "1 x 1 x 1 mm, the metadata 0.7 x 0.7 x 1.5" in reason and "fix_metadata" in reason
    path.write_bytes(path.read_bytes()[:200])
    assert "not a readable NIfTI file" in rescale_of(path, SAID)[1]


@given(st.integers(0, 50), st.sampled_from([(1.0, -1024.0), (1.0, -8192.0), (1.0, -1000.0), (0.5, -1024.0)]))
def test_the_reading_follows_the_values(kind, form):
    slope, intercept = form
    values = chest(np.random.default_rng(kind), kind)
    image = nibabel.Nifti1Image(np.round((values - intercept) / slope).astype(np.int16), np.eye(4))
    assert stored_as(image, slope, intercept) == "raw"
    assert stored_as(nibabel.Nifti1Image(np.round(values).astype(np.int16), np.eye(4)), slope, intercept) == "hu"


def test_first_slice_without_a_body():
    """Padding in the first slice: the middle one tells."""
    values = chest(np.random.default_rng(0), 0)
    values[:, :, 0] = -2000
    assert stored_as(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), 1.0, -1024.0) == "hu"


def test_bracketed_spacing():
    assert spacing_difference((0.7, 0.7, 1.5), SAID) == ""
    assert spacing_difference((0.7, 0.7, 1.51), SAID) == ""
    assert "0.8 x 0.8 x 1.5" in spacing_difference((0.8, 0.8, 1.5), SAID)
    for odd in ("", "0.7, 0.7]", "[0.7]", "[__import__('os').getcwd(), 1]", "['a', 'b']", "[[0.7], 0.7]"):
        assert spacing_difference((9, 9, 9), SAID | {"XYSpacing": odd}) == ""


def test_one_reconstruction_per_scan(tmp_path):
    make("ct_rate", tmp_path)
    done, records = run("ct_rate_once", tmp_path / "data", tmp_path / "out")
    assert [done.counts[split] for split in ("train", "valid", "test")] == [12, 2, 8]
    assert "valid_2_a_1" in records and "valid_2_a_2" not in records


def test_scans_of_other_body_parts_are_not_trained_on(tmp_path):
    root = make("ct_rate", tmp_path)
    name = next(path.name for path in (root / "train_fixed").rglob("*_1.nii.gz"))
    for split, listed in (("train", f"dataset/train/{name}"), ("valid", "dataset/valid/valid_1_a_1.nii.gz")):
        (root / "metadata" / f"no_chest_{split}.txt").write_text(f"{listed}\n")
    done, records = run("ct_rate", root, tmp_path / "out")
    assert kinds(done)["of another body part"] == 1 and name.removesuffix(".nii.gz") not in records
    assert "valid_1_a_1" in records
    (root / "metadata" / "no_chest_train.txt").unlink()
    os.mkfifo(root / "metadata" / "no_chest_train.txt")  # opened, it would wait for ever
    with pytest.raises(StoredFileError, match=r"no_chest_train\.txt: not a plain file"):
        run("ct_rate", root, tmp_path / "again")


def test_half_present(tmp_path):
    root = make("ct_rate", tmp_path)
    assert_incomplete("ct_rate", tmp_path, ("radiology_text_reports", "multi_abnormality_labels", "valid_fixed"))
    (root / "train_fixed").rename(root / "elsewhere")
    done, records = run("ct_rate", root, tmp_path / "out")
    assert kinds(done)["without a folder"] == 1 and {r.split for r in records.values()} == {"test"}
    write_csv(root / "multi_abnormality_labels" / "valid_predicted_labels.csv", ("VolumeName",), [])
    with pytest.raises(Exception, match="Medical material"):
        run("ct_rate", root, tmp_path / "out")
    assert modality("ct").read(records["valid_1_a_1"].path).spacing == pytest.approx((1.5, 0.7, 0.7))
