"""A small space of real modalities, an index beside it, and a real Orthanc where it is installed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hospital.orthanc import Orthanc, find_orthanc
from hospital.planted import Names, electrocardiogram, hidden, photograph, plant, radiograph, save, series

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SALT = "a salt that is only for tests"


@pytest.fixture(scope="session")
def space_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved space of four modalities: small untrained networks, each text tower a small BERT."""
    import torch

    from m3bind import models
    from m3bind.models.layers.text_encoder import make_text_encoder, train_wordpiece
    from m3bind.space.bundle import Space, save_space

    folder = tmp_path_factory.mktemp("hospital")
    words = ["chest radiograph, normal heart", "abdominal CT with a mass", "sinus rhythm", "retina of the right eye"]
    (folder / "words").mkdir()
    train_wordpiece(words, 80).save(str(folder / "words" / "tokenizer.json"))
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"text": "bert", "text_config": config, "max_tokens": 24, "assets": folder / "words"}
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "xray": models.build("compact_2d", modality="xray", joint_dim=10, image_size=32, widths=[8, 8], **text),
            "retina": models.build("compact_2d", modality="retina", joint_dim=11, image_size=32, widths=[8, 8], **text),
            "ct": models.build("compact_3d", joint_dim=12, shape=[8, 24, 24], widths=[8, 8], **text),
            "ecg": models.build("compact_1d", joint_dim=9, widths=[8, 8], **text),
        }
        student = make_text_encoder("bert", 16, assets=folder / "words", max_tokens=24, config=config)
    bridges = {
        name: np.linalg.qr(rng.normal(size=(16, model.joint_dim)))[0].T.astype(np.float32)
        for name, model in made.items()
    }
    save_space(
        Space({name: model.eval() for name, model in made.items()}, bridges, None, student.eval()), folder / "space"
    )
    return folder / "space"


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Names]:
    """The CT series (36 real slices if available), a CR, a 12-lead ECG and a fundus photograph; all planted."""
    shared = Path(os.environ.get("M3BIND_TEST_DATA") or SHARED)
    folder, names = tmp_path_factory.mktemp("objects"), Names()
    found = series(shared / "native" / "dicom" / "ct_series", names)
    found += [hidden(plant(radiograph(), names), names), plant(electrocardiogram(names), names)]
    found.append(plant(photograph(names), names))
    files = [save(dataset, folder / f"{names()}_{number:03d}.dcm") for number, dataset in enumerate(found)]
    assert len(names.used) > 500
    assert all(names.found_in(file.read_bytes()) for file in files)
    return files, names


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of commands that the tests start."""
    return {**os.environ, "M3BIND_SALT": SALT, "M3BIND_PROGRESS": "off", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "XDG_CONFIG_HOME": str(tmp_path / "settings")}  # fmt: skip


@pytest.fixture
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Orthanc]]:
    """`orthanc(**options of its configuration)` starts one on free ports of this machine with a storage of its own."""
    program = find_orthanc()
    if program is None:
        pytest.skip("no Orthanc with its DICOMweb plugin: apt-get install orthanc orthanc-dicomweb")
    started: list[Orthanc] = []

    def start(**options: object) -> Orthanc:
        started.append(Orthanc(program, tmp_path_factory.mktemp("orthanc"), options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate authority, a certificate of this machine, and one of another authority."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for ca, name in (("ca", "own"), ("strange_ca", "stranger")):
        run("req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-days", "2", "-subj", f"/CN={ca}")
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return {path.name: path for path in folder.iterdir()}
