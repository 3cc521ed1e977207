"""What disturbs workers: failures, pauses, late joiners, drift, slow-downs, a queue at the server.

The log of ``Disturbed`` workers is made message by message, since what disturbs them depends on the
clock, or on the other workers.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from dcasgd_repro.errors import BadInput, check_number, check_whole
from dcasgd_repro.schedule.log import PULL, PUSH, Schedule
from dcasgd_repro.schedule.workers import Busy, Generated, Law, check_law

ARRIVAL = 2  # of a push at a server with a queue; it is PUSH when it has been served
BLOCK = 256  # times drawn at once
PARTS = ("failures", "pauses", "late", "drift", "slow_downs", "queue")
FAILURES, PAUSES, LATE, SERVICE, SLOW_DOWNS = 2, 3, 4, 5, 6  # streams; Generated has 0 and 1


@dataclass(frozen=True)
class Failures:
    """Each worker is up for Exp(up_s) seconds, down for Exp(down_s), and so on, from up at clock 0.

    A failure loses what is being computed, as in a stop and restart of the process. When the worker
    is back it pulls, and computes its mini-batch anew, for a time that is drawn anew: two pulls in
    a row in the log. To a push that is on its way, or waits at the server, a failure does nothing.
    It is up ``up_s / (up_s + down_s)`` of the time.

    Source: the alternating renewal process of reliability theory; exponential times are our choice.
    """

    up_s: float
    down_s: float

    def __post_init__(self) -> None:
        _check_times(self, "up_s", "down_s")


@dataclass(frozen=True)
class Pauses:
    """While it computes, a worker pauses at random, and loses nothing: preemption, a slow disk.

    Per second of computing there are 1/apart_s pauses, a Poisson process; a pause takes
    Exp(length_s). A computation of x seconds then has the mean ``x (1 + length_s / apart_s)`` and
    the variance ``2 x length_s^2 / apart_s``. Source: the compound Poisson process; our choice.
    """

    apart_s: float
    length_s: float

    def __post_init__(self) -> None:
        _check_times(self, "apart_s", "length_s")


@dataclass(frozen=True)
class Late:
    """The last ``workers`` workers pull first at a clock of their own, drawn from the law ``at``.

    ``Constant(t0)`` lets them join at t0 together. Until then a worker has no part in anything.
    """

    workers: int
    at: Law

    def __post_init__(self) -> None:
        check_whole("workers", self.workers)
        check_law("at", self.at)


@dataclass(frozen=True)
class Drift:
    """Computing times grow, or shrink, evenly to ``to`` times their mean over ``over_s`` seconds.

    A computation that begins at clock t takes ``1 + (to - 1) min(t / over_s, 1)`` times as long as
    it was drawn: mean and standard deviation both. After over_s it stays at ``to``.
    """

    to: float
    over_s: float

    def __post_init__(self) -> None:
        check_number("to", self.to, 1e-3, 1e3, "[]")
        _check_times(self, "over_s")

    def factor(self, clock: float) -> float:
        return 1 + (self.to - 1) * min(clock / self.over_s, 1.0)


@dataclass(frozen=True)
class SlowDowns:
    """All workers are slow at the same time: episodes of Exp(length_s), Exp(apart_s) between them.

    A computation that begins in an episode takes ``factor`` times as long, whichever worker's it
    is; communication does not. Where nothing else takes time the order of messages hardly changes,
    and delays with it: what changes is the clock. Source: a Markov-modulated pace; our choice.
    """

    factor: float
    apart_s: float
    length_s: float

    def __post_init__(self) -> None:
        check_number("factor", self.factor, 1e-3, 1e3, "[]")
        _check_times(self, "apart_s", "length_s")


@dataclass(frozen=True)
class Disturbed(Generated):
    """``Generated`` workers that one or more of these disturb; None (all of them): nothing does.

    ``failures``, ``pauses``, ``late``, ``drift``, ``slow_downs``  see the classes
    ``queue``  a law of the server's service times: it serves one push at a time, in the order of
               arrival (ties: the lower worker), and a push counts, and its worker goes on, when it
               has been served. A pull takes the server no time. Its mean is the mean service time:
               the machine-repairman model, with the workers as machines

    A pause is added to a computation after its factors, of drift and slow-down, have multiplied it.

    Under a barrier a worker that fails begins the same round anew when it is back; w has not moved
    since, and the log leaves its second pull out. Late joiners are refused there.

    Every disturbance has streams of its own, from (seed, stream, worker), slow-downs one for all:
    each leaves the drawn times of ``Generated`` and of the others as they are. Without any, the log
    is that of ``Generated``, bit for bit. Raises BadInput naming the field.
    """

    failures: Failures | None = None
    pauses: Pauses | None = None
    late: Late | None = None
    drift: Drift | None = None
    slow_downs: SlowDowns | None = None
    queue: Law | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = {"failures": Failures, "pauses": Pauses, "late": Late, "drift": Drift}
        for key, kind in {**kinds, "slow_downs": SlowDowns}.items():
            if not isinstance(value := getattr(self, key), kind | None):
                raise BadInput(key, value, f"give a {kind.__name__}, as schedule={key} has it")
        if self.queue is not None:
            check_law("queue", self.queue)
        if self.late is not None:
            if self.late.workers >= self.workers:
                remedy = f"one of {self.workers} must be there at the start; give less"
                raise BadInput("late.workers", self.late.workers, remedy)
            if self.barrier:
                remedy = "a round is of all workers; leave out the barrier or the late joiners"
                raise BadInput("barrier", True, remedy)
        self._check_pace()

    def _check_pace(self) -> None:
        """Refuses times with which no log would ever be made."""
        runs_s = float(self.compute.mean_s / self._speeds.min())
        runs_s *= max(1.0, self.drift.to if self.drift else 1.0)
        runs_s *= max(1.0, self.slow_downs.factor if self.slow_downs else 1.0)
        paused = self.pauses.length_s / self.pauses.apart_s if self.pauses else 0.0
        computes_s = runs_s * (1 + paused)
        if self.failures and self.failures.up_s < computes_s:
            remedy = f"a computation takes {computes_s:g} s, and few would end; give at least that"
            raise BadInput("failures.up_s", self.failures.up_s, remedy)
        cycle_s = computes_s + self._travel().mean_s
        cycle_s += self.workers * (self.queue.mean_s if self.queue else 0.0)
        # What may come too often: its key and number, the seconds between two, a worker's own.
        often: list[tuple[str, float, float, float]] = []
        if part := self.failures:
            often += [("failures.up_s", part.up_s, part.up_s + part.down_s, cycle_s)]
            cycle_s += part.down_s
        if pauses := self.pauses:
            often += [("pauses.apart_s", pauses.apart_s, pauses.apart_s, runs_s)]
        if slow := self.slow_downs:
            often += [("slow_downs.apart_s", slow.apart_s, slow.apart_s, cycle_s)]
        for key, value, between_s, within_s in often:
            if between_s < within_s / 1000:
                remedy = f"that is over 1,000 in {within_s:g} s, a worker's mean time; give more"
                raise BadInput(key, value, remedy)

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        if not any(getattr(self, key) for key in PARTS):
            return super().messages(pushes)
        lines = self.rounds() if self.barrier else _lines(self, lambda kind, m: ())
        return _up_to(pushes, lines, self)

    def rounds(self) -> Iterator[tuple[float, int, int]]:
        """The same with a barrier: all pull, all push, over and over."""
        each, slow, start = self.each(), self.slow(), 0.0
        while True:
            arrivals, away_s = [], 0.0
            for m, one in enumerate(each):
                yield start, PULL, m
                clock, computed = start, False
                while not computed:
                    clock, computed = one.computes(one.up_at(clock), slow)
                arrivals.append((clock, m))
                away_s = max(away_s, one.away_s)
            free_s = 0.0
            for clock, m in sorted(arrivals):
                free_s = each[m].served(clock, free_s)
                yield free_s, PUSH, m
            start = free_s + away_s

    def each(self) -> list[_Worker]:
        """Its workers, as a log of them begins."""
        return [_Worker(self, m, float(speed)) for m, speed in enumerate(self._speeds)]

    def slow(self) -> Episodes | None:
        if self.slow_downs is None:
            return None
        apart_s, length_s = self.slow_downs.apart_s, self.slow_downs.length_s
        return Episodes(self.stream(SLOW_DOWNS, 0), apart_s, length_s)

    def stream(self, number: int, worker: int) -> np.random.Generator:
        """The random stream of a disturbance, of a worker."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(number, worker))
        return np.random.default_rng(seed)

    def drawn(self, worker: int, speed: float) -> Iterator[tuple[float, float, float]]:
        """What ``Generated`` draws of a worker's cycles, in seconds.

        Of its computing, undisturbed, of its push's way, and from its push to its next pull.
        """
        rngs, law, share = self._streams(worker), self._travel(), self.request_share
        while True:
            work, travel = self.compute.drawn(rngs[0], BLOCK), law.drawn(rngs[1], BLOCK)
            parts = (work / speed, (1 - share) * travel, share * travel)
            yield from zip(*(part.tolist() for part in parts), strict=True)


