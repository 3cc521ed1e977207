"""A study's kept runs: paired differences, verdicts, and a table of its cells. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcasgd_repro.config import differences
from dcasgd_repro.errors import BadInput
from dcasgd_repro.report import Run, evaluated_on, tabulate
from dcasgd_repro.study import Claim, Study

ELSEWHERE = "at the paper's scale only"
ENOUGH = 3  # seeds, before a verdict is given
UNITS = {"last10": "points", "before_drop": "points", "simulated_s": "s"}

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


NOTHING = Difference(math.nan, math.inf, 0)


def difference(of: Mapping[int, float], minus: Mapping[int, float]) -> Difference:
    """``of - minus`` at equal seeds: ``D ± t(n-1) sigma / sqrt(n)``, sigma with n - 1."""
    pairs = [of[seed] - minus[seed] for seed in sorted(of.keys() & minus.keys())]
    n = len(pairs)
    if n < 2:
        return Difference(pairs[0] if pairs else math.nan, math.inf, n)
    t = T[n - 2] if n - 2 < len(T) else student(n - 1)
    return Difference(float(np.mean(pairs)), t * float(np.std(pairs, ddof=1)) / math.sqrt(n), n)


def student(df: int) -> float:
    """Student's t, 97.5 %, for more than 30 degrees of freedom: Cornish and Fisher's expansion."""
    z = 1.959963985
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


@dataclass(frozen=True)
class Found:
    """What the runs say of a claim."""

    claim: Claim
    difference: Difference  # higher - lower, in the measure's unit
    dc_ratio: float  # of ``lower``
    verdict: str
    change: Difference = NOTHING  # of the difference, against that of the claim on ``than``
    moved: bool = False  # the interval of ``change`` leaves out 0, over enough seeds, none lost


@dataclass(frozen=True)
class Evidence:
    """A study's kept runs at one scale."""

    study: Study
    scale: str
    results: Path

    @property
    def of_the_paper(self) -> bool:
        """Whether this scale speaks about the paper."""
        return self.scale == self.study.paper_scale

    @property
    def folder(self) -> Path:
        return self.results / self.study.name / self.scale

    @cached_property
    def runs(self) -> dict[str, list[Run]]:
        """The runs of each cell, by seed; an empty list for a cell without any."""
        folder = self.results / self.study.runs_of / self.scale / "runs"
        found: dict[str, list[Run]] = {cell.name: [] for cell in self.study.at(self.scale).cells}
        for path in sorted(p for p in folder.glob("*") if p.is_dir()):
            name = path.name.rpartition("-seed")[0]
            if name not in found:
                raise BadInput("report", path, f"{self.study.runs_of} has no cell of that name")
            found[name].append(Run.read(path))
        for name, runs in found.items():
            runs.sort(key=lambda run: int(run.summary["seed"]))
            for run in runs[1:]:
                if told := differences(runs[0].config, run.config):  # null counts as absent
                    remedy = f"not the configuration of {name}'s other runs: {told}; run it anew"
                    raise BadInput("report", run.path, remedy)
        evaluated_on([run for runs in found.values() for run in runs])  # all on the same images
        return found

    @cached_property
    def on(self) -> str:
        """The images that the errors are of: "test" or "validation"."""
        return evaluated_on(self.all_runs)

    @cached_property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    def values(self, cell: str, measure: str | None = None) -> dict[int, float]:
        """The measure of each finished run of a cell, by seed, where it has one."""
        read = MEASURES[measure or self.study.measure]
        found = {
            run.summary["seed"]: read(run, self.study) for run in self.runs[cell] if run.finished
        }
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    @cached_property
    def found(self) -> list[Found]:
        """The study's claims, judged as its claim.md says."""
        return [self._judge(claim) for claim in self.study.claims]

    def _judge(self, claim: Claim) -> Found:
        lower = self.values(claim.lower)
        if claim.higher:
            apart = difference(self.values(claim.higher), lower)
        else:
            assert claim.paper is not None
            apart = difference(lower, dict.fromkeys(lower, claim.paper))
            if not self.of_the_paper:
                apart = NOTHING
        ratios = [r.summary["dc_ratio_mean"] for r in self.runs[claim.lower] if r.finished]
        ratio = float(np.mean(ratios)) if ratios else math.nan
        size = self.of_the_paper and self.study.size_counts
        if claim.higher is None:
            word = near(claim, apart) if self.of_the_paper else ELSEWHERE
        else:
            word = verdict(claim, apart, ratio, self.study.least_dc_ratio, size)
        if word != ELSEWHERE and not self._whole(claim):
            word = "undecided"
        if claim.than is None:
            return Found(claim, apart, ratio, word)
        # (higher - lower) - (higher' - lower') at equal seeds; ' is the claim on ``than``
        [other] = [c for c in self.study.claims if c.lower == claim.than and c.higher]
        change = difference(self._gain(claim), self._gain(other))
        moved = change.n >= ENOUGH and abs(change.mean) > change.half
        whole = self._whole(claim, other)
        return Found(claim, apart, ratio, word, change, moved and whole)

    def _whole(self, *claims: Claim) -> bool:
        """Whether all runs of these claims' cells have finished, and their seeds are the same."""
        cells = {cell for claim in claims for cell in (claim.lower, claim.higher)} - {None}
        runs = [self.runs[str(cell)] for cell in cells]
        seeds = {frozenset(run.summary["seed"] for run in of_cell) for of_cell in runs}
        return len(seeds) == 1 and all(run.finished for of_cell in runs for run in of_cell)

    def _gain(self, claim: Claim) -> dict[int, float]:
        lower, higher = self.values(claim.lower), self.values(str(claim.higher))
        return {seed: higher[seed] - lower[seed] for seed in lower.keys() & higher.keys()}

    def baseline(self, cell: str, kind: str) -> str | None:
        """The one cell of that kind (asgd, sgd) that differs from this one in its rule alone.

        What belongs to the rule goes with it: the barrier, when the backup is written, and for
        sequential SGD the number of workers.
        """
        apart = ("rule.", "schedule.barrier", "backup")
        if kind == "sgd":
            apart += ("workers", "schedule.workers", "task.data.workers", "lr.workers")

        def rest(name: str) -> dict[str, Any]:
            config = self.runs[name][0].config
            given = {key: value for key, value in config.items() if value is not None}
            return {key: value for key, value in given.items() if not key.startswith(apart)}

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
        """A row for each claim, as ``found`` has it; its change, where a claim has ``than``."""
        compared = any(f.claim.than for f in self.found)
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
            | (_changed(f) if compared else {})
            for f in self.found
        ]
        return pd.DataFrame(rows)

    def counts(self) -> str:
        """How many claims got which verdict."""
        words = [self.study.words.get(f.verdict, f.verdict) for f in self.found]
        return (
            ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))) or "no claims"
        )


