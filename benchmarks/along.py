"""Search along a concept's axis against search by cosine, from images of one modality to those of another.

    python benchmarks/along.py RUN

A run with data.tune=true is measured on its valid split. For each concept with a pair of opposites below: AUC and
precision@5 (`evaluate.retrieval`), mean over the ordered pairs of modalities, and the difference from search by cosine
with its 95 % interval: patients are resampled, of queries and gallery.

    cosine     unchanged                     gap     both sides with the gap correction
    w          queries turned by `search.along` with this weight; inf: the position on the axis alone
    texts      the same with the centre of a query taken from the two wordings, not from its modality's items
"""

import argparse
from itertools import permutations
from pathlib import Path

import numpy as np

from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.retrieval import concept_auc, concept_precision
from m3bind.evaluate.tasks import concepts_for
from m3bind.models.embedding import correct_gap
from m3bind.pipeline.outputs import open_run
from m3bind.search import along

POLES = {"normality": ("normal", "abnormal"), "malignancy": ("benign", "malignant")}
WEIGHTS = {"w 1": 1.0, "w 2": 2.0, "w 4": 4.0, "w 8": 8.0, "w 16": 16.0, "w inf": 1e6}


def turned(images, texts, weight, centre="items"):
    """Modality -> its images as queries along the axis between two text embeddings; not normalised, see `along`."""
    axis = along.ConceptAxis.between(texts, images)
    rows = {}
    for name, own in images.items():
        usual = axis.means[name] if centre == "items" else axis.middle
        rows[name] = own + weight * ((own - usual) @ axis.direction)[:, None] * axis.direction
    return rows


def ways_of(images, means, texts):
    """Name of a way -> queries and gallery of each modality."""
    centred = {m: correct_gap(rows, means[m]) for m, rows in images.items()}
    ways = {"cosine": (images, images), "gap": (centred, centred)}
    ways |= {name: (turned(images, texts, weight), images) for name, weight in WEIGHTS.items()}
    return ways | {"texts": (turned(images, texts, along.WEIGHT, "texts"), images)}


def score(queries, gallery, labels, draws):
    """AUC and precision@5, means over the ordered pairs: (2,) values and (2, b) replicates."""
    found = []
    for a, b in permutations(labels, 2):
        data = queries[a], gallery[b], labels[a], labels[b]
        found.append((concept_auc(*data, draws[a], draws[b]), concept_precision(*data, 5, draws[a], draws[b])))
    values = np.mean([[estimate.value for estimate in pair] for pair in found], axis=0)
    return values, np.mean([[estimate.replicates for estimate in pair] for pair in found], axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = open_run(parser.parse_args().run)
    run.fit("distill")
    records = {m: list(run.dataset.records[m]["test"]) for m in run.dataset.modalities}
    for concept in concepts_for([record for part in records.values() for record in part]):
        if concept.name not in POLES:
            continue
        kept = {m: concept.labels(records[m], m) >= 0 for m in concept.modalities}
        labels = {m: concept.labels(records[m], m)[kept[m]] for m in kept}
        images = {m: run.embed_images(m, "test")[kept[m]] for m in kept}
        patients = {m: np.array([r.patient for r in records[m]])[kept[m]] for m in kept}
        means = {m: run.embed_images(m, "train").mean(0) for m in kept}
        draws = {m: Resampling(patients[m]) for m in kept}
        print(
            concept.name, ", ".join(f"{m} {len(own)} ({len(set(patients[m]))} patients)" for m, own in labels.items())
        )
        ways = ways_of(images, means, run.embed_text(list(POLES[concept.name]), encoder="student"))
        plain, plain_drawn = score(*ways["cosine"], labels, draws)
        for name, way in ways.items():
            values, drawn = score(*way, labels, draws)
            low, high = np.nanquantile(drawn - plain_drawn, [0.025, 0.975], axis=1)
            cells = zip(("AUC", "P@5"), values, values - plain, low, high)
            print(f"  {name:7s} ", *(f"{m} {v:.3f} {c:+.3f} [{a:+.3f}, {b:+.3f}]  " for m, v, c, a, b in cells))


if __name__ == "__main__":
    main()
