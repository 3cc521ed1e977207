"""Rules that send a pulling worker another vector than w: where w may be when its gradient comes.

The vector sent is also the worker's backup, unless the server writes backups at pushes. It is made
with the learning rate of the last push.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import check_choice, check_number, check_whole
from dcasgd_repro.rules.rule import (
    Arrival,
    Direction,
    Rule,
    checked_blocks,
    decayed,
    heavy_ball,
    parts,
    replaced,
)


class Velocity(NamedTuple):
    """One velocity, and the rate of the last push."""

    velocity: Tensor
    lr: float


class Scaled(NamedTuple):
    """One velocity, the rate of the last push, and rho."""

    velocity: Tensor
    lr: float
    rho: float


@dataclass(frozen=True)
class NAGASGD(Rule):
    """NAG-ASGD, one velocity for all: ``v = mu v + g``, ``w -= eta v``, sent ``w - eta mu v``.

    ``weight_decay`` is taken at the server's w. With one worker this is Nesterov's method, in the
    vector sent.
    Source: Hakimi, Barkai, Gabel, Schuster, 2019 (arXiv 1907.11612). Held to: a DANA-DC script,
    given one worker's slot.
    """

    name = "nag_asgd"
    label = "NAG-ASGD"

    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_number("weight_decay", self.weight_decay)

    def init(self, w: Tensor, workers: int) -> Velocity:
        return Velocity(torch.zeros_like(w), 0.0)

    def direction(self, arrival: Arrival, state: Velocity) -> Direction:
        g = decayed(self.weight_decay, arrival)
        velocity = torch.add(state.velocity * self.momentum, g)
        return Direction(velocity, Velocity(velocity, arrival.lr))

    def sends(self, w: Tensor, state: Velocity, worker: int) -> Tensor:
        return torch.add(w, state.velocity, alpha=-state.lr * self.momentum)

    def keeps(self) -> tuple[int, int]:
        return 1, 0


class Velocities(NamedTuple):
    """A velocity for each worker, their sum, and the rate of the last push."""

    velocities: tuple[Tensor, ...]
    total: Tensor
    lr: float


@dataclass(frozen=True)
class DANAZero(Rule):
    """DANA-Zero, ``v_m = mu v_m + g``, ``w -= eta v_m``, sent ``w - eta mu sum_j v_j``.

    The sum is kept, not added up anew. ``weight_decay`` is taken at the server's w.
    Source: Hakimi, Barkai, Gabel, Schuster, 2019 (arXiv 1907.11612). Held to: a DANA-DC script.
    """

    name = "dana_zero"
    label = "DANA-Zero"

    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_number("weight_decay", self.weight_decay)

    def init(self, w: Tensor, workers: int) -> Velocities:
        zero = torch.zeros_like(w)
        return Velocities((zero,) * workers, zero, 0.0)

    def direction(self, arrival: Arrival, state: Velocities) -> Direction:
        m, old = arrival.worker, state.velocities[arrival.worker]
        g = decayed(self.weight_decay, arrival)
        velocity = torch.add(old * self.momentum, g)
        total = state.total + (velocity - old)
        velocities = replaced(state.velocities, m, velocity)
        return Direction(velocity, Velocities(velocities, total, arrival.lr))

    def sends(self, w: Tensor, state: Velocities, worker: int) -> Tensor:
        return torch.add(w, state.total, alpha=-state.lr * self.momentum)

    def keeps(self) -> tuple[int, int]:
        return 1, 1


@dataclass(frozen=True)
class DANADC(DANAZero):
    """DANA-DC, DANA-Zero of the compensated gradient ``g + lambda g g (w_t - w_sent)``.

    ``lam`` is lambda (default 2); the drift is from the vector that was sent. Weight decay comes
    after the compensation, then momentum.
    Source: Hakimi, Barkai, Gabel, Schuster, 2019 (arXiv 1907.11612). Held to: a DANA-DC script.
    """

    name = "dana_dc"
    label = "DANA-DC"

    lam: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lam", self.lam)

    def direction(self, arrival: Arrival, state: Velocities) -> Direction:
        g = arrival.grad
        correction = self.lam * (g * g * arrival.drift)
        step, state, _ = super().direction(arrival._replace(grad=g + correction), state)
        return Direction(step, state, correction)


class Cycle(NamedTuple):
    """SMEGA2's state: M, pushes of this cycle, their sum, the velocity, the rate."""

    workers: int
    here: int
    total: Tensor
    velocity: Tensor
    lr: float


