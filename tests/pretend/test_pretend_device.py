"""The pretend device refuses, counts and computes as a real one would."""

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from pretend.device import DEVICE, DeviceMixError, DeviceTensor, Log, pretend_device


@pytest.fixture
def log() -> Iterator[Log]:
    with pretend_device() as log:
        yield log


def there(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype).to(DEVICE)


MIXES: dict[str, Callable[[], object]] = {
    "add": lambda: there(3) + torch.ones(3),
    "add to a host tensor in place": lambda: torch.ones(3).add_(there(3)),
    "add to a host scalar in place": lambda: torch.tensor(1.0).add_(there(3)[0]),
    "matmul": lambda: torch.ones(2, 3) @ there(3, 2),
    "cat": lambda: torch.cat([there(2), torch.ones(2)]),
    "stack of scalars": lambda: torch.stack([there(2)[0], torch.tensor(1.0)]),
    "where": lambda: torch.where(torch.ones(3, dtype=torch.bool), there(3), there(3)),
    "embedding": lambda: nn.functional.embedding(torch.zeros(2, dtype=torch.int64), there(3, 2)),
    "linear": lambda: nn.Linear(3, 2)(there(2, 3)),
    "index_select": lambda: there(3).index_select(0, torch.zeros(1, dtype=torch.int64)),
    "index of a host tensor": lambda: torch.ones(3)[there(2, dtype=torch.int64)],
    "values put": lambda: there(3).index_put_((torch.tensor([0, 1]),), torch.ones(2)),
    "masked_fill by a host mask": lambda: there(3).masked_fill(torch.ones(3, dtype=torch.bool), 0.0),
    "a host generator": lambda: there(3).bernoulli_(0.5, generator=torch.Generator()),
    "made by a host generator": lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
}


@pytest.mark.parametrize("name", MIXES)
def test_refuses_what_cuda_refuses(log: Log, name: str) -> None:
    with pytest.raises(DeviceMixError):
        MIXES[name]()