class Episodes:
    """From clock 0 on: not for Exp(apart_s) seconds, then for Exp(length_s), over and over."""

    def __init__(self, rng: np.random.Generator, apart_s: float, length_s: float) -> None:
        self._rng, self._means_s = rng, (apart_s, length_s)
        self._changes = [rng.exponential(apart_s)]

    def at(self, clock: float) -> tuple[bool, float]:
        """Whether one is under way at ``clock``, and when that changes."""
        changes = self._changes
        while changes[-1] <= clock:
            changes.append(changes[-1] + self._rng.exponential(self._means_s[len(changes) % 2]))
        passed = bisect_right(changes, clock)
        return passed % 2 == 1, changes[passed]


class _Worker:
    """A worker of ``Disturbed``, as its log is made.

    ``first_s`` is the clock of its first pull, ``away_s`` the time from its next push to the pull
    after that.
    """

    def __init__(self, times: Disturbed, worker: int, speed: float) -> None:
        self.times, self.first_s, self.away_s = times, 0.0, 0.0
        self._drawn = times.drawn(worker, speed)
        self._pausing = times.stream(PAUSES, worker)
        self._down = self._service = None
        if (failures := times.failures) is not None:
            rng = times.stream(FAILURES, worker)
            self._down = Episodes(rng, failures.up_s, failures.down_s)
        if (late := times.late) is not None and worker >= times.workers - late.workers:
            self.first_s = float(late.at.drawn(times.stream(LATE, worker), 1)[0])
        if times.queue is not None:
            self._service = _times(times.queue, times.stream(SERVICE, worker))

    def up_at(self, clock: float) -> float:
        """The first moment from ``clock`` on at which it is up."""
        if self._down is None:
            return clock
        down, until_s = self._down.at(clock)
        return until_s if down else clock

    def computes(self, clock: float, slow: Episodes | None) -> tuple[float, bool]:
        """When what it computes from ``clock`` on is at the server, and True.

        Where it fails before it has computed: when it does, and False.
        """
        times = self.times
        work_s, way_s, self.away_s = next(self._drawn)
        if times.drift:
            work_s *= times.drift.factor(clock)
        if slow and times.slow_downs and slow.at(clock)[0]:
            work_s *= times.slow_downs.factor
        if times.pauses:
            pauses = self._pausing.poisson(work_s / times.pauses.apart_s)
            work_s += self._pausing.gamma(pauses, times.pauses.length_s)
        if self._down and (fails := self._down.at(clock)[1]) < clock + work_s:
            return fails, False
        return clock + (work_s + way_s), True

    def served(self, clock: float, free_s: float) -> float:
        """When a push that arrives at ``clock`` has been served; the server is free at free_s."""
        return max(clock, free_s) + next(self._service) if self._service else clock


