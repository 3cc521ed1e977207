"""Figures about a study's claims: their paired differences, and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcasgd_repro.study.figures import figure, sheet, unframed
from dcasgd_repro.study.figures.drawing import BLUE, GREY, RED
from dcasgd_repro.study.verdicts import FAILS, HOLDS, NOTHING, Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dcasgd_repro.study.evidence import Evidence
    from dcasgd_repro.study.probed import Median


@figure("table")
def table(evidence: Evidence) -> Figure:
    """Left: a dot for each seed, a bar at their mean, the paper's value. Right: the claims."""
    rows = max(len(evidence.runs), len(evidence.found))
    drawn = sheet(10.5, 1.6 + 0.34 * rows)
    errors, claims = drawn.subplots(1, 2, width_ratios=[1, 1])
    cells = list(evidence.runs)
    for row, cell in enumerate(cells):
        values = list(evidence.values(cell, evidence.closing.name).values())
        look = evidence.look(cell)
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "alpha": 0.75}
        errors.scatter(values, [row] * len(values), s=26, **style)
        if values:
            mean = np.mean(values)
            errors.plot([mean, mean], [row - 0.3, row + 0.3], color=look.colour, linewidth=2)
        if lost := len(evidence.runs[cell]) - len(values):
            errors.annotate(f"{lost} not finished", (0.98, row), xycoords=("axes fraction", "data"),
                            ha="right", va="center", fontsize=8, color=RED)  # fmt: skip
    key = "last10_test_error_pct"
    if evidence.of_the_paper and key in evidence.study.paper:
        there = [
            (evidence.study.paper[key][c], r)
            for r, c in enumerate(cells)
            if c in evidence.study.paper.index
        ]
        errors.scatter(*zip(*there, strict=True), s=60, marker="|", color="#888888", label="paper")
        errors.legend(frameon=False)
    errors.set_yticks(range(len(cells)), cells)
    errors.set_ylim(len(cells) - 0.5, -0.5)
    errors.set_xlabel(evidence.closing_words)
    forest(evidence, claims)
    unframed(errors, claims)
    return drawn


@figure("readings")
def readings(evidence: Evidence) -> Figure:
    """The claims' paired differences, their change where ``than`` is given, and dc_ratio."""
    compared = any(f.claim.than for f in evidence.found)
    widths = [1.5, 1.2, 1] if compared else [1.6, 1]
    drawn = sheet(5.4 + 2.6 * len(widths), 1.8 + 0.34 * len(evidence.found))
    claims, *changes, ratios = drawn.subplots(1, len(widths), sharey=True, width_ratios=widths)
    forest(evidence, claims)
    for axes in changes:
        colours = [BLUE if f.moved else GREY for f in evidence.found]
        intervals(axes, [f.change for f in evidence.found], colours)
        axes.set_xlabel("its change, 95 % interval (blue: moved)\nfrom the reading one factor away")
    for row, f in enumerate(evidence.found):
        if f.dc_ratio > 0:
            ratios.plot([f.dc_ratio], [row], "o", color=BLUE, markersize=5)
    ratios.set_xscale("log")
    if evidence.study.least_dc_ratio:
        ratios.axvline(evidence.study.least_dc_ratio, color="black", linestyle="--", linewidth=1)
    ratios.set_xlabel("dc_ratio, median\n(dashed: the least that counts)")
    unframed(claims, *changes, ratios)
    return drawn


def forest(evidence: Evidence, axes: Axes) -> None:
    """A row for each claim: its difference with a 95 % interval, and the paper's at its scale.

    A claim of another measure than the study's, or about no difference, has its row empty.
    """
    unit = evidence.measure.unit or "loss"
    unit = "points of error" if unit == "points" else unit
    of_paper, found = evidence.of_the_paper, evidence.found
    paper = [f.claim.paper if of_paper and f.claim.higher else None for f in found]
    colours = {HOLDS: BLUE, FAILS: RED}
    chosen = [colours.get(f.verdict, GREY) for f in evidence.found]
    shown = [f.difference if f.measure == evidence.measure else NOTHING for f in found]
    intervals(axes, shown, chosen, [p for p in paper if p])
    for row, (f, theirs) in enumerate(zip(evidence.found, paper, strict=True)):
        if theirs is not None:
            axes.plot([theirs], [row], "|", color="#888888", markersize=12)
        lost = sum(not run.finished for cell in f.claim.cells for run in evidence.runs[cell])
        if lost:
            axes.annotate(f"diverged or failed: {lost}", (0.01, row), va="center", fontsize=8,
                          xycoords=("axes fraction", "data"), color=RED)  # fmt: skip
    names = [f"{f.claim}\n{evidence.word(f.verdict)}" for f in evidence.found]
    axes.set_yticks(range(len(names)), names, fontsize=8, linespacing=1.0)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    if not evidence.has_errors:  # a loss has any size: no row of zeros at each tick
        axes.ticklabel_format(axis="x", scilimits=(-2, 4))
    axes.set_xlabel(f"paired difference, {unit}, 95 % interval\nright of 0: as claimed")


def intervals(
    axes: Axes,
    differences: Sequence[Difference | Median],
    colours: Sequence[str],
    also: Sequence[float] = (),
) -> None:
    """A row for each difference with its interval, an arrow where that leaves the axes.

    The axes are wide enough for the values in ``also``.
    """
    ends = [abs(d.estimate) for d in differences if d.n] + [abs(value) for value in also] or [1.0]
    halves = [d.half for d in differences if np.isfinite(d.half)]
    widest = 1.1 * (max(ends) + (float(np.median(halves)) if halves else 0.0))
    for row, (d, colour) in enumerate(zip(differences, colours, strict=True)):
        if d.n:
            axes.plot([d.estimate], [row], "o", color=colour, markersize=5)
        if d.n > 1:
            low, high = max(d.low, -widest), min(d.high, widest)
            axes.plot([low, high], [row, row], color=colour, linewidth=1.8)
            for end, cut, marker in ((low, d.low, 4), (high, d.high, 5)):
                if end != cut:  # the interval goes on beyond the axes
                    axes.plot([end], [row], marker=marker, color=colour, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(-1.08 * widest, 1.08 * widest)
