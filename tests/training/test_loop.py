"""The training loop: schedule, resume to the same bits, NaN policy, changed settings."""

import itertools
import json
import math
import os

import pytest
import torch

from m3bind.config import AlignConfig, DistillConfig, PretrainConfig, TrainConfig
from m3bind.errors import CheckpointError, DiskError, NotFiniteError
from m3bind.pretrain.stage import PretrainStage
from m3bind.training import checkpoint, loop
from m3bind.training.loop import fingerprint_of, learning_rate, train
from toys import toy_pairs

SETTINGS = PretrainConfig(steps=12, batch=8, lr=1e-2, checkpoint_steps=4, augment=False)


def weights(stage: PretrainStage) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in stage.pairs.model.parameters()])


def stage_of(settings: PretrainConfig = SETTINGS) -> PretrainStage:
    return PretrainStage(toy_pairs({"xray": 40})["xray"], settings, seed=3)


class Killed(BaseException):
    pass


def test_schedule_warms_up_then_falls_as_a_cosine():
    settings = TrainConfig(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_training_lowers_the_loss(tmp_path):
    stage = stage_of()
    before = float(stage.losses(stage.batch(0))["loss"])
    train(stage, SETTINGS, tmp_path, seed=3)
    assert float(stage.losses(stage.batch(0))["loss"]) < before


@pytest.mark.parametrize("kill_at", [1, 4, 5, 11])
def test_killed_and_resumed_gives_the_same_bits(tmp_path, kill_at):
    whole = stage_of()
    train(whole, SETTINGS, tmp_path / "whole", seed=3)
    broken = stage_of()
    original = broken.batch

    def dying(step: int):
        if step == kill_at:
            raise Killed
        return original(step)

    broken.batch = dying
    with pytest.raises(Killed):
        train(broken, SETTINGS, tmp_path / "broken", seed=3)
    resumed = stage_of()
    train(resumed, SETTINGS, tmp_path / "broken", seed=3)
    assert torch.equal(weights(resumed), weights(whole))
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[1]] == list(range(1, 13))


@pytest.mark.parametrize("name", ["threads", "computes on", "torch"])
def test_a_resume_in_another_arithmetic_is_reported(tmp_path, monkeypatch, caplog, name):
    dying = stage_of()
    batch = dying.batch

    def until_six(step: int):
        if step == 6:
            raise Killed
        return batch(step)

    dying.batch = until_six
    with pytest.raises(Killed):
        train(dying, SETTINGS, tmp_path, seed=3)
    facts = loop.arithmetic()
    monkeypatch.setattr(loop, "arithmetic", lambda: facts | {name: "other"})
    train(stage_of(), SETTINGS, tmp_path, seed=3)
    assert f"{name} {facts[name]} then, other now" in caplog.text
    caplog.clear()
    train(stage_of(), SETTINGS, tmp_path, seed=3)  # what is finished is only loaded
    assert not caplog.text


def test_finished_stage_is_loaded_not_trained_again(tmp_path):
    first = stage_of()
    train(first, SETTINGS, tmp_path, seed=3)
    again = stage_of()
    again.losses = None
    train(again, SETTINGS, tmp_path, seed=3)
    assert torch.equal(weights(first), weights(again))


