"""Schedules that answer back: the rule stops workers, and so has a part in the order of messages.

A rule of this kind decides by delays, workers and counts, never by what is in a gradient. So what
it does can be played before the run, on a vector of one number whose gradients are zero. The log
that is made so is like any other: it is hashed, saved, resumed, and replayed by every engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dcasgd_repro.errors import BadInput, check_whole
from dcasgd_repro.rules import Rule
from dcasgd_repro.schedule import KINDS, PULL, PUSH, Generated, Schedule, disturbed
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

    times: Generated
    rule: Rule

    def __post_init__(self) -> None:
        if not isinstance(self.times, Generated) or self.times.barrier:
            what = "a barrier" if isinstance(self.times, Generated) else type(self.times).__name__
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
        play = Play(self.rule, self.workers)

        def answer(kind: int, m: int) -> list[int]:
            play.message(kind, m)
            return play.stopped() if kind == PUSH else []

        return disturbed(self.times).answered(pushes, answer)


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
