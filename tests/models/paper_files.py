"""The files that the preset `paper` needs, with generated weights in place of the published ones.

    python tests/models/paper_files.py FOLDER [--golden tests/golden]

writes FOLDER/checkpoints/{mgca,flair,quiltnet,ct_clip}/..., each in its authors' format (Lightning, .pth, .bin, .pt),
and the folders bioclinicalbert (configuration, weights, vocabulary) and cxr_bert (vocabulary): 3.2 GB. The weights are
not trained; they serve to test that everything loads and runs.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WORDS = (
    "no acute findings normal heart lung size enlarged effusion left right the of and is are with a fundus photograph "
    "sinus rhythm atrial fibrillation infarction nodule opacity consolidation benign malignant tissue tumour cells"
)


def _state(golden: Path, keys: str, only: Callable[[str], bool] | None = None) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("golden_weights", golden / "weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.state_dict(str(golden / "keys" / f"{keys}.txt"), only))


def vocabulary(size: int, special: dict[int, str]) -> str:
    """A vocab.txt of `size` lines: special tokens at their places, letters, a few words, and unused entries."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = [*letters, *(f"##{c}" for c in letters), *dict.fromkeys(WORDS.split())]
    pieces = [p for p in dict.fromkeys(pieces) if p not in special.values()]
    rows = []
    for place in range(size):
        if place in special:
            rows.append(special[place])
        elif place > max(special) and pieces:
            rows.append(pieces.pop(0))
        else:
            rows.append(f"[unused{place}]")
    return "\n".join(rows) + "\n"


def write(folder: Path, golden: Path = GOLDEN) -> None:
    """Write all files below `folder`/checkpoints."""
    out = folder / "checkpoints"
    for name in ("mgca", "flair", "quiltnet", "ct_clip", "bioclinicalbert", "cxr_bert"):
        (out / name).mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "state_dict": _state(golden, "mgca_vit_base")}, out / "mgca/vit_base.ckpt")
    torch.save(_state(golden, "flair"), out / "flair/flair_resnet.pth")
    torch.save(_state(golden, "quiltnet_b32"), out / "quiltnet/open_clip_pytorch_model.bin")
    torch.save(_state(golden, "ctclip", lambda key: "latent_extra" not in key), out / "ct_clip/CT-CLIP_v2.pt")
    torch.save(_state(golden, "student_bioclinicalbert"), out / "bioclinicalbert/pytorch_model.bin")
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 28996}
    (out / "bioclinicalbert/config.json").write_text(json.dumps(config))
    cased = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    (out / "bioclinicalbert/vocab.txt").write_text(vocabulary(28996, cased))
    special = {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]"}
    (out / "cxr_bert/vocab.txt").write_text(vocabulary(30522, special))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--golden", type=Path, default=GOLDEN)
    options = parser.parse_args()
    write(options.folder, options.golden)
