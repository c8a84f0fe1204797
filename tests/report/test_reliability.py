"""The calibration plot."""

import numpy as np

from m3bind.evaluate.calibration import answers
from m3bind.report.reliability import reliability_plot


def test_the_plot_has_a_description():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(300, 3))
    powers = np.exp(logits)
    y = (powers.cumsum(1) / powers.sum(1, keepdims=True) > rng.random((300, 1))).argmax(1)
    drawn = reliability_plot([("as given", answers(y, 4 * logits)), ("cooled", answers(y, logits))], "MESSIDOR-2")
    assert drawn.light[:4] == drawn.dark[:4] == b"\x89PNG" and drawn.light != drawn.dark
    assert "MESSIDOR-2" in drawn.alt and "cooled: calibration error 0." in drawn.alt
