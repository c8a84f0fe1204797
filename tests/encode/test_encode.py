import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from m3bind.encode import decode_pool, job
from m3bind.encode.job import encode_files, encode_share, open_encoded
from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.models.embedding import correct_gap
from m3bind.search.query import Query
from m3bind.search.searcher import search
from m3bind.space.bundle import load, save_space
from m3bind.space.unlike import unlike_of
from space import tiny


@dataclass(frozen=True)
class Row:
    id: str
    modality: str
    path: Path


@pytest.fixture
def space(tmp_path):
    return load(save_space(tiny.make_space(distilled=False), tmp_path / "space"))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(job, "SHARD", 8)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rows_are_those_of_the_space_in_order(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 21)
    done = encode_files(space, paths, tmp_path / "out", "grey", batch=4)
    np.testing.assert_allclose(done.embeddings, space.encode_image(paths, "grey"), atol=1e-6)
    assert isinstance(done.embeddings, np.memmap) and len(done) == 21 and done.bad == 0
    assert done.items["path"].tolist() == [str(path) for path in paths]
    assert done.items["row"].tolist() == list(range(21)) and list(done.items) == ["row", "id", "modality", "path"]
    assert sorted(files(tmp_path / "out")) == ["embeddings.npy", "encoded.json", "items.parquet", "quarantine.csv"]
    assert not (tmp_path / "out.parts").exists()
    assert "21 done (grey 21), 0 bad" in repr(done)


def test_doubts_about_files_that_were_read_are_listed(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 20)
    from PIL import Image

    for number in (3, 11, 12):
        Image.open(paths[number]).resize((33, 40 + number)).save(paths[number])
    done = encode_files(space, paths, tmp_path / "out", "grey", batch=4)
    assert len(done) == 20 and done.bad == 0 and done.doubted == 3 and "3 with doubts" in repr(done)
    assert done.doubts.to_dict("list") == {
        "path": [str(paths[number]) for number in (3, 3, 11, 11, 12, 12)],
        "modality": ["grey"] * 6,
        "doubt": ["43 rows of 33 pixels", "odd", "51 rows of 33 pixels", "odd", "52 rows of 33 pixels", "odd"],
    }
    assert "3 x 43 rows of 33 pixels" in done.doubts_text() and "3 x odd" in done.doubts_text()
    assert "doubts.csv" in files(tmp_path / "out") and open_encoded(tmp_path / "out").doubted == 3
    (tmp_path / "out" / "doubts.csv").write_text("changed")
    with pytest.raises(SpaceError, match=r"doubts\.csv"):
        open_encoded(tmp_path / "out")


def spoil(paths):
    """Damage some files; returns the rest."""
    paths[2].write_bytes(b"not a picture")
    paths[9].write_bytes(paths[9].read_bytes()[:30])
    paths[10].unlink()
    from PIL import Image

    Image.new("L", (9, 9)).save(paths[11])  # refused by the model's preprocessing
    return [path for number, path in enumerate(paths) if number not in (2, 9, 10, 11)]


def test_bad_files_are_quarantined_with_reasons_and_the_run_continues(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 20)
    good = spoil(paths)
    done = encode_files(space, paths, tmp_path / "out", "grey")
    assert done.items["path"].tolist() == [str(path) for path in good] and done.bad == 4
    bad = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert bad["path"].tolist() == [str(paths[i]) for i in (2, 9, 10, 11)]
    assert bad["reason"].tolist() == ["not a picture", "not a picture", "no such file", "empty picture"]


def test_only_the_embedding_that_is_not_finite_is_quarantined(tmp_path, space, monkeypatch):
    paths = tiny.pictures(tmp_path / "in", 6)
    prepare = tiny.Tiny.preprocess
    calls = []

    def sometimes(self, sample):
        calls.append(1)
        return prepare(self, sample) * (torch.nan if sample.array[0, 0] == first else 1)

    from PIL import Image

    first = np.asarray(Image.open(paths[3]), np.float32)[0, 0] / 255
    monkeypatch.setattr(tiny.Tiny, "preprocess", sometimes)
    done = encode_files(space, paths, tmp_path / "out", "grey")
    bad = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert bad["path"].tolist() == [str(paths[3])] and "not finite" in bad["reason"][0] and len(done) == 5
    assert np.isfinite(done.embeddings).all()


