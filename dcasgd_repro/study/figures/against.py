"""Errors against a key: lambda_0, the number of workers, the learning rate."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dcasgd_repro.study.figures import figure, sheet, ticks_in_powers_of_two, unframed
from dcasgd_repro.study.figures.drawing import (
    BLUE,
    DASHES,
    LAMBDAS,
    MARKERS,
    RED,
    band,
    draw_paper,
)
from dcasgd_repro.study.measures import MEASURES, chance
from dcasgd_repro.study.runs import OTHERS, RULES
from dcasgd_repro.study.tune import best, of_kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dcasgd_repro.study.evidence import Evidence


@figure("lambda")
def sensitivity(evidence: Evidence) -> Figure:
    """Left: test error against epochs by lambda_0. Right: the last-10 error against lambda_0.

    A cell is called ``lambda-VALUE``; the dashed line is sequential SGD, where a cell has it.
    """
    drawn = sheet(10.5, 4.4)
    by_epoch, by_lambda = drawn.subplots(1, 2)
    absolute = evidence.of_the_paper
    cells = {name: float(name[7:]) for name in evidence.runs if name.startswith("lambda-")}
    styles = itertools.cycle(zip(LAMBDAS, DASHES, strict=True))
    looks = dict(zip(cells, styles, strict=False))
    for name, runs in evidence.runs.items():
        done = [run for run in runs if run.finished]
        if not done:
            continue
        colour, dashes = looks[name] if name in cells else ("#000000", "-")
        whole = 1.0 if absolute else done[0].summary["epochs"]
        band(by_epoch, runs, "test_error", "epoch", whole, name, colour, dashes)
        paper = evidence.study.curves
        paper = paper[(paper["cell"] == name) & (paper["split"] == "test")]
        their_whole = 1.0 if absolute else evidence.study.curves["epoch"].max()
        draw_paper(by_epoch, paper["epoch"] / their_whole, paper["error"], colour)
    last10 = MEASURES["last10"]
    points = [
        (cells[name], value) for name in cells for value in evidence.ranked(name, last10).values()
    ]
    if points:
        frame = pd.DataFrame(points, columns=["lambda", "error"])
        means = frame.groupby("lambda")["error"].mean()
        by_lambda.plot(frame["lambda"], frame["error"], "o", color=BLUE, alpha=0.5, markersize=5)
        by_lambda.plot(means.index, means, color=BLUE, linewidth=1.8, label="ours: seeds, mean")
    lost = [
        (cells[name], chance(run)) for name in cells for run in evidence.runs[name] if run.diverged
    ]
    if lost:
        words = "x: diverged, counts as guessing"
        by_lambda.plot(*zip(*lost, strict=True), "x", color=RED, label=words)
    key = "last10_test_error_pct"
    if key in evidence.study.paper:
        there = evidence.study.paper[evidence.study.paper.index.isin(list(cells))][key]
        at = [cells[name] for name in there.index]
        by_lambda.plot(at, there, color=BLUE, linewidth=0.6, label="thin: the paper's")
    sgd = list(evidence.values("sgd", "last10").values()) if "sgd" in evidence.runs else []
    if sgd:
        by_lambda.axhline(
            float(np.mean(sgd)), color="black", linestyle="--", linewidth=1, label="SGD"
        )
    named = f"{evidence.on} error, mean of the last ten (%)"
    by_lambda.set(xlabel="lambda_0", ylabel=named, ylim=(0, None))
    words = "epochs of effective passes" if absolute else "part of the run's epochs"
    by_epoch.set(xlabel=words, ylabel=f"{evidence.on} error (%)")
    by_epoch.plot([], [], color="#888888", linewidth=0.6, label="thin: the paper's runs")
    for axes in (by_epoch, by_lambda):
        axes.legend(frameon=False, fontsize=8)
    unframed(by_epoch, by_lambda)
    return drawn


@figure("workers")
def tax(evidence: Evidence) -> Figure:
    """Last-10 error against M: a line through the means of each rule, a dot for each seed."""
    drawn = sheet(7.6, 4.8)
    axes = drawn.subplots()
    points: dict[str, list[tuple[int, float]]] = {}
    for cell, runs in evidence.runs.items():
        for run in runs:
            points.setdefault(run.kind, [])
        for value in evidence.ranked(cell, MEASURES["last10"]).values():
            points[runs[0].kind].append((runs[0].summary["workers"], value))
    sgd = [value for _, value in points.pop("sgd", [])]
    if sgd:
        axes.axhline(float(np.mean(sgd)), color="black", linewidth=1, label="SGD, M = 1")
    for k, (kind, pairs) in enumerate(sorted(points.items())):
        frame = pd.DataFrame([(1, value) for value in sgd] + pairs, columns=["M", "error"])
        means = frame.groupby("M")["error"].mean()
        name, colour, dashes = RULES.get(kind, (kind, OTHERS[k % len(OTHERS)], "-"))
        axes.plot(means.index, means, color=colour, linestyle=dashes, marker=MARKERS.get(kind, "o"),
                  markersize=5, linewidth=1.8, label=name)  # fmt: skip
        axes.plot(frame["M"], frame["error"], ".", color=colour, alpha=0.45, markersize=5)
    ticks_in_powers_of_two(axes, "%d")
    lost = [run for run in evidence.all_runs if run.diverged]
    for run in lost:
        colour = RULES.get(run.kind, ("", OTHERS[0], ""))[1]
        axes.plot([run.summary["workers"]], [chance(run)], "x", color=colour, markersize=7)
    words = " (x: a run that diverged, counted as guessing)" if lost else ""
    axes.set_xlabel(f"workers M; the mean delay is M − 1, with SSGD 0{words}")
    axes.set_ylabel(f"{evidence.on} error, mean of the last ten evaluations (%)")
    axes.legend(frameon=False, fontsize=9)
    unframed(axes)
    return drawn


@figure("lr")
def tuning(evidence: Evidence) -> Figure:
    """Validation error against the tuned key: a dot for each seed, a line through the means.

    The best value of each cell is circled. Where a run diverged there is no mean to draw, and an x
    above the data.
    """
    assert evidence.study.tune is not None
    drawn = sheet(8.0, 5.0)
    axes = drawn.subplots()
    lost: list[tuple[float, str]] = []
    rules: set[str] = set()
    ticks: set[float] = set()
    for k, (cell, trials) in enumerate(of_kept(evidence).items()):
        trials = [trial for trial in trials if trial.errors]
        if not trials:
            continue
        run = evidence.runs[f"{cell}-{trials[0].value:g}"][0]
        name, colour, _ = RULES.get(run.kind, (cell, OTHERS[k % len(OTHERS)], ""))
        warm = str(run.config.get("lr._target_")).endswith("Warmed")
        label = f"{name}, M = {run.summary['workers']}{', warm-up' if warm else ''}"
        means = [np.nan if trial.diverged else trial.mean for trial in trials]
        dashes = "--" if run.kind in rules else "-"
        marker = MARKERS.get(run.kind, "o")
        rules.add(run.kind)
        at = [trial.value for trial in trials]
        ticks |= set(at)
        axes.plot(at, means, color=colour, linestyle=dashes, marker=marker, markersize=4,
                  linewidth=1.8, label=label)  # fmt: skip
        for trial in trials:
            errors = trial.finished
            axes.plot([trial.value] * len(errors), errors, ".", color=colour, alpha=0.45)
            lost += [(trial.value, colour)] * trial.diverged
        chosen = trials[best(trials)]
        if not chosen.diverged:
            axes.plot([chosen.value], [chosen.mean], "o", markersize=13, markerfacecolor="none",
                      markeredgecolor=colour, markeredgewidth=1.6)  # fmt: skip
    ticks_in_powers_of_two(axes, "%g")
    axes.set_xticks(sorted(ticks))
    low, high = axes.get_ylim()
    for k, colour in enumerate(dict.fromkeys(colour for _, colour in lost)):
        at = [value for value, of in lost if of == colour]
        top = high + 0.04 * (k + 1) * (high - low)  # above the data: it has no error rate
        axes.plot(at, [top] * len(at), "x", color=colour, markersize=6)
    key = evidence.study.tune.key
    words = "circled: the lowest mean" + ("; x: a run that diverged" if lost else "")
    axes.set_xlabel(f"{'learning rate' if key == 'lr.base' else key} ({words})")
    axes.set_ylabel(f"{evidence.on} error, mean of the last ten evaluations (%)")
    axes.legend(frameon=False, fontsize=9)
    unframed(axes)
    return drawn
