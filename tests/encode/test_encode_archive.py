"""A mixed archive of seven formats with fifteen kinds of bad files gives the same bytes however it is encoded.

M3BIND_ARCHIVE sets the number of files of the slow tests (default 20,000), M3BIND_KILLS that of kills (default 30).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from m3bind.encode import job
from m3bind.encode.job import encode_files, encode_share, merge
from m3bind.encode.journal import Journal
from m3bind.errors import ConfigError
from m3bind.modalities import Cut
from m3bind.space.bundle import load, save_space
from space import archives

FILES = int(os.environ.get("M3BIND_ARCHIVE", "20000"))
KILLS = int(os.environ.get("M3BIND_KILLS", "30"))
GROWTH = 100 << 20  # bytes of peak memory from a tenth of the files to all
REASONS = {
    "empty PNG": "the file is empty",
    "cut PNG": "damaged or cut short: it cannot be decoded",
    "words for a PNG": "not a PNG or JPEG or TIFF that can be read",
    "PNG of absurd size": "not a PNG or JPEG or TIFF that can be read: it is a damaged PNG file",
    "head of a JPEG": "damaged or cut short: it cannot be decoded",
    "page for a JPEG": "not a PNG or JPEG or TIFF that can be read: it is a web page or XML",
    "cut DICOM": "1 frames of 40 x 40 need 3,200 bytes, 1,372 are stored",
    "DICOM without pixels": "no pixels: a radiograph",
    "DICOM of another kind": "a DICOM object of kind PR",
    "cut NIfTI": "not a readable NIfTI file (cut short: 2,155 of 4,448 bytes)",
    "words for a NIfTI": "not a readable NIfTI file (another header)",
    "WFDB header alone": "a signal file named by the header is missing",
    "WFDB cut short": "not a readable WFDB record: cut short, the header declares 1,000 samples, "
    "its signal file contains 791",
    "three leads": "leads V1, V2, V3, V4, V5, V6 are missing",
    "cut EDF": "not a readable EDF file: cut short, a header of 3,328 bytes, 300 are stored",
}


@pytest.fixture(autouse=True, scope="module")
def _known(_registered):
    """The reduced towers and all modalities, instead of the tiny ones."""
    archives.register()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A folder with files below `in`, a space, the archive encoded into `whole`; and the bad files."""
    folder = tmp_path_factory.mktemp("archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "SHARD", 32)
        bad = archives.make_archive(folder / "in", 120)
        encode_files(load(save_space(archives.make_space(), folder / "space")), [folder / "in"], folder / "whole")
    return folder, bad


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(job, "SHARD", 32)


@pytest.fixture
def space(archive):
    return load(archive[0] / "space")


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_exactly_the_bad_files_are_quarantined_each_for_its_reason(archive):
    folder, bad = archive
    found = pd.read_csv(folder / "whole" / "quarantine.csv").sort_values("path")
    assert found["path"].tolist() == list(map(str, bad)) and sorted(bad.values()) == sorted(REASONS)
    assert found["reason"].tolist() == [REASONS[kind] for kind in bad.values()]


def test_rows_are_those_of_the_space_for_each_modality(archive, space):
    done = job.open_encoded(archive[0] / "whole")
    assert sorted(done.modalities) == sorted(archives.NAMES) and done.precision == dict.fromkeys(
        sorted(archives.NAMES), "float32"
    )
    alone = done.items[~done.items["row"].isin(done.parts["row"])]
    for modality, rows in alone.groupby("modality"):
        expected = space.encode_image(rows["path"].tolist(), modality)
        np.testing.assert_allclose(done.embeddings[rows["row"]], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3}])
def test_the_number_of_workers_does_not_show(archive, space, tmp_path, options):
    encode_files(space, [archive[0] / "in"], tmp_path / "out", **options)
    assert content(tmp_path / "out") == content(archive[0] / "whole")


def test_the_number_of_tower_threads_does_not_show(archive, space, tmp_path, monkeypatch):
    monkeypatch.setattr(job.torch, "get_num_threads", lambda: 3)
    encode_files(space, [archive[0] / "in"], tmp_path / "out")
    assert content(tmp_path / "out") == content(archive[0] / "whole")


def test_shares_of_several_machines_merge_to_the_bytes_of_one_run(archive, space, tmp_path):
    counts = [encode_share(space, [archive[0] / "in"], tmp_path / f"{i}", (i, 3)) for i in (1, 2, 3)]
    with pytest.raises(ConfigError, match="shard 2 of 4 is missing"):
        merge([tmp_path / "1.parts", tmp_path / "3.parts"], tmp_path / "out")
    merged = merge([tmp_path / f"{i}.parts" for i in (3, 1, 2)], tmp_path / "out")
    assert content(tmp_path / "out") == content(archive[0] / "whole")
    assert np.sum(counts, axis=0).tolist() == [len(merged), merged.bad]


def test_shares_in_one_folder_are_put_together_by_encoding_without_a_share(archive, space, tmp_path, monkeypatch):
    for i in (1, 2):
        encode_share(space, [archive[0] / "in"], tmp_path / "out", (i, 2))
    monkeypatch.setattr(job.Towers, "run", lambda *_: pytest.fail("nothing is left to encode"))
    encode_files(space, [archive[0] / "in"], tmp_path / "out")
    assert content(tmp_path / "out") == content(archive[0] / "whole")
    assert not (tmp_path / "out.parts").exists()


