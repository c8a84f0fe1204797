"""Weight files: found, unpacked, recognised by their content, and read without running code from them.

* `choose`: the weights among file names. `weights_file`: the file of a path: itself, in a folder, or in a zip.
* `recognise`: its form, by its first bytes, with a clear error for files of other kinds.
* `read_state`: key -> CPU tensor. `unwrapped`: the state dict in a training checkpoint.
* `check_count`: a limit on the number of tensors. `refused`, `damaged`, `listed`: error messages.

Weights are mapped into memory if their form allows it (safetensors, torch.save since 1.6), so that copying them into a
network does not need twice the memory.
"""

import contextlib
import os
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from m3bind.core.stored import inside, read_json
from m3bind.errors import CheckpointError, ReadError, in_words
from m3bind.modalities.formats import archive as _archive
from m3bind.modalities.formats import limits

State = dict[str, Tensor]
Form = Literal["safetensors", "index", "torch", "torchscript", "pickle", "zip"]

MAX_TENSORS = 20_000  # in a file of weights
FOLDER_FILES = (  # weights in a folder; the first that exists is read
    "weights.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar")  # .tar: some authors' suffix for torch.save
WRAPPERS = ("state_dict", "model_state_dict", "model", "params")  # keys of the weights in training checkpoints
INDEX = ".index.json"
_ARCHIVES = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_SHOWN = 12  # names listed in an error message before "and N more"
_RATIO, _SMALL = 50, 64 << 20  # weights hardly compress: a ratio above 50 in more than 64 MB is not a file of weights


# ---- which file


def choose(names: Iterable[str], where: str, how: str) -> str:
    """The weights among the file names of a folder: the first of FOLDER_FILES, else the only candidate.

    Raises:
        CheckpointError: several candidates; or (ReadError) none.
    """
    names = sorted(names)
    for name in FOLDER_FILES:
        if name in names:
            return name
    others = [name for name in names if "/" not in name and name.lower().endswith((*SUFFIXES, ".zip"))]
    if not others:
        raise ReadError(where, "a folder without weights", f"expected one of {', '.join(FOLDER_FILES)}")
    if len(others) > 1:
        raise CheckpointError(f"{where}: holds several files of weights ({listed(others)}); name one: {how}.")
    return others[0]


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights: its path, and its name in messages."""

    path: Path
    shown: str
    given: Path  # the user's path: the file, its folder, or the zip around it


@contextlib.contextmanager
def weights_file(path: Path | str) -> Iterator[WeightsFile]:
    """The file of weights of `path`; unpacked from a zip only within the context.

    Raises:
        ReadError: no such file, or a folder without weights.
        CheckpointError: several files of weights; a zip without one, with several, or a malicious one.
    """
    given = path = Path(path)
    if path.is_dir():
        name = choose((file.name for file in path.iterdir() if file.is_file()), str(path), f"'{path}/FILE'")
        path = _within(path, name, str(path))
    if not path.is_file():
        raise ReadError(path, "no such file", "check the path of the checkpoint")
    if recognise(path) != "zip":
        yield WeightsFile(path, str(path), given)
        return
    with _archive.temporary_folder() as folder:
        member = _unpack(path, folder)
        yield WeightsFile(folder / member.name, f"{path} ({member})", given)


def _within(folder: Path, name: str, shown: str) -> Path:
    """The path of a file inside a folder; a link out of it is refused."""
    try:
        return inside(folder, name)
    except ValueError as error:
        raise CheckpointError(f"{shown}: its weights are outside the folder ({error}); refused.") from error


def _unpack(path: Path, folder: Path) -> PurePosixPath:
    """Unpack the one file of weights of a zip into `folder`; its name in the zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            for info in members:
                _archive.check_member(path, info)
            candidates = [info for info in members if _is_weights(PurePosixPath(info.filename))]
            if not candidates:
                raise CheckpointError(
                    f"{path}: an archive without a file of weights; it holds {listed(i.filename for i in members)}."
                )
            if len(candidates) > 1:
                names = listed(info.filename for info in candidates)
                raise CheckpointError(f"{path}: an archive with several files of weights ({names}); unpack the one.")
            info, name = candidates[0], PurePosixPath(candidates[0].filename)
            if info.file_size > max(_SMALL, _RATIO * info.compress_size):
                raise CheckpointError(
                    f"{path}: {name} would unpack to {info.file_size:,} bytes from {info.compress_size:,}, which no "
                    "weights do; malicious. If it is sound, unpack it yourself and give the file."
                )
            if info.file_size > (limit := limits.LIMITS.bytes):
                raise CheckpointError(
                    f"{path}: {name} unpacks to {info.file_size:,} bytes, more than {limit:,}; unpack it yourself and "
                    f"give the file, or raise bytes in the environment variable {limits.VARIABLE}."
                )
            _archive.unpack_member(path, archive, info, folder / name.name)
            return name
    except ReadError as error:
        raise CheckpointError(f"{path}: {error.advice}.") from error
    except OSError as error:
        why = error.strerror or in_words(error)
        raise CheckpointError(f"{path}: unpacking failed ({why}); free some disk or set TMPDIR elsewhere.") from error
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises errors of several libraries on damaged archives
        raise damaged(path, str(path), error) from error


