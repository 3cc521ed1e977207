"""Message logs of the parameter server: generate, save, load, hash, measure the delays.

A schedule is the order in which a server meets ``pull m`` and ``push m``, the two branches of the
paper's Algorithm 2, with a clock in simulated seconds. A gradient's delay follows from that order.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import math
import os
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole

KINDS = ("pull", "push")
PULL, PUSH = 0, 1  # as stored in the column ``kind``: places in KINDS
COLUMNS = ["clock_s", "kind", "worker"]
MAX_WORKERS = 2**16  # sorting a log by worker is then a 16-bit radix sort
CHUNK = 2**16  # messages turned into Python objects at a time


class Message(NamedTuple):
    """One line of the log: simulated seconds, "pull" or "push", worker's number."""

    clock: float
    kind: str
    worker: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """A message log as read-only columns of equal length n; compare two by ``sha256()``.

    clock: float64[n], simulated seconds; kind: uint8[n], PULL or PUSH; worker: int32[n], numbers
    below ``workers``. ``schedule[a:b]`` is a Schedule of messages a..b-1 without a copy.
    """

    clock: NDArray[np.float64]
    kind: NDArray[np.uint8]
    worker: NDArray[np.int32]
    workers: int

    def __post_init__(self) -> None:
        for name, dtype in (("clock", np.float64), ("kind", np.uint8), ("worker", np.int32)):
            column = np.asarray(getattr(self, name), dtype).view()
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        if not len(self.clock) == len(self.kind) == len(self.worker):
            raise BadInput("schedule", "columns", "clock, kind and worker must be equally long")

    def __len__(self) -> int:
        return len(self.clock)

    def __iter__(self) -> Iterator[Message]:
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            kinds = map(KINDS.__getitem__, self.kind[part].tolist())
            columns = zip(self.clock[part].tolist(), kinds, self.worker[part].tolist(), strict=True)
            yield from map(Message._make, columns)

    def __getitem__(self, part: slice) -> Schedule:
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError("a schedule is cut as schedule[a:b]")
        return Schedule(self.clock[part], self.kind[part], self.worker[part], self.workers)

    @property
    def pushes(self) -> int:
        """Number T of gradients received."""
        return int(np.count_nonzero(self.kind == PUSH))

    @property
    def duration_s(self) -> float:
        """Simulated seconds from the first message to the last."""
        return float(self.clock[-1] - self.clock[0]) if len(self) else 0.0

    @property
    def in_rounds(self) -> bool:
        """Whether all M pull, then all M push, over and over: a barrier. True for one worker."""
        rounds = np.arange(len(self)) % (2 * self.workers) >= self.workers
        return bool(np.array_equal(self.kind == PUSH, rounds))

    def reads(self) -> NDArray[np.int64]:
        """The version each push was computed at: int64[T].

        A version is the number of pushes received before the worker's last pull; 0 for a worker
        that has not pulled, whose weights are w_0 in Algorithm 2.
        """
        pull = self.kind == PULL
        received = np.cumsum(~pull, dtype=np.int64)
        # In worker order a running maximum carries a pull's version to the pushes after it; an
        # offset that grows with the worker keeps it from passing to the next worker.
        offset = self.worker * np.int64(len(self) + 1)
        order = np.argsort(self.worker.astype(np.uint16), kind="stable")
        version = np.where(pull, received, 0) + offset
        version[order] = np.maximum.accumulate(version[order])
        version -= offset
        reads: NDArray[np.int64] = version[~pull]
        return reads

    def delays(self) -> NDArray[np.int64]:
        """tau_t = t - reads[t], int64[T]: pushes received between a push and its pull.

        Counted in pushes. In a barrier schedule they are 0..M-1 within each round, although under
        a rule that averages the M pushes of a round the delay in server UPDATES is zero.
        """
        reads = self.reads()
        return np.arange(len(reads)) - reads

    def sha256(self) -> str:
        """Hash of the three columns' little-endian bytes (of the messages, not of any file)."""
        digest = hashlib.sha256()
        for column, dtype in ((self.clock, "<f8"), (self.kind, "u1"), (self.worker, "<i4")):
            digest.update(np.ascontiguousarray(column, dtype).data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write ``clock_s,kind,worker`` as CSV, gzipped if the name ends in .gz.

        Atomic; the same schedule gives the same bytes; ``load`` gives every clock back bit for
        bit. Raises OSError where the file cannot be written.
        """
        path = Path(path)
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as raw:
                # No name and no time in the header: they would differ between equal schedules.
                gz = path.suffix == ".gz"
                target = gzip.GzipFile("", "wb", 6, raw, mtime=0) if gz else raw
                with io.TextIOWrapper(target, encoding="utf-8", newline="\n") as text:
                    text.write(",".join(COLUMNS) + "\n")
                    text.writelines(f"{clock!r},{kind},{m}\n" for clock, kind, m in self)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # renamed, or never made
                temporary.unlink()

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read what ``save`` writes, and check it line by line.

        Raises BadInput naming the file and its first bad line: every worker of 0..M-1 pulls and
        pushes in turn, a pull first; clocks are finite, not negative and never run back.
        """
        path = Path(path)
        try:
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8", newline="") as text:
                return _parse(path, text)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            raise BadInput("path", path, f"not a readable .csv or .csv.gz log ({error})") from error


def _parse(path: Path, text: TextIO) -> Schedule:
    rows = csv.reader(text)

    def bad(what: str, line: int | None = None) -> BadInput:
        return BadInput("path", f"{path}:{line or rows.line_num}", what)

    if next(rows, None) != COLUMNS:
        raise bad(f"the first line must be {','.join(COLUMNS)}", 1)
    clocks, kinds, workers = array("d"), array("B"), array("i")
    computing: set[int] = set()  # workers that have pulled and not yet pushed
    previous_s = 0.0
    for row in rows:
        try:
            number, kind, name = row
            clock_s, code, worker = float(number), KINDS.index(kind), int(name)
        except ValueError:
            raise bad("a row is a number, pull or push, and a worker's number") from None
        if not previous_s <= clock_s < math.inf:
            raise bad(f"clock {number} must be finite and not before {previous_s!r}")
        if not 0 <= worker < MAX_WORKERS:
            raise bad(f"worker {worker} must be a number from 0 to {MAX_WORKERS - 1}")
        if (code == PUSH) != (worker in computing):
            raise bad(f"{kind} {worker} is out of turn: a worker pulls, pushes, pulls, ...")
        (computing.add if code == PULL else computing.remove)(worker)
        clocks.append(clock_s)
        kinds.append(code)
        workers.append(worker)
        previous_s = clock_s
    if not clocks:
        raise bad("holds no message", 2)
    column = np.array(workers, np.int32)
    present = np.unique(column)
    absent = np.flatnonzero(present != np.arange(len(present)))
    if len(absent):
        line = int(np.argmax(column > absent[0])) + 2
        raise bad(f"worker {column[line - 2]}, but no worker {absent[0]}: number them 0..M-1", line)
    return Schedule(np.array(clocks), np.array(kinds, np.uint8), column, len(present))


def delay_table(schedule: Schedule) -> pd.DataFrame:
    """Delays in pushes: one row per worker, then "all".

    Columns: worker, pushes, mean, std (population), p50, p95, p99, max; NaN without a push.
    """
    delays, sender = schedule.delays(), schedule.worker[schedule.kind == PUSH]
    by_worker = delays[np.argsort(sender.astype(np.uint16), kind="stable")]
    ends = np.cumsum(np.bincount(sender, minlength=schedule.workers))[:-1]
    rows: list[list[object]] = []
    for name, tau in [*enumerate(np.split(by_worker, ends)), ("all", delays)]:
        points = [*np.percentile(tau, [50, 95, 99]), tau.max()] if len(tau) else [np.nan] * 4
        spread = [tau.mean(), tau.std()] if len(tau) else [np.nan] * 2
        rows.append([name, len(tau), *spread, *points])
    columns = ["worker", "pushes", "mean", "std", "p50", "p95", "p99", "max"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class Law(ABC):
    """Random times in seconds with mean ``mean_s``, at most 1e9 (0 is for communication only)."""

    mean_s: float

    def __post_init__(self) -> None:
        check_number("mean_s", self.mean_s, 0, 1e9)

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """The next n times of ``rng``, in seconds; two calls give what one longer call gives."""


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
class Generated:
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
            if not isinstance(law, Law):
                raise BadInput(key, law, "a law of times: Constant, Exponential, Gamma, Lognormal")
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

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        return _first(pushes, self._rounds(pushes) if self.barrier else self._merged(pushes))

    def _travel(self) -> Law:
        return self.communication if self.workers > 1 else Constant(0.0)

    def _speeds(self) -> NDArray[np.float64]:
        speeds = np.linspace(1.0, self.ramp, self.workers)
        speeds[0] /= self.straggler
        return speeds if self.speeds is None else speeds * np.array(list(self.speeds), float)

    def _streams(self, worker: int) -> list[np.random.Generator]:
        seeds = [np.random.SeedSequence(self.seed, spawn_key=(i, worker)) for i in (0, 1)]
        return [np.random.default_rng(seed) for seed in seeds]

    def _cycles(
        self, rngs: list[np.random.Generator], speed: float, n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The next n cycles: seconds from pull to push [n], from push to the next pull [n]."""
        work, travel = self.compute.sample(rngs[0], n) / speed, self._travel().sample(rngs[1], n)
        return work + (1 - self.request_share) * travel, self.request_share * travel

    def _clocks(self, worker: int, speed: float, until_s: float) -> NDArray[np.float64]:
        """Clocks of one worker's messages up to ``until_s``: pull, push, pull, ..."""
        cycle_s = self.compute.mean_s / speed + self._travel().mean_s
        rngs = self._streams(worker)
        clocks = np.zeros(1)
        while clocks[-1] <= until_s:
            n = int(1.05 * (until_s - clocks[-1]) / cycle_s) + 16
            steps = np.empty(2 * n + 1)
            steps[0] = clocks[-1]  # summed in one chain, so that the block size leaves no trace
            steps[1::2], steps[2::2] = self._cycles(rngs, speed, n)
            clocks = np.concatenate([clocks[:-1], np.cumsum(steps)])
        return clocks[: np.searchsorted(clocks, until_s, side="right")]

    def _merged(self, pushes: int) -> Schedule:
        speeds = self._speeds()
        rate = float(np.sum(1 / (self.compute.mean_s / speeds + self._travel().mean_s)))
        until_s = 1.01 * (pushes + self.workers) / rate  # a guess, and more where it falls short
        while True:
            parts = [self._clocks(m, float(s), until_s) for m, s in enumerate(speeds)]
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
        for i, speed in enumerate(self._speeds()):
            work[:, i], request[:, i] = self._cycles(self._streams(i), float(speed), rounds)
        length_s = work.max(axis=1) + request.max(axis=1)
        start = np.cumsum(np.concatenate([[0.0], length_s[:-1]]))[:, None]
        arrival = start + work
        clock = np.hstack([np.repeat(start, m, axis=1), np.sort(arrival, axis=1)])
        sender = np.argsort(arrival, axis=1, kind="stable")
        worker = np.hstack([np.broadcast_to(np.arange(m), (rounds, m)), sender])
        kind = np.broadcast_to(np.repeat([PULL, PUSH], m), (rounds, 2 * m))
        return Schedule(clock.ravel(), kind.ravel(), worker.ravel(), m)


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


@dataclass(frozen=True)
class FromFile:
    """A recorded or saved log, replayed up to the push asked for.

    workers: what the file must hold, None for whatever it does. barrier: the file must be in
    rounds (all M pull, then all M push). Raises BadInput where it is not so.
    """

    path: str | None
    workers: int | None = None
    barrier: bool = False

    def __post_init__(self) -> None:
        if not self.path or self.path == "???":
            raise BadInput("path", self.path, "schedule=file needs schedule.path=FILE")
        if self.workers is not None:
            check_whole("workers", self.workers, 1, MAX_WORKERS)

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push."""
        check_whole("pushes", pushes, 1)
        log = Schedule.load(str(self.path))
        if self.workers not in (None, log.workers):
            raise BadInput("workers", self.workers, f"{self.path} has workers={log.workers}")
        if pushes > log.pushes:
            remedy = f"{self.path} has {log.pushes}; ask for fewer, or record a longer log"
            raise BadInput("pushes", pushes, remedy)
        log = _first(pushes, log)
        if self.barrier and not log.in_rounds:
            remedy = f"{self.path} is not in rounds of {log.workers} pulls, then as many pushes"
            raise BadInput("barrier", self.barrier, remedy)
        return log


def _first(pushes: int, log: Schedule) -> Schedule:
    return log[: int(np.flatnonzero(log.kind == PUSH)[pushes - 1]) + 1]
