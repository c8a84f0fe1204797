"""The validated settings of a run, read from a preset or a YAML file, changed by dotted overrides.

* `RunConfig` and its parts: every setting with its default, unit and equation.
* `load_config("demo", ["align.mse_weight=1"])`: preset name or path, plus overrides from the command line.
* `merge`, `validate`: merges two plain trees; checks a plain tree and converts it to settings.
* `presets()`: names of the settings files that ship with the package.

A YAML file may extend another with `extends: NAME`; mappings are merged key by key, anything else is replaced. A
modality set to null is removed.
Equation numbers are those of the M3Bind paper.
"""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

from m3bind.core.files import write_text
from m3bind.core.stored import StoredFileError, Strict, checked, parse_yaml, read_yaml
from m3bind.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from m3bind.core.device import Compute


def _one_folder(name: str) -> str:
    """`name` if it is the name of a single folder: settings from elsewhere may not write outside --out."""
    if not name or name.strip(".") == "" or len(name.encode("utf-8", "replace")) > 200 or set(name) & set("/\\\0\n"):
        raise PydanticCustomError("folder_name", "takes the name of one folder, without / and ..")
    return name


FolderName = Annotated[str, AfterValidator(_one_folder)]


class Settings(Strict, validate_assignment=True):
    """A section of the settings; assignments are validated as well."""


class PhantomConfig(Settings):
    """Virtual patients generated for the run, used instead of files."""

    patients: int = Field(600, ge=20)  # number of patients
    seed: int = 0  # of the generator
    counts: dict[str, int] | None = None  # training patients per modality; None: the generator's unbalanced default


class DataConfig(Settings):
    """Where the samples and the additional texts come from."""

    manifest: str | None = None  # CSV, Parquet or JSONL file
    root: str | None = None  # folder that `path` is relative to; None: the manifest's folder
    sets: list[str] = []  # values of the column `set` to use; empty: all
    extra_texts: str | None = None  # file of additional texts for the shared text pool (columns modality, text)
    extra_texts_limit: int | None = None  # maximum number of them per modality; None: all
    phantom: PhantomConfig | None = None  # virtual patients instead of a manifest
    valid_fraction: float = Field(0.15, ge=0, lt=1)  # share of train patients used as valid if the manifest has none
    tune: bool = False  # True: test metrics are computed on the valid split (for choosing settings)
    limit: int | None = None  # maximum number of records per modality and split, for quick tests; None: all
    inputs_gb: float = Field(20.0, ge=0)  # a modality's model inputs larger than this (GB) are not cached on disk
    minimum: int = 8  # a modality with fewer training pairs is excluded


class ModelConfig(Settings):
    """The dual encoder of one modality."""

    model: str = "compact_2d"  # a name that `m3bind models` lists
    settings: dict[str, Any] = {}  # settings of that model
    checkpoint: str | None = None  # file of weights; None: trained from scratch in stage 0
    pretrain: bool = True  # run stage 0 for this modality; False: the checkpoint is used unchanged


class TrainConfig(Settings):
    """Settings of the training loop, shared by all stages."""

    steps: int = Field(300, ge=0)  # optimiser steps; 0: no training
    batch: int = Field(72, ge=2)  # image-text pairs per modality and step
    batches: dict[str, int] = {}  # exceptions from `batch` per modality (paper: ct 8)
    lr: float = Field(2e-5, gt=0)  # peak learning rate, reached after the warm-up
    lr_floor: float = 0.0  # final learning rate of the cosine as a fraction of lr
    warmup: float = Field(0.1, ge=0, lt=1)  # fraction of the steps
    weight_decay: float = 0.01  # of AdamW
    clip_norm: float = 1.0  # maximum norm of the gradients; 0: no clipping
    micro_batch: int = Field(0, ge=0)  # images per forward pass, with activation recomputation; 0: the whole batch
    micro_batches: dict[str, int] = {}  # exceptions from `micro_batch` per modality
    micro_tokens: int = Field(0, ge=0)  # text tokens per forward pass, with activation recomputation; 0: all
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the towers; auto: that of compute
    checkpoint_steps: int = Field(100, ge=1)  # steps between checkpoints
    checkpoint_seconds: float = 60.0  # maximum seconds between checkpoints; does not change the result
    log_steps: int = Field(1, ge=1)  # steps between rows of log.jsonl

    def micro(self, modality: str) -> int:
        """`micro_batch` of `modality`; 0: no limit."""
        return self.micro_batches.get(modality, self.micro_batch)


