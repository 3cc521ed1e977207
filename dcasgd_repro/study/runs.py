"""From run directories to tables and figures. Reads text files only; imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.identity import FULL, plain
from dcasgd_repro.run.read import FINGERPRINT, KEPT, Run
from dcasgd_repro.schedule import PUSH, FromRun, Schedule, delay_table
from dcasgd_repro.schedule.from_run import APART, WIDEST, fit_table
from dcasgd_repro.schedule.live import EVENTS, LOG
from dcasgd_repro.study.figures import save, sheet, timeline, unframed
from dcasgd_repro.study.looks import PAPERS, label_of, looks, separated
from dcasgd_repro.study.measures import chance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULT = (  # key in summary.json, words, form, unit
    ("test_error_best", "test error, best over epochs, as in the paper's Table 1", "8.2%", ""),
    ("test_error_final", "test error, final", "8.2%", ""),
    ("test_error_last10", "test error, mean of the last ten after the last drop", "8.2%", ""),
    ("train_error_final", "train error, final", "8.2%", ""),
    ("test_loss_final", "test loss, final", "8.4g", ""),
    ("delay_mean", "delay, mean", "8.2f", " server updates"),
    ("delay_max", "delay, max", "8d", " server updates"),
    ("dc_ratio_mean", "dc_ratio, mean", "8.1e", ""),
    ("simulated_s", "simulated time", "8.1f", " s"),
    ("wall_s", "wall time, evaluations left out", "8.1f", " s"),
)
ERRORS = ("test_error_best", "test_error_final", "test_error_last10", "train_error_final")


def label(run: Run) -> str:
    """A run's rule and number of workers, as tables and legends have them."""
    name = label_of(run)
    workers, rounds = run.summary["workers"], run.summary.get("in_rounds")
    if run.kind == "ssgd" and rounds is False:
        name = "buffered ASGD"
    if run.kind != "ssgd" and rounds and workers > 1:
        name += " in rounds"
    data = ", synthetic data" if run.summary["task"] == "synthetic" else ""
    lower = "" if run.precision == FULL else f", {run.precision}"
    return f"{name}, M = {workers}{data}{lower}"


def evaluated_on(runs: Sequence[Run]) -> str:
    """The images that all these runs were evaluated on: "test" or "validation".

    Raises BadInput where they differ: such errors stand in no table or figure together.
    """
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.evaluated_on, run)
    if len(first) > 1:
        remedy = f"evaluated on validation images, but {first['test'].path} on test images; "
        raise BadInput("report", first["validation"].path, remedy + "report them separately")
    return next(iter(first), "test")


def one_run(path: Path) -> str:
    """A run's result table and the path of its curves, drawn if they are older than the run."""
    run = Run.read(path)
    lines = [f"\n{label(run)}: {run.summary['status']} after {run.summary['pushes']:,} pushes"]
    if run.summary["task"] == "synthetic":
        lines.append("  (generated images: nothing here is about CIFAR-10)")
    for key, words, form, unit in RESULT:
        if run.summary["task"] != "cifar10":
            words = words.removesuffix(", as in the paper's Table 1")
        if run.evaluated_on == "validation":
            words = words.replace("test ", "validation ").replace(", as in the paper's Table 1", "")
        if "events" in run.summary:  # it ran for real
            words = words.replace("simulated time", "time, by the server's clock")
        if run.summary[key] is not None:
            lines.append(f"  {words:52} {run.summary[key]:{form}}{unit}")
    for event, count in run.summary.get("events", {}).items():
        lines.append(f"  {event:52} {count:8}")
    if lost := run.summary.get("pushes_lost"):
        lines.append(f"  {'gradients received and lost':52} {lost:8}")
    lines.append(f"  weights sha256 {run.summary['weights_sha256']}")
    if "diverged_at_push" in run.summary:
        lines.insert(
            1, f"  the first loss that was not finite: push {run.summary['diverged_at_push']:,}"
        )
    if run.metrics["test_loss"].notna().any():
        picture = path / "curves.png"
        try:
            drawn_s = picture.stat().st_mtime if picture.exists() else 0.0
            if drawn_s < (path / "summary.json").stat().st_mtime:  # a finished run is left alone
                draw({label(run): [run]}, run.setting).savefig(picture, dpi=120)
            lines.append(f"  curves in {picture}; or: tensorboard --logdir {path}")
        except OSError as error:
            lines.append(f"  curves.png could not be written ({error.strerror})")
    return "\n".join(lines)


