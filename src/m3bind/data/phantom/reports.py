"""Reports of virtual patients: a modality's findings in varied wording, and a likely cause in shared wording.

* `report`: the text of one state and modality.
* `phrasings`: number of wordings of a pattern of `reports.yaml`.
"""

import re

import numpy as np

from m3bind.data.phantom.state import PatientState, table, visible

HEADER = "Synthetic report of a virtual patient; no real person."
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_ADVERBS = {"none": "", "mild": "mildly", "moderate": "moderately", "severe": "severely"}


def phrasings(patterns: list[str]) -> int:
    """Total number of wordings of `patterns`."""
    total = 0
    for pattern in patterns:
        ways = 1
        for choice in _CHOICE.findall(pattern):
            ways *= len(choice.split("|"))
        total += ways
    return total


def _say(patterns: list[str], state: PatientState, rng: np.random.Generator, name: str = "") -> str:
    """One wording: a random pattern with a random alternative of each choice and filled fields, as a sentence."""
    pattern = patterns[int(rng.integers(len(patterns)))]

    def pick(match: re.Match[str]) -> str:
        alternatives = match.group(1).split("|")
        return alternatives[int(rng.integers(len(alternatives)))]

    grade, adverb = state.severity_name, _ADVERBS[state.severity_name]
    words = {"grade": grade, "Grade": grade.capitalize(), "gradely": adverb, "Gradely": adverb.capitalize()}
    text = _CHOICE.sub(pick, pattern).format(**words, side=state.side, name=name)
    text = re.sub(r"\s+([.,;:])", r"\1", re.sub(r"\s+", " ", text)).strip()
    return text[:1].upper() + text[1:]


def report(state: PatientState, modality: str, rng: np.random.Generator) -> str:
    """The report of `modality`: opening (often), findings in random order, absent findings (sometimes), impression.

    The main finding is always stated, each of the others with probability .9. The impression names the likely
    underlying condition and its severity in the same words for all modalities.
    """
    content, shown = table(), visible(state, modality)
    sentences = [_say(content["findings"][shown[0]], state, rng)]
    for finding in shown[1:]:
        if rng.random() < 0.9:
            sentences.append(_say(content["findings"][finding], state, rng))
    sentences = [sentences[i] for i in rng.permutation(len(sentences))]
    for finding, words in content["absent"][modality].items():
        if finding not in shown and rng.random() < 0.2:
            sentences.append(f"{words[:1].upper()}{words[1:]}.")
    if rng.random() < 0.6:
        sentences.insert(0, _say(content["opening"][modality], state, rng))
    names = content["syndromes"][state.syndrome]["names"]
    kind = "healthy" if state.syndrome == "healthy" else "disease"
    sentences.append(_say(content["impression"][kind], state, rng, names[int(rng.integers(len(names)))]))
    return " ".join(sentences)
