"""Each file is decoded once in all, whatever is bad, killed, moved, shared by processes, or too much for the disk."""

import multiprocessing
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from m3bind.data.cache import FeatureCache, Share
from m3bind.data.records import Record
from m3bind.errors import M3BindError, ReadError
from m3bind.modalities import decode
from m3bind.modalities.base import Sample
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import IMAGENET_MEAN, IMAGENET_STD, normalized
from m3bind.pipeline import ingest, stored_inputs
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.ingest import BLOCK
from m3bind.pipeline.stored_inputs import BadFilesError, LiveInputs, StoredInputs
from toys import ToyEncoder

RANDOM = np.random.default_rng(0)


class Pictures(ToyEncoder):
    """Takes pictures as published models do: 8-bit, mean and standard deviation."""

    def __init__(self) -> None:
        super().__init__(3 * 16 * 16)
        self.image_trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8))

    def preprocess(self, sample: Sample) -> Tensor:
        return normalized(rgb_image(sample).resize((16, 16)), IMAGENET_MEAN, IMAGENET_STD)


class Interpolated(Pictures):
    """Has no levels."""

    def preprocess(self, sample: Sample) -> Tensor:
        return super().preprocess(sample) * 0.3


def write(path: Path, seed: int, bad: bool = False) -> Record:
    """A radiograph, or a file that is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if bad:
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + seed.to_bytes(8, "little"))
    else:
        random = np.random.default_rng(seed)
        tone = random.integers(0, 256, (5, 4)).astype(np.uint8)
        Image.fromarray(tone).resize((72, 80), Image.Resampling.BICUBIC).save(path)
    os.utime(path, (1e9, 1e9))
    return Record(str(seed), "xray", path, "", (), ("text",), (), str(seed), "train", "")


def files(folder: Path, count: int = 40, every: int = 0) -> list[Record]:
    """Files of which every n-th is bad."""
    return [write(folder / f"{n}.png", n, bad=bool(every) and n % every == 1) for n in range(count)]


@pytest.fixture(autouse=True)
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded."""
    counts: Counter[str] = Counter()
    monkeypatch.setenv("M3BIND_ISOLATION", "off")

    def counting(modality, path):
        counts[Path(path).name] += 1
        return decode(modality, path)

    monkeypatch.setattr(stored_inputs.modalities, "decode", counting)
    return counts


def extractor(folder: Path, **options) -> FeatureExtractor:
    return FeatureExtractor(FeatureCache(folder / "cache"), **{"batch": 8, **options})


def everything(encoder: FeatureExtractor, records: list[Record], model: Pictures) -> tuple[np.ndarray, list[str]]:
    """What a fit reads: quarantine, inputs, features, embeddings; the inputs and the bad files' names."""
    good, bad = encoder.readable(records, model)
    inputs = encoder.inputs(good, model)
    assert len(inputs) == len(good) == len(encoder.image_features(good, model))
    encoder.image_features(good[::2], model, views=2)
    encoder.image_embeddings(good, model)
    return inputs[:], [Path(row.path).name for row in bad]


def wanted(records: list[Record], model: Pictures) -> np.ndarray:
    return np.stack([model.preprocess(decode("xray", record.path)).numpy() for record in records])


@pytest.mark.parametrize("every", [0, 50, 10, 2, 1])
@pytest.mark.parametrize("kind", [Pictures, Interpolated])
@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_one_decode_a_file_whatever_is_bad(tmp_path, decoded, every, kind, gigabytes):
    records, model = files(tmp_path, every=every), kind().eval()
    bad = [f"{n}.png" for n in range(40) if every and n % every == 1]
    good = [record for record in records if record.path.name not in bad]
    if every == 1:
        records, bad, good = [write(tmp_path / f"{n}.png", n, bad=True) for n in range(40)], None, []
    passes = 1 if gigabytes else 4  # live reading: the quarantine, inputs, features of all and half; embeddings: cached
    for _ in range(2):
        encoder = extractor(tmp_path, inputs_gb=gigabytes)
        if bad is None:
            assert encoder.readable(records, model)[0] == []
        else:
            inputs, found = everything(encoder, records, model)
            assert found == bad
            np.testing.assert_array_equal(inputs, wanted(good, model))
        if gigabytes or bad is None:
            assert set(decoded.values()) == {1} and len(decoded) == 40
        else:
            assert max(decoded.values()) <= passes and all(decoded[name] == 1 for name in bad)
            assert isinstance(encoder.inputs(good, model), LiveInputs)
            passes += 1  # the inputs, read once more