def comparison(places: Sequence[Path], out: Path | None) -> str:
    """The table of all runs below ``places``, one row per configuration, over its seeds.

    With ``out``, writes there table.csv, table.md, curves.png, curves.svg and, under runs/, each
    run's text files.
    """
    found = sorted({file.parent for place in places for file in place.rglob("summary.json")})
    if not found:
        raise BadInput("report", " ".join(map(str, places)), "no run with a summary.json below it")
    runs = [Run.read(path) for path in found]
    on, groups = evaluated_on(runs), grouped(runs)
    table = pd.DataFrame([tabulate(label, runs) for label, runs in groups.items()])
    text = markdown(table, on)
    lost = {file.parent for place in places for file in place.rglob("provenance.json")} - set(found)
    if lost:
        text += f"\n\nNot counted, stopped without a summary: {', '.join(map(str, sorted(lost)))}"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table = columns_of(on, table)
        table.to_csv(out / "table.csv", index=False, float_format="%.6g", lineterminator="\n")
        (out / "table.md").write_text(text + "\n")
        settings = sorted({run.setting for runs in groups.values() for run in runs})
        save(draw(groups, "; ".join(settings)), out / "curves")
        for runs in groups.values():
            for run in runs:
                keep(run.path, out / "runs" / name_of(run, groups))
    return text


def name_of(run: Run, groups: Mapping[str, Sequence[Run]]) -> str:
    """A directory name that no other run of the report has."""
    name = str(run.summary["exp"] or run.summary["rule"])
    rivals = [g for g in groups.values() if name == (g[0].summary["exp"] or g[0].summary["rule"])]
    mark = hashlib.sha256(json.dumps(run.config, sort_keys=True).encode()).hexdigest()[:8]
    return name + (f"-{mark}" if len(rivals) > 1 else "") + f"-seed{run.summary['seed']}"


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of one configuration together, under a label that says in what it differs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {key: plain(value) for key, value in run.config.items()}
        group = groups.setdefault(json.dumps(config, sort_keys=True), [])
        twins = [twin for twin in group if twin.summary["seed"] == run.summary["seed"]]
        if not twins:
            group.append(run)
        elif twins[0].summary["weights_sha256"] != run.summary["weights_sha256"]:
            remedy = f"has the configuration and seed of {twins[0].path}, but other weights"
            raise BadInput("run", run.path, f"{remedy}; leave one of them out")
    order = [*PAPERS, *sorted({run.kind for run in runs} - set(PAPERS))]
    by_rank = sorted(groups, key=lambda k: (order.index(groups[k][0].kind), label(groups[k][0]), k))
    ranked = [groups[key] for key in by_rank]
    named: dict[str, list[Run]] = {}
    for group in ranked:
        others = [g[0].config for g in ranked if label(g[0]) == label(group[0])]
        named[", ".join([label(group[0]), *differing(group[0].config, others)])] = group
    return named


def differing(config: Mapping[str, Any], twins: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what a flat config differs from others of its name, as KEY=VALUE; itself among them."""
    keys = {key for twin in twins for key in twin}
    return [
        f"{key}={config.get(key)}"
        for key in sorted(keys)
        if len({str(plain(twin.get(key))) for twin in twins}) > 1
    ]


def escaped(text: str) -> str:
    """A kept run's own words for a Markdown page, with no cell, tag or line of their own."""
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())


