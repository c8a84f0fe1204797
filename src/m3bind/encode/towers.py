"""Image towers at work: several batches at a time, each with one thread of arithmetic, quicker copies of the networks.

* `Batches`: inputs -> batches of one modality and shape, always the same ones for the same stream.
* `Towers`: batches -> embeddings, in threads. * `choose`: how a tower computes (`TowerRunner`), measured.
* `batch_size`: how many inputs it takes at a time.
* `fuse_conv_bn`: a copy of a model with normalisation folded into convolutions.

One thread per batch rather than one batch on all threads: no thread waits for another, decoding children can take a
core without holding the others up, and no bit depends on how many threads there are.

Shapes: n inputs of a batch, d dimension of the space.
"""

import contextlib
import copy
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from m3bind.core.device import compute_dtype
from m3bind.encode.decode_pool import reason_of
from m3bind.errors import M3BindError
from m3bind.models.base import DualEncoder
from m3bind.models.embedding import Array, evaluating
from m3bind.space.bundle import Space

log = logging.getLogger(__name__)

BATCH, BATCH_CONVOLUTIONS, BATCH_ELSEWHERE = 16, 8, 64  # inputs per forward pass; the first two on a CPU
BATCH_BYTES = 32 << 20  # of inputs in a batch; a larger input is a batch of its own
SHARE = 32  # inputs at work take at most this part of the free memory; activations are several times as large
LEAST_COSINE = 0.999  # of bfloat16 to float32
SAME = 1e-4  # largest difference of unit rows that folding may make
SOME = 8  # inputs to measure the precision on
FEW = 1  # random inputs to look at folding with
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Precision = Literal["auto", "float32", "bfloat16"]
Decision = dict[str, Any]  # {"dtype": "float32" or "bfloat16", "folded": whether `fuse_conv_bn` is taken}
P = TypeVar("P")  # where an input belongs
Batch = tuple[str, list[P], list[Tensor]]  # modality, places, inputs


class Batches(Generic[P]):
    """Collects inputs until a batch of one modality and shape is full."""

    def __init__(self, most: Mapping[str, int]) -> None:
        """`most` inputs a batch of each modality; fewer where they are large."""
        self._most = most
        self._groups: dict[tuple[str, tuple[int, ...]], tuple[list[P], list[Tensor]]] = {}
        self._bytes = 0

    def add(self, modality: str, place: P, value: Tensor) -> Iterator[Batch[P]]:
        """Take one input; yields what is full now."""
        key = (modality, tuple(value.shape))
        places, inputs = self._groups.setdefault(key, ([], []))
        places.append(place)
        inputs.append(value)
        self._bytes += value.nbytes
        if len(inputs) >= self._most[modality] or len(inputs) * value.nbytes >= BATCH_BYTES:
            yield self._take(key)
        elif self._bytes > 4 * BATCH_BYTES:  # many shapes
            yield self._take(max(self._groups, key=lambda k: len(self._groups[k][1]) * self._groups[k][1][0].nbytes))

    def flush(self) -> Iterator[Batch[P]]:
        """What is left."""
        for key in list(self._groups):
            yield self._take(key)

    def _take(self, key: tuple[str, tuple[int, ...]]) -> Batch[P]:
        places, inputs = self._groups.pop(key)
        self._bytes -= sum(value.nbytes for value in inputs)
        return key[0], places, inputs


def batch_size(space: Space, modality: str) -> int:
    """Inputs per forward pass: on a CPU few enough that what convolutions make stays in a core's cache."""
    if space._device().type != "cpu":
        return BATCH_ELSEWHERE
    return BATCH_CONVOLUTIONS if _convolutional(space, modality) else BATCH


def _convolutional(space: Space, modality: str) -> bool:
    """Whether most weights are those of convolutions."""
    trunk = space.model(modality).image_trunk
    convolved = sum(module.weight.numel() for module in trunk.modules() if isinstance(module, _CONVOLUTIONS))
    return 2 * convolved > sum(map(Tensor.numel, trunk.parameters()))


