"""What each correction would have done: a study's probe.csv files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from dcasgd_repro.study.figures import figure, sheet, unframed
from dcasgd_repro.study.probed import LAM, NAMES, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dcasgd_repro.study.evidence import Evidence

WINDOW = 200  # pushes that a running median spans
COLOURS = dict(zip(NAMES, ("#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2"), strict=True))


@figure("taylor")
def taylor(evidence: Evidence) -> Figure:
    """A row of panels for each cell that was probed, see ``panels_of``."""
    probes = evidence.probes.dropna(subset=["cos"] if len(evidence.probes) else None)
    cells = list(dict.fromkeys(probes["cell"]))
    drawn = sheet(13.0, 0.9 + 4.4 * max(1, len(cells)))
    if not cells:
        drawn.text(0.5, 0.5, "no run has a probe.csv with a delay in it", ha="center")
        return drawn
    for cell, panels in zip(cells, drawn.subplots(len(cells), 3, squeeze=False), strict=True):
        there = probes[probes["cell"] == cell]
        panels_of(there, evidence.runs[cell][0].config["batch"], panels)
        title = f"{cell}, seeds: {there['seed'].nunique()}"
        panels[0].set_title(title, loc="left", fontsize=10)
        for axes in (panels[0], panels[2]):
            axes.legend(frameon=False, fontsize=8)
        unframed(*panels)
    return drawn


def panels_of(table: pd.DataFrame, batch: int, panels: Sequence[Axes]) -> None:
    """One cell's probes against pushes: size, part removed, and the best lambda of g g drift."""
    size, removed, best = panels
    table = table.sort_values("push")
    for name in NAMES:
        running(size, table, f"size_{name}", COLOURS[name], words(name, batch))
        running(removed, table, f"removed_{name}", COLOURS[name])
    best.plot(table["push"], table["lambda_gg"], ".", color="#888888", alpha=0.35, markersize=3)
    running(best, table, "lambda_gg", "black", "best lambda, a dot for each probe")
    for name, lam, how in (("c", LAM, "as printed"), ("c_sum", LAM * batch, "g a batch's sum")):
        style: dict[str, Any] = {"color": COLOURS[name], "linestyle": "--", "linewidth": 1.2}
        best.axhline(lam, **style, label=f"{lam:g}: DC-ASGD-c, {how}")
    size.set_yscale("log")
    removed.set_yscale("symlog", linthresh=1e-4)
    best.set_yscale("symlog", linthresh=1e-2)
    for axes in (removed, best):
        axes.axhline(0, color="black", linewidth=0.8)
    size.set_title("How large is it?", fontsize=10, loc="right")
    removed.set_title("Does it help? (1: perfect; below 0: worse than none)", fontsize=10)
    best.set_title("Which lambda would help most?", fontsize=10)
    size.set_ylabel("size of the correction, ‖c‖ / ‖g‖")
    removed.set_ylabel("part of the squared staleness error removed")
    best.set_ylabel("lambda that removes most along g g drift")
    for axes in panels:
        axes.set_xlabel(f"pushes\n(running median over {WINDOW}, quartiles shaded)")


def running(
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    colour: str,
    label: str | None = None,
    shaded: bool = True,
) -> None:
    """The running median over 200 pushes, the quartiles shaded if that is asked for."""
    span = max(1.0, float(table["push"].max() - table["push"].min()))
    window = min(max(3, round(WINDOW * len(table) / span)), len(table))
    rolled = table[column].rolling(window, center=True, min_periods=max(1, window // 3))
    low, middle, high = (rolled.quantile(q) for q in (0.25, 0.5, 0.75))
    axes.plot(table["push"], middle, color=colour, linewidth=1.8, label=label)
    if shaded:
        axes.fill_between(table["push"], low, high, color=colour, alpha=0.15, linewidth=0)
