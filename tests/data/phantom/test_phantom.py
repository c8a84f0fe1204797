"""Virtual patients: state, renderings, reports and cohort."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import wfdb
from PIL import Image
from scipy.signal import find_peaks

from m3bind.core.files import sha256_file
from m3bind.data import phantom
from m3bind.data.phantom.cohort import HEADER, make_settings, plan
from m3bind.data.phantom.fundus import lesion_count
from m3bind.data.phantom.reports import phrasings
from m3bind.data.phantom.state import table
from m3bind.data.phantom.thorax import line_integrals
from m3bind.errors import ConfigError, UnknownNameError


def patient(syndrome: str, severity: int = 3, seed: int = 5) -> phantom.PatientState:
    """A patient without incidental findings."""
    state = phantom.sample_state(np.random.default_rng(seed), syndrome, severity)
    return phantom.PatientState(state.syndrome, state.severity, state.grade, state.side, state.anatomy)


def drawn(state: phantom.PatientState, modality: str, seed: int = 0) -> np.ndarray:
    return phantom.render(state, modality, np.random.default_rng(seed))


def heart_ratio(volume: np.ndarray) -> float:
    """Cardiothoracic ratio measured on the fine volume: widest soft tissue between the lungs over lung to lung."""
    lung = (volume < -500).sum(1) > 12
    best = 0.0
    for row in lung[34:70]:
        left, right = np.flatnonzero(row[:72]), np.flatnonzero(row[72:])
        if len(left) and len(right):
            best = max(best, (72 + right.min() - left.max()) / (72 + right.max() - left.min()))
    return best


def beats(signal: np.ndarray) -> np.ndarray:
    """R peak sample numbers from the energy of all leads' slopes."""
    energy = np.abs(np.diff(signal, axis=1)).sum(0)
    energy = np.convolve(energy, np.ones(6) / 6, "same")
    return find_peaks(energy, height=0.45 * np.quantile(energy, 0.99), distance=28)[0]


def p_height(signal: np.ndarray) -> float:
    """Mean height of lead II over the line from 0.25 s to 0.06 s before the QRS, averaged over beats, so that waves
    that are not locked to the beat cancel."""
    mean = np.mean([signal[1, p - 25 : p - 6] for p in beats(signal) if 30 < p < 990], axis=0)
    line = np.linspace(mean[:3].mean(), mean[-3:].mean(), len(mean))
    return float((mean - line)[4:15].mean())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "two"
    phantom.generate(folder, patients=12, seed=3, workers=2)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.whole
def test_any_number_of_workers_gives_the_same_bytes(cohort: Path, tmp_path: Path) -> None:
    phantom.generate(tmp_path / "one", patients=12, seed=3, workers=1)
    assert digests(tmp_path / "one") == digests(cohort)


def test_finished_cohort_is_reused_and_other_settings_refused(cohort: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in cohort.rglob("*")}
    phantom.generate(cohort, patients=12, seed=3)
    assert before == {p: p.stat().st_mtime_ns for p in cohort.rglob("*")}
    with pytest.raises(ConfigError, match="other settings"):
        phantom.generate(cohort, patients=12, seed=4)