def test_other_settings_or_seed_are_refused(tmp_path):
    train(stage_of(), SETTINGS, tmp_path, seed=3)
    with pytest.raises(CheckpointError, match="other settings or another seed"):
        train(stage_of(), SETTINGS, tmp_path, seed=4)
    with pytest.raises(CheckpointError, match=r"name=\.\.\."):
        train(stage_of(), SETTINGS.model_copy(update={"lr": 1e-3}), tmp_path, seed=3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_overwrites_nothing(tmp_path, value):
    stage = stage_of()
    original, steps = stage.losses, itertools.count()

    def bad(batch):
        losses = original(batch)
        return {name: loss * value for name, loss in losses.items()} if next(steps) == 6 else losses

    stage.losses = bad
    with pytest.raises(NotFiniteError) as error:
        train(stage, SETTINGS, tmp_path, seed=3)
    assert "step 7" in str(error.value) and "xray" in str(error.value)
    assert "step_00000004" in str(error.value)
    assert checkpoint.Checkpoints(tmp_path).newest()[2]["step"] == 4
    assert not (tmp_path / "final.safetensors").exists()


def test_a_gradient_that_is_not_finite_names_its_group(tmp_path):
    stage = stage_of()
    original, steps = stage.losses, itertools.count()

    def bad(batch):
        losses = original(batch)
        if next(steps) == 2:
            losses["loss"] = losses["loss"] + torch.sqrt(
                stage.pairs.model.log_scale * 0
            )  # finite value, infinite slope
        return losses

    stage.losses = bad
    with pytest.raises(NotFiniteError, match="gradient of xray"):
        train(stage, SETTINGS, tmp_path, seed=3)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    stage = stage_of()
    original = stage.batch

    def dying(step: int):
        if step == 10:
            raise Killed
        return original(step)

    stage.batch = dying
    with pytest.raises(Killed):
        train(stage, SETTINGS, tmp_path / "a", seed=3)
    newest = checkpoint.Checkpoints(tmp_path / "a").all()[0]
    newest.write_bytes(newest.read_bytes()[:100])
    resumed, whole = stage_of(), stage_of()
    train(resumed, SETTINGS, tmp_path / "a", seed=3)
    train(whole, SETTINGS, tmp_path / "b", seed=3)
    assert torch.equal(weights(resumed), weights(whole))


def test_disk_full_is_a_clear_error_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    stage = stage_of()
    original = checkpoint.save_file

    def full(flat, path, metadata=None):
        if json.loads(metadata["description"]).get("step") == 8:
            raise OSError(28, "No space left on device")
        original(flat, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskError, match="No space left"):
        train(stage, SETTINGS, tmp_path, seed=3)
    assert checkpoint.Checkpoints(tmp_path).newest()[2]["step"] == 4
    assert not list(tmp_path.glob(".*tmp"))


def test_a_checkpoint_of_more_tensors_than_any_network_has_is_refused_at_once(tmp_path):
    from m3bind.models.weights.weight_files import MAX_TENSORS, read_state
    from m3bind.training.checkpoint import Checkpoints, load_state

    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"k%d":%s' % (n, entry) for n in range(MAX_TENSORS + 1)) + b"}"
    path = tmp_path / "step_00000001.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (load_state, read_state):
        with pytest.raises(CheckpointError, match="tensors, more than"):
            read(path)
    os.mkfifo(tmp_path / "step_00000002.safetensors")
    (tmp_path / "step_00000003.safetensors").mkdir()
    assert Checkpoints(tmp_path).newest() is None
    with pytest.raises(CheckpointError, match="plain file"):
        load_state(tmp_path / "step_00000002.safetensors")


def test_gradients_of_gathered_rows_are_added_in_one_order():
    """Each row many times, enough for two threads: torch adds them atomically, in any order, unless told not to."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 256, generator=generator).requires_grad_()
    ids = torch.randint(0, 20, (400,), generator=generator)
    gradient = torch.randn(400, 256, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with loop.repeatable(torch.device("cpu")):
            found = [torch.autograd.grad(rows[ids], rows, gradient)[0] for _ in range(200)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)
    assert not torch.are_deterministic_algorithms_enabled()


def test_texts_that_occur_several_times_in_a_batch_give_the_same_bits_each_time():
    torch.manual_seed(0)
    pairs = toy_pairs({"a": 40}, image="embedding", text="features", joint_dim=128)["a"]
    ids = torch.randint(0, len(pairs.texts.table), (400,)).numpy()
    weights, signs = list(pairs.model.text_head.parameters()), torch.randn(400, 128)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [torch.autograd.grad((pairs.texts.embed(ids) * signs).sum(), weights) for _ in range(200)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize(
    ("name", "settings", "stored"),
    [
        ("pretrain xray", PretrainConfig(), "5a2ebd57edfad8c0"),
        ("align", AlignConfig(), "7516e8f347505906"),
        ("distill a", DistillConfig(), "2b6c072ac429eb08"),
    ],
)
def test_weights_of_older_versions_are_of_the_same_settings(name, settings, stored):
    """A setting added later counts only if it is used, or finished runs of older versions could not be opened."""
    assert fingerprint_of(name, settings, 3) == stored


def test_a_used_later_setting_counts():
    assert fingerprint_of("pretrain xray", PretrainConfig(degrade=0.5), 3) != "5a2ebd57edfad8c0"
