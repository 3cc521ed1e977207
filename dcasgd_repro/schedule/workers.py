"""Workers: laws of their times, and the message logs that busy workers make.

A worker pulls, computes, sends its gradient and starts again; when it does so is drawn from a law.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole, in_words
from dcasgd_repro.schedule.log import MAX_WORKERS, PULL, PUSH, Schedule, first


@dataclass(frozen=True)
class Law(ABC):
    """Random times in seconds with mean ``mean_s``, from 0, computing 1e-9, to below 1e9."""

    mean_s: float

    def __post_init__(self) -> None:
        check_number("mean_s", self.mean_s, 0, 1e9)

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """The next n times of ``rng``, in seconds; two calls give what one longer call gives."""

    def drawn(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """``sample``, held to what it must give: float64 [n], finite, not negative. BadInput."""
        try:
            times = self.sample(rng, n)
        except BadInput:
            raise
        except Exception as error:  # whatever a law of theirs raises
            raise self._refused(f"raises {in_words(error)}") from None
        if not isinstance(times, np.ndarray):
            raise self._refused(f"returns a {type(times).__name__}; give an array, float64 [{n}]")
        if times.shape != (n,) or times.dtype != np.float64:
            found = f"{times.dtype} {[*times.shape]}"
            raise self._refused(f"returns {found} for n={n}; give float64 [{n}]")
        if not (times >= 0).all() or not np.isfinite(times).all():
            odd = times[~(np.isfinite(times) & (times >= 0))][0]
            raise self._refused(f"returns the time {odd:g}; times are finite, and not negative")
        return times

    def check(self) -> None:
        """Tries a law of one's own: two calls against one longer one, and its mean. BadInput.

        The mean of 4,096 times may be a thousandth of ``mean_s``, or a thousand times as much: a
        log is made in pieces of that size.
        """
        if type(self).__module__.startswith("dcasgd_repro."):  # held to it by tests
            return
        one, other = np.random.default_rng(0), np.random.default_rng(0)
        whole = self.drawn(one, 4096)
        parts = np.concatenate([self.drawn(other, 5), self.drawn(other, 4091)])
        if not np.array_equal(whole, parts):
            raise self._refused("must give in two calls what one longer call gives, of rng alone")
        if not self.mean_s / 1000 <= (mean := float(whole.mean())) <= 1000 * self.mean_s:
            raise self._refused(f"has the mean {mean:g}, and mean_s is {self.mean_s:g}")

    def _refused(self, remedy: str) -> BadInput:
        return BadInput("schedule", f"{type(self).__name__}.sample", remedy)


@dataclass(frozen=True)
class Constant(Law):
    """The same time always."""

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return np.full(n, float(self.mean_s))


@dataclass(frozen=True)
class Exponential(Law):
    """Memoryless times; the coefficient of variation is 1."""

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.exponential(self.mean_s, n)


@dataclass(frozen=True)
class Gamma(Law):
    """Gamma times of shape 1/cv^2, where cv is standard deviation / mean."""

    cv: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("cv", self.cv, 0, 5, "[]")  # beyond, gamma times underflow to zero

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        if self.cv < 1e-8:  # no longer seen in a float64, and 1/cv^2 must stay finite
            return np.full(n, float(self.mean_s))
        return rng.gamma(self.cv**-2, self.mean_s * self.cv**2, n)


@dataclass(frozen=True)
class Lognormal(Gamma):
    """Log-normal times, sigma^2 = log(1 + cv^2): the same mean and cv, a longer tail."""

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        variance = math.log1p(self.cv**2)
        return self.mean_s * rng.lognormal(-variance / 2, math.sqrt(variance), n)


@dataclass(frozen=True)
class Shifted(Law):
    """A least time, and beyond it gamma or log-normal ones: ``least_s + rest``."""

    mean_s: float = field(init=False)
    least_s: float
    rest: Gamma

    def __post_init__(self) -> None:
        check_number("least_s", self.least_s, 0, 1e9)
        object.__setattr__(self, "mean_s", self.least_s + self.rest.mean_s)
        super().__post_init__()

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return self.least_s + self.rest.sample(rng, n)


@dataclass(frozen=True)
class Summed(Law):
    """The sum of ``times`` times of a law: those of a push of so many local steps."""

    mean_s: float = field(init=False)
    law: Law
    times: int

    def __post_init__(self) -> None:
        check_whole("times", self.times)
        object.__setattr__(self, "mean_s", self.times * self.law.mean_s)
        super().__post_init__()

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        each = self.law.sample(rng, n * self.times).reshape(n, self.times)
        total: NDArray[np.float64] = each.sum(axis=1)
        return total


def check_law(key: str, law: object) -> None:
    """Refuses what is no law of times, or one of one's own that ``Law.check`` refuses: BadInput."""
    if not isinstance(law, Law):
        remedy = "a law of times: Constant, Exponential, Gamma, Lognormal"
        raise BadInput(key, law, f"{remedy}; one of yours as schedule=my_law:MyLaw")
    law.check()


