"""Rules with momentum on the server; every worker is sent w.

The learning rate stays outside every velocity, as in ``torch.optim.SGD``: when it changes, old
gradients act at the new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import check_choice, check_number, check_whole
from dcasgd_repro.rules.rule import (
    Arrival,
    Direction,
    Rule,
    decayed,
    heavy_ball,
    replaced,
    start_velocity,
)


@dataclass(frozen=True)
class ServerSGD(Rule):
    """torch.optim.SGD on the stream of pushes, ``v = mu v + (1 - d) g``, ``w -= eta (g + mu v)``.

    Workers and delays are ignored. ``nesterov`` false: ``w -= eta v``. ``dampening`` is d (default
    0), which the first push is spared. ``weight_decay`` is taken at the server's w.
    Source: torch 2.15. Held to: its results.
    """

    name = "server_sgd"
    label = "momentum on the server"

    momentum: float = 0.9
    nesterov: bool = True
    dampening: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_choice("nesterov", self.nesterov, (True, False))
        check_number("dampening", self.dampening, 0, 1)
        check_number("weight_decay", self.weight_decay)

    def init(self, w: Tensor, workers: int) -> Tensor | None:
        return None

    def direction(self, arrival: Arrival, state: Tensor | None) -> Direction:
        g = decayed(self.weight_decay, arrival)
        if self.momentum == 0:
            return Direction(g, None)
        if state is None:
            velocity = g.clone()  # an optimizer's user may overwrite the gradient
        else:
            velocity = torch.add(state * self.momentum, g, alpha=1 - self.dampening)
        step = torch.add(g, velocity, alpha=self.momentum) if self.nesterov else velocity
        return Direction(step, velocity)

    def keeps(self) -> tuple[int, int]:
        return int(self.momentum > 0), 0


class Moments(NamedTuple):
    """NAdam's state: pushes, the product of the mu_t, first and second moment."""

    pushes: int
    product: float
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class ServerNAdam(Rule):
    """torch.optim.NAdam on the stream of pushes, as asynchronous pipelines use it.

    With ``mu_t = beta1 (1 - 0.96^(t psi) / 2)`` and P_t their product,
    ``w -= eta ((1 - mu_t) g / (1 - P_t) + mu_(t+1) m / (1 - P_t mu_(t+1))) / (sqrt(v^) + eps)``.
    The defaults are AsyncPP's: beta1 0.99, psi (``momentum_decay``) 0.004. ``weight_decay`` is
    taken at the server's w, ``decoupled`` (default) from the moments. P_t is float64 here, and
    float32 in torch: a difference of 1e-10.
    Source: Ajanthan et al., 2025, for pipelines (AsyncPP). Held to: torch 2.15, AsyncPP's settings
    among others.
    """

    name = "server_nadam"
    label = "NAdam on the server"

    beta1: float = 0.99
    beta2: float = 0.999
    eps: float = 1e-8
    momentum_decay: float = 0.004
    weight_decay: float = 0.0
    decoupled: bool = True

    def __post_init__(self) -> None:
        check_number("beta1", self.beta1, 0, 1)
        check_number("beta2", self.beta2, 0, 1)
        check_number("eps", self.eps, ends="()")
        check_number("momentum_decay", self.momentum_decay)
        check_number("weight_decay", self.weight_decay)
        check_choice("decoupled", self.decoupled, (True, False))

    def init(self, w: Tensor, workers: int) -> Moments:
        return Moments(0, 1.0, torch.zeros_like(w), torch.zeros_like(w))

    def direction(self, arrival: Arrival, state: Moments) -> Direction:
        g = arrival.grad if self.decoupled else decayed(self.weight_decay, arrival)
        t = state.pushes + 1
        mu, ahead = self._mu(t), self._mu(t + 1)
        product = state.product * mu
        first = self.beta1 * state.first + (1 - self.beta1) * g
        second = self.beta2 * state.second + (1 - self.beta2) * (g * g)
        size = torch.sqrt(second / (1 - self.beta2**t)) + self.eps
        now, later = (1 - mu) / (1 - product), ahead / (1 - product * ahead)
        step = (now * g + later * first) / size
        if self.decoupled and self.weight_decay:
            step = torch.add(step, arrival.w, alpha=self.weight_decay)
        return Direction(step, Moments(t, product, first, second))

    def keeps(self) -> tuple[int, int]:
        return 2, 0

    def _mu(self, t: int) -> float:
        return float(self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay)))


@dataclass(frozen=True)
class MultiASGD(Rule):
    """Multi-ASGD, a velocity for each worker: ``v_m = mu v_m + g``, ``w -= eta v_m``.

    ``weight_decay`` is taken at the server's w.
    Source: Hakimi, Barkai, Gabel, Schuster, 2019 (arXiv 1907.11612). Held to: a DANA-DC script,
    whose w is the same.
    """

    name = "multi_asgd"
    label = "Multi-ASGD"

    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_number("weight_decay", self.weight_decay)

    def init(self, w: Tensor, workers: int) -> tuple[Tensor, ...]:
        return (torch.zeros_like(w),) * workers

    def direction(self, arrival: Arrival, state: tuple[Tensor, ...]) -> Direction:
        m, g = arrival.worker, decayed(self.weight_decay, arrival)
        step, velocity = heavy_ball(self.momentum, g, state[m])
        return Direction(step, replaced(state, m, velocity))

    def keeps(self) -> tuple[int, int]:
        return 0, 1


class Gap(NamedTuple):
    """Gap-Aware's state: pushes, the largest rate, EMA of squares, velocity."""

    pushes: int
    largest: float
    squares: Tensor
    velocity: Tensor | None