class TowerRunner:
    """The image side of one modality in the form that was chosen for it."""

    def __init__(self, space: Space, modality: str, decision: Decision, example: Tensor) -> None:
        """`decision` as `choose` gave it; `example` is one input of the tower."""
        model = space.model(modality)
        device = model.logit_scale.device
        if decision["folded"]:
            model = fuse_conv_bn(model, example[None].to(device))
        self.modality, self.device, self._dtype = modality, device.type, getattr(torch, decision["dtype"])
        self._space = Space({modality: model}, {modality: space._contents.bridges[modality]})

    def encode(self, inputs: Sequence[Tensor]) -> Array:
        """(n, d) unit rows."""
        with torch.autocast(self.device, self._dtype, enabled=self._dtype != torch.float32):
            return self._space.encode_inputs(inputs, self.modality)


class Towers(Generic[P]):
    """Runs batches in threads. Use as a context manager."""

    def __init__(self, tower: Callable[[str, Sequence[Tensor]], TowerRunner], threads: int) -> None:
        """`tower(modality, inputs)` is asked once per modality, with inputs to measure on."""
        self._make, self._threads = tower, threads
        self._towers: dict[str, TowerRunner] = {}
        self._at_work: dict[Future[list[tuple[P, Array | str]]], int] = {}
        self._most = psutil.virtual_memory().available // SHARE
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tower")

    def __enter__(self) -> "Towers[P]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, batch: Batch[P]) -> Iterator[tuple[P, Array | str]]:
        """Start a batch; yields (place, row or reason) of earlier ones, waiting where too many are at work."""
        modality, places, inputs = batch
        if modality not in self._towers:
            yield from self.rest()
            self._towers[modality] = self._make(modality, inputs)
        size = sum(value.nbytes for value in inputs)
        while self._at_work and (len(self._at_work) > self._threads or sum(self._at_work.values()) + size > self._most):
            yield from self._collect(FIRST_COMPLETED)
        self._at_work[self._pool.submit(_embed, self._towers[modality], places, inputs)] = size

    def rest(self) -> Iterator[tuple[P, Array | str]]:
        """What is still at work."""
        while self._at_work:
            yield from self._collect(FIRST_COMPLETED)

    def _collect(self, until: str) -> Iterator[tuple[P, Array | str]]:
        for future in wait(self._at_work, return_when=until).done:
            del self._at_work[future]
            yield from future.result()


def _embed(tower: TowerRunner, places: Sequence[P], inputs: Sequence[Tensor]) -> list[tuple[P, Array | str]]:
    """(place, row) of each input; the reason in place of the row where there is none."""
    try:
        return list(zip(places, tower.encode(inputs), strict=True))
    except (M3BindError, RuntimeError, ValueError) as error:
        if len(inputs) == 1:
            return [(places[0], reason_of(error))]
    return [pair for place, value in zip(places, inputs) for pair in _embed(tower, [place], [value])]


