"""Lines that several figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcasgd_repro.run.read import Run
from dcasgd_repro.study.looks import Look, separated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dcasgd_repro.study.evidence import Evidence

BLUE, RED, GREY = "#0072B2", "#D55E00", "#666666"


def line_looks(evidence: Evidence, cells: Mapping[str, Sequence[Run]]) -> dict[str, Look]:
    """The look of the line of each of these cells, as one panel has them."""
    return separated({cell: evidence.look(cell) for cell in cells})


def band(axes: Axes, runs: Sequence[Run], column: str, x: str, per: float, look: Look) -> None:
    """The mean curve of the finished runs of one cell, their range shaded; errors in percent."""
    done = [run for run in runs if run.finished]
    if not done:
        return
    rows = [run.metrics.dropna(subset=["test_loss"]) for run in done]
    n = min(len(frame) for frame in rows)
    values = np.stack([frame[column].to_numpy()[:n] for frame in rows])
    values = 100 * values if column.endswith("error") else values
    at = np.mean([frame[x].to_numpy()[:n] for frame in rows], axis=0) / per
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.8}
    axes.plot(at, values.mean(0), **style, label=look.label)
    if len(values) > 1:
        low, high = values.min(0), values.max(0)
        axes.fill_between(at, low, high, color=look.colour, alpha=0.13, linewidth=0)


def draw_paper(axes: Axes, at: Any, errors: Any, colour: str) -> bool:
    """One of the paper's curves, errors in [0, 1]. Returns whether it has any."""
    axes.plot(at, 100 * errors, color=colour, linewidth=0.6, alpha=0.55)
    return bool(len(at))


def scale_for_losses(axes: Axes) -> None:
    """A logarithmic axis of y, unless a loss is 0 or less."""
    lows = [float(np.nanmin(y)) for y in (np.asarray(line.get_ydata()) for line in axes.lines)
            if y.size and np.isfinite(y).any()]  # fmt: skip
    if min(lows, default=0.0) > 0:
        axes.set_yscale("log")
