"""Tables and containers of a data set that point outside its folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3bind.errors import ManifestError
from m3bind.evaluate import benchmarks

HEAD = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"


@pytest.mark.parametrize("name", ["../../secret.png", "{root}/../secret.png", "IMAGES/../../secret.png"])
def test_a_file_outside_the_folder_is_quarantined(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "IMAGES").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "IMAGES" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (root / "messidor_data.csv").write_text(HEAD + "a.png,1,0,1\n")
    benchmark = benchmarks.get("messidor2")
    items = list(benchmark.items(root, tmp_path / "out"))
    outside = benchmarks.BenchmarkItem(path=name.format(root=root), split="test", modality="retina", label="x")
    monkeypatch.setattr(type(benchmark), "items", lambda self, *places: iter([*items, outside]))
    done = benchmarks.prepare(benchmark, root, tmp_path / "out")
    assert done.counts["test"] == 1
    assert [fault.kind for fault in done.faults] == ["with a path outside"]
    assert "secret" not in done.manifest.read_text()


@pytest.mark.parametrize("kind", ["external bytes", "virtual", "external link", "soft link"])
def test_an_array_in_another_file_is_not_read(tmp_path: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    shape = (2, 96, 96, 3)
    with h5py.File(tmp_path / "private.h5", "w") as book:
        book["x"] = np.full(shape, 7, np.uint8)
    root = tmp_path / "root"
    root.mkdir()
    for split in ("train", "valid", "test"):
        stem = root / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_y.h5", "w") as book:
            book["y"] = np.zeros((2, 1, 1, 1), np.uint8)
        with h5py.File(f"{stem}_x.h5", "w") as book:
            if kind == "external bytes":
                book.create_dataset("x", shape, "u1", external=[(str(tmp_path / "private.h5"), 0, 2 * 96 * 96 * 3)])
            elif kind == "virtual":
                layout = h5py.VirtualLayout(shape=shape, dtype="u1")
                layout[:] = h5py.VirtualSource(str(tmp_path / "private.h5"), "x", shape=shape)
                book.create_virtual_dataset("x", layout)
            else:
                external = h5py.ExternalLink(str(tmp_path / "private.h5"), "x")
                book["x"] = external if kind == "external link" else h5py.SoftLink("/y")
    with pytest.raises(ManifestError, match=r"other files|no array x"):
        benchmarks.prepare(benchmarks.get("pcam"), root, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))
