"""Weights from disk: safe to open, loaded strictly, and hashed by content.

* `resolve`: a local file or folder as it is, a hub id (with a pinned revision) as a downloaded folder.
* `read_state`: key -> tensor from safetensors, .pt/.pth/.bin/.ckpt (never full unpickling), Hugging Face and open_clip
  folders, one file or sharded.
* `load_strict`: missing keys, unexpected keys and other shapes stop with every name listed; named migrations first.
* `strip_prefix`, `rename`, `drop_position_ids`: the migrations.
* `save_state`, `hash_state`: safetensors on disk, SHA-256 of names and contents.
"""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m3bind.errors import CheckpointError, ConfigError, ReadError
from m3bind.files import atomic_path

State = dict[str, Tensor]
Migration = Callable[[State, frozenset[str]], State]  # (state, keys the module wants) -> state

FOLDER_FILES = (  # weights in a folder, the first that is there
    "weights.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights inside a checkpoint
_SHOWN = 12  # names listed in an error message before "and N more"


@dataclass(frozen=True)
class LoadReport:
    """What `load_strict` did: keys `loaded` into the module and keys of the file that were `ignored` on request."""

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]


def resolve(source: Path | str, revision: str = "") -> Path:
    """`source` as a local path: an existing file or folder as it is, otherwise a hub id downloaded at `revision`.

    Raises:
        ConfigError: a hub id without a revision (a branch moves; results could not be repeated).
        CheckpointError: neither a local path nor a hub repository that can be reached.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    text = str(source).removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise CheckpointError(f"{source}: no such file or folder; give a local path or a hub id 'owner/name'.")
    if not revision:
        raise ConfigError(
            f"{source} is not a local path; to take it from the hub, pin it: revision='<commit>' (a branch moves)."
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=patterns))
    except Exception as error:  # offline, not found, gated, HTTP: all mean the same here
        raise CheckpointError(
            f"{text}@{revision}: cannot be fetched from the hub ({type(error).__name__}); check the name, the revision "
            "and the connection, or download the folder yourself and give its path."
        ) from error


def read_state(path: Path | str) -> State:
    """Names and CPU tensors of a checkpoint file, or of the weights inside a Hugging Face or open_clip folder.

    Lightning and similar checkpoints are unwrapped (`state_dict`, `model_state_dict`, `model`).

    Raises:
        ReadError: no such file, or a folder without weights.
        CheckpointError: damaged, not a checkpoint at all, or only readable by running code from the file.
    """
    path = Path(path)
    if path.is_dir():
        present = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not present:
            raise ReadError(path, "a folder without weights", f"expected one of {', '.join(FOLDER_FILES)}")
        path = present[0]
    if not path.is_file():
        raise ReadError(path, "no such file", "check the path of the checkpoint")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    _refuse_other_files(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    return _tensors(_torch_load(path), path)


def _read_shards(index: Path) -> State:
    """All tensors of a sharded Hugging Face checkpoint; shards may only be files beside their index."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(index, error) from error
    state: State = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index}: names a shard outside its folder ({name!r}); refused.")
        state.update(read_state(index.parent / name))
    absent = sorted(set(weight_map) - set(state))
    if absent:
        raise CheckpointError(f"{index}: its shards lack {_listed(absent)}; download the folder again.")
    return state


def _refuse_other_files(path: Path) -> None:
    """Recognise what people save by accident under a checkpoint's name."""
    with open(path, "rb") as handle:
        head = handle.read(512)
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a git-lfs pointer, not the weights; run `git lfs pull` in its repository.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: a web page, not weights (a login or error page was saved); download it again.")
    if not head:
        raise CheckpointError(f"{path}: empty file; download it again.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                f"{path}: a TorchScript archive (a program with its weights, as OpenAI published CLIP); reading it "
                "could run code stored in the file. If you trust its authors, convert it once: "
                "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), OUT), and give OUT here."
            )
        if not any(name.endswith("data.pkl") for name in names):
            raise CheckpointError(f"{path}: an archive holding {_listed(names)}; unpack it and give the file inside.")