@dataclass(frozen=True)
class GapAware(Rule):
    """Gap-Aware, ``w -= eta v``, ``v = mu v + g / C``: g divided by its gap, element-wise.

    ``C = 1 + |w_t - w_bak(m)| / (eta_max (sqrt(EMA(v^2) / (1 - gamma^t)) + eps))``: the gap in
    units of a usual step. eta_max is the largest rate so far; EMA, with factor ``gamma`` (0.999),
    is of the velocity before this g; without momentum of g itself. ``weight_decay``, at the
    server's w, is divided too. What is reported as the correction is g / C - g.
    Source: Barkai, Hakimi, Schuster, ICLR 2020 (arXiv 1909.10802). Held to: saareliad/FTPipe,
    written for a pipeline, its calls made at each push.
    """

    name = "gap_aware"
    label = "Gap-Aware"

    momentum: float = 0.9
    gamma: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_number("gamma", self.gamma, 0, 1)
        check_number("eps", self.eps, ends="()")
        check_number("weight_decay", self.weight_decay)

    def init(self, w: Tensor, workers: int) -> Gap:
        return Gap(0, 0.0, torch.zeros_like(w), start_velocity(self.momentum, w))

    def direction(self, arrival: Arrival, state: Gap) -> Direction:
        pushes, largest = state.pushes + 1, max(state.largest, arrival.lr)
        usual = arrival.grad if state.velocity is None else state.velocity
        squares = self.gamma * state.squares + (1 - self.gamma) * (usual * usual)
        size = torch.sqrt(squares / (1 - self.gamma**pushes)) + self.eps
        # Until a rate is above 0, w has not moved and there is no gap.
        penalty = 1 + arrival.drift.abs() / ((largest or 1.0) * size)
        g = decayed(self.weight_decay, arrival)
        penalised = g / penalty
        step, velocity = heavy_ball(self.momentum, penalised, state.velocity)
        return Direction(step, Gap(pushes, largest, squares, velocity), penalised - g)

    def keeps(self) -> tuple[int, int]:
        return 1 + (self.momentum > 0), 0


class Ordered(NamedTuple):
    """OrMo's state: M, updates, the newest bucket, the buffer."""

    workers: int
    updates: int
    bucket: int
    buffer: Tensor


@dataclass(frozen=True)
class OrMo(Rule):
    """OrMo, ordered momentum: a late gradient joins the momentum of the round it belongs to.

    The gradient of the i-th pull is in bucket b = ceil(i / M). While b is above the newest bucket
    I: ``w -= eta mu u``, ``u = mu u``, I grows by 1. Then ``u += mu^(I-b) g`` and
    ``w -= eta g (1 - mu^(I-b+1)) / (1 - mu)``. On a barrier this is momentum SSGD with the sum of
    the M gradients. i is counted as for workers that pull right after their push: the pull that
    saw s updates is in bucket 1 + ceil(s / M). The paper's u holds eta; here it is outside.
    Source: Shi, Yang, Li, NeurIPS 2024. Not read; the formula is from a summary, checked against
    momentum SSGD.
    """

    name = "ormo"
    label = "OrMo"

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)

    def init(self, w: Tensor, workers: int) -> Ordered:
        return Ordered(workers, 0, 1, torch.zeros_like(w))

    def direction(self, arrival: Arrival, state: Ordered) -> Direction:
        workers, updates, newest, u = state
        mu, g = self.momentum, arrival.grad
        own = 1 - (arrival.delay - updates) // workers
        step = torch.zeros_like(g)
        for _ in range(max(own - newest, 0)):
            u = mu * u
            step = step + u
        newest = max(newest, own)
        late = newest - own
        u = u + mu**late * g
        step = step + (1 - mu ** (late + 1)) / (1 - mu) * g
        return Direction(step, Ordered(workers, updates + 1, newest, u))

    def keeps(self) -> tuple[int, int]:
        return 1, 0


class Delayed(NamedTuple):
    """Delayed Nesterov's state: pushes since the momentum moved, their sum, the momentum."""

    here: int
    total: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class DelayedNesterov(Rule):
    """Delayed Nesterov: every push moves w by g / N, every N-th also by the momentum.

    ``D += g``; the N-th push makes ``m = beta m + D / N``, D = 0 and
    ``w -= eta ((1 - c N + c) beta m + g / N)``; the others ``w -= eta (c beta m + g / N)``.
    ``collect`` is N (default 10), ``momentum`` beta, ``spread`` c in [0, 1/N] (default 0): the
    share of the momentum that each push applies. N = 1 is Nesterov's momentum.
    Source: Liu et al., 2024 (arXiv 2401.09135), for pseudo-gradients, eta = 0.7. Held to:
    rcloyd/torchft and utnslab/halos, which agree.
    """

    name = "delayed_nesterov"
    label = "Delayed Nesterov"

    momentum: float = 0.9
    collect: int = 10
    spread: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_whole("collect", self.collect)
        check_number("spread", self.spread, 0, 1 / self.collect, ends="[]")

    def init(self, w: Tensor, workers: int) -> Delayed:
        return Delayed(0, torch.zeros_like(w), torch.zeros_like(w))

    def direction(self, arrival: Arrival, state: Delayed) -> Direction:
        n, c = self.collect, self.spread
        count, velocity = state.here + 1, state.velocity
        total, g = state.total + arrival.grad, arrival.grad / n
        if count < n:
            step = torch.add(g, velocity, alpha=c * self.momentum)
            return Direction(step, Delayed(count, total, velocity))
        velocity = torch.add(velocity * self.momentum, total / n)
        step = torch.add(g, velocity, alpha=(1 - c * n + c) * self.momentum)
        return Direction(step, Delayed(0, torch.zeros_like(total), velocity))

    def keeps(self) -> tuple[int, int]:
        return 2, 0