class Busy(ABC):
    """Workers that are never idle: the log that their cycles make, whatever these are drawn from.

    A cycle is the time from a pull to the push, and from there to the next pull. All pull at clock
    0; ties go to the lower worker. Behind a barrier the next round starts when the last push and
    the slowest request are in.
    """

    workers: int
    seed: int
    barrier: bool

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        return first(pushes, self._rounds(pushes) if self.barrier else self._merged(pushes))

    def cycles(self, worker: int) -> Iterator[tuple[float, float]]:
        """A worker's cycles: seconds from its pull to its push, from its push to its next pull."""
        rngs = self._streams(worker)
        while True:
            yield from zip(
                *(part.tolist() for part in self._cycles(worker, rngs, 256)), strict=True
            )

    @abstractmethod
    def _cycle_s(self, worker: int) -> float:
        """The mean of a worker's cycle, in seconds."""

    @abstractmethod
    def _cycles(
        self, worker: int, rngs: list[np.random.Generator], n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The next n cycles: seconds from pull to push [n], from push to the next pull [n]."""

    def _streams(self, worker: int) -> list[np.random.Generator]:
        seeds = [np.random.SeedSequence(self.seed, spawn_key=(i, worker)) for i in (0, 1)]
        return [np.random.default_rng(seed) for seed in seeds]

    def _clocks(self, worker: int, until_s: float) -> NDArray[np.float64]:
        """Clocks of one worker's messages up to ``until_s``: pull, push, pull, ..."""
        cycle_s, rngs = self._cycle_s(worker), self._streams(worker)
        clocks = np.zeros(1)
        while clocks[-1] <= until_s:
            n = int(1.05 * (until_s - clocks[-1]) / cycle_s) + 16
            steps = np.empty(2 * n + 1)
            steps[0] = clocks[-1]  # summed in one chain, so that the block size leaves no trace
            steps[1::2], steps[2::2] = self._cycles(worker, rngs, n)
            clocks = np.concatenate([clocks[:-1], np.cumsum(steps)])
        return clocks[: np.searchsorted(clocks, until_s, side="right")]

    def _merged(self, pushes: int) -> Schedule:
        rate = sum(1 / self._cycle_s(m) for m in range(self.workers))
        until_s = 1.01 * (pushes + self.workers) / rate  # a guess, and more where it falls short
        while True:
            parts = [self._clocks(m, until_s) for m in range(self.workers)]
            counts = np.array([len(part) for part in parts])
            if np.sum(counts // 2) >= pushes:
                break
            until_s *= 1.2
        clock = np.concatenate(parts)
        del parts  # as large as the log
        kind = np.concatenate([np.arange(n) % 2 == PUSH for n in counts])  # pull, push, ...
        worker = np.repeat(np.arange(self.workers, dtype=np.int32), counts)
        # Laid out worker by worker, a stable sort breaks ties by worker and then by sequence.
        order = np.argsort(clock, kind="stable")
        return Schedule(clock[order], kind[order], worker[order], self.workers)

    def _rounds(self, pushes: int) -> Schedule:
        m, rounds = self.workers, -(-pushes // self.workers)
        work, request = np.empty((rounds, m)), np.empty((rounds, m))
        for i in range(m):
            work[:, i], request[:, i] = self._cycles(i, self._streams(i), rounds)
        length_s = work.max(axis=1) + request.max(axis=1)
        start = np.cumsum(np.concatenate([[0.0], length_s[:-1]]))[:, None]
        arrival = start + work
        clock = np.hstack([np.repeat(start, m, axis=1), np.sort(arrival, axis=1)])
        sender = np.argsort(arrival, axis=1, kind="stable")
        worker = np.hstack([np.broadcast_to(np.arange(m), (rounds, m)), sender])
        kind = np.broadcast_to(np.repeat([PULL, PUSH], m), (rounds, 2 * m))
        return Schedule(clock.ravel(), kind.ravel(), worker.ravel(), m)


@dataclass(frozen=True)
class Generated(Busy):
    """Workers that are never idle, each with its own random times.

    A worker whose pull reaches the server at clock p pushes at
    p + compute/speed + (1 - request_share) * communication, and pulls again request_share *
    communication later (0: the pull rides on the push). All pull at clock 0. Ties go to the lower
    worker. A single worker holds the weights itself: no communication time.

    speeds: M factors. ramp: speeds rise evenly from 1 (worker 0) to ramp (worker M-1). straggler:
    worker 0 is that many times slower. The three multiply.
    barrier: all pull in worker order, all push, and the next round starts when the last push is in
    (and the slowest request, request_share > 0). The log may end in the middle of a round.

    Compute and communication of worker m have streams of their own, from (seed, stream, m): more
    workers or more pushes leave the times there were as they are, bit for bit (a ramp alone
    changes the speeds with M). Raises BadInput naming the field.
    """

    workers: int
    seed: int
    compute: Law
    communication: Law = Constant(0.0)
    speeds: Sequence[float] | None = None
    ramp: float = 1.0
    straggler: float = 1.0
    request_share: float = 0.0
    barrier: bool = False

    def __post_init__(self) -> None:
        check_whole("workers", self.workers, 1, MAX_WORKERS)
        check_whole("seed", self.seed, 0)
        for key, law in (("compute", self.compute), ("communication", self.communication)):
            check_law(key, law)
        check_number("compute.mean_s", self.compute.mean_s, 1e-9, 1e9)
        check_number("ramp", self.ramp, 1e-6, 1e6)
        check_number("straggler", self.straggler, 1e-6, 1e6)
        check_number("request_share", self.request_share, 0, 1, "[]")
        check_choice("barrier", self.barrier, (True, False))
        if self.speeds is not None:
            if not isinstance(self.speeds, Sequence) or len(self.speeds) != self.workers:
                raise BadInput("speeds", self.speeds, f"a list of {self.workers} factors")
            for m, speed in enumerate(self.speeds):
                check_number(f"speeds[{m}]", speed, 1e-6, 1e6)

    def _travel(self) -> Law:
        return self.communication if self.workers > 1 else Constant(0.0)

    @cached_property
    def _speeds(self) -> NDArray[np.float64]:
        speeds = np.linspace(1.0, self.ramp, self.workers)
        speeds[0] /= self.straggler
        return speeds if self.speeds is None else speeds * np.array(list(self.speeds), float)

    def _cycle_s(self, worker: int) -> float:
        return float(self.compute.mean_s / self._speeds[worker] + self._travel().mean_s)

    def _cycles(
        self, worker: int, rngs: list[np.random.Generator], n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        work = self.compute.drawn(rngs[0], n) / self._speeds[worker]
        travel = self._travel().drawn(rngs[1], n)
        return work + (1 - self.request_share) * travel, self.request_share * travel


def stepping(schedule: Any, steps: int) -> Any:
    """The schedule of the same workers where each push is of so many gradients.

    A push of ``Generated`` workers takes that many times of their ``compute``, and communicates
    once, in a reactive schedule too. Others know of pushes only, and stay as they are.
    """
    if isinstance(times := getattr(schedule, "times", None), Generated):
        return replace(schedule, times=stepping(times, steps))
    if steps == 1 or not isinstance(schedule, Generated):
        return schedule
    return replace(schedule, compute=Summed(schedule.compute, steps))


@dataclass(frozen=True)
class ConstantDelay:
    """Every push has the delay ``delay``, after a warm-up of 0, 1, ..., delay-1.

    Round robin over delay + 1 workers, one simulated second a cycle; delay 0 is sequential SGD.
    """

    delay: int
    workers: int

    def __post_init__(self) -> None:
        check_whole("delay", self.delay, 0, MAX_WORKERS - 1)
        check_whole("workers", self.workers, 1, MAX_WORKERS)
        if self.workers != self.delay + 1:
            remedy = f"a constant delay of {self.delay} needs {self.delay + 1} worker(s)"
            raise BadInput("workers", self.workers, f"{remedy}: set workers={self.delay + 1}")

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push."""
        return Generated(self.workers, seed=0, compute=Constant(1.0)).messages(pushes)
