"""A space on disk: one folder that holds all it takes to use it, checked by hashes.

    space.json                    what is in it: models with settings, cards and licences, logit scales, config,
                                  prompts, counts of training records, versions, SHA-256 of all files and of itself
    weights/<hash>.safetensors    one file per part (image trunk, image head, text trunk, text head, rest), named by
                                  content: a frozen trunk that several modalities share is stored, and loaded, once
    assets/<modality>/            tokenizer files and whatever else a model saves

* `Contents`, `SpaceInfo`: what goes in and comes out. * `write_folder`, `read_folder`.

A folder is replaced as a whole. A reader that meets the replacement starts over and gets the old or the new space.

Shapes: d_m joint dimension of modality m's model, d dimension of the space.
"""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m3bind.core.files import atomic_path, sha256_file, sha256_text, write_json
from m3bind.core.stored import inside, read_bytes, read_json
from m3bind.core.version import __version__
from m3bind.errors import CheckpointError, ConfigError, SpaceError
from m3bind.models import registry
from m3bind.models.base import PARTS, DualEncoder, ModelCard
from m3bind.models.bridges import BaseBridge, Bridge, freeze, restore
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.models.weights import foreign
from m3bind.models.weights.checkpoint import bounded, hash_state, save_state, without_initialisation
from m3bind.models.weights.weight_files import check_count
from m3bind.space import manifest

FORMAT, VERSION = "m3bind-space", 2  # 2: bridges of other kinds than linear; a space without them is written as 1
MANIFEST = "space.json"
STUDENT_PARTS = ("trunk", "head")
MOST = 64 << 20  # bytes of the file that describes a folder
MOST_ASSET = 1 << 30  # of a tokenizer or the like
PATIENCE = 5.0  # seconds a reader keeps starting over while another process replaces the folder

State = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass
class SpaceInfo:
    """What a user should know about a space beside its weights. JSON values only."""

    config: dict[str, Any] = field(default_factory=dict)  # the resolved settings it was trained with
    prompts: dict[str, list[str]] = field(default_factory=dict)  # per modality: templates with {} for the label
    records: dict[str, dict[str, int]] = field(default_factory=dict)  # per modality: split -> records
    synthetic: bool = False  # trained on virtual patients
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)  # per modality; filled in when saved
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that wrote it; filled in when saved
    notes: str = ""


@dataclass
class Contents:
    """Everything a space consists of."""

    models: dict[str, DualEncoder]
    bridges: dict[str, BaseBridge]
    means: dict[str, Tensor]  # (d,) training mean of unit image embeddings; a modality may have none
    student: TextEncoder | None
    info: SpaceInfo
    fingerprint: str = ""  # of everything that embeddings depend on; "" until saved


def write_folder(contents: Contents, folder: Path | str) -> str:
    """Write a space, replacing an older one as a whole; returns its fingerprint.

    Raises:
        ConfigError: the folder exists and is something else than a space, or an adapter was not merged.
        DiskError: the file system refused; what stood there before is untouched.
    """
    folder = Path(folder)
    guard_folder(folder, MANIFEST, "a space")
    with atomic_path(folder, directory=True) as temporary:
        writer = _Writer(temporary)
        modalities = {name: writer.modality(name, contents) for name in contents.models}
        student = writer.student(contents.student) if contents.student is not None else None
        arrays = {
            key: value for name, bridge in contents.bridges.items() for key, value in _tensors(name, bridge).items()
        }
        arrays |= {f"mean.{name}": value for name, value in contents.means.items()}
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
            "version": 1 if all(isinstance(b, Bridge) for b in contents.bridges.values()) else VERSION,
            **core,
            "text_encoders": [*modalities, *(["student"] if student else [])],
            "config": info.config,
            "prompts": info.prompts,
            "prompts_hashes": {name: sha256_text(*templates) for name, templates in info.prompts.items()},
            "records": info.records,
            "synthetic": info.synthetic,
            "notes": info.notes,
            "versions": versions(),
            "fingerprint": _fingerprint(core),
        }
        content = json.loads(json.dumps(content))  # as a reader will see it
        write_json(temporary / MANIFEST, {**content, "checksum": _checksum(content)})
    return str(content["fingerprint"])


def guard_folder(folder: Path, marker: str, what: str) -> None:
    """Refuse to replace a folder that does not hold `marker`: it is not ours.

    Raises:
        ConfigError: `folder` is a file, or holds something else than `what`.
    """
    if folder.exists() and not (folder / marker).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not {what}; choose another folder, nothing was written")


def versions() -> dict[str, str]:
    """Versions of what computes embeddings."""
    libraries = ("torch", "transformers", "numpy", "safetensors", "timm")
    return {"m3bind": __version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in libraries
    }


def _fingerprint(core: Mapping[str, Any]) -> str:
    """Hash of what embeddings depend on; cards do not count."""
    plain = {name: {k: v for k, v in entry.items() if k != "card"} for name, entry in core["modalities"].items()}
    return sha256_text(json.dumps({**core, "modalities": plain}, sort_keys=True))


def _checksum(content: Mapping[str, Any]) -> str:
    return sha256_text(json.dumps(content, sort_keys=True))


