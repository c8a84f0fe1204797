"""Many reports to vectors: `Space.encode_text`'s way against sentence-transformers with the same weights, in turn.

    python benchmarks/text_encode.py [--sizes minilm base] [--texts 512] [--repeats 5] [--forms torch onnx int8]
                                     [--corpus corpus.csv.gz] [--no-memory] [--processor-time]

* ours: m3bind.models.embedding.encode_distinct (tokens packed without padding; bfloat16 where the processor has it);
* torch: SentenceTransformer(folder).encode, its default batch of 32, texts sorted by its own rule;
* onnx, int8: the same pipeline with the network in onnxruntime, in float32 and with weights and activations in 8 bits
  (onnxruntime's dynamic quantisation, per channel, reduced range for AVX2). The same as sentence-transformers' ONNX
  backend, without the package optimum, which is not available for every version of transformers.

All open the output of our own export. Sizes: `minilm` has the real weights of the extra `compact`, `base` is BERT-base
with random weights; both with the real WordPiece vocabulary and a linear head to 512 dimensions, mean pooling.
Texts: quantiles of report-like lengths, log-normal, cut to 8..236 tokens (mean 75, p90 155), of words that are one
token each, all distinct; or, with --corpus, the first distinct texts of that table (column `text`).
Real tokens/s excludes padding. Cosines are to float32 without padding, one text at a time (every 8th text).
"""

import argparse
import copy
import functools
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from torch import nn
from transformers import BertConfig

from _measure import Clock, alternate, conditions, gemm_rate, peak_memory, ratio
from align_step import report_lengths
from m3bind.core.device import compute_dtype
from m3bind.export import sentence_transformers as st_export
from m3bind.export.onnx import OPSET
from m3bind.models.embedding import encode_distinct, text_dtype
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.heads import make_head
from m3bind.models.layers.text_encoder import TextEncoder, make_text_encoder
from m3bind.models.layers.tokenizer import read_tokenizer
from m3bind.models.weights.packaged import minilm_folder

SIZES = {"minilm": (384, 6), "base": (768, 12)}  # width, layers
FORMS = ["torch", "onnx", "int8"]
DIM, BATCH, CPU = 512, 32, torch.device("cpu")


def make_encoder(size: str) -> TextEncoder:
    torch.manual_seed(0)
    if size == "minilm":
        return make_text_encoder("minilm", DIM).eval()
    trunk = BertTrunk(BertConfig(), "mean")  # its defaults are BERT-base
    head = make_head("linear", 768, DIM)
    return TextEncoder(trunk, head, read_tokenizer(minilm_folder()), 256, {"kind": "linear", "dim": DIM}).eval()


def make_texts(count: int, corpus: str | None) -> list[str]:
    if corpus:
        import pandas as pd

        return list(dict.fromkeys(pd.read_csv(corpus)["text"].dropna().astype(str)))[:count]
    vocabulary = read_tokenizer(minilm_folder()).get_vocab()
    words = sorted(word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2)
    random = np.random.default_rng(0)
    lengths = random.permutation(report_lengths(count)) - 2  # [CLS] and [SEP]
    return [" ".join(random.choice(words, length)) for length in lengths]


def ours(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    with torch.inference_mode():
        dtype = text_dtype(encoder.tokenize, encoder.encode, CPU, compute_dtype())[0]
        return encode_distinct(texts, encoder.tokenize, encoder.encode, DIM, CPU, dtype)


class HiddenStates(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Session(nn.Module):
    """Replaces the network of sentence-transformers' first module."""

    def __init__(self, path: Path, config: object) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session, self.config, self.device = onnxruntime.InferenceSession(str(path), options), config, CPU
        self.dtype = torch.float32

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> torch.Tensor:
        found = self.session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return torch.from_numpy(found[0])


def write_forms(encoder: TextEncoder, folder: Path, forms: list[str]) -> None:
    """Our export and, for the forms that need it, the network as ONNX in float32 and in 8 bits."""
    facts = {"dim": DIM, "modalities": [], "synthetic": True, "space": "", "licences": {}, "max_tokens": 256}
    (folder / "st").mkdir()
    st_export.write(encoder, folder / "st", facts)
    if not {"onnx", "int8"} & set(forms):
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    tokens = encoder.tokenize(["one two three", "one"])
    axes = {0: torch.export.Dim("items", min=1), 1: torch.export.Dim("length", min=1)}
    torch.onnx.export(
        HiddenStates(copy.deepcopy(encoder.trunk.bert)).eval(),
        (tokens["input_ids"], tokens["attention_mask"]),
        folder / "onnx.onnx",
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes=(axes, axes),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    if "int8" in forms:
        quant_pre_process(str(folder / "onnx.onnx"), str(folder / "ready.onnx"), skip_symbolic_shape=True)
        arguments = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
        quantize_dynamic(str(folder / "ready.onnx"), str(folder / "int8.onnx"), **arguments)


class Opened:
    """sentence-transformers' model of one form."""

    def __init__(self, folder: Path, form: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder / "st"), device="cpu")
        if form != "torch":
            first = self.model[0]
            session = Session(folder / f"{form}.onnx", first.auto_model.config)

            def forward(features: dict, **_: object) -> dict:
                return features | {"token_embeddings": session(features["input_ids"], features["attention_mask"])}

            first.forward = forward
            first._modules["model" if "model" in first._modules else "auto_model"] = session

    def __call__(self, texts: list[str]) -> np.ndarray:
        return self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)


def in_child(folder: Path, size: str, form: str, texts: list[str]) -> functools.partial:
    """Runs in a child process whose memory is measured."""
    if form == "ours":
        return functools.partial(ours, make_encoder(size), texts)
    return functools.partial(Opened(folder, form), texts)


def cosines(rows: np.ndarray, exact: np.ndarray) -> str:
    values = (rows.astype(np.float64) * exact).sum(1)
    values /= np.linalg.norm(rows.astype(np.float64), axis=1) * np.linalg.norm(exact, axis=1)
    return f"cosine to float32 {values.mean():.6f}, smallest {values.min():.6f}"


def compare(size: str, texts: list[str], names: list[str], repeats: int, memory: bool, clock: Clock) -> None:
    """Time, check and print all forms of one size."""
    encoder, (width, layers) = make_encoder(size), SIZES[size]
    lengths = encoder.tokenize(texts)["attention_mask"].sum(1).numpy()
    tokens = int(lengths.sum())
    print(
        f"\n{size}: {len(texts)} texts, {tokens} real tokens; a text has {lengths.mean():.0f} (median "
        f"{np.median(lengths):.0f}, p90 {np.quantile(lengths, 0.9):.0f}, longest {lengths.max()})"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_forms(encoder, folder, names)
        forms = {"ours": functools.partial(ours, encoder, texts)}
        forms |= {name: functools.partial(Opened(folder, name), texts) for name in names}
        with torch.inference_mode():
            exact = torch.cat([encoder.encode(encoder.tokenize([text])) for text in texts[::8]]).double().numpy()
        found = {name: cosines(form()[::8], exact) for name, form in forms.items()}
        rates: list[float] = []
        forms["gemm"] = lambda: rates.append(gemm_rate(width, compute_dtype(), clock))
        seconds = alternate(forms, repeats, clock)
        best = statistics.median(rates[1:])
        limit = best * 1e9 / (24 * width**2 * layers)  # tokens/s if linear layers at this rate were all there is
        print(f"  GEMM {best:.0f} GFLOP/s in {compute_dtype()}: at most {limit:.0f} tokens/s")
        for name in ("ours", *names):
            speeds = [tokens / second for second in seconds[name]]
            line = f"  {name:6} {statistics.median(speeds):7.0f} real tokens/s ({min(speeds):.0f}-{max(speeds):.0f})"
            line += f", {statistics.median(speeds) / limit:.0%} of that; {found[name]}"
            if name != "ours":
                line += f"; ours is {ratio(seconds[name], seconds['ours'])} as fast"
            print(line, flush=True)
        for name in ("ours", *names) if memory else ():
            taken = peak_memory(in_child, folder, size, name, texts)
            told = (
                "killed, out of memory" if taken is None else f"{taken[0]:.2f} GiB before, {taken[1]:.2f} at the peak"
            )
            print(f"  {name:6} memory: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forms", nargs="*", default=FORMS, choices=FORMS)
    parser.add_argument("--corpus", help="table with a column `text`, instead of generated texts")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="steadier on a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    print(conditions() + ("; processor seconds" if options.processor_time else "; seconds of the wall clock"))
    texts = make_texts(options.texts, options.corpus)
    for size in options.sizes:
        compare(size, texts, options.forms, options.repeats, not options.no_memory, clock)
    print(conditions())


if __name__ == "__main__":
    main()