def test_when_all_are_bad_the_list_of_reasons_is_still_written(tmp_path, space):
    done = encode_files(space, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out", "grey")
    assert len(done) == 0 and done.bad == 2 and done.embeddings.shape == (0, 8)
    assert len(pd.read_csv(tmp_path / "out" / "quarantine.csv")) == 2


def test_records_of_a_manifest_bring_only_their_modality_unless_requested(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 12)
    rows = [Row(f"patient {i}", ("grey", "other")[i % 2], path) for i, path in enumerate(paths)]
    done = encode_files(space, rows, tmp_path / "out")
    assert done.modalities == {"grey": 6, "other": 6}
    np.testing.assert_allclose(done.embeddings[1::2], space.encode_image(paths[1::2], "other"), atol=1e-6)
    assert not any(b"patient" in content for content in files(tmp_path / "out").values())
    kept = encode_files(space, rows, tmp_path / "out", "other", keep=["id"])
    assert kept.items["id"].tolist() == [f"patient {i}" for i in range(1, 12, 2)]
    with pytest.raises(ConfigError, match="no field 'name'"):
        encode_files(space, rows, tmp_path / "out", keep=["name"])


def test_gap_correction_is_stored_and_noted(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 10)
    rows = [Row("", ("grey", "other")[i % 2], path) for i, path in enumerate(paths)]
    plain = encode_files(space, rows, tmp_path / "plain")
    done = encode_files(space, rows, tmp_path / "out", gap_correct=True)
    assert done.gap_corrected and not plain.gap_corrected
    for start, name in enumerate(("grey", "other")):
        expected = correct_gap(plain.embeddings[start::2], space.image_mean(name))
        np.testing.assert_array_equal(done.embeddings[start::2], expected)


def test_folders_are_searched_by_ending_and_each_file_is_encoded_once(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in" / "deep", 3)
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / ".hidden.png").write_bytes(paths[0].read_bytes())
    done = encode_files(space, [tmp_path / "in", paths[1]], tmp_path / "out", "grey")
    assert done.items["path"].tolist() == [str(path) for path in paths]


def test_the_same_again_is_done_at_once_and_changed_files_are_encoded_again(tmp_path, space, monkeypatch):
    paths, calls = tiny.pictures(tmp_path / "in", 20), []
    prepare = decode_pool.prepare
    monkeypatch.setattr(
        decode_pool, "prepare", lambda s, row, cut: calls.append(Path(row["path"])) or prepare(s, row, cut)
    )
    first = np.array(encode_files(space, paths, tmp_path / "out", "grey").embeddings)
    assert sorted(calls) == paths
    calls.clear()
    np.testing.assert_array_equal(encode_files(space, paths, tmp_path / "out", "grey").embeddings, first)
    assert calls == []
    paths[5].write_bytes(tiny.pictures(tmp_path / "new", 1, seed=5)[0].read_bytes())
    os.utime(paths[5], (1, 1))
    second = encode_files(space, paths, tmp_path / "out", "grey").embeddings
    assert [i for i in range(20) if not np.array_equal(first[i], second[i])] == [5]


def test_an_error_in_the_middle_leaves_finished_shards(tmp_path, space, monkeypatch):
    paths, calls, harmful = tiny.pictures(tmp_path / "in", 20), [], [True]
    prepare = decode_pool.prepare

    def breaks(space, row, cut):
        if Path(row["path"]) == paths[17] and harmful:
            raise KeyboardInterrupt
        calls.append(Path(row["path"]))
        return prepare(space, row, cut)

    monkeypatch.setattr(decode_pool, "prepare", breaks)
    with pytest.raises(KeyboardInterrupt):
        encode_files(space, paths, tmp_path / "out", "grey", batch=4, workers=1)
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "out.parts").glob("*.safetensors"))) == 2
    harmful.clear()
    calls.clear()
    done = encode_files(space, paths, tmp_path / "out", "grey", batch=4, workers=1)
    assert calls == paths[16:] and len(done) == 20


KILLED = """
import os, random, signal, sys, time
from space import tiny
from pathlib import Path
tiny.register()
from m3bind.encode import decode_pool, job
from m3bind.space import bundle
job.SHARD = 8
prepare = decode_pool.prepare
def slow(space, row, cut):
    time.sleep(0.01)
    return prepare(space, row, cut)
decode_pool.prepare = slow
random.seed(0)
folder, files, out = sys.argv[1], sorted(Path(sys.argv[2]).iterdir()), sys.argv[3]
killed = 0
for attempt in range(6):
    child = os.fork()
    if child == 0:  # forked before anything is computed, so that each attempt starts at once
        job.encode_files(bundle.load(folder), files, out, "grey", batch=4, workers=2)
        os._exit(0)
    if attempt < 5:
        time.sleep(random.uniform(0.05, 0.2))
        os.kill(child, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
print("killed", killed)
"""


def test_killed_at_random_moments_gives_the_bytes_of_an_uninterrupted_run(tmp_path, start):
    space = load(save_space(tiny.make_space(distilled=False), tmp_path / "space"))
    spoil(tiny.pictures(tmp_path / "in", 60))
    encode_files(space, sorted((tmp_path / "in").iterdir()), tmp_path / "whole", "grey", batch=4)
    process = start(KILLED, tmp_path / "space", tmp_path / "in", tmp_path / "killed")
    output = process.communicate()[0]
    assert process.returncode == 0 and int(output.split()[-1]) >= 3
    assert files(tmp_path / "whole") == files(tmp_path / "killed")


@pytest.mark.parametrize("name", ["embeddings.npy", "items.parquet", "quarantine.csv", "encoded.json"])
def test_damage_is_noticed_on_opening(tmp_path, space, name):
    encode_files(space, tiny.pictures(tmp_path / "in", 3), tmp_path / "out", "grey")
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-3] + b"!")
    with pytest.raises(SpaceError, match=name):
        open_encoded(tmp_path / "out")


