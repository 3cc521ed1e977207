"""A study's kept runs beside the paper's numbers: verdicts, tables and pages, from results/ alone.

Reads and writes text and figures below results/, imports no torch, and changes no byte when it is
done twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from dcasgd_repro import figures, pages
from dcasgd_repro.errors import BadInput
from dcasgd_repro.report import Run, tabulate
from dcasgd_repro.study import FOLDER, Claim, Study, names, study

ELSEWHERE = "at scale=paper only"
ENOUGH = 3  # seeds, before a verdict is given
UNITS = {"last10": "points", "before_drop": "points", "simulated_s": "s"}
ERRORS = {"best": "test_error_best", "final": "test_error_final", "last10": "test_error_last10"}
SCALES = {
    "paper": "The paper's own scale: ResNet-20, 50,000 images, 160 epochs.",
    "laptop": "`scale=laptop` (ResNet-8 of width 8, 12,800 images, batch 32, 16 epochs at the "
    "paper's learning rate): it compares the rules with each other under one small, hard-driven "
    "setting. It says whether the machinery works and in which direction an effect goes here. It "
    "says nothing about the paper's numbers, which need `scale=paper`: the network, the epochs "
    "and the noise are others, and so is the size of a gradient and with it of the correction.",
    "smoke": "`scale=smoke` shows that everything runs, and nothing else.",
}

# Student's t, 97.5 %, for 1 to 30 degrees of freedom.
T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean and its 95 % interval over n seeds."""

    mean: float
    half: float  # half the interval's width; infinite for one seed
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        if not self.n:
            return "-"
        width = f" ± {self.half:.2f}" if math.isfinite(self.half) else ""
        return f"{self.mean:+.2f}{width}"


def difference(of: Mapping[int, float], minus: Mapping[int, float]) -> Difference:
    """``of - minus`` at equal seeds: ``D ± t(n-1) sigma / sqrt(n)``, sigma with n - 1."""
    pairs = [of[seed] - minus[seed] for seed in sorted(of.keys() & minus.keys())]
    n = len(pairs)
    if n < 2:
        return Difference(pairs[0] if pairs else math.nan, math.inf, n)
    t = T[min(n - 2, len(T) - 1)]
    return Difference(float(np.mean(pairs)), t * float(np.std(pairs, ddof=1)) / math.sqrt(n), n)


@dataclass(frozen=True)
class Found:
    """What the runs say of a claim."""

    claim: Claim
    difference: Difference  # higher - lower, in the measure's unit
    dc_ratio: float  # of ``lower``
    verdict: str


