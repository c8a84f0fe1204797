"""Plots of the report, each drawn twice (light and dark page) as PNG bytes.

* `draw`: a plot for both themes. * `color`: of a modality.
* `training_curves`: named losses and learning rate per stage.
* `project`, `map_plot`: the space in two dimensions, coloured by modality or by concept.
* `similarity`, `similarity_plot`: mean cosine of matching and of other pairs, for every pair of modalities.

Shapes: n points of a modality, d dimensions, m modalities.
"""

import colorsys
import hashlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from m3bind import modalities
from m3bind.errors import UnknownNameError
from m3bind.evaluate.confidence import FREE, Estimate, Resampling, mean_estimate
from m3bind.evaluate.embedded_files import Points, same_concept, same_patient
from m3bind.evaluate.gallery_effect import resample_gallery

OTHER = "other"
MARKERS = "osD^vPX<>*"
# Ten hues that colour-blind readers can distinguish (Paul Tol's "muted" set and one more); grey is for "other".
HUES = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#E17C05")
DARK_HUES = (
    "#8C7BE8", "#88CCEE", "#44AA99", "#4FB36A", "#B5B54A", "#DDCC77", "#E58A98", "#D0559A", "#C77CC0", "#F0963C",
)  # fmt: skip
_NO_LOSS = (
    "step", "stage", "lr", "time", "seconds", "elapsed", "rate", "epoch", "memory", "grad_norm", "tokens", "samples",
)  # fmt: skip
_NO_LOSS_PREFIXES = tuple(word + end for word in _NO_LOSS for end in "/_")
_CURVE_POINTS = 400  # maximum on a curve


@dataclass(frozen=True)
class Theme:
    """Colours of a light or dark page."""

    name: str
    text: str
    grid: str
    page: str
    hues: tuple[str, ...] = field(default=HUES)


_DARK_MAP = LinearSegmentedColormap.from_list("dark", ["#f0765f", "#232c36", "#5aa9f0"])
LIGHT = Theme("light", "#1f2933", "#d5dbe1", "#ffffff")
DARK = Theme("dark", "#e4e9ee", "#3b4754", "#1a2129", DARK_HUES)


@dataclass(frozen=True)
class Plot:
    """A plot for light and dark pages, with its alternative text."""

    light: bytes
    dark: bytes
    alt: str


def draw(paint: Callable[[Figure, Theme], None], alt: str, size: tuple[float, float] = (5.6, 4.0)) -> Plot:
    """Call `paint` on an empty figure for the light and the dark page; `size` in inches."""
    images = []
    for theme in (LIGHT, DARK):
        style = {
            "font.size": 10,
            "text.color": theme.text,
            "axes.edgecolor": theme.grid,
            "axes.facecolor": theme.page,
            "axes.labelcolor": theme.text,
            "xtick.color": theme.text,
            "ytick.color": theme.text,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
        with rc_context(style):
            figure = Figure(figsize=size, layout="constrained", facecolor=theme.page)
            paint(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=140, bbox_inches="tight", pad_inches=0.06)
        images.append(buffer.getvalue())
    return Plot(images[0], images[1], alt)


def color(modality: str) -> str:
    """Colour of a modality: its own, or one derived from its name if it is not registered."""
    try:
        own = modalities.get(modality).color
        if own != modalities.Modality.color:
            return own
    except UnknownNameError:
        pass
    hue = int(hashlib.sha256(modality.encode()).hexdigest()[:8], 16) / 2**32
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.5, 0.6))


def _shade(value: str, theme: Theme) -> str:
    """`value` with a lightness that is visible on the page of `theme`."""
    rgb = [int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    hue, light, saturation = colorsys.rgb_to_hls(*rgb)
    light = min(light, 0.5) if theme is LIGHT else max(light, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, saturation))


# ---------------------------------------------------------------------------------------------- training curves


def losses(entry: Mapping[str, Any]) -> dict[str, float]:
    """The named losses of one row of log.jsonl: its finite numbers except steps, rates and times (`_NO_LOSS`)."""
    flat = {**entry, **entry["losses"]} if isinstance(entry.get("losses"), Mapping) else dict(entry)
    return {
        name: float(value)
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name not in _NO_LOSS and not name.startswith(_NO_LOSS_PREFIXES)
    }


