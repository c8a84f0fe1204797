"""Runs image towers: several batches in parallel, each on one thread, with faster copies of the networks.

* `Batches`: inputs -> batches of one modality and shape, deterministic for a stream.
* `Towers`: batches -> embeddings, in threads. * `choose`: measures how a tower computes (`TowerRunner`).
* `batch_size`: inputs per forward pass.
* `fuse_conv_bn`: a copy of a model with normalisation folded into convolutions.

On a CPU one thread per batch rather than one batch on all threads: no thread waits for another, decoding processes can
use a core without delaying the others, and no bit depends on the number of threads. On a GPU one thread waits for
results while another stacks and sends the next batch.

Shapes: n inputs of a batch, d dimension of the space.
"""

import contextlib
import copy
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from m3bind.core.device import compute_dtype, float32_arithmetic, out_of_memory
from m3bind.encode.decode_pool import reason_of
from m3bind.encode.journal import Decision
from m3bind.errors import DeviceMemoryError, M3BindError
from m3bind.models.base import DualEncoder
from m3bind.models.embedding import Array, evaluating
from m3bind.models.frozen import MIN_COSINE, agreement
from m3bind.space.bundle import Space

log = logging.getLogger(__name__)

BATCH, BATCH_CONVOLUTIONS, BATCH_ON_DEVICE = 16, 8, 64  # inputs per forward pass; the first two on a CPU
ON_DEVICE = 2  # batches at a time on a GPU: one computes, one is sent
BATCH_BYTES = 32 << 20  # of inputs in a batch; a larger input forms its own batch
SHARE = 32  # running inputs use at most 1/SHARE of the free memory; activations are several times as large
FOLD_TOLERANCE = 1e-4  # of unit rows
MEASURED = 8  # inputs on which the precision is measured
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Precision = Literal["auto", "float32", "bfloat16"]
P = TypeVar("P")  # place of an input
Batch = tuple[str, list[P], list[Tensor]]  # modality, places, inputs


class Embedded(NamedTuple):
    """The result of one input."""

    row: Array  # (d,) unit row
    unlike: str  # why it is unlike the training data; "" if it is not


class Batches(Generic[P]):
    """Collects inputs until a batch of one modality and shape is full."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """`sizes`: inputs per batch of each modality; fewer if they are large."""
        self._sizes = sizes
        self._groups: dict[tuple[str, tuple[int, ...]], tuple[list[P], list[Tensor]]] = {}
        self._bytes = 0

    def add(self, modality: str, place: P, value: Tensor) -> Iterator[Batch[P]]:
        """Add one input; yields the batch that is now full."""
        key = (modality, tuple(value.shape))
        places, inputs = self._groups.setdefault(key, ([], []))
        places.append(place)
        inputs.append(value)
        self._bytes += value.nbytes
        if len(inputs) >= self._sizes[modality] or len(inputs) * value.nbytes >= BATCH_BYTES:
            yield self._take(key)
        elif self._bytes > 4 * BATCH_BYTES:  # many shapes
            yield self._take(max(self._groups, key=lambda k: len(self._groups[k][1]) * self._groups[k][1][0].nbytes))

    def flush(self) -> Iterator[Batch[P]]:
        """The remaining inputs."""
        for key in list(self._groups):
            yield self._take(key)

    def _take(self, key: tuple[str, tuple[int, ...]]) -> Batch[P]:
        places, inputs = self._groups.pop(key)
        self._bytes -= sum(value.nbytes for value in inputs)
        return key[0], places, inputs


def batch_size(space: Space, modality: str) -> int:
    """Inputs per forward pass: on a CPU few enough that activations of convolutions fit a core's cache."""
    if space.device.type != "cpu":
        return BATCH_ON_DEVICE
    return BATCH_CONVOLUTIONS if _convolutional(space, modality) else BATCH


def _convolutional(space: Space, modality: str) -> bool:
    """Whether most weights belong to convolutions."""
    trunk = space.model(modality).image_trunk
    convolved = sum(module.weight.numel() for module in trunk.modules() if isinstance(module, _CONVOLUTIONS))
    return 2 * convolved > sum(map(Tensor.numel, trunk.parameters()))