@dataclass(frozen=True)
class SMEGA2(Rule):
    """SMEGA2, ``w -= eta (g + mu v)``; every n pushes ``v = mu v + (1 - d) G / n``, G their sum.

    Sent after k pushes of a cycle: ``w - eta mu ((n + k (mu - 1)) v + (k / n) G_k)``, G_k the sum
    so far. ``cycle`` is n, None (default): M. ``naive`` sends ``w - eta mu n v``. ``dampening`` is
    d (default 0). ``weight_decay`` is taken at the server's w.
    Source: Cohen, Hakimi, Schuster, ICPP 2022. Held to: rafi-cohen/SMEGA2, the authors'.
    """

    name = "smega2"
    label = "SMEGA2"

    momentum: float = 0.9
    cycle: int | None = None
    naive: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        if self.cycle is not None:
            check_whole("cycle", self.cycle)
        check_choice("naive", self.naive, (True, False))
        check_number("dampening", self.dampening, 0, 1)
        check_number("weight_decay", self.weight_decay)

    def init(self, w: Tensor, workers: int) -> Cycle:
        zero = torch.zeros_like(w)
        return Cycle(self.cycle or workers, 0, zero, zero, 0.0)

    def direction(self, arrival: Arrival, state: Cycle) -> Direction:
        n, count, total, velocity, _ = state
        g = decayed(self.weight_decay, arrival)
        step = torch.add(g, velocity, alpha=self.momentum)
        count, total = count + 1, total + g
        if count == n:
            share = (1 - self.dampening) / n
            velocity = torch.add(velocity * self.momentum, total, alpha=share)
            count, total = 0, torch.zeros_like(total)
        return Direction(step, Cycle(n, count, total, velocity, arrival.lr))

    def sends(self, w: Tensor, state: Cycle, worker: int) -> Tensor:
        n, k, total, velocity, lr = state
        mu = self.momentum
        if self.naive:
            return torch.add(w, velocity, alpha=-lr * mu * n)
        w = torch.add(w, velocity, alpha=-lr * mu * (n + k * (mu - 1)))
        return torch.add(w, total, alpha=-lr * mu * k / n)

    def keeps(self) -> tuple[int, int]:
        return 2, 0


class Predicting(NamedTuple):
    """The velocity, the rate, w before the last update, and how far each worker looks ahead."""

    velocity: Tensor | None
    lr: float
    before: Tensor | None
    steps: tuple[int, ...]


@dataclass(frozen=True)
class LWP(Rule):
    """LWP, linear weight prediction: ``v = mu v + g``, ``w -= eta v``, sent ``w - s eta v``.

    ``form``   "velocity" (default), or "weight": sent ``w_t + s (w_t - w_(t-1))``.
    ``steps``  s: "workers" (default) is M - 1, the mean delay of workers that are never idle;
               "last" is the delay of the worker's last gradient, M - 1 before it.
    Source: Kosson et al., MLSys 2021 (arXiv 2003.11666); read at second hand.
    """

    name = "lwp"
    label = "LWP"

    momentum: float = 0.9
    form: str = "velocity"
    steps: str = "workers"

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_choice("form", self.form, ("velocity", "weight"))
        check_choice("steps", self.steps, ("workers", "last"))

    def init(self, w: Tensor, workers: int) -> Predicting:
        velocity = torch.zeros_like(w) if self.momentum or self.form == "velocity" else None
        before = w.clone() if self.form == "weight" else None
        return Predicting(velocity, 0.0, before, (workers - 1,) * workers)

    def direction(self, arrival: Arrival, state: Predicting) -> Direction:
        velocity, _, before, steps = state
        step, velocity = heavy_ball(self.momentum, arrival.grad, velocity)
        if before is not None:
            before = arrival.w.clone()  # in an optimizer arrival.w is the live parameter
        if self.steps == "last":
            steps = replaced(steps, arrival.worker, arrival.delay)
        return Direction(step, Predicting(velocity, arrival.lr, before, steps))

    def sends(self, w: Tensor, state: Predicting, worker: int) -> Tensor:
        far = self.reach(state.steps[worker])
        if state.before is not None:
            return torch.add(w, w - state.before, alpha=far)
        assert state.velocity is not None  # init made one
        return torch.add(w, state.velocity, alpha=-far * state.lr)

    def reach(self, steps: int) -> float:
        """How many velocities ``steps`` updates are taken to be."""
        return float(steps)

    def keeps(self) -> tuple[int, int]:
        return (self.momentum > 0 or self.form == "velocity") + (self.form == "weight"), 0


