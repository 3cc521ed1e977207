"""One measure in several settings: a panel for each cluster and M, a row for each rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcasgd_repro.study.figures import figure, sheet, unframed
from dcasgd_repro.study.figures.drawing import RED
from dcasgd_repro.study.runs import differing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dcasgd_repro.study.evidence import Evidence

NOT_OF_A_CLUSTER = ("schedule.workers", "schedule.seed", "schedule.barrier")


@figure("panels")
def panels(evidence: Evidence) -> Figure:
    """The study's measure: a dot for each seed, a bar at their mean, the lowest mean on top.

    The rows have the order of the first panel. Dashed: the mean of the cell that the claims about
    a panel compare its others with, where it is one.
    """
    configs = {cell: runs[0].config for cell, runs in evidence.runs.items() if runs}
    settings = {cell: cluster(config) for cell, config in configs.items()}
    names = {cell: title(s, [*settings.values()]) for cell, s in settings.items()}
    rules = named_rules(evidence, configs)
    points = {cell: evidence.with_diverged(cell, evidence.measure) for cell in configs}
    shown = list(dict.fromkeys(names.values()))
    first = {rules[cell]: np.mean([*points[cell].values()] or np.inf)
             for cell in reversed(configs) if names[cell] == shown[0]}  # fmt: skip
    rows = sorted(dict.fromkeys(rules.values()), key=lambda rule: first.get(rule, np.inf))
    drawn = sheet(2.2 + 2.9 * len(shown), 1.6 + 0.3 * len(rows))
    all_axes = drawn.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(all_axes, shown, strict=True):
        of_panel = [cell for cell in configs if names[cell] == name]
        for cell in of_panel:
            row, look = rows.index(rules[cell]), evidence.look(cell)
            ended = [*evidence.values(cell, evidence.measure.name).values()]
            values = [*points[cell].values()]
            for of, marker in ((ended, look.marker), (values[len(ended) :], "x")):
                axes.scatter(
                    of, [row] * len(of), s=20, color=look.colour, marker=marker, alpha=0.75
                )
            if values:
                mean = np.mean(values)
                axes.plot([mean, mean], [row - 0.32, row + 0.32], color=look.colour, linewidth=2)
            if lost := len(evidence.runs[cell]) - len(values):
                axes.annotate(f"{lost} without", (0.98, row), ha="right", va="center", fontsize=8,
                              xycoords=("axes fraction", "data"), color=RED)  # fmt: skip
        against = {c.higher for c in evidence.study.claims if c.higher and c.lower in of_panel}
        if len(against) == 1 and points.get(other := str(against.pop())):
            axes.axvline(np.mean([*points[other].values()]), color="black", linestyle="--",
                         linewidth=1)  # fmt: skip
        axes.set_title(name, fontsize=10)
    all_axes[0].set_yticks(range(len(rows)), rows)
    all_axes[0].set_ylim(len(rows) - 0.5, -0.5)
    unit = evidence.measure.unit.replace("points", "%")
    lost = any(run.diverged for run in evidence.all_runs) and evidence.measure.is_error
    words = "; x: diverged, counts as guessing" if lost else ""
    drawn.supxlabel(f"{evidence.measure.words} ({unit or 'loss'}{words})", fontsize=10)
    unframed(*all_axes)
    return drawn


def cluster(config: Mapping[str, Any]) -> dict[str, Any]:
    """M and the law of times of a flat config, whatever the rule needs of them."""
    law = {
        key.removeprefix("schedule."): value
        for key, value in config.items()
        if key.startswith("schedule.") and key not in NOT_OF_A_CLUSTER
    }
    return {"workers": config["workers"], **law}


def title(setting: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> str:
    """M, and in what else a setting differs from the others."""
    laws = [{key: value for key, value in s.items() if key != "workers"} for s in settings]
    law = {key: value for key, value in setting.items() if key != "workers"}
    said = [word for word in differing(law, laws) if not word.endswith("=None")]
    return ", ".join([f"M = {setting['workers']}", *said])


def named_rules(evidence: Evidence, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The label of each cell's rule, with the keys in which rules of one label differ."""
    of_rule = {
        cell: {k.removeprefix("rule."): v for k, v in config.items() if k.startswith("rule.")}
        for cell, config in configs.items()
    }
    labels = {cell: evidence.look(cell).label for cell in configs}
    return {
        cell: ", ".join(
            [label, *differing(of_rule[cell], [of_rule[c] for c in configs if labels[c] == label])]
        )
        for cell, label in labels.items()
    }