@dataclass(frozen=True)
class Evidence:
    """A study's kept runs at one scale."""

    study: Study
    scale: str
    results: Path

    @property
    def folder(self) -> Path:
        return self.results / self.study.name / self.scale

    @cached_property
    def runs(self) -> dict[str, list[Run]]:
        """The runs of each cell, by seed; an empty list for a cell without any."""
        folder = self.results / self.study.runs_of / self.scale / "runs"
        found: dict[str, list[Run]] = {cell.name: [] for cell in self.study.cells}
        for path in sorted(p for p in folder.glob("*") if p.is_dir()):
            name = path.name.rpartition("-seed")[0]
            if name not in found:
                raise BadInput("report", path, f"{self.study.runs_of} has no cell of that name")
            found[name].append(Run.read(path))
        for runs in found.values():
            runs.sort(key=lambda run: int(run.summary["seed"]))
        return found

    @cached_property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    def values(self, cell: str, measure: str | None = None) -> dict[int, float]:
        """The measure of each finished run of a cell, by seed."""
        read = MEASURES[measure or self.study.measure]
        return {run.summary["seed"]: read(run) for run in self.runs[cell] if run.finished}

    @cached_property
    def found(self) -> list[Found]:
        """The study's claims, judged as its claim.md says."""
        return [self._judge(claim) for claim in self.study.claims]

    def _judge(self, claim: Claim) -> Found:
        cells = [claim.lower] + ([claim.higher] if claim.higher else [])
        lower, runs = self.values(claim.lower), [run for c in cells for run in self.runs[c]]
        if claim.higher:
            apart = difference(self.values(claim.higher), lower)
        else:
            assert claim.paper is not None
            apart = difference(lower, dict.fromkeys(lower, claim.paper))
            if self.scale != "paper":
                apart = Difference(math.nan, math.inf, 0)
        ratios = [r.summary["dc_ratio_mean"] for r in self.runs[claim.lower] if r.finished]
        ratio = float(np.mean(ratios)) if ratios else math.nan
        word = verdict(claim, apart, ratio, self.study.least_dc_ratio, self.scale)
        if word != ELSEWHERE and not all(run.finished for run in runs):
            word = "undecided"
        return Found(claim, apart, ratio, word)

    def baseline(self, cell: str, kind: str) -> str | None:
        """The one cell of that kind (asgd, sgd) that differs from this one in its rule alone.

        What belongs to the rule goes with it: the barrier, when the backup is written, and for
        sequential SGD the number of workers.
        """
        apart = ("rule.", "schedule.barrier", "backup")
        if kind == "sgd":
            apart += ("workers", "schedule.workers", "task.data.workers")

        def rest(name: str) -> dict[str, Any]:
            config = self.runs[name][0].config
            return {key: value for key, value in config.items() if not key.startswith(apart)}

        if not self.runs[cell]:
            return None
        same = [
            n for n, r in self.runs.items() if r and r[0].kind == kind and rest(n) == rest(cell)
        ]
        return same[0] if len(same) == 1 and same[0] != cell else None

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each cell: our errors, the paper's, and the paired differences."""
        rows = []
        for cell, runs in self.runs.items():
            row: dict[str, Any] = {"cell": cell, **tabulate(cell, runs)}
            del row["rule"]
            for kind in ("asgd", "sgd"):
                other = self.baseline(cell, kind)
                d = difference(
                    self.values(cell, "last10"), self.values(other, "last10") if other else {}
                )
                row |= {f"minus_{kind}_mean": d.mean, f"minus_{kind}_half": d.half}
                row[f"minus_{kind}_n"] = d.n
            if cell in self.study.paper.index:
                paper = self.study.paper.loc[cell]
                numbers = {k: v for k, v in paper.items() if str(k).endswith(("_pct", "_epochs"))}
                row |= {f"paper_{key}": value for key, value in numbers.items()}
            rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def claims(self) -> pd.DataFrame:
        """A row for each claim, as ``found`` has it."""
        rows = [
            {
                "claim": str(f.claim),
                "unit": UNITS[self.study.measure],
                "difference": f.difference.mean,
                "half": f.difference.half,
                "n": f.difference.n,
                "paper": f.claim.paper,
                "dc_ratio": f.dc_ratio,
                "verdict": self.study.words.get(f.verdict, f.verdict),
            }
            for f in self.found
        ]
        return pd.DataFrame(rows)

    def counts(self) -> str:
        """How many claims got which verdict."""
        words = [self.study.words.get(f.verdict, f.verdict) for f in self.found]
        return (
            ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))) or "no claims"
        )


def verdict(
    claim: Claim, found: Difference, dc_ratio: float, least_dc_ratio: float, scale: str
) -> str:
    """reproduced, "reproduced, smaller", not reproduced or undecided, as claim.md defines them.

    The paper's own numbers count at ``scale=paper`` only.
    """
    if claim.higher is None:
        if scale != "paper" or not found.n:
            return ELSEWHERE
        assert claim.paper is not None
        assert claim.within is not None
        near = abs(found.mean) <= claim.within * claim.paper
        return "reproduced" if near else "not reproduced"
    if found.n < ENOUGH:
        return "undecided"
    if least_dc_ratio and dc_ratio < least_dc_ratio:
        return "not reproduced"
    least = claim.paper / 2 if claim.paper is not None and scale == "paper" else 0.0
    if found.low > 0:
        return "reproduced, smaller" if found.high < least else "reproduced"
    return "not reproduced" if found.high < least else "undecided"


def before_drop(run: Run) -> float:
    """Mean test error, in percent, over the last fifth of the epochs before the first lr drop."""
    drop = run.config["lr.milestones"][0]
    rows = run.metrics.dropna(subset=["test_error"])
    there = rows[(rows["epoch"] > 0.8 * drop) & (rows["epoch"] <= drop + 1e-6)]
    return 100 * float(there["test_error"].mean())


MEASURES: dict[str, Callable[[Run], float]] = {
    "last10": lambda run: 100 * float(run.summary["test_error_last10"]),
    "before_drop": before_drop,
    "simulated_s": lambda run: float(run.summary["simulated_s"]),
}


