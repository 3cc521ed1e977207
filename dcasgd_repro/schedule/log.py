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
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dcasgd_repro.errors import BadInput, check_whole

KINDS = ("pull", "push")
PULL, PUSH = 0, 1  # as stored in the column ``kind``: places in KINDS
COLUMNS = ["clock_s", "kind", "worker"]
MAX_WORKERS = 2**16  # sorting a log by worker is then a 16-bit radix sort
CHUNK = 2**16  # messages turned into Python objects at a time
LONGEST = 2**28  # messages that are read of a file: 3.5 GB of memory
WIDEST = 200  # characters of a line, read of a file


class Message(NamedTuple):
    """One line of the log: simulated seconds, "pull" or "push", worker's number."""

    clock: float
    kind: str
    worker: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """The server's message log: n lines "pull m" or "push m" with their clock (Algorithm 2).

    Made by ``Generated(...).messages(pushes)`` or read by ``load``. Iterating gives Messages:

    >>> from dcasgd_repro import Constant, Generated
    >>> log = Generated(workers=2, seed=0, compute=Constant(1.0)).messages(pushes=2)
    >>> [(m.clock, m.kind, m.worker) for m in log]
    [(0.0, 'pull', 0), (0.0, 'pull', 1), (1.0, 'push', 0), (1.0, 'pull', 0), (1.0, 'push', 1)]
    >>> log.delays().tolist()
    [0, 1]

    Held as read-only columns. clock: float64[n], simulated seconds; kind: uint8[n], PULL or PUSH;
    worker: int32[n], numbers below ``workers``. ``log[a:b]`` is that part, without
    a copy. Compare two by ``sha256()``. Raises BadInput where the columns' lengths differ.
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
    def stopped(self) -> int:
        """Computations given up: pulls of workers that had not pushed since their last pull."""
        order = np.argsort(self.worker.astype(np.uint16), kind="stable")
        worker, kind = self.worker[order], self.kind[order]
        again = (worker[1:] == worker[:-1]) & (kind[1:] == PULL) & (kind[:-1] == PULL)
        return int(np.count_nonzero(again))

    @property
    def duration_s(self) -> float:
        """Simulated seconds from the first message to the last."""
        return float(self.clock[-1] - self.clock[0]) if len(self) else 0.0

    @property
    def in_rounds(self) -> bool:
        """True if all M pull, then all M push, over and over: a barrier, or a single worker."""
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

        Raises BadInput naming the file and its first bad line: every worker of 0..M-1 pulls before
        each push; clocks are finite, not negative and never run back. A worker that pulls twice
        has lost the gradient between, and computes at the later vector. Lines may end in CRLF, and
        a byte-order mark is skipped. Memory is bounded, whatever a .gz unpacks to.
        """
        path = Path(path)
        try:
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
                return _parse(path, text)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            raise BadInput("path", path, f"not a readable .csv or .csv.gz log ({error})") from error


def _parse(path: Path, text: TextIO) -> Schedule:
    rows = csv.reader(_lines(path, text))

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
        if code == PUSH and worker not in computing:
            raise bad(f"push {worker} is out of turn: a worker pulls before each push")
        (computing.add if code == PULL else computing.remove)(worker)
        if len(clocks) == LONGEST:
            raise bad(f"a log has at most {LONGEST:,} messages")
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


def _lines(path: Path, text: TextIO) -> Iterator[str]:
    """The lines of a file, none of which is read further than a line of a log can be long."""
    number = 0
    while line := text.readline(WIDEST):
        number += 1
        if len(line) == WIDEST:
            remedy = f"longer than {WIDEST} characters, which no line of a log is"
            raise BadInput("path", f"{path}:{number}", remedy)
        yield line


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
class FromFile:
    """A recorded or saved log, replayed up to the push asked for; if it is shorter, repeatedly.

    At a seam each worker goes on where it was: one that was computing pushes next, in place of its
    first pull. The clock goes on.

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

    @cached_property
    def _log(self) -> Schedule:
        return Schedule.load(str(self.path))

    @property
    def held(self) -> int:
        """The pushes in the file."""
        return self._log.pushes

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        log = self._log
        if self.workers not in (None, log.workers):
            raise BadInput("workers", self.workers, f"{self.path} has workers={log.workers}")
        if not self.held:
            raise BadInput("path", self.path, "holds no push; record a longer log")
        log = first(pushes, repeated(-(-pushes // self.held), log))
        if self.barrier and not log.in_rounds:
            remedy = f"{self.path} is not in rounds of {log.workers} pulls, then as many pushes"
            raise BadInput("barrier", self.barrier, remedy)
        return log


def repeated(times: int, log: Schedule) -> Schedule:
    """A log so many times over, see FromFile."""
    if times == 1:
        return log
    _, begins = np.unique(log.worker, return_index=True)
    _, ends = np.unique(log.worker[::-1], return_index=True)
    computing = log.kind[::-1][ends] == PULL
    again = np.delete(np.arange(len(log)), begins[computing])
    which = np.concatenate([np.arange(len(log)), np.tile(again, times - 1)])
    turn = np.concatenate([np.zeros(len(log)), np.repeat(np.arange(1, times), len(again))])
    # A sum may be rounded back.
    clock = np.maximum.accumulate(log.clock[which] + turn * log.duration_s)
    return Schedule(clock, log.kind[which], log.worker[which], log.workers)


def repeats(schedule: Any, pushes: int) -> str:
    """Says that so many pushes repeat what a schedule's file holds; "" if they do not."""
    held = getattr(schedule, "held", pushes)
    if held >= pushes:
        return ""
    return f"{schedule.path} holds {held:,} pushes, which are repeated {pushes / held:.1f} times"


def first(pushes: int, log: Schedule) -> Schedule:
    """The log up to its ``pushes``-th push."""
    return log[: int(np.flatnonzero(log.kind == PUSH)[pushes - 1]) + 1]
