"""Who sees the bar: a terminal, and a notebook that can draw it; nobody else."""

from __future__ import annotations

import pytest
import rich.console

from hessian_lr import progress


@pytest.mark.parametrize(
    ("notebook", "widgets", "quiet", "shown"),
    [
        (True, True, False, True),
        (True, False, False, False),
        (True, True, True, False),
        (False, True, False, False),
    ],
    ids=["a notebook", "one without ipywidgets", "asked to be quiet", "standard error in a file"],
)
def test_a_notebook_has_a_bar_where_it_can_show_it(monkeypatch, notebook, widgets, quiet, shown):
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: notebook)
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets else None)
    drawn = []
    monkeypatch.setattr(rich.progress.Progress, "start", lambda bars: drawn.append(not bars.disable))
    monkeypatch.setattr(rich.progress.Progress, "stop", lambda bars: None)
    with progress.Progress(quiet):
        pass
    assert drawn == [shown]