class ContrastiveConfig(Settings):
    """Form of the image-text loss (Eq. 1 and 8)."""

    direction: Literal["both", "i2t", "t2i"] = "both"  # image to text, text to image, or the mean of both
    reduction: Literal["mean", "sum"] = "mean"  # over the batch
    positives: Literal["diagonal", "identical", "mixed"] = "identical"  # own text; equal texts; equal labels as well
    label_weight: float = 0.5  # target weight of same-label pairs if positives = mixed (label supervision)
    concept_probability: float = Field(0.0, ge=0, le=1)  # of a phrase shared by modalities as caption


class PretrainConfig(TrainConfig):
    """Stage 0: a dual encoder trained on the image-text pairs of its own modality."""

    steps: int = Field(300, ge=0)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = 0.05
    text_lr: float = Field(1.0, ge=0)  # learning rate of the text tower as a multiple of lr
    augment: bool = True  # shift, scale, noise, and mirror (if anatomy allows it) training images
    degrade: float = Field(0.0, ge=0, le=1)  # probability that an augmented image loses quality: resolution, leads ...
    views: int = Field(1, ge=1)  # augmented copies of each training image stored for a frozen trunk; 1: the original
    contrastive: ContrastiveConfig = ContrastiveConfig()
    per_modality: dict[str, dict[str, Any]] = {}  # exceptions from this section per modality


class LoraConfig(Settings):
    """Low-rank adapters on query and value projections."""

    r: int = 8  # rank
    alpha: int = 8  # updates are scaled by alpha / r
    dropout: float = 0.1  # on the adapters' inputs during training


class BalanceConfig(Settings):
    """Adaptive modality balancing (AMB)."""

    beta: float = 0.5  # exponent of Eq. 3; 0: uniform over modalities, 1: inversely proportional to size
    proportional: bool = False  # sample in proportion to size instead of Eq. 3 (AMB off)
    lr: bool = True  # scale learning rates by size (Eq. 4)
    weights: bool = True  # weight losses by size (Eq. 5)
    literal: bool = False  # Eq. 4 and 5 without normalisation (rates near 3e-8 for 377k pairs: nothing is learned)


class PostConfig(Settings):
    """Post steps on the bound space, see align/post.py."""

    gap: Literal["none", "centre", "rotate", "realign", "pc"] = "none"  # correction of the modality gap
    components: int = Field(1, ge=1)  # principal axes removed by "pc"
    iso: tuple[int, int] | None = None  # IsoCLIP: directions removed at the (top, bottom) of the spectrum


class AlignConfig(TrainConfig):
    """Stage 1: binding the text spaces (Eq. 1-6)."""

    method: str = "m3bind"  # binding method, the name of a file in align/methods/
    options: dict[str, Any] = {}  # options of that method, see `defaults` in its file
    post: PostConfig = PostConfig()  # post steps stored in the space
    dim: int = Field(512, ge=8)  # dimensions of the bound space
    bridge: Literal["procrustes", "identity"] = "procrustes"  # initialisation of the bridges
    pool: int = Field(4096, ge=16)  # number of texts Procrustes is fitted on
    steps: int = Field(15000, ge=0)
    shared_batch: int = Field(64, ge=2)  # texts per step of the text-text loss
    mse_weight: float = 10.0  # lambda of Eq. 6
    mse_reduction: Literal["sum", "mean"] = "sum"  # over the d dimensions of Eq. 2
    text_contrastive: float = 0.0  # weight of InfoNCE between text towers (not in the paper)
    text_contrastive_scale: float = 14.29  # logit scale of that loss, 1 / temperature
    text: Literal["lora", "head", "frozen"] = "lora"  # part of the text towers that is trained
    image: Literal["lora", "head", "bridge", "frozen"] = "bridge"  # part of the image side that is trained
    consistency: float = Field(0.0, ge=0, le=1000)  # weight of drawing copies (`pretrain.views`) to their image
    train_bridge: bool = True  # False: bridges stay at their initial values
    bridge_maps: Literal["one", "two"] = "one"  # per modality: one for both sides, or one each for images and texts
    bridge_lr: float = 1.0  # learning rate of the bridges as a multiple of lr
    lora: LoraConfig = LoraConfig()
    balance: BalanceConfig = BalanceConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()


