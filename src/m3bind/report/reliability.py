"""Reliability diagram: share of correct predictions by confidence."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from m3bind.evaluate.calibration import Answers, reliability_curve
from m3bind.evaluate.classification import BINS, expected_calibration_error
from m3bind.evaluate.confidence import Resampling
from m3bind.report.plots import Plot, Theme, draw


def reliability_plot(named: Sequence[tuple[str, Answers]], title: str, bins: int = BINS) -> Plot:
    """Share of correct predictions by confidence, one line per task; the diagonal is perfect calibration."""
    curves = [(name, reliability_curve(part, bins)) for name, part in named if len(part.confidence)]
    errors = {
        name: expected_calibration_error(part.confidence, part.right, Resampling(resamples=0)).value
        for name, part in named
    }

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=theme.grid, linewidth=1.2, label="perfect")
        for i, (name, (confidence, right, _)) in enumerate(curves):
            hue = theme.hues[i % len(theme.hues)]
            axes.plot(confidence, right, "o-", color=hue, linewidth=1.6, label=f"{name}, ECE {errors[name]:.3f}")
        axes.set(xlabel="confidence", ylabel="share correct", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.grid(color=theme.grid, linewidth=0.6)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=2)

    summary = "; ".join(f"{name}: calibration error {error:.3f}" for name, error in errors.items())
    return draw(paint, f"Reliability of {title}. {summary}.", (4.6, 4.8))