def test_pictures_take_a_quarter_of_the_disk(tmp_path):
    records = files(tmp_path)
    encoder = extractor(tmp_path)
    packed = encoder.inputs(records, Pictures()).packed([0, 7])
    assert packed["level"].dtype == torch.uint8 and packed["level"].shape == (2, 3, 16, 16)
    (shard,) = [p for p in (tmp_path / "cache").rglob("*.safetensors") if p.parent.name != "files"]
    assert shard.stat().st_size < 40 * (3 * 16 * 16 + 32) + 1000


def test_inputs_are_indexed_as_arrays(tmp_path):
    records, model = files(tmp_path, 9), Pictures()
    expected = wanted(records, model)
    for limit in (1.0, 0.0):
        inputs = extractor(tmp_path / str(limit), inputs_gb=limit).inputs(records, model)
        assert isinstance(inputs, StoredInputs if limit else LiveInputs)
        for index in (3, -1, slice(2, 8, 2), [5, 5, 0], np.array([1, 2]), [], slice(None)):
            np.testing.assert_array_equal(inputs[index], expected[index])
        assert inputs.shape == expected.shape
    assert len(extractor(tmp_path).inputs([], model)) == 0


def test_a_fault_is_remembered_until_something_that_matters_changes(tmp_path, decoded, monkeypatch):
    record, model = write(tmp_path / "a.png", 1, bad=True), Pictures()

    def reasons() -> list[str]:
        return [row.reason for row in extractor(tmp_path).readable([record], model)[1]]

    first = reasons()
    assert first and reasons() == first and decoded["a.png"] == 1
    os.utime(record.path, (2e9, 2e9))  # the same content
    assert reasons() == first and decoded["a.png"] == 1
    monkeypatch.setattr("m3bind.pipeline.ingest.LIMITS", "others")
    assert reasons() == first and decoded["a.png"] == 2
    write(record.path, 5)
    os.utime(record.path, (1e9, 2e9))
    assert reasons() == [] and decoded["a.png"] == 3
    record.path.unlink()
    assert "no such file" in reasons()[0] and decoded["a.png"] == 3


def test_a_fault_of_the_moment_is_tried_again(tmp_path, decoded, monkeypatch):
    records, model = files(tmp_path, 4), Pictures()

    def busy(modality, path):
        decoded[Path(path).name] += 1
        if Path(path).name == "2.png":
            raise ReadError(path, "took too long", lasting=False)
        return decode(modality, path)

    with monkeypatch.context() as patched:
        patched.setattr(stored_inputs.modalities, "decode", busy)
        assert [row.reason for row in extractor(tmp_path).readable(records, model)[1]] == ["took too long"]
    assert extractor(tmp_path).readable(records, model)[1] == []
    assert decoded == {"0.png": 1, "1.png": 1, "2.png": 2, "3.png": 1}


def test_what_a_model_refuses_is_quarantined_with_its_reason(tmp_path):
    class Choosy(Pictures):
        def preprocess(self, sample):
            return super().preprocess(sample) * (np.nan if sample.array[0, 0] > 0.5 else 1)

    records = files(tmp_path, 9)
    refused = [record.row for record in records if decode("xray", record.path).array[0, 0] > 0.5]
    good, bad = extractor(tmp_path).readable(records, Choosy())
    assert 0 < len(bad) == len(refused) == 9 - len(good)
    assert {row.reason for row in bad} == {"preprocessing gives NaN or infinity"}
    with pytest.raises(BadFilesError) as caught:
        extractor(tmp_path).inputs(records, Choosy())
    assert len(caught.value.failures) == len(bad)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "no such file; check the path in the manifest"),
        (lambda path: path.write_bytes(path.with_name("3.png").read_bytes()), "its content changed after the run"),
        (lambda path: path.write_bytes(path.read_bytes()[:90]), "its content changed after the run"),
        (lambda path: path.touch(), ""),
    ],
)
def test_live_reading_refuses_files_that_changed_after_the_first_reading(tmp_path, change, reason):
    records, model = files(tmp_path, 5), Pictures()
    inputs = extractor(tmp_path, inputs_gb=0.0).inputs(records, model)
    before = inputs[[2, 3]]
    change(tmp_path / "2.png")
    if not reason:
        np.testing.assert_array_equal(inputs[[2, 3]], before)
        return
    with pytest.raises(BadFilesError, match=f"2.png: {reason}.*; the same command reads changed files again"):
        inputs[[2, 3]]
    np.testing.assert_array_equal(inputs[[3]], before[1:])


