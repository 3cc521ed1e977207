"""Rules that scale a gradient by its delay, or by its size: ``w -= eta s(tau) g``.

Delays count server updates and are 0 for a fresh gradient; where a paper counts from 1 the formula
is shifted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole
from dcasgd_repro.rules.rule import (
    Arrival,
    Direction,
    Rule,
    at_its_rate,
    momentum_step,
    replaced,
    start_velocity,
)

LAWS = ("constant", "polynomial", "hinge", "threshold", "exponential")


class Scaled(NamedTuple):
    """The scaled gradients since the last step, in units of the rate ``lr``."""

    here: int
    total: Tensor | None  # None where every push makes a step
    lr: float


@dataclass(frozen=True)
class StalenessAware(Rule):
    """Staleness-aware ASGD, ``w -= eta / max(tau, 1) g``.

    ``collect`` c: the mean of c such gradients makes a step, each with the rate of its arrival
    (default 1). The paper's n-softsync is c = M / n.
    Source: Zhang et al., 2016 (arXiv 1511.05950). Held to: federicovilla55/asgd_staleness, a course
    project; its c is max(1, M // bound).
    """

    name = "staleness_aware"
    label = "Staleness-aware ASGD"

    collect: int = 1

    def __post_init__(self) -> None:
        check_whole("collect", self.collect)

    def init(self, w: Tensor, workers: int) -> Scaled:
        return Scaled(0, torch.zeros_like(w) if self.collect > 1 else None, 0.0)

    def direction(self, arrival: Arrival, state: Scaled) -> Direction:
        g = arrival.grad / max(arrival.delay, 1)
        if state.total is None:
            return Direction(g, state)
        total, lr = at_its_rate(state.total, state.lr, g, arrival.lr)
        if state.here + 1 < self.collect:
            return Direction(None, Scaled(state.here + 1, total, lr))
        return Direction(total / self.collect, Scaled(0, torch.zeros_like(total), lr))

    def keeps(self) -> tuple[int, int]:
        return int(self.collect > 1), 0


class Pushed(NamedTuple):
    """How often w has moved, now and after each worker's last push; the velocity."""

    updates: int
    at: tuple[int, ...]  # () where tau counts from the pull; 0 before a worker's first push
    velocity: Tensor | None


@dataclass(frozen=True)
class Weighted(Rule):
    """What rules with a staleness weight s(tau) have in common.

    ``law``    "constant" 1; "polynomial" (1 + tau)^-a; "hinge" 1 if tau <= b, else
               1 / (a (tau - b) + 1); "threshold" 1 if tau <= b, else ``a``; "exponential"
               e^(-a tau), a = 0.2 in Kardam.
    ``mean_delay``  divides every weight by that of this delay (default none), so that the mean
               weight is near 1.
    ``factor`` multiplies every weight (default 1).
    ``count``  "pull" (default): tau counts from the worker's pull. "push": from its last push, as
               in APPFL; the same where workers pull right after their push.
    """

    law: str = "polynomial"
    a: float = 0.5
    b: float = 4.0
    mean_delay: float | None = None
    factor: float = 1.0
    count: str = "pull"
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_choice("law", self.law, LAWS)
        check_number("a", self.a)
        check_number("b", self.b)
        if self.mean_delay is not None:
            check_number("mean_delay", self.mean_delay)
            if self.law_at(self.mean_delay) == 0:
                raise BadInput("mean_delay", self.mean_delay, "its weight is 0; give a smaller one")
        check_number("factor", self.factor, ends="()")
        check_choice("count", self.count, ("pull", "push"))
        check_number("momentum", self.momentum, 0, 1)
        check_choice("nesterov", self.nesterov, (True, False))

    def weight(self, delay: int) -> float:
        """The factor on a gradient of this delay."""
        usual = 1.0 if self.mean_delay is None else self.law_at(self.mean_delay)
        return self.factor * self.law_at(delay) / usual

    def law_at(self, delay: float) -> float:
        if self.law == "polynomial":
            return float((1.0 + delay) ** -self.a)
        if self.law == "exponential":
            return float(math.e ** (-self.a * delay))  # torch.compile keeps this one symbolic
        if self.law == "constant" or delay <= self.b:
            return 1.0
        return self.a if self.law == "threshold" else 1 / (self.a * (delay - self.b) + 1)

    def init(self, w: Tensor, workers: int) -> Any:
        at = (0,) * workers if self.count == "push" else ()
        return Pushed(0, at, start_velocity(self.momentum, w))

    def delay(self, arrival: Arrival, updates: int, at: tuple[int, ...]) -> int:
        """tau as ``count`` has it."""
        return updates - at[arrival.worker] if at else arrival.delay


@dataclass(frozen=True)
class FedAsync(Weighted):
    """FedAsync, ``w += eta s(tau) (x - w)`` with the worker's model ``x = w_bak(m) - eta_local g``.

    The step is ``s (eta_local g + w_t - w_bak(m))``: a stale model pulls w back by its drift.
    ``pushes``  "model" (default, the paper) or "gradient": ``w -= eta s(tau) g``, ASGD with a rate
                that falls with the delay.
    ``local_lr``  eta_local (default 1, so that eta means what it does in ASGD); unread with
                "gradient".
    ``momentum``  with it ``v = mu v + s g``, ``w -= eta v``; ``nesterov`` adds mu v once more.
                ``weighs`` says what s multiplies: "gradient" (default); "step": ``v = mu v + g``,
                ``w -= eta s v``; "both": ``v = mu' v + s g``, ``w -= eta s v`` with
                ``mu' = mu + (1 - mu)(1 - s)``.
    Source: Xie, Koyejo, Gupta, 2019 (arXiv 1903.03934). Held to: APPFL (``count="push"``, with
    "gradient" and "model"), FLSim's asynchronous aggregators (``weighs`` "step" and "both"), a
    notebook of google-deepmind/asyncdiloco (``nesterov``).
    """

    name = "fedasync"
    label = "FedAsync"

    pushes: str = "model"
    local_lr: float = 1.0
    weighs: str = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pushes", self.pushes, ("model", "gradient"))
        check_number("local_lr", self.local_lr, ends="()")
        check_choice("weighs", self.weighs, ("gradient", "step", "both"))

    def direction(self, arrival: Arrival, state: Pushed) -> Direction:
        updates, at, velocity = state
        s = self.weight(self.delay(arrival, updates, at))
        g = arrival.grad
        if self.pushes == "model":
            g = self.local_lr * g + arrival.drift
        mu = self.momentum
        if velocity is not None and self.weighs == "both":
            mu = mu + (1 - mu) * (1 - s)
        if velocity is not None and self.weighs != "step":
            g = s * g
        step, velocity = momentum_step(mu, self.nesterov, g, velocity)
        if velocity is None or self.weighs != "gradient":
            step = s * step
        if at:
            updates, at = updates + 1, replaced(at, arrival.worker, updates + 1)
        return Direction(step, Pushed(updates, at, velocity))

    def keeps(self) -> tuple[int, int]:
        return int(self.momentum > 0), 0


class Dispatched(NamedTuple):
    """M; and for ``dispatch="before"`` what each worker is sent, and its number of updates."""

    workers: int
    updates: int
    before: tuple[Tensor, ...]
    at: tuple[int, ...]


@dataclass(frozen=True)
class DelayAdaptive(Rule):
    """Delay-adaptive ASGD, ``w -= eta C / max(C, tau) g``, C the number of workers.

    ``concurrency``  C, None (default): M. With it this is also the rule of Koloskova, Stich and
                Jaggi: eta if tau <= C, else eta C / tau.
    ``late``    what a gradient with tau > C gets: "scaled" (default) or "dropped".
    ``dispatch``  "after" (default): a worker is sent w as it is when it pulls. "before": w as it
                was before the worker's own push was applied, whose delay is then one more than
                counted; as in the code of an author of the paper.
    Source: Mishchenko, Bach, Even, Woodworth, 2022 (arXiv 2206.07638); Koloskova, Stich, Jaggi,
    2022 (arXiv 2206.08307). Held to: konstmish/asynchronous_sgd (an author's; dispatches before),
    vectozavr/ringmaster-lmo.
    """

    name = "delay_adaptive"
    label = "Delay-adaptive ASGD"

    concurrency: int | None = None
    late: str = "scaled"
    dispatch: str = "after"

    def __post_init__(self) -> None:
        if self.concurrency is not None:
            check_whole("concurrency", self.concurrency)
        check_choice("late", self.late, ("scaled", "dropped"))
        check_choice("dispatch", self.dispatch, ("after", "before"))

    def init(self, w: Tensor, workers: int) -> Dispatched:
        if self.dispatch == "after":
            return Dispatched(workers, 0, (), ())
        return Dispatched(workers, 0, (w.clone(),) * workers, (0,) * workers)

    def direction(self, arrival: Arrival, state: Dispatched) -> Direction:
        workers, updates, before, at = state
        delay = updates - at[arrival.worker] if at else arrival.delay
        most = self.concurrency or workers
        drop = delay > most and self.late == "dropped"
        if at:
            # A copy: in an optimizer arrival.w is the live parameter.
            before = replaced(before, arrival.worker, arrival.w.clone())
            at = replaced(at, arrival.worker, updates)
            state = Dispatched(workers, updates + (not drop), before, at)
        if drop:
            return Direction(None, state)
        return Direction(arrival.grad if delay <= most else arrival.grad * (most / delay), state)

    def sends(self, w: Tensor, state: Dispatched, worker: int) -> Tensor:
        return state.before[worker] if self.dispatch == "before" else w

    def keeps(self) -> tuple[int, int]:
        return 0, int(self.dispatch == "before")


@dataclass(frozen=True)
class AdaDelay(Rule):
    """AdaDelay, ``w -= eta / (beta + sqrt(t + tau)) g``, t counting updates from 1.

    ``beta`` is the paper's smoothness L in units of eta^-1 (default 1).
    Source: Sra, Yu, Li, Smola, 2016 (arXiv 1508.05003); the formula read at second hand.
    """

    name = "adadelay"
    label = "AdaDelay"

    beta: float = 1.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta)

    def init(self, w: Tensor, workers: int) -> int:
        return 0

    def direction(self, arrival: Arrival, state: int) -> Direction:
        t = state + 1
        return Direction(arrival.grad / (self.beta + math.sqrt(t + arrival.delay)), t)


