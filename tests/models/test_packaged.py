"""Weights in installed packages: parts joined once into the user's cache, checked by their sum."""

import dataclasses
import hashlib
import io
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from m3bind.errors import CheckpointError, ConfigError, DiskError
from m3bind.models.weights import packaged
from m3bind.models.weights.packaged import MPNET, SplitArchive, is_installed, packaged_folder

FILES = {"config.json": b"{}" * 40, "model.safetensors": bytes(range(256)) * 5}


def zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.mkdir(name)
        for file, content in FILES.items():
            archive.writestr(f"{name}/{file}", content)
        archive.writestr(f"{name}/1_Pooling/config.json", b"not of the encoder")
        archive.writestr("elsewhere/config.json", b"not of the folder")
    return out.getvalue()


def install(site: Path, archive: SplitArchive, content: bytes) -> None:
    """Write the parts as pip would: one folder and one .dist-info each."""
    size = -(-len(content) // archive.parts)
    for number, name in enumerate(archive.requirements, 1):
        part = content[(number - 1) * size : number * size]
        file = site / f"{archive.distribution}_{number:03}" / "input" / f"{archive.name}.zip.{number:03}"
        file.parent.mkdir(parents=True)
        file.write_bytes(part)
        info = site / f"{name.replace('-', '_')}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SplitArchive:
    content = zipped("tiny-encoder")
    archive = SplitArchive("tiny-encoder", "tiny-encoder-part", 3, hashlib.sha256(content).hexdigest())
    install(tmp_path / "site", archive, content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return archive


def test_another_process_that_was_first_is_no_error(
    tiny: SplitArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "caches" / "m3bind" / f"tiny-encoder-{tiny.sha256[:12]}"

    def late(source: Path, place: Path) -> None:
        target.mkdir()
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr("m3bind.core.files.os.rename", late)
    assert tiny.folder() == target
    target.rmdir()

    def full(source: Path, place: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("m3bind.core.files.os.rename", full)
    with pytest.raises(DiskError):
        tiny.folder()


def test_parts_are_joined_once(tiny: SplitArchive, tmp_path: Path) -> None:
    folder = tiny.folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert folder.parent == tmp_path / "caches" / "m3bind" and list(folder.parent.iterdir()) == [folder]
    shutil.rmtree(tmp_path / "site")
    assert tiny.folder() == folder, "the packages are not read again"


@pytest.mark.parametrize("damage", ["changed", "short", "gone"])
def test_a_damaged_part_stops_and_leaves_nothing(tiny: SplitArchive, tmp_path: Path, damage: str) -> None:
    part = tiny.files()[1]
    if damage == "gone":
        part.unlink()
    else:
        content = part.read_bytes()
        part.write_bytes(content[:-1] if damage == "short" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(CheckpointError, match="install the package"):
        tiny.folder()
    assert list((tmp_path / "caches" / "m3bind").iterdir()) == []


def test_a_missing_package_is_named(tiny: SplitArchive, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "site" / "tiny_encoder_part_002-0.0.1.dist-info")
    with pytest.raises(ConfigError, match="tiny-encoder-part-002 is not installed") as error:
        tiny.folder()
    assert re.search(r"--no-deps tiny-encoder-part-001 tiny-encoder-part-002 tiny-encoder-part-003$", str(error.value))


def test_the_name_mpnet(tiny: SplitArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m3bind.models.layers.text_encoder import make_text_encoder

    missing = dataclasses.replace(MPNET, distribution="no-such-package")
    monkeypatch.setattr(packaged, "MPNET", missing)
    monkeypatch.setitem(packaged.PACKAGED, "mpnet", missing.folder)
    assert not is_installed("mpnet")
    with pytest.raises(ConfigError, match="all-mpnet-base-v2 need 5 packages"):
        make_text_encoder("mpnet", 8)
    monkeypatch.setattr(packaged, "MPNET", tiny)
    monkeypatch.setitem(packaged.PACKAGED, "mpnet", tiny.folder)
    assert is_installed("mpnet")
    assert packaged_folder("mpnet") == tiny.folder()
