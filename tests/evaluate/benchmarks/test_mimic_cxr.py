from pathlib import Path

import pytest

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from evaluate.benchmarks.trees._mimic import Study
from m3bind.evaluate.benchmarks._mimic import clean_caption, sections
from m3bind.modalities import get

CAPTION = "pneumonia number the cardiac silhouette is unremarkable there is pneumonia at the left base no pneumothorax"


@pytest.mark.parametrize("reports", ["zip", "files"])
def test_frontal_images_with_cleaned_reports(tmp_path: Path, reports: str) -> None:
    make("mimic_cxr", tmp_path, reports=reports)
    done, manifest = prepared("mimic_cxr", tmp_path)
    assert [done.counts[split] for split in ("train", "valid", "test")] == [6, 2, 4]
    assert kinds(done) == {"without a report": 1}
    assert manifest.records[0].captions[0] == CAPTION and manifest.records[0].labels == ("Pneumonia",)
    assert [record.concepts for record in manifest.records[:4]] == [
        ("abnormal",), ("abnormal", "enlarged heart"), ("abnormal",), ("normal",),
    ]  # fmt: skip
    assert all(record.path.name.endswith("-pa.jpg") for record in manifest.records)
    assert get("xray").decode(manifest.records[0].path).array.shape == (48, 48)


def test_sectioned_table(tmp_path: Path) -> None:
    make("mimic_cxr", tmp_path, reports="sectioned")
    _, manifest = prepared("mimic_cxr", tmp_path)
    assert manifest.records[0].captions[0] == "found here in 50414267 again and so on" and len(manifest.records) == 13


def test_sections() -> None:
    assert sections(Study("1", "2").text()) == {
        "findings": "The cardiac silhouette is unremarkable. There is pneumonia at the left base. 2. No pneumothorax. "
        "Stable.",
        "impression": "Pneumonia, number 2.",
    }
    assert sections(" CHEST, PA AND LATERAL:\n\n Clear lungs.\n CONCLUSION: As\n above.\n") == {
        "findings": "Clear lungs.",
        "impression": "As above.",
    }
    assert sections(" IMPRESSION: First.\n IMPRESSION:\n NOTIFICATION: phoned\n IMPRESSION: Second.") == {
        "impression": "Second."
    }
    assert sections(" FINDINGS AND IMPRESSION: Both.\n EXAMINATION:  CHEST (PA AND LAT)") == {"impression": "Both."}
    assert sections("no headers at all") == {}


def test_texts_of_fewer_than_three_words_are_dropped() -> None:
    assert clean_caption("No pneumothorax.", "") == ""
    assert clean_caption("No pneumothorax.", "Lungs are clear.\nStable.") == "no pneumothorax lungs are clear"


def test_images_without_split_or_file_are_quarantined(tmp_path: Path) -> None:
    root = make("mimic_cxr", tmp_path)
    import gzip

    table = root / "mimic-cxr-2.0.0-split.csv.gz"
    lines = gzip.decompress(table.read_bytes()).decode().splitlines()
    (root / "mimic-cxr-2.0.0-split.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")  # unpacked comes first
    next(root.glob("files/p10/p10000033/*/*-pa.jpg")).unlink()
    done, _ = prepared("mimic_cxr", tmp_path)
    assert kinds(done) == {"without a report": 1, "without a split": 1, "with a missing file": 1}


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("mimic_cxr", tmp_path)
    tables = [f"mimic-cxr-2.0.0-{name}.csv.gz" for name in ("metadata", "split")]
    assert_incomplete("mimic_cxr", tmp_path, [*tables, "files", "mimic-cxr-reports.zip"])
