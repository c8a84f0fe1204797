"""Cleaning, templates, concepts, lengths, the shared text pool."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.data import texts
from m3bind.data.texts import (
    clean_text,
    clean_texts,
    concept_phrases,
    describe,
    is_informative,
    length_report,
    unique_texts,
)
from m3bind.errors import ConfigError, ManifestError


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  Heart\tsize\r\n normal .  ", "Heart size normal."),
        ("Normal chest x-XXXX. Inferior XXXX XXXX XXXX. Clear lungs.", "Normal chest x-ray. Clear lungs."),
        ("Sternotomy XXXX are intact.", "Sternotomy are intact."),
        ("Seen by [** Dr Name 12 **] on ___ .", "Seen by on."),
        ("sinusrhythmus linkstyp 4.46 unbestÄtigter bericht", "sinusrhythmus linkstyp"),
        ("linkstyp 4.46 unbestÄtigt", "linkstyp"),
        ("sinus rhythm. Edit: NORM 100, (NORM)", "sinus rhythm."),
        ("ventrikulÄre stÖrung Über v1 f#r r-s #bergang", "ventrikuläre störung über v1 für r-s übergang"),
        ("Das Ödem und der Übergang", "Das Ödem und der Übergang"),
        ("a\x00b\u200bc &lt;5 mm &amp; more", "a bc <5 mm & more"),
        ("drusen, drusen", "drusen"),
        ("medium margin margin, obvious", "medium margin, obvious"),
        ("No disease. .", "No disease."),
        ('the so-called \\"faceless\\" kidney', 'the so-called "faceless" kidney'),
        ("XXXX", ""),
    ],
)
def test_cleaning(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


PIECES = [*'aX .,;:()[]_*#ÄöZ1-\n"\\', "XXXX ", "Edit:", ", a", "&lt;", "&amp;", "4.46 unbestätigt", "word word"]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_cleaning_twice_is_cleaning_once(raw: str) -> None:
    once = clean_text(raw)
    assert clean_text(once) == once
    assert "\n" not in once and "  " not in once and once == once.strip()


@given(st.text(max_size=60))
def test_cleaning_never_fails_and_leaves_no_control_characters(raw: str) -> None:
    assert all(letter.isprintable() or letter.isspace() or ord(letter) > 127 for letter in clean_text(raw))


def test_informative() -> None:
    assert is_informative("drusen") and is_informative("No finding.") and is_informative("ekg")
    for empty in ("", "20/70 and 20/70.", "trace only requested.", "re 20/20 le 20/80", "N/A", "nan"):
        assert not is_informative(empty)


@given(st.lists(st.sampled_from(["a", "A", " a ", "b", "B b", "b  b", "", " "])))
def test_unique_texts_keeps_the_first_of_each_in_order(items: list[str]) -> None:
    kept = unique_texts(items)
    keys = [texts.text_key(text) for text in kept]
    assert len(set(keys)) == len(keys) and set(keys) == {texts.text_key(t) for t in items if t.strip()}
    assert kept == sorted(kept, key=items.index)


def test_xray_labels_become_sentences_in_clinical_order() -> None:
    captions, concepts = describe("nih224", "xray", "pneumonia", ("Effusion", "Pneumonia", "Cardiomegaly"), "")
    assert captions[0] == "Chest X-ray showing pneumonia, pleural effusion and cardiomegaly."
    assert len(captions) == 6 and len(set(captions)) == 6
    assert captions[-1] == "Chest X-ray showing pneumonia."
    assert concepts == ("abnormal", "enlarged heart")
    assert describe("nih224", "xray", "pneumonia", ("Pneumonia", "Effusion", "Cardiomegaly"), "")[0] == captions
    normal, concepts = describe("nih224", "xray", "normal", ("No Finding",), "")
    assert normal[0] == "Chest X-ray with no finding." and concepts == ("normal",)


def test_ecg_statements_are_canonical_and_the_report_is_unchanged() -> None:
    captions, concepts = describe(
        "ptbxl100", "ecg", "HYP|STTC", ("LVH", "SR", "ISC_"), "sinusrhythmus linkshypertrophie"
    )
    assert captions[0] == "ECG: sinus rhythm, left ventricular hypertrophy and non-specific ischemic changes."
    assert "ECG with ST-T changes and cardiac hypertrophy." in captions
    assert captions[-1] == "sinusrhythmus linkshypertrophie"
    assert concepts == ("abnormal", "enlarged heart", "hypertension")
    captions, concepts = describe("ptbxl100", "ecg", "NORM", ("NORM", "SR"), "trace only requested.")
    assert captions[0] == "ECG: sinus rhythm and normal ECG." and concepts == ("normal",)
    assert not any("trace" in caption for caption in captions)
    assert describe("ptbxl100", "ecg", "CD|NORM", ("NORM", "IRBBB"), "")[1] == ("abnormal",)


def test_all_scp_statements_have_english_words(mini5: Path) -> None:
    import csv

    with open(mini5 / "ecg" / "scp_statements.csv", encoding="utf-8") as handle:
        codes = [row[""] for row in csv.DictReader(handle) if row[""]]
    table = texts.find_template("ptbxl100", "ecg").labels
    assert len(codes) == 71 and all(table[texts._label_key(code)]["phrases"] for code in codes)


def test_nodule_captions_remain_and_are_reworded() -> None:
    given_text = (
        "CT volume of a pulmonary nodule, 8 mm, solid texture, sharp margin, obvious; malignancy indeterminate."
    )
    captions, concepts = describe("lidc_voi", "ct", "benign nodule", ("Indeterminate", "calc:Absent"), given_text)
    assert captions[:3] == (
        given_text,
        "Benign nodule, 8 mm, solid texture, sharp margin, obvious.",
        "CT showing a benign nodule of 8 mm.",
    )
    assert concepts == ("benign", "lung nodule")
    assert describe("lidc_voi", "ct", "malignant nodule", (), "")[1] == ("malignant", "abnormal", "lung nodule")


def test_retina_phrases_become_sentences() -> None:
    phrase = "mild nonproliferative retinopathy, hypertensive retinopathy"
    captions, concepts = describe("odir256", "retina", "hypertensive retinopathy", ("H",), phrase)
    assert captions[:2] == (phrase, f"Fundus photograph showing {phrase}.")
    assert set(concepts) == {"abnormal", "hypertension", "diabetes"}
    assert (
        describe("odir256", "retina", "normal fundus", ("N",), "normal fundus, normal fundus")[0][0] == "normal fundus"
    )


def test_pathology_of_both_organs_shares_a_table() -> None:
    assert texts.find_template("lc25000_colon", "pathology") is texts.find_template("lc25000", "pathology")
    captions, concepts = describe("lc25000_colon", "pathology", "colon adenocarcinoma", ("colon_aca",), "")
    assert captions[0] == "H&E tile of colon adenocarcinoma." and concepts == ("malignant", "abnormal")
    assert describe("lc25000", "pathology", "benign lung tissue", (), "")[1] == ("benign", "normal")


def test_virtual_patients_keep_their_report_only() -> None:
    captions, concepts = describe(
        "phantom", "xray", "hypertensive heart disease", ("cardiomegaly", "unfolded aorta"), "A report."
    )
    assert captions == ("A report.",) and concepts == ("abnormal", "hypertension", "enlarged heart")
    assert describe("phantom", "retina", "hypertensive heart disease", ("flame haemorrhages",), "A report.")[1] == (
        "abnormal",
        "hypertension",
    )
    assert describe("phantom", "ecg", "healthy", ("normal sinus rhythm",), "A report.")[1] == ("normal",)


def test_unknown_sets_get_generic_sentences() -> None:
    captions, concepts = describe("my_clinic", "xray", "", ("rib_fracture", "Cardiomegaly"), "")
    assert captions[0] == "Chest X-ray showing cardiomegaly and rib fracture."
    assert concepts == ("abnormal", "enlarged heart")
    assert describe("my_clinic", "retina", "Normal", (), "")[1] == ("normal",)
    assert describe("my_clinic", "ultrasound", "gallstone", (), "")[0][0] == "ultrasound showing gallstone."
    assert describe("my_clinic", "xray", "", (), " XXXX ") == ((), ())


def test_own_templates_come_first_and_are_checked(tmp_path: Path) -> None:
    (tmp_path / "nih224.yaml").write_text(
        "sentences: ['{Findings}!']\nlabels: {a_b: {phrases: [alpha], concepts: [c]}}"
    )
    assert describe("nih224", "xray", "A b", (), "", tmp_path) == (("Alpha!",), ("c",))
    (tmp_path / "bad.yaml").write_text("sentence: ['{Findings}!']")
    with pytest.raises(ConfigError, match=r"not a template.*sentence"):
        describe("bad", "xray", "a", (), "", tmp_path)


@pytest.mark.parametrize("file", sorted(texts.TEMPLATES.glob("*.yaml")), ids=lambda file: file.stem)
def test_template_files_are_sound(file: Path) -> None:
    if file.stem == "concepts":
        assert all(phrases[0] == name for name, phrases in texts.concept_table().items())
        return
    template = texts.load_template(file)
    for entry in template.labels.values():
        assert set(entry) <= {"phrases", "concepts", "alone"}
        assert set(entry.get("concepts", [])) <= set(texts.concept_table())
    for sentence in (*template.sentences, template.label_sentence):
        sentence.format(findings="x", Findings="X", title="T")


def test_concept_phrases() -> None:
    assert concept_phrases("normal")[0] == "normal" and len(concept_phrases("normal")) > 2
    assert concept_phrases("gallstone") == ("gallstone",)
    wordings = [phrase for name in texts.concept_table() for phrase in concept_phrases(name)]
    assert len(set(wordings)) == len(wordings)


def test_length_report() -> None:
    report = length_report([" ".join("w" * n) for n in range(1, 101)] + ["W"])
    assert (report.texts, report.distinct, report.longest) == (101, 100, 100)
    assert report.percentiles == {10: 10, 50: 50, 90: 90, 99: 99} and "101 texts" in str(report)
    assert length_report([]).mean == 0


def test_corpus_file(tmp_path: Path) -> None:
    path = tmp_path / "c.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as handle:
        handle.write(
            'modality,source,licence,text\ncxr,a,x,"Clear XXXX lungs, no effusion."\ncxr,a,x,clear lungs, none.\n'
        )
        handle.write("cxr,a,x,20/20 and 20/30.\nhisto,b,y,Clear lungs\nhisto,b,y,CLEAR  lungs\n")
    corpus = texts.load_extra_texts(path)
    assert [(c.modality, c.text) for c in corpus] == [
        ("xray", "Clear lungs, no effusion."),
        ("xray", "clear lungs"),
        ("pathology", "Clear lungs"),
    ]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError, match="cannot be read"):
        texts.load_extra_texts(path)
    (tmp_path / "d.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ManifestError, match="no column 'modality', 'text'"):
        texts.load_extra_texts(tmp_path / "d.csv")


def test_real_corpus(mini5: Path) -> None:
    corpus = texts.load_extra_texts(mini5 / "text" / "corpus.csv.gz")
    assert {c.modality for c in corpus} == {"xray", "ct", "retina", "ecg", "pathology"}
    assert 16_000 < len(corpus) < 17_545
    for c in corpus:
        assert "XXXX" not in c.text and "unbestätigter" not in c.text and "\n" not in c.text


TOUCHED = [
    "heart",
    "heart",
    "xx",
    "XXXX",
    "x-",
    ",",
    ";",
    ":",
    ".",
    "!",
    "?",
    "(",
    ")",
    "[",
    "]",
    "_",
    "__",
    "&",
    "amp;",
]
TOUCHED += [
    "#",
    "ber",
    "\u00dc",
    "\u00fc",
    "u\u0308",
    "\u017f",
    "unbe",
    "stat",
    "igt",
    "Edit:",
    "1.5",
    "\\",
    '"',
    "<unk>",
]
TOUCHED += ["\u200b", "\u00ad", "\ue000", "drusen,", "name", "-", "'", "\u4f60\u597d", "\U0001f600", "\u0378", "9"]
SPACES = [" ", " ", "  ", "\t", "\n", "\x1c", "\x85", "\u00a0", "\u2028"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.sampled_from(TOUCHED + SPACES), max_size=9).map("".join), max_size=30))
def test_many_texts_are_cleaned_as_one(texts):
    assert clean_texts(texts) == [clean_text(text) for text in texts]
