"""From run directories to tables and figures. Reads text files only; imports no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dcasgd_repro.errors import BadInput
from dcasgd_repro.schedule import Schedule, delay_table

# Okabe and Ito's colours, told apart by the colour-blind; each rule keeps its own everywhere.
STYLE = {
    "sgd": ("SGD", "#000000", "-"),
    "asgd": ("ASGD", "#D55E00", "--"),
    "ssgd": ("SSGD", "#E69F00", "-."),
    "dcasgd_c": ("DC-ASGD-c", "#009E73", ":"),
    "dcasgd_a": ("DC-ASGD-a", "#0072B2", "-"),
}
ERRORS = ("test_error_best", "test_error_final", "test_error_last10", "train_error_final")
KEPT = ("config.yaml", "provenance.json", "metrics.csv", "summary.json")


def summary_of(run: Path) -> dict[str, Any]:
    """A run's summary.json."""
    try:
        content = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput("run", run, f"no readable summary.json there ({error})") from None
    if not isinstance(content, dict) or "status" not in content:
        raise BadInput("run", run, "its summary.json is not one of ours")
    return content


def one_run(run: Path) -> str:
    """A finished run's result table, and the path of its curves, which are drawn here."""
    summary = summary_of(run)
    lines = [f"\n{label_of(summary)}, {summary['status']} after {summary['pushes']:,} pushes"]
    if summary["task"] == "synthetic":
        lines.append("  on synthetic data: says nothing about CIFAR-10")
    for key, name in (
        ("test_error_best", "test error, best over epochs (the paper's Table 1)"),
        ("test_error_final", "test error, final"),
        ("test_error_last10", "test error, mean of the last ten evaluations"),
        ("train_error_final", "train error, final"),
    ):
        if summary[key] is not None:
            lines.append(f"  {name:52} {100 * summary[key]:8.2f} %")
    if summary["test_error_final"] is None and summary["test_loss_final"] is not None:
        lines.append(f"  {'loss, final':52} {summary['test_loss_final']:10.4g}")
    if summary["delay_mean"] is not None:
        delays = f"{summary['delay_mean']:.2f} / {summary['delay_max']}"
        lines += [
            f"  {'delay, mean / max (server updates)':52} {delays:>10}",
            f"  {'dc_ratio, mean':52} {summary['dc_ratio_mean']:10.2e}",
            f"  {'simulated time':52} {summary['simulated_s']:8.1f} s",
            f"  {'wall time, evaluations left out':52} {summary['wall_s']:8.1f} s",
        ]
    lines.append(f"  weights sha256 {summary['weights_sha256']}")
    metrics = pd.read_csv(run / "metrics.csv")
    if len(metrics):
        figure = draw({label_of(summary): (style_of(summary), [metrics])}, note_of(summary))
        figure.savefig(run / "curves.png", dpi=120)
        lines.append(f"  curves {run / 'curves.png'}; tensorboard --logdir {run / 'tensorboard'}")
    return "\n".join(lines)


def comparison(places: Sequence[Path], out: Path | None) -> str:
    """The table of all finished runs below ``places``, one row per configuration, over its seeds.

    With ``out``, writes there table.csv, table.md, curves.png, curves.svg and, under runs/, each
    run's text files.
    """
    runs = sorted({file.parent for place in places for file in place.rglob("summary.json")})
    if not runs:
        raise BadInput("report", " ".join(map(str, places)), "no run with a summary.json below it")
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for run in runs:
        summary = summary_of(run)
        groups.setdefault(label_of(summary), []).append((run, summary))
    order = {name: rank for rank, name in enumerate(STYLE)}
    ranked = sorted(groups.items(), key=lambda item: (order.get(kind_of(item[1][0][1]), 9), item))
    rows = [tabulate(label, [summary for _, summary in members]) for label, members in ranked]
    table = pd.DataFrame(rows)
    text = markdown(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "table.csv", index=False, float_format="%.6g", lineterminator="\n")
        (out / "table.md").write_text(text + "\n")
        curves = {
            label: (
                style_of(members[0][1]),
                [pd.read_csv(run / "metrics.csv") for run, s in members if finished(s)],
            )
            for label, members in ranked
        }
        figure = draw(curves, note_of(ranked[0][1][0][1]))
        figure.savefig(out / "curves.png", dpi=150)
        figure.savefig(out / "curves.svg", metadata={"Date": None})
        for label, members in ranked:
            for run, summary in members:
                name = f"{summary['exp'] or label.replace(' ', '_')}-seed{summary['seed']}"
                keep(run, out / "runs" / name)
    return text


