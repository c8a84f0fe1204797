"""The tests of a real GPU: `pytest -m gpu`, skipped without one.

M3BIND_TEST_DEVICE=cpu or pretend:0 runs the same lines where there is none, as `tests/gpu/test_dry_run.py` does.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from m3bind.core.children import usable_cores
from pretend.device import pretend_device

NAME = os.environ.get("M3BIND_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and item.path.name != "test_dry_run.py":
            item.add_marker("gpu")
    items.sort(key=lambda item: item.path.parent == here and "compiled" in item.name)  # minutes: after all others


@pytest.fixture(scope="session")
def device() -> Iterator[torch.device]:
    """The device under test, open."""
    if NAME == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use; M3BIND_TEST_DEVICE=cpu runs these lines on the CPU")
    with pretend_device() if NAME.startswith("pretend") else contextlib.nullcontext():
        yield torch.device(NAME if ":" in NAME or NAME == "cpu" else f"{NAME}:0")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float32 products and convolutions without TF32, the choice of bfloat16 free, references on all cores."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    monkeypatch.delenv("M3BIND_BFLOAT16", raising=False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(usable_cores())
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.set_num_threads(before[2])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
