"""Chooses a value for each cell of a study by validation, with equal budgets. Imports no torch.

All cells have equally many trials. Where the best value of any of them lies at an end of its grid,
every grid is extended by one value: beyond that end, or, for a cell whose best value lies inside,
beyond its own better end. That is repeated until every best value lies inside.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.identity import flat, task_name
from dcasgd_repro.run.plan import build, plain_config
from dcasgd_repro.run.read import Run, provenance_of
from dcasgd_repro.study.evidence import Evidence
from dcasgd_repro.study.grid import Study
from dcasgd_repro.study.measures import MEASURES, chance
from dcasgd_repro.study.reproduce import Job, config_at, jobs_of

ROUNDS = 8  # the grid, and so many less one extensions of it at most

Grid = Mapping[str, Sequence[float]]  # cell: its values, ascending


@dataclass(frozen=True)
class Trial:
    """A value, and the validation errors of its runs in percent."""

    value: float
    errors: tuple[float, ...]
    diverged: int = 0  # how many of the errors, the last ones, are that of guessing

    @classmethod
    def of(cls, value: float, chosen: Study, runs: Sequence[Run]) -> Trial:
        """The last-10 error of its runs; those that neither finished nor diverged are left out."""
        done = [MEASURES["last10"].read(run, chosen) for run in runs if run.finished]
        lost = [chance(run) for run in runs if run.diverged]
        return cls(value, (*done, *lost), len(lost))

    @property
    def finished(self) -> tuple[float, ...]:
        """The errors of the runs that came to their end."""
        return self.errors[: len(self.errors) - self.diverged]

    @property
    def mean(self) -> float:
        return float(np.mean(self.errors)) if self.errors else np.inf  # not the best, then

    @property
    def sd(self) -> float:
        return float(np.std(self.errors, ddof=1)) if len(self.errors) > 1 else np.nan


Found = Mapping[str, Sequence[Trial]]  # the trials of each cell


def best(trials: Sequence[Trial]) -> int:
    """Which trial has the lowest mean error; of equal ones the first."""
    return int(np.argmin([trial.mean for trial in trials]))


def inside(trials: Sequence[Trial]) -> bool:
    """Whether the best value lies at neither end of the grid."""
    return 0 < best(trials) < len(trials) - 1


def extended(found: Found, factor: float) -> dict[str, tuple[float, ...]]:
    """Every grid with one value more; see the module for the side."""
    grid = {}
    for cell, trials in found.items():
        values, at = [trial.value for trial in trials], best(trials)
        below = at == 0 or (inside(trials) and trials[0].mean <= trials[-1].mean)
        if below:
            grid[cell] = (_short(values[0] / factor), *values)
        else:
            grid[cell] = (*values, _short(values[-1] * factor))
    return grid


def _short(value: float) -> float:
    return float(f"{value:g}")  # as it is written in a cell's name and on the command line


def trials(chosen: Study, grid: Grid, runs: Mapping[str, Sequence[Run]]) -> Found:
    """The trials of each cell; ``runs``: those of each trial, by its name, cell-value."""
    return {
        cell: [Trial.of(value, chosen, runs.get(f"{cell}-{value:g}", ())) for value in values]
        for cell, values in grid.items()
    }


def rounds(
    chosen: Study,
    scale: str,
    seeds: int,
    extra: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> Iterator[tuple[Grid, list[Job]]]:
    """A grid and all its runs, for someone to run; then the extended grid, until nothing is asked.

    The last one is whole if all its runs have ended. Raises BadInput, for a key that the config has
    not, a split that leaves too few images, or a best value that no extension leaves behind.
    """
    assert chosen.tune is not None
    check(chosen, scale, folders)
    grid: Grid = chosen.tune.values
    made: dict[str, list[Job]] = {}
    for _ in range(ROUNDS):
        asked = chosen.trials(grid)
        fresh = tuple(cell for cell in asked.cells if cell.name not in made)
        for job in jobs_of(replace(asked, cells=fresh), scale, seeds, extra, folders):
            made.setdefault(job.cell.name, []).append(job)
        jobs = [job for of_seed in zip(*(made[c.name] for c in asked.cells), strict=True)
                for job in of_seed]  # fmt: skip
        yield grid, jobs
        if not all(job.ended for job in jobs):
            return
        found = of_jobs(chosen, grid, jobs)
        for cell, of_cell in found.items():
            if not all(np.isfinite(trial.mean) for trial in of_cell):
                remedy = (
                    f"its runs have no last-10 error at scale={scale}; evaluate after the last drop"
                )
                raise BadInput("cell", cell, remedy)
        if all(inside(of_cell) for of_cell in found.values()):
            return
        grid = extended(found, chosen.tune.factor)
    outside = ", ".join(cell for cell, of_cell in found.items() if not inside(of_cell))
    remedy = f"after {ROUNDS - 1} extensions the best value of {outside} is still at an end of its "
    raise BadInput("tune.values", chosen.name, remedy + "grid; begin with other values")


def of_jobs(chosen: Study, grid: Grid, jobs: Sequence[Job]) -> Found:
    """The trials of each cell, from its runs."""
    runs: dict[str, list[Run]] = {}
    for job in jobs:
        runs.setdefault(job.cell.name, []).append(Run.read(job.path))
    return trials(chosen, grid, runs)


def of_kept(evidence: Evidence) -> Found:
    """The trials of each cell, from the kept runs."""
    return trials(evidence.study, evidence.study.grid(evidence.scale), evidence.runs)


def check(chosen: Study, scale: str, folders: Sequence[Path] = ()) -> None:
    """Refuses a grid whose key or split no run could be made with, before any is. BadInput."""
    assert chosen.tune is not None
    key = chosen.tune.key
    for cell in chosen.cells:
        cfg = config_at(cell.name, [f"scale={scale}", *cell.overrides], folders)
        if key not in (known := flat(plain_config(cfg, resolve=False), without=())):
            near = " or ".join(difflib.get_close_matches(key, known, n=2)) or "a key of the config"
            raise BadInput("tune.key", key, f"no such key; did you mean {near}?")
        if "task.data.validation" not in known:
            task = task_name(plain_config(cfg, resolve=False))
            remedy = "has no images to choose by; tune a study whose task has them"
            raise BadInput(f"cell {cell.name}: task", task, remedy)
        cfg.validation = chosen.tune.validation
        build(cfg, "task")


def write(chosen: Study, scale: str, grid: Grid, jobs: Sequence[Job]) -> str:
    """Writes the choice to the study's tuned.yaml; returns what to print."""
    assert chosen.tune is not None
    found, cells = of_jobs(chosen, grid, jobs), {}
    for cell, of_cell in found.items():
        one = of_cell[best(of_cell)]
        cells[cell] = {
            "value": float(one.value),
            "mean": round(one.mean, 4),
            "sd": None if np.isnan(one.sd) else round(one.sd, 4),
            "n": len(one.errors),
            "diverged": sum(trial.diverged for trial in of_cell),
            "tried": {float(trial.value): round(trial.mean, 4) for trial in of_cell},
        }
    content = {
        **chosen.tuned,
        scale: {
            "key": chosen.tune.key,
            "validation": chosen.tune.validation,
            "seeds": sorted({job.seed for job in jobs}),
            "commit": commits(jobs),
            "cells": cells,
        },
    }
    head = (
        f"# Written by `{chosen.again('')}`. Errors in percent on validation images, means over\n"
    )
    head += "# seeds; value is the best of those tried. A run that diverged counts as chance, 90.\n"
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    (chosen.folder / "tuned.yaml").write_text(head + text)
    values = ", ".join(f"{cell} {of_cell['value']:g}" for cell, of_cell in cells.items())
    return f"chosen {chosen.tune.key}, in {chosen.folder / 'tuned.yaml'}: {values}"


def commits(jobs: Sequence[Job]) -> list[str]:
    """The commits that the runs were made with."""
    origins = [provenance_of(job.path) for job in jobs]
    return sorted({str(origin.get("git_commit") or "unknown")[:7] for origin in origins})


def markdown(key: str, found: Found) -> str:
    """Each cell's best value and its mean validation error, beside every value that was tried."""
    lines = [
        f"| cell | best {key} | validation error, last-10 % | n | trials | all that were tried |"
    ]
    lines.append("|---|---:|---:|---:|---:|---|")
    for cell, of_cell in found.items():
        one = of_cell[best(of_cell)]
        spread = "" if np.isnan(one.sd) else f" ± {one.sd:.2f}"
        where = "" if inside(of_cell) else " (at an end of its grid)"
        tried = "; ".join(
            f"{t.value:g}: {t.mean:.2f}" + (f" ({t.diverged} diverged)" if t.diverged else "")
            for t in of_cell
            if t.errors
        )
        line = [cell, f"{one.value:g}{where}", f"{one.mean:.2f}{spread}", str(len(one.errors))]
        lines.append("| " + " | ".join([*line, str(len(of_cell)), tried]) + " |")
    return "\n".join(lines)