def _rate(entry: Mapping[str, Any]) -> float:
    value = entry.get("lr", math.nan)
    value = max(value.values(), default=math.nan) if isinstance(value, Mapping) else value
    value = max(value, default=math.nan) if isinstance(value, list | tuple) else value
    return float(value) if isinstance(value, int | float) else math.nan


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Running mean over `width` entries, shorter at both ends."""
    width = max(1, min(width, len(values)))
    kernel = np.ones(width)
    total = np.convolve(values, kernel, mode="same")
    return np.asarray(total / np.convolve(np.ones(len(values)), kernel, mode="same"))


def training_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Plot]:
    """One plot per stage, in the order of the log: the total in bold, its parts, the learning rate below."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for entry in history:
        if "step" in entry and losses(entry):
            stages.setdefault(str(entry.get("stage", "training")), []).append(entry)
    return {stage: _curve(stage, entries) for stage, entries in stages.items()}


def _curve(stage: str, entries: list[Mapping[str, Any]]) -> Plot:
    entries = entries[:: max(1, len(entries) // _CURVE_POINTS)]
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        for name, value in losses(entry).items():
            series.setdefault(name, []).append((float(entry["step"]), value))
    names = sorted(series, key=lambda name: (name != "loss", name))[:12]
    known = set(modalities.names())

    def paint(figure: Figure, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        for i, name in enumerate(names):
            steps, values = np.array(series[name]).T
            modality = name.rsplit("/", 1)[-1]
            hue = theme.text if name == "loss" else theme.hues[i % len(theme.hues)]
            hue = _shade(color(modality), theme) if modality in known else hue
            top.plot(steps, values, color=hue, alpha=0.18, linewidth=0.8)
            label = "total" if name == "loss" else name
            width = 2.4 if name == "loss" else 1.4
            top.plot(steps, smooth(values, len(values) // 25 + 1), color=hue, linewidth=width, label=label)
        top.set_ylabel("loss")
        top.grid(color=theme.grid, linewidth=0.6)
        top.legend(fontsize=8, ncols=2)
        bottom.plot([e["step"] for e in entries], [_rate(e) for e in entries], color=theme.text, linewidth=1.2)
        bottom.set(xlabel="step", ylabel="rate")
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        bottom.grid(color=theme.grid, linewidth=0.6)

    ranges = "; ".join(f"{n} from {series[n][0][1]:.3g} to {series[n][-1][1]:.3g}" for n in names)
    steps = f"steps {entries[0]['step']} to {entries[-1]['step']}"
    return draw(paint, f"Training curves of stage {stage}, {steps}: {ranges}.")


# ---------------------------------------------------------------------------------------------- map


def project(vectors: NDArray[Any], method: str = "auto", seed: int = 0) -> tuple[NDArray[np.float64], str]:
    """(n, d) -> (n, 2) and the method's name: "pca", "tsne", or "auto" (t-SNE for 50 to 2,000 points, else PCA).

    Equal points are placed at 0.
    """
    n, d = vectors.shape
    if method == "auto":
        method = "tsne" if 50 <= n <= 2000 else "pca"
    if (vectors == vectors[:1]).all():
        return np.zeros((n, 2)), "PCA"  # the start of t-SNE would be NaN, on which its tree never ends
    pca = PCA(min(n, d, 30 if method == "tsne" else 2), random_state=seed)
    flat = pca.fit_transform(np.asarray(vectors, np.float64))
    if method == "pca":
        return np.pad(flat, ((0, 0), (0, max(0, 2 - flat.shape[1])))), "PCA"
    perplexity = min(30, max(2, n // 5))
    placed = TSNE(2, init="pca", perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(flat)
    return np.asarray(placed, np.float64), "t-SNE"


def commonest(names: Sequence[str], maximum: int = len(HUES)) -> list[str]:
    """The `maximum` most frequent non-empty names, by count; all others are drawn as "other"."""
    counts = Counter(filter(None, names))
    return sorted(counts, key=lambda name: (-counts[name], name))[:maximum]


def map_plot(
    place: NDArray[np.float64], by: Sequence[str], shapes: Sequence[str], colors: Mapping[str, str], alt: str
) -> Plot:
    """Scatter of `place` (n, 2): colour by `by` (from `colors`, or hues in order if empty), marker by `shapes`."""
    kinds = list(dict.fromkeys(shapes))
    names = list(colors) if colors else commonest(by)
    groups = np.array([name if name in names else OTHER for name in by])
    order = np.random.default_rng(0).permutation(len(place))  # so that no group covers the others

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        hue = {n: _shade(colors[n], theme) if colors else theme.hues[i % len(theme.hues)] for i, n in enumerate(names)}
        hue[OTHER] = theme.grid
        for i, kind in enumerate(kinds):
            rows = [j for j in order if shapes[j] == kind]
            marker = MARKERS[i % len(MARKERS)]
            hues = [hue[groups[j]] for j in rows]
            axes.scatter(place[rows, 0], place[rows, 1], c=hues, s=13, marker=marker, alpha=0.8, linewidths=0)
        for name in dict.fromkeys([*names, OTHER]):
            if (groups == name).any():
                marker = MARKERS[kinds.index(name) % len(MARKERS)] if name in kinds else "o"
                axes.scatter([], [], c=[hue[name]], s=30, marker=marker, label=name)
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, fontsize=9, handletextpad=0.2, columnspacing=1.0)

    return draw(paint, alt, (5.6, 5.2))


# ---------------------------------------------------------------------------------------------- similarity


@dataclass(frozen=True)
class Similarity:
    """Per ordered pair of modalities: mean cosine of matching pairs, of other pairs, and their difference."""

    names: tuple[str, ...]
    match: str  # "patient" or "concept"
    matched: NDArray[np.float64]  # (m, m), NaN if there is no matching pair
    other: NDArray[np.float64]  # (m, m)
    gain: Mapping[tuple[str, str], Estimate]  # matched minus other, chance 0, both sides resampled by patient

    @property
    def largest(self) -> float:
        """Largest absolute difference."""
        return float(np.nanmax(np.abs(self.matched - self.other), initial=0.0))

    @property
    def mean_gain(self) -> float:
        """Mean difference over pairs of different modalities."""
        values = [gain.value for (a, b), gain in self.gain.items() if a != b]
        return float(np.mean(values)) if values else math.nan


def matching_key(points: Mapping[str, Points]) -> str:
    """ "patient" if two modalities share a patient, else "concept"."""
    known = [set(part.patients) - {""} for part in points.values()]
    return "patient" if any(a & b for a, b in itertools.combinations(known, 2)) else "concept"


def _patients(points: Mapping[str, Points], modality: str, resamples: int) -> Resampling:
    """The patients of a modality's files, or the files themselves if their patients are unknown."""
    part = points[modality]
    known = list(part.patients) or [f"{modality} {i}" for i in range(len(part.vectors))]
    return Resampling(known, resamples)


def _effects(cosine: NDArray[np.float64], same: NDArray[np.bool_], rest: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Effect of each searched file's weight on the mean difference of matching and other pairs: (n, g)."""
    sides = []
    for mask in (same, rest):
        count = mask.sum(1, keepdims=True)
        sides.append(mask * (cosine - (cosine * mask).sum(1, keepdims=True) / count) / count)
    return np.asarray((sides[0] - sides[1]) / len(cosine), dtype=np.float64)


def similarity(points: Mapping[str, Points], match: str = "auto", resamples: int = 200) -> Similarity:
    """Mean cosines over all pairs of files of two modalities (a file is never paired with itself).

    A query's matching pairs are averaged first, then the queries, so that all queries have equal weight.
    """
    match = matching_key(points) if match == "auto" else match
    names = tuple(points)
    matched, other = np.full((2, len(names), len(names)), np.nan)
    gain: dict[tuple[str, str], Estimate] = {}
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            same, known = (same_patient if match == "patient" else same_concept)(points[a], points[b])
            cosine, rest = points[a].vectors @ points[b].vectors.T, known & ~same
            if a == b:
                np.fill_diagonal(same, False)
                np.fill_diagonal(rest, False)
            rows = same.any(1) & rest.any(1)
            if not rows.any():
                continue
            near, far = ((cosine * mask)[rows].sum(1) / mask[rows].sum(1) for mask in (same, rest))
            matched[i, j], other[i, j] = near.mean(), far.mean()
            draws = _patients(points, a, resamples).subset(rows), _patients(points, b, resamples)
            found = mean_estimate(near - far, 0.0, draws[0], FREE)
            gain[a, b] = resample_gallery(found, _effects(cosine[rows], same[rows], rest[rows]), *draws, FREE)
    return Similarity(names, match, matched, other, gain)


def similarity_plot(data: Similarity, titles: Mapping[str, str], limit: float, alt: str) -> Plot:
    """Heat map of matched minus other, colours from -`limit` to `limit`; each cell contains matched above other."""
    difference = data.matched - data.other
    limit = max(0.05, limit)

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        image = axes.imshow(difference, cmap="RdBu" if theme is LIGHT else _DARK_MAP, vmin=-limit, vmax=limit)
        for i, j in np.ndindex(difference.shape):
            if np.isfinite(difference[i, j]):
                red, green, blue, _ = image.cmap(image.norm(difference[i, j]))
                ink = "#101418" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "#ffffff"
                text = f"{data.matched[i, j]:.2f}\n{data.other[i, j]:.2f}"
            else:
                ink, text = theme.text, "–"
            axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=9)
        labels = [titles.get(name, name) for name in data.names]
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, shrink=0.8, label=f"same {data.match} minus others")

    return draw(paint, alt, (5.9, 4.6))
