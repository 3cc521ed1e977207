"""Schedules that answer back: the rule stops workers, and so has a part in the order of messages.

A rule of this kind decides by delays, workers and counts, never by what is in a gradient. So what
it does can be played before the run, on a small vector whose gradients are zero. The log that is
made so is like any other: it is hashed, saved, resumed, and replayed by every engine. A run checks
at each push that its rule stops those that were stopped in the play.
"""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from dcasgd_repro.errors import BadInput, check_whole, told_as
from dcasgd_repro.rules import Rule
from dcasgd_repro.rules.rule import size_of
from dcasgd_repro.schedule import KINDS, PULL, PUSH, Busy, Schedule, answered
from dcasgd_repro.simulate import Server

APPLIED, KEPT, IGNORED = "applied", "kept", "ignored"
SIZE = 4  # entries of a play's vector: those that run/check.py tries a rule on


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
        remedy = "its workers do not run freely; take gamma, straggler, paper_cluster, ..."
        if not isinstance(self.times, Busy):
            raise BadInput("schedule", type(self.times).__name__, remedy)
        if self.times.barrier:
            raise BadInput("barrier", True, remedy)

    @property
    def workers(self) -> int:
        return self.times.workers

    def messages(self, pushes: int) -> Schedule:
        """The log up to its ``pushes``-th push; a longer log begins with every shorter one."""
        check_whole("pushes", pushes, 1)
        if not may_stop(self.rule):
            return self.times.messages(pushes)
        play = Play(self.rule, self.workers)

        def answer(kind: int, m: int) -> list[int]:
            play.message(kind, m)
            return play.stopped() if kind == PUSH else []

        return answered(self.times, pushes, answer)


def may_stop(rule: Rule) -> bool:
    """Whether a rule has a ``stops`` of its own."""
    return type(rule).stops is not Rule.stops


def named_by(rule: Rule, state: Any, delays: Sequence[int]) -> list[int]:
    """The workers that ``rule.stops`` names, in order.

    Raises BadInput, naming the class and the method, where it raises or returns anything else.
    """
    method = f"{type(rule).__name__}.stops"
    with told_as("rule", method):
        found: Any = rule.stops(state, delays)
    listed = isinstance(found, Sequence | Set) and not isinstance(found, str | bytes | bytearray)
    for m in found if listed else [found]:
        whole = listed and isinstance(m, Integral) and not isinstance(m, bool)
        if not whole or not 0 <= m < len(delays):
            said = " ".join(reprlib.repr(m).split())
            inside = f"a {type(found).__name__} with " if listed else ""
            remedy = f"return a list of workers, whole numbers from 0 to {len(delays) - 1}"
            what = f"returns {inside}{said} ({type(m).__name__}); {remedy}"
            raise BadInput("rule", method, what)
    return sorted(set(map(int, found)))


class Play:
    """A rule's server on a small vector, whose gradients are zero: what it would do.

    The rule is a copy, so that a run of it is left alone. What it raises is BadInput.
    """

    def __init__(self, rule: Rule, workers: int) -> None:
        self.name = type(rule).__name__
        self.zero = torch.zeros(size_of(rule, SIZE), dtype=torch.float64)
        with told_as("rule", f"{self.name}.init"):
            self.server = Server(copy.deepcopy(rule), self.zero, workers)
        self.computing: set[int] = set()

    def message(self, kind: int, m: int) -> str | None:
        """Takes a message; of a push, what becomes of its gradient.

        APPLIED: w moves. KEPT: it does not yet, and the rule's state is another. IGNORED: neither.
        """
        server = self.server
        if kind == PULL:
            with told_as("rule", f"{self.name}.sends"):
                server.receive_pull(m)
            self.computing.add(m)
            return None
        t, state = server.t, server.state
        with told_as("rule", f"{self.name}.direction"):
            server.receive_gradient(m, self.zero, 1.0)
        self.computing.discard(m)
        if server.t > t:
            return APPLIED
        return IGNORED if server.state is state else KEPT

    def stopped(self, server: Server | None = None) -> list[int]:
        """The workers that the rule stops now, of those that compute; ``server``: in its state."""
        server = server or self.server
        delays = [server.t - at for at in server.sent_at]
        return [m for m in named_by(server.rule, server.state, delays) if m in self.computing]


class Followed:
    """A run's reactive log, and the play that it was made by, a push after the other."""

    def __init__(self, rule: Rule, log: Schedule) -> None:
        self.play, self._rest = Play(rule, log.workers), iter(log)

    def check(self, server: Server) -> None:
        """After a push: refuses a rule that stops others there than in the play. BadInput."""
        play = self.play
        while play.server.pushes < server.pushes:
            _, kind, m = next(self._rest)
            play.message(KINDS.index(kind), m)
        if (found := play.stopped(server)) != (played := play.stopped()):
            what = f"stops workers {found} after push {server.pushes:,}, and {played} where "
            what += "gradients are zero; a reactive schedule is made before the run, so counts and "
            what += "delays must decide"
            raise BadInput("rule", f"{play.name}.stops", what)


def answers(rule: Rule, log: Schedule) -> list[str]:
    """What becomes of each push of a log under a rule: APPLIED, KEPT or IGNORED, see ``Play``."""
    play = Play(rule, log.workers)
    messages = ((KINDS.index(kind), m) for _, kind, m in log)
    found = (play.message(kind, m) for kind, m in messages)
    return [answer for answer in found if answer is not None]