def test_interrupted_generation_continues(cohort: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cohort"
    shutil.copytree(cohort, copy)
    (copy / "manifest.csv").unlink()
    for name in ("p0003", "p0011"):
        shutil.rmtree(copy / "patients" / name)
    (copy / "patients" / ".p0003.999999999.tmp").mkdir()
    seen: list[tuple[int, int]] = []
    phantom.generate(copy, patients=12, seed=3, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert digests(copy) == digests(cohort)
    assert not list((copy / "patients").glob(".*"))


def test_killed_generation_leaves_whole_patients_only(tmp_path: Path) -> None:
    code = f"from m3bind.data import phantom; phantom.generate({str(tmp_path / 'c')!r}, patients=40, workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and len(list((tmp_path / "c" / "patients").glob("p*"))) < 2:
        time.sleep(0.05)
    assert process.poll() is None, "generation ended or failed before it could be killed"
    process.kill()
    process.wait()
    wanted = {p.name: p.modalities for p in plan(make_settings(40, 0, None, (0.6, 0.1, 0.3)))}
    for folder in (tmp_path / "c" / "patients").glob("p*"):
        assert {f.name.split(".")[0] for f in folder.iterdir()} == set(wanted[folder.name])
    assert not (tmp_path / "c" / "manifest.csv").exists()


def test_manifest_splits_and_modalities(cohort: Path) -> None:
    split_of: dict[str, set[str]] = {}
    have: dict[str, set[str]] = {}
    for row in rows(cohort):
        split_of.setdefault(row["patient"], set()).add(row["split"])
        have.setdefault(row["patient"], set()).add(row["modality"])
    assert all(len(splits) == 1 for splits in split_of.values())
    for name, splits in split_of.items():
        if splits == {"test"}:
            assert have[name] == set(phantom.MODALITIES)
    assert {"train", "test"} <= set().union(*split_of.values())


def test_plan_counts_are_exact_and_unbalanced() -> None:
    settings = make_settings(600, 0, None, (0.6, 0.1, 0.3))
    patients = plan(settings)
    learners = [p for p in patients if p.split != "test"]
    assert (len(learners), len(patients) - len(learners)) == (420, 180)
    counts = {m: sum(m in p.modalities for p in learners) for m in phantom.MODALITIES}
    assert all(abs(counts[m] - settings.counts[m]) <= 1 for m in counts)
    assert counts["xray"] > 3 * counts["pathology"]
    test = [p.state.syndrome for p in patients if p.split == "test"]
    assert {test.count(name) for name in phantom.syndromes()} <= set(range(13, 18))


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        phantom.generate(tmp_path, patients=4, counts={"x-ray": 3})
    with pytest.raises(ConfigError, match="fractions"):
        phantom.generate(tmp_path, patients=4, fractions=(0.5, 0.1, 0.1))
    with pytest.raises(ConfigError, match="patients"):
        phantom.generate(tmp_path, patients=0)
    with pytest.raises(UnknownNameError):
        phantom.sample_state(np.random.default_rng(0), "influenza")


def test_files_are_readable_and_labelled_synthetic(cohort: Path) -> None:
    assert json.loads((cohort / "cohort.json").read_text())["synthetic"] is True
    for row in rows(cohort):
        path = cohort / row["path"]
        assert row["licence"] == "synthetic" and row["synthetic"] == "true" and row["report_header"] == HEADER
        if row["modality"] == "ct":
            image = nibabel.load(path)
            assert "synthetic" in bytes(image.header["descrip"]).decode()
            assert image.shape == (96, 96, 32) and image.get_data_dtype() == np.int16
            assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
            assert np.allclose(image.header.get_zooms(), (3.75, 3.75, 10.0))
        elif row["modality"] == "ecg":
            record = wfdb.rdrecord(str(path))
            assert "synthetic" in " ".join(record.comments) and record.fs == 100
            assert record.p_signal.shape == (1000, 12) and record.sig_name[:3] == ["I", "II", "III"]
            assert set(record.units) == {"mV"} and np.isfinite(record.p_signal).all()
        else:
            picture = Image.open(path)
            assert "synthetic" in picture.text["Description"]
            assert picture.size == (224, 224) and picture.mode == ("L" if row["modality"] == "xray" else "RGB")


def test_hounsfield_units_are_plausible() -> None:
    scan = drawn(patient("healthy"), "ct")
    assert scan.dtype == np.int16 and scan.shape == (32, 96, 96)
    assert abs(float(np.median(scan[:, :8])) + 1000) < 30  # air around the body
    middle = scan[18, 30:66, 20:32]  # right lung
    assert -920 < np.median(middle) < -780
    heart = scan[13, 36:44, 48:56]
    assert 0 < np.median(heart) < 90
    assert scan.max() > 250  # bone


@pytest.mark.parametrize("syndrome", ["healthy", "pneumonia", "mitochondrial cardiomyopathy"])
def test_xray_is_the_projection_of_the_ct(syndrome: str) -> None:
    state = patient(syndrome, 2)
    scan = drawn(state, "ct").astype(np.float32)
    shown = drawn(state, "xray").astype(np.float32)
    projected = line_integrals(scan, 3.75)[::-1]
    x = np.clip((np.arange(224) + 0.5) / 224 * 320 - 160, -178, 178)
    columns = np.clip(((x + 180) / 3.75).astype(int), 0, 95)
    lines = (np.arange(224) * 32 // 224).astype(int)
    own = np.corrcoef(projected[lines][:, columns].ravel(), shown.ravel())[0, 1]
    mirrored = np.corrcoef(projected[lines][:, columns[::-1]].ravel(), shown.ravel())[0, 1]
    assert own > 0.9
    assert own > mirrored


def test_same_state_same_chest() -> None:
    state = patient("sarcoidosis")
    assert np.array_equal(phantom.chest(state), phantom.chest(state))
    assert np.array_equal(drawn(state, "ecg", 1), drawn(state, "ecg", 1))
    assert not np.array_equal(drawn(state, "ecg", 1), drawn(state, "ecg", 2))


def test_heart_grows_with_severity() -> None:
    def ratios(syndrome: str, severity: int) -> float:
        return float(np.mean([heart_ratio(phantom.chest(patient(syndrome, severity, seed))) for seed in range(3)]))

    healthy = ratios("healthy", 1)
    for syndrome in ("hypertensive heart disease", "mitochondrial cardiomyopathy"):
        mild, moderate, severe = (ratios(syndrome, level) for level in (1, 2, 3))
        assert healthy < mild < moderate < severe
    assert ratios("COPD with glaucoma", 3) < healthy


def test_lesions_grow_with_severity() -> None:
    for syndrome, finding in (("diabetes with coronary disease", "diabetic retinopathy"), ("pneumonia", "Roth spots")):
        counts = [lesion_count(patient(syndrome, level), finding) for level in (1, 2, 3)]
        assert counts == sorted(counts) and counts[0] < counts[2]
    assert lesion_count(patient("healthy"), "diabetic retinopathy") == 0
    dark = []
    for level in (1, 2, 3):
        tiles = np.stack([drawn(patient("pneumonia", level), "pathology", s) for s in range(3)]).astype(int)
        dark.append((tiles.sum(-1) < 330).mean())
    assert dark[0] < dark[1] < dark[2]
    blood = []
    for level in (1, 2, 3):
        eye = drawn(patient("lung squamous cell carcinoma", level), "retina").astype(int)
        blood.append(((eye[..., 0] > 90) & (eye[..., 0] < 150) & (eye[..., 1] < 40)).sum())
    assert blood[0] < blood[1] < blood[2]


def test_atrial_fibrillation_is_irregular_without_p() -> None:
    for seed in range(4):
        flutter = drawn(patient("atrial fibrillation with heart failure", 1), "ecg", seed)
        sinus = drawn(patient("healthy"), "ecg", seed)
        spread = [float(np.std(rr) / np.mean(rr)) for rr in (np.diff(beats(flutter)), np.diff(beats(sinus)))]
        assert spread[0] > 0.12 and spread[1] < 0.06
        assert p_height(sinus) > 0.03 and p_height(flutter) < 0.4 * p_height(sinus)


def test_voltage_rate_and_conduction() -> None:
    def signal(syndrome: str, severity: int = 3) -> np.ndarray:
        return drawn(patient(syndrome, severity), "ecg")

    def height(s: np.ndarray) -> float:
        return float(np.ptp(s[10]))

    normal = signal("healthy")
    assert (
        height(normal) < height(signal("hypertensive heart disease", 1)) < height(signal("hypertensive heart disease"))
    )
    low = [height(signal("tuberculous pericardial effusion", level)) for level in (1, 3)]
    assert low[1] < low[0] < height(normal)
    count = [len(beats(signal(s))) for s in ("benign hamartoma", "healthy", "pneumonia")]
    assert count[0] < count[1] < count[2]
    assert signal("COPD with glaucoma")[0].min() < -0.4  # rightward axis: negative QRS in I
    assert signal("sarcoidosis")[6].max() > 0.6 > normal[6].max()  # late R' in V1
    depression = signal("diabetes with coronary disease")[10]
    peaks = [p for p in beats(signal("diabetes with coronary disease")) if 30 < p < 950]
    assert np.mean([depression[p + 18] - depression[p - 8] for p in peaks]) < -0.1


def test_limb_leads_obey_einthoven() -> None:
    lead = drawn(patient("hypertensive heart disease"), "ecg")
    assert np.allclose(lead[2], lead[1] - lead[0], atol=1e-5)
    assert np.allclose(lead[3:6].sum(0), 0, atol=1e-5)


def test_every_finding_has_six_wordings_and_every_syndrome_every_modality() -> None:
    content = table()
    incidental = {name for names in content["incidentals"].values() for name in names}
    for finding, patterns in content["findings"].items():
        assert phrasings(patterns) >= 6, finding
    used = set(incidental)
    for name, shown in content["syndromes"].items():
        for modality in phantom.MODALITIES:
            assert min(shown[modality].values()) <= 1, name
            used |= set(shown[modality])
    assert used == set(content["findings"])


# One word that any wording of these findings contains; none of them is in the syndrome's name.
MARKS = {
    ("hypertensive heart disease", "ecg"): ("ventricular", "voltage"),
    ("pneumonia", "retina"): ("roth", "white-centred"),
    ("lung squamous cell carcinoma", "ct"): ("cavit",),
    ("diabetes with coronary disease", "xray"): ("sternal", "sternotomy", "sternum"),
    ("atrial fibrillation with heart failure", "pathology"): ("oedema", "eosinophilic"),
}


@pytest.mark.parametrize(("syndrome", "modality"), MARKS)
def test_reports_state_findings_and_severity(syndrome: str, modality: str) -> None:
    texts = {phantom.report(patient(syndrome, 2), modality, np.random.default_rng(i)) for i in range(40)}
    assert len(texts) >= 35
    for text in texts:
        low = text.lower()
        assert "moderate" in low and "mild " not in low and "severe" not in low
        assert any(mark in low for mark in MARKS[syndrome, modality])
        assert any(name.lower() in low for name in table()["syndromes"][syndrome]["names"])
        assert "{" not in text and "[" not in text and "  " not in text and " ." not in text


def test_absent_findings_are_absent() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        state = phantom.sample_state(rng)
        for modality, absent in table()["absent"].items():
            text = phantom.report(state, modality, rng).lower()
            for finding, words in absent.items():
                if finding in phantom.visible(state, modality):
                    assert f"{words.lower()}." not in text


def test_reports_of_a_cohort_are_mostly_distinct_and_share_words(cohort: Path) -> None:
    captions = [row["caption"] for row in rows(cohort)]
    assert len(set(captions)) > 0.9 * len(captions)
    for row in rows(cohort):
        assert row["labels"] and (row["severity"] == "none" or row["severity"] in row["caption"].lower())


def test_contact_sheet(cohort: Path, tmp_path: Path) -> None:
    out = phantom.contact_sheet(cohort, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(out))
    kinds = len({row["label"] for row in rows(cohort)})
    assert sheet.shape[0] == 26 + kinds * 228 and sheet.std() > 30
