"""The schema of space.json: third-party data, validated before anything is built from it.

* `check`: validates it.
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from m3bind.core.stored import Strict, plain
from m3bind.errors import SpaceError
from m3bind.models.weights import external
from m3bind.space.prompts import MAX_TEMPLATE

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Part = Literal["image_trunk", "image_head", "text_trunk", "text_head", "rest"]
StudentPart = Literal["trunk", "head", "rest"]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Template = Annotated[str, StringConstraints(max_length=MAX_TEMPLATE)]


class _Form(Strict, strict=True):
    """Without type conversions."""


class _Bridge(_Form):
    kind: Name
    settings: dict[str, Any]


class _TowerEntry(_Form):
    """A dual encoder."""

    model: Name
    settings: dict[str, Any]
    joint_dim: int = Field(ge=1)
    bridge: _Bridge | None = None
    logit_scale: float = Field(allow_inf_nan=False)
    weights: dict[Part, str]
    assets: bool
    card: dict[str, str | int | list[str]]


class _Student(_Form):
    settings: dict[str, Any]
    weights: dict[StudentPart, str]
    assets: bool


class SpaceManifest(_Form):
    """space.json, without its checksum."""

    format: str
    version: int
    dim: int = Field(ge=1)
    modalities: dict[Name, _TowerEntry] = Field(min_length=1)
    student: _Student | None
    arrays: str
    files: dict[str, Digest]
    text_encoders: list[str]
    config: dict[str, Any]
    prompts: dict[str, list[Template]]
    prompts_hashes: dict[str, str]
    records: dict[str, dict[str, int]]
    synthetic: bool
    temperatures: dict[Name, Temperature] = Field(default_factory=dict)
    notes: str
    versions: dict[str, str]
    fingerprint: Digest

    @model_validator(mode="after")
    def _files_are_listed(self) -> "SpaceManifest":
        used = {"arrays": self.arrays}
        parts: list[tuple[str, _TowerEntry | _Student]] = [*self.modalities.items()]
        for name, tower in [*parts, ("student", self.student)] if self.student else parts:
            used |= {f"{name}.weights.{part}": file for part, file in tower.weights.items()}
        for key, file in used.items():
            if file not in self.files or not file.startswith("weights/"):
                raise ValueError(f"{key} is {file[:60]!r}, which is not one of the weights in files")
        return self


def check(content: dict[str, Any], path: Path) -> None:
    """Refuse values that m3bind does not write.

    Raises:
        SpaceError: names the key and the fault.
    """
    files = content.get("files")
    for name in files if isinstance(files, dict) else ():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SpaceError(f"{path}: names a file outside the space ({name[:60]!r}); do not use it")
    try:
        plain(content)
        SpaceManifest.model_validate(content)
    except (ValidationError, ValueError) as error:
        raise SpaceError(f"{path}: {external.reason(error)}; m3bind does not write this, so do not use it") from error
