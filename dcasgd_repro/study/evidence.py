"""A study's kept runs: paired differences, verdicts, and a table of its cells. Imports no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.identity import differences, plain
from dcasgd_repro.run.read import Run
from dcasgd_repro.study import probed
from dcasgd_repro.study.grid import Claim, Study, study
from dcasgd_repro.study.looks import NO_RUN, Look, looks
from dcasgd_repro.study.measures import MEASURES, Measure, chance, curve
from dcasgd_repro.study.runs import differing, evaluated_on, has_errors, tabulate
from dcasgd_repro.study.verdicts import (
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
ANYWHERE = {HOLDS: "holds", FAILS: "does not hold"}
OF_WORKERS = ("workers", "schedule.workers", "task.data.workers", "lr.workers")  # M, in a config


@dataclass(frozen=True)
class Found:
    """What the runs say of a claim."""

    claim: Claim
    measure: Measure
    difference: Difference | probed.Median  # higher - lower, in the measure's unit
    dc_ratio: float  # of ``lower``
    verdict: str
    observed: str = ""  # in words, of a claim that is not about a difference
    p: float = math.nan  # of its test; nan where it has none
    by_size: bool = False  # the verdict is that the correction is too small; p did not decide it
    adjusted: float = math.nan  # Holm's, over the study's primary claims
    diverged: tuple[str, ...] = ()  # cells with runs that diverged, which count as chance
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

    def word(self, verdict: str) -> str:
        """A verdict as it is printed: in the study's words, or in those of ``ANYWHERE``.

        Nothing is reproduced by a study that has nothing of a paper, nor at another scale than its.
        """
        of_a_paper = self.of_the_paper and self.study.of_a_paper
        return {**({} if of_a_paper else ANYWHERE), **self.study.words}.get(verdict, verdict)

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
    def has_errors(self) -> bool:
        """Whether the runs have test errors; a task without classes has a loss alone."""
        return has_errors(self.all_runs)

    @property
    def measure(self) -> Measure:
        """What claims are about: the study's measure; the test loss, if runs have no errors."""
        measure = MEASURES[self.study.measure]
        return measure if self.has_errors or not measure.is_error else MEASURES["test_loss"]

    @property
    def closing(self) -> Measure:
        """What tables and figures compare: the last-10 error; the test loss, if there is none."""
        return MEASURES["last10" if self.has_errors else "test_loss"]

    @property
    def closing_words(self) -> str:
        """``closing`` as an axis has it."""
        last10 = f"{self.on} error, mean of the last ten evaluations (%)"
        return last10 if self.has_errors else f"{self.on} loss, final"

    @cached_property
    def looks(self) -> dict[str, Look]:
        """The look of each rule of its runs."""
        return looks(self.all_runs)

    def look(self, cell: str) -> Look:
        """The look of a cell's rule."""
        runs = self.runs.get(cell)
        return self.looks[runs[0].kind] if runs else NO_RUN

    @cached_property
    def lines(self) -> dict[str, list[str]]:
        """Cells of one configuration, but for the number of workers, under a name for a legend.

        A key that each cell was tuned in may differ too.
        """
        free = (*OF_WORKERS, *self._tuned_key)
        groups: dict[str, list[str]] = {}
        configs = {c: _without(runs[0].config, free) for c, runs in self.runs.items() if runs}
        for cell, config in configs.items():
            same = {key: plain(value) for key, value in config.items()}
            rest = json.dumps([self.runs[cell][0].kind, same], sort_keys=True)
            groups.setdefault(rest, []).append(cell)
        found = {}
        for cell, *others in sorted(groups.values(), key=lambda c: self.runs[c[0]][0].kind):
            label = self.look(cell).label
            alike = [configs[c[0]] for c in groups.values() if self.look(c[0]).label == label]
            found[", ".join([label, *differing(configs[cell], alike)])] = [cell, *others]
        return found

    @property
    def _tuned_key(self) -> tuple[str, ...]:
        source = self.study.tuned_by and study(self.study.tuned_by).tune
        return (source.key,) if source else ()

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

    def with_diverged(self, cell: str, measure: Measure) -> dict[int, float]:
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
        measure = MEASURES[claim.measure] if claim.measure else self.measure
        judge = {
            "lower": self._lower,
            "equal": self._equal,
            "cell": self._near_paper,
            "curve": self._curve,
            "order": self._order,
            "probe": self._probe,
        }
        lost = {
            cell: [str(run.summary["seed"]) for run in self.runs[cell] if run.diverged]
            for cell in claim.cells
        }
        named = tuple(f"{cell} (seed {', '.join(seeds)})" for cell, seeds in lost.items() if seeds)
        undecided = Found(
            claim, measure, NOTHING, self.ratio(claim.lower), UNDECIDED, diverged=named
        )
        return judge[claim.kind](undecided)

    def _lower(self, undecided: Found) -> Found:
        claim, measure = undecided.claim, undecided.measure
        found = self._difference(claim, measure)
        size = self.of_the_paper and self.study.size_counts and not claim.margin
        least = (claim.paper or 0.0) / 2 if size else 0.0
        word, p = above(found, claim.margin, least, self.study.least_n)
        tiny = self.study.least_dc_ratio
        if tiny and undecided.dc_ratio < tiny and found.n >= self.study.least_n:
            word, undecided = FAILS, replace(undecided, by_size=True)
        if not self._complete(claim, measure=measure):
            word = UNDECIDED
        judged = replace(undecided, difference=found, verdict=word, p=p)
        if claim.than is None:
            return judged
        # (higher - lower) - (higher' - lower') at equal seeds; ' is the claim on ``than``
        [other] = [c for c in self.study.claims if c.lower == claim.than and c.higher]
        change = difference(
            self._differences_by_seed(claim, measure), self._differences_by_seed(other, measure)
        )
        moved = change.n >= self.study.least_n and abs(change.mean) > change.half
        whole = self._complete(claim, other)
        return replace(judged, change=change, moved=moved and whole)

    def _equal(self, undecided: Found) -> Found:
        assert undecided.claim.within is not None
        found = self._difference(undecided.claim, undecided.measure)
        word, p = equal(found, undecided.claim.within, self.study.least_n)
        whole = self._complete(undecided.claim, measure=undecided.measure)
        return replace(undecided, difference=found, verdict=word if whole else UNDECIDED, p=p)

    def _near_paper(self, undecided: Found) -> Found:
        """A cell's mean is the paper's number, to within a part of it."""
        claim = undecided.claim
        assert claim.paper is not None
        assert claim.within is not None
        if not self.of_the_paper:
            return replace(undecided, verdict=ELSEWHERE)
        ours = self.values(claim.lower, undecided.measure.name)
        found = difference(ours, dict.fromkeys(ours, claim.paper))
        word = HOLDS if abs(found.mean) <= claim.within * claim.paper else FAILS
        whole = found.n and self._complete(claim)
        return replace(undecided, difference=found, verdict=word if whole else UNDECIDED)

    def _curve(self, undecided: Found) -> Found:
        """The mean distance of a cell's training error from the paper's curve, over the seeds."""
        claim, distances = undecided.claim, dict[int, float]()
        if not self.of_the_paper:
            return replace(undecided, verdict=ELSEWHERE)
        paper = self.study.curves
        paper = paper[(paper["cell"] == claim.lower) & (paper["split"] == "train")]
        paper = paper[paper["workers"] == paper["workers"].max()].sort_values("epoch")
        for run in self.runs[claim.lower]:
            ours = curve(run, "train_error")
            at = np.array(self.study.epochs)
            covered = [len(c) and c["epoch"].max() >= at.max() - 1e-9 for c in (ours, paper)]
            if not run.finished or not all(covered):
                return undecided  # a mean over the others would flatter
            our_errors = np.interp(at, ours["epoch"], ours["error"])
            their_errors = np.interp(at, paper["epoch"], 100 * paper["error"])
            distances[run.summary["seed"]] = float(np.mean(np.abs(our_errors - their_errors)))
        if not distances:
            return undecided
        distance, n = float(np.mean(list(distances.values()))), len(distances)
        assert claim.within is not None
        word = HOLDS if distance < claim.within else FAILS
        return replace(undecided, observed=f"{distance:.1f} away, n = {n}", verdict=word)

    def _order(self, undecided: Found) -> Found:
        """Whether the order holds at every seed that all cells have.

        A level that a run never reaches counts as infinitely many epochs.
        """
        cells, read = undecided.claim.cells, undecided.measure.read
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
            return undecided
        holds = all(a < b for row in rows for a, b in itertools.pairwise(row))
        means = [
            "never" if math.isinf(value) else f"{value:.1f}" for value in np.mean(rows, axis=0)
        ]
        shown = f"{', '.join(means)}, n = {len(rows)}"
        return replace(undecided, observed=shown, verdict=HOLDS if holds else FAILS)

    def _probe(self, undecided: Found) -> Found:
        """The median of a column of a cell's probe.csv files lies between the claim's ends."""
        claim = undecided.claim
        of_cell = self.probes[self.probes["cell"] == claim.lower]
        found = probed.median(of_cell, str(claim.column))
        word = probed.verdict(claim, found) if self._complete(claim) else UNDECIDED
        return replace(undecided, difference=found, verdict=word)

    def _difference(self, claim: Claim, measure: Measure) -> Difference:
        return difference(
            self.with_diverged(str(claim.higher), measure), self.with_diverged(claim.lower, measure)
        )

    def _complete(self, *claims: Claim, measure: Measure | None = None) -> bool:
        """Whether the cells of these claims have equal seeds, and each run has ended.

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

    def _differences_by_seed(self, claim: Claim, measure: Measure) -> dict[int, float]:
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
            may_differ += OF_WORKERS

        def rest(name: str) -> dict[str, Any]:
            return _without(self.runs[name][0].config, may_differ)

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
                theirs = self.with_diverged(other, self.closing) if other else {}
                d = difference(self.with_diverged(cell, self.closing), theirs)
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
                "difference": f.difference.estimate,
                "half": f.difference.half,
                "n": f.difference.n,
                "paper": f.claim.paper,
                "dc_ratio": f.dc_ratio,
                "observed": f.observed,
                "cells_with_diverged_runs": len(f.diverged),
                "p": f.p,
                "p_holm": f.adjusted,
                "verdict": self.word(f.verdict),
            }
            | (_changed(f) if compared else {})
            for f in self.found
        ]
        return pd.DataFrame(rows)

    def counts(self) -> str:
        """How many claims got which verdict."""
        return counted([self.word(f.verdict) for f in self.found])


def counted(verdicts: Sequence[str]) -> str:
    """How many of each, as "2 reproduced, 1 undecided"."""
    words = sorted(set(verdicts))
    return ", ".join(f"{verdicts.count(word)} {word}" for word in words) or "no claims"


def _without(config: Mapping[str, Any], begin: tuple[str, ...]) -> dict[str, Any]:
    """A config less the keys that begin so; null counts as absent."""
    return {k: v for k, v in config.items() if v is not None and not k.startswith(begin)}


def _changed(f: Found) -> dict[str, Any]:
    change = {"than": f.claim.than, "change": f.change.mean, "change_half": f.change.half}
    return change | {"moved": f.moved}