def test_parts_of_different_jobs_do_not_merge(archive, space, tmp_path):
    encode_share(space, [archive[0] / "in"], tmp_path / "a", (1, 2))
    encode_share(space, [archive[0] / "in"], tmp_path / "b", (2, 2), batch=3)
    with pytest.raises(ConfigError, match="different jobs"):
        merge([tmp_path / "a.parts", tmp_path / "b.parts"], tmp_path / "out")
    encode_share(space, [archive[0] / "in"], tmp_path / "c", (2, 2))
    store = Journal(tmp_path / "c.parts")
    (store.folder / "tower-xray.json").write_text('{"dtype": "bfloat16", "folded": false}')
    with pytest.raises(ConfigError, match="computed xray as"):
        merge([tmp_path / "a.parts", store.folder], tmp_path / "out")
    with pytest.raises(ConfigError, match="no parts of an encoding"):
        merge([tmp_path / "nothing"], tmp_path / "out")


PROCESS = """
import sys
from pathlib import Path
from space import archives
from m3bind.encode import job
from m3bind.space.bundle import load
archives.register()
job.SHARD = 32
folder, out = map(Path, sys.argv[1:])
print(job.encode_files(load(folder / "space"), [folder / "in"], out))
"""


@pytest.mark.whole
def test_two_processes_of_a_launcher_give_the_bytes_of_one(archive, tmp_path, start, monkeypatch, free_port):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    processes = []
    for rank in ("0", "1"):  # of 120 files in shards of 32
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        processes.append(start(PROCESS, archive[0], tmp_path / "out", stderr=subprocess.PIPE))
    said = [process.communicate() for process in processes]
    assert all("105 done" in out for out, _ in said)
    assert ["64/64" in errors and "120" not in errors for _, errors in said] == [True, False]
    assert "56/56" in said[1][1]
    assert content(tmp_path / "out") == content(archive[0] / "whole")


def test_slides_and_long_recordings_are_the_mean_of_their_parts(archive, space, tmp_path):
    path = archives.slide(tmp_path / "s", np.random.default_rng(3))
    record = archives.long_wfdb(tmp_path / "r", np.random.default_rng(4))
    done = encode_files(space, [path, record], tmp_path / "out", part_embeddings=True)
    parts = done.parts
    assert parts["row"].tolist() == [0, 0, 1, 1, 1] and parts["seconds"].tolist()[2:] == [0.0, 10.0, 20.0]
    assert sorted(zip(parts["x"][:2], parts["y"][:2])) == [(0.0, 0.0), (224.0, 0.0)]
    for row in (0, 1):
        mean = np.asarray(done.part_embeddings[parts["row"] == row], np.float64).mean(axis=0)
        np.testing.assert_allclose(done.embeddings[row], mean / np.linalg.norm(mean), atol=1e-6)
    first = space.encode_image(path, "pathology")  # the most tissue-rich tile
    assert np.abs(done.part_embeddings[:2] - first).max(axis=1).min() < 1e-5
    fewer = encode_files(space, [path, record], tmp_path / "few", cut=Cut(most=1, seconds=40))
    assert len(fewer.parts) == 1 and np.abs(fewer.embeddings[0] - first).max() < 1e-5
    with pytest.raises(ConfigError, match="no embeddings of parts"):
        fewer.part_embeddings  # noqa: B018


def kill(folder, files, kills, shard, *more):
    command = [sys.executable, Path(__file__).with_name("kill_archive.py"), folder, "--files", files, "--kills", kills]
    run = subprocess.run([*map(str, command), "--shard", str(shard), *more], stdout=subprocess.PIPE, text=True)
    print(run.stdout)
    return run.returncode, json.loads(run.stdout.splitlines()[-1])


@pytest.mark.whole
def test_killed_at_random_moments(tmp_path):
    code, result = kill(tmp_path, 90, 3, 8, "--after", "0.1")
    assert code == 0 and result["kills"] == 3 and result["bad"] == 15


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_killed_many_times(tmp_path):
    code, result = kill(tmp_path, FILES, KILLS, job.SHARD * 16)
    assert code == 0 and result["kills"] == KILLS


MEMORY = """
import resource, sys
from pathlib import Path
from space import archives
from m3bind.space.bundle import load
from m3bind.encode.job import encode_files
archives.register()
folder, name = Path(sys.argv[1]), sys.argv[2]
encode_files(load(folder / "space"), [folder / name], folder / f"out-{name}")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_memory_does_not_grow_with_the_number_of_files(tmp_path, start):
    save_space(archives.make_space(), tmp_path / "space")
    peaks = []
    for files in (FILES // 10, FILES):
        archives.make_archive(tmp_path / str(files), files)
        peaks.append(int(start(MEMORY, tmp_path, files).communicate()[0].split()[-1]))
    print(f"peak {peaks[0] / 2**20:.0f} MiB with {FILES // 10} files, {peaks[1] / 2**20:.0f} MiB with {FILES}")
    assert peaks[1] - peaks[0] < GROWTH


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