class _Steady:
    """A worker that nothing disturbs: its cycles are those that ``times`` draw."""

    first_s = away_s = 0.0

    def __init__(self, times: Busy, worker: int) -> None:
        self._cycles = times.cycles(worker)

    def up_at(self, clock: float) -> float:
        return clock

    def computes(self, clock: float, slow: Episodes | None) -> tuple[float, bool]:
        work_s, self.away_s = next(self._cycles)
        return clock + work_s, True

    def served(self, clock: float, free_s: float) -> float:
        return clock


Answer = Callable[[int, int], Sequence[int]]


def answered(times: Busy, pushes: int, answer: Answer) -> Schedule:
    """The log of ``times`` up to its ``pushes``-th push, where ``answer`` stops workers.

    ``answer(kind, worker)`` is told every message of the log in its order. After a push it gives
    the workers that stop now, of those that compute: each gives its computation up and pulls at
    that moment. What it gives after a pull is not read. What a stopped worker had sent to a queue
    is served in vain, if it has arrived. Raises BadInput where there is a barrier.
    """
    check_whole("pushes", pushes, 1)
    if times.barrier:
        remedy = "workers that may be stopped run freely; leave out the barrier"
        raise BadInput("barrier", True, remedy)
    return _up_to(pushes, _lines(times, answer), times)