@dataclass(frozen=True)
class ASAP(Rule):
    """ASAP.SGD, ``w -= eta (1 + A (1 - 2 F(tau))) g``, F the empirical distribution of delays.

    F(tau) is the share of the delays so far that are <= tau, the present one included, so the
    first push has F = 1 and with ``amplitude`` A = 1 (default) moves nothing; nor does any push
    whose delay is the largest so far, so with one constant delay w never moves.
    ``bound``  a gradient with tau >= bound is ignored, and not counted: the histogram ends there.
    Source: Bäckström, Papatriantafilou, Tsigas, ICML 2022. Held to: federicovilla55/asgd_staleness,
    a course project, not the authors'.
    """

    name = "asap"
    label = "ASAP.SGD"

    amplitude: float = 1.0
    bound: int = 1000

    def __post_init__(self) -> None:
        check_number("amplitude", self.amplitude, 0, 1, ends="[]")
        check_whole("bound", self.bound, 1, 10**6)

    def init(self, w: Tensor, workers: int) -> Tensor:
        return w.new_zeros(self.bound)

    def direction(self, arrival: Arrival, state: Tensor) -> Direction:
        if arrival.delay >= self.bound:
            return Direction(None, state)
        place = torch.arange(self.bound, device=state.device)
        seen = state + (place == arrival.delay)
        share = (seen * (place <= arrival.delay)).sum() / seen.sum()
        return Direction((1 + self.amplitude * (1 - 2 * share)) * arrival.grad, seen)


@dataclass(frozen=True)
class Clipped(Rule):
    """Clipped ASGD, ``w -= eta min(1, c / ||g||) g``.

    ``clip`` is c (default 1). The norm is that of the whole gradient.
    Source: no paper read; the usual clipping by the norm, whatever the delay.
    """

    name = "clipped"
    label = "Clipped ASGD"
    elementwise = False

    clip: float = 1.0

    def __post_init__(self) -> None:
        check_number("clip", self.clip, ends="()")

    def init(self, w: Tensor, workers: int) -> None:
        return None

    def direction(self, arrival: Arrival, state: None) -> Direction:
        g = arrival.grad
        size = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        return Direction(g * torch.clamp(self.clip / size, max=1.0), None)
