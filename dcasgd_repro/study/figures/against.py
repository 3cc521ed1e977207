"""Errors against a key: lambda_0, the number of workers, the learning rate."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dcasgd_repro.study.figures import figure, sheet, ticks_in_powers_of_two, unframed
from dcasgd_repro.study.figures.drawing import BLUE, RED, band, draw_paper, scale_for_losses
from dcasgd_repro.study.looks import DASHES, Look, separated
from dcasgd_repro.study.measures import chance
from dcasgd_repro.study.tune import best, of_kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dcasgd_repro.study.evidence import Evidence

LAMBDAS = ("#D55E00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7", "#E69F00")
LAMBDA_DASHES = ("--", "-.", ":", "-", *DASHES[4:])


@figure("lambda")
def against_lambda(evidence: Evidence) -> Figure:
    """Left: test error against epochs by lambda_0. Right: the last-10 error against lambda_0.

    A cell is called ``lambda-VALUE``; the dashed line is sequential SGD, where a cell has it.
    """
    kind = "error" if evidence.has_errors else "loss"
    drawn = sheet(10.5, 4.4)
    by_epoch, by_lambda = drawn.subplots(1, 2)
    absolute = evidence.of_the_paper
    cells = {name: float(name[7:]) for name in evidence.runs if name.startswith("lambda-")}
    styles = itertools.cycle(zip(LAMBDAS, LAMBDA_DASHES, strict=True))
    others = {
        name: evidence.look(name)._replace(label=name)
        for name in evidence.runs
        if name not in cells
    }
    looks = separated(others)
    looks |= {name: Look(name, *style) for name, style in zip(cells, styles, strict=False)}
    theirs = []
    for name, runs in evidence.runs.items():
        done = [run for run in runs if run.finished]
        if not done:
            continue
        look = looks[name]
        whole = 1.0 if absolute else done[0].summary["epochs"]
        band(by_epoch, runs, f"test_{kind}", "epoch", whole, look)
        paper = evidence.study.curves
        paper = paper[(paper["cell"] == name) & (paper["split"] == "test")]
        their_whole = 1.0 if absolute else evidence.study.curves["epoch"].max()
        their_part = paper["epoch"] / their_whole
        theirs.append(draw_paper(by_epoch, their_part, paper["error"], look.colour))
    closing = evidence.closing
    points = [
        (cells[name], value)
        for name in cells
        for value in evidence.with_diverged(name, closing).values()
    ]
    if points:
        frame = pd.DataFrame(points, columns=["lambda", "error"])
        means = frame.groupby("lambda")["error"].mean()
        by_lambda.plot(frame["lambda"], frame["error"], "o", color=BLUE, alpha=0.5, markersize=5)
        by_lambda.plot(means.index, means, color=BLUE, linewidth=1.8, label="ours: seeds, mean")
    lost = [
        (cells[name], chance(run)) for name in cells for run in evidence.runs[name] if run.diverged
    ]
    if lost and evidence.has_errors:
        words = "x: diverged, counts as guessing"
        by_lambda.plot(*zip(*lost, strict=True), "x", color=RED, label=words)
    key = "last10_test_error_pct"
    if key in evidence.study.paper:
        there = evidence.study.paper[evidence.study.paper.index.isin(list(cells))][key]
        at = [cells[name] for name in there.index]
        if at:
            by_lambda.plot(at, there, color=BLUE, linewidth=0.6, label="thin: the paper's")
    sgd = list(evidence.values("sgd", closing.name).values()) if "sgd" in evidence.runs else []
    if sgd:
        by_lambda.axhline(
            float(np.mean(sgd)), color="black", linestyle="--", linewidth=1, label="SGD"
        )
    named = f"{evidence.on} error, mean of the last ten (%)"
    named = named if evidence.has_errors else evidence.closing_words
    by_lambda.set(xlabel="lambda_0", ylabel=named, ylim=(0, None))
    words = "epochs of effective passes" if absolute else "part of the run's epochs"
    by_epoch.set(xlabel=words, ylabel=f"{evidence.on} {kind}{' (%)' if kind == 'error' else ''}")
    if kind == "loss":
        scale_for_losses(by_epoch)
    if any(theirs):
        by_epoch.plot([], [], color="#888888", linewidth=0.6, label="thin: the paper's runs")
    for axes in (by_epoch, by_lambda):
        axes.legend(frameon=False, fontsize=8)
    unframed(by_epoch, by_lambda)
    return drawn


@figure("workers")
def against_workers(evidence: Evidence) -> Figure:
    """The closing error against M: a line through the means, a dot for each seed.

    A line joins cells of one configuration, which differ in M alone. It begins at M = 1 with
    sequential SGD of the same configuration, where there is one.
    """
    drawn = sheet(7.6, 4.8)
    axes = drawn.subplots()
    lines = evidence.lines
    named = separated({name: evidence.look(cells[0]) for name, cells in lines.items()})
    looks = {cell: named[name] for name, cells in lines.items() for cell in cells}
    points = {cell: list(evidence.with_diverged(cell, evidence.closing).values()) for cell in looks}
    for name, cells in lines.items():
        if evidence.runs[cells[0]][0].kind == "sgd" and points[cells[0]]:
            mean, look = float(np.mean(points[cells[0]])), named[name]
            axes.axhline(mean, color="black", linewidth=1, label=f"{look.label}, M = 1",
                         linestyle=look.dashes)  # fmt: skip
    for name, cells in lines.items():
        if evidence.runs[cells[0]][0].kind == "sgd":
            continue
        begins = {evidence.baseline(cell, "sgd") for cell in cells} - {None}
        values = {1: [value for cell in begins for value in points[str(cell)]]}
        for cell in cells:
            m = int(evidence.runs[cell][0].summary["workers"])
            values[m] = values.get(m, []) + points[cell]
        pairs = [(m, value) for m, of_m in values.items() for value in of_m]
        frame = pd.DataFrame(pairs, columns=["M", "error"])
        means, look = frame.groupby("M")["error"].mean(), named[name]
        style: dict[str, Any] = {"linestyle": look.dashes, "marker": look.marker}
        axes.plot(means.index, means, color=look.colour, markersize=5, linewidth=1.8,
                  label=look.label, **style)  # fmt: skip
        axes.plot(frame["M"], frame["error"], ".", color=look.colour, alpha=0.45, markersize=5)
    ticks_in_powers_of_two(axes, "%d")
    lost = [(cell, run) for cell in looks for run in evidence.runs[cell] if run.diverged]
    if not evidence.has_errors:
        scale_for_losses(axes)
    for cell, run in lost:
        at: dict[str, Any] = {"color": looks[cell].colour, "markersize": 7}
        if evidence.has_errors:
            axes.plot([run.summary["workers"]], [chance(run)], "x", **at)
        else:  # above the data: it has no loss
            axes.plot([run.summary["workers"]], [0.98], "x", transform=axes.get_xaxis_transform(),
                      **at)  # fmt: skip
    words = " (x: a run that diverged, counted as guessing)" if lost else ""
    words = words if evidence.has_errors else words.replace(", counted as guessing", "")
    axes.set_xlabel(f"workers M; the mean delay is M − 1, with SSGD 0{words}")
    axes.set_ylabel(evidence.closing_words)
    axes.legend(frameon=False, fontsize=9)
    unframed(axes)
    return drawn


@figure("lr")
def against_tuned_key(evidence: Evidence) -> Figure:
    """Validation error against the tuned key: a dot for each seed, a line through the means.

    The best value of each cell is circled. A run that diverged is an x at the error of guessing,
    which counts in the mean as it does in the choice.
    """
    assert evidence.study.tune is not None
    drawn = sheet(8.0, 5.0)
    axes = drawn.subplots()
    lost = False
    ticks: set[float] = set()
    tried = {
        cell: [trial for trial in trials if trial.errors]
        for cell, trials in of_kept(evidence).items()
    }
    first = {cell: f"{cell}-{trials[0].value:g}" for cell, trials in tried.items() if trials}
    looks = separated({c: evidence.look(name)._replace(dashes="-") for c, name in first.items()})
    for cell, trials in tried.items():
        if not trials:
            continue
        look, run = looks[cell], evidence.runs[first[cell]][0]
        name, colour = evidence.look(first[cell]).label, look.colour
        warm = str(run.config.get("lr._target_")).endswith("Warmed")
        label = f"{name}, M = {run.summary['workers']}{', warm-up' if warm else ''}"
        if label in axes.get_legend_handles_labels()[1]:
            label += f", {cell}"
        means = [trial.mean for trial in trials]
        at = [trial.value for trial in trials]
        ticks |= set(at)
        axes.plot(at, means, color=colour, linestyle=look.dashes, marker=look.marker, markersize=4,
                  linewidth=1.8, label=label)  # fmt: skip
        for trial in trials:
            guessing = trial.errors[len(trial.finished) :]
            axes.plot([trial.value] * len(guessing), guessing, "x", color=colour, markersize=10)
            axes.plot([trial.value] * len(trial.finished), trial.finished, ".", color=colour,
                      alpha=0.45)  # fmt: skip
            lost |= trial.diverged > 0
        chosen = trials[best(trials)]
        axes.plot([chosen.value], [chosen.mean], "o", markersize=13, markerfacecolor="none",
                  markeredgecolor=colour, markeredgewidth=1.6)  # fmt: skip
    ticks_in_powers_of_two(axes, "%g")
    axes.set_xticks(sorted(ticks))
    key = evidence.study.tune.key
    words = "circled: the lowest mean" + ("; x: diverged, counts as guessing" if lost else "")
    axes.set_xlabel(f"{'learning rate' if key == 'lr.base' else key} ({words})")
    axes.set_ylabel(f"{evidence.on} error, mean of the last ten evaluations (%)")
    axes.legend(frameon=False, fontsize=9)
    unframed(axes)
    return drawn