def _is_weights(name: PurePosixPath) -> bool:
    hidden = name.name.startswith(".") or "__MACOSX" in name.parts
    return name.suffix.lower() in SUFFIXES and not hidden


# ---- form


def recognise(path: Path, shown: str = "") -> Form:
    """The form of the file at `path`, by its content.

    Raises:
        CheckpointError: not weights: a web page, a git-lfs pointer, another kind of archive, a text, an empty file.
    """
    shown = shown or str(path)
    if path.name.endswith(INDEX):
        return "index"
    with open(path, "rb") as handle:
        head = handle.read(512)
    # safetensors: eight bytes of length (of a header below 100 MB, the format's limit), then JSON
    if len(head) > 8 and head[4:8] == bytes(4) and head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _recognise_zip(path, shown)
    _refuse_other_files(head, path, shown)
    return "pickle"


def _recognise_zip(path: Path, shown: str) -> Form:
    """torch.save writes zip files too: ROOT/data.pkl beside ROOT/version, and ROOT/constants.pkl for programs."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except Exception as error:  # zipfile raises errors of several libraries on damaged archives
        raise damaged(path, shown, error) from error
    roots = {name.split("/")[0] for name in names}
    if len(roots) == 1 and f"{(root := roots.pop())}/data.pkl" in names:
        return "torchscript" if f"{root}/constants.pkl" in names else "torch"
    return "zip"


def _refuse_other_files(head: bytes, path: Path, shown: str) -> None:
    """Recognise files that are saved under a checkpoint's name by accident."""
    if not head:
        raise CheckpointError(f"{shown}: empty file; download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{shown}: a git-lfs pointer, not the weights; run `git lfs pull` in its repository.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{shown}: a web page, not weights (a login or error page was saved); download it again.")
    kind = next((name for start, name in _ARCHIVES.items() if head.startswith(start)), "")
    kind = "tar" if head[257:262] == b"ustar" else kind
    if kind:
        raise CheckpointError(f"{shown}: a {kind} archive; unpack it and give the file of weights inside.")
    if head.isascii() and not any(byte < 9 for byte in head):
        kind = "a JSON text" if head.lstrip()[:1] in b"{[" else "a text"
        raise CheckpointError(f"{shown}: {kind}, not weights; give the file with the weights themselves.")


# ---- reading


def read_state(path: Path | str) -> State:
    """Names and CPU tensors of a checkpoint: a file, a Hugging Face or open_clip folder, or a zip with one such file.

    Lightning and similar checkpoints are unwrapped (see `WRAPPERS`). Tensors may be backed by the file: copy
    them before it is written again.

    Raises:
        ReadError: no such file, or a folder without weights.
        CheckpointError: damaged, not a checkpoint at all, or only readable by running code from the file.
    """
    with weights_file(path) as file:
        if recognise(file.path, file.shown) == "index":
            return _read_shards(file)
        return _read_one(file)


