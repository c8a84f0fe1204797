"""Ten questions about real files, as a user asks them: fit, encode, index, serve, each a command, and HTTP."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.slow  # fits mini5

QUESTIONS: dict[str, dict[str, set[str]]] = {  # text -> modality -> labels of the files that it asks for
    "pneumonia": {"xray": {"pneumonia"}},
    "diabetic retinopathy": {"retina": {"diabetic retinopathy"}},
    "signs of pathological myopia": {"retina": {"pathological myopia"}},
    "cataract": {"retina": {"cataract"}},
    "colon adenocarcinoma": {"pathology": {"colon adenocarcinoma"}},
    "lung squamous cell carcinoma": {"pathology": {"lung squamous cell carcinoma"}},
    "malignant pulmonary nodule": {"ct": {"malignant nodule"}},
    "bundle branch block": {"ecg": {"CD"}},
    "left ventricular hypertrophy": {"ecg": {"HYP"}},
    "lung cancer": {
        "pathology": {"lung adenocarcinoma", "lung squamous cell carcinoma"},
        "ct": {"malignant nodule"},
    },
}
SETS = ["nih224", "lidc_voi", "odir256", "ptbxl100", "lc25000", "lc25000_colon"]
PER_LABEL = 25  # test files of each label of a data set


def m3bind(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "m3bind", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-2000:])
    return done


@contextmanager
def served(space: Path, index: Path):
    """The address of `m3bind serve`."""
    command = [sys.executable, "-P", "-m", "m3bind", "serve", "--space", space, "--index", index, "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        seen = []
        assert process.stdout is not None
        for line in process.stdout:
            seen.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("".join(seen))
        yield found.group()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def post(address: str, route: str, body: dict) -> dict:
    request = urllib.request.Request(address + route, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.timeout(3600)
def test_ten_questions_over_http(mini5, tmp_path):
    """The relevant modality leads each answer, and the hits are what was asked for."""
    table = pd.read_csv(mini5 / "manifest.csv", dtype=str, keep_default_na=False)
    table["path"] = [str(mini5 / path) for path in table["path"]]
    settings = {
        "data.manifest": mini5 / "manifest.csv",
        "data.extra_texts": mini5 / "text" / "corpus.csv.gz",
    }
    run = tmp_path / "run"
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    m3bind("fit", "mini5", "--out", tmp_path, "--name", "run", *changes)
    test = table[(table["split"] == "test") & table["set"].isin(SETS)].groupby(["set", "label"]).head(PER_LABEL)
    test.to_csv(tmp_path / "test.csv", index=False)
    given = "--space", run / "space", "--out", tmp_path / "encoded", "--keep", "id,label", "--root", mini5
    m3bind("encode", tmp_path / "test.csv", *given)
    m3bind("index", tmp_path / "encoded", "--out", tmp_path / "index")

    precision, leading, hidden = {}, {}, []
    with served(run / "space", tmp_path / "index") as address:
        for text, wanted in QUESTIONS.items():
            answer = post(address, "/api/search", {"parts": [{"kind": "text", "value": text}], "k": 10})
            right = [
                bool(set(hit["fields"].get("label", "").split("|")) & wanted.get(hit["modality"], set()))
                for hit in answer["hits"]
            ]
            precision[text] = np.mean(right)
            leading[text] = max(answer["relevance"], key=answer["relevance"].get) in wanted
            hidden += [name for name in answer["counts"] if answer["relevance"][name] < 0.1]
            grouped = post(
                address, "/api/search", {"parts": [{"kind": "text", "value": text}], "k": 3, "per_modality": True}
            )
            assert set(grouped["counts"].values()) == {3} and len(grouped["counts"]) == 5
    print({text: float(value) for text, value in precision.items()})
    assert all(leading.values()), leading
    assert not hidden
    assert np.mean(list(precision.values())) >= 0.7, precision