class StudentConfig(Settings):
    """The shared text encoder of stage 2."""

    text: str = "minilm"  # a kind of m3bind.models.layers.text_encoder, a folder or a hub id
    settings: dict[str, Any] = {}  # settings of that text encoder
    train: Literal["full", "head"] = "full"  # part that is trained; head: trunk features are computed once


class DistillConfig(TrainConfig):
    """Stage 2: semantic similarity knowledge distillation, SESKD (Eq. 7-9)."""

    steps: int = Field(1200, ge=0)  # steps of phase A (Eq. 7 alone)
    steps_b: int = Field(1200, ge=0)  # steps of phase B (Eq. 9)
    shared_batch: int = 64  # texts per step of Eq. 7
    teachers: Literal["all", "own"] = "all"  # teachers of a text: all towers, or the tower of its modality
    student: StudentConfig = StudentConfig()
    contrastive_weight: float = 1.0  # weight of Eq. 8
    kd_weight: float = 1.0  # weight of Eq. 7 in phase B
    affinity: float = Field(0.0, ge=0)  # weight of affinity mimicking (TinyCLIP) in phase B
    feature: float = Field(0.0, ge=0)  # weight of feature distillation (CLIP-KD, FD) in phase B
    relation: float = Field(0.0, ge=0)  # weight of contrastive relational distillation (CLIP-KD, CRD) in phase B
    interactive: float = Field(0.0, ge=0)  # weight of interactive contrastive learning (CLIP-KD, ICL) in phase B
    balance: BalanceConfig = BalanceConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()


class EvaluateConfig(Settings):
    """Evaluation of the run."""

    tasks: list[str] = []  # prompt sets: names or YAML files (docs/evaluation.md); empty: all packaged ones that match
    bootstrap: int = 1000  # bootstrap resamples per confidence interval
    agreement_texts: int = 1000  # number of texts on which the text towers are compared
    gap_correction: bool = True  # report image-to-image metrics also after subtracting modality means
    post: list[Literal["rotate", "realign", "pc"]] = []  # report them also after these post steps (align/post.py)
    probe: bool = True  # train a linear probe on each image tower


class ComputeConfig(Settings):
    """Where and how a run computes; may change when it resumes, since it determines only the last bits of results."""

    device: str = "auto"  # auto: a CUDA or ROCm GPU if available, else the CPU; or cpu, cuda, cuda:1, mps
    precision: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # of the towers; auto: bfloat16 if native, GPUs with TF32
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"  # processes that read files; auto: one per core
    prefetch: int = Field(2, ge=1)  # batches that each worker prepares ahead of the training step
    compile: bool = False  # pass the towers through torch.compile
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]  # that receive losses and loop settings
    profile: bool = False  # write trace.json of a few steps (torch.profiler) into each stage's folder

    def pick(self, warn: bool = True) -> "Compute":
        """What these settings mean on this machine; see `core.device.pick`."""
        from m3bind.core.device import pick

        loop = self.prefetch, self.compile, self.trackers, self.profile
        return pick(self.device, self.precision, self.workers, *loop, warn)


class PlanConfig(Settings):
    """What `m3bind plan` assumes if it cannot be measured."""

    sizes: dict[str, int] = {}  # training pairs per modality if the manifest does not exist yet
    tokens: int = Field(60, ge=2)  # tokens per text if there are no texts to count
    utilisation: float = Field(0.35, gt=0, le=1)  # fraction of a GPU's published peak rate that training reaches


class RunConfig(Settings):
    """All settings of one run; saved in resolved form beside its results."""

    name: FolderName = "run"  # name of the run's folder
    seed: int = 0  # of all random numbers
    data: DataConfig = DataConfig()
    modalities: dict[str, ModelConfig] = {}  # model of each modality; null removes a modality
    pretrain: PretrainConfig = PretrainConfig()
    align: AlignConfig = AlignConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    plan: PlanConfig = PlanConfig()
    compute: ComputeConfig = ComputeConfig()

    def pretrain_for(self, modality: str) -> PretrainConfig:
        """Stage 0 settings with the exceptions of `per_modality` for `modality`."""
        return PretrainConfig(**merge(self.pretrain.model_dump(), self.pretrain.per_modality.get(modality, {})))

    def of_result(self) -> dict[str, Any]:
        """The settings that determine the result, as JSON values: all but `compute`."""
        return self.model_dump(mode="json", exclude={"compute"})

    def save(self, path: Path) -> None:
        """Write the resolved tree as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def presets() -> list[str]:
    """Names of the settings files in the package."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("m3bind.configs").iterdir() if p.name.endswith(".yaml")
    )


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Settings from a preset name or a YAML path, with `section.key=value` overrides (values are YAML).

    Raises:
        ConfigError: unreadable file, unknown key, bad value; the message names the setting.
        UnknownNameError: neither a preset nor a file.
    """
    tree = _read(source, seen=())
    override(tree, overrides)
    tree.setdefault("name", Path(source).stem)
    return validate(tree)


def override(tree: dict[str, Any], changes: Sequence[str]) -> None:
    """Change a tree of settings in place by `section.key=value` (values are YAML).

    Raises:
        ConfigError: not of that form, or a parent key that is not a section.
    """
    for item in changes:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {item!r} is not of the form section.key=value, e.g. align.mse_weight=1")
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {key!r}: {parent!r} is a value, not a section")
        node[last] = plain_yaml(value, f"override {key!r}")


def plain_yaml(text: str, source: str) -> Any:
    """Parse YAML that a user wrote, from the file or setting `source`.

    Raises:
        ConfigError: not YAML of plain values, or too large.
    """
    try:
        return parse_yaml(text, source)
    except StoredFileError as error:
        raise ConfigError(str(error)) from None


def mapping_in(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that a user wrote; empty for an empty file.

    Raises:
        ConfigError: not UTF-8, not YAML of plain values, or not a mapping.
    """
    try:
        return checked(dict[str, Any], read_yaml(path) or {}, path)
    except StoredFileError as error:
        raise ConfigError(str(error)) from None


def validate(tree: Any, source: str = "settings") -> RunConfig:
    """A tree of plain values as `RunConfig`; `source` is named if it is not a mapping.

    Raises:
        ConfigError: naming the first setting that is unknown or has a bad value, or what another setting lacks.
    """
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{source}: expected a mapping of settings at the top level")
    if isinstance(tree.get("modalities"), dict):
        tree = tree | {"modalities": {m: v for m, v in tree["modalities"].items() if v is not None}}
    try:
        config = RunConfig(**tree)
        trained = config.align.image == "head" or (config.align.image == "bridge" and config.align.train_bridge)
        if config.align.consistency and (config.align.method != "m3bind" or not trained):
            raise ConfigError(
                "setting 'align.consistency' has no effect: it needs align.method=m3bind, and align.image=bridge (with "
                "align.train_bridge) or head"
            )
        if config.align.consistency and not any(config.pretrain_for(m).views > 1 for m in config.modalities):
            raise ConfigError(
                "setting 'align.consistency': there are no copies of the training images; set pretrain.views to 2 or "
                "more, and pretrain.degrade"
            )
        return config
    except ValidationError as error:
        errors = error.errors()
        first = errors[0]
        where = _place(tree, first)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where.rsplit(".", 1)[-1], _known_keys(RunConfig), n=2)
            raise ConfigError(
                f"unknown setting {where!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
            ) from None
        same = [each["msg"] for each in errors if _place(tree, each) == where]  # several: one per branch of a union
        message = " or ".join([same[0], *(text.removeprefix("Input should be ") for text in same[1:])])
        raise ConfigError(f"setting {where!r}: {message} (got {str(first.get('input'))[:60]!r})") from None


def _place(tree: Any, error: "ErrorDetails") -> str:
    """The setting that an error is about: its location without the branches of unions, which are not in the tree."""
    place: list[str] = []
    for part in error["loc"]:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            if error["type"] != "missing":
                break
        place.append(str(part))
    return ".".join(place)


def _known_keys(model: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation)
    return keys


def _read(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if source in seen:
        raise ConfigError(f"settings extend each other in a circle: {' -> '.join((*seen, source))}")
    if source in presets():
        tree = plain_yaml((resources.files("m3bind.configs") / f"{source}.yaml").read_text(encoding="utf-8"), source)
    elif Path(source).is_file():
        tree = mapping_in(Path(source))
    else:
        raise UnknownNameError("preset or settings file", source, presets())
    base = tree.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{source}: extends takes the name of a preset or of a file")
    return merge(_read(base, (*seen, source)), tree) if base else tree


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`: mappings key by key, anything else replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