@contextlib.contextmanager
def arithmetic(threads: int) -> Iterator[None]:
    """So many threads for one operation, and float32 that is float32; put back afterwards."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def choose(space: Space, modality: str, inputs: Sequence[Tensor], precision: Precision) -> tuple[Decision, str]:
    """How a tower is to compute, and a line for people why.

    Folded where that leaves the embeddings of random inputs as they are, which is the same on every machine. bfloat16
    where the processor has it, it is faster on `inputs` and every cosine to float32 is at least `LEAST_COSINE`; or
    where it is asked for.
    """
    decision = {"dtype": "float32", "folded": _folds(space, modality, inputs[0])}
    if precision != "auto":
        return {**decision, "dtype": precision}, f"{modality}: {precision}, as asked for"
    if space._device().type == "cpu" and compute_dtype() is torch.float32:
        return decision, f"{modality}: float32 (no bfloat16 arithmetic in this processor)"
    some = list(inputs[:SOME])
    forms = [TowerRunner(space, modality, {**decision, "dtype": name}, some[0]) for name in ("float32", "bfloat16")]
    try:
        exact, rough = (form.encode(some) for form in forms)
    except (M3BindError, RuntimeError, ValueError):
        return decision, f"{modality}: float32 (bfloat16 does not work here)"
    cosine = float((exact * rough).sum(1).min())
    slow, fast = (min(_seconds(form, some) for _ in range(3)) for form in forms)
    if cosine >= LEAST_COSINE and fast < slow:
        decision["dtype"] = "bfloat16"
    why = f"bfloat16 {slow / fast:.2f}x as fast, least cosine {cosine:.5f}"
    return decision, f"{modality}: {decision['dtype']} ({why})"


def _seconds(tower: TowerRunner, inputs: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    tower.encode(inputs)
    return time.perf_counter() - start


def _folds(space: Space, modality: str, example: Tensor) -> bool:
    """Whether there is something to fold, and random inputs of the shape of `example` get the embeddings they had."""
    if not _convolutional(space, modality):
        return False
    inputs = list(torch.rand(FEW, *example.shape, generator=torch.Generator().manual_seed(0)))
    try:
        before, after = (
            TowerRunner(space, modality, {"dtype": "float32", "folded": folded}, inputs[0]).encode(inputs)
            for folded in (False, True)
        )
    except Exception as error:  # a network that cannot be copied or changed stays as it is
        log.warning("%s: convolutions stay as they are (%s: %s)", modality, type(error).__name__, error)
        return False
    return bool(np.abs(after - before).max() <= SAME)


# --- quicker copies ---------------------------------------------------------------------------------------------------


def fuse_conv_bn(model: DualEncoder, example: Tensor) -> DualEncoder:
    """A copy of a model whose image trunk computes the same faster; the text tower is shared.

    Batch normalisation right behind a convolution is folded into it, and 2-D convolutions take channels last. What
    follows what is seen by running the trunk on `example`, one input with the batch axis.
    """
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.image_trunk = copy.deepcopy(model.image_trunk)
    names = {module: name for name, module in twin.image_trunk.named_modules()}
    for convolution, norm in _followers(twin.image_trunk, lambda: twin.image_features(example)):
        folded = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.weight, convolution.bias = (nn.Parameter(value.detach(), False) for value in folded)
        parent, _, own = names[norm].rpartition(".")
        setattr(twin.image_trunk.get_submodule(parent), own, _rest_of(norm))
    if any(isinstance(module, nn.Conv2d) for module in names):
        twin.image_trunk.to(memory_format=torch.channels_last)
    return twin


def _followers(trunk: nn.Module, run: Callable[[], object]) -> list[tuple[Any, Any]]:
    """(convolution, normalisation) for every normalisation that has the output of one convolution alone for input."""
    came: dict[int, tuple[weakref.ref[Tensor], nn.Module]] = {}  # by identity of the output
    before: dict[nn.Module, set[nn.Module | None]] = {}
    after: dict[nn.Module, int] = {}

    def convolved(module: nn.Module, _: object, output: Tensor) -> None:
        after[module] = after.get(module, 0) + 1
        came[id(output)] = weakref.ref(output), module

    def normalised(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        known, source = came.get(id(inputs[0]), (None, None))
        if known is None or known() is not inputs[0]:
            source = None
        before.setdefault(module, set()).add(source)
        if source is not None:
            after[source] -= 1

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
    found = [(next(iter(sources)), norm) for norm, sources in before.items() if len(sources) == 1]
    return [(source, norm) for source, norm in found if source and after[source] == 0 and norm.track_running_stats]


def _rest_of(norm: nn.Module) -> nn.Module:
    """What a normalisation does beside normalising: timm's apply an activation."""
    return nn.Sequential(
        *(getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module))
    )
