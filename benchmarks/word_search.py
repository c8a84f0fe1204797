"""Word search over an archive of all modalities: precision of the first ten hits, by way of ranking.

    python benchmarks/word_search.py SPACE MANIFEST [SPACE MANIFEST ...] [--split test]

Questions, each in four wordings: of mini5 17 that belong to one modality ("one") and 11 that several share ("shared");
of virtual patients every syndrome, which all modalities share. A hit is correct if its file has the label, in a
modality that the question belongs to. Printed: precision@10 (of as many hits as a third of the correct files, if that
is less than ten), mean over questions, with the spread over spaces if several are given.

    cosine      unchanged
    z           standard deviations above the modality's mean cosine to the question, all modalities alike
    relevance   as in m3bind.Searcher (search/ranking.py)
    told        relevance, with the modalities of the question given by --where: the ceiling
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

import m3bind
from m3bind.encode.job import encode_files
from m3bind.index.base import Where
from m3bind.search.ranking import Ranking
from m3bind.search.searcher import Searcher

WORDINGS = ("{}", "signs of {}", "evidence of {}", "patient with {}")
NORMAL = {
    "xray": ["normal"],
    "retina": ["normal fundus"],
    "ecg": ["NORM"],
    "pathology": ["benign lung tissue", "benign colon tissue"],
}
LUNG = ["lung adenocarcinoma", "lung squamous cell carcinoma"]
MALIGNANT = {"pathology": [*LUNG, "colon adenocarcinoma"], "ct": ["malignant nodule"]}
BENIGN = {"pathology": ["benign lung tissue", "benign colon tissue"], "ct": ["benign nodule"]}
RETINA = ["diabetic retinopathy", "glaucoma", "cataract", "age-related macular degeneration"]
RETINA += ["hypertensive retinopathy", "pathological myopia"]
TISSUE = [*LUNG, "colon adenocarcinoma", "benign colon tissue"]
ONE = {
    "pneumonia": {"xray": ["pneumonia"]},
    **{name: {"retina": [name]} for name in RETINA},
    **{name: {"pathology": [name]} for name in TISSUE},
    "malignant pulmonary nodule": {"ct": ["malignant nodule"]},
    "benign pulmonary nodule": {"ct": ["benign nodule"]},
    "myocardial infarction": {"ecg": ["MI"]},
    "bundle branch block": {"ecg": ["CD"]},
    "left ventricular hypertrophy": {"ecg": ["HYP"]},
    "ST-T changes": {"ecg": ["STTC"]},
}
SHARED = {
    **dict.fromkeys(("normal", "no abnormality", "healthy", "no evidence of disease"), NORMAL),
    "lung cancer": {"pathology": LUNG, "ct": ["malignant nodule"]},
    **dict.fromkeys(("malignancy", "malignant tumour"), MALIGNANT),
    **dict.fromkeys(("benign lesion", "benign finding"), BENIGN),
    "hypertension": {"retina": ["hypertensive retinopathy"], "ecg": ["HYP"]},
    "cardiac enlargement": {"xray": ["Cardiomegaly"], "ecg": ["HYP"]},
}


def questions_of(records):
    """(kind, text, modality -> labels) of the data set."""
    if any(record.set == "nih224" for record in records):
        tables = {"one": ONE, "shared": SHARED}
    else:
        everywhere = {record.modality for record in records}
        labels = sorted({record.label for record in records})
        tables = {"shared": {label: {name: [label] for name in everywhere} for label in labels}}
    for kind, table in tables.items():
        for name, wanted in table.items():
            for wording in WORDINGS:
                yield kind, wording.format(name.replace("_", " ")), wanted


def is_correct(record, wanted):
    labels = {record.label, *record.labels, *record.label.split("|")}
    return bool(labels & set(wanted.get(record.modality, ())))


def measured(space, records):
    """(kind, way) -> precision."""
    precision = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        encode_files(space, records, Path(folder) / "archive", keep=("id",))
        searcher = Searcher(space, Path(folder) / "archive")
        ranking, plain = searcher.ranking, Ranking(searcher.calibration)
        for kind, text, wanted in questions_of(records):
            correct = {record.id for record in records if is_correct(record, wanted)}
            k = min(10, -(-len(correct) // 3))
            for way in ("cosine", "z", "relevance", "told") if k else ():
                searcher.ranking = plain if way == "z" else ranking
                where = Where(modality=tuple(wanted)) if way == "told" else None
                hits = searcher.search(text, k, where, rank="cosine" if way == "cosine" else "calibrated")
                precision[kind, way].append(np.mean([hit.id in correct for hit in hits]))
    return {key: float(np.mean(values)) for key, values in precision.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", default=["runs/demo/space", "runs/demo/manifest.csv"])
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    found = defaultdict(list)
    for folder, manifest in zip(given.inputs[::2], given.inputs[1::2], strict=True):
        space = m3bind.load(folder)
        records = m3bind.read_manifest(manifest, modalities=space.modalities).records
        sets = set(space.info.config.get("data", {}).get("sets") or [record.set for record in records])
        part = [record for record in records if record.split == given.split and record.set in sets]
        for key, value in measured(space, part).items():
            found[key].append(value)
    for (kind, way), values in sorted(found.items()):
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        print(f"{kind:8s} {way:10s} precision@10 {np.mean(values):.3f}{spread}  ({len(values)} spaces)")


if __name__ == "__main__":
    main()
