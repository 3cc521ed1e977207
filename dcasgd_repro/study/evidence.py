"""A study's kept runs: paired differences, verdicts, and a table of its cells. Imports no torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.identity import differences
from dcasgd_repro.run.read import Run
from dcasgd_repro.study import probed
from dcasgd_repro.study.grid import Claim, Study
from dcasgd_repro.study.measures import MEASURES, Measure, chance, curve
from dcasgd_repro.study.runs import evaluated_on, tabulate
from dcasgd_repro.study.verdicts import (
    ENOUGH,
    FAILS,
    HOLDS,
    LEVEL,
    NOTHING,
    UNDECIDED,
    Difference,
    above,
    difference,
    equal,
    holm,
)

ELSEWHERE = "at the paper's scale only"


@dataclass(frozen=True)
class Found:
    """What the runs say of a claim."""

    claim: Claim
    measure: Measure
    difference: Difference | probed.Median  # higher - lower, in the measure's unit
    dc_ratio: float  # of ``lower``
    verdict: str
    instead: str = ""  # shown in place of a difference, where the claim is about none
    p: float = math.nan  # of its test; nan where it has none
    by_size: bool = False  # whether the verdict is that the correction is too small, whatever p is
    adjusted: float = math.nan  # Holm's, over the study's primary claims
    lost: tuple[str, ...] = ()  # cells with runs that diverged, which count as chance
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
            found[name].append(replace(Run.read(path), until=self.study.stop_epoch))
        for name, runs in found.items():
            runs.sort(key=lambda run: int(run.summary["seed"]))
            for run in runs[1:]:
                if other := differences(runs[0].config, run.config):  # null counts as absent
                    remedy = f"not the configuration of {name}'s other runs: {other}; run it anew"
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

    @cached_property
    def probes(self) -> pd.DataFrame:
        """All rows of the runs' probe.csv, with cell and seed; empty where none has one."""
        return probed.rows(self.runs)

    def values(self, cell: str, measure: str | None = None) -> dict[int, float]:
        """The measure of each finished run of a cell, by seed, where it has one."""
        read = MEASURES[measure or self.study.measure].read
        found = {
            run.summary["seed"]: read(run, self.study) for run in self.runs[cell] if run.finished
        }
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def ranked(self, cell: str, measure: Measure) -> dict[int, float]:
        """As ``values``, but a run that diverged has the error of guessing."""
        lost = {run.summary["seed"]: chance(run) for run in self.runs[cell] if run.diverged}
        return self.values(cell, measure.name) | (lost if measure.is_error else {})

    def ratio(self, cell: str) -> float:
        """Median over the finished runs of a cell of their dc_ratio, itself a median."""
        ratios = [run.dc_ratio for run in self.runs[cell] if run.finished]
        return float(np.median(ratios)) if ratios else math.nan

    @cached_property
    def found(self) -> list[Found]:
        """The study's claims, judged as its claim.md says; of primary ones, all together.

        A primary claim that its own test decides stays undecided where Holm's adjusted p-value over
        the primary claims is above 5 %.
        """
        found = [self._judge(claim) for claim in self.study.claims]
        primary = [k for k, f in enumerate(found) if f.claim.primary and not math.isnan(f.p)]
        for k, p in zip(primary, holm([found[k].p for k in primary]), strict=True):
            word = found[k].verdict if p <= LEVEL or found[k].by_size else UNDECIDED
            found[k] = replace(found[k], adjusted=p, verdict=word)
        return found

    def _judge(self, claim: Claim) -> Found:
        measure = MEASURES[claim.measure or self.study.measure]
        judge = {
            "lower": self._lower,
            "equal": self._equal,
            "cell": self._near,
            "curve": self._curve,
            "order": self._order,
            "probe": self._probe,
        }
        lost = {
            cell: [str(run.summary["seed"]) for run in self.runs[cell] if run.diverged]
            for cell in claim.cells
        }
        named = tuple(f"{cell} (seed {', '.join(seeds)})" for cell, seeds in lost.items() if seeds)
        blank = Found(claim, measure, NOTHING, self.ratio(claim.lower), UNDECIDED, lost=named)
        return judge[claim.kind](blank)

    def _lower(self, blank: Found) -> Found:
        claim, measure = blank.claim, blank.measure
        found = self._gap(claim, measure)
        size = self.of_the_paper and self.study.size_counts and not claim.margin
        least = (claim.paper or 0.0) / 2 if size else 0.0
        word, p = above(found, claim.margin, least, self.study.least_n)
        tiny = self.study.least_dc_ratio
        if tiny and blank.dc_ratio < tiny and found.n >= self.study.least_n:
            word, blank = FAILS, replace(blank, by_size=True)
        if not self._whole(claim, measure=measure):
            word = UNDECIDED
        judged = replace(blank, difference=found, verdict=word, p=p)
        if claim.than is None:
            return judged
        # (higher - lower) - (higher' - lower') at equal seeds; ' is the claim on ``than``
        [other] = [c for c in self.study.claims if c.lower == claim.than and c.higher]
        change = difference(self._gains(claim, measure), self._gains(other, measure))
        moved = change.n >= ENOUGH and abs(change.mean) > change.half
        whole = self._whole(claim, other)
        return replace(judged, change=change, moved=moved and whole)

    def _equal(self, blank: Found) -> Found:
        assert blank.claim.within is not None
        found = self._gap(blank.claim, blank.measure)
        word, p = equal(found, blank.claim.within, self.study.least_n)
        whole = self._whole(blank.claim, measure=blank.measure)
        return replace(blank, difference=found, verdict=word if whole else UNDECIDED, p=p)

    def _near(self, blank: Found) -> Found:
        """A cell's mean against the paper's number, within a part of it."""
        claim = blank.claim
        assert claim.paper is not None
        assert claim.within is not None
        if not self.of_the_paper:
            return replace(blank, verdict=ELSEWHERE)
        ours = self.values(claim.lower, blank.measure.name)
        found = difference(ours, dict.fromkeys(ours, claim.paper))
        word = HOLDS if abs(found.mean) <= claim.within * claim.paper else FAILS
        whole = found.n and self._whole(claim)
        return replace(blank, difference=found, verdict=word if whole else UNDECIDED)

    def _curve(self, blank: Found) -> Found:
        """The mean distance of a cell's training error from the paper's curve, over the seeds."""
        claim, distances = blank.claim, dict[int, float]()
        if not self.of_the_paper:
            return replace(blank, verdict=ELSEWHERE)
        paper = self.study.curves
        paper = paper[(paper["cell"] == claim.lower) & (paper["split"] == "train")]
        paper = paper[paper["workers"] == paper["workers"].max()].sort_values("epoch")
        for run in self.runs[claim.lower]:
            ours = curve(run, "train_error")
            at = np.array(self.study.epochs)
            covered = [len(c) and c["epoch"].max() >= at.max() - 1e-9 for c in (ours, paper)]
            if not run.finished or not all(covered):
                return blank  # a mean over the others would flatter
            here = np.interp(at, ours["epoch"], ours["error"])
            theirs = np.interp(at, paper["epoch"], 100 * paper["error"])
            distances[run.summary["seed"]] = float(np.mean(np.abs(here - theirs)))
        if not distances:
            return blank
        distance, n = float(np.mean(list(distances.values()))), len(distances)
        assert claim.within is not None
        word = HOLDS if distance < claim.within else FAILS
        return replace(blank, instead=f"{distance:.1f} away, n = {n}", verdict=word)

    def _order(self, blank: Found) -> Found:
        """Whether every seed that all cells have shows the order; never reached is infinite."""
        cells, read = blank.claim.cells, blank.measure.read
        by_cell = {
            cell: {
                run.summary["seed"]: math.inf if run.diverged else read(run, self.study)
                for run in self.runs[cell]
                if run.finished or run.diverged
            }
            for cell in cells
        }
        seeds = sorted(set.intersection(*(set(values) for values in by_cell.values())))
        rows = [[by_cell[cell][seed] for cell in cells] for seed in seeds]
        rows = [row for row in rows if not any(map(math.isnan, row))]
        if not rows:
            return blank
        holds = all(a < b for row in rows for a, b in itertools.pairwise(row))
        means = [
            "never" if math.isinf(value) else f"{value:.1f}" for value in np.mean(rows, axis=0)
        ]
        shown = f"{', '.join(means)}, n = {len(rows)}"
        return replace(blank, instead=shown, verdict=HOLDS if holds else FAILS)

    def _probe(self, blank: Found) -> Found:
        """A column of a cell's probe.csv files, by blocks of pushes."""
        claim = blank.claim
        there = self.probes[self.probes["cell"] == claim.lower]
        found = probed.median(there, str(claim.column))
        word = probed.verdict(claim, found) if self._whole(claim) else UNDECIDED
        return replace(blank, difference=found, verdict=word)

    def _gap(self, claim: Claim, measure: Measure) -> Difference:
        return difference(
            self.ranked(str(claim.higher), measure), self.ranked(claim.lower, measure)
        )

    def _whole(self, *claims: Claim, measure: Measure | None = None) -> bool:
        """Whether all runs of these claims' cells have ended, and their seeds are the same.

        A cell may have its ``extra_seeds`` beyond the others'. With a ``measure`` that is an error,
        a run that diverged counts, as chance; a run that finished must have the measure.
        """
        cells = {cell for claim in claims for cell in claim.cells}
        seeds = {cell: {run.summary["seed"] for run in self.runs[cell]} for cell in cells}
        shared = set.intersection(*seeds.values())
        extra = self.study.extra_seeds
        if any(len(seeds[cell] - shared) > extra.get(cell, 0) for cell in cells):
            return False
        counts = measure is not None and measure.is_error
        runs = [(cell, run) for cell in cells for run in self.runs[cell]]
        if not all(run.finished or (counts and run.diverged) for _, run in runs):
            return False
        if measure is None:
            return True
        finished = sum(run.finished for _, run in runs)
        return finished == sum(len(self.values(cell, measure.name)) for cell in cells)

    def _gains(self, claim: Claim, measure: Measure) -> dict[int, float]:
        lower = self.values(claim.lower, measure.name)
        higher = self.values(str(claim.higher), measure.name)
        return {seed: higher[seed] - lower[seed] for seed in lower.keys() & higher.keys()}

    def baseline(self, cell: str, kind: str) -> str | None:
        """The one cell of that kind (asgd, sgd) that differs from this one in its rule alone.

        What belongs to the rule goes with it: the barrier, when the backup is written, and for
        sequential SGD the number of workers.
        """
        may_differ: tuple[str, ...] = ("rule.", "schedule.barrier", "backup")
        if kind == "sgd":
            may_differ += ("workers", "schedule.workers", "task.data.workers", "lr.workers")

        def rest(name: str) -> dict[str, Any]:
            config = self.runs[name][0].config
            given = {key: value for key, value in config.items() if value is not None}
            return {key: value for key, value in given.items() if not key.startswith(may_differ)}

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
                last10 = MEASURES["last10"]
                theirs = self.ranked(other, last10) if other else {}
                d = difference(self.ranked(cell, last10), theirs)
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
                "family": f.claim.family,
                "unit": f.claim.column or f.measure.unit,
                "difference": f.difference.mean,
                "half": f.difference.half,
                "n": f.difference.n,
                "paper": f.claim.paper,
                "dc_ratio": f.dc_ratio,
                "told": f.instead,
                "cells_with_diverged_runs": len(f.lost),
                "p": f.p,
                "p_holm": f.adjusted,
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