def _torch_load(path: Path) -> Any:
    """`torch.load` that never runs code from the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = ", ".join(dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", str(error))))
        reason = (
            f"reading it would run code stored in the file ({wanted})"
            if wanted
            else f"it is damaged, or a pickle that only full unpickling could read ({path.stat().st_size:,} bytes)"
        )
        raise CheckpointError(
            f"{path}: refused, since {reason}. Nothing was executed. If you trust its authors, convert it once in an "
            "isolated process: load it with torch.load(FILE, weights_only=False), write its state dict with "
            "safetensors.torch.save_file, and give the .safetensors file here."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _tensors(content: Any, path: Path) -> State:
    """The flat name -> tensor mapping inside what `torch.load` returned."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a mapping of names to tensors.")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: not a plain state dict; these entries are no tensors: {_listed(others)}.")
    return dict(content)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    size = path.stat().st_size
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return CheckpointError(f"{path}: damaged or incomplete ({size:,} bytes; {reason}); download or copy it again.")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def strip_prefix(prefix: str) -> Migration:
    """Remove `prefix` from every key, if all keys carry it and the module's own keys do not."""

    def migrate(state: State, wanted: frozenset[str]) -> State:
        if not state or not all(key.startswith(prefix) for key in state):
            return state
        if any(key.startswith(prefix) for key in wanted):
            return state
        return {key.removeprefix(prefix): value for key, value in state.items()}

    return migrate


def rename(pattern: str, replacement: str) -> Migration:
    r"""Replace a regular expression in every key, e.g. `rename(r"\.gamma$", ".weight")`.

    Raises (when applied):
        CheckpointError: two keys would get the same name.
    """

    def migrate(state: State, wanted: frozenset[str]) -> State:
        renamed = {re.sub(pattern, replacement, key): value for key, value in state.items()}
        if len(renamed) != len(state):
            raise CheckpointError(f"renaming {pattern!r} to {replacement!r} would give two keys one name.")
        return renamed

    return migrate


def drop_position_ids(state: State, wanted: frozenset[str]) -> State:
    """Drop `...position_ids` buffers (transformers <= 4.30 saved them) the module lacks, if they count 0, 1, 2, ...

    Raises:
        CheckpointError: a buffer holds other numbers, so dropping it would change the network.
    """
    kept: State = {}
    for key, value in state.items():
        if key.rpartition(".")[2] != "position_ids" or key in wanted:
            kept[key] = value
        elif not torch.equal(value.flatten().long(), torch.arange(value.numel())):
            raise CheckpointError(f"{key} is not 0, 1, 2, ...: this checkpoint numbers positions in its own way.")
    return kept


DEFAULT_MIGRATIONS: tuple[Migration, ...] = (drop_position_ids, strip_prefix("module."), strip_prefix("model."))


def load_strict(
    module: nn.Module,
    state: State,
    migrations: Sequence[Migration] = (),
    ignore: Sequence[str] = (),
    source: str = "checkpoint",
) -> LoadReport:
    """Copy `state` into `module`; nothing may be left over on either side.

    Args:
        module: receives the tensors (converted to its own dtypes and devices).
        state: names and tensors; not changed.
        migrations: applied in order after the default ones (position_ids, `module.` and `model.` prefixes).
        ignore: shell patterns (`cls.*`) of keys of the file that may go unused; they are reported, not hidden.
        source: the file's name for error messages.

    Raises:
        CheckpointError: missing keys, unexpected keys not named in `ignore`, or other shapes, all listed.
    """
    target = module.state_dict()
    wanted = frozenset(target)
    for migration in (*DEFAULT_MIGRATIONS, *migrations):
        state = migration(state, wanted)
    unexpected = [key for key in state if key not in wanted]
    ignored = [key for key in unexpected if any(fnmatchcase(key, pattern) for pattern in ignore)]
    left = sorted(set(unexpected) - set(ignored))
    missing = sorted(wanted - set(state))
    shapes = [
        f"{key} {tuple(value.shape)} (the network has {tuple(target[key].shape)})"
        for key, value in state.items()
        if key in wanted and value.shape != target[key].shape
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", left), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}. "
            "Is it the checkpoint of this model and variant?"
        )
    module.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=True)
    return LoadReport(tuple(sorted(wanted)), tuple(sorted(ignored)))


def save_state(state: Mapping[str, Tensor], path: Path | str, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file atomically; tensors that share memory are written out separately.

    Raises:
        DiskError: the file system refused; what stood there before is untouched.
    """
    seen: set[int] = set()
    plain: State = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of names, dtypes, shapes and bytes; independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
