"""Reads the folder of a space (`folder`), verifying every file.

* `read_folder`: the space. * `read_whole`, `damaged`: for every folder that is replaced as a whole.

A reader that meets the replacement starts over and gets the old or the new space.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from m3bind.core.files import sha256_file
from m3bind.core.stored import inside, read_bytes, read_json
from m3bind.errors import CheckpointError, ConfigError, SpaceError
from m3bind.models import registry
from m3bind.models.base import DualEncoder
from m3bind.models.bridges import BaseBridge, Bridge, freeze, restore
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.models.weights import external
from m3bind.models.weights.checkpoint import bounded, without_initialisation
from m3bind.models.weights.weight_files import check_count
from m3bind.space import manifest
from m3bind.space.folder import FORMAT, MANIFEST, VERSION, Contents, SpaceInfo, State, join_state, manifest_checksum
from m3bind.space.unlike import UnlikeMeasure

MAX_MANIFEST_BYTES, MAX_ASSET_BYTES = 64 << 20, 1 << 30
PATIENCE = 5.0  # seconds a reader keeps starting over while another process replaces the folder

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def read_folder(folder: Path | str) -> Contents:
    """Read a space.

    Raises:
        SpaceError: not a space, damaged, incomplete or written by a newer version; names the file.
    """
    folder = Path(folder)
    return read_whole(folder, MANIFEST, lambda: _Reader(folder).contents())


def read_whole(folder: Path, marker: str, read: Callable[[], T]) -> T:
    """The result of `read`, which starts over if another process replaces the folder meanwhile.

    Raises:
        SpaceError: the folder cannot be read and is not being replaced.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        before = _stamp(folder, marker)
        try:
            result = read()
            if _stamp(folder, marker) == before:
                return result
        except Exception as error:  # libraries raise any error when a file vanishes
            being_replaced = _stamp(folder, marker) != before or (before is None and _leftovers(folder))
            if not being_replaced or time.monotonic() > give_up:
                if isinstance(error, OSError):
                    raise SpaceError(f"{folder}: cannot be read ({error})") from error
                raise
        time.sleep(0.01)


def _stamp(folder: Path, marker: str) -> tuple[int, int, bytes] | None:
    """Identifies the present version of the folder; None if it has no readable marker."""
    try:
        stat = folder.stat()
        return stat.st_ino, stat.st_mtime_ns, read_bytes(inside(folder, marker), MAX_MANIFEST_BYTES)
    except (OSError, ValueError):  # `read` raises the error that names the cause
        return None


def _leftovers(folder: Path) -> list[Path]:
    """Old versions that `atomic_path` leaves beside a folder while it replaces it, or if it was killed then."""
    return sorted(folder.parent.glob(f".{folder.name}.*.old"))


class _Reader:
    """Opens and verifies the files of one space."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._states = folder, dict[str, State]()
        self.content = self._manifest()
        for name, digest in self.content["files"].items():
            self._verify(name, digest)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            content: dict[str, Any] = read_json(inside(self.folder, MANIFEST), MAX_MANIFEST_BYTES)
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
        if checksum != manifest_checksum(content):
            raise damaged(path)
        manifest.check(content, path)
        return content

    def _verify(self, name: str, digest: str) -> None:
        try:
            path = inside(self.folder, name)
        except ValueError as error:
            raise SpaceError(
                f"{self.folder / MANIFEST}: names a file outside the space ({error}); do not use it"
            ) from error
        if not path.is_file():
            raise SpaceError(f"{path}: missing; copy the whole folder again, or save the space again")
        if path.suffix == ".safetensors":  # files of a wrong size are refused before they are hashed
            try:
                check_count(path)  # the header also states the number of bytes
            except (SafetensorError, ValueError) as error:
                raise damaged(path) from error
        elif (size := path.stat().st_size) > MAX_ASSET_BYTES:
            raise SpaceError(f"{path}: {size:,} bytes, more than any file of a space has; do not use it")
        if sha256_file(path) != digest:
            raise damaged(path)

    def _state(self, name: str) -> State:
        """Tensors of one weights file; repeated calls return the same tensors."""
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
        assets = self.folder / "assets" / name if entry["assets"] else None
        return registry.rebuild(entry["model"], entry["settings"], assets, states, where)

    def _student(self, entry: Mapping[str, Any]) -> TextEncoder:
        """The untrained student."""
        where, assets = f"{self.folder / MANIFEST} (student)", self.folder / "assets" / "student"
        states = [self._state(file) for file in entry["weights"].values()]
        with external.described(where, "the settings of a student"), bounded(states, where):
            return TextEncoder.from_settings(entry["settings"], assets=assets)

    def _bridge(self, name: str, entry: Mapping[str, Any], arrays: State) -> BaseBridge:
        """The bridge of one modality."""
        prefix, described = f"bridge.{name}.", entry.get("bridge")
        try:
            if described is None:
                return freeze(Bridge(arrays[f"bridge.{name}"]))
            external.sizes(described["settings"])
            with bounded([arrays], f"{self.folder} (bridge of {name})"):
                bridge = restore(described["kind"], described["settings"])
            bridge.load_state_dict({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        except (RuntimeError, KeyError, TypeError, ValueError, ConfigError, RecursionError) as error:
            raise SpaceError(
                f"{self.folder}: the bridge of {name} does not fit ({external.reason(error)}); was it saved by another "
                "version?"
            ) from error
        return freeze(bridge)

    def contents(self) -> Contents:
        """The whole space as modules and tensors."""
        content, arrays = self.content, self._state(self.content["arrays"])
        models, bridges, student = {}, {}, None
        with torch.random.fork_rng(devices=[]), without_initialisation():  # the caller's random state is unchanged
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
            SpaceInfo(cards=cards, **{name: content[name] for name in names if name in content}),
            {name: measure for name in models if (measure := _measure(name, arrays)) is not None},
            {n: (arrays[f"texts.{n}"].float(), arrays[f"weights.{n}"]) for n in models if f"texts.{n}" in arrays},
            content["fingerprint"],
        )


def _measure(name: str, arrays: State) -> UnlikeMeasure | None:
    """The measure of unlike inputs of a modality; None if the space has none."""
    prefix = f"unlike.{name}."
    values = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    return UnlikeMeasure(**values) if values else None


def damaged(path: Path, remedy: str = "save the space again") -> SpaceError:
    """The error for a file whose content differs from what was written."""
    return SpaceError(f"{path}: damaged, its content does not fit its hash; copy it again, or {remedy}")