class TowerRunner:
    """The image side of one modality, computed as decided."""

    def __init__(self, space: Space, modality: str, decision: Decision, example: Tensor) -> None:
        """`decision` from `choose`; `example` is one input of the tower."""
        model = space.model(modality)
        if decision["folded"]:
            model = fuse_conv_bn(model, example[None].to(space.device))
        self.modality, self.device, self._dtype = modality, space.device, getattr(torch, decision["dtype"])
        measures = {name: measure for name, measure in space.measures.items() if name == modality}
        self._space = Space({modality: model}, {modality: space._contents.bridges[modality]}, unlike=measures)

    def encode(self, inputs: Sequence[Tensor]) -> Array:
        """(n, d) unit rows."""
        return self._space.encode_inputs(inputs, self.modality, self._dtype)

    def examine(self, inputs: Sequence[Tensor]) -> list[Embedded]:
        """Unit rows and why inputs are unlike the training data."""
        return [Embedded(*pair) for pair in zip(*self._space.examine_inputs(inputs, self.modality, self._dtype))]


class Towers(Generic[P]):
    """Runs batches in threads. Use as a context manager."""

    def __init__(self, tower: Callable[[str, Sequence[Tensor]], TowerRunner], threads: int) -> None:
        """`tower(modality, inputs)` is called once per modality, with inputs to measure on."""
        self._make, self._threads = tower, threads
        self._towers: dict[str, TowerRunner] = {}
        self._at_work: dict[Future[list[tuple[P, Embedded | str]]], int] = {}
        self._bytes = psutil.virtual_memory().available // SHARE
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tower")

    def __enter__(self) -> "Towers[P]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, batch: Batch[P]) -> Iterator[tuple[P, Embedded | str]]:
        """Start a batch; yields (place, result or reason) of earlier ones, and waits while too many are running."""
        modality, places, inputs = batch
        if modality not in self._towers:
            yield from self.rest()
            self._towers[modality] = self._make(modality, inputs)
        size = sum(value.nbytes for value in inputs)
        while self._at_work and (
            len(self._at_work) > self._threads or sum(self._at_work.values()) + size > self._bytes
        ):
            yield from self._collect()
        self._at_work[self._pool.submit(_embed, self._towers[modality], places, inputs)] = size

    def rest(self) -> Iterator[tuple[P, Embedded | str]]:
        """The results of the batches that are still running."""
        while self._at_work:
            yield from self._collect()

    def _collect(self) -> Iterator[tuple[P, Embedded | str]]:
        for future in wait(self._at_work, return_when=FIRST_COMPLETED).done:
            del self._at_work[future]
            yield from future.result()


