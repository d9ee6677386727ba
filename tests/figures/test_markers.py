"""What of a sweep's picture lies over what."""

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hessian_lr.figures import SweepPanel, sweep_figure
from hessian_lr.score import score
from hessian_lr.setting import Setting
from hessian_lr.sweep import RunResult, Sweep


@pytest.mark.parametrize("method", ["lora", "rslora", "lora+"])
@pytest.mark.parametrize("line", ["best_lr", "predicted_lr"])
def test_a_run_looks_the_same_where_a_learning_rates_line_goes_through_it(method, line):
    losses = {1e-3: (0.8, 0.9), 1e-2: (0.6, 0.8), 1e-1: (0.9, 1.0)}
    runs = tuple(
        RunResult("k", Setting(method=method), lr, 1.0, loss, 3, False, 1.0, 1)
        for lr, both in losses.items()
        for loss in both
    )
    sweep = Sweep(Setting(method=method), runs, False)
    told = score(sweep, 2e-2, 2e-3, 2e-1)

    def around(lr):
        """The pixels of the upper of the best runs."""
        figure = sweep_figure([SweepPanel(sweep, dataclasses.replace(told, **{line: lr}))])
        figure.set_dpi(200)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        x, y = figure.axes[0].transData.transform((1e-2, 0.8)).round().astype(int)
        shown = np.asarray(canvas.buffer_rgba())[::-1]
        return shown[y - 6 : y + 7, x - 6 : x + 7]

    assert np.array_equal(around(1e-2), around(3e-2))