def has_errors(runs: Sequence[Run]) -> bool:
    """False where finished runs have losses alone, as on a task without classes."""
    tables = [run.metrics for run in runs if run.finished]
    lossy = [t["test_error"].isna().all() and t["test_loss"].notna().any() for t in tables]
    return not lossy or not all(lossy)


def tabulate(label: str, runs: Sequence[Run]) -> dict[str, Any]:
    """One row: mean and standard deviation (n - 1) over finished runs, and how many are not.

    Where some diverged, the mean over the others flatters: ``..._ranked`` is the mean in which they
    have the error of guessing. ``dc_ratio`` is a median over runs: one that is about to diverge has
    any size.
    """
    done = [run for run in runs if run.finished]
    with_errors = has_errors(runs)
    lost = [chance(run) if with_errors else np.nan for run in runs if run.diverged]
    line: dict[str, Any] = {"rule": label, "n": len(done), "diverged": len(lost)}
    line["not_finished"] = len(runs) - len(done) - len(lost)
    errors = [run.errors for run in done]
    for key in ERRORS:
        values = [100 * found[key] for found in errors if key in found]
        line[f"{key}_pct_mean"] = np.mean(values) if values else np.nan
        line[f"{key}_pct_std"] = np.std(values, ddof=1) if len(values) > 1 else np.nan
        line[f"{key}_pct_ranked"] = np.mean(values + lost) if lost else np.nan
    if not with_errors:
        losses = [run.metrics["test_loss"].dropna().iloc[-1] for run in done]
        line["test_loss_final_mean"] = np.mean(losses)
        line["test_loss_final_std"] = np.std(losses, ddof=1) if len(losses) > 1 else np.nan
    delays = [run.delay for run in done if np.isfinite(run.delay)]
    line["delay_mean"] = np.mean(delays) if delays else np.nan
    ratios = [run.dc_ratio for run in done if np.isfinite(run.dc_ratio)]
    line["dc_ratio"] = np.median(ratios) if ratios else np.nan
    for key in ("simulated_s", "wall_s"):
        tables = [run.metrics for run in done if key in run.metrics and len(run.metrics)]
        line[key] = np.mean([table[key].iloc[-1] for table in tables]) if tables else np.nan
    return line


