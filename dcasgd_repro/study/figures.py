"""A study's figure. The paper's digitised curves lie thin and pale behind ours.

table    every cell's last-10 error by seed, and the claims' paired differences
epochs   test and training error against epochs, a panel for each M
seconds  the same against simulated seconds
lambda   curves for each lambda_0, and the last-10 error against it
workers  last-10 error against M, a line for each rule
lr       validation error against the tuned key, a line for each cell, its best value circled
readings the claims' paired differences, which factors moved them, how large the correction was
prefix   training error against epochs, of w and of the mini-batches, a column for each M
settings training error against epochs, a panel for each claim with its two cells
taylor   probe.csv against pushes: how large each correction is, what it removes, the best lambda
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullLocator

from dcasgd_repro.run.read import Run
from dcasgd_repro.study import probed
from dcasgd_repro.study.evidence import Evidence
from dcasgd_repro.study.measures import MEASURES, chance, curve
from dcasgd_repro.study.runs import OTHERS, RULES
from dcasgd_repro.study.tune import best, of_kept
from dcasgd_repro.study.verdicts import NOTHING, Difference

BLUE, RED, GREY = "#0072B2", "#D55E00", "#666666"
Dashes = str | tuple[float, Sequence[float]]  # as matplotlib takes them
DASHES: list[Dashes] = ["--", "-.", ":", "-", (0, (5, 1)), (0, (1, 1))]
LAMBDAS = ["#D55E00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7", "#E69F00"]
MARKERS = {"sgd": "s", "asgd": "v", "ssgd": "D", "dcasgd_c": "^", "dcasgd_a": "o"}


def draw(evidence: Evidence) -> Figure:
    """The figure that the study's grid.yaml names."""
    kinds: dict[str, Callable[[Evidence], Figure]] = {
        "table": table,
        "epochs": lambda evidence: curves(evidence, "epoch"),
        "seconds": lambda evidence: curves(evidence, "simulated_s"),
        "lambda": sensitivity,
        "workers": tax,
        "readings": readings,
        "lr": tuning,
        "prefix": prefix,
        "settings": settings,
        "taylor": taylor,
    }
    figure = kinds[evidence.study.figure](evidence)
    figure.suptitle(f"{evidence.study.title} ({evidence.scale} scale)", fontsize=11)
    return figure


def table(evidence: Evidence) -> Figure:
    """Left: a dot for each seed, a bar at their mean, the paper's value. Right: the claims."""
    rows = max(len(evidence.runs), len(evidence.found))
    figure = Figure(figsize=(10.5, 1.6 + 0.34 * rows), layout="constrained")
    errors, claims = figure.subplots(1, 2, width_ratios=[1, 1])
    cells = list(evidence.runs)
    for row, cell in enumerate(cells):
        values = list(evidence.values(cell, "last10").values())
        colour, marker = look(evidence.runs[cell])
        errors.scatter(values, [row] * len(values), s=26, color=colour, marker=marker, alpha=0.75)
        if values:
            mean = np.mean(values)
            errors.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, linewidth=2)
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
    errors.set_xlabel(f"{evidence.on} error, mean of the last ten evaluations (%)")
    forest(evidence, claims)
    plain(errors, claims)
    return figure


def readings(evidence: Evidence) -> Figure:
    """The claims' paired differences, their change where ``than`` is given, and dc_ratio."""
    compared = any(f.claim.than for f in evidence.found)
    widths = [1.5, 1.2, 1] if compared else [1.6, 1]
    figure = Figure(
        figsize=(5.4 + 2.6 * len(widths), 1.8 + 0.34 * len(evidence.found)), layout="constrained"
    )
    claims, *changes, ratios = figure.subplots(1, len(widths), sharey=True, width_ratios=widths)
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
    plain(claims, *changes, ratios)
    return figure


