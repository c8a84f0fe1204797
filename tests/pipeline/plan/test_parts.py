"""Parts of a plan: tokens without texts, generated files, the cost of reading them."""

from pathlib import Path

import pytest
import torch

from m3bind import modalities
from m3bind.pipeline.plan import cost, decode_cost
from m3bind.pipeline.plan.decode_cost import STATED, UNKNOWN, measure_decoding
from m3bind.pipeline.plan.tower_cost import _tokens
from m3bind.pipeline.plan.typical_files import CT_SLICES, write_typical
from space import tiny


def test_tokens_without_texts_are_in_every_vocabulary() -> None:
    model = tiny.Tiny()
    tokens = _tokens(model, [], 100)
    assert tokens["input_ids"].shape[1] == model.max_tokens and int(tokens["input_ids"].max()) < 128
    model.encode_text(tokens)


@pytest.mark.parametrize("m", ["xray", "retina", "pathology", "ecg"])
def test_generated_files_are_read_as_their_modality(m: str, tmp_path: Path) -> None:
    typical = write_typical(m, tmp_path)
    assert typical is not None
    sample = modalities.decode(m, typical.paths[0])
    assert max(sample.array.shape) == {"xray": 3056, "retina": 2048, "pathology": 512, "ecg": 5000}[m]


def test_a_volume_is_extrapolated_from_flatter_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {24.0: (1e6, 0.1, 1.0, 2.0, 100), 48.0: (2e6, 0.2, 2.0, 2.0, 100)}
    monkeypatch.setattr(decode_cost, "_times", lambda m, model, levels, path, rescale=None: cost[float(path.name[3:5])])
    found = measure_decoding("ct", tiny.Tiny(), [], [])
    share = (CT_SLICES - 24) / 24
    expected = [low + (high - low) * share for low, high in zip(*cost.values(), strict=True)]
    numbers = [found.file_bytes, found.hashing, found.decoding, found.preprocessing, found.stored_bytes]
    assert numbers == pytest.approx(expected)


def test_stated_values_where_nothing_can_be_read() -> None:
    notes: list[str] = []
    found = measure_decoding("xray", _Refusing(), [], notes)
    assert (found.file_bytes, found.seconds) == (STATED["xray"][0], pytest.approx(sum(STATED["xray"][1:])))
    assert "could not be measured" in notes[0]
    assert measure_decoding("grey", tiny.Tiny(), [], []).seconds == pytest.approx(sum(UNKNOWN[1:]))


class _Refusing(tiny.Tiny):
    def preprocess(self, sample):
        from m3bind.errors import ConfigError

        raise ConfigError("takes nothing")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not report its peak")
def test_growth_does_not_depend_on_what_was_freed_before() -> None:
    def allocate(count: int) -> list[torch.Tensor]:
        return [torch.ones(1 << 18) for _ in range(count)]  # 1 MiB each

    for _ in range(3):  # from the second time on, the allocator retains what is freed
        pins = allocate(128)[::8]
        held, peak = cost._growth(lambda: allocate(64), lambda tensors: None)
        assert 60 << 20 < held < 80 << 20 and held <= peak < 100 << 20
        del pins