@dataclass(frozen=True)
class MSNAG(LWP):
    """MSNAG, multi-step Nesterov: LWP with ``w - eta v (mu - mu^(n+1)) / (1 - mu)`` sent.

    That is where n further updates with g = 0 lead; n is ``steps``, as in LWP.
    Source: read at second hand, from FTPipe's predictors.
    """

    name = "msnag"
    label = "MSNAG"

    def reach(self, steps: int) -> float:
        mu = self.momentum
        return (mu - mu ** (steps + 1)) / (1 - mu)


@dataclass(frozen=True)
class HeLoCo(Rule):
    """HeLoCo, ``m = mu m + (1 - mu) G``, ``w -= eta (G + mu m)``, sent ``w - eta mu m``.

    G is ``rho`` g, turned towards m first. By the cosine of the two, per block: at least ``c_ok``:
    g as it is; under 0: ``g - beta cos ||g|| m / ||m||``; between: ``||g|| u / ||u||`` with
    ``u = (1 - l) g / ||g|| + l m / ||m||``. ``conf = ||g|| / (||g|| + kappa ||m|| + eps)``,
    ``beta = min(-k_s cos conf, beta_max)``, ``l = min(k_d (1 - cos) conf, 1)``. Where a norm is
    under eps, g stays as it is.
    ``blocks``  sizes of the consecutive parts of w that have norms of their own, the layers say;
               () (default): w as a whole.
    ``clamp``  "inside" (default, as in a restatement of the paper), or "outside": beta =
               min(-k_s cos, beta_max) conf, the code's first version.
    ``rho``     None (default): the paper's, M^-1/2; the code's default is 1.
    What is reported as the correction is G - rho g.
    Source: HeLoCo, 2026 (arXiv 2606.00271), for pseudo-gradients, eta = 0.7. Held to:
    rcloyd/torchft.
    """

    name = "heloco"
    label = "HeLoCo"
    elementwise = False

    momentum: float = 0.9
    rho: float | None = None
    c_ok: float = 0.2
    k_s: float = 0.5
    k_d: float = 1.0
    kappa: float = 3.0
    beta_max: float = 0.5
    eps: float = 1e-8
    blocks: Sequence[int] = ()
    clamp: str = "inside"

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        if self.rho is not None:
            check_number("rho", self.rho, ends="()")
        check_number("c_ok", self.c_ok, -2, 2, ends="[]")
        for key in ("k_s", "k_d", "kappa", "beta_max"):
            check_number(key, getattr(self, key))
        check_number("eps", self.eps, ends="()")
        object.__setattr__(self, "blocks", checked_blocks(self.blocks))
        check_choice("clamp", self.clamp, ("inside", "outside"))

    def init(self, w: Tensor, workers: int) -> Scaled:
        parts(w, self.blocks)
        return Scaled(torch.zeros_like(w), 0.0, self.rho or workers**-0.5)

    def direction(self, arrival: Arrival, state: Scaled) -> Direction:
        g, (m, _, rho) = arrival.grad, state
        turned = [
            self.turned(*pair)
            for pair in zip(parts(g, self.blocks), parts(m, self.blocks), strict=True)
        ]
        full = rho * torch.cat(turned, dim=-1)
        m = self.momentum * m + (1 - self.momentum) * full
        step = torch.add(full, m, alpha=self.momentum)
        return Direction(step, Scaled(m, arrival.lr, rho), full - rho * g)

    def turned(self, g: Tensor, m: Tensor) -> Tensor:
        """One block of g, corrected by the same block of m."""
        size, length = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (g, m))
        cosine = (g * m).sum(dim=-1, keepdim=True) / (size * length)
        conf = size / (size + self.kappa * length + self.eps)
        if self.clamp == "inside":
            beta = torch.clamp(-self.k_s * cosine * conf, max=self.beta_max)
        else:
            beta = torch.clamp(-self.k_s * cosine, max=self.beta_max) * conf
        shrunk = g - beta * cosine * size * (m / length)
        share = torch.clamp(self.k_d * (1 - cosine) * conf, max=1.0)
        u = (1 - share) * (g / size) + share * (m / length)
        between = size * u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        as_it_is = (cosine >= self.c_ok) | (size < self.eps) | (length < self.eps)
        return torch.where(as_it_is, g, torch.where(cosine < 0, shrunk, between))

    def sends(self, w: Tensor, state: Scaled, worker: int) -> Tensor:
        return torch.add(w, state.velocity, alpha=-state.lr * self.momentum)

    def keeps(self) -> tuple[int, int]:
        return 1, 0
