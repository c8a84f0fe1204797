"""The student of stage 2 from a published folder: BioClinicalBERT's embeddings, old and new files, other encoders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as pieces
from torch import nn

from m3bind.errors import CheckpointError, ConfigError
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.text_encoder import TextEncoder, lora_targets, make_text_encoder
from m3bind.models.layers.tokenizer import read_tokenizer
from models.golden import Golden, fixture
from models.tiny_models import TEXTS, bert_folder

# As the hub's folder has it: no tokenizer configuration, no eps.
CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 28996,
}
WORDS = ["sinus", "Sinus", "rhythm", "no", "No", "##s", "acute", "findings"]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return fixture("student_bioclinicalbert")


@pytest.fixture(scope="module")
def state(golden: Golden) -> dict[str, torch.Tensor]:
    return golden.state()


def student_folder(folder: Path, **config: Any) -> Path:
    """vocab.txt with BERT's special tokens in their places, and config.json."""
    lines = ["[PAD]", *(f"[unused{n}]" for n in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    lines += [f"piece{n}" for n in range(28996 - len(lines))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of 2019: the prefix `bert.`, LayerNorm's gamma and beta, a position buffer, pre-training heads."""
    norms = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        for new, old in norms.items():
            key = key.replace(new, old)
        renamed[f"bert.{key}"] = value
    renamed["bert.embeddings.position_ids"] = torch.arange(512)[None]
    heads = {
        "predictions.bias": (28996,),
        "predictions.transform.LayerNorm.gamma": (768,),
        "seq_relationship.bias": (2,),
    }
    return renamed | {f"cls.{key}": torch.zeros(shape) for key, shape in heads.items()}


@pytest.fixture(scope="module", params=["plain", "old"])
def encoder(
    request: pytest.FixtureRequest, state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> TextEncoder:
    folder = tmp_path_factory.mktemp("student") / request.param
    if request.param == "plain":  # mean pooling; the file's tanh layer is left out
        student_folder(folder, model_type="bert")
        weights, options = folder / "model.safetensors", {}
        save_file(state, weights)
    else:
        student_folder(folder)
        weights, options = folder / "pytorch_model.bin", {"pooling": "pooler"}
        torch.save(old_names(state), weights)
    made = make_text_encoder(str(folder), 512, **options).eval()
    weights.unlink()
    return made


@torch.no_grad()
def test_numbers(golden: Golden, encoder: TextEncoder) -> None:
    trunk = encoder.trunk
    assert isinstance(trunk, BertTrunk)
    own = trunk.pooling
    names = {"cls": "cls", "mean": "masked_mean"} | ({"pooler": "pooler"} if own == "pooler" else {})
    got = {}
    for text, which, length in (("pair", "pair", None), ("pair64", "pair", 64), ("long", "long", None)):
        tokens = golden.tokens(which, length=length)
        for pooling, name in names.items():
            trunk.pooling = pooling  # type: ignore[assignment]
            got[f"txt_{text}_{name}"] = encoder.features(tokens)
    long = golden.tokens("long")
    got["txt_long_hidden_sample"] = trunk.hidden(long["input_ids"], long["attention_mask"])[:, :8, ::12]
    trunk.pooling = own
    golden.compare(got)


@torch.no_grad()
def test_texts(encoder: TextEncoder) -> None:
    tokens = encoder.tokenize(["Sinus RHYTHM", "no acute findings", "sinus rhythms"])
    assert tokens["input_ids"].tolist() == [
        [101, 104, 106, 102, 0],
        [101, 107, 110, 111, 102],
        [101, 104, 106, 109, 102],
    ]
    rows = encoder.encode(tokens)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(rows[:1], encoder.encode(encoder.tokenize(["sinus rhythm"])), atol=2e-6, rtol=0)
    assert encoder.max_tokens == 256 and lora_targets(encoder.trunk) == ("query", "value")


def test_normalisation_layers_and_activations(golden: Golden, encoder: TextEncoder) -> None:
    norms = [m for m in encoder.trunk.modules() if isinstance(m, nn.LayerNorm)]
    assert {f"LayerNorm eps={m.eps:g}": len(norms) for m in norms} == {
        kind: found["count"] for kind, found in golden.meta["norm_eps"].items()
    }
    activation: Any = encoder.trunk.bert.encoder.layer[0].intermediate.intermediate_act_fn  # type: ignore[union-attr]
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(activation(x), F.gelu(x))


def test_the_cased_vocabulary_can_be_used_as_it_is(tmp_path: Path) -> None:
    folder = student_folder(tmp_path / "student")
    assert read_tokenizer(folder, lowercase=False).encode("Sinus no").ids == [101, 105, 107, 102]
    tiny = bert_folder(tmp_path / "bert")
    cased = make_text_encoder(tiny, 8, lowercase=False)
    assert cased.tokenize(["S"])["input_ids"].tolist() == [[2, 1, 3]], "the vocabulary has no capital letter"
    make_text_encoder(tiny, 8).tokenizer.save(tiny)  # tokenizer.json wins over vocab.txt
    assert make_text_encoder(tiny, 8).tokenize(["S"])["input_ids"].tolist() != [[2, 1, 3]]
    again = make_text_encoder(tiny, 8, lowercase=False)
    assert again.tokenize(["S"])["input_ids"].tolist() == [[2, 1, 3]]
    again.save_assets(tmp_path)
    kept = TextEncoder.from_settings(again.settings(), tmp_path)
    assert kept.tokenize(["S"])["input_ids"].tolist() == [[2, 1, 3]]
    for text in ("bert", again.settings()):
        with pytest.raises(ConfigError, match="lowercase="):
            make_text_encoder(text, 8, assets=tmp_path, lowercase=True)


def byte_level(folder: Path) -> int:
    """RoBERTa's kind of tokenizer (bytes, no merges, no padding token); returns the size of its vocabulary."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(pieces.BPE({token: row for row, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(tokens)


def family(kind: str, vocabulary: int) -> tuple[Any, Any]:
    """A tiny encoder of another family, and the same with its language-modelling head."""
    import transformers

    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 130,
        "pad_token_id": 1,
    }
    if kind == "DistilBert":
        size = {
            "dim": 32,
            "hidden_dim": 40,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 130,
            "pad_token_id": 1,
        }
    if kind == "ModernBert":
        size |= {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocabulary, **size)
    torch.manual_seed(0)
    whole = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    return whole.base_model, whole


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert", "ModernBert"])
@pytest.mark.parametrize("with_head", [False, True])
def test_any_encoder_can_be_the_student(kind: str, with_head: bool, tmp_path: Path) -> None:
    model, whole = family(kind, byte_level(tmp_path))
    (whole if with_head else model).save_pretrained(str(tmp_path))
    for pooling in ("mean", "cls"):
        encoder = make_text_encoder(tmp_path, 12, pooling=pooling).eval()
        tokens = encoder.tokenize([TEXTS[4], TEXTS[2], "no"])
        assert tokens["input_ids"][2, -1] == 1, "padded with the family's own padding"
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            want = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
            got = encoder.features(tokens)
            torch.testing.assert_close(got, want, atol=2e-6, rtol=0)
            alone = encoder.features(encoder.tokenize(["no"]))
            torch.testing.assert_close(alone, got[2:], atol=2e-6, rtol=0)
    assert (
        lora_targets(encoder.trunk)
        == {
            "Roberta": ("query", "value"),
            "DistilBert": ("q_lin", "v_lin"),
            "ModernBert": ("Wqkv",),
        }[kind]
    )
    encoder.save_assets(tmp_path)
    again = TextEncoder.from_settings(json.loads(json.dumps(encoder.settings())), tmp_path).eval()
    again.load_state_dict(encoder.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.encode(tokens), encoder.encode(tokens))
    for settings, message in (({"pooling": "pooler"}, "for BERT only"), ({"lowercase": True}, "has its own rules")):
        with pytest.raises(ConfigError, match=message):
            make_text_encoder(tmp_path, 12, **settings)  # type: ignore[arg-type]


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    for broken in ("{", json.dumps({"model_type": "unheard of"}), json.dumps({"hidden_size": 32})):
        (folder / "config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"no usable config\.json"):
            make_text_encoder(folder, 8)
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert isinstance(make_text_encoder(folder, 8).trunk, BertTrunk)
