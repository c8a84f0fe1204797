"""A space on disk: one self-contained folder, checked by hashes.

    space.json                    models with settings, cards and licences, logit scales, config, prompts, counts of
                                  training records, versions, SHA-256 of all files and of itself
    weights/<hash>.safetensors    one file per part (image trunk, image head, text trunk, text head, rest), named by
                                  content: a frozen trunk that several modalities share is stored, and loaded, once
    assets/<modality>/            tokenizer files and other assets of the model

* `Contents`, `SpaceInfo`: a space in memory. * `write_folder`: replaces the folder as a whole; `reader` reads it.

Shapes: d_m joint dimension of modality m's model, d dimension of the space.
"""

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from m3bind.core.files import atomic_path, sha256_file, sha256_text, write_json
from m3bind.core.version import __version__
from m3bind.errors import ConfigError, SpaceError
from m3bind.models.base import PARTS, DualEncoder, ModelCard
from m3bind.models.bridges import BaseBridge, Bridge
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.models.registry import stored_settings
from m3bind.models.weights.checkpoint import hash_state, save_state
from m3bind.space.unlike import UnlikeMeasure

FORMAT, VERSION = "m3bind-space", 3  # 2: bridges of other kinds than linear. 3: temperatures. Without, the lower one
MANIFEST = "space.json"
STUDENT_PARTS = ("trunk", "head")

State = dict[str, Tensor]


@dataclass
class SpaceInfo:
    """What describes a space beside its weights. JSON values only."""

    config: dict[str, Any] = field(default_factory=dict)  # the resolved settings it was trained with
    prompts: dict[str, list[str]] = field(default_factory=dict)  # per modality: templates with {} for the label
    records: dict[str, dict[str, int]] = field(default_factory=dict)  # per modality: split -> records
    synthetic: bool = False  # trained on virtual patients
    temperatures: dict[str, float] = field(default_factory=dict)  # per modality: divides zero-shot logits
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)  # per modality; filled in when saved
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that wrote it; filled in when saved
    notes: str = ""


@dataclass
class Contents:
    """All parts of a space."""

    models: dict[str, DualEncoder]
    bridges: dict[str, BaseBridge]
    means: dict[str, Tensor]  # (d,) training mean of unit image embeddings; a modality may have none
    student: TextEncoder | None
    info: SpaceInfo
    unlike: dict[str, UnlikeMeasure] = field(default_factory=dict)  # a modality may have none
    texts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # reference texts (t, d), weights (t,)
    fingerprint: str = ""  # of everything that embeddings depend on; "" until saved


def write_folder(contents: Contents, folder: Path | str) -> str:
    """Write a space, replacing an older one as a whole; returns its fingerprint.

    Raises:
        ConfigError: the folder exists and is not a space, an adapter was not merged, or see `stored_settings`.
        DiskError: the file system refused; an older space there is left unchanged.
    """
    folder = Path(folder)
    guard_folder(folder, MANIFEST, "a space")
    with atomic_path(folder, directory=True) as temporary:
        writer = _Writer(temporary)
        modalities = {name: writer.modality(name, contents) for name in contents.models}
        student = writer.student(contents.student) if contents.student is not None else None
        arrays: State = {}
        for name, bridge in contents.bridges.items():
            arrays |= _bridge_tensors(name, bridge)
        arrays |= {f"mean.{name}": value for name, value in contents.means.items()}
        for name, measure in contents.unlike.items():
            arrays |= {f"unlike.{name}.{key}": value for key, value in measure.state_dict().items()}
        for name, (rows, weights) in contents.texts.items():
            arrays |= {f"texts.{name}": rows.half(), f"weights.{name}": weights}
        info = contents.info
        core = {
            "dim": next(iter(contents.bridges.values())).dim,
            "modalities": modalities,
            "student": student,
            "arrays": writer.state(arrays),
            "files": dict(sorted(writer.files.items())),
        }
        content = {
            "format": FORMAT,
            "version": _version(contents),
            **core,
            "text_encoders": [*modalities, *(["student"] if student else [])],
            "config": info.config,
            "prompts": info.prompts,
            "prompts_hashes": {name: sha256_text(*templates) for name, templates in info.prompts.items()},
            "records": info.records,
            "synthetic": info.synthetic,
            **({"temperatures": info.temperatures} if info.temperatures else {}),
            "notes": info.notes,
            "versions": versions(),
            "fingerprint": _fingerprint(core),
        }
        content = json.loads(json.dumps(content))  # as a reader parses it
        write_json(temporary / MANIFEST, {**content, "checksum": manifest_checksum(content)})
    return str(content["fingerprint"])


def _version(contents: Contents) -> int:
    """The lowest version of the format that can hold a space."""
    if contents.info.temperatures:
        return VERSION
    return 1 if all(isinstance(bridge, Bridge) for bridge in contents.bridges.values()) else 2


def guard_folder(folder: Path, marker: str, what: str) -> None:
    """Refuse to replace a folder that does not hold `marker`: m3bind did not write it.

    Raises:
        ConfigError: `folder` is a file, or holds other files.
    """
    if folder.exists() and not (folder / marker).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not {what}; choose another folder, nothing was written")