def scales_of(chosen: Study, results: Path) -> list[str]:
    """The scales that a study has kept runs of."""
    return sorted(p.parent.name for p in (results / chosen.runs_of).glob("*/runs"))


def all_of(wanted: Sequence[str], results: Path) -> str:
    """Writes the pages of these studies, of all when none is named, and the overview."""
    told = []
    for chosen in [study(name) for name in wanted or names()]:
        scales = scales_of(chosen, results)
        if not scales and wanted:
            remedy = f"no runs in {results / chosen.runs_of}: dcasgd-repro reproduce {chosen.name}"
            raise BadInput("study", chosen.name, remedy)
        told += [write(chosen, scale, results) for scale in scales]
    overview(results)
    return "\n\n".join([*told, f"overview in {results / 'README.md'}"])


def write(chosen: Study, scale: str, results: Path) -> str:
    """A study's page, tables and figure at one scale; returns what to print."""
    here = Evidence(chosen, scale, results)
    if not here.all_runs:
        return f"{chosen.title}: no run to report"
    here.folder.mkdir(parents=True, exist_ok=True)
    here.table.to_csv(
        here.folder / "cells.csv", index=False, float_format="%.6g", lineterminator="\n"
    )
    here.claims.to_csv(
        here.folder / "claims.csv", index=False, float_format="%.6g", lineterminator="\n"
    )
    figure = figures.draw(here)
    figure.savefig(here.folder / "figure.png", dpi=150)
    with matplotlib.rc_context({"svg.hashsalt": "dcasgd-repro"}):  # the same bytes every time
        figure.savefig(here.folder / "figure.svg", metadata={"Date": None})
    tables = [markdown_cells(here), markdown_claims(here)]
    (here.folder / "README.md").write_text(page(here, tables))
    return "\n\n".join([f"{chosen.title}, scale={scale}: {here.counts()}", *tables,
                        f"written to {here.folder}"])  # fmt: skip


def page(here: Evidence, tables: Sequence[str]) -> str:
    """The Markdown page of a study at one scale."""
    claim = Path("../../..") / "experiments" / here.study.name / "claim.md"
    lines = [
        f"# {here.study.title}, scale={here.scale}",
        f"Generated by `dcasgd-repro report {here.study.name}`. What is claimed, and what the "
        f"verdicts mean, was written before the runs: [claim.md]({claim}).",
        SCALES.get(here.scale, f"`scale={here.scale}`."),
        "![figure](figure.png)",
        *tables,
        "Errors in percent, mean ± standard deviation over seeds; differences in points of the "
        "last-10 error, paired at equal seed, ± half of their 95 % interval; a minus sign means "
        "fewer errors than ASGD (SGD). best, final and last-10: over all evaluations, the last "
        "one, and the mean of the last ten. The paper's Table 1 is its best.",
        made_with(here.all_runs),
    ]
    if here.study.runs_of != here.study.name:
        lines.append(f"The runs are those of [{here.study.runs_of}](../../{here.study.runs_of}).")
    return "\n\n".join(lines) + "\n"