def tabulate(label: str, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row: mean and standard deviation (n - 1) over the finished runs, and how many failed."""
    done = [s for s in summaries if finished(s)]
    line: dict[str, Any] = {
        "rule": label,
        "n": len(done),
        "not_finished": len(summaries) - len(done),
    }
    for key in ERRORS:
        values = [100 * s[key] for s in done if s[key] is not None]
        line[f"{key}_pct_mean"] = np.mean(values) if values else None
        line[f"{key}_pct_std"] = np.std(values, ddof=1) if len(values) > 1 else None
    for key in ("delay_mean", "dc_ratio_mean", "simulated_s", "wall_s"):
        values = [s[key] for s in done]
        line[key] = np.mean(values) if values else None
    return line


def markdown(table: pd.DataFrame) -> str:
    """The comparison as a Markdown table, errors in percent as mean ± standard deviation."""
    head = ["rule", "n", "test error, best %", "test error, final %", "test error, last-10 %"]
    head += ["train error, final %", "mean delay", "dc_ratio", "simulated s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in table.to_dict("records"):
        lost = f" (+{row['not_finished']} not finished)" if row["not_finished"] else ""
        cells = [row["rule"], f"{row['n']}{lost}"]
        for key in ERRORS:
            mean, std = row[f"{key}_pct_mean"], row[f"{key}_pct_std"]
            spread = f" ± {std:.2f}" if std is not None and not pd.isna(std) else ""
            cells.append("-" if mean is None or pd.isna(mean) else f"{mean:.2f}{spread}")
        for key, form in (("delay_mean", ".2f"), ("dc_ratio_mean", ".1e"), ("simulated_s", ".0f")):
            cells.append("-" if row[key] is None or pd.isna(row[key]) else f"{row[key]:{form}}")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def draw(
    curves: Mapping[str, tuple[tuple[str, str, str], Sequence[pd.DataFrame]]], note: str
) -> Figure:
    """Test error against epochs and against simulated time: mean over seeds, their range shaded."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    for label, ((_, colour, dashes), frames) in curves.items():
        errors = [frame.dropna(subset=["test_loss"]) for frame in frames]
        if not errors:
            continue
        column = "test_error" if errors[0]["test_error"].notna().any() else "test_loss"
        scale = 100 if column == "test_error" else 1
        shortest = min(len(frame) for frame in errors)
        values = scale * np.stack([frame[column].to_numpy()[:shortest] for frame in errors])
        for axes, x in ((by_epoch, "epoch"), (by_time, "simulated_s")):
            at = np.mean([frame[x].to_numpy()[:shortest] for frame in errors], axis=0)
            axes.plot(at, values.mean(0), dashes, color=colour, label=label, linewidth=1.8)
            if len(values) > 1:
                axes.fill_between(
                    at, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
                )
        by_epoch.set_ylabel("test error (%)" if scale == 100 else "loss")
    by_epoch.set_xlabel("epochs of effective passes")
    by_time.set_xlabel("simulated seconds")
    by_epoch.legend(frameon=False)
    figure.suptitle(note, fontsize=10)
    for axes in (by_epoch, by_time):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def schedule(log: Schedule, workers: int, out: Path) -> str:
    """Saves a schedule, its delay table and histogram below ``out``; returns what to print."""
    table, delays = delay_table(log), log.delays()
    folder = out
    folder.mkdir(parents=True, exist_ok=True)
    log.save(folder / "schedule.csv.gz")
    table.to_csv(folder / "delays.csv")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    counts = np.bincount(delays) / len(delays)
    axes.bar(np.arange(len(counts)), counts, width=0.9, color="#0072B2")
    axes.axvline(delays.mean(), color="black", linestyle="--", linewidth=1)
    spread = f"mean {delays.mean():.2f} (dashed), sd {delays.std():.2f}, max {delays.max()}"
    title = f"{workers} workers, {log.pushes:,} pushes: {spread}"
    axes.set(xlabel="delay (pushes)", ylabel="share of pushes")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "delays.png", dpi=120)
    return "\n".join(
        (
            table.to_string(float_format=lambda x: f"{x:.2f}"),
            f"pushes             {log.pushes:,}",
            f"simulated duration {log.duration_s:,.1f} s",
            f"sha256             {log.sha256()}",
            f"log                {folder / 'schedule.csv.gz'}",
            f"histogram          {folder / 'delays.png'}",
        )
    )


def kind_of(summary: Mapping[str, Any]) -> str:
    """The rule's name, and sgd for ASGD with one worker, which is what it is."""
    return "sgd" if summary["rule"] == "asgd" and summary["workers"] == 1 else summary["rule"]


def style_of(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    return STYLE.get(kind_of(summary), (summary["rule"], "#CC79A7", "-"))


def label_of(summary: Mapping[str, Any]) -> str:
    return f"{style_of(summary)[0]}, M = {summary['workers']}"


def note_of(summary: Mapping[str, Any]) -> str:
    scale = f", scale={summary['scale']}" if summary["scale"] else ""
    return f"{summary['task']}{scale}"


def finished(summary: Mapping[str, Any]) -> bool:
    return bool(summary["status"] == "finished")


def keep(run: Path, target: Path) -> None:
    """Copies a run's text files, without the evidence's bulk."""
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, target / name)
