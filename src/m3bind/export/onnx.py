"""Exports the student and every image tower to ONNX, and compares each file with the original.

* `write`: the files and `parity.json`, which also lists parts that cannot be exported, with the reason.
* `convert`: one module. * `compare`: one file with the original.

Copies on the CPU are converted; the originals compute where they are, in exact float32.

A tower's file takes preprocessed inputs (`Space.read`) and contains tower, head, bridge and normalisation. The
student's takes padded tokens. The number of items and the length of texts are dynamic.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m3bind.core.device import float32_arithmetic
from m3bind.core.files import sha256_file, write_json, write_text
from m3bind.core.progress import progress
from m3bind.errors import ConfigError, M3BindError, in_words
from m3bind.export.student import Padded, on_cpu
from m3bind.models.base import DualEncoder
from m3bind.models.bridges import BaseBridge
from m3bind.models.embedding import evaluating
from m3bind.space.bundle import Space

OPSET = 18
COSINE, LARGEST = 0.9999, 1e-3  # minimum cosine and maximum difference of an entry for parity
REPORT = "parity.json"
Original = Callable[..., Tensor]  # host inputs -> (n, d) unit rows, on any device
Inputs = Mapping[str, Sequence[Tensor]]  # per modality: outputs of `Space.read`

_README = """\
# ONNX files of a bound space

`student.onnx` takes `input_ids` and `attention_mask` (int64, n x length, padded on the right; the tokenizer is
`tokenizer.json`) and returns `embeddings` (float32, n x {dim}, unit rows). `image_NAME.onnx` takes `input` (float32),
the output of `m3bind.load(SPACE).read(file, "NAME")`, and returns embeddings of the same space. The number of items is
dynamic.

```python
import onnxruntime
session = onnxruntime.InferenceSession("FOLDER/FILE.onnx")
embeddings = session.run(None, {{"input": batch}})[0]
```

