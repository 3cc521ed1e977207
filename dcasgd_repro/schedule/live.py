"""A log that a cluster makes while a run goes on: nothing is drawn, messages are recorded."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dcasgd_repro.errors import BadInput, check_choice, check_whole
from dcasgd_repro.schedule.log import KINDS, MAX_WORKERS, PULL, Message, Schedule, first

LOG, EVENTS = "schedule.csv.gz", "cluster.csv"  # of a run directory
ELSEWHERE = "on another processor"  # than the driver: so begins what is noted of such a worker


@dataclass(frozen=True)
class Live:
    """The order and the clocks that M real workers give, with engine=ray.

    barrier: all M are sent w, all M push, and the next round begins.
    """

    workers: int
    barrier: bool = False

    def __post_init__(self) -> None:
        check_whole("workers", self.workers, 1, MAX_WORKERS)
        check_choice("barrier", self.barrier, (True, False))

    def messages(self, pushes: int) -> Schedule:
        """No message yet."""
        check_whole("pushes", pushes, 1)
        nothing = np.zeros(0)
        return Schedule(nothing, nothing.astype(np.uint8), nothing.astype(np.int32), self.workers)


class Event(NamedTuple):
    """What happened beside the messages: a line of cluster.csv.

    event: "refused: ..." (a push, and why), "worker lost" (or "worker lost: out of memory"),
    "server lost", "driver lost", or "pushes lost": gradients of a worker that the lost server had
    received, from ``batch`` on. pushes: gradients that were received and are lost; of a lost driver
    those that metrics.csv shows. ELSEWHERE and on what: a worker that began there.
    """

    clock_s: float
    event: str
    worker: int | None = None
    batch: int | None = None
    pushes: int = 0


@dataclass
class Recording:
    """The messages of a run that goes on, and its events; a cluster appends to both.

    ``log``      what was recorded before
    ``pushes``   where the run stops
    ``barrier``  see Live
    ``stopping`` whether it is to stop before, at once
    """

    log: Schedule
    pushes: int
    barrier: bool = False
    events: list[Event] = field(default_factory=list)
    stopping: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._messages = list(self.log)

    def append(self, message: Message) -> None:
        self._messages.append(message)

    def end_at_push(self) -> None:
        """Forgets pulls after the last push; a run that goes on begins with new ones."""
        while self._messages and self._messages[-1].kind == KINDS[PULL]:
            self._messages.pop()

    @property
    def clock_s(self) -> float:
        """Seconds of the run at the last message; 0 before the first."""
        return self._messages[-1].clock if self._messages else 0.0

    def computing(self) -> set[int]:
        """The workers that have pulled and not pushed since."""
        last = {m: kind for _, kind, m in self._messages}
        return {m for m, kind in last.items() if kind == KINDS[PULL]}

    def schedule(self) -> Schedule:
        """The messages so far."""
        clock = np.array([message.clock for message in self._messages])
        kind = np.array([KINDS.index(message.kind) for message in self._messages], np.uint8)
        worker = np.array([message.worker for message in self._messages], np.int32)
        return Schedule(clock, kind, worker, self.log.workers)

    def save(self, folder: Path) -> Schedule:
        """Writes schedule.csv.gz and cluster.csv, each whole or not at all; returns the log.

        The disk has them when it returns: a checkpoint that comes after counts on them.
        """
        log = self.schedule()
        log.save(folder / LOG)
        temporary = folder / (EVENTS + ".tmp")
        with temporary.open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(Event._fields)
            rows.writerows(self.events)
        temporary.replace(folder / EVENTS)
        for name in (LOG, EVENTS):
            handle = os.open(folder / name, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        return log

    def totals(self) -> dict[str, Any]:
        """How often each event occurred, and how many pushes were lost."""
        counts = Counter(event.event for event in self.events)
        lost = sum(event.pushes for event in self.events)
        return {"events": dict(sorted(counts.items())), "pushes_lost": lost}


def recorded(folder: Path, nothing: Schedule) -> Schedule:
    """The messages that a run directory has recorded; ``nothing`` where there are none."""
    return Schedule.load(folder / LOG) if (folder / EVENTS).exists() else nothing


def going_on(folder: Path, log: Schedule, live: Live, pushes: int, at: int) -> Recording:
    """A recording up to push ``pushes`` that goes on after push ``at`` of what was recorded.

    Raises BadInput where less was recorded.
    """
    if at > log.pushes:
        raise BadInput(
            LOG, folder, f"holds {log.pushes} pushes, and its checkpoint is of push {at}"
        )
    events = events_of(folder) if at else []
    return Recording(first(at, log) if at else log[:0], pushes, live.barrier, events)


def events_of(folder: Path) -> list[Event]:
    """The events of a run directory. Raises BadInput."""
    try:
        with (folder / EVENTS).open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            Event(
                float(row["clock_s"]),
                row["event"],
                int(row["worker"]) if row["worker"] else None,
                int(row["batch"]) if row["batch"] else None,
                int(row["pushes"]),
            )
            for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(EVENTS, folder, f"is not readable ({error})") from error
