"""Ways to merge hits of several modalities into one list, evaluated by concepts that modalities share.

    python benchmarks/merged_ranks.py SPACE MANIFEST [--split test]

Gallery: all files of the split that belong to a concept. Queries: every such file, and every class of the concept in
twelve wordings; a hit is correct if its class is the query's. Per way: precision@10 and the effective number of
modalities among the ten (exp of the entropy of their shares), each averaged over concepts and kinds of query.

    cosine      unchanged
    pair        (s - mean) / sd over a sample of pairs (kind of query, modality)
    z           (s - mean) / sd over a sample of the modality, for this query; as m3bind.Searcher ranks files and items
    percentile  share of that sample with a lower cosine, ties ordered by cosine

How m3bind.Searcher ranks texts is measured by word_search.py.
"""

import argparse
from pathlib import Path

import numpy as np

import m3bind
from m3bind.data.batching import rng
from m3bind.evaluate.tasks import concepts_for
from m3bind.models.embedding import correct_gap

WORDINGS = (
    "{}", "findings consistent with {}", "impression: {}", "an image that shows {}", "{} study", "this study shows {}",
    "report: {}", "{} patient", "evidence of {}", "conclusion: {} findings", "the finding is {}", "diagnosis: {}",
)  # fmt: skip
SAMPLE = 500
WAYS = ("cosine", "pair", "z", "percentile")


def reference(kinds, name):
    """Rows of a modality's sample."""
    return rng(0, "sample").permutation(np.flatnonzero(kinds == name))[:SAMPLE]


def merged(scores, kinds, pairs, own):
    """Way -> comparable scores (q, n); `pairs`: cosines of other queries of this kind, `own`: each query's row."""
    ways = {way: np.full(scores.shape, -np.inf) for way in WAYS}
    ways["cosine"] = scores.copy()
    for name in np.unique(kinds):
        at, sample = np.flatnonzero(kinds == name), reference(kinds, name)
        near = scores[:, sample].copy()
        if own is not None:
            near[sample[None] == own[:, None]] = np.nan
        typical = pairs[:, sample][pairs[:, sample] < 0.9999]
        ways["pair"][:, at] = (scores[:, at] - typical.mean()) / typical.std()
        mean, spread = np.nanmean(near, 1, keepdims=True), np.nanstd(near, 1, keepdims=True)
        ways["z"][:, at] = (scores[:, at] - mean) / spread
        near = np.sort(near, axis=1)  # NaN last
        below = np.stack([np.searchsorted(line, line_scores) for line, line_scores in zip(near, scores[:, at])])
        ways["percentile"][:, at] = below / len(sample) + 1e-6 * scores[:, at]
    if own is not None:
        for values in ways.values():
            values[np.arange(len(own)), own] = -np.inf
    return ways


def judged(values, kinds, classes, asked):
    """Precision@10 and effective number of modalities."""
    top = np.argsort(-values, axis=1, kind="stable")[:, :10]
    shares = np.stack([(kinds[top] == name).mean(1) for name in np.unique(kinds)], axis=1)
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1)
    return np.mean(classes[top] == asked[:, None]), np.exp(entropy).mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("space", nargs="?", default="runs/demo/space")
    parser.add_argument("manifest", nargs="?", default="runs/demo/manifest.csv")
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    if not Path(given.manifest).is_file():
        print(f"no {given.manifest}: give a space and a manifest")
        return
    space = m3bind.load(given.space)
    records = m3bind.read_manifest(given.manifest, modalities=space.modalities).records
    records = [record for record in records if record.split == given.split]
    rows = {m: [r for r in records if r.modality == m] for m in space.modalities}
    embedded = {m: space.encode_image([r.path for r in part], m) for m, part in rows.items() if part}
    found = {}
    for concept in concepts_for(records):
        parts = {m: np.asarray(concept.labels(rows[m], m)) for m in concept.modalities}
        kinds = np.concatenate([np.full(int((y >= 0).sum()), m) for m, y in parts.items()])
        classes = np.concatenate([y[y >= 0] for y in parts.values()])
        plain = np.concatenate([embedded[m][y >= 0] for m, y in parts.items()])
        means = np.stack([space.image_mean(m) for m in kinds])
        asked = np.repeat(np.arange(len(concept.classes)), len(WORDINGS))
        words = [wording.format(name.replace("_", " ")) for name in concept.classes for wording in WORDINGS]
        corrected, texts = correct_gap(plain, means), space.encode_text(words)
        questions = [("texts", texts, asked, None, plain), ("texts, corrected gallery", texts, asked, None, corrected)]
        for name in parts:
            own = np.flatnonzero(kinds == name)
            questions.append(("files", plain[own], classes[own], own, plain))
            questions.append(("files, corrected", corrected[own], classes[own], own, plain))
        for kind, vectors, wanted, own, gallery in questions:
            scores = vectors @ gallery.T
            for way, values in merged(scores, kinds, scores, own).items():
                found.setdefault((kind, way), []).append(judged(values, kinds, classes, wanted))
    for (kind, way), values in found.items():
        precision, modalities = np.mean(values, axis=0)
        print(f"{kind:24s} {way:11s} precision@10 {precision:.3f}  effective modalities {modalities:.2f}")


if __name__ == "__main__":
    main()