def _read_shards(index: WeightsFile) -> State:
    """All tensors of a sharded Hugging Face checkpoint; shards may only be files beside their index."""
    try:
        weight_map: dict[str, str] = read_json(index.path)["weight_map"]
        names = sorted(set(map(str, weight_map.values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(index.path, index.shown, error) from error
    state: State = {}
    for name in names:
        if Path(name).name != name or name.endswith(INDEX):
            raise CheckpointError(f"{index.shown}: names a shard outside its folder ({name!r}); refused.")
        shard = _within(index.path.parent, name, index.shown)
        if not shard.is_file():
            raise CheckpointError(f"{index.shown}: its shard {name} is not there; download the folder again.")
        state.update(_read_one(WeightsFile(shard, str(shard), shard)))
    if absent := sorted(set(weight_map) - set(state)):
        raise CheckpointError(f"{index.shown}: its shards lack {listed(absent)}; download the folder again.")
    return state


def _read_one(file: WeightsFile) -> State:
    form = recognise(file.path, file.shown)
    if form == "safetensors":
        try:
            check_count(file.path)
            return load_file(file.path)
        except (SafetensorError, OSError, ValueError) as error:
            raise damaged(file.path, file.shown, error) from error
    if form in ("zip", "index"):
        raise CheckpointError(f"{file.shown}: an archive inside an archive; unpack it and give the file of weights.")
    if form == "torchscript":
        raise refused(file, "a TorchScript archive is a program with its weights")
    content = unwrapped(_torch_load(file, mapped=form == "torch" and _can_map(file.path)))
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file.shown}: holds {type(content).__name__}, not a mapping of names to tensors.")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if others:
        raise CheckpointError(f"{file.shown}: not a plain state dict; these entries are not tensors: {listed(others)}.")
    return {key: value.detach() for key, value in content.items()}


def check_count(path: Path) -> None:
    """Refuse a safetensors file of more tensors than any network has: each costs time, even if it is empty.

    Raises:
        ValueError: it has more.
        SafetensorError: its header is damaged, or states another size than the file has.
    """
    with safe_open(path, "pt") as file:
        if (count := len(file.keys())) > MAX_TENSORS:
            raise ValueError(f"{count:,} tensors, more than {MAX_TENSORS:,}")


def unwrapped(content: Any) -> Any:
    """The state dict in a training script's checkpoint; `content` itself if it has none of the `WRAPPERS`."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            return content[wrapper]
    return content


def _can_map(path: Path) -> bool:
    """Whether the tensors of a torch zip are stored uncompressed: torch would read compressed bytes as numbers.

    A mapped file cannot be deleted on Windows, as temporary ones must be; and torch decides the form by the suffix.
    """
    if os.name != "posix" or path.suffix == ".safetensors":
        return False
    with zipfile.ZipFile(path) as archive:
        return all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())


def _torch_load(file: WeightsFile, mapped: bool) -> Any:
    """`torch.load` that never runs code from the file."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about files that are not pickles
            if mapped:
                return torch.load(file.path, map_location="cpu", weights_only=True, mmap=True)
            with open(file.path, "rb") as handle:  # a handle, since torch may decide another form by the suffix
                return torch.load(handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = ", ".join(dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", str(error))))
        size = file.path.stat().st_size
        unclear = f"it is damaged, or a pickle that only full unpickling could read ({size:,} bytes)"
        raise refused(file, f"reading it would run code stored in the file ({names})" if names else unclear) from None
    except Exception as error:  # torch's errors on damaged files have no common base
        raise damaged(file.path, file.shown, error) from error


def refused(file: WeightsFile, reason: str) -> CheckpointError:
    """The error for a file that is not read, with the command that converts it."""
    out = file.given.with_suffix(".safetensors").name
    command = f"m3bind convert {shlex.quote(str(file.given))} {shlex.quote(out)} --i-trust-this-file"
    return CheckpointError(
        f"{file.shown}: refused, since {reason}. Nothing was executed. If you trust its authors, convert it once: "
        f"{command}   and give the new file."
    )


def damaged(path: Path, shown: str, error: Exception) -> CheckpointError:
    """The error for a truncated or invalid file."""
    size = path.stat().st_size
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else in_words(error)
    return CheckpointError(f"{shown}: damaged or incomplete ({size:,} bytes; {reason}); download or copy it again.")


def listed(names: Iterable[str]) -> str:
    """Names for a message, up to twelve."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:200] for name in names[:_SHOWN]) + more
