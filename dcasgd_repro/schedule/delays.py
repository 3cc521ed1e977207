"""Recorded delays of a real run, turned back into the message log that they come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcasgd_repro.errors import BadInput, check_whole
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

    Raises BadInput, with the line where there is one: a number missing, not whole or negative; two
    pushes that follow the same push; another number of workers. A worker may stop before the end.
    """

    path: str | None
    workers: int

    def __post_init__(self) -> None:
        if not self.path or self.path == "???":
            raise BadInput("path", self.path, "schedule=delays needs schedule.path=FILE")
        check_whole("workers", self.workers, 1, MAX_WORKERS)

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        path = Path(str(self.path))
        delays, first = read_delays(path)
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