def split_state(module: nn.Module, parts: tuple[str, ...]) -> dict[str, State]:
    """The state of a module by part; "rest" holds what belongs to no part. Parts without tensors are left out."""
    split = {part: dict(getattr(module, part).state_dict()) for part in parts}
    stored = {_identity(tensor) for state in split.values() for tensor in state.values()}
    split["rest"] = {
        key: value for key, value in module.state_dict().items() if not value.numel() or _identity(value) not in stored
    }
    return {part: state for part, state in split.items() if state}


def join_state(module: nn.Module, split: Mapping[str, State], source: str) -> None:
    """Put a split state into a module without copying: modules given the same tensors share memory.

    Raises:
        SpaceError: tensors are missing, left over or of another shape.
    """
    try:
        for part, state in split.items():
            if part == "rest":
                strange = module.load_state_dict(state, strict=False, assign=True).unexpected_keys
                if strange:
                    raise RuntimeError(f"unexpected {', '.join(strange)}")
            else:
                getattr(module, part).load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        raise SpaceError(
            f"{source}: weights do not fit the network ({error}); was it saved by another version?"
        ) from error
    given = {_identity(tensor) for state in split.values() for tensor in state.values()}
    missing = [key for key, value in module.state_dict().items() if value.numel() and _identity(value) not in given]
    if missing:
        raise SpaceError(f"{source}: no weights for {', '.join(missing[:5])}; was it saved by another version?")


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """The same for two names of one tensor."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype


class _Writer:
    """Collects the files of a space that is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self._names = folder, dict[str, str](), dict[str, str]()

    def state(self, state: State) -> str:
        """Store tensors once per content; returns the file, relative to the folder."""
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
        """Let a model save its assets; False when it has none."""
        folder = self.folder / "assets" / name
        folder.mkdir(parents=True)
        save(folder)
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in found:
            self.files[path.relative_to(self.folder).as_posix()] = sha256_file(path)
        return bool(found)

    def modality(self, name: str, contents: Contents) -> dict[str, Any]:
        """Store one dual encoder."""
        model = contents.models[name]
        return {
            "model": model.registered_name or type(model).name,
            "settings": model.settings(),
            "joint_dim": contents.bridges[name].source,
            **_described(contents.bridges[name]),
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


def _described(bridge: BaseBridge) -> dict[str, Any]:
    """What the manifest says of a bridge; nothing of a linear one, whose matrix says it all."""
    return {} if isinstance(bridge, Bridge) else {"bridge": {"kind": bridge.kind, "settings": bridge.settings()}}


def _tensors(name: str, bridge: BaseBridge) -> State:
    """A bridge among the arrays: `bridge.NAME` where it is one matrix, else `bridge.NAME.KEY`."""
    if isinstance(bridge, Bridge):
        return {f"bridge.{name}": bridge.weight.detach()}
    return {f"bridge.{name}.{key}": value for key, value in bridge.state_dict().items()}


def card_of(model: DualEncoder) -> dict[str, Any]:
    """The model card as JSON values; empty where a model has none."""
    card = getattr(model, "card", None)
    return json.loads(json.dumps(dataclasses.asdict(card))) if isinstance(card, ModelCard) else {}


def read_folder(folder: Path | str) -> Contents:
    """Read a space, verifying every file.

    Raises:
        SpaceError: not a space, damaged, incomplete or written by a newer version; names the file.
    """
    folder = Path(folder)
    return read_whole(folder, MANIFEST, lambda: _Reader(folder).contents())


def read_whole(folder: Path, marker: str, read: Callable[[], T]) -> T:
    """What `read` makes of a folder, starting over when another process replaces the folder meanwhile.

    Raises:
        SpaceError: the folder itself is at fault.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        before = _stamp(folder, marker)
        try:
            result = read()
            if _stamp(folder, marker) == before:
                return result
        except Exception as error:  # whatever a library raises when a file vanishes under it
            being_replaced = _stamp(folder, marker) != before or (before is None and _leftovers(folder))
            if not being_replaced or time.monotonic() > give_up:
                if isinstance(error, OSError):
                    raise SpaceError(f"{folder}: cannot be read ({error})") from error
                raise
        time.sleep(0.01)


def _stamp(folder: Path, marker: str) -> tuple[int, int, bytes] | None:
    """Which version of the folder is there now."""
    try:
        stat = folder.stat()
        return stat.st_ino, stat.st_mtime_ns, read_bytes(inside(folder, marker), MOST)
    except (OSError, ValueError):  # `read` says what is wrong with it
        return None


def _leftovers(folder: Path) -> list[Path]:
    """What `atomic_path` leaves beside a folder while (or because a process died when) it replaced it."""
    return sorted(folder.parent.glob(f".{folder.name}.*.old"))


class _Reader:
    """Opens and checks the files of one space."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._states = folder, dict[str, State]()
        self.content = self._manifest()
        for name, digest in self.content["files"].items():
            self._verify(name, digest)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            content: dict[str, Any] = read_json(inside(self.folder, MANIFEST), MOST)
            checksum = content.pop("checksum")
            version = content["version"]
            if content["format"] != FORMAT or not isinstance(version, int):
                raise ValueError("another format")
        except (FileNotFoundError, NotADirectoryError) as error:
            old = _leftovers(self.folder)
            hint = f"; a process died while replacing it: rename {old[-1]} to {self.folder}" if old else ""
            raise SpaceError(f"{self.folder}: not a space, it holds no {MANIFEST}{hint}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path) from error
        if version > VERSION:
            raise SpaceError(f"{path}: written by a newer m3bind (format {version} > {VERSION}); update m3bind")
        if checksum != _checksum(content):
            raise damaged(path)
        manifest.check(content, path)
        return content

    def _verify(self, name: str, digest: str) -> None:
        try:
            path = inside(self.folder, name)
        except ValueError as error:
            reason = "names a file outside the space"
            raise SpaceError(f"{self.folder / MANIFEST}: {reason} ({error}); do not use it") from error
        if not path.is_file():
            raise SpaceError(f"{path}: missing; copy the whole folder again, or save the space again")
        self._measure(path)
        if sha256_file(path) != digest:
            raise damaged(path)

    def _measure(self, path: Path) -> None:
        """Refuse a file that is larger than what it can hold, before all of it is hashed."""
        if path.suffix != ".safetensors" and (size := path.stat().st_size) > MOST_ASSET:
            raise SpaceError(f"{path}: {size:,} bytes, more than any file of a space has; do not use it")
        if path.suffix == ".safetensors":
            try:
                check_count(path)  # its header also says how many bytes it has
            except (SafetensorError, ValueError) as error:
                raise damaged(path) from error

    def _state(self, name: str) -> State:
        """Tensors of one weights file; asked twice, the same tensors."""
        if name not in self._states:
            try:
                self._states[name] = load_file(self.folder / name)
            except SafetensorError as error:
                raise damaged(self.folder / name) from error
        return self._states[name]

    def _fill(self, module: M, weights: Mapping[str, str], what: str) -> M:
        join_state(module, {part: self._state(name) for part, name in weights.items()}, f"{self.folder} ({what})")
        return module.requires_grad_(False).eval()

    def _network(self, name: str, entry: Mapping[str, Any]) -> DualEncoder:
        """The untrained dual encoder of one modality."""
        states = [self._state(file) for file in entry["weights"].values()]
        where = f"{self.folder / MANIFEST} ({name})"
        return registry.rebuild(entry["model"], entry["settings"], self._assets(entry, name), states, where)

    def _student(self, entry: Mapping[str, Any]) -> TextEncoder:
        """The untrained student."""
        where, assets = f"{self.folder / MANIFEST} (student)", self.folder / "assets" / "student"
        states = [self._state(file) for file in entry["weights"].values()]
        with foreign.described(where, "the settings of a student"), bounded(states, where):
            return TextEncoder.from_settings(entry["settings"], assets=assets)

    def _assets(self, entry: Mapping[str, Any], name: str) -> Path | None:
        return self.folder / "assets" / name if entry["assets"] else None

    def _bridge(self, name: str, entry: Mapping[str, Any], arrays: State) -> BaseBridge:
        """The bridge of one modality."""
        prefix, described = f"bridge.{name}.", entry.get("bridge")
        try:
            if described is None:
                return freeze(Bridge(arrays[f"bridge.{name}"]))
            foreign.sizes(described["settings"])
            with bounded([arrays], f"{self.folder} (bridge of {name})"):
                bridge = restore(described["kind"], described["settings"])
            bridge.load_state_dict({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        except (RuntimeError, KeyError, TypeError, ValueError, ConfigError, RecursionError) as error:
            raise SpaceError(
                f"{self.folder}: the bridge of {name} does not fit ({foreign.reason(error)}); was it saved by another "
                "version?"
            ) from error
        return freeze(bridge)

    def contents(self) -> Contents:
        """All of it, as modules and tensors."""
        content, arrays = self.content, self._state(self.content["arrays"])
        models, bridges, student = {}, {}, None
        with torch.random.fork_rng(devices=[]), without_initialisation():  # the caller's random numbers stay
            try:
                for name, entry in content["modalities"].items():
                    models[name] = self._fill(self._network(name, entry), entry["weights"], name)
                    bridges[name] = self._bridge(name, entry, arrays)
                if entry := content["student"]:
                    student = self._fill(self._student(entry), entry["weights"], "student")
            except CheckpointError as error:
                raise SpaceError(str(error)) from error
        cards = {name: entry["card"] for name, entry in content["modalities"].items()}
        names = [entry.name for entry in dataclasses.fields(SpaceInfo) if entry.name != "cards"]
        return Contents(
            models,
            bridges,
            {name: arrays[f"mean.{name}"] for name in models if f"mean.{name}" in arrays},
            student,
            SpaceInfo(cards=cards, **{name: content[name] for name in names}),
            content["fingerprint"],
        )


def damaged(path: Path, remedy: str = "save the space again") -> SpaceError:
    """The error that `path` does not hold what was written."""
    return SpaceError(f"{path}: damaged, its content does not fit its hash; copy it again, or {remedy}")
