from pathlib import Path

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from evaluate.benchmarks.trees.flair_assembly import ATTACK
from m3bind.evaluate.benchmarks.odir5k import LETTERS, plain_keywords


def test_images_are_split_by_patient(tmp_path: Path) -> None:
    make("odir5k", tmp_path)
    done, manifest = prepared("odir5k", tmp_path)
    for name in LETTERS.values():
        more = int(name == "other")  # the right eye of the patient whose left image shows no fundus
        assert [done.counts[f"{split}/{name}"] for split in ("train", "valid", "test")] == [6 + more, 2, 4]
    eyes: dict[str, set[str]] = {}
    for record in manifest.records:
        eyes.setdefault(record.patient, set()).add(record.split)
    assert all(len(splits) == 1 for splits in eyes.values()) and len(eyes) == done.counts["patients"] == 8 * 6 + 1


def test_the_class_is_the_eyes_own(tmp_path: Path) -> None:
    root = make("odir5k", tmp_path)
    table = root / "full_df.csv"
    rows = table.read_text().splitlines()
    rows[1] = rows[1].replace("['N']", "\"['D', 'H']\"")  # the patient's letters stay those of a normal one
    table.write_text("\n".join(rows) + "\n")
    _, manifest = prepared("odir5k", tmp_path)
    assert manifest.records[0].label == "diabetes" and manifest.records[0].labels == ("diabetes", "hypertension")


def test_keywords_get_plain_commas(tmp_path: Path) -> None:
    make("odir5k", tmp_path)
    _, manifest = prepared("odir5k", tmp_path)
    captions = {record.label: record.captions[0] for record in manifest.records}
    assert captions["diabetes"] == "moderate non proliferative retinopathy, lens dust"
    assert plain_keywords("a\uff0cb,c \uff0c") == "a, b, c"


def test_images_of_no_fundus_and_malicious_cells_are_quarantined(tmp_path: Path) -> None:
    root = make("odir5k", tmp_path)
    table = root / "full_df.csv"
    table.write_text(table.read_text().replace("['N']", f'"{ATTACK}"', 1))
    done, _ = prepared("odir5k", tmp_path)
    assert kinds(done) == {"not a fundus photograph": 1, "with a bad list": 1}
    assert not Path("pwned").exists()


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("odir5k", tmp_path)
    assert_incomplete("odir5k", tmp_path, ["full_df.csv", "preprocessed_images"])
