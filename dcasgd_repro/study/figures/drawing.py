"""Lines and looks that several figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcasgd_repro.run.read import Run
from dcasgd_repro.study.runs import OTHERS, RULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREY = "#0072B2", "#D55E00", "#666666"
Dashes = str | tuple[float, Sequence[float]]  # as matplotlib takes them
DASHES: list[Dashes] = ["--", "-.", ":", "-", (0, (5, 1)), (0, (1, 1))]
LAMBDAS = ["#D55E00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7", "#E69F00"]
MARKERS = {"sgd": "s", "asgd": "v", "ssgd": "D", "dcasgd_c": "^", "dcasgd_a": "o"}


def band(
    axes: Axes,
    runs: Sequence[Run],
    column: str,
    x: str,
    per: float,
    label: str | None = None,
    colour: str | None = None,
    dashes: Dashes | None = None,
) -> None:
    """The mean curve of the finished runs, their range shaded."""
    done = [run for run in runs if run.finished]
    if not done:
        return
    name, rule_colour, rule_dashes = RULES.get(runs[0].kind, (runs[0].kind, OTHERS[0], "-"))
    colour, dashes = colour or rule_colour, dashes or rule_dashes
    rows = [run.metrics.dropna(subset=["test_loss"]) for run in done]
    n = min(len(frame) for frame in rows)
    values = 100 * np.stack([frame[column].to_numpy()[:n] for frame in rows])
    at = np.mean([frame[x].to_numpy()[:n] for frame in rows], axis=0) / per
    axes.plot(
        at, values.mean(0), color=colour, linestyle=dashes, linewidth=1.8, label=label or name
    )
    if len(values) > 1:
        axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.13, linewidth=0)


def draw_paper(axes: Axes, at: Any, errors: Any, colour: str) -> None:
    """One of the paper's curves; errors in [0, 1]."""
    axes.plot(at, 100 * errors, color=colour, linewidth=0.6, alpha=0.55)


def look(runs: Sequence[Run]) -> tuple[str, str]:
    """Colour and marker of a cell's rule."""
    kind = runs[0].kind if runs else ""
    return RULES.get(kind, ("", OTHERS[0], "-"))[1], MARKERS.get(kind, "o")
