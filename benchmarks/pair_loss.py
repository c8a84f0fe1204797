"""Text-text loss of Eq. 6: the O(M) form of m3bind against the loop over pairs, forward and backward.

    python benchmarks/pair_loss.py [--towers 5 10 20] [--texts 64] [--dim 512] [--repeats 40] [--threads N]

The embeddings are random unit rows (synthetic); time does not depend on their values. Both forms run alternately in one
process, so that other load on the machine affects both. A ratio above 1 means that the O(M) form is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.align.objective import text_mse


def pair_loop(embeddings: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The double sum as printed in the paper."""
    loss = embeddings[0].new_zeros(())
    for a in range(len(embeddings)):
        for b in range(a + 1, len(embeddings)):
            loss = loss + weights[a] * weights[b] * (embeddings[a] - embeddings[b]).square().sum(1).mean()
    return loss


def step(form: Callable[..., Tensor], embeddings: list[Tensor], weights: list[float]) -> tuple[float, float]:
    """(seconds, loss) of one forward and backward pass."""
    for tower in embeddings:
        tower.grad = None
    start = time.perf_counter()
    loss = form(embeddings, weights)
    loss.backward()
    return time.perf_counter() - start, loss.item()


def compare(towers: int, texts: int, dim: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(towers)
    rows = [F.normalize(torch.randn(texts, dim, generator=generator), dim=1) for _ in range(towers)]
    embeddings = [tower.requires_grad_() for tower in rows]
    weights = (0.5 + torch.rand(towers, generator=generator)).tolist()
    _, ours = step(text_mse, embeddings, weights)
    gradients = [tower.grad for tower in embeddings]
    _, theirs = step(pair_loop, embeddings, weights)
    for mine, tower in zip(gradients, embeddings, strict=True):
        torch.testing.assert_close(mine, tower.grad, rtol=1e-4, atol=1e-6)
    difference = abs(ours / theirs - 1)
    if difference > 1e-5:
        raise SystemExit(f"M = {towers}: losses differ, {ours} and {theirs}")

    for _ in range(5):
        step(text_mse, embeddings, weights)
        step(pair_loop, embeddings, weights)
    pairs = []
    for turn in range(repeats):
        order = (text_mse, pair_loop) if turn % 2 else (pair_loop, text_mse)
        times = {form: step(form, embeddings, weights)[0] for form in order}
        pairs.append((times[text_mse], times[pair_loop]))
    ratios = sorted(loop / fast for fast, loop in pairs)
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    print(
        f"{towers:4d}  {1e3 * statistics.median(p[0] for p in pairs):9.3f}  "
        f"{1e3 * statistics.median(p[1] for p in pairs):9.3f}  {statistics.median(ratios):6.2f}  "
        f"{low:6.2f} .. {high:6.2f}  {difference:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Eq. 6 text term: O(M) form against the loop over pairs.")
    parser.add_argument("--towers", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    print(
        f"torch {torch.__version__}, CPU, {settings.threads} thread(s), float32, {settings.texts} texts x "
        f"{settings.dim} dimensions per tower, {settings.repeats} alternating repeats, forward + backward, "
        "synthetic rows"
    )
    print("   M    O(M) ms    loop ms   ratio  10 % .. 90 %   relative difference of losses")
    for towers in settings.towers:
        compare(towers, settings.texts, settings.dim, settings.repeats)


if __name__ == "__main__":
    main()
