"""What happened in a run: its delays, the sizes of what the server met, its probes. No torch.

Reads the text files of a run directory, in figures and in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dcasgd_repro.run.read import DIVERGED, Run
from dcasgd_repro.schedule import PUSH, Schedule
from dcasgd_repro.study.figures import probes, sheet, timeline, unframed
from dcasgd_repro.study.probed import NAMES, checked, words
from dcasgd_repro.study.runs import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = {  # columns of metrics.csv that share an axis
    "w_norm": ("‖w‖", "#000000"),
    "gap_norm": ("gap: ‖w_t − w_bak(m)‖", "#D55E00"),
    "grad_norm": ("‖g‖", "#0072B2"),
}


def diagnose(paths: Sequence[Path], out: Path) -> str:
    """Draws a figure for each run below ``out``; returns a paragraph for each. Raises BadInput."""
    runs = [Run.read(path) for path in paths]
    out.mkdir(parents=True, exist_ok=True)
    texts = []
    for k, run in enumerate(runs):
        name = run.path.resolve().name
        alike = [other.path.resolve().name for other in runs[:k]].count(name)
        picture = out / f"{name}{f'-{alike + 1}' if alike else ''}.png"
        draw(run).savefig(picture, dpi=120)
        texts.append(f"{run.path}\n{paragraph(run)}\nfigure in {picture}")
    return "\n\n".join(texts)


def draw(run: Run) -> Figure:
    """Delays and the first rounds; sizes; corrections; the probes: what of these the run has."""
    log, probed, sizes, ratios = run.log, _probes(run), _sizes_of(run), _above_0(run, "dc_ratio")
    single = [part for part in (sizes, ratios) if len(part)]
    rows = (log is not None) + bool(single) + (probed is not None)
    figure = sheet(13.5, 1 + 4.0 * max(1, rows))
    figure.suptitle(f"{label(run)}, seed {run.summary['seed']}: {run.summary['status']}")
    if not rows:
        figure.text(0.5, 0.5, "neither its log nor its rows were kept", ha="center")
        return figure
    parts = figure.subfigures(rows, 1, squeeze=False).flat
    if log is not None:
        shares, workers, rounds = next(parts).subplots(1, 3, width_ratios=[1, 1, 1.9])
        timeline.histogram(shares, log)
        timeline.by_worker(workers, log)
        timeline.gantt(rounds, log, applied(run, log))
        unframed(shares)
    if single:
        panels = iter(next(parts).subplots(1, len(single), squeeze=False).flat)
        if sizes:
            draw_sizes(next(panels), sizes)
        if len(ratios):
            draw_ratios(next(panels), ratios)
    if probed is not None:
        draw_probes(next(parts).subplots(1, 2), run, probed)
    return figure


def _above_0(run: Run, column: str) -> pd.Series[float]:
    """A column of metrics.csv by push, where it is a finite number above 0."""
    rows = run.metrics.set_index("push")
    values: pd.Series[float] = rows[column] if column in rows else pd.Series(dtype=float)
    return values[np.isfinite(values) & (values > 0)]


def _sizes_of(run: Run) -> dict[str, pd.Series[float]]:
    """The columns of SIZES that the run has."""
    found = {column: _above_0(run, column) for column in SIZES}
    return {column: values for column, values in found.items() if len(values)}


def draw_sizes(axes: Axes, sizes: Mapping[str, pd.Series[float]]) -> None:
    """Norms of the weights, the drift and the gradient against pushes."""
    for column, values in sizes.items():
        name, colour = SIZES[column]
        axes.plot(values.index, values, ".-", color=colour, linewidth=1.4, label=name)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="pushes", ylabel="norm")
    unframed(axes)


def draw_ratios(axes: Axes, ratios: pd.Series[float]) -> None:
    """How large the correction was, ‖correction‖ / ‖g‖, against pushes."""
    axes.plot(ratios.index, ratios, ".-", color="#0072B2", linewidth=1.4)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set(xlabel="pushes", ylabel="dc_ratio, ‖correction‖ / ‖g‖ (dashed: 1)")
    unframed(axes)


def draw_probes(panels: Sequence[Axes], run: Run, table: pd.DataFrame) -> None:
    """Cosines with the gradient at w_t, and the part of the staleness error that is removed."""
    cosines, removed = panels
    probes.running(cosines, table, "cos", "black", "g as it arrived")
    for name in NAMES:
        text = words(name, int(run.config["batch"]))
        probes.running(cosines, table, f"cos_{name}", probes.COLOURS[name], f"g + {text}", False)
        probes.running(removed, table, f"removed_{name}", probes.COLOURS[name], text)
    removed.set_yscale("symlog", linthresh=1e-3)
    removed.axhline(0, color="black", linewidth=0.8)
    cosines.set_ylabel("cosine with the gradient at w_t")
    removed.set_ylabel("part of the squared staleness error removed")
    for axes in panels:
        axes.set_xlabel(f"pushes (running median over {probes.WINDOW}, quartiles shaded)")
    cosines.legend(frameon=False, fontsize=8)
    unframed(*panels)


def _probes(run: Run) -> pd.DataFrame | None:
    """The probes of gradients that were stale; None without any."""
    if run.probes is None:
        return None
    table = checked(run, run.probes).dropna(subset=["cos"])
    return table if len(table) else None


def applied(run: Run, log: Schedule) -> list[bool] | None:
    """Whether the server's weights moved at each push; None where its rows do not show it.

    They show it where every push moved them, or every k-th.
    """
    rows = run.metrics[["push", "update"]] if "update" in run.metrics else pd.DataFrame()
    if rows.empty or rows["update"].iloc[-1] < 1:
        return None
    k = round(rows["push"].iloc[-1] / rows["update"].iloc[-1])
    if not (rows["update"] == rows["push"] // k).all():
        return None
    return [push % k == 0 for push in range(1, log.pushes + 1)]


def paragraph(run: Run) -> str:
    """What happened, in sentences."""
    parts = [
        _end(run),
        *_split(run),
        *_delays(run),
        *_updates(run),
        *_sizes(run),
        *_correction(run),
    ]
    return " ".join([*parts, *_taylor(run)])


def _end(run: Run) -> str:
    pushes, epochs = run.summary["pushes"], run.metrics["epoch"].max()
    text = f"{label(run)}: {run.summary['status']} after {pushes:,} pushes"
    text += f" ({epochs:.3g} epochs)" if math.isfinite(epochs) else ""
    if run.summary["status"] == DIVERGED and "diverged_at_push" in run.summary:
        text += f", the first loss that was not finite at push {run.summary['diverged_at_push']:,}"
    if run.errors:
        error = run.errors["test_error_final"]
        return f"{text}; {run.evaluated_on} error {error:.2%} at the end."
    losses = run.metrics["test_loss"].dropna()
    shown = f"; {run.evaluated_on} loss {losses.iloc[-1]:.4g} at the end" if len(losses) else ""
    return f"{text}{shown}."


def _split(run: Run) -> list[str]:
    """Whether the workers had data of their own."""
    split = run.config.get("task.split")
    if split is None or run.summary["workers"] == 1:
        return []
    key = "alpha" if split == "dirichlet" else "classes_per_worker"
    how = f"{split}, {key} = {run.config.get(f'task.{key}')}"
    return [f"Each worker drew from a part of the training images of its own ({how})."]


def _delays(run: Run) -> list[str]:
    log = run.log
    if log is None:
        mean = run.summary.get("delay_mean")
        known = "" if mean is None else f" The delay was {mean:.1f} on average."
        return [f"Its message log was not kept.{known}"]
    delays = log.delays()
    low, high = np.percentile(delays, [5, 95])
    text = f"The delay was {delays.mean():.1f} pushes on average, {low:.0f} to {high:.0f} for "
    text += f"nine in ten, {delays.max()} at most."
    in_updates = run.summary.get("delay_mean")
    if in_updates is not None and abs(in_updates - delays.mean()) > 0.05:
        text += f" Counted in updates of the server it was {in_updates:.1f}."
    return [text, *_work(log)]


def _work(log: Schedule) -> list[str]:
    """How many gradients workers sent, and how much of the time they waited."""
    if log.workers == 1:
        return []
    counts = np.bincount(log.worker[log.kind == PUSH], minlength=log.workers)
    few, many = int(counts.argmin()), int(counts.argmax())
    text = f"Each worker sent {counts[few]:,} gradients"
    if counts[few] < counts[many]:
        text = f"Workers sent {counts[few]:,} (worker {few}) to {counts[many]:,} (worker {many}) "
        text += "gradients"
    of = timeline.shares(log[: 200 * log.workers])
    idle, lost = of[timeline.WAITS], of[timeline.STOPPED]
    waited = f"waited {idle:.0%} of the time" if idle else "never waited"
    if not log.stopped:
        return [f"{text} and {waited}."]
    stops = f"They were stopped, or failed, {log.stopped:,} times, and so lost {lost:.0%} of it."
    return [f"{text} and {waited}.", stops]


def _updates(run: Run) -> list[str]:
    updates, pushes = run.summary.get("updates"), run.summary["pushes"]
    if not updates or updates == pushes:
        return ["Every push moved the weights."] if updates else []
    return [f"{updates:,} of {pushes:,} pushes moved the weights; the rule gathered or ignored the "
            "others."]  # fmt: skip


def _sizes(run: Run) -> list[str]:
    rows = run.metrics
    if not {"gap_norm", "grad_norm", "w_norm"} <= set(rows.columns):
        return []
    gap, g, w = (rows[k][np.isfinite(rows[k])] for k in ("gap_norm", "grad_norm", "w_norm"))
    if not (len(gap) and len(g) and len(w)):
        return []
    part = float((gap / w.where(w > 0)).median())
    text = f"At a push w_t lay {gap.median():.3g} from the worker's backup, {_part_of(part)} "
    text += f"‖w‖ (medians). ‖g‖ went from {g.iloc[0]:.3g} to {g.iloc[-1]:.3g}, "
    return [f"{text}‖w‖ from {w.iloc[0]:.3g} to {w.iloc[-1]:.3g}."]


def _correction(run: Run) -> list[str]:
    rows = run.metrics["dc_ratio"] if "dc_ratio" in run.metrics else pd.Series(dtype=float)
    if rows.dropna().empty:
        return []
    ratio = run.dc_ratio if math.isfinite(run.dc_ratio) else float(rows.median())
    if not ratio:
        return ["The rule corrected nothing."]
    return [f"The correction was {_part_of(ratio)} ‖g‖ (the median of dc_ratio)."]


def _taylor(run: Run) -> list[str]:
    table = _probes(run)
    if table is None:
        return []
    degrees = math.degrees(math.acos(float(np.clip(table["cos"].median(), -1, 1))))
    text = f"Workers' gradients pointed {degrees:.0f} degrees away from fresh ones, by the median "
    text += f"of {len(table):,} probes."
    name = "c" if run.kind == "dcasgd_c" else f"a_{run.config.get('rule.lam0', 2):g}"
    name = name if name in NAMES else "a_2"  # the paper's own, whatever rule ran
    adds = words(name, int(run.config["batch"]))
    removed = float(table[f"removed_{name}"].median())
    if removed < 0:
        return [f"{text} A correction of {adds} would take them {_part_of(-removed)} the squared "
                "distance further away."]  # fmt: skip
    return [f"{text} A correction of {adds} would remove {_part_of(removed)} the squared distance."]


def _part_of(part: float) -> str:
    """A part, as "3.2 % of", or "4.1 times"."""
    return f"{100 * part:.2g} % of" if part < 1 else f"{part:.2g} times"