def test_inputs_of_another_shape_are_refused(tmp_path):
    class Growing(Pictures):
        size = 4

        def preprocess(self, sample):
            return super().preprocess(sample)[:, : self.size]

    records = files(tmp_path, 4)
    extractor(tmp_path).inputs(records[:2], model := Growing())
    model.size = 5
    with pytest.raises(M3BindError, match="shapes"):
        extractor(tmp_path).inputs(records, model)


def test_copies_and_moved_files_are_not_decoded_again(tmp_path, decoded):
    records = files(tmp_path, 6, every=4)
    copies = [write(tmp_path / f"copy{n}.png", n, bad=n % 4 == 1) for n in range(6)]
    model = Pictures()
    assert len(extractor(tmp_path, workers=4).readable([*records, *copies], model)[1]) == 4
    assert sum(decoded.values()) == 6
    moved = [write(tmp_path / "elsewhere" / f"{n}.png", n, bad=n % 4 == 1) for n in range(6)]
    assert len(extractor(tmp_path).readable(moved, model)[1]) == 2
    assert sum(decoded.values()) == 6


@pytest.mark.parametrize("refused", ["0.tiff", "1.png"])
def test_a_fault_of_an_ending_does_not_concern_copies_with_another(tmp_path, monkeypatch, refused):
    """Whichever is read first, and in later passes."""
    first, second = write(tmp_path / "0.png", 1), write(tmp_path / "1.png", 1)
    first.path.rename(tmp_path / "0.tiff")
    records = [replace(first, path=tmp_path / "0.tiff"), second]

    def choosy(modality, path):
        if Path(path).name == refused:
            raise ReadError(path, "not of this kind")
        return decode(modality, path)

    monkeypatch.setattr(stored_inputs.modalities, "decode", choosy)
    for _ in range(2):  # the content is readable
        good, bad = extractor(tmp_path, workers=1).readable(records, Pictures())
        assert (len(good), bad) == (2, [])


def test_live_reading_has_a_child_process_for_each_worker(tmp_path, monkeypatch):
    """Also if an earlier run stored all verdicts, so that the pass reads nothing."""
    records, model = files(tmp_path, 4), Pictures()
    extractor(tmp_path, inputs_gb=0.0).inputs(records, model)
    inputs = extractor(tmp_path, inputs_gb=0.0, workers=7).inputs(records, model)
    allowed: list[int] = []
    monkeypatch.setattr("m3bind.data.prefetch.allow", allowed.append)
    np.testing.assert_array_equal(inputs[[2, 0]], wanted([records[2], records[0]], model))
    assert allowed == [7]


def test_files_written_just_now(tmp_path, decoded):
    records = files(tmp_path, 6, every=4)
    for record in records:
        os.utime(record.path)
    encoder, model = extractor(tmp_path), Pictures()
    good, bad = encoder.readable(records, model)
    assert (len(good), len(bad)) == (4, 2)
    assert encoder.inputs(good, model).shape[0] == 4 and set(decoded.values()) == {1}


def test_rescaled_files_are_inputs_of_their_own(tmp_path):
    record = write(tmp_path / "a.png", 1)
    scaled = replace(record, rescale=(0.5, 0.0))
    inputs = extractor(tmp_path).inputs([record, scaled], Pictures())
    assert not np.array_equal(inputs[0], inputs[1])


