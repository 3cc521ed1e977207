"""Schedules that answer back: the rule stops workers, and so has a part in the order of messages.

A rule of this kind decides by delays, workers and counts, never by what is in a gradient. So what
it does can be played before the run, on a vector of one number whose gradients are zero. The log
that is made so is like any other: it is hashed, saved, resumed, and replayed by every engine.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dcasgd_repro.errors import BadInput, check_whole
from dcasgd_repro.rules import Rule
from dcasgd_repro.schedule import KINDS, PULL, PUSH, Busy, Schedule
from dcasgd_repro.simulate import Server

APPLIED, KEPT, IGNORED = "applied", "kept", "ignored"


@dataclass(frozen=True)
class Reactive:
    """Workers that are never idle, and that ``rule`` may stop while they compute.

    A stopped worker gives up its gradient and pulls at that moment: its log has two pulls in a row.
    The mini-batch is its next one still. ``times`` draws d[m, k], the seconds of worker m's k-th
    computation, whether it is stopped or not: the same under every rule. Ties go to the lower
    worker. Under a rule that stops nobody the log is that of ``times``. Raises BadInput.
    """

    times: Busy
    rule: Rule

    def __post_init__(self) -> None:
        if not isinstance(self.times, Busy) or self.times.barrier:
            what = "a barrier" if isinstance(self.times, Busy) else type(self.times).__name__
            remedy = "its workers do not run freely; take gamma, straggler, paper_cluster, ..."
            raise BadInput("schedule", what, remedy)

    @property
    def workers(self) -> int:
        return self.times.workers

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        if type(self.rule).stops is Rule.stops:
            return self.times.messages(pushes)
        lines = list(self._lines(pushes))
        clock, kind, worker = (np.array(column) for column in zip(*lines, strict=True))
        return Schedule(clock, kind, worker, self.workers)

    def _lines(self, pushes: int) -> Iterator[tuple[float, int, int]]:
        play = Play(self.rule, self.workers)
        cycles = [self.times.cycles(m) for m in range(self.workers)]
        away_s = [0.0] * self.workers  # from each worker's push to its next pull
        turn = [0] * self.workers  # how often it was stopped
        due = [(0.0, m, 0, PULL) for m in range(self.workers)]
        while play.server.pushes < pushes:
            clock, m, of, kind = heapq.heappop(due)
            if of != turn[m]:  # it was stopped before this push
                continue
            yield clock, kind, m
            play.message(kind, m)
            if kind == PULL:
                busy_s, away_s[m] = next(cycles[m])
                heapq.heappush(due, (clock + busy_s, m, of, PUSH))
                continue
            heapq.heappush(due, (clock + away_s[m], m, of, PULL))
            for other in play.stopped():
                turn[other] += 1
                heapq.heappush(due, (clock, other, turn[other], PULL))


class Play:
    """A rule's server on a vector of one number, whose gradients are zero: what it would do."""

    def __init__(self, rule: Rule, workers: int) -> None:
        self.zero = torch.zeros(1, dtype=torch.float64)
        self.server = Server(rule, self.zero, workers)
        self.computing: set[int] = set()

    def message(self, kind: int, m: int) -> str | None:
        """Takes a message; of a push, what becomes of its gradient.

        APPLIED: w moves. KEPT: it does not yet, and the rule's state is another. IGNORED: neither.
        """
        server = self.server
        if kind == PULL:
            server.receive_pull(m)
            self.computing.add(m)
            return None
        t, state = server.t, server.state
        server.receive_gradient(m, self.zero, 1.0)
        self.computing.discard(m)
        if server.t > t:
            return APPLIED
        return IGNORED if server.state is state else KEPT

    def stopped(self) -> list[int]:
        """The workers that the rule stops now, of those that compute."""
        server = self.server
        delays = [server.t - at for at in server.sent_at]
        return sorted(self.computing.intersection(server.rule.stops(server.state, delays)))


def answers(rule: Rule, log: Schedule) -> list[str]:
    """What becomes of each push of a log under a rule: APPLIED, KEPT or IGNORED, see ``Play``."""
    play = Play(rule, log.workers)
    messages = ((KINDS.index(kind), m) for _, kind, m in log)
    found = (play.message(kind, m) for kind, m in messages)
    return [answer for answer in found if answer is not None]
