"""Search of an archive of all modalities by texts and files: precision of the first ten hits, by way of ranking.

    python benchmarks/word_search.py SPACE MANIFEST [SPACE MANIFEST ...] [--split test]

Texts, each in four wordings: of mini5 17 that belong to one modality ("one") and 11 that several share ("shared"); of
virtual patients every syndrome, which all modalities share. A hit is correct if its file has the label, in a modality
that the question belongs to. Files: every file of the split; a hit of its own modality is correct if it has its label,
one of another if a shared question asks for both labels, so a file is of kind "one" if no other modality shares its
label; hits of its patient are skipped. Printed: precision@10 (of as many hits as a third of the correct files, if that
is less than ten), mean over questions, for files over classes; with the spread over spaces if several are given.

    cosine      unchanged
    z           standard deviations above the modality's mean cosine to the question, all modalities alike
    relevance   as in m3bind.Searcher (search/ranking.py)
    told        relevance, with the modalities of the question given by --where: the ceiling

"across" leaves out hits of the file's own modality, "own" is the share of this modality among the hits of "shared".
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

import m3bind
from m3bind.encode.job import encode_files
from m3bind.index.base import Where
from m3bind.search.query import Query
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


WAYS = ("cosine", "z", "relevance", "told")


def tables_of(records):
    """Kind -> question -> modality -> labels, of the data set."""
    if any(record.set == "nih224" for record in records):
        return {"one": ONE, "shared": SHARED}
    everywhere = {record.modality for record in records}
    labels = sorted({record.label for record in records})
    return {"shared": {label: {name: [label] for name in everywhere} for label in labels}}


def labels_of(record):
    return {record.label, *record.labels, *record.label.split("|")}


def wanted_like(record, shared):
    """Modality -> labels that a file asks for."""
    wanted = defaultdict(set)
    for table in shared.values():
        if labels_of(record) & set(table.get(record.modality, ())):
            for name, labels in table.items():
                wanted[name] |= set(labels)
    return wanted | {record.modality: set(record.label.split("|"))}


def correct_of(records, wanted):
    return [record for record in records if labels_of(record) & set(wanted.get(record.modality, ()))]


def depth(correct):
    return min(10, -(-len(correct) // 3))


class Measured:
    """Precision of a space, by kind of question and way of ranking."""

    def __init__(self, searcher, records):
        self.searcher, self.records, self.tables = searcher, records, tables_of(records)
        self.rankings = dict.fromkeys(WAYS, searcher.ranking) | {"z": Ranking(searcher.calibration)}

    def hits(self, way, queries, k, names=None):
        self.searcher.ranking = self.rankings[way]
        where = Where(modality=tuple(names)) if names else None
        return self.searcher.search_many(queries, k, where, rank="cosine" if way == "cosine" else "calibrated")

    def by_texts(self):
        precision = defaultdict(list)
        for kind, table in self.tables.items():
            for name, wanted in table.items():
                correct = {record.id for record in correct_of(self.records, wanted)}
                texts = [wording.format(name.replace("_", " ")) for wording in WORDINGS]
                for way in WAYS if correct else ():
                    for hits in self.hits(way, texts, depth(correct), wanted if way == "told" else None):
                        precision["text, " + kind, way].append(np.mean([hit.id in correct for hit in hits]))
        return {key: float(np.mean(values)) for key, values in precision.items()}

    def by_files(self):
        """Files are asked for together if they want the same, so that a class is one batch."""
        batches = defaultdict(list)
        for record in self.records:
            wanted = wanted_like(record, self.tables["shared"])
            batches[record.modality, frozenset((name, frozenset(labels)) for name, labels in wanted.items())].append(
                record
            )
        values = defaultdict(lambda: defaultdict(list))  # (kind, way) -> class -> one per file
        for number, ((own, asked), members) in enumerate(batches.items()):
            correct = correct_of(self.records, dict(asked))
            others = {name for name in dict(asked) if name != own and any(r.modality == name for r in correct)}
            for way in WAYS:
                kind, told = ("shared", {own, *others}) if others else ("one", {own})
                for value, share in self.precision(way, members, correct, told if way == "told" else None):
                    values["file, " + kind, way][number].append(value)
                    values["file, own" if others else "", way][number].append(share)
                if others:
                    across = [record for record in correct if record.modality != own]
                    names = others if way == "told" else set(self.searcher.calibration.rows) - {own}
                    for value, _ in self.precision(way, members, across, names):
                        values["file, across", way][number].append(value)
        found = {key: [np.mean(of) for of in classes.values()] for key, classes in values.items() if key[0]}
        return {key: float(np.mean(classes)) for key, classes in found.items()}

    def precision(self, way, members, correct, names):
        """Per file with a correct hit of another patient: precision, and the share of its own modality."""
        patients = {record.id: record.patient for record in self.records}
        most = max(np.unique(list(patients.values()), return_counts=True)[1])
        lists = self.hits(way, [Query.item(record.id) for record in members], 10 + int(most), names)
        for record, hits in zip(members, lists, strict=True):
            wanted = {other.id for other in correct if other.patient != record.patient}
            hits = [hit for hit in hits if patients[hit.id] != record.patient][: depth(wanted)]
            if hits:
                yield (
                    np.mean([hit.id in wanted for hit in hits]),
                    np.mean([hit.modality == record.modality for hit in hits]),
                )


def measured(space, records):
    """(kind, way) -> value."""
    with tempfile.TemporaryDirectory() as folder:
        encode_files(space, records, Path(folder) / "archive", keep=("id",))
        found = Measured(Searcher(space, Path(folder) / "archive"), records)
        return found.by_texts() | found.by_files()


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
    for (kind, way), values in sorted(found.items(), key=lambda item: (item[0][0], WAYS.index(item[0][1]))):
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        print(f"{kind:12s} {way:10s} {np.mean(values):.3f}{spread}  ({len(values)} spaces)")


if __name__ == "__main__":
    main()