ALLOWED: dict[str, Callable[[], Tensor]] = {
    "a host scalar": lambda: there(3) * torch.tensor(2.0),
    "a host scalar first": lambda: torch.tensor(2.0) * there(3),
    "two scalars": lambda: torch.tensor(2.0) + there(1).sum(),
    "host indices": lambda: there(3)[torch.tensor([2, 0])],
    "host mask": lambda: there(3)[torch.tensor([True, False, True])],
    "a host scalar put": lambda: there(3).index_put_((torch.tensor([0]),), torch.tensor(5.0)),
    "masked_fill by a host scalar": lambda: there(3).masked_fill(there(3) > 1, torch.tensor(7.0)),
    "copied in place": lambda: torch.zeros(3, device=DEVICE).copy_(torch.ones(3)),
    "numbers": lambda: 1 - there(3) / 2,
    "made there": lambda: torch.tensor([1.0, 2.0], device=DEVICE) + torch.arange(2, device=DEVICE),
    "like": lambda: torch.ones_like(torch.zeros(3), device=DEVICE) + torch.zeros_like(there(3)),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allows_what_cuda_allows(log: Log, name: str) -> None:
    value = ALLOWED[name]()
    assert isinstance(value, DeviceTensor)
    assert str(value.device) == DEVICE


SYNCING: dict[str, Callable[[], object]] = {
    "item": lambda: there(1).item(),
    "float": lambda: float(there(1)),
    "if": lambda: bool(there(1) > 0),
    "tolist": lambda: there(3).tolist(),
    "cpu": lambda: there(3).cpu(),
    "copy to the host": lambda: torch.zeros(3).copy_(there(3)),
    "nonzero": lambda: there(3).nonzero(),
    "unique": lambda: there(3).unique(),
    "boolean index": lambda: there(3)[there(3) > 0],
    "masked_select": lambda: there(3).masked_select(there(3) > 0),
    "equal": lambda: torch.equal(there(3), there(3)),
    "assign by a mask": lambda: there(3).__setitem__(there(3) > 0, 1.0),
}


@pytest.mark.parametrize("name", SYNCING)
def test_counts_what_waits_for_the_device(log: Log, name: str) -> None:
    SYNCING[name]()
    assert log.syncs.total() == 1, log.syncs


def test_arithmetic_and_copies_to_the_device_do_not_wait(log: Log) -> None:
    x = torch.ones(3).to(DEVICE)
    y = (x * 2 + 1).exp().sum()
    assert not log.syncs
    assert log.uploads.total() == 1
    assert log.operations["aten.mul.Tensor"] == 1
    assert y.item() == pytest.approx(3 * torch.e**3)


def test_a_sync_is_named_by_the_line_of_the_package(log: Log) -> None:
    from m3bind.models.base import PARTS  # noqa: F401
    from m3bind.training.contrastive import identical_positives

    identical_positives(there(3, dtype=torch.int64))
    assert all("training/contrastive.py:" in name for name in log.syncs)
    there(1).item()
    assert any(name.endswith("at a test") for name in log.syncs)


def test_no_numpy_from_the_device(log: Log) -> None:
    for value in (there(3), nn.Parameter(there(3)).detach()):
        with pytest.raises(TypeError, match="to the host first"):
            value.numpy()
        assert value.cpu().numpy().tolist() == [0, 1, 2]


def test_float64_can_be_forbidden() -> None:
    with pretend_device(float64=False):
        for make in (
            lambda: there(3).double(),
            lambda: torch.zeros(3, dtype=torch.float64).to(DEVICE),
            lambda: torch.zeros(3, dtype=torch.float64, device=DEVICE),
        ):
            with pytest.raises(TypeError, match=r"no torch\.float64"):
                make()
    with pretend_device():
        assert there(3).double().dtype == torch.float64


def test_autocast_rounds_products_and_their_gradients_arrive(log: Log) -> None:
    layer = nn.Linear(3, 2).to(DEVICE)
    with torch.autocast("pretend", dtype=torch.bfloat16):
        out = layer(there(2, 3))
        assert out.dtype == (out @ out.T).dtype == torch.bfloat16
        assert (there(3) + 1).dtype == torch.float32
    out.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    with torch.autocast("pretend", dtype=torch.bfloat16, enabled=False):
        assert layer(there(2, 3)).dtype == torch.float32


class Network(nn.Module):
    """Convolution, norm with running statistics, attention, tied weights, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).mT
        x = x + self.attention(x, x, x)[0]
        return self.second(self.drop(self.first(x).relu())).mean(1)


def trained(device: str, recompute: bool = False) -> dict[str, Tensor]:
    """Weights, buffers and gradients after three steps."""
    torch.manual_seed(0)
    network, data = Network(), torch.randn(5, 4, 9)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for step in range(3):
        torch.manual_seed(step)
        x = data.to(device)
        out = checkpoint(network, x, use_reentrant=False) if recompute else network(x)
        optimizer.zero_grad()
        out.square().sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    assert network.first.weight is network.second.weight
    state = dict(network.state_dict()) | {f"{n} grad": p.grad for n, p in network.named_parameters()}
    assert all(t.device.type == torch.device(device).type for t in state.values())
    return {name: tensor.cpu() for name, tensor in state.items()}


@pytest.mark.parametrize("recompute", [False, True])
def test_values_are_those_of_the_cpu(log: Log, recompute: bool) -> None:
    ours, theirs = trained(DEVICE, recompute), trained("cpu", recompute)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_modules_move_and_parameters_stay_the_same_objects(log: Log) -> None:
    network = Network()
    network(torch.randn(5, 4, 9)).sum().backward()
    before = list(network.parameters())
    network.to(DEVICE)
    assert all(a is b for a, b in zip(before, network.parameters(), strict=True))
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.grad.device.type == "pretend" for p in before)
    network.to("cpu")
    assert all(type(p) is nn.Parameter for p in network.parameters())


def test_modules_are_copied(log: Log) -> None:
    network = Network().to(DEVICE)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        network.first.weight.add_(1)
    assert copied.first.weight is copied.second.weight
    assert isinstance(copied.first.weight, nn.Parameter)
    torch.testing.assert_close(copied.first.weight + 1, network.first.weight)
    assert {p.device.type for p in copied.state_dict().values()} == {"pretend"}


def test_threads_use_the_device(log: Log) -> None:
    values: list[Tensor] = []
    thread = threading.Thread(target=lambda: values.append(torch.ones(2, device=DEVICE) + 1))
    thread.start()
    thread.join()
    assert values[0].tolist() == [2, 2]


class Items(Dataset[Tensor]):
    def __init__(self, device: str) -> None:
        self.device = device

    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: int) -> Tensor:
        return torch.full((2,), float(at), device=self.device)


@pytest.mark.parametrize("pin", [False, True])
def test_workers_are_forked_inside_and_give_host_tensors(log: Log, pin: bool) -> None:
    loader = DataLoader(Items("cpu"), batch_size=None, num_workers=2, pin_memory=pin, multiprocessing_context="fork")
    rows = [row.to(DEVICE, non_blocking=True) for row in loader]
    assert torch.stack(rows).tolist() == [[i, i] for i in range(4)]


def test_a_forked_worker_cannot_use_the_device(log: Log) -> None:
    loader = DataLoader(Items(DEVICE), batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match="not open in this process"):
        next(iter(loader))


def test_outside_there_is_no_device() -> None:
    with pretend_device():
        assert torch.accelerator.is_available()
        tensor = there(2)
    assert not torch.accelerator.is_available()
    with pytest.raises(RuntimeError, match="not open"):
        tensor + 1