def _up_to(pushes: int, lines: Iterator[tuple[float, int, int]], times: Busy) -> Schedule:
    clocks, kinds, workers = array("d"), array("B"), array("i")
    while pushes:
        clock, kind, m = next(lines)
        clocks.append(clock)
        kinds.append(kind)
        workers.append(m)
        pushes -= kind == PUSH
    column = np.array(workers, np.int32)
    late = times.late if isinstance(times, Disturbed) else None
    if late and (absent := times.workers - len(np.unique(column))):
        remedy = f"{absent} would join after the last push, at {clocks[-1]:.6g} s; give less"
        raise BadInput("late.at.mean_s", late.at.mean_s, remedy)
    return Schedule(np.array(clocks), np.array(kinds, np.uint8), column, times.workers)


def _lines(times: Busy, answer: Answer) -> Iterator[tuple[float, int, int]]:
    """Messages for ever: clock, kind and worker."""
    each: Sequence[_Worker | _Steady]
    if isinstance(times, Disturbed):
        each, slow, queued = times.each(), times.slow(), times.queue is not None
    else:
        each, slow, queued = [_Steady(times, m) for m in range(times.workers)], None, False
    sent, free_s = ARRIVAL if queued else PUSH, 0.0
    turn = [0] * times.workers  # how often it was stopped
    due = sorted((one.first_s, m, 0, PULL) for m, one in enumerate(each))
    while True:
        clock, m, of, kind = heappop(due)
        if of != turn[m]:  # it was stopped before this message
            continue
        one = each[m]
        if kind == ARRIVAL:
            free_s = one.served(clock, free_s)
            heappush(due, (free_s, m, of, PUSH))
            continue
        if kind == PULL and clock < (back_s := one.up_at(clock)):  # it is down
            heappush(due, (back_s, m, of, PULL))
            continue
        yield clock, kind, m
        stopped = answer(kind, m)
        if kind == PULL:
            there_s, computed = one.computes(clock, slow)
            heappush(due, (there_s, m, of, sent if computed else PULL))
            continue
        heappush(due, (clock + one.away_s, m, of, PULL))
        for other in stopped:
            turn[other] += 1
            heappush(due, (clock, other, turn[other], PULL))


def _times(law: Law, rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from law.drawn(rng, BLOCK).tolist()


def _check_times(part: object, *keys: str) -> None:
    for key in keys:
        check_number(key, getattr(part, key), 1e-9, 1e9, "[]")
