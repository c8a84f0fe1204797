"""The model card of a space: parts, training data, evaluation, limits.

* `EvaluationResult`: one line of the evaluation table. * `model_card`: Markdown with YAML front matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import yaml

from m3bind.space.bundle import STUDENT, Space

_PAGE = """\
---
{front}---

# A medical image-text space: {modalities}

{count} modalities and texts as unit vectors of {dim} dimensions in one space, so that an image of one kind can be
compared, by cosine, with images of the others and with texts. Bound with m3bind through text: no image of one modality
was ever paired with one of another.
{synthetic}
## Use

```python
import m3bind

space = m3bind.load("FOLDER")  # this folder, or the id of the repository
texts = space.encode_text(["pneumonia", "atrial fibrillation"]{text})
images = space.encode_image(["file"], modality="{first}")
probabilities = space.classify(["file"], modality="{first}", labels=["normal", "abnormal"]{text})
```

Text towers (`encoder=`): {text_encoders}. Nothing is downloaded for a folder, no code of the repository is executed.

## Parts and licences

{parts}

The licence of the whole is no more permissive than the strictest of its parts.

## Training data

{records}

Data on which the parts were pretrained: {seen}.

## Evaluation

{evaluation}

## Intended use and limits

* Research on retrieval, zero-shot classification and representation of medical images and reports.
* Not a medical device. Not for diagnosis, treatment, triage, or any decision about a person.
* Similarity is not evidence: a near neighbour can differ in what matters clinically. Nothing was measured on groups
  (age, sex, scanner, hospital) that the evaluation above does not name.
* Cosines of different pairs of modalities have different scales; compare ranks, or calibrate.
* Images must be what the parts were trained on (see Input); other views, body parts and protocols were not tried.
* Embeddings of patients are health data. They can be matched to their images: protect them as you protect these.

## Fingerprint

`{fingerprint}`: embeddings of two copies with this fingerprint are comparable. `export.json` lists the SHA-256 of every
file.
"""


@dataclass(frozen=True)
class EvaluationResult:
    """One metric value with its 95 % confidence interval."""

    what: str  # "zero shot, syndrome"
    modality: str
    metric: str
    n: str  # files, and patients if some have several
    chance: float | None
    value: float
    low: float | None
    high: float | None


def model_card(space: Space, results: Sequence[EvaluationResult]) -> str:
    """The README of a repository, without names of files, people or machines."""
    cards, has_student = space.cards, STUDENT in space.text_encoders
    seen = sorted(set(chain.from_iterable(card.get("training_data", ()) for card in cards.values())))
    return _PAGE.format(
        front=yaml.safe_dump(_front(space), sort_keys=False, allow_unicode=True),
        modalities=", ".join(space.modalities),
        count=len(space.modalities),
        dim=space.dim,
        synthetic="\n**Trained on SYNTHETIC data (virtual patients): a demonstration, not for use on real images.**\n"
        if space.synthetic
        else "",
        first=space.modalities[0],
        text="" if has_student else f', encoder="{space.modalities[0]}"',
        text_encoders=", ".join(f'"{name}"' for name in space.text_encoders),
        parts=_parts(space),
        records=_records(space),
        seen=", ".join(seen) or "none stated by their cards",
        evaluation=_evaluation(results),
        fingerprint=space.fingerprint,
    )


def _front(space: Space) -> dict[str, Any]:
    licences = sorted(set(space.licences.values()))
    known = len(licences) == 1 and all(letter.isalnum() or letter in ".-" for letter in licences[0])
    return {
        "library_name": "m3bind",
        "license": licences[0].lower() if known else "other",
        "pipeline_tag": "feature-extraction",
        "language": "en",
        "tags": ["m3bind", "medical", "multimodal", "clip", *space.modalities, *(["synthetic"] * space.synthetic)],
    }


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _parts(space: Space) -> str:
    rows = []
    for name in space.modalities:
        card, model = space.cards[name], space.model(name)
        source = card.get("source", "unknown") + (f" @ {card['revision']}" if card.get("revision") else "")
        kind = model.registered_name or type(model).name
        licences = card.get("licence_code", "unknown"), card.get("licence_weights", "unknown")
        rows.append([name, kind, source, card.get("input", ""), *licences])
    return table(["Modality", "Model", "Source", "Input", "Licence of the code", "Licence of the weights"], rows)


def _records(space: Space) -> str:
    records = space.info.records
    if not records:
        return "Not stated."
    splits = list(dict.fromkeys(chain.from_iterable(records.values())))
    rows = []
    for name, counts in records.items():
        rows.append([name, *(counts.get(split, 0) for split in splits)])
    return table(["Modality", *splits], rows)


def _evaluation(results: Sequence[EvaluationResult]) -> str:
    if not results:
        return "No results were given with the export."
    rows = []
    for r in results:
        interval = "–" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
        chance = "–" if r.chance is None else f"{r.chance:.3f}"
        rows.append([r.what, r.modality, r.metric.replace("_", " "), r.n, chance, f"{r.value:.3f}", interval])
    return table(["Task", "Modality", "Metric", "n", "Chance", "Value", "95 % interval"], rows)