def forest(evidence: Evidence, axes: Axes) -> None:
    """A row for each claim: its difference with a 95 % interval, and the paper's at its scale.

    A claim of another measure than the study's, or about no difference, has its row empty.
    """
    unit = "s" if evidence.study.measure == "simulated_s" else "points of error"
    of_paper, found = evidence.of_the_paper, evidence.found
    paper = [f.claim.paper if of_paper and f.claim.higher else None for f in found]
    colours = {"reproduced": BLUE, "not reproduced": RED}
    chosen = [colours.get(f.verdict, GREY) for f in evidence.found]
    measure = evidence.study.measure
    shown = [f.difference if f.measure.name == measure else NOTHING for f in found]
    intervals(axes, shown, chosen, [p for p in paper if p])
    for row, (f, theirs) in enumerate(zip(evidence.found, paper, strict=True)):
        if theirs is not None:
            axes.plot([theirs], [row], "|", color="#888888", markersize=12)
        lost = sum(not run.finished for cell in f.claim.cells for run in evidence.runs[cell])
        if lost:
            axes.annotate(f"diverged or failed: {lost}", (0.01, row), va="center", fontsize=8,
                          xycoords=("axes fraction", "data"), color=RED)  # fmt: skip
    names = [f"{f.claim}\n{evidence.study.words.get(f.verdict, f.verdict)}" for f in evidence.found]
    axes.set_yticks(range(len(names)), names, fontsize=8, linespacing=1.0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"paired difference, {unit}, 95 % interval\nright of 0: as claimed")