def markdown_cells(here: Evidence) -> str:
    """Our errors, the paper's beside them, and what the cells cost."""
    paper = [k for k in here.table.columns if k.startswith("paper_")]
    head, line = ["cell", "n"], []
    for name in ERRORS:
        head += [f"{name} %"] + (["paper"] if f"paper_{name}_test_error_pct" in paper else [])
    head += ["last-10 − ASGD", "last-10 − SGD", "dc_ratio", "mean delay", "simulated s"]
    head += ["paper, 160 epochs"] if "paper_seconds_160_epochs" in paper else []
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in here.table.to_dict("records"):
        lost = [f"{row[k]} {k.replace('_', ' ')}" for k in ("diverged", "not_finished") if row[k]]
        line = [str(row["cell"]), f"{row['n']}" + (f" (+ {', '.join(lost)})" if lost else "")]
        for name, key in ERRORS.items():
            mean, std = row[f"{key}_pct_mean"], row[f"{key}_pct_std"]
            line.append(number(mean, ".2f") + ("" if np.isnan(std) else f" ± {std:.2f}"))
            if f"paper_{name}_test_error_pct" in paper:
                line.append(number(row[f"paper_{name}_test_error_pct"], ".2f"))
        for kind in ("asgd", "sgd"):
            parts = (row[f"minus_{kind}_mean"], row[f"minus_{kind}_half"], row[f"minus_{kind}_n"])
            line.append(str(Difference(*parts)))
        line += [number(row["dc_ratio_mean"], ".1e"), number(row["delay_mean"], ".2f")]
        line.append(number(row["simulated_s"], ".0f"))
        if "paper_seconds_160_epochs" in paper:
            line.append(number(row["paper_seconds_160_epochs"], ".0f"))
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def markdown_claims(here: Evidence) -> str:
    """The claims and their verdicts."""
    if not here.found:
        return "No claims."
    unit = UNITS[here.study.measure]
    head = ["claim", f"difference, {unit}", "n", "paper", "dc_ratio", "verdict here"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * 4 + "---|"]
    for f in here.found:
        paper = "-" if f.claim.paper is None else f"{f.claim.paper:g}"
        line = [str(f.claim), str(f.difference), str(f.difference.n), paper]
        line += [number(f.dc_ratio, ".1e"), here.study.words.get(f.verdict, f.verdict)]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def made_with(runs: Sequence[Run]) -> str:
    """Commits, versions, devices and hours of the runs, in a line."""
    origins = [json.loads((run.path / "provenance.json").read_text()) for run in runs]

    def all_of(read: Callable[[Mapping[str, Any]], Any]) -> str:
        return ", ".join(sorted({str(read(origin)) for origin in origins}))

    dirty = sum(bool(origin["git_dirty"]) for origin in origins)
    hours = sum(run.summary["wall_s"] or 0 for run in runs) / 3600
    return (
        f"{len(runs)} runs; commit {all_of(lambda o: (o['git_commit'] or 'unknown')[:7])}"
        + (f" ({dirty} with uncommitted changes)" if dirty else "")
        + f"; torch {all_of(lambda o: o['versions']['torch'])}"
        f"; {all_of(lambda o: o['device_name'])}, threads: {all_of(lambda o: o['threads'])}"
        f"; {hours:.1f} h of training in all."
    )


def number(value: float, form: str) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:{form}}"


def overview(results: Path) -> None:
    """Writes results/README.md: every study, its verdicts, runs, device and scale."""
    lines = [
        "# Results",
        "Generated by `dcasgd-repro report`. A study is a folder of `experiments/`; its claim.md "
        "says what the paper says and what we call reproduced, and was committed before its runs. "
        "Only `scale=paper` speaks about the paper.",
        overview_table(results),
    ]
    if (results / "bench").exists():
        lines.append(
            "What simulating costs, measured: `bench/`, shown in the [README](../README.md)."
        )
    results.mkdir(parents=True, exist_ok=True)
    (results / "README.md").write_text("\n\n".join(lines) + "\n")


def overview_table(results: Path) -> str:
    """A row for every study and scale."""
    lines = [
        "| study | scale | claims at that scale | runs | made with |",
        "|---|---|---|---:|---|",
    ]
    for chosen in map(study, names()):
        scales = scales_of(chosen, results)
        if not scales:
            lines.append(f"| {chosen.title} | - | no runs yet | 0 | |")
        for scale in scales:
            here = Evidence(chosen, scale, results)
            if not here.all_runs:
                continue
            seeds = {len(runs) for runs in here.runs.values()}
            n = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
            link = f"[{chosen.title}]({chosen.name}/{scale}/README.md)"
            lines.append(f"| {link} | {scale} | {here.counts()} | {len(here.all_runs)} (n = {n}) | "
                         f"{made_with(here.all_runs).split('; ', 1)[1]} |")  # fmt: skip
    return "\n".join(lines)


MARK = "results"


def into(readme: Path, results: Path) -> None:
    """Puts Table 1's cells at every scale between the page's marks."""
    chosen, parts = study("table1_cifar10"), []
    for scale in scales_of(chosen, results):
        here = Evidence(chosen, scale, results)
        parts += [f"**scale={scale}**: {here.counts()}.", markdown_cells(here)]
    pages.into(readme, MARK, "\n\n".join(parts))


__all__ = ["FOLDER", "Evidence", "all_of", "difference", "into", "overview", "verdict", "write"]
