"""Delays turned into a message log: those of a real run, or any at all, by virtual workers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole
from dcasgd_repro.schedule.log import MAX_WORKERS, PULL, PUSH, Schedule

WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class FromDelays:
    """The workers' order of a recorded run, from its delays: ``last push = t - tau_t - 1``.

    path: a text file, a header or none, then a whole number a line: the delay tau_t >= 0 of push
    t = 0, 1, ..., counted in pushes between the worker's pull and its push.
    workers: M, those of the recorded run.

    Where every worker pulls right after its own push, push t comes from the worker that pushed at
    t - tau_t - 1, or has not pushed yet (tau_t = t). So the delays give the order of the workers,
    and only that one; they are numbered as they first appear.

    A file may begin in the middle of a run: the first push of each worker then has tau_t >= t, as
    its push before lies before the file. The order is as unique, but what those M first pushes were
    computed at is lost: in the log all workers pull at the start, so these have the delay t. All
    other delays are the file's.

    The order is repeated until there are as many pushes as are asked for, each worker going on
    where it was. At a seam, a worker's delay counts from its last push in the repeat before: up to
    M delays a repeat that nobody recorded.

    Clock: the file tells none, so M pushes a simulated second, evenly; a pull shares its push's.

    virtual: True for delays of any kind, which no order of workers need explain: see
    ``virtual_workers``. M is then more than the largest delay, and the delays are repeated. None
    (default) and False: as above.

    Raises BadInput, with the line where there is one: a number missing, not whole or negative; two
    pushes that follow the same push; another number of workers. A worker may stop before the end.
    """

    path: str | None
    workers: int
    virtual: bool | None = None

    def __post_init__(self) -> None:
        if self.virtual is not None:
            check_choice("virtual", self.virtual, (True, False))
        if not self.path or self.path == "???":
            raise BadInput("path", self.path, "schedule=delays needs schedule.path=FILE")
        check_whole("workers", self.workers, 1, MAX_WORKERS)

    @cached_property
    def _file(self) -> tuple[list[int], int]:
        return read_delays(Path(str(self.path)))

    @property
    def held(self) -> int:
        """The pushes in the file."""
        return len(self._file[0])

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        path = Path(str(self.path))
        delays, first = self._file
        if self.virtual:
            return virtual_workers(np.resize(np.array(delays), pushes), self.workers)
        order = worker_order(path, delays, first)
        found = max(order) + 1
        if found > self.workers:
            line = first + order.index(self.workers)
            remedy = f"{path} holds {found} (line {line} is of one too many); set workers={found}"
            raise BadInput("workers", self.workers, remedy)
        if found < self.workers:
            remedy = f"{path} holds {found}; set workers={found}, or give a file with all of them"
            raise BadInput("workers", self.workers, remedy)
        m = self.workers
        sender = np.resize(np.array(order, np.int32), pushes)
        seconds = np.arange(1, pushes + 1) / m
        clock = np.concatenate([np.zeros(m), np.repeat(seconds, 2)])
        kind = np.concatenate([np.full(m, PULL), np.tile([PUSH, PULL], pushes)])
        worker = np.concatenate([np.arange(m), np.repeat(sender, 2)])
        return Schedule(clock[:-1], kind[:-1], worker[:-1], m)  # ends with a push


@dataclass(frozen=True)
class DrawnDelays:
    """Delays drawn from a law, each by itself, as many papers assume; see ``virtual_workers``.

    workers: M, virtual, more than the largest delay. seed: of the draws.
    law: "uniform" (on 0, 1, ..., 2 mean, which is a whole number), "poisson" or "geometric" (on 0,
    1, ..., with the variance mean (1 + mean)). mean: of the law, in pushes. The first pushes have
    smaller ones: push t of 0, 1, ... has at most the delay t.

    Workers that are never idle do not make such delays: theirs have the mean M - 1, and depend on
    one another. Raises BadInput.
    """

    workers: int
    seed: int
    law: str = "uniform"
    mean: float = 3.5

    virtual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("workers", self.workers, 1, MAX_WORKERS)
        check_whole("seed", self.seed, 0)
        check_choice("law", self.law, ("uniform", "poisson", "geometric"))
        check_number("mean", self.mean, 0, MAX_WORKERS)
        if self.law == "uniform":
            if 2 * self.mean != int(2 * self.mean):
                raise BadInput("mean", self.mean, "a uniform delay has a multiple of 0.5")
            check_largest(int(2 * self.mean), self.workers)

    def drawn(self, pushes: int) -> NDArray[np.int64]:
        """The delays of the first so many pushes, before push t's is cut to t: int64 [pushes]."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(2,)))
        if self.law == "uniform":
            return rng.integers(0, int(2 * self.mean), pushes, endpoint=True)
        if self.law == "poisson":
            return rng.poisson(self.mean, pushes)
        return rng.geometric(1 / (1 + self.mean), pushes) - 1

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer one has the same pushes first."""
        check_whole("pushes", pushes, 1)
        return virtual_workers(self.drawn(pushes), self.workers)


def virtual_workers(delays: NDArray[np.int64], workers: int) -> Schedule:
    """The log whose push t has the delay ``min(delays[t], t)``, whatever the delays are.

    Push t is of worker t mod M, which pulls right after push ``t - tau_t - 1``; before, it waits.
    That can be where every delay is less than M; else BadInput. So a worker stands for no machine:
    a rule that keeps something for each worker, or counts its pushes, sees M equal ones in turn.

    Clock: M pushes a simulated second, evenly.
    """
    check_largest(int(delays.max()), workers)
    t = np.arange(len(delays))
    reads = np.zeros(max(len(t), workers), np.int64)  # one that never pushes pulls at the start
    reads[: len(t)] = np.maximum(t - delays, 0)
    # Before push t come the pulls of version t, in the order of their pushes.
    order = np.argsort(np.concatenate([2 * reads, 2 * t + 1]), kind="stable")
    clock = np.concatenate([reads, t + 1]) / workers
    kind = np.repeat([PULL, PUSH], [len(reads), len(t)])
    worker = np.concatenate([np.arange(len(reads)), t]) % workers
    return Schedule(clock[order], kind[order], worker[order], workers)


def check_largest(delay: int, workers: int) -> None:
    """Refuses a delay that so many virtual workers cannot give: BadInput."""
    if delay >= workers:
        remedy = f"the largest delay is {delay:,}, and each virtual worker gives a smaller one"
        raise BadInput("workers", workers, f"{remedy} than M: set workers={delay + 1}, or more")


def read_delays(path: Path) -> tuple[list[int], int]:
    """The delays in a file, and the number of the first one's line. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, ValueError) as error:
        raise BadInput("path", path, f"not a readable file of delays ({error})") from error
    lines = [line.strip() for line in text.split("\n")] if text else []
    first = 2 if lines and _is_header(lines[0]) else 1
    delays = []
    for line, text in enumerate(lines[first - 1 :], first):
        if not WHOLE.fullmatch(text):
            shown = text if len(text) <= 20 else f"{text[:20]}..."
            remedy = f"{shown!r} is no whole number; a line is one delay, as 7"
            raise BadInput("path", f"{path}:{line}", remedy)
        if int(text) < 0:
            raise BadInput("path", f"{path}:{line}", f"{text} is negative; a delay is 0 or more")
        delays.append(int(text))
    if not delays:
        raise BadInput("path", f"{path}:{first}", "holds no delay")
    return delays, first


def worker_order(path: Path, delays: Sequence[int], first: int) -> list[int]:
    """The worker of each push, numbered as they first appear. Raises BadInput; see FromDelays."""
    order: list[int] = []
    follower: dict[int, int] = {}  # a push (negative: before the file) -> its worker's next one
    # Where the run began, in the file or before it, every worker started: the one shared place.
    began = min(t - delay - 1 for t, delay in enumerate(delays))
    workers = 0
    for t, delay in enumerate(delays):
        before = t - delay - 1
        if before in follower and before != began:
            there = f"at line {first + before}" if before >= 0 else f"{-before} before the file"
            what = f"{delay} says that this worker's push before is {there}, as line"
            what += f" {first + follower[before]} says already; no worker pushes twice at once"
            what += ". schedule.virtual=true replays any delays"
            raise BadInput("path", f"{path}:{first + t}", what)
        follower[before] = t
        order.append(order[before] if before >= 0 else workers)
        workers += before < 0
    return order


def _is_header(line: str) -> bool:
    try:
        float(line.split(",")[0])
    except ValueError:
        return bool(line)
    return False