def one_pass(folder: Path, log: Path, step: int, rank: int, world: int, count: int) -> None:
    """In a process of its own: the share of a pass, ended without warning at the given step (decoding, renaming)."""
    events, rename = 0, os.replace

    def event() -> None:
        nonlocal events
        events += 1
        if events == step:
            os._exit(7)

    def counting(modality, path):
        event()
        with open(log, "a") as handle:
            handle.write(Path(path).name + "\n")
        return decode(modality, path)

    def renaming(*names: Path) -> None:
        event()
        rename(*names)
        event()

    def wait() -> None:
        (folder / f"done{rank}").touch()
        while len(list(folder.glob("done*"))) < world:
            time.sleep(0.01)

    stored_inputs.modalities.decode = counting
    os.replace = renaming
    ingest.FLUSH_SECONDS, ingest.LIMIT = 0.0, 1
    records = [
        Record(str(n), "xray", folder / f"{n}.png", "", (), ("text",), (), str(n), "train", "") for n in range(count)
    ]
    share = Share(rank, world, wait) if world > 1 else Share()
    own = extractor(folder, workers=1)
    with own.cache.shared(share):
        good, bad = own.readable(records, Pictures())
    os._exit(0 if (len(good), len(bad)) == (count - count // 10, count // 10) else 1)


def start(*arguments: Any) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=one_pass, args=arguments)
    process.start()
    return process


def test_killed_at_each_step_it_resumes_at_the_shard(tmp_path, decoded):
    """In one process after the other, each killed at another step: only the files at work are decoded again."""
    count = 10
    files(tmp_path, count, every=10)
    log, codes = tmp_path / "log", []
    for step in (2, 3, 4, 5, 6, 7, 3, 2, 0):
        process = start(tmp_path, log, step, 0, 1, count)
        process.join()
        codes.append(process.exitcode)
        if process.exitcode != 7:
            break
    assert codes[-1] == 0 and len(codes) > 4
    names = log.read_text().split()
    assert set(names) == {f"{n}.png" for n in range(count)} and len(names) <= count + 2 * (len(codes) - 1)
    assert len(extractor(tmp_path).inputs(files(tmp_path, count)[2:], Pictures())) == 8 and not decoded


def test_two_processes_share_one_pass(tmp_path):
    count = 2 * BLOCK + 22
    files(tmp_path, count, every=10)
    processes = [start(tmp_path, tmp_path / f"log{rank}", 0, rank, 2, count) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    logs = [(tmp_path / f"log{rank}").read_text().split() for rank in range(2)]
    assert sorted(logs[0] + logs[1]) == sorted(f"{n}.png" for n in range(count)) and min(map(len, logs)) >= BLOCK


def test_a_share_of_a_machine_without_the_others_is_done_by_all_later(tmp_path, decoded):
    records, model = files(tmp_path, 3 * BLOCK), Pictures()
    turns = [threading.Event(), threading.Event()]

    def other() -> None:
        turns[0].wait()
        theirs = extractor(tmp_path)
        with theirs.cache.shared(Share(1, 2, turns[1].set)):
            theirs.readable(records, model)

    thread = threading.Thread(target=other)
    thread.start()

    def wait() -> None:
        assert sum(decoded.values()) == 2 * BLOCK
        turns[0].set()
        turns[1].wait()

    ours = extractor(tmp_path)
    with ours.cache.shared(Share(0, 2, wait)):
        assert len(ours.readable(records, model)[0]) == 3 * BLOCK
    thread.join()
    assert set(decoded.values()) == {1} and len(decoded) == 3 * BLOCK


class Steps(torch.utils.data.Dataset):
    def __init__(self, inputs: LiveInputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 6

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.inputs.packed([step, step + 1])


def test_live_reading_within_forked_workers_of_a_loader(tmp_path, monkeypatch):
    """With child processes that decode: before the fork in this process, after it in each worker."""
    monkeypatch.setenv("M3BIND_ISOLATION", "on")
    monkeypatch.setattr(stored_inputs.modalities, "decode", decode)
    records, model = files(tmp_path, 8), Pictures()
    inputs = extractor(tmp_path, inputs_gb=0.0).inputs(records, model)
    loader = torch.utils.data.DataLoader(Steps(inputs), None, num_workers=2, multiprocessing_context="fork")
    expected = wanted(records, model)
    for _ in range(2):
        for step, packed in enumerate(loader):
            assert packed["level"].dtype == torch.uint8
            np.testing.assert_array_equal(inputs.expand(packed).numpy(), expected[step : step + 2])
            np.testing.assert_array_equal(inputs[[step]], expected[[step]])
