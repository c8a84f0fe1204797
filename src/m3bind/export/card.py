"""The model card of a space: what is in it, what it was trained on, how well it does, what it is not for.

* `Figure`: one line of the evaluation table. * `model_card`: Markdown with the YAML head of model repositories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from m3bind.space.bundle import STUDENT, Space

_PAGE = """\
---
{front}---

# A medical image-text space: {modalities}

{count} modalities and texts as unit vectors of {dim} dimensions in one space, so that an image of one kind can be
compared, by cosine, with images of the others and with words. Bound with m3bind through text: no image of one modality
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

The licence of the whole is no freer than the strictest of its parts.

## Training data

{records}

Data that the parts had seen before: {seen}.

## Evaluation

{evaluation}

## Intended use and limits

* Research on retrieval, zero-shot classification and representation of medical images and reports.
* Not a medical device. Not for diagnosis, treatment, triage, or any decision about a person.
* Similarity is not evidence: a near neighbour can differ in what matters clinically. Nothing was measured on groups
  (age, sex, scanner, hospital) that the evaluation above does not name.
* Cosines of different pairs of modalities have different scales; compare ranks, or calibrate.
* Images must be what the parts were trained on (see Input); other views, body parts and protocols were not tried.
* Embeddings of patients are health data. They can be matched to their images: guard them as you guard these.

## Fingerprint

`{fingerprint}`: embeddings of two copies with this fingerprint are comparable. `export.json` lists the SHA-256 of every
file.
"""


@dataclass(frozen=True)
class Figure:
    """One measured value with its 95 % interval."""

    what: str  # "zero shot, syndrome"
    modality: str
    metric: str
    n: int
    chance: float | None
    value: float
    low: float | None
    high: float | None


def model_card(space: Space, figures: Sequence[Figure]) -> str:
    """The README of a repository. Names no file, person or machine."""
    cards, has_student = space.cards, STUDENT in space.text_encoders
    seen = sorted({name for card in cards.values() for name in card.get("training_data", ())})
    return _PAGE.format(
        front=yaml.safe_dump(_front(space), sort_keys=False, allow_unicode=True),
        modalities=", ".join(space.modalities),
        count=len(space.modalities),
        dim=space.dim,
        synthetic="\n**Trained on SYNTHETIC data (virtual patients): a demonstration, of no use on real images.**\n"
        if space.synthetic
        else "",
        first=space.modalities[0],
        text="" if has_student else f', encoder="{space.modalities[0]}"',
        text_encoders=", ".join(f'"{name}"' for name in space.text_encoders),
        parts=_parts(space),
        records=_records(space),
        seen=", ".join(seen) or "none stated by their cards",
        evaluation=_evaluation(figures),
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
    splits = list(dict.fromkeys(split for counts in records.values() for split in counts))
    return table(
        ["Modality", *splits], [[name, *(counts.get(split, 0) for split in splits)] for name, counts in records.items()]
    )


def _evaluation(figures: Sequence[Figure]) -> str:
    if not figures:
        return "No results were given with the export."
    rows = [
        [f.what, f.modality, f.metric.replace("_", " "), f.n, _number(f.chance), f"{f.value:.3f}", _interval(f)]
        for f in figures
    ]
    return table(["Task", "Modality", "Metric", "n", "Chance", "Value", "95 % interval"], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(figure: Figure) -> str:
    return "–" if figure.low is None or figure.high is None else f"{figure.low:.3f} to {figure.high:.3f}"