def _changed(f: Found) -> dict[str, Any]:
    change = {"than": f.claim.than, "change": f.change.mean, "change_half": f.change.half}
    return change | {"moved": f.moved}


def verdict(
    claim: Claim, found: Difference, dc_ratio: float, least_dc_ratio: float, size_counts: bool
) -> str:
    """reproduced, "reproduced, smaller", not reproduced or undecided, as claim.md defines them.

    ``size_counts``: whether half of the paper's own difference is the least that reproduces it.
    """
    if found.n < ENOUGH:
        return "undecided"
    if least_dc_ratio and dc_ratio < least_dc_ratio:
        return "not reproduced"
    least = claim.paper / 2 if claim.paper is not None and size_counts else 0.0
    if found.low > 0:
        return "reproduced, smaller" if found.high < least else "reproduced"
    return "not reproduced" if found.high < least else "undecided"


def near(claim: Claim, found: Difference) -> str:
    """Whether the mean lies within a part of the paper's number; ``found`` is ours minus that."""
    if not found.n or claim.paper is None or claim.within is None:
        return "undecided"
    return "reproduced" if abs(found.mean) <= claim.within * claim.paper else "not reproduced"


def before_drop(run: Run, chosen: Study) -> float:
    """Mean test error, in percent, over the last fifth of the epochs between two drops of the lr.

    The second of them is the study's ``drop``; before the first lies the beginning of the run.
    """
    drops = [0.0, *run.config["lr.milestones"]]
    if len(drops) <= chosen.drop:
        return math.nan
    start, end = drops[chosen.drop - 1 : chosen.drop + 1]
    rows = run.metrics.dropna(subset=["test_error"])
    # An evaluation comes with the first round of pushes that ends its epoch.
    late = run.config["workers"] * run.config["batch"] / run.config["images"]
    there = rows["epoch"].between(start + 0.8 * (end - start) - 1e-6, end + late)
    return 100 * float(rows[there]["test_error"].mean())


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)  # a task without classes has no error


MEASURES: dict[str, Callable[[Run, Study], float]] = {
    "last10": lambda run, _: 100 * _number(run.summary["test_error_last10"]),
    "before_drop": before_drop,
    "simulated_s": lambda run, _: _number(run.summary["simulated_s"]),
}
