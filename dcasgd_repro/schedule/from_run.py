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
from dcasgd_repro.schedule.workers import Busy, Gamma, Lognormal, Shifted

FEWEST = 30  # durations of a worker: fewer say little of a tail
MOST_LOST = 0.1  # of a worker's gradients: where more were lost, its fast ones are what is left
DIGITS = 6  # of a fitted number: sums differ by less from processor to processor
EVEN = 1e-6  # relative: gaps between pushes that differ by less are made up
EACH = "give [mean_s, cv, least_s, law] of each worker"
LAWS = {"gamma": Gamma, "lognormal": Lognormal}
WIDEST = 4.999  # cv of a fitted rest: rounded, it stays below the 5 of Gamma
CHANCE = 0.9  # over sqrt(n): a normal law fitted to its own n draws is seldom farther from them
APART = 0.1  # of two distribution functions: where they differ by more the law is another


@dataclass(frozen=True)
class FromRun(Busy):
    """Workers that are never idle, their durations drawn anew by laws fitted to a recorded run.

    run: a run directory, or any folder with a schedule.csv.gz; made by a cluster or simulated.
    workers: M, any number; worker m is like the run's worker m modulo its number of workers.
    busy, away: [mean_s, cv, least_s, law] of each of the run's workers, of the seconds from its
    pull to its push and from there to its next pull; the law of what exceeds least_s is ``gamma``
    or ``lognormal``. None: fitted here, see ``fitted``; given: the run is not read.
    barrier: the new workers go in synchronous rounds.

    All draws are independent: slow hours, and workers that are slow together, are not in it. Nor
    is the time that a worker was down. The streams are those of ``Generated``. Raises BadInput; see
    ``durations`` for the runs that are refused.
    """

    run: str | Path | None
    workers: int
    seed: int
    barrier: bool = False
    busy: Sequence[Sequence[Any]] | None = field(default=None, repr=False)
    away: Sequence[Sequence[Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_whole("workers", self.workers, 1, MAX_WORKERS)
        check_whole("seed", self.seed, 0)
        check_choice("barrier", self.barrier, (True, False))
        if not isinstance(self.run, str | Path | None):
            raise BadInput("run", self.run, "give the path of a run directory")
        if isinstance(self.run, Path):  # a config holds text
            object.__setattr__(self, "run", str(self.run))
        if self.busy is None and self.away is None:
            found = durations(self.recorded(), str(self.run))
            for key in Durations._fields[:2]:
                rows = tuple(fitted(getattr(one, key)) for one in found)
                object.__setattr__(self, key, rows)
        _ = self.laws  # which checks what was given

    @cached_property
    def laws(self) -> list[tuple[Shifted, Shifted]]:
        """Of each of the run's workers: from its pull to its push, from there to its next pull."""
        busy, away = (
            [_law(key, row, mean_s) for row in _rows(key, getattr(self, key))]
            for key, mean_s in (("busy", 1e-9), ("away", 0.0))
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

    def like(self, worker: int) -> tuple[Shifted, Shifted]:
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
    gradients, where all are 0, and where the pushes are evenly spaced: schedule=delays makes such a
    clock up, and a server that is never free makes one too.
    """
    gaps = np.diff(log.clock[log.kind == PUSH])
    if log.workers > 1 and len(gaps) and np.ptp(gaps) <= EVEN * gaps.mean():
        what = "its clock may be made up, or the server alone sets the pace"
        raise BadInput(
            "run", run, f"its pushes are evenly spaced: {what}; it tells no worker's time"
        )
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


def fitted(seconds: NDArray[np.float64]) -> tuple[float, float, float, str]:
    """The law nearest to durations: its mean, its cv, the least time and the name of the rest.

    Of gamma and log-normal laws, by maximum likelihood and by moments, the one whose distribution
    function is nearest (the Kolmogorov-Smirnov distance). A least time is tried only where no law
    without one is near enough for chance; it is never above the smallest duration. Near laws may
    be taken for each other: workers that are alike can get different ones. The mean is that of the
    durations but for a log-normal law by maximum likelihood, which one stall hardly moves.
    Durations that do not differ have cv 0; beyond a cv of 5 the rest is cut to that. Numbers have
    ``DIGITS`` digits.
    """
    mean, least, n = seconds.mean(), seconds.min(), len(seconds)
    if n < 2 or seconds.std() <= EVEN * mean:
        return _rounded(mean), 0.0, 0.0, "gamma"
    found = _tried(seconds, 0.0)
    if min(found)[0] > CHANCE / np.sqrt(n):
        below = np.geomspace(1 / n, 10, 12) * (np.median(seconds) - least)
        for shift in sorted({_rounded(least - gap) for gap in below if gap < least}):
            found += _tried(seconds, shift) if shift <= least else []
    return min(found)[1]


def _tried(
    seconds: NDArray[np.float64], least_s: float
) -> list[tuple[float, tuple[float, float, float, str]]]:
    """Laws with a given least time, each with its distance."""
    from scipy import stats

    rest = seconds - least_s
    mean, cv = rest.mean(), min(rest.std(ddof=1) / rest.mean(), WIDEST)
    laws = [("gamma", mean, cv), ("lognormal", mean, cv)]
    if rest.min() > 0:  # else there is no likelihood
        shape, _, scale = stats.gamma.fit(rest, floc=0)
        logs = np.log(rest)
        variance = min(logs.var(), np.log1p(WIDEST**2))
        laws.append(("gamma", shape * scale, min(shape**-0.5, WIDEST)))
        laws.append(("lognormal", np.exp(logs.mean() + variance / 2), np.expm1(variance) ** 0.5))
    found = []
    for name, mean, cv in laws:
        whole_s = _rounded(least_s + mean)
        row = (whole_s, _rounded(cv * mean / (least_s + mean)), least_s, name)
        if row[1] * whole_s <= 5 * (whole_s - least_s):  # rounded, it may be no more than least_s
            found.append((apart(seconds, _law("busy", row, 0.0)), row))
    return found


def fit_table(schedule: FromRun) -> pd.DataFrame:
    """A row for each recorded worker: its durations from pull to push, and the law's.

    Columns: worker, durations, lost (gradients), of the law mean_s, cv, least_s and name, lag1
    (correlation of a duration with the next, which no draw has), p99 (of mean_s, recorded), fitted
    (the law's), apart (the largest difference of the two distribution functions), apart_away (the
    same of the times from a push to the next pull).
    """
    return pd.DataFrame(
        [
            {
                "worker": m,
                "durations": len(found.busy),
                "lost": found.lost,
                **_fit(found.busy, law),
                "apart_away": apart(found.away, away),
            }
            for m, (found, (law, away)) in enumerate(
                zip(durations(schedule.recorded(), str(schedule.run)), schedule.laws, strict=True)
            )
        ]
    )


def _fit(seconds: NDArray[np.float64], law: Shifted) -> dict[str, Any]:
    cv = law.rest.cv * law.rest.mean_s / law.mean_s
    said = {"mean_s": law.mean_s, "cv": cv, "least_s": law.least_s}
    if not cv:
        return {**said, "lag1": 0.0, "law": "constant", "p99": 1.0, "fitted": 1.0, "apart": 0.0}
    return {
        **said,
        "lag1": np.corrcoef(seconds[1:], seconds[:-1])[0, 1],
        "law": "log-normal" if isinstance(law.rest, Lognormal) else "gamma",
        "p99": np.quantile(seconds, 0.99) / law.mean_s,
        "fitted": distribution(law).ppf(0.99) / law.mean_s,
        "apart": apart(seconds, law),
    }


def apart(seconds: NDArray[np.float64], law: Shifted) -> float:
    """The largest difference of the distribution functions of durations and law; constant: 0."""
    if not law.rest.cv:
        return 0.0
    n, below = len(seconds), distribution(law).cdf(np.sort(seconds))
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - below).max(), (below - steps[:-1]).max()))


def distribution(law: Shifted) -> Any:
    """The law in scipy's words; its cv is not 0."""
    from scipy import stats

    rest = law.rest
    if isinstance(rest, Lognormal):
        sigma = np.sqrt(np.log1p(rest.cv**2))
        return stats.lognorm(sigma, law.least_s, rest.mean_s * np.exp(-(sigma**2) / 2))
    return stats.gamma(rest.cv**-2, law.least_s, rest.mean_s * rest.cv**2)


def _rows(key: str, given: Any) -> Sequence[Any]:
    if given is not None and (isinstance(given, str) or not isinstance(given, Sequence)):
        raise BadInput(key, given, EACH)
    return given or ()


def _law(key: str, row: Any, mean_s: float) -> Shifted:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 4:
        raise BadInput(key, row, EACH)
    whole_s, cv, least_s, name = row
    try:
        check_number("mean_s", whole_s, mean_s, 1e9)
        check_number("cv", cv, 0, 5, "[]")
        check_number("least_s", least_s, 0, whole_s, "[)" if cv else "[]")
        check_choice("law", name, tuple(LAWS))
        rest_s = whole_s - least_s
        return Shifted(least_s, LAWS[name](rest_s, cv * whole_s / rest_s if cv else 0.0))
    except BadInput as error:
        raise BadInput(key, list(row), str(error)) from None


def _rounded(value: Any) -> float:
    return float(f"{value:.{DIGITS}g}")


@lru_cache(maxsize=2)
def _loaded(file: Path, changed_ns: int, size: int) -> Schedule:
    return Schedule.load(file)