def test_wrong_use_is_refused_before_anything_is_written(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not an encoded archive"):
        encode_files(space, paths, tmp_path / "mine", "grey")
    with pytest.raises(ConfigError, match="nothing to encode"):
        encode_files(space, [], tmp_path / "out", "grey")
    with pytest.raises(UnknownNameError, match="did you mean 'grey'"):
        encode_files(space, paths, tmp_path / "out", "gray")
    with pytest.raises(SpaceError, match="memory only"):
        encode_files(tiny.make_space(), paths, tmp_path / "out", "grey")
    with pytest.raises(SpaceError, match="not an encoded archive"):
        open_encoded(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_noted_about_the_run(tmp_path, space):
    encode_files(space, tiny.pictures(tmp_path / "in", 3), tmp_path / "out", "grey")
    content = json.loads((tmp_path / "out" / "encoded.json").read_text())
    assert content["space"] == space.fingerprint and content["done"] == 3 and content["bad"] == 0
    assert content["synthetic_space"] is False


def test_a_resumed_run_computes_as_the_journal_states(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 20)
    exact = np.array(encode_files(space, paths, tmp_path / "exact", "grey").embeddings)
    encode_share(space, paths, tmp_path / "out", (1, 3), "grey")
    decision = tmp_path / "out.parts" / "tower-grey.json"
    decision.write_text(decision.read_text().replace("float32", "bfloat16"))
    done = encode_files(space, paths, tmp_path / "out", "grey")
    assert done.precision == {"grey": "bfloat16"}
    np.testing.assert_array_equal(done.embeddings[:8], exact[:8])
    assert 0 < np.abs(done.embeddings[8:] - exact[8:]).max() < 0.05


def test_other_settings_are_another_job_whose_shards_and_decisions_are_its_own(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 20)
    encode_share(space, paths, tmp_path / "out", (1, 3), "grey", precision="bfloat16")
    before = {path.name for path in (tmp_path / "out.parts").glob("*.safetensors")}
    encode_share(space, paths, tmp_path / "out", (1, 3), "grey")
    after = {path.name for path in (tmp_path / "out.parts").glob("*.safetensors")}
    assert len(before) == len(after) == 1 and not before & after
    assert encode_files(space, paths, tmp_path / "out", "grey").precision == {"grey": "float32"}


def test_what_a_killed_process_left_is_cleared_away(tmp_path, space):
    (tmp_path / ".out.999999999.tmp").mkdir()
    encode_files(space, tiny.pictures(tmp_path / "in", 3), tmp_path / "out", "grey")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "space"]


def test_ids_derive_from_modality_and_path_if_none_is_stored(tmp_path, space):
    paths = tiny.pictures(tmp_path / "in", 3)
    rows = [Row("", m, path) for m in ("grey", "other") for path in paths]
    first = encode_files(space, rows, tmp_path / "out").items["id"]
    assert first.is_unique and encode_files(space, paths[1:], tmp_path / "b", "grey").items["id"].tolist() == [
        *first[1:3]
    ]


def test_names_that_are_not_utf8_are_quarantined(tmp_path, space):
    paths = tiny.pictures(tmp_path / "data", 2)
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "data") + b"/R\xf6ntgen.png"))
    odd.write_bytes(paths[0].read_bytes())
    encoded = encode_files(space, [tmp_path / "data"], tmp_path / "out", modality="grey")
    bad = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert len(encoded) == 2 and list(bad.reason) == ["its name is not UTF-8 text, which tables need; rename the file"]


def test_a_column_states_why_files_are_unlike_the_training_data(tmp_path):
    space, paths = tiny.measured_space(tmp_path / "in")
    space = load(save_space(space, tmp_path / "space"))
    strange = tmp_path / "strange.png"
    Image.fromarray(np.linspace(0, 255, 1600).astype(np.uint8).reshape(40, 40)).save(strange)
    done = encode_files(space, [*paths, strange], tmp_path / "out", "grey", workers=2)
    rows, reasons = space.examine([*paths, strange], "grey")
    np.testing.assert_allclose(done.embeddings, rows, atol=1e-6)
    assert done.items["unlike"].tolist() == reasons and reasons[-1]
    assert f"{sum(map(bool, reasons))} files are unlike the training data" in done.unlike_text()
    hits = search(space, tmp_path / "out", Query.item(done.items["id"][0]), k=41)
    assert {hit.path: hit.unlike for hit in hits}[str(strange)] == reasons[-1]
    plain = encode_files(load(save_space(tiny.make_space(), tmp_path / "plain")), paths, tmp_path / "other", "grey")
    assert "unlike" not in plain.items and plain.unlike_text() == ""


def test_an_item_is_unlike_if_most_of_its_parts_are():
    assert unlike_of(["", "a", "b", "b"]) == "b"
    assert unlike_of(["", "a"]) == unlike_of([]) == unlike_of([""]) == ""