def intervals(
    axes: Axes,
    differences: Sequence[Difference | probed.Median],
    colours: Sequence[str],
    also: Sequence[float] = (),
) -> None:
    """A row for each difference, an arrow where its interval goes on; ``also`` is in sight."""
    ends = [abs(d.mean) for d in differences if d.n] + [abs(value) for value in also] or [1.0]
    halves = [d.half for d in differences if np.isfinite(d.half)]
    widest = 1.1 * (max(ends) + (float(np.median(halves)) if halves else 0.0))
    for row, (d, colour) in enumerate(zip(differences, colours, strict=True)):
        if d.n:
            axes.plot([d.mean], [row], "o", color=colour, markersize=5)
        if d.n > 1:
            low, high = max(d.low, -widest), min(d.high, widest)
            axes.plot([low, high], [row, row], color=colour, linewidth=1.8)
            for end, cut, marker in ((low, d.low, 4), (high, d.high, 5)):
                if end != cut:  # the interval goes on beyond the axes
                    axes.plot([end], [row], marker=marker, color=colour, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(-1.08 * widest, 1.08 * widest)


def curves(evidence: Evidence, x: str) -> Figure:
    """Test and training error, M by M, mean over seeds with their range; the paper's behind.

    Away from the paper's scale both are drawn against the part of the run that has passed: of its
    epochs, or of the time that sequential SGD takes.
    """
    several = {r.summary["workers"] for r in evidence.all_runs if r.summary["workers"] > 1}
    workers = sorted(several) or [1]
    figure = Figure(figsize=(5.2 * len(workers), 7.4), layout="constrained")
    axes = figure.subplots(2, len(workers), sharex=True, sharey="row", squeeze=False)
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
    for column, m in enumerate(workers):
        for row, split in enumerate(("test", "train")):
            panel: Axes = axes[row][column]
            for cell, runs in evidence.runs.items():
                if not runs or runs[0].summary["workers"] not in (1, m):
                    continue
                band(panel, runs, f"{split}_error", x, 1.0 if absolute else whole)
                paper = evidence.study.curves
                paper = paper[(paper["cell"] == cell) & (paper["split"] == split)]
                paper = paper[(paper["workers"] == m) & paper[their_x].notna()]
                at = paper[their_x] / (1.0 if absolute else their_whole)
                draw_paper(panel, at, paper["error"], look(runs)[0])
            words = evidence.on if split == "test" else split
            panel.set_title(f"{words} error, M = {m}", fontsize=10)
            plain(panel)
        labels = ("epochs of effective passes", "part of the run's epochs")
        if x == "simulated_s":
            labels = ("simulated seconds", "time, as part of sequential SGD's")
        axes[1][column].set_xlabel(labels[0] if absolute else labels[1])
    for row in (0, 1):
        axes[row][0].set_ylabel("error (%)")
    axes[0][0].plot([], [], color="#888888", linewidth=0.6, label="thin: the paper's runs")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def sensitivity(evidence: Evidence) -> Figure:
    """Left: test error against epochs by lambda_0. Right: the last-10 error against lambda_0.

    A cell is called ``lambda-VALUE``; the dashed line is sequential SGD, where a cell has it.
    """
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    by_epoch, by_lambda = figure.subplots(1, 2)
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
    plain(by_epoch, by_lambda)
    return figure


def tax(evidence: Evidence) -> Figure:
    """Last-10 error against M: a line through the means of each rule, a dot for each seed."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.subplots()
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
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes.xaxis.set_minor_locator(NullLocator())
    lost = [run for run in evidence.all_runs if run.diverged]
    for run in lost:
        colour = RULES.get(run.kind, ("", OTHERS[0], ""))[1]
        axes.plot([run.summary["workers"]], [chance(run)], "x", color=colour, markersize=7)
    words = " (x: a run that diverged, counted as guessing)" if lost else ""
    axes.set_xlabel(f"workers M; the mean delay is M − 1, with SSGD 0{words}")
    axes.set_ylabel(f"{evidence.on} error, mean of the last ten evaluations (%)")
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
    return figure


def taylor(evidence: Evidence) -> Figure:
    """A row of panels for each cell that was probed, see probed.py."""
    probes = evidence.probes.dropna(subset=["cos"] if len(evidence.probes) else None)
    cells = list(dict.fromkeys(probes["cell"]))
    figure = Figure(figsize=(13.0, 0.9 + 4.4 * max(1, len(cells))), layout="constrained")
    if not cells:
        figure.text(0.5, 0.5, "no run has a probe.csv with a delay in it", ha="center")
        return figure
    for cell, panels in zip(cells, figure.subplots(len(cells), 3, squeeze=False), strict=True):
        there = probes[probes["cell"] == cell]
        probed.draw(there, evidence.runs[cell][0].config["batch"], panels)
        title = f"{cell}, seeds: {there['seed'].nunique()}"
        panels[0].set_title(title, loc="left", fontsize=10)
        for axes in (panels[0], panels[2]):
            axes.legend(frameon=False, fontsize=8)
        plain(*panels)
    return figure


def settings(evidence: Evidence) -> Figure:
    """Training error of w against epochs: a panel for each claim, the paper's curves behind."""
    columns = 4
    rows = max(1, -(-len(evidence.found) // columns))
    figure = Figure(figsize=(13.5, 2.6 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, f in itertools.zip_longest(panels, evidence.found):
        if f is None:
            panel.set_visible(False)
            continue
        for cell, paper in evidence.study.curves.groupby("cell"):
            colour, marker = look(evidence.runs.get(str(cell), []))
            there = paper[paper["split"] == "train"].sort_values("epoch")
            style = {"color": colour, "linewidth": 0.7, "alpha": 0.6}
            panel.plot(there["epoch"], 100 * there["error"], marker=marker, markersize=2, **style)
        for cell, dashes in zip(reversed(f.claim.cells), ("--", "-"), strict=False):
            training(panel, evidence, cell, "train_error", f"{cell}", dashes)
        panel.set_title(str(f.difference) if f.difference.n else "not run yet", fontsize=9)
        panel.set_ylim(0, 95)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, fontsize=7)
        plain(panel)
    words = (
        "epochs; above each panel: ASGD minus the reading, in points of training error at epochs "
    )
    words += f"{', '.join(f'{epoch:g}' for epoch in evidence.study.epochs)}; thin: the paper's runs"
    figure.supxlabel(words, fontsize=9)
    figure.supylabel("training error of w (%)", fontsize=9)
    return figure


def training(
    panel: Axes, evidence: Evidence, cell: str, error: str, label: str, dashes: str | None = None
) -> None:
    """A cell's curve of one training error: the mean over its finished runs, their range shaded."""
    done = [run for run in evidence.runs[cell] if run.finished]
    seeds = [curve(run, error) for run in done]
    n = min((len(frame) for frame in seeds), default=0)
    if not n:
        return
    _, colour, own = RULES.get(done[0].kind, (done[0].kind, OTHERS[0], "-"))
    at = seeds[0]["epoch"].to_numpy()[:n]
    values = np.stack([frame["error"].to_numpy()[:n] for frame in seeds])
    label = f"{label}, n = {len(values)}"
    panel.plot(at, values.mean(0), color=colour, linestyle=dashes or own, linewidth=1.9,
               label=label)  # fmt: skip
    if len(values) > 1:
        low, high = values.min(0), values.max(0)
        panel.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)


def prefix(evidence: Evidence) -> Figure:
    """Training error against epochs: a column for each M; a row for each way of taking it."""
    workers = sorted({r.summary["workers"] for r in evidence.all_runs if r.summary["workers"] > 1})
    workers = list(reversed(workers)) or [1]
    figure = Figure(figsize=(5.6 * len(workers), 8.2), layout="constrained")
    axes = figure.subplots(2, len(workers), sharex=True, sharey=True, squeeze=False)
    rows = {"train_error": "of w, on fixed images", "batch_error": "of mini-batches as they train"}
    for column, m in enumerate(workers):
        for row, (error, words) in enumerate(rows.items()):
            panel: Axes = axes[row][column]
            for cell, runs in evidence.runs.items():
                done = [run for run in runs if run.finished and run.summary["workers"] in (1, m)]
                if not done:
                    continue
                name, colour, _ = RULES.get(done[0].kind, (done[0].kind, OTHERS[0], "-"))
                training(panel, evidence, cell, error, name)
                paper = evidence.study.curves
                paper = paper[(paper["cell"] == cell) & (paper["split"] == "train")]
                paper = paper[paper["workers"] == m].sort_values("epoch")
                marker = MARKERS.get(done[0].kind, "o")
                style: dict[str, Any] = {"marker": marker, "markersize": 2.5}
                style |= {"color": colour, "linewidth": 0.8, "alpha": 0.6}
                panel.plot(paper["epoch"], 100 * paper["error"], **style)
            if evidence.study.level:
                panel.axhline(evidence.study.level, color="#888888", linewidth=0.7, linestyle=":")
            panel.set_title(f"training error {words}, M = {m}", fontsize=10)
            panel.set_ylim(0, 95)
            if panel.get_legend_handles_labels()[1]:
                panel.legend(frameon=False, fontsize=8)
            plain(panel)
        axes[1][column].set_xlabel("epochs of effective passes")
    for row in (0, 1):
        axes[row][0].set_ylabel("error (%)")
    figure.supxlabel("thick: ours, mean over seeds, their range shaded\n"
                     "thin with markers: the paper's run, one a cell", fontsize=9)  # fmt: skip
    return figure


def tuning(evidence: Evidence) -> Figure:
    """Validation error against the tuned key: a dot for each seed, a line through the means.

    The best value of each cell is circled. Where a run diverged there is no mean to draw, and an x
    above the data.
    """
    assert evidence.study.tune is not None
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    lost: list[tuple[float, str]] = []
    drawn: set[str] = set()
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
        dashes = "--" if run.kind in drawn else "-"
        marker = MARKERS.get(run.kind, "o")
        drawn.add(run.kind)
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
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
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
    plain(axes)
    return figure


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


def plain(*all_axes: Any) -> None:
    for axes in all_axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