`{report}` compares each file with the original. Licences of the parts: {licences}.
Not a medical device; not for diagnosis.
"""


@dataclass
class Parity:
    """Comparison of one file with its module; `reason` if there is no usable file."""

    name: str
    file: str = ""
    sha256: str = ""
    opset: int = OPSET
    shape: tuple[int, ...] = ()  # of an input without the item axis; () for texts
    items: int = 0
    batches: tuple[int, ...] = ()  # numbers of items tried
    max_abs_difference: float = float("nan")
    min_cosine: float = float("nan")
    reason: str = ""

    def as_text(self) -> str:
        """One line."""
        if self.reason:
            return f"{self.name}: NOT exported, {self.reason}"
        parity = f"largest difference {self.max_abs_difference:.1e}, smallest cosine {self.min_cosine:.7f}"
        return f"{self.name}: {self.file}, opset {self.opset}, {parity} over {self.items} items"


class ExportedImageTower(nn.Module):
    """Image tower, head and bridge of a modality: (n, ...) -> (n, d) unit rows."""

    def __init__(self, model: DualEncoder, bridge: BaseBridge) -> None:
        """Shares both."""
        super().__init__()
        self.model, self.bridge = model, bridge

    def forward(self, batch: Tensor) -> Tensor:
        """(n, ...) float32 as preprocessed -> (n, d) unit rows."""
        return self.bridge.image(self.model.encode_image(batch))


def write(space: Space, folder: Path, facts: dict[str, Any], texts: Sequence[str], inputs: Inputs) -> dict[str, str]:
    """Write the export; returns part -> reason of the parts that could not be exported.

    Args:
        space: the space.
        folder: an empty folder.
        facts: for the README.
        texts: to compare the student on.
        inputs: to compare the image towers on.

    Raises:
        ConfigError: the extra `onnx` is not installed, or no part could be exported.
    """
    _need_onnx()
    names = [*(["student"] if space.student is not None else []), *(f"image_{name}" for name in space.modalities)]
    parities: list[Parity] = []
    with progress("export to ONNX", len(names)) as bar:
        for name in names:
            parities.append(
                _student(space, folder, texts) if name == "student" else _image(space, folder, name, inputs)
            )
            bar.advance(note=name)
    if all(parity.reason for parity in parities):
        raise ConfigError("no part could be exported to ONNX: " + "; ".join(f"{p.name}: {p.reason}" for p in parities))
    write_json(folder / REPORT, [asdict(parity) for parity in parities])
    licences = "; ".join(f"{name}: {licence}" for name, licence in facts["licences"].items())
    write_text(folder / "README.md", _README.format(dim=space.dim, licences=licences, report=REPORT))
    for parity in parities:
        print(parity.as_text())
    return {parity.name: parity.reason for parity in parities if parity.reason}


def _need_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the ONNX export needs the extra `onnx`; install it with: pip install 'm3bind[onnx]'"
        ) from None


def _student(space: Space, folder: Path, texts: Sequence[str]) -> Parity:
    student = space.student
    assert student is not None
    parity = Parity("student", "student.onnx")
    device = space.device

    def original(ids: Tensor, mask: Tensor) -> Tensor:
        return student.encode({"input_ids": ids.to(device), "attention_mask": mask.to(device)})

    try:
        student.save_assets(folder)
        with evaluating(student):
            module = Padded(on_cpu(student))
            batches = [student.tokenize(part) for part in (texts, texts[:1])]
            inputs = [(b["input_ids"], b["attention_mask"]) for b in batches]
            return _convert_and_compare(parity, module, original, inputs, folder)
    except M3BindError as error:
        return _refused(parity, folder, str(error))


def _image(space: Space, folder: Path, name: str, inputs: Inputs) -> Parity:
    modality = name.removeprefix("image_")
    parity = Parity(name, f"{name}.onnx")
    model, bridge = space.model(modality), space.bridge_module(modality)
    rows = list(inputs.get(modality, ()))
    if not rows:
        return _refused(parity, folder, "no input of this modality to compare on")
    rows = [row for row in rows if row.shape == rows[0].shape]
    rows += [rows[0] * 0.9 + 0.01] * max(0, 2 - len(rows))  # at least two items
    batch = torch.stack(rows)
    tower = ExportedImageTower(model, bridge)
    with evaluating(model, bridge):
        batches = [(batch,), (batch[:1],)]
        return _convert_and_compare(parity, on_cpu(tower), lambda x: tower(x.to(space.device)), batches, folder)


def _convert_and_compare(
    parity: Parity, module: nn.Module, original: Original, batches: Sequence[tuple[Tensor, ...]], folder: Path
) -> Parity:
    """Convert, compare on every batch, and fill in the results. Exporters raise errors of any kind."""
    path = folder / parity.file
    try:
        convert(module, batches[0], path)
        parity.max_abs_difference, parity.min_cosine = compare(original, path, batches)
    except Exception as error:
        return _refused(parity, folder, _reason(error))
    parity.shape = tuple(batches[0][0].shape[1:]) if len(batches[0]) == 1 else ()
    parity.items, parity.batches = len(batches[0][0]), tuple(len(batch[0]) for batch in batches)
    parity.sha256 = sha256_file(path)
    if not (parity.min_cosine >= COSINE and parity.max_abs_difference <= LARGEST):
        return _refused(parity, folder, f"other results than the original ({parity.as_text().partition(', opset')[2]})")
    return parity


def _refused(parity: Parity, folder: Path, reason: str) -> Parity:
    for path in folder.glob(f"{parity.file}*"):
        path.unlink()
    parity.file, parity.reason = "", reason
    return parity


def _reason(error: Exception) -> str:
    """The first cause in one line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else in_words(error)


def convert(module: nn.Module, batch: tuple[Tensor, ...], path: Path) -> None:
    """Write a module as ONNX: inputs with a dynamic first axis and, if there are two (tokens), a dynamic second one."""
    names = ["input"] if len(batch) == 1 else ["input_ids", "attention_mask"]
    items = torch.export.Dim("items", min=1)
    axes: Any = {0: items} if len(batch) == 1 else {0: items, 1: torch.export.Dim("length", min=1)}
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)  # others return another memory layout
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), torch.inference_mode(False), warnings.catch_warnings(), plain:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(value.clone() for value in batch),
                path,
                input_names=names,
                output_names=["embeddings"],
                dynamic_shapes=tuple(axes for _ in batch),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        exporter.setLevel(level)


def compare(original: Original, path: Path, batches: Sequence[tuple[Tensor, ...]]) -> tuple[float, float]:
    """(largest difference of an entry, smallest cosine of a row) between the original and its ONNX file.

    Raises:
        ConfigError: the file has a fixed number of items.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    if isinstance(fixed := session.get_inputs()[0].shape[0], int):
        raise ConfigError(f"its graph has a fixed number of {fixed} items, since the model counts items in Python")
    difference, cosine = 0.0, 1.0
    for batch in batches:
        with float32_arithmetic():
            expected = original(*batch).cpu().numpy().astype(np.float64)
        actual = session.run(None, {name: value.numpy() for name, value in zip(names, batch)})[0].astype(np.float64)
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(actual, axis=1)
        difference = max(difference, float(np.abs(expected - actual).max()))
        cosine = min(cosine, float(((expected * actual).sum(1) / norms).min()))
    return difference, cosine
