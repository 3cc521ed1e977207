"""Errors against epochs or simulated time. The paper's curves lie thin and pale behind ours."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from dcasgd_repro.study.figures import figure, sheet, unframed
from dcasgd_repro.study.figures.drawing import band, draw_paper, line_looks, scale_for_losses
from dcasgd_repro.study.looks import Look
from dcasgd_repro.study.measures import curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dcasgd_repro.study.evidence import Evidence


@figure("epochs")
def against_epochs(evidence: Evidence) -> Figure:
    """Test and training error against epochs, a panel for each M."""
    return curves(evidence, "epoch")


@figure("seconds")
def against_seconds(evidence: Evidence) -> Figure:
    """Test and training error against simulated seconds, a panel for each M."""
    return curves(evidence, "simulated_s")


def curves(evidence: Evidence, x: str) -> Figure:
    """Test and training error, M by M, mean over seeds with their range; the paper's behind.

    Away from the paper's scale both are drawn against the part of the run that has passed: of its
    epochs, or of the time that sequential SGD takes.
    """
    several = {r.summary["workers"] for r in evidence.all_runs if r.summary["workers"] > 1}
    workers = sorted(several) or [1]
    kind, rows = ("error", 2) if evidence.has_errors else ("loss", 1)
    drawn = sheet(5.2 * len(workers), 7.4 if rows == 2 else 4.2)
    axes = drawn.subplots(rows, len(workers), sharex=True, sharey="row", squeeze=False)
    their_x = {"epoch": "epoch", "simulated_s": "seconds"}[x]
    absolute = evidence.of_the_paper
    wholes = [
        run.summary["epochs" if x == "epoch" else "simulated_s"]
        for run in evidence.all_runs
        if run.finished and (x == "epoch" or run.kind == "sgd")
    ]
    whole = max(wholes, default=1.0)
    their_whole = evidence.study.curves[their_x].max()
    if x == "simulated_s" and "seconds_160_epochs" in evidence.study.paper:
        # Sequential SGD's, the slowest.
        their_whole = evidence.study.paper["seconds_160_epochs"].max()
    theirs = []
    for column, m in enumerate(workers):
        cells = {
            cell: runs
            for cell, runs in evidence.runs.items()
            if runs and runs[0].summary["workers"] in (1, m)
        }
        looks = line_looks(evidence, cells)
        for row, split in enumerate(("test", "train")[:rows]):
            panel: Axes = axes[row][column]
            for cell, runs in cells.items():
                of = f"{split}_{kind}"
                band(panel, runs, of, x, 1.0 if absolute else whole, looks[cell])
                paper = evidence.study.curves
                paper = paper[(paper["cell"] == cell) & (paper["split"] == split)]
                paper = paper[(paper["workers"] == m) & paper[their_x].notna()]
                at = paper[their_x] / (1.0 if absolute else their_whole)
                theirs.append(draw_paper(panel, at, paper["error"], looks[cell].colour))
            words = evidence.on if split == "test" else split
            panel.set_title(f"{words} {kind}, M = {m}", fontsize=10)
            unframed(panel)
        labels = ("epochs of effective passes", "part of the run's epochs")
        if x == "simulated_s":
            labels = ("simulated seconds", "time, as part of sequential SGD's")
        axes[-1][column].set_xlabel(labels[0] if absolute else labels[1])
    for row in range(rows):
        axes[row][0].set_ylabel("error (%)" if evidence.has_errors else "loss")
        if not evidence.has_errors:
            scale_for_losses(axes[row][0])
    if any(theirs):
        axes[0][0].plot([], [], color="#888888", linewidth=0.6, label="thin: the paper's runs")
    shown: set[str] = set()
    for panel in axes[0]:
        named = set(panel.get_legend_handles_labels()[1])
        if named - shown:
            panel.legend(frameon=False, fontsize=8)
        shown |= named
    return drawn


@figure("prefix")
def prefix(evidence: Evidence) -> Figure:
    """Training error against epochs: a column for each M; a row for each way of taking it."""
    if not evidence.has_errors:
        return curves(evidence, "epoch")
    workers = sorted({r.summary["workers"] for r in evidence.all_runs if r.summary["workers"] > 1})
    workers = list(reversed(workers)) or [1]
    drawn = sheet(5.6 * len(workers), 8.2)
    axes = drawn.subplots(2, len(workers), sharex=True, sharey=True, squeeze=False)
    rows = {"train_error": "of w, on fixed images", "batch_error": "of mini-batches as they train"}
    for column, m in enumerate(workers):
        done = {
            cell: [run for run in runs if run.finished or run.diverged]
            for cell, runs in evidence.runs.items()
        }
        cells = {c: r for c, r in done.items() if r and r[0].summary["workers"] in (1, m)}
        looks = line_looks(evidence, cells)
        for row, (error, words) in enumerate(rows.items()):
            panel: Axes = axes[row][column]
            for cell, look in looks.items():
                training(panel, evidence, cell, error, look)
                paper = evidence.study.curves
                paper = paper[(paper["cell"] == cell) & (paper["split"] == "train")]
                paper = paper[paper["workers"] == m].sort_values("epoch")
                style: dict[str, Any] = {"marker": look.marker, "markersize": 2.5}
                style |= {"color": look.colour, "linewidth": 0.8, "alpha": 0.6}
                panel.plot(paper["epoch"], 100 * paper["error"], **style)
            if evidence.study.level:
                panel.axhline(evidence.study.level, color="#888888", linewidth=0.7, linestyle=":")
            panel.set_title(f"training error {words}, M = {m}", fontsize=10)
            panel.set_ylim(0, 95)
            if panel.get_legend_handles_labels()[1]:
                panel.legend(frameon=False, fontsize=8)
            unframed(panel)
        axes[1][column].set_xlabel("epochs of effective passes")
    for row in (0, 1):
        axes[row][0].set_ylabel("error (%)")
    words = "thick: ours, mean over seeds, their range shaded"
    if len(evidence.study.curves):
        words += "\nthin with markers: the paper's run, one a cell"
    drawn.supxlabel(words, fontsize=9)
    return drawn


@figure("settings")
def settings(evidence: Evidence) -> Figure:
    """Training error of w against epochs: a panel for each claim, the paper's curves behind."""
    if not evidence.has_errors:
        return curves(evidence, "epoch")
    columns = 4
    rows = max(1, -(-len(evidence.found) // columns))
    drawn = sheet(13.5, 2.6 * rows + 0.8)
    panels = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, f in itertools.zip_longest(panels, evidence.found):
        if f is None:
            panel.set_visible(False)
            continue
        for cell, paper in evidence.study.curves.groupby("cell"):
            look = evidence.look(str(cell))
            there = paper[paper["split"] == "train"].sort_values("epoch")
            style: dict[str, Any] = {"marker": look.marker, "markersize": 2}
            style |= {"color": look.colour, "linewidth": 0.7, "alpha": 0.6}
            panel.plot(there["epoch"], 100 * there["error"], **style)
        for cell, dashes in zip(reversed(f.claim.cells), ("--", "-"), strict=False):
            look = evidence.look(cell)._replace(label=cell, dashes=dashes)
            training(panel, evidence, cell, "train_error", look)
        panel.set_title(str(f.difference) if f.difference.n else "not run yet", fontsize=9)
        panel.set_ylim(0, 95)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, fontsize=7)
        unframed(panel)
    words = "epochs; above each panel: the difference of the claim"
    if evidence.study.epochs:
        epochs = ", ".join(f"{epoch:g}" for epoch in evidence.study.epochs)
        words += f", in {evidence.measure.unit} at epochs {epochs}"
    words += "; thin: the paper's runs" if len(evidence.study.curves) else ""
    drawn.supxlabel(words, fontsize=9)
    drawn.supylabel("training error of w (%)", fontsize=9)
    return drawn


def training(panel: Axes, evidence: Evidence, cell: str, error: str, look: Look) -> None:
    """A cell's curve of one training error: the mean over its finished runs, their range shaded.

    The legend counts the runs that diverged, of which the curve shows nothing.
    """
    runs = evidence.runs[cell]
    seeds = [curve(run, error) for run in runs if run.finished]
    n = min((len(frame) for frame in seeds), default=0)
    lost = sum(run.diverged for run in runs)
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.9}
    if not n:
        if lost:
            panel.plot([], [], **style, label=f"{look.label}: {lost} diverged")
        return
    at = seeds[0]["epoch"].to_numpy()[:n]
    values = np.stack([frame["error"].to_numpy()[:n] for frame in seeds])
    without = f", {lost} diverged" if lost else ""
    panel.plot(at, values.mean(0), **style, label=f"{look.label}, n = {len(values)}{without}")
    if len(values) > 1:
        low, high = values.min(0), values.max(0)
        panel.fill_between(at, low, high, color=look.colour, alpha=0.13, linewidth=0)
