"""Workers like those of a recorded run: their durations fitted, and drawn anew for any M."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole
from dcasgd_repro.schedule.live import LOG
from dcasgd_repro.schedule.log import MAX_WORKERS, PULL, PUSH, Schedule
from dcasgd_repro.schedule.workers import Busy, Lognormal, Skewed

FEWEST = 30  # durations of a worker: fewer say little of a tail
MOST_LOST = 0.1  # of a worker's gradients: where more were lost, its fast ones are what is left
DIGITS = 6  # of a fitted number: sums differ by less from processor to processor
EVEN = 1e-6  # relative: gaps between pushes that differ by less are made up


@dataclass(frozen=True)
class FromRun(Busy):
    """Workers that are never idle, their durations drawn anew by laws fitted to a recorded run.

    run: a run directory, or any folder with a schedule.csv.gz; made by a cluster or simulated.
    workers: M, any number; worker m is like the run's worker m modulo its number of workers.
    busy, away: [mean_s, cv, skewness] of each of the run's workers, of the seconds from its pull to
    its push and from there to its next pull. None: fitted here; given: the run is not read.
    barrier: the new workers go in synchronous rounds.

    The law is ``Skewed``, by the three moments. All draws are independent: slow hours, and workers
    that are slow together, are not in it. The streams are those of ``Generated``. Raises BadInput;
    see ``durations`` for the runs that are refused.
    """

    run: str | Path | None
    workers: int
    seed: int
    barrier: bool = False
    busy: Sequence[Sequence[float]] | None = field(default=None, repr=False)
    away: Sequence[Sequence[float]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_whole("workers", self.workers, 1, MAX_WORKERS)
        check_whole("seed", self.seed, 0)
        check_choice("barrier", self.barrier, (True, False))
        if isinstance(self.run, Path):  # a config holds text
            object.__setattr__(self, "run", str(self.run))
        if self.busy is None and self.away is None:
            found = durations(self.recorded(), str(self.run))
            for key in Durations._fields[:2]:
                triples = tuple(moments(getattr(one, key)) for one in found)
                object.__setattr__(self, key, triples)
        _ = self.laws  # which checks what was given

    @cached_property
    def laws(self) -> list[tuple[Skewed, Skewed]]:
        """Of each of the run's workers: from its pull to its push, from there to its next pull."""
        busy, away = (
            [_law(key, triple, least_s) for triple in getattr(self, key) or ()]
            for key, least_s in (("busy", 1e-9), ("away", 0.0))
        )
        if not busy or len(busy) != len(away):
            raise BadInput("away", self.away, "give busy and away of each worker, or neither")
        return list(zip(busy, away, strict=True))

    def recorded(self) -> Schedule:
        """The run's own log. Raises BadInput where there is none."""
        if not self.run or self.run == "???":
            raise BadInput("run", self.run, "schedule=from_run needs schedule.run=RUN_DIR")
        file = Path(self.run) / LOG
        try:
            found = file.stat()
        except OSError:
            kept = f"has no {LOG}; kept runs leave it out: name the folder where it was made"
            remedy = kept if Path(self.run).is_dir() else "there is no such run directory"
            raise BadInput("run", self.run, remedy) from None
        return _loaded(file, found.st_mtime_ns, found.st_size)

    def like(self, worker: int) -> tuple[Skewed, Skewed]:
        """The laws of any worker of the new ones."""
        return self.laws[worker % len(self.laws)]

    def _cycle_s(self, worker: int) -> float:
        return sum(law.mean_s for law in self.like(worker))

    def _cycles(
        self, worker: int, rngs: list[np.random.Generator], n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        busy, away = self.like(worker)
        return busy.sample(rngs[0], n), away.sample(rngs[1], n)


class Durations(NamedTuple):
    """What a log says of a worker, in seconds; ``lost``: how often it pulled and did not push."""

    busy: NDArray[np.float64]  # from a pull to its push
    away: NDArray[np.float64]  # from a push to the next pull
    lost: int


def durations(log: Schedule, run: str) -> list[Durations]:
    """The durations of each worker of a log, in their order.

    Left out are the first computation of each worker and the one after a lost gradient: a process
    that starts is slow. Behind a barrier, waiting for others is not the worker's own time: no
    ``away``. Raises BadInput, about ``run``, where a worker has too few durations or lost too many
    gradients, where all are 0, and where the clock is made up, as schedule=delays does.
    """
    gaps = np.diff(log.clock[log.kind == PUSH])
    if log.workers > 1 and len(gaps) and np.ptp(gaps) <= EVEN * gaps.mean():
        remedy = "its pushes are evenly spaced: its clock is made up, and tells no worker's time"
        raise BadInput("run", run, remedy)
    order = np.argsort(log.worker.astype(np.uint16), kind="stable")
    ends = np.cumsum(np.bincount(log.worker, minlength=log.workers))[:-1]
    parts = (np.split(column[order], ends) for column in (log.clock, log.kind))
    found = []
    for m, (clock, kind) in enumerate(zip(*parts, strict=True)):
        seconds, pulls, pushes = np.diff(clock), kind[:-1] == PULL, kind[1:] == PUSH
        begun = np.concatenate([[False], ~pulls])[:-1]  # a push came before the pull
        one = Durations(
            seconds[pulls & pushes & begun],
            np.zeros(1) if log.in_rounds and log.workers > 1 else seconds[~pulls],
            int(np.count_nonzero(pulls & ~pushes)),
        )
        made = int(np.count_nonzero(pulls & pushes))
        if one.lost > MOST_LOST * made:
            what = f"worker {m} lost {one.lost} of {one.lost + made} gradients"
            raise BadInput("run", run, f"{what}: how long the lost ones took is not known")
        if len(one.busy) < FEWEST:
            what = f"worker {m} has {len(one.busy)} durations that count; {FEWEST} are needed"
            raise BadInput("run", run, f"{what}: name a longer run")
        if not one.busy.any():
            raise BadInput("run", run, f"worker {m} takes no time there")
        found.append(one)
    return found


def moments(seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, cv (at most 5, see ``Gamma``) and skewness of durations, to ``DIGITS`` digits."""
    from scipy import stats

    mean, spread = seconds.mean(), seconds.std(ddof=1) if len(seconds) > 1 else 0.0
    if spread <= EVEN * mean:
        return _rounded(mean), 0.0, 0.0
    skew = stats.skew(seconds, bias=False)
    return _rounded(mean), min(_rounded(spread / mean), 5.0), _rounded(skew)


def fit_table(schedule: FromRun) -> pd.DataFrame:
    """A row for each recorded worker: its durations from pull to push, and the law's.

    Columns: worker, durations, lost (gradients), mean_s, cv, skew, lag1 (correlation of a duration
    with the next, which no draw has), law, p99 (of the mean, recorded), fitted (the law's), apart
    (the largest difference of the two distribution functions).
    """
    return pd.DataFrame(
        [
            {"worker": m, "durations": len(found.busy), "lost": found.lost, **_fit(found.busy, law)}
            for m, (found, (law, _)) in enumerate(
                zip(durations(schedule.recorded(), str(schedule.run)), schedule.laws, strict=True)
            )
        ]
    )


def _fit(seconds: NDArray[np.float64], law: Skewed) -> dict[str, Any]:
    from scipy import stats

    name = "log-normal" if isinstance(law.rest, Lognormal) else "gamma"
    said = {"mean_s": law.mean_s, "cv": law.cv, "skew": law.skew, "lag1": 0.0, "law": "constant"}
    if not law.cv:
        return {**said, "p99": 1.0, "fitted": 1.0, "apart": 0.0}
    frozen = distribution(law)
    return {
        **said,
        "lag1": np.corrcoef(seconds[1:], seconds[:-1])[0, 1],
        "law": name,
        "p99": np.quantile(seconds, 0.99) / law.mean_s,
        "fitted": frozen.ppf(0.99) / law.mean_s,
        "apart": stats.ks_1samp(seconds, frozen.cdf).statistic,
    }


def distribution(law: Skewed) -> Any:
    """The law in scipy's words; its cv is not 0."""
    from scipy import stats

    rest = law.rest
    if isinstance(rest, Lognormal):
        sigma = np.sqrt(np.log1p(rest.cv**2))
        return stats.lognorm(sigma, law.least_s, rest.mean_s * np.exp(-(sigma**2) / 2))
    return stats.gamma(rest.cv**-2, law.least_s, rest.mean_s * rest.cv**2)


def _law(key: str, triple: Any, least_s: float) -> Skewed:
    if not isinstance(triple, Sequence) or isinstance(triple, str) or len(triple) != 3:
        raise BadInput(key, triple, "give [mean_s, cv, skewness] of each worker")
    try:
        law = Skewed(*triple)
        check_number("mean_s", law.mean_s, least_s)
    except BadInput as error:
        raise BadInput(key, list(triple), str(error)) from None
    return law


def _rounded(value: Any) -> float:
    return float(f"{value:.{DIGITS}g}")


@lru_cache(maxsize=2)
def _loaded(file: Path, changed_ns: int, size: int) -> Schedule:
    return Schedule.load(file)
