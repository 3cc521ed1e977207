"""What claims and tables are about: each measure of a run defined once. Imports no torch.

A measure reads a run's config, summary and metrics.csv; errors are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from dcasgd_repro.run.identity import images_a_push
from dcasgd_repro.run.read import Run, last_errors


class Study(Protocol):
    """What a study says of its measures, see ``study.KEYS``."""

    @property
    def drop(self) -> int: ...
    @property
    def epochs(self) -> Sequence[float]: ...
    @property
    def level(self) -> float: ...


@dataclass(frozen=True)
class Measure:
    """A number of a run, nan where it has none."""

    name: str
    unit: str
    words: str  # as a sentence has it
    read: Callable[[Run, Study], float]
    is_error: bool = False  # a test or training error: a run that diverged counts as chance
    form: str = ".2f"  # of its differences


def chance(run: Run) -> float:
    """The error of guessing, in percent: what a run that diverged counts as."""
    classes = run.config.get("task.model.classes") or 10  # CIFAR-10's networks have no such key
    return 100 * (1 - 1 / int(classes))


def last10(run: Run, _: Study) -> float:
    errors = last_errors(run.metrics, run.config, "test_error")
    return 100 * float(errors.mean()) if len(errors) else math.nan


def before_drop(run: Run, chosen: Study) -> float:
    """Mean test error over the last fifth of the epochs before the study's ``drop``.

    Those epochs are counted from the drop before it, or from the start of the run.
    """
    drops = [0.0, *run.config["lr.milestones"]]
    if len(drops) <= chosen.drop:
        return math.nan
    start, end = drops[chosen.drop - 1 : chosen.drop + 1]
    rows = run.metrics.dropna(subset=["test_error"])
    # An evaluation comes with the first round of pushes that ends its epoch.
    late = run.config["workers"] * images_a_push(run.config) / run.config["images"]
    within = rows["epoch"].between(start + 0.8 * (end - start) - 1e-6, end + late)
    return 100 * float(rows[within]["test_error"].mean())


def curve(run: Run, column: str, against: str = "epoch") -> pd.DataFrame:
    """The epochs (or ``against``) at which a run has that error, and the error in percent.

    An evaluation stands at its own epoch; ``batch_error``, a mean since the evaluation before, in
    the middle of the two.
    """
    if column not in run.metrics:  # kept by an older version
        return pd.DataFrame({against: [], "error": []})
    rows = run.metrics.dropna(subset=["test_loss"])
    at = rows[against]
    if column == "batch_error":
        at = (at + at.shift(fill_value=0.0)) / 2
    return pd.DataFrame({against: at, "error": 100 * rows[column]}).dropna()


def at_epochs(column: str) -> Callable[[Run, Study], float]:
    """Mean over the evaluations at the study's ``epochs``; nan where one of them is missing."""

    def read(run: Run, chosen: Study) -> float:
        rows = run.metrics.dropna(subset=["test_loss"])
        late = run.config["workers"] * images_a_push(run.config) / run.config["images"]
        found = []
        for epoch in chosen.epochs:
            within = rows[rows["epoch"].between(epoch - 1e-6, epoch + late)]
            found.append(within[column].iloc[0] if column in within and len(within) else math.nan)
        return 100 * float(np.mean(found)) if found else math.nan

    return read


def reaches(column: str, against: str = "epoch") -> Callable[[Run, Study], float]:
    """The first epoch (or ``against``) at the study's ``level``: linear in between, chance at 0.

    Infinite where that is never reached; nan where the error was not taken.
    """

    def read(run: Run, chosen: Study) -> float:
        rows = curve(run, column, against)
        if rows.empty:
            return math.nan
        at = np.array([0.0, *rows[against]])
        errors = np.array([chance(run), *rows["error"]])
        under = np.flatnonzero(errors <= chosen.level)
        if not len(under):
            return math.inf
        k = int(under[0])
        if not k:
            return 0.0
        part = (errors[k - 1] - chosen.level) / (errors[k - 1] - errors[k])
        return float(at[k - 1] + part * (at[k] - at[k - 1]))

    return read


def summary(key: str) -> Callable[[Run, Study], float]:
    """A number that the run's summary has."""

    def read(run: Run, _: Study) -> float:
        value = run.summary.get(key)
        if run.until is not None:  # the summary may be of more than that
            rows = run.metrics[key.removesuffix("_final")].dropna()
            value = None if rows.empty else rows.iloc[-1]
        return math.nan if value is None else float(value)

    return read


ALL = (
    Measure(
        "last10",
        "points",
        "the last-10 error (the mean of the last ten evaluations after the last drop of the "
        "learning rate)",
        last10,
        is_error=True,
    ),
    Measure(
        "before_drop",
        "points",
        "the mean test error over the last fifth of the epochs before a drop of the learning rate",
        before_drop,
        is_error=True,
    ),
    Measure(
        "train_error",
        "points",
        "the training error of w, the mean over the epochs that claim.md names",
        at_epochs("train_error"),
        is_error=True,
    ),
    Measure(
        "batch_error",
        "points",
        "the mini-batches' own training error, the mean over the epochs that claim.md names",
        at_epochs("batch_error"),
        is_error=True,
    ),
    Measure(
        "epochs_to",
        "epochs",
        "the epochs until the training error of w is at the level that claim.md names",
        reaches("train_error"),
    ),
    Measure(
        "batch_epochs_to",
        "epochs",
        "the epochs until the mini-batches' own training error is at the level that claim.md names",
        reaches("batch_error"),
    ),
    Measure(
        "seconds_to",
        "s",
        "the simulated seconds until the test error is at the level that claim.md names",
        reaches("test_error", "simulated_s"),
    ),
    Measure("simulated_s", "s", "the simulated seconds", summary("simulated_s")),
    Measure("test_loss", "", "the final test loss", summary("test_loss_final"), form=".3g"),
)
MEASURES = {measure.name: measure for measure in ALL}
