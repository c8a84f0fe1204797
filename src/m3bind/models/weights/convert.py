"""Checkpoints that only full unpickling could read, converted to safetensors without full unpickling.

* `convert`: in a child process (`safe_unpickle`) that reads stored tensors and imports no other names of the file.

Nothing of the file is executed. The caller must still state that the file is trusted: its values become a network.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3bind.core.files import atomic_path
from m3bind.errors import CheckpointError, ConfigError
from m3bind.models.weights.weight_files import WeightsFile, recognise, weights_file

_WORKER = Path(__file__).with_name("safe_unpickle.py")
_SECONDS, _RATE = 300.0, 5e6  # time for any file, and bytes per second beyond
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "SYSTEMROOT")
FLAG = "--i-trust-this-file"


@dataclass(frozen=True)
class Converted:
    """Result of `convert`: tensors converted (name -> dtype and shape) and entries dropped (name -> their type)."""

    kept: dict[str, tuple[str, tuple[int, ...]]]
    dropped: dict[str, str]
    bytes: int

    def as_text(self) -> str:
        """For the terminal."""
        lines = [f"converted {len(self.kept)} tensors, {self.bytes:,} bytes"]
        lines += [f"dropped {name} ({kind})" for name, kind in self.dropped.items()]
        return "\n".join(lines)


def convert(source: Path | str, target: Path | str, trusted: bool = False) -> Converted:
    """Write the state dict of a checkpoint as safetensors.

    Args:
        source: file, folder, or zip with one file of weights.
        target: the .safetensors file to write; an existing one is replaced atomically.
        trusted: that the caller trusts the file's authors.

    Raises:
        ConfigError: not trusted, another suffix than .safetensors, or nothing to convert.
        ReadError: no such file, or a folder without weights.
        CheckpointError: no weights in it, damaged, or more than a file of its size can hold.
        DiskError: `target` could not be written.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: convert writes safetensors; name it {target.with_suffix('.safetensors').name}.")
    if not trusted:
        raise ConfigError(
            f"{source}: convert reads the numbers of a file that may also hold code. That code is not executed, yet a "
            f"network is only as good as its authors; if you trust them, add {FLAG}."
        )
    with weights_file(source) as file:
        form = recognise(file.path, file.shown)
        if form in ("safetensors", "index"):
            raise ConfigError(f"{file.shown} is read as it is; nothing to convert.")
        if form == "zip":
            raise CheckpointError(
                f"{file.shown}: an archive inside an archive; unpack it and give the file of weights."
            )
        with atomic_path(target) as temporary:
            answer = _run_child(form, file, temporary)
            size = temporary.stat().st_size
    kept = {name: (dtype, tuple(shape)) for name, (dtype, shape) in answer["kept"].items()}
    return Converted(kept, answer["dropped"], size)


def _run_child(form: str, file: WeightsFile, out: Path) -> dict[str, Any]:
    """The answer of the child process, which wrote `out`."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    command = [sys.executable, "-I", str(_WORKER), form, str(file.path.absolute()), str(out.absolute())]
    seconds = _SECONDS + file.path.stat().st_size / _RATE
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{file.shown}: reading took longer than {seconds:.0f} s; damaged, or malicious."
        ) from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        code = done.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise CheckpointError(
            f"{file.shown}: the process that read it crashed ({how}); damaged, or malicious."
        ) from None
    if "error" in answer:
        raise CheckpointError(f"{file.shown}: {answer['error']}; nothing was written.")
    return answer