def versions() -> dict[str, str]:
    """Versions of the libraries that compute embeddings."""
    libraries = ("torch", "transformers", "numpy", "safetensors", "timm")
    return {"m3bind": __version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in libraries
    }


def _fingerprint(core: Mapping[str, Any]) -> str:
    """Hash of everything that embeddings depend on, so without the cards."""
    modalities = {}
    for name, entry in core["modalities"].items():
        modalities[name] = {key: value for key, value in entry.items() if key != "card"}
    return manifest_checksum({**core, "modalities": modalities})


def manifest_checksum(content: Mapping[str, Any]) -> str:
    """Hash of JSON values."""
    return sha256_text(json.dumps(content, sort_keys=True))


def split_state(module: nn.Module, parts: tuple[str, ...]) -> dict[str, State]:
    """The state of a module by part; "rest" holds the tensors of no part. Parts without tensors are omitted."""
    split = {part: dict(getattr(module, part).state_dict()) for part in parts}
    stored = _identities(split)
    split["rest"] = {
        key: value for key, value in module.state_dict().items() if not value.numel() or _identity(value) not in stored
    }
    return {part: state for part, state in split.items() if state}


def join_state(module: nn.Module, split: Mapping[str, State], source: str) -> None:
    """Load a split state into a module without copying: modules given the same tensors share memory.

    Raises:
        SpaceError: tensors are missing, left over or of another shape.
    """
    try:
        for part, state in split.items():
            if part == "rest":
                unexpected = module.load_state_dict(state, strict=False, assign=True).unexpected_keys
                if unexpected:
                    raise RuntimeError(f"unexpected {', '.join(unexpected)}")
            else:
                getattr(module, part).load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        raise SpaceError(
            f"{source}: weights do not fit the network ({error}); was it saved by another version?"
        ) from error
    given = _identities(split)
    missing = [key for key, value in module.state_dict().items() if value.numel() and _identity(value) not in given]
    if missing:
        raise SpaceError(f"{source}: no weights for {', '.join(missing[:5])}; was it saved by another version?")


def _identities(split: Mapping[str, State]) -> set[tuple[object, ...]]:
    """`identity` of all tensors of a split state."""
    return {_identity(tensor) for state in split.values() for tensor in state.values()}


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two names of one tensor."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype


class _Writer:
    """Writes the files of a space and records their hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self._names = folder, dict[str, str](), dict[str, str]()

    def state(self, state: State) -> str:
        """Store tensors, once per content; returns the file, relative to the folder."""
        key = hash_state(state)
        if key not in self._names:
            temporary = self.folder / "weights" / "part.safetensors"
            save_state(state, temporary)
            digest = sha256_file(temporary)
            self._names[key] = f"weights/{digest[:16]}.safetensors"
            temporary.rename(self.folder / self._names[key])
            self.files[self._names[key]] = digest
        return self._names[key]

    def parts(self, module: nn.Module, parts: tuple[str, ...], what: str) -> dict[str, str]:
        """Store a module part by part."""
        adapters = [key for key in module.state_dict() if "lora_" in key]
        if adapters:
            raise ConfigError(f"{what} still has adapters ({adapters[0]}); merge them before saving the space")
        return {part: self.state(state) for part, state in split_state(module, parts).items()}

    def assets(self, name: str, save: Callable[[Path], None]) -> bool:
        """Let a model save its assets; False if it has none."""
        folder = self.folder / "assets" / name
        folder.mkdir(parents=True)
        save(folder)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in paths:
            self.files[path.relative_to(self.folder).as_posix()] = sha256_file(path)
        return bool(paths)

    def modality(self, name: str, contents: Contents) -> dict[str, Any]:
        """Store one dual encoder."""
        model, bridge = contents.models[name], contents.bridges[name]
        described = {"bridge": {"kind": bridge.kind, "settings": bridge.settings()}}
        return {
            "model": model.registered_name or type(model).name,
            "settings": stored_settings(model),
            "joint_dim": bridge.source,
            **({} if isinstance(bridge, Bridge) else described),
            "logit_scale": float(model.logit_scale.detach()),
            "weights": self.parts(model, PARTS, name),
            "assets": self.assets(name, model.save_assets),
            "card": card_of(model),
        }

    def student(self, student: TextEncoder) -> dict[str, Any]:
        """Store the student."""
        return {
            "settings": student.settings(),
            "weights": self.parts(student, STUDENT_PARTS, "the student"),
            "assets": self.assets("student", student.save_assets),
        }


def _bridge_tensors(name: str, bridge: BaseBridge) -> State:
    """The arrays of a bridge: `bridge.NAME` if it is one matrix, else `bridge.NAME.KEY`."""
    if isinstance(bridge, Bridge):
        return {f"bridge.{name}": bridge.weight.detach()}
    return {f"bridge.{name}.{key}": value for key, value in bridge.state_dict().items()}


def card_of(model: DualEncoder) -> dict[str, Any]:
    """The model card as JSON values; empty if the model has none."""
    card = getattr(model, "card", None)
    return json.loads(json.dumps(dataclasses.asdict(card))) if isinstance(card, ModelCard) else {}