def _embed(tower: TowerRunner, places: Sequence[P], inputs: Sequence[Tensor]) -> list[tuple[P, Embedded | str]]:
    """(place, result) of each input, with the reason instead if it failed.

    Raises:
        DeviceMemoryError: one input alone does not fit the memory of the device; this is no fault of its file.
    """
    try:
        return list(zip(places, tower.examine(inputs), strict=True))
    except (M3BindError, RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise DeviceMemoryError(str(tower.device), tower.modality) from error
        if len(inputs) == 1:
            return [(places[0], reason_of(error))]
    return [pair for place, value in zip(places, inputs) for pair in _embed(tower, [place], [value])]


@contextlib.contextmanager
def arithmetic(threads: int, tf32: bool = False) -> Iterator[None]:
    """Set the threads per operation and the arithmetic of float32; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with float32_arithmetic(tf32):
            yield
    finally:
        torch.set_num_threads(before)


def choose(space: Space, modality: str, inputs: Sequence[Tensor], precision: Precision) -> tuple[Decision, str]:
    """How a tower computes, and the reason in one line.

    Folded if that leaves the embeddings of random inputs unchanged, which is the same on every machine. bfloat16 if it
    is set as `precision`; or if the device computes it natively, it is faster on `inputs` and every cosine to float32
    is at least `MIN_COSINE`.
    """
    decision: Decision = {"dtype": "float32", "folded": _folds(space, modality, inputs[0])}
    if precision != "auto":
        return {**decision, "dtype": precision}, f"{modality}: {precision}, as set"
    if compute_dtype(space.device) is torch.float32:
        return decision, f"{modality}: float32 (no bfloat16 arithmetic on {space.device.type})"
    inputs = inputs[:MEASURED]
    half: Decision = {**decision, "dtype": "bfloat16"}
    runners = [TowerRunner(space, modality, form, inputs[0]) for form in (decision, half)]
    try:
        exact, rough = (runner.encode(inputs) for runner in runners)
    except (M3BindError, RuntimeError, ValueError):
        return decision, f"{modality}: float32 (bfloat16 does not work here)"
    cosine = agreement(torch.from_numpy(exact), torch.from_numpy(rough)).smallest
    slow, fast = (_seconds(runner, inputs) for runner in runners)
    if cosine >= MIN_COSINE and fast < slow:
        decision = half
    why = f"bfloat16 {slow / fast:.2f}x as fast, smallest cosine {cosine:.5f}"
    return decision, f"{modality}: {decision['dtype']} ({why})"


def _seconds(tower: TowerRunner, inputs: Sequence[Tensor]) -> float:
    """The fastest of three runs."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        tower.encode(inputs)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _folds(space: Space, modality: str, example: Tensor) -> bool:
    """Whether folding applies and leaves the embeddings of a random input of the shape of `example` unchanged."""
    if not _convolutional(space, modality):
        return False
    inputs = list(torch.rand(1, *example.shape, generator=torch.Generator().manual_seed(0)))
    try:
        with float32_arithmetic():
            before, after = (
                TowerRunner(space, modality, {"dtype": "float32", "folded": folded}, inputs[0]).encode(inputs)
                for folded in (False, True)
            )
    except Exception as error:  # a network that cannot be copied or changed is left unchanged
        log.warning("%s: convolutions are left unchanged (%s: %s)", modality, type(error).__name__, error)
        return False
    return bool(np.abs(after - before).max() <= FOLD_TOLERANCE)


def fuse_conv_bn(model: DualEncoder, example: Tensor) -> DualEncoder:
    """A copy of a model whose image trunk computes the same faster; the text tower is shared.

    Batch normalisation directly after a convolution is folded into it, and 2-D convolutions take channels last. The
    order of modules is observed by running the trunk on `example`, one input with the batch axis.
    """
    fused = copy.copy(model)
    fused._modules = dict(model._modules)
    fused.image_trunk = copy.deepcopy(model.image_trunk)
    names = {module: name for name, module in fused.image_trunk.named_modules()}
    for convolution, norm in _conv_bn_pairs(fused.image_trunk, lambda: fused.image_features(example)):
        folded = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.weight, convolution.bias = (nn.Parameter(value.detach(), False) for value in folded)
        parent, _, own = names[norm].rpartition(".")
        setattr(fused.image_trunk.get_submodule(parent), own, _rest_of(norm))
    if any(isinstance(module, nn.Conv2d) for module in names):
        fused.image_trunk.to(memory_format=torch.channels_last)
    return fused


def _conv_bn_pairs(trunk: nn.Module, run: Callable[[], object]) -> list[tuple[Any, Any]]:
    """(convolution, normalisation) for every normalisation whose only input is the output of one convolution."""
    outputs: dict[int, tuple[weakref.ref[Tensor], nn.Module]] = {}  # by identity of the output
    sources: dict[nn.Module, set[nn.Module | None]] = {}  # of each normalisation
    unused: dict[nn.Module, int] = {}  # outputs of each convolution that no normalisation took

    def convolved(module: nn.Module, _: object, output: Tensor) -> None:
        unused[module] = unused.get(module, 0) + 1
        outputs[id(output)] = weakref.ref(output), module

    def normalised(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        known, source = outputs.get(id(inputs[0]), (None, None))
        if known is None or known() is not inputs[0]:
            source = None
        sources.setdefault(module, set()).add(source)
        if source is not None:
            unused[source] -= 1

    hooks = [
        module.register_forward_hook(convolved if isinstance(module, _CONVOLUTIONS) else normalised)
        for module in trunk.modules()
        if isinstance(module, (*_CONVOLUTIONS, *_NORMS))
    ]
    try:
        with evaluating(trunk):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(next(iter(found)), norm) for norm, found in sources.items() if len(found) == 1]
    return [(source, norm) for source, norm in pairs if source and unused[source] == 0 and norm.track_running_stats]


def _rest_of(norm: nn.Module) -> nn.Module:
    """The rest of a normalisation: timm's include dropout and an activation."""
    return nn.Sequential(
        *(getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module))
    )
