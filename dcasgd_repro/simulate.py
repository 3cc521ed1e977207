"""The paper's Algorithms 1 and 2: what a worker does, what the server does, and their replay.

A schedule says in which order the workers' messages reach the server; ``simulate`` replays it on
one device. Vectors are never written in place, so ``w_bak(m) <- w_t`` is a reference: no copies,
and nothing a later step does can reach a backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dcasgd_repro.errors import check_choice
from dcasgd_repro.rules import Arrival, Rule
from dcasgd_repro.schedule import Message


class Task(Protocol):
    """A loss over one flat parameter vector w [P]."""

    def batch(self, worker: int, k: int) -> Any:
        """Mini-batch k (from 0) of a worker: a function of (seed, worker, k) alone."""

    def gradient(self, w: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """The batch's mean loss at w (a scalar) and its gradient [P]."""


class Step(NamedTuple):
    """One push, as the server saw it. Tensors are scalars, left on the device."""

    push: int  # gradients received, this one included
    update: int  # t, how often w has moved, this push included
    clock_s: float  # simulated seconds
    worker: int
    delay: int  # tau, server updates between the worker's pull and this push
    lr: float
    loss: Tensor  # of the mini-batch, at the vector the worker computed at
    dc_ratio: Tensor  # ||correction|| / ||g||, of the correction as computed, norms in float64
    gap_norm: Tensor  # ||w_t - w_bak(m)||, float64


class Server:
    """The parameter server of Algorithm 2: w, one backup per worker, the rule and its state.

    ``backup`` says when w_bak(m) is written, and what it is before:
    "pull" (default, the paper)   the vector sent to the worker
    "push"                        w after the worker's own push; until its first push, w_0
    "push_from_zero"              as "push", but zero until its first push: the authors' released
                                  code, where that push is compensated for a drift of all of w_t
    The first two differ where other pushes arrive between a worker's push and its next pull.
    """

    def __init__(self, rule: Rule, w: Tensor, workers: int, backup: str = "pull") -> None:
        check_choice("backup", backup, ("pull", "push", "push_from_zero"))
        self.rule, self.w, self.backup, self.apply = rule, w, backup, apply
        self.state = rule.init(w, workers)
        self.t = 0  # updates of w
        self.pushes = 0  # gradients received
        self.w_bak = [torch.zeros_like(w) if backup == "push_from_zero" else w] * workers
        self.sent = [w] * workers  # what each worker computes at
        self.sent_at = [0] * workers  # the t at which it was sent
        self.batches = [0] * workers  # mini-batches each worker has used

    def receive_pull(self, m: int) -> None:
        """Worker m asks for the model: ``w_bak(m) <- w_t``, and it is sent."""
        self.sent[m] = self.rule.sends(self.w, self.state, m)
        self.sent_at[m] = self.t
        if self.backup == "pull":
            self.w_bak[m] = self.sent[m]

    def receive_gradient(self, m: int, g: Tensor, lr: float) -> tuple[int, Tensor, Tensor]:
        """Gradient g_m arrives, and w moves. Returns (delay, dc_ratio, gap_norm), see Step."""
        arrival = Arrival(g, self.w, self.w_bak[m], m, self.t - self.sent_at[m], lr)
        w, self.state, dc_ratio, gap_norm = self.apply(self.rule, arrival, self.state)
        if w is not None:
            self.w, self.t = w, self.t + 1
        self.pushes += 1
        self.batches[m] += 1
        if self.backup != "pull":
            self.w_bak[m] = self.w
        return arrival.delay, dc_ratio, gap_norm


def apply(rule: Rule, arrival: Arrival, state: Any) -> tuple[Tensor | None, Any, Tensor, Tensor]:
    """``w_{t+1} = w_t - eta * direction`` (None: not moved), state, dc_ratio and gap_norm."""
    step, state, correction = rule.direction(arrival, state)
    w = None if step is None else torch.add(arrival.w, step, alpha=-arrival.lr)
    return w, state, ratio(correction, arrival.grad), norm(arrival.drift)


def worker(task: Task, server: Server, m: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1: worker m's loss and gradient on its next mini-batch, at the vector it pulled."""
    return task.gradient(server.sent[m], task.batch(m, server.batches[m]))


def simulate(
    task: Task, server: Server, messages: Iterable[Message], lr: Callable[[int], float]
) -> Iterator[Step]:
    """Replays a message log against a task (the paper's Algorithms 1 and 2); yields a Step a push.

    ``messages``: a Schedule, or any iterable of Message. ``lr``: a function of the pushes received
    so far; returns the rate of the next push. Left at a Step, the server holds the state after it.
    """
    for clock, kind, m in messages:
        if kind == "pull":
            server.receive_pull(m)
        else:
            eta = lr(server.pushes)
            loss, g = worker(task, server, m)
            delay, dc_ratio, gap_norm = server.receive_gradient(m, g, eta)
            yield Step(server.pushes, server.t, clock, m, delay, eta, loss, dc_ratio, gap_norm)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm, summed in float64 so that a tiny correction does not vanish."""
    size: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return size


def ratio(correction: Tensor | None, g: Tensor) -> Tensor:
    """``||correction|| / ||g||``, zero exactly when the correction is. Adding it to g in float32
    loses entries of it under about 6e-8 of g's; they count here."""
    if correction is None:
        return torch.zeros((), dtype=torch.float64, device=g.device)
    size = norm(correction)
    return torch.where(size == 0, size, size / norm(g))
