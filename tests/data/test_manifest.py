"""Reading manifests: formats, defaults, ten kinds of bad rows, rules across rows."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from m3bind.data import format_bad_rows, leak_check, patient_splits, read_manifest, usable_modalities
from m3bind.errors import ConfigError, ManifestError, UnknownNameError

Make = Callable[..., Path]
HEADER = ["id", "modality", "set", "path", "label", "labels", "caption", "patient", "split", "licence"]


def row(i: int, **changes: str) -> dict[str, str]:
    base = dict.fromkeys(HEADER, "")
    base |= {"id": f"i{i}", "modality": "xray", "set": "s", "path": f"f{i}.png", "caption": f"text number {i} here"}
    return base | {"patient": f"p{i}", "split": "train"} | changes


def write(folder: Path, rows: list[dict[str, str]], files: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    with open(folder / "m.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    for entry in rows:
        if files and not (folder / entry["path"]).exists():
            (folder / entry["path"]).write_bytes(b"content " + entry["path"].encode())
    return folder / "m.csv"


def test_smallest_manifest_and_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3BIND_IDENTIFIERS", "show")
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"y")
    (tmp_path / "m.csv").write_text(
        "Path,Modality,Text\na.png,XRAY,Clear XXXX lungs.\na.png,cxr,Heart enlarged.\nb.png,retina,Drusen.\n"
    )
    records = read_manifest(tmp_path / "m.csv").records
    assert [r.id for r in records] == ["a.png", "a.png#2", "b.png"]
    assert [r.modality for r in records] == ["xray", "xray", "retina"]
    first = records[0]
    assert first.path == tmp_path / "a.png" and first.captions == ("Clear lungs.",) and first.set == "xray"
    assert first.patient == records[1].patient == "a.png"
    assert first.split == records[1].split == patient_splits(["a.png"])["a.png"]


def test_all_formats_give_the_same_records(tmp_path: Path) -> None:
    rows = [row(i, label="normal", labels="a|b", caption="" if i else 'Quoted "text", two\nlines.') for i in range(4)]
    expected = read_manifest(write(tmp_path, rows)).records
    assert expected[0].captions[0] == 'Quoted "text", two lines.' and expected[1].labels == ("a", "b")
    frame = pandas.DataFrame(rows).replace("", None)
    frame["labels"] = [["a", "b"]] * 4
    frame.to_parquet(tmp_path / "m.parquet")
    frame.to_json(tmp_path / "m.jsonl", orient="records", lines=True)
    pandas.DataFrame(rows).to_csv(tmp_path / "m.tsv.gz", sep="\t", index=False)
    for name in ("m.parquet", "m.jsonl", "m.tsv.gz"):
        assert read_manifest(tmp_path / name).records == expected


def test_a_folder_is_a_file_where_a_modality_reads_series(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    lines = ["modality,path,label", "ct,series,nodule", "xray,series,nodule", "ct,empty,nodule"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    found = read_manifest(tmp_path / "m.csv")
    assert [record.path for record in found.records] == [tmp_path / "series"]
    assert [bad.reason for bad in found.bad] == ["the path is a folder, not a file"] * 2


def test_patients_are_salted_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(i, patient=f"Doe{i // 2}") for i in range(4)]
    path = write(tmp_path, rows)
    first, again = ([r.patient for r in read_manifest(path).records] for _ in range(2))
    assert first == again and first[0] == first[1] != first[2] == first[3] and "Doe" not in "".join(first)
    monkeypatch.setenv("M3BIND_SALT", "pepper")
    assert [r.patient for r in read_manifest(path).records] != first
    monkeypatch.setenv("M3BIND_IDENTIFIERS", "show")
    assert [r.patient for r in read_manifest(path).records] == ["Doe0", "Doe0", "Doe1", "Doe1"]


BAD = {
    "unknown modality": (row(50, modality="xrai"), "unknown modality 'xrai'; did you mean 'xray'?"),
    "shifted columns": (row(51, modality="Heart size is normal. No acute disease."), "columns shifted"),
    "missing file": (row(52, path="gone.png"), "no such file"),
    "missing folder": (row(53, path="gone/f.png"), "its folder does not exist"),
    "duplicate id": (row(54, id="i3"), "same id as row 5"),
    "empty text": (row(55, caption=" XXXX "), "the text is empty and labels are missing"),
    "unknown split": (row(56, split="holdout"), "unknown split 'holdout'; use train, valid, test"),
    "path outside": (row(57, path="../f.png"), "leads out of the data folder"),
    "absolute path": (row(58, path="/etc/hostname"), "leads out of the data folder"),
    "other kind": (row(59, modality="ct", path="notes.txt"), "ct reads .nii.gz .nii"),
    "empty file": (row(60, path="empty.png"), "the file is empty"),
    "no path": (row(61, path=""), "no path"),
    "folder": (row(62, path="folder.png"), "a folder, not a file"),
    "leak": (row(63, patient="p4", split="test"), "leak: its patient is in test too (row"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_one_bad_row_is_quarantined_and_the_rest_continues(tmp_path: Path, name: str) -> None:
    bad, reason = BAD[name]
    folder = tmp_path / "data"
    path = write(folder, [row(i) for i in range(10)])
    (tmp_path / "f.png").write_bytes(b"x")
    for file in ("f54.png", "f55.png", "f56.png", "f51.png", "f50.png", "f63.png", "notes.txt"):
        (folder / file).write_bytes(file.encode())
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    with open(path, "a", newline="", encoding="utf-8") as handle:
        csv.DictWriter(handle, HEADER).writerow(bad)
    manifest = read_manifest(path)
    assert len(manifest.records) == 10 and len(manifest.bad) == 1
    assert reason in manifest.bad[0].reason
    assert manifest.bad[0].row == (6 if name == "leak" else 12)
    for entry in (*manifest.bad, manifest.report()):
        assert "text number" not in str(entry) and "Heart size" not in str(entry)
    assert "p4" not in manifest.bad[0].reason


def test_broken_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = write(tmp_path, [row(i) for i in range(30)])
    lines = path.read_bytes().split(b"\r\n")
    lines[3] = lines[3].replace(b"text number", b"te\xe4xt number")  # Latin-1
    lines[7] = lines[7] + b",one,more"
    lines[11] = lines[11].replace(b"text number", b'"text number')  # never closed
    lines[15] = b"too,few"
    lines[20] = b""
    path.write_bytes(b"\r\n".join(lines))
    manifest = read_manifest(path)
    assert [bad.row for bad in manifest.bad] == [4, 8, 12, 16]
    reasons = [bad.reason for bad in manifest.bad]
    assert "column caption is not UTF-8" in reasons[0] and "12 cells, the header has 10" in reasons[1]
    assert "quotation mark" in reasons[2] and "2 cells" in reasons[3]
    assert {r.id for r in manifest.records} == {f"i{i}" for i in range(30)} - {"i2", "i6", "i10", "i14", "i19"}


def test_broken_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path, [row(i) for i in range(3)])
    lines = [json.dumps(row(0)), "{broken", "[1, 2]", "", json.dumps(row(2))]
    path.with_suffix(".jsonl").write_text("\n".join(lines))
    manifest = read_manifest(path.with_suffix(".jsonl"))
    assert [bad.row for bad in manifest.bad] == [2, 3] and [r.id for r in manifest.records] == ["i0", "i2"]


def test_the_same_file_in_two_modalities_is_quarantined_everywhere(tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2, modality="retina", path="f1.png"), row(3, modality="retina", path="./f0b.png")]
    path = write(tmp_path, rows)
    (tmp_path / "f0b.png").unlink()
    (tmp_path / "f0b.png").hardlink_to(tmp_path / "f0.png")  # the same content under another name
    with pytest.raises(ManifestError, match="no usable row; 4 rows quarantined"):
        read_manifest(path)
    manifest = read_manifest(write(tmp_path, [*rows, row(9)]))
    assert [r.id for r in manifest.records] == ["i9"]
    assert manifest.bad[1].reason == "the same file is retina in row 4 and xray here"


def test_test_wins_over_valid_over_train_and_nothing_leaks(tmp_path: Path) -> None:
    rows = [row(i, patient="a", split=s) for i, s in enumerate(["train", "valid", "test", "train"])]
    rows += [row(4, patient="b", split="train"), row(5, patient="b", split="val"), row(6, patient="b", split="")]
    rows += [row(7, patient="c", split="", path="f2.png")]  # the file of a test row, under another patient
    manifest = read_manifest(write(tmp_path, rows), fractions={"train": 1.0})
    assert [(r.id, r.split) for r in manifest.records] == [("i2", "test"), ("i5", "valid"), ("i6", "valid")]
    assert leak_check(manifest.records) == []
    assert "its file is in test too (row 4)" in manifest.bad[-1].reason


def test_rows_without_split_follow_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3BIND_IDENTIFIERS", "show")
    path = write(tmp_path, [row(i, split="") for i in range(60)])
    records = read_manifest(path, seed=5).records
    assert {r.patient: r.split for r in records} == patient_splits([f"p{i}" for i in range(60)], seed=5)
    assert len({r.split for r in records}) == 3
    with pytest.raises(ConfigError, match="fractions"):
        read_manifest(path, fractions={"train": 0.2})


def test_ecg_records_are_named_without_ending(tmp_path: Path, make_ecg: Make) -> None:
    make_ecg(tmp_path / "rec")
    rows = [row(0, modality="ecg", path="rec"), row(1, modality="ecg", path="gone")]
    manifest = read_manifest(write(tmp_path, rows, files=False))
    assert manifest.records[0].path == tmp_path / "rec" and manifest.bad[0].reason == "no such file"


def test_filters(tmp_path: Path) -> None:
    rows = [row(0), row(1, set="t"), row(2, modality="retina"), row(3, set="t", path="missing/x.png")]
    path = write(tmp_path, rows[:3])
    path = write(tmp_path, rows, files=False)
    assert [r.id for r in read_manifest(path, sets=["s"]).records] == ["i0", "i2"]
    assert read_manifest(path, sets=["s"]).bad == []
    assert [r.id for r in read_manifest(path, modalities=["retina"]).records] == ["i2"]
    with pytest.raises(UnknownNameError, match=r"unknown set in m.csv 'u'"):
        read_manifest(path, sets=["u"])
    with pytest.raises(UnknownNameError, match="unknown modality 'retin'; did you mean 'retina'"):
        read_manifest(path, modalities=["retin"])


def test_root_and_templates(tmp_path: Path) -> None:
    write(tmp_path / "images", [row(0, caption="", label="normal")])
    (tmp_path / "lists").mkdir()
    (tmp_path / "images" / "m.csv").rename(tmp_path / "lists" / "m.csv")
    (tmp_path / "s.yaml").write_text("sentences: ['Seen: {findings}.']")
    manifest = read_manifest(tmp_path / "lists" / "m.csv", root=tmp_path / "images", templates=tmp_path)
    assert manifest.records[0].captions == ("Seen: normal.",)
    with pytest.raises(ManifestError, match=r"no such folder; .*root"):
        read_manifest(tmp_path / "lists" / "m.csv", root=tmp_path / "gone")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("path,caption\na,b\n", "no column 'modality'"),
        ("modality,path\na,b\n", "none of the columns caption, label, labels"),
        ("modality,path,caption,text\n", "two columns mean 'caption'"),
        ("modality,path,caption\n", "the table is empty"),
    ],
)
def test_unusable_tables(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "m.csv")


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "gone.csv")
    for name, message in (
        ("m.xlsx", "a manifest is a .csv"),
        ("m.parquet", "cannot be read"),
        ("m.csv.gz", "no column"),
    ):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ManifestError, match=message):
            read_manifest(tmp_path / name)


def test_report_shows_twenty_rows_and_counts_the_rest(tmp_path: Path) -> None:
    rows = [row(i) for i in range(3)] + [row(100 + i, path=f"img{i}.png") for i in range(30)]
    path = write(tmp_path, rows[:3])
    path = write(tmp_path, rows, files=False)
    lines = read_manifest(path).report().splitlines()
    assert lines[:2] == ["m.csv: 3 usable rows", "  xray: 3 train"]
    assert lines[2] == "30 rows quarantined (30 with a missing file)" and lines[-1] == "  ... and 10 more"
    assert lines[3] == "  row 5: no such file  [img0.png]" and len(lines) == 24
    assert format_bad_rows([]) == "no bad rows"


def test_three_per_cent_bad_rows_of_ten_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    kinds = [bad for name, (bad, _) in BAD.items() if name not in ("leak", "other kind", "empty file", "folder")]
    path = write(folder, [row(1000 + i) for i in range(323)] + [row(3)])
    for bad in kinds:
        if "/" not in bad["path"] and "gone" not in bad["path"] and bad["path"]:
            (folder / bad["path"]).write_bytes(bad["path"].encode())
    with open(path, "a", newline="", encoding="utf-8") as handle:
        csv.DictWriter(handle, HEADER).writerows(kinds)
    manifest = read_manifest(path)
    assert len(manifest.records) == 324 and len(manifest.bad) == 10
    assert [bad.row for bad in manifest.bad] == list(range(326, 336))


def test_usable_modalities(tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2, modality="retina"), row(3, modality="retina", split="test")]
    records = read_manifest(write(tmp_path, rows)).records
    usable, problems = usable_modalities(records)
    assert usable == ("xray",) and problems == [
        "retina has 1 train samples, at least 2 are needed; add files or leave this modality out"
    ]
    assert usable_modalities(records, 1) == (("xray", "retina"), [])


def test_mini5_has_no_bad_row(mini5: Path) -> None:
    manifest = read_manifest(mini5 / "manifest.csv")
    assert len(manifest.records) == 6637 and manifest.bad == []
    assert manifest.counts()["ct"] == {"train": 1602, "valid": 84, "test": 212}
    assert usable_modalities(manifest.records)[1] == []
    normal = {r.modality for r in manifest.records if "normal" in r.concepts}
    assert normal == {"xray", "retina", "ecg", "pathology"}
    assert {r.modality for r in manifest.records if "malignant" in r.concepts} == {"ct", "pathology"}
    assert all(r.captions and len(set(r.captions)) == len(r.captions) for r in manifest.records)


def test_a_patient_written_in_several_ways_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3BIND_IDENTIFIERS", "show")
    written = ["10001", "10001.0", " 10001", "'10001", "1.0001e4", "10002"]
    rows = [row(i, patient=patient, split="") for i, patient in enumerate(written)]
    path = write(tmp_path, rows)
    found = read_manifest(path).records
    assert [r.patient for r in found] == ["10001"] * 5 + ["10002"] and len({r.split for r in found[:5]}) == 1
    lines = [json.dumps({**entry, "patient": patient}) for entry, patient in zip(rows, [10001, 10001.0, "10001"])]
    path.with_suffix(".jsonl").write_text("\n".join(lines))
    assert {r.patient for r in read_manifest(path.with_suffix(".jsonl")).records} == {"10001"}
    frame = pandas.DataFrame([{**entry, "patient": p} for entry, p in zip(rows, [10001.0, None, 10002.0])])
    frame.to_parquet(path.with_suffix(".parquet"))
    assert [r.patient for r in read_manifest(path.with_suffix(".parquet")).records] == ["10001", "i1", "10002"]


def test_patients_that_say_nothing_are_not_one_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3BIND_IDENTIFIERS", "show")
    rows = [row(i, patient=patient) for i, patient in enumerate(["nan", "NULL", "N/A", "None", " "])]
    assert [r.patient for r in read_manifest(write(tmp_path, rows)).records] == ["i0", "i1", "i2", "i3", "i4"]


def test_doubtful_patients_are_counted_not_named(tmp_path: Path) -> None:
    rows = [row(i, patient=patient) for i, patient in enumerate(["007", "7", "1.23457E+11", "1.23457E+11"])]
    manifest = read_manifest(write(tmp_path, rows))
    assert len(manifest.notes) == 2 and "leading zeros" in manifest.notes[0] and "2 rows" in manifest.notes[1]
    assert "007" not in " ".join(manifest.notes) and manifest.notes[0] in manifest.report()


def test_labels_that_differ_in_case_or_blanks_are_one(tmp_path: Path) -> None:
    labels = ["Pneumonia", "pneumonia", "PNEUMONIA ", "pneumonia", "pneumonia\u00a0", "nan", "null", "Normal", "normal"]
    rows = [row(i, label=label, caption="", labels=f"Effusion|{label}") for i, label in enumerate(labels)]
    manifest = read_manifest(write(tmp_path, rows))
    assert [r.label for r in manifest.records] == ["pneumonia"] * 5 + ["", ""] + ["Normal"] * 2
    assert {r.labels for r in manifest.records[:5]} == {("Effusion", "pneumonia")}
    assert len({r.captions for r in manifest.records[:5]}) == 1  # texts are made of the one spelling
    assert [note[:12] for note in manifest.notes] == ["'pneumonia',", "'Normal', 'n"]
    labels = [row(i, label=label, caption="") for i, label in enumerate(["nan", "normal"])]
    manifest = read_manifest(write(tmp_path / "only", labels))
    assert [bad.reason[:17] for bad in manifest.bad] == ["the text is empty"] and len(manifest.records) == 1


def test_paths_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    for name in ("n/a.png", "n/Ma\u0308rz.png", "n/Ju\u0308li.png"):
        (tmp_path / name).write_bytes(name.encode())
    paths = ["n\\a.png", "n\\M\u00e4rz.png", "n/J\u00fcli.png", "C:\\data\\x.png"]
    rows = [row(i, path=path) for i, path in enumerate(paths)]
    manifest = read_manifest(write(tmp_path, rows, files=False))
    assert [r.path.name for r in manifest.records] == ["a.png", "Ma\u0308rz.png", "Ju\u0308li.png"]
    assert "of another computer" in manifest.bad[0].reason
