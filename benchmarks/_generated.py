"""Generated data: files of the published data sets' size with texts, and a BERT-base with random weights.

Files of a modality have the same content and a note that differs, since equal files would be read only once.
"""

import csv
import shutil
from pathlib import Path
from zlib import crc32

import numpy as np

from m3bind.models.layers.tokenizer import train_wordpiece
from m3bind.pipeline.plan.typical_files import write_typical

SIZES = {"xray": 72, "retina": 72, "ecg": 72, "pathology": 72, "ct": 8}  # training pairs: a batch of the paper
OTHERS = {"valid": 1, "test": 3}  # pairs
WORDS = ["lung", "mild", "severe", "left", "right", "upper", "lower", "lobe", "opacity", "effusion", "normal",
         "enlarged", "nodule", "tissue", "retina", "vessel", "axis", "block", "no", "with", "and"]  # fmt: skip


def write_manifest(folder: Path) -> Path:
    """Files of the five modalities, and manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for m, size in SIZES.items():
        (folder / m).mkdir(exist_ok=True)
        typical = write_typical(m, folder / m)
        assert typical is not None
        for split, count in {"train": size, **OTHERS}.items():
            for number in range(count):
                path = copy_with(typical.paths[0], f"{split}{number}")
                text = " ".join(random.choice(WORDS, 58))
                rows.append((f"{m}-{split}-{number}", m, path.relative_to(folder), text, split))
    with open(folder / "manifest.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("id", "modality", "path", "caption", "split"), *rows])
    return folder / "manifest.csv"


def copy_with(path: Path, note: str) -> Path:
    """A file with the same content and another hash."""
    name, suffix = path.name.partition(".")[0], "".join(path.suffixes)
    copy = path.with_name(f"{name}_{note}{suffix}")
    if not suffix:  # a WFDB record: its name is in the header
        shutil.copy(f"{path}.dat", f"{copy}.dat")
        Path(f"{copy}.hea").write_text(Path(f"{path}.hea").read_text().replace("ecg", copy.name) + f"# {note}\n")
    elif suffix == ".jpg":  # a comment after the first marker
        data, comment = path.read_bytes(), note.encode()
        copy.write_bytes(data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:])
    elif suffix == ".png":
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("Comment", note)
        Image.open(path).save(copy, pnginfo=info)
    else:  # gzip: the field of the header that holds the time
        data = bytearray(path.read_bytes())
        data[4:8] = crc32(note.encode()).to_bytes(4, "little")
        copy.write_bytes(data)
    return copy


def write_text_encoder(folder: Path) -> Path:
    """A folder of a BERT-base with random weights and a small vocabulary, as transformers writes it."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, minimum=1)
    BertModel(BertConfig(vocab_size=28996)).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder
