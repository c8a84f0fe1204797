"""One stage-1 step of m3bind against a straightforward one.

    python benchmarks/align_step.py [--towers 5] [--size minilm|base] [--pooling cls|mean] [--pairs 8] [--shared 32]
                                    [--duplicates 0.25] [--repeats 7] [--forms longest maximum] [--settings main ...]
    python benchmarks/align_step.py --towers 1 --size base --pairs 0 --shared 64 --repeats 3 --settings main

Three forms of the same step, with the same weights and texts, in float32:
* ours: each distinct text once, packed tokens (BertTrunk), image features cached, pair loss in O(M);
* longest: texts padded to the longest of the batch, no de-duplication, image towers forwarded, a loop over pairs;
* maximum: the same, padded to the tower's maximum (`--maximum`).
Each is timed as a whole step and for its text part alone (image embeddings given to all). The step is Eq. 6: one
image-text batch per tower, one shared text batch through all towers, forward, backward, AdamW (at learning rate 0, so
that the weights stay comparable). Where the CPU has bfloat16, ours is also timed in it, as training uses it there.

Settings: `main` uses the arguments; `memory` measures what the text part adds; `distinct` has no duplicates; `single`
one tower. Text is pooled by its first token (as in MGCA, CT-CLIP, BiomedCLIP: the last layer then computes only that
token) or by the mean of all.

Texts are synthetic ids with report-like lengths: log-normal, cut to 8..236 (mean 75, p90 155, max 236). Dropout is off,
so that losses can be compared. Networks are random. A duplicate is a row whose text occurs in an earlier row; free
reports have almost none, but captions made from labels and ECG statements repeat in 40-90 % of the rows of a batch.
"""

import argparse
import functools
import math
import statistics
import time
from dataclasses import dataclass, replace
from statistics import NormalDist

import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import BertConfig

from _measure import Clock, alternate, conditions, gemm_rate, peak_memory, ratio
from m3bind.align.objective import clip_loss, text_mse
from m3bind.core.device import compute_dtype
from m3bind.models.layers.bert import BertTrunk, Pooling

SIZES = {"minilm": (384, 6, 12), "base": (768, 12, 12)}  # width, layers, heads
SETTINGS = ["main", "memory", "distinct", "single"]
DIM, SCALE, LAMBDA = 256, 20.0, 10.0


@dataclass(frozen=True)
class Setting:
    """One configuration: `pairs` image-text pairs per tower, `shared` texts through all towers."""

    towers: int = 5
    size: str = "minilm"
    pooling: Pooling = "cls"
    pairs: int = 8
    shared: int = 32
    duplicates: float = 0.25
    maximum: int = 256


def report_lengths(n: int) -> list[int]:
    """n quantiles of report-like lengths in word pieces."""
    normal = NormalDist(math.log(58), 0.78)
    return [round(min(max(math.exp(normal.inv_cdf((i + 0.5) / n)), 8), 236)) for i in range(n)]


class Batch:
    """Tokens of one tower's rows: own texts, then shared ones; the same lengths in all towers."""

    def __init__(self, setting: Setting) -> None:
        generator = torch.Generator().manual_seed(1)
        rows = setting.pairs + setting.shared
        kinds = max(1, round(rows * (1 - setting.duplicates)))
        lengths = torch.tensor(report_lengths(kinds))
        # Repeats are spread evenly over short and long texts, so that they save as many tokens as rows.
        repeats = ((torch.arange(rows - kinds) + 0.5) * kinds / max(rows - kinds, 1)).long()
        rows_of = torch.cat([torch.arange(kinds), repeats])[torch.randperm(rows, generator=generator)]
        self.inverse = rows_of
        self.longest = int(lengths.max())
        self.mask = (torch.arange(self.longest) < lengths[:, None]).long()
        self.ids = torch.randint(1000, 30000, self.mask.shape, generator=generator) * self.mask
        self.tokens = int(lengths.sum())  # of distinct texts
        self.row_tokens = int(lengths[rows_of].sum())


class Towers(nn.Module):
    """M text towers with LoRA, M frozen image towers, and the rest of a step."""

    def __init__(self, setting: Setting, images: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        width, layers, heads = SIZES[setting.size]
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        config = BertConfig(intermediate_size=4 * width, **shape, **off)
        self.setting, self.batch = setting, Batch(setting)
        self.texts = nn.ModuleList(BertTrunk(config, setting.pooling) for _ in range(setting.towers)).requires_grad_(
            False
        )
        for tower in self.texts:
            lora = LoraConfig(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "value"])
            inject_adapter_in_model(lora, tower)
            for name, parameter in tower.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.02)
        self.bridges = nn.ModuleList(nn.Linear(width, DIM, bias=False) for _ in range(setting.towers))
        self.images, self.pixels = nn.ModuleList(), torch.randn(max(setting.pairs, 1), 3, 224, 224)
        if images and setting.pairs:
            make = functools.partial(timm.create_model, "efficientnet_lite0", num_classes=DIM)
            self.images = nn.ModuleList(make() for _ in range(setting.towers)).requires_grad_(False).eval()
        with torch.no_grad():
            self.cached = [tower(self.pixels) for tower in self.images] or [
                torch.randn(setting.pairs, DIM)
            ] * setting.towers
        self.optimiser = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.0)

    def finish(self, texts: list[Tensor], images: list[Tensor], pair_loss: Tensor) -> float:
        """Eq. 6 from embeddings of all rows, backward, optimiser."""
        loss = LAMBDA * pair_loss
        for text, image in zip(texts, images):
            if self.setting.pairs:
                loss = loss + clip_loss(F.normalize(image, dim=1), text[: self.setting.pairs], SCALE)
            else:
                loss = loss + text[:, 0].mean()  # a text part without images still needs a gradient
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def ours(self, text_only: bool, dtype: torch.dtype = torch.float32) -> float:
        """Distinct texts, packed; cached image features."""
        batch = self.batch
        texts = []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            for tower, bridge in zip(self.texts, self.bridges):
                texts.append(F.normalize(bridge(tower(batch.ids, batch.mask)).float(), dim=1)[batch.inverse])
        return self.finish(texts, self.cached, text_mse([text[self.setting.pairs :] for text in texts]))

    def straightforward(self, text_only: bool, length: int) -> float:
        """Every row padded to `length` through transformers' forward; image towers forwarded; a loop over pairs."""
        batch = self.batch
        ids, mask = (F.pad(part, (0, length - batch.longest))[batch.inverse] for part in (batch.ids, batch.mask))
        texts = []
        for tower, bridge in zip(self.texts, self.bridges):
            hidden = tower.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            if self.setting.pooling == "cls":
                pooled = hidden[:, 0]
            else:
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            texts.append(F.normalize(bridge(pooled), dim=1))
        images = self.cached if text_only else [tower(self.pixels) for tower in self.images] or self.cached
        shared = [text[self.setting.pairs :] for text in texts]
        pair_loss = texts[0].new_zeros(())
        for a, first in enumerate(shared):
            for second in shared[a + 1 :]:
                pair_loss = pair_loss + (first - second).square().sum(1).mean()
        return self.finish(texts, images, pair_loss)

    def gradient(self) -> Tensor:
        """The gradients of all trained parameters after a step, as one vector."""
        return torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None])

    def form(self, name: str, text_only: bool) -> functools.partial[float]:
        if name == "ours":
            return functools.partial(self.ours, text_only)
        if name == "bf16":
            return functools.partial(self.ours, text_only, torch.bfloat16)
        return functools.partial(
            self.straightforward, text_only, self.batch.longest if name == "longest" else self.setting.maximum
        )

    def flop(self) -> float:
        """Multiplications and additions of all linear layers on distinct real tokens, forward and input gradient.

        With the first token pooled, the last layer computes keys and values of all tokens, the rest for one of a text.
        """
        width, layers, _ = SIZES[self.setting.size]
        tokens, texts = self.batch.tokens, len(self.batch.ids)
        rows = layers * tokens if self.setting.pooling == "mean" else (layers - 10 / 12) * tokens + 10 / 12 * texts
        return 2 * 24 * width**2 * rows * self.setting.towers


def text_step(setting: Setting, name: str) -> functools.partial[float]:
    """Runs in a child process: builds the networks and returns the text part of one step on them."""
    return Towers(setting, images=False).form(name, True)


def compare(setting: Setting, names: list[str], repeats: int, clock: Clock) -> None:
    """Time, check and print all forms for one setting."""
    towers = Towers(setting)
    batch = towers.batch
    rows, width = setting.pairs + setting.shared, SIZES[setting.size][0]
    print(
        f"\n{setting.towers} x {setting.size}, {setting.pooling} pooling, "
        f"{setting.pairs} pairs + {setting.shared} shared texts per tower, "
        f"duplicates {1 - len(batch.ids) / rows:.0%}; tokens per tower: {batch.tokens} distinct, "
        f"{batch.row_tokens} with duplicates, {rows * batch.longest} padded to the longest, "
        f"{rows * setting.maximum} to the maximum"
    )
    for text_only in (True, False):
        if not text_only and not setting.pairs:
            continue
        forms = {name: towers.form(name, text_only) for name in names}
        found = {name: (form(), towers.gradient()) for name, form in forms.items() if name != "bf16"}
        loss, gradient = found["ours"]
        worst = max(abs(other - loss) for other, _ in found.values())
        worst_gradient = max(float((other - gradient).norm() / gradient.norm()) for _, other in found.values())
        if worst > 1e-4 * max(1.0, abs(loss)) or worst_gradient > 1e-3:
            raise SystemExit(f"losses differ by {worst:.1e}, gradients by {worst_gradient:.1e} of their length")
        rates: list[float] = []
        forms["gemm"] = lambda rates=rates: rates.append(gemm_rate(width, compute_dtype(), clock))
        seconds = alternate(forms, repeats, clock)
        print(
            f"{'text part' if text_only else 'whole step'}: loss {loss:.4f} equal to {worst:.1e}, "
            f"gradients to {worst_gradient:.1e} of their length"
        )
        for name in names:
            median, spread = statistics.median(seconds[name]), (min(seconds[name]), max(seconds[name]))
            line = f"  {name:8} median {median:7.2f} s ({spread[0]:.2f}-{spread[1]:.2f}, {repeats} runs)"
            if name in ("ours", "bf16"):
                rate = towers.flop() / median / 1e9
                best = statistics.median(rates[1:])
                line += f", {rate:.0f} GFLOP/s on distinct real tokens = {rate / best:.0%} of GEMM {best:.0f}"
            if name != "ours":
                line += f", ours is {ratio(seconds[name], seconds['ours'])} as fast"
            print(line, flush=True)


def print_memory(setting: Setting, names: list[str]) -> None:
    """Memory that one text part adds to the networks', and the total, for each form in a child process."""
    taken = {name: peak_memory(text_step, setting, name) for name in names}
    ours = taken["ours"]
    for name, found in taken.items():
        if found is None or ours is None:
            print(f"  {name:8} memory: killed, out of memory")
            continue
        added, mine = found[1] - found[0], ours[1] - ours[0]
        share = (
            "" if name == "ours" else f"; ours adds {mine / added:.0%} of that, {ours[1] / found[1]:.0%} of the peak"
        )
        print(f"  {name:8} adds {added:.2f} GiB to {found[0]:.2f}, peak {found[1]:.2f}{share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    standard = Setting()
    parser.add_argument("--towers", type=int, default=standard.towers)
    parser.add_argument("--size", choices=list(SIZES), default=standard.size)
    parser.add_argument("--pooling", choices=["cls", "mean"], default=standard.pooling)
    parser.add_argument("--pairs", type=int, default=standard.pairs)
    parser.add_argument("--shared", type=int, default=standard.shared)
    parser.add_argument("--duplicates", type=float, default=standard.duplicates)
    parser.add_argument("--maximum", type=int, default=standard.maximum)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--forms", nargs="*", default=["longest", "maximum"], choices=["longest", "maximum"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--settings", nargs="*", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--processor-time", action="store_true", help="steadier on a busy machine")
    options = parser.parse_args()
    if options.maximum < 236:
        parser.error("--maximum: the longest text has 236 tokens")
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(**{name: getattr(options, name) for name in Setting.__dataclass_fields__})
    clock = time.process_time if options.processor_time else time.perf_counter
    ours = ["ours", "bf16"] if compute_dtype() is torch.bfloat16 else ["ours"]
    print(conditions() + ("; processor seconds" if options.processor_time else "; seconds of the wall clock"))
    forms = ours + options.forms
    if "main" in options.settings:
        compare(setting, forms, options.repeats, clock)
    if "memory" in options.settings:
        print_memory(setting, forms)
    if "distinct" in options.settings and setting.duplicates:
        compare(replace(setting, duplicates=0.0), forms, options.repeats, clock)
    if "single" in options.settings and setting.towers > 1:
        compare(replace(setting, towers=1), forms, options.repeats, clock)
    print(conditions())


if __name__ == "__main__":
    main()
