"""Shapes of requests and answers, validated on receipt and described in the OpenAPI.

* Requests: `Search`, `Encode`, `ZeroShot`, `Phrases`, `Place`, `Login`, with their parts `QuestionPart`, `Conditions`
  and `Source`.
* Answers: the same names followed by `Answer`, `UploadAnswer`, `ItemAnswer`, `SignalAnswer`, `MapAnswer`,
  `AboutAnswer`, and their parts.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from m3bind.core.stored import Strict
from m3bind.index.base import Where
from m3bind.serve.settings import HITS, ID_CHARS, LABELS, PARTS, PROMPTS, TEXT_CHARS, TEXTS

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=TEXT_CHARS)]
Value = Annotated[str, StringConstraints(min_length=1, max_length=ID_CHARS)]
Day = Annotated[str, StringConstraints(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class QuestionPart(Strict):
    """One part of a query; a negative weight avoids it."""

    kind: Literal["text", "item", "upload"]
    value: Value = Field(description="the text, or the id")
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _says_something(self) -> "QuestionPart":
        if self.kind == "text" and not self.value.strip():
            raise ValueError("the text is empty")
        if self.kind == "text" and len(self.value) > TEXT_CHARS:
            raise ValueError(f"the text is longer than {TEXT_CHARS} characters")
        return self


Parts = Annotated[list[QuestionPart], Field(min_length=1, max_length=PARTS)]


class Conditions(Strict):
    """Filters of items; all given ones must hold."""

    modality: Annotated[list[Value], Field(max_length=64)] | None = None
    label: Annotated[list[Value], Field(max_length=64)] | None = None
    patient: Annotated[list[Value], Field(max_length=64)] | None = None
    since: Day | None = None
    until: Day | None = None

    def where(self) -> Where:
        """The filters of an index; an empty list means any value."""
        modality, label, patient = (
            tuple(values) if values else None for values in (self.modality, self.label, self.patient)
        )
        return Where(modality, label, patient, self.since, self.until)


class Search(Strict):
    """A query with filters."""

    parts: Parts
    k: Annotated[int, Field(ge=1, le=HITS)] = 10
    where: Conditions = Conditions()
    rank: Literal["calibrated", "cosine"] = "calibrated"
    per_modality: bool = Field(False, description="k hits of each modality, the most relevant modality first")
    along: tuple[Text, Text] | None = Field(
        None, description="two opposite wordings: rank by the query's side of the axis between them"
    )


class AnswerHit(BaseModel):
    """One found item."""

    rank: int
    id: str
    modality: str
    score: float = Field(description="cosine to the query")
    calibrated: float = Field(description="standard deviations above what is usual for items of this modality")
    percentile: float = Field(description="rank within its modality: share of its items, in %, that fit less")
    relevance: float = Field(description="how much its modality has to say to the query: 1 for the most relevant ones")
    fields: dict[str, str]
    picture: bool


class SearchAnswer(BaseModel):
    """The hits, best first."""

    hits: list[AnswerHit]
    counts: dict[str, int] = Field(description="hits per modality")
    relevance: dict[str, float] = Field(description="how much each modality that was searched has to say to the query")
    seconds: float


class Encode(Strict):
    """Texts or uploads, not both."""

    texts: Annotated[list[Text], Field(min_length=1, max_length=TEXTS)] | None = None
    uploads: Annotated[list[Value], Field(min_length=1, max_length=TEXTS)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Encode":
        if (self.texts is None) == (self.uploads is None):
            raise ValueError("give either texts or uploads")
        return self


class EncodeAnswer(BaseModel):
    """Unit vectors in the order of the request."""

    vectors: list[list[float]]


class Source(Strict):
    """An item of the index, or an upload."""

    kind: Literal["item", "upload"]
    value: Value


class ZeroShot(Strict):
    """Labels to choose from."""

    source: Source
    labels: Annotated[list[Text], Field(min_length=2, max_length=LABELS)]
    prompts: dict[Text, Annotated[list[Text], Field(min_length=1, max_length=PROMPTS)]] | None = Field(
        None, description="texts of each label in place of a template", max_length=LABELS
    )
    template: Annotated[str, StringConstraints(max_length=TEXT_CHARS)] | None = Field(
        None, description="text with {} for the label; default: the modality's own"
    )
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5

    @model_validator(mode="after")
    def _fits(self) -> "ZeroShot":
        if self.template is not None and "{}" not in self.template:
            raise ValueError("the template needs {} where the label goes")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label is given twice")
        if self.prompts is not None and (self.template is not None or set(self.prompts) != set(self.labels)):
            raise ValueError("prompts takes texts for exactly the labels, and no template beside them")
        return self


class ZeroShotAnswer(BaseModel):
    """Probabilities in the order of the labels."""

    modality: str
    probabilities: list[float]
    calibrated: bool = Field(description="fitted on labelled items of this archive; otherwise the model's own")
    abstain: bool
    why: str


class Phrases(Strict):
    """A query for its nearest phrases."""

    parts: Parts
    k: Annotated[int, Field(ge=1, le=50)] = 5


class Phrase(BaseModel):
    """One phrase of the vocabulary."""

    text: str
    score: float = Field(description="cosine")
    percentile: float = Field(description="share of the reference, in %, that this phrase fits less")


class PhrasesAnswer(BaseModel):
    """The phrases, best first."""

    texts: list[Phrase]


class Place(Strict):
    """A query for its position on the map."""

    parts: Parts


class PlaceAnswer(BaseModel):
    """A position on the map."""

    x: float
    y: float


class AnswerPoints(BaseModel):
    """Positions of items, column by column."""

    id: list[str]
    modality: list[str]
    x: list[float]
    y: list[float]


class MapAnswer(BaseModel):
    """The map, empty while it is computed."""

    state: Literal["ready", "computing"]
    method: str
    points: AnswerPoints


class Login(Strict):
    """The token of the service."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class UploadAnswer(BaseModel):
    """How a file was read."""

    id: str
    modality: str
    warnings: list[str]
    steps: list[str]


class ItemAnswer(BaseModel):
    """The facts of an item or an upload."""

    id: str
    modality: str
    fields: dict[str, str]
    picture: bool
    kind: Literal["image", "volume", "signal"]
    slices: int | None


class SignalAnswer(BaseModel):
    """Twelve leads in millivolt."""

    rate: float
    leads: list[str]
    mv: list[list[float]]
    seconds: float = Field(description="length of the whole record; the answer holds its beginning")


class ModalityAbout(BaseModel):
    """A modality of the space."""

    name: str
    title: str
    color: str
    accepts: list[str]
    items: int


class ClassesAbout(BaseModel):
    """The classes of one task of the prompt files that the service was started with."""

    task: str
    modality: str = Field(description='"*": any')
    prompts: dict[str, list[str]] = Field(description="texts of each label")


class LimitsAbout(BaseModel):
    """Limits of one request."""

    body_bytes: int
    text_chars: int
    k: int
    parts: int
    labels: int


class AboutAnswer(BaseModel):
    """The content and limits of the service."""

    version: str
    synthetic: bool
    dim: int
    modalities: list[ModalityAbout]
    items: int
    columns: list[str]
    labels: dict[str, list[str]]
    classes: list[ClassesAbout]
    limits: LimitsAbout
    pictures: bool
    texts: int
    notice: str