def columns_of(on: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns that say whose errors they are."""
    return table.rename(columns=lambda name: re.sub(r"^test_error", f"{on}_error", name))


def percent(row: Mapping[Hashable, Any], key: str) -> str:
    """A row's error in percent, mean ± standard deviation, and what diverged beside it."""
    mean, std, ranked = (row[f"{key}_pct_{part}"] for part in ("mean", "std", "ranked"))
    text = "-" if np.isnan(mean) else f"{mean:.2f}"
    text += "" if np.isnan(std) else f" ± {std:.2f}"
    return text if np.isnan(ranked) else f"{text} ({ranked:.2f} with {row['diverged']} diverged)"


def loss(row: Mapping[Hashable, Any]) -> str:
    """A row's final loss, mean ± standard deviation; "-" where it has errors instead."""
    mean, std = row.get("test_loss_final_mean", np.nan), row.get("test_loss_final_std", np.nan)
    text = "-" if np.isnan(mean) else f"{mean:.4g}"
    return text if np.isnan(std) else f"{text} ± {std:.2g}"


def markdown(table: pd.DataFrame, on: str = "test") -> str:
    """The comparison as a Markdown table, errors in percent as mean ± standard deviation.

    Runs of a task without classes have their loss in place of errors.
    """
    losses = "test_loss_final_mean" in table
    errors = ERRORS if not losses or table[f"{ERRORS[0]}_pct_mean"].notna().any() else ()
    heads = [*(f"{on} error, {which} %" for which in ("best", "final", "last-10"))]
    head = ["rule", "n", *[*heads, "train error, final %"][: len(errors)]]
    head += [f"{on} loss, final"] if losses else []
    head += ["mean delay", "dc_ratio", "simulated s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in table.to_dict("records"):
        others = [
            f"+{row[k]} {k.replace('_', ' ')}" for k in ("diverged", "not_finished") if row[k]
        ]
        cells = [
            escaped(str(row["rule"])),
            f"{row['n']}" + (f" ({', '.join(others)})" if others else ""),
        ]
        cells += [percent(row, key) for key in errors]
        cells += [loss(row)] if losses else []
        for key, form in (("delay_mean", ".2f"), ("dc_ratio", ".1e"), ("simulated_s", ".0f")):
            cells.append("-" if np.isnan(row[key]) else f"{row[key]:{form}}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(groups: Mapping[str, Sequence[Run]], title: str) -> Figure:
    """Error against epochs and simulated time: mean over finished runs, range shaded.

    A single run is drawn whatever its status; a task without classes shows its loss.
    """
    figure = sheet(9.5, 4.2)
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    on = evaluated_on([run for runs in groups.values() for run in runs])
    of_rule = looks([runs[0] for runs in groups.values()])
    line_looks = separated({label: of_rule[runs[0].kind] for label, runs in groups.items()})
    for label, runs in groups.items():
        drawn = [run for run in runs if run.finished] or (list(runs) if len(groups) == 1 else [])
        if not drawn:
            continue
        _, colour, dashes, _ = line_looks[label]
        rows = [run.metrics.dropna(subset=["test_loss"]) for run in drawn]
        has_error = bool(rows[0]["test_error"].notna().any())
        n = min(len(frame) for frame in rows)
        column, scale = ("test_error", 100) if has_error else ("test_loss", 1)
        values = np.stack([scale * frame[column].to_numpy()[:n] for frame in rows])
        for axes, x in ((by_epoch, "epoch"), (by_time, "simulated_s")):
            at = np.mean([frame[x].to_numpy()[:n] for frame in rows], axis=0)
            style = {"linestyle": dashes, "marker": "o" if n == 1 else None}
            axes.plot(at, values.mean(0), color=colour, label=label, linewidth=1.8, **style)
            if len(values) > 1:
                low, high = values.min(0), values.max(0)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        by_epoch.set_ylabel(f"{on} error (%)" if has_error else f"{on} loss")
    by_epoch.set_xlabel("epochs of effective passes")
    by_time.set_xlabel("simulated seconds")
    by_epoch.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    unframed(by_epoch, by_time)
    return figure


def schedule(
    log: Schedule, out: Path, answers: Sequence[str] = (), like: FromRun | None = None
) -> str:
    """Saves a schedule, its delay table and a figure below ``out``; returns what to print.

    The figure: a histogram of the delays, and a Gantt chart of the first rounds. ``answers``: what
    becomes of each gradient under a rule, where that has a part in the schedule. ``like``: the
    workers, where they are fitted to a run; the fit is saved, printed and drawn.
    """
    table, delays = delay_table(log), log.delays()
    out.mkdir(parents=True, exist_ok=True)
    log.save(out / "schedule.csv.gz")
    table.to_csv(out / "delays.csv", index=False, lineterminator="\n")
    figure = sheet(17.5 if like else 12.5, 4.2)
    widths = [1, 1, 1.6] if like else [1, 1.6]
    *left, shares, rounds = figure.subplots(1, len(widths), width_ratios=widths)
    fitted = fit(like, left[0], out) if like else []
    timeline.histogram(shares, log)
    timeline.gantt(rounds, log, [answer == "applied" for answer in answers] or None)
    spread = f"mean {delays.mean():.2f}, sd {delays.std():.2f}, max {delays.max()}"
    figure.suptitle(f"{log.workers} workers, {log.pushes:,} pushes: delay {spread}", fontsize=10)
    unframed(*left, shares)
    figure.savefig(out / "delays.png", dpi=120)
    return "\n".join(
        (
            *fitted,
            "delays, in pushes",
            table.to_string(index=False, float_format=lambda x: f"{x:.2f}"),
            *([work(log, answers)] if answers else []),
            f"pushes             {log.pushes:,}",
            f"simulated duration {log.duration_s:,.1f} s",
            f"sha256             {log.sha256()}",
            f"log                {out / 'schedule.csv.gz'}",
            f"figure             {out / 'delays.png'}",
        )
    )


def fit(like: FromRun, axes: Axes, out: Path) -> list[str]:
    """What was fitted to a run, to print. Drawn: its delays, and those of its workers fitted."""
    table, run = fit_table(like), like.recorded()
    table.to_csv(out / "fit.csv", index=False, lineterminator="\n")
    barrier = run.in_rounds and run.workers > 1
    anew = replace(like, workers=run.workers, barrier=barrier).messages(run.pushes)
    timeline.overlaid(axes, run, anew)
    axes.set_title(f"the {run.workers} workers of the run", fontsize=9)
    said = [
        f"{name} {tau.mean():.2f} ± {tau.std():.2f}, at most {tau.max()}"
        for name, tau in (("recorded", run.delays()), ("fitted", anew.delays()))
    ]
    notes = []
    for column, what in (("apart", "from pull to push"), ("apart_away", "from push to pull")):
        if len(odd := table["worker"][table[column] > APART]):
            of = f"worker(s) {', '.join(map(str, odd))}: the time {what}"
            notes.append(f"note: {of} is none of these laws; look at the figure")
    if cut := [m for m, (law, _) in enumerate(like.laws) if law.rest.cv > 0.999 * WIDEST]:
        of = f"worker(s) {', '.join(map(str, cut))}: the times vary more than any law here"
        notes.append(f"note: {of}; their cv is cut to 5")
    rates = [log.pushes / log.duration_s for log in (run, anew)]
    pace = f"pushes per second: recorded {rates[0]:.4g}, fitted {rates[1]:.4g}"
    if table["lost"].any():
        pace += "; gradients were lost, and the time that workers were down is not modelled"
    return [
        "seconds from pull to push in the run, and the law fitted to them (p99, fitted: of mean_s)",
        table.to_string(index=False, float_format=lambda x: f"{x:.4g}"),
        *notes,
        f"delays of its {run.workers} workers: {'; '.join(said)}; "
        f"{timeline.in_common(run, anew):.0%} of the two histograms is common",
        pace,
        "",
    ]


def work(log: Schedule, answers: Sequence[str]) -> str:
    """What became of each worker's gradients, and of its time, as a table to print."""
    sender = log.worker[log.kind == PUSH]
    became = pd.crosstab(sender, np.array(answers))
    table = became.reindex(range(log.workers), columns=["applied", "kept", "ignored"], fill_value=0)
    table["stopped"] = [_of_worker(log, m).stopped for m in range(log.workers)]
    shares = timeline.shares_of_each(log)
    table["time lost"] = [share[timeline.STOPPED] for share in shares]
    table["idle"] = [share[timeline.WAITS] for share in shares]
    text = table.rename_axis(index="worker", columns=None).reset_index()
    return "what became of gradients; time lost by being stopped, and idle\n" + text.to_string(
        index=False, float_format=lambda x: f"{x:.0%}"
    )


def _of_worker(log: Schedule, m: int) -> Schedule:
    mine = log.worker == m
    return Schedule(log.clock[mine], log.kind[mine], np.zeros(mine.sum(), np.int32), 1)


def keep(run: Path, target: Path) -> None:
    """Copies a run's text files, without TensorBoard events.

    Its schedule only where a cluster made it: any other can be made again.
    """
    target.mkdir(parents=True, exist_ok=True)
    made = (LOG, EVENTS) if (run / EVENTS).exists() else ()
    others = [name for name in ("probe.csv", FINGERPRINT, *made) if (run / name).exists()]
    for name in (*KEPT, *others):
        if (run / name).resolve() != (target / name).resolve():
            shutil.copyfile(run / name, target / name)
