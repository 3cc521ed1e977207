"""Rules that collect gradients before w moves, or ignore those that come too late.

On a schedule that was drawn beforehand no worker is stopped: a gradient that a paper's server would
cancel is ignored when it comes. A reactive schedule stops the workers that ``stops`` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import check_choice, check_number, check_whole
from dcasgd_repro.rules.rule import (
    Arrival,
    Direction,
    Rule,
    at_its_rate,
    momentum_step,
    replaced,
    start_velocity,
)
from dcasgd_repro.rules.step_size import Weighted


@dataclass(frozen=True)
class Ringmaster(Rule):
    """Ringmaster ASGD, ``w -= eta g`` if tau < R; an older gradient is ignored.

    ``threshold`` is R, None (default): 2 M, our choice; the paper's is ceil(sigma^2 / epsilon).
    tau counts the updates made, so an ignored gradient ages nobody. R above every delay is ASGD.
    Source: Maranjyan, Tyurin, Richtárik, 2025 (arXiv 2501.16168). Held to:
    vectozavr/ringmaster-lmo, which stops a worker whose delay reaches R (the paper's Algorithm 5),
    as a reactive schedule does; elsewhere its gradient is ignored.
    """

    name = "ringmaster"
    label = "Ringmaster ASGD"

    threshold: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_whole("threshold", self.threshold)

    def init(self, w: Tensor, workers: int) -> int:
        return self.threshold or 2 * workers

    def direction(self, arrival: Arrival, state: int) -> Direction:
        return Direction(arrival.grad if arrival.delay < state else None, state)

    def stops(self, state: int, delays: Sequence[int]) -> list[int]:
        return [m for m, delay in enumerate(delays) if delay >= state]


class Mean(NamedTuple):
    """Gradients taken at the present w: how many make a step, how many came, their sum."""

    collect: int
    here: int
    total: Tensor


@dataclass(frozen=True)
class Rennala(Rule):
    """Rennala SGD, ``w -= eta (1/B) sum g`` over B gradients, all taken at the present w.

    A gradient of an earlier w is ignored. ``collect`` is B, None (default): M.
    Source: Tyurin, Richtárik, 2023 (arXiv 2305.12387). Held to: vectozavr/ringmaster-lmo, which
    stops every worker at each update, so that none is ignored, as a reactive schedule does.
    """

    name = "rennala"
    label = "Rennala SGD"

    collect: int | None = None

    def __post_init__(self) -> None:
        if self.collect is not None:
            check_whole("collect", self.collect)

    def init(self, w: Tensor, workers: int) -> Mean:
        return Mean(self.collect or workers, 0, torch.zeros_like(w))

    def direction(self, arrival: Arrival, state: Mean) -> Direction:
        if arrival.delay > 0:
            return Direction(None, state)
        collect, count, total = state
        total = total + arrival.grad
        if count + 1 < collect:
            return Direction(None, Mean(collect, count + 1, total))
        return Direction(total / collect, Mean(collect, 0, torch.zeros_like(total)))

    def stops(self, state: Mean, delays: Sequence[int]) -> list[int]:
        return late(delays)

    def keeps(self) -> tuple[int, int]:
        return 1, 0


class Table(NamedTuple):
    """For each worker the mean of its gradients, and of how many."""

    means: tuple[Tensor, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Malenia(Rule):
    """Malenia SGD, ``w -= eta (1/M) sum_m (mean of worker m's gradients at the present w)``.

    The step is made when every worker has sent one; a gradient of an earlier w is ignored.
    ``collect``  S: the step waits until the harmonic mean of the workers' counts is >= S / M,
                None (default): M, one from each is enough.
    Source: Tyurin, Richtárik, 2023 (arXiv 2305.12387); the formula read at second hand.
    """

    name = "malenia"
    label = "Malenia SGD"

    collect: int | None = None

    def __post_init__(self) -> None:
        if self.collect is not None:
            check_whole("collect", self.collect)

    def init(self, w: Tensor, workers: int) -> Table:
        return empty_table(w, workers)

    def direction(self, arrival: Arrival, state: Table) -> Direction:
        if arrival.delay > 0:
            return Direction(None, state)
        state = folded(state, arrival)
        workers = len(state.counts)
        least = Fraction(self.collect or workers, workers)
        if 0 in state.counts or _harmonic(state.counts) < least:
            return Direction(None, state)
        return Direction(mean(state.means), empty_table(arrival.w, workers))

    def stops(self, state: Table, delays: Sequence[int]) -> list[int]:
        return late(delays)

    def keeps(self) -> tuple[int, int]:
        return 0, 1


class Rings(NamedTuple):
    """Two tables as in Table, and who has made its update; nobody has while the first fills."""

    means: tuple[Tensor, ...]
    counts: tuple[int, ...]
    next_means: tuple[Tensor, ...]
    next_counts: tuple[int, ...]
    done: tuple[bool, ...]


@dataclass(frozen=True)
class Ringleader(Rule):
    """Ringleader ASGD, ``w -= eta (1/M) sum_m (mean of worker m's gradients of this round)``.

    A round first waits for a gradient of every worker. The last one makes the round's first
    update, and the next gradient of each other worker, taken into its mean, one more: M updates.
    What a worker sends after its own update counts for the next round.
    Source: Maranjyan, Richtárik, 2025 (arXiv 2509.22860). Held to: vectozavr/ringmaster-lmo.
    """

    name = "ringleader"
    label = "Ringleader ASGD"

    def init(self, w: Tensor, workers: int) -> Rings:
        return Rings(*empty_table(w, workers), *empty_table(w, workers), (False,) * workers)

    def direction(self, arrival: Arrival, state: Rings) -> Direction:
        m, done = arrival.worker, state.done
        table = Table(state.means, state.counts)
        following = Table(state.next_means, state.next_counts)
        if done[m]:
            return Direction(None, Rings(*table, *folded(following, arrival), done))
        table = folded(table, arrival)
        if 0 in table.counts:
            return Direction(None, Rings(*table, *following, done))
        step, done = mean(table.means), replaced(done, m, True)
        if all(done):
            workers = len(done)
            empty = empty_table(arrival.w, workers)
            return Direction(step, Rings(*following, *empty, (False,) * workers))
        return Direction(step, Rings(*table, *following, done))

    def keeps(self) -> tuple[int, int]:
        return 0, 2


@dataclass(frozen=True)
class Throttle(Rule):
    """THROTTLE, ``w -= eta q^-c g / M`` for a worker's q-th gradient in a round.

    A round ends when every worker has sent one. Then all that compute are stopped, which needs a
    reactive schedule; elsewhere what they send counts for the next round. ``decay`` is c (default
    1, ours).
    Source: no paper read; the formula at second hand (THROTTLE, 2026).
    """

    name = "throttle"
    label = "THROTTLE"

    decay: float = 1.0

    def __post_init__(self) -> None:
        check_number("decay", self.decay)

    def init(self, w: Tensor, workers: int) -> tuple[int, ...]:
        return (0,) * workers

    def direction(self, arrival: Arrival, state: tuple[int, ...]) -> Direction:
        m, workers = arrival.worker, len(state)
        counts = replaced(state, m, state[m] + 1)
        step = arrival.grad * (counts[m] ** -self.decay / workers)
        return Direction(step, (0,) * workers if all(counts) else counts)

    def stops(self, state: tuple[int, ...], delays: Sequence[int]) -> list[int]:
        return [] if any(state) else list(range(len(delays)))


@dataclass(frozen=True)
class IAG(Rule):
    """Incremental aggregated ASGD, ``w -= eta (1/M) sum_m (worker m's last gradient)``.

    w first moves at the push after the one by which every worker has sent a gradient.
    Source: the asynchronous form of Blatt, Hero, Gauchman's incremental aggregated gradient
    (2007). Held to: vectozavr/ringmaster-lmo.
    """

    name = "iag"
    label = "Incremental aggregated ASGD"

    def init(self, w: Tensor, workers: int) -> Table:
        return empty_table(w, workers)

    def direction(self, arrival: Arrival, state: Table) -> Direction:
        full = 0 not in state.counts
        # A copy: the table outlives the caller's gradient, which an optimizer's user may overwrite.
        means = replaced(state.means, arrival.worker, arrival.grad.clone())
        state = Table(means, replaced(state.counts, arrival.worker, 1))
        return Direction(mean(means) if full else None, state)

    def keeps(self) -> tuple[int, int]:
        return 0, 1


class Buffer(NamedTuple):
    """The weighted gradients since the last step, in units of the rate ``lr``."""

    here: int
    total: Tensor
    weights: float  # their sum
    lr: float
    updates: int
    at: tuple[int, ...]
    velocity: Tensor | None


@dataclass(frozen=True)
class FedBuff(Weighted):
    """FedBuff, buffered ASGD: after K arrivals ``w -= eta (1/K) sum s(tau) g``.

    ``collect`` is K (default 10, the paper's). The default s is the paper's (1 + tau)^-1/2; its
    other options are those of FedAsync.
    ``reduction``  "mean" (default, the paper), "sum" (what both public codes do by default) or
                "weighted": divided by the sum of the weights.
    ``rate``    "step" (default): eta is the one at the K-th arrival. "arrival": each gradient has
                the eta of its own arrival, as in APPFL; a K-th arrival at eta = 0 moves nothing.
    ``pushes``  "gradient" (default), or "model": ``g + w_t - w_bak(m)`` for g, as in APPFL without
                its option gradient_based.
    ``momentum`` mu: ``v = mu v + (the mean)``, ``w -= eta v``; ``nesterov`` adds mu v once more.
    Source: Nguyen et al., 2022 (arXiv 2106.06639). Held to: APPFL, FLSim, a notebook of
    google-deepmind/asyncdiloco.
    With ``law=constant`` this is buffered ASGD.
    """

    name = "fedbuff"
    label = "FedBuff"

    collect: int = 10
    reduction: str = "mean"
    rate: str = "step"
    pushes: str = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("collect", self.collect)
        check_choice("reduction", self.reduction, ("mean", "sum", "weighted"))
        check_choice("rate", self.rate, ("step", "arrival"))
        check_choice("pushes", self.pushes, ("gradient", "model"))

    def init(self, w: Tensor, workers: int) -> Buffer:
        at = (0,) * workers if self.count == "push" else ()
        velocity = start_velocity(self.momentum, w)
        return Buffer(0, torch.zeros_like(w), 0.0, 0.0, 0, at, velocity)

    def direction(self, arrival: Arrival, state: Buffer) -> Direction:
        count, total, weights, lr, updates, at, velocity = state
        s = self.weight(self.delay(arrival, updates, at))
        g = s * (arrival.grad if self.pushes == "gradient" else arrival.grad + arrival.drift)
        if self.rate == "arrival":
            total, lr = at_its_rate(total, lr, g, arrival.lr)
        else:
            total = total + g
        weights, moved = weights + s, count + 1 == self.collect
        if at:
            updates += moved
            at = replaced(at, arrival.worker, updates)
        if not moved:
            return Direction(None, Buffer(count + 1, total, weights, lr, updates, at, velocity))
        over = {"mean": self.collect, "sum": 1, "weighted": weights or 1.0}[self.reduction]
        step, velocity = momentum_step(self.momentum, self.nesterov, total / over, velocity)
        empty = torch.zeros_like(total)
        return Direction(step, Buffer(0, empty, 0.0, lr, updates, at, velocity))

    def keeps(self) -> tuple[int, int]:
        return 1 + (self.momentum > 0), 0


def _harmonic(counts: Sequence[int]) -> Fraction:
    """The harmonic mean, exact: rounded it may miss what it is equal to."""
    return len(counts) / sum((Fraction(1, n) for n in counts), Fraction(0))


def late(delays: Sequence[int]) -> list[int]:
    """Workers that compute at an earlier w than the present one."""
    return [m for m, delay in enumerate(delays) if delay > 0]


def empty_table(w: Tensor, workers: int) -> Table:
    """A table without an entry."""
    return Table((torch.zeros_like(w),) * workers, (0,) * workers)


def folded(table: Table, arrival: Arrival) -> Table:
    """The table with the arrival's gradient taken into its worker's mean."""
    m = arrival.worker
    count = table.counts[m] + 1
    old = table.means[m]
    new = old + (arrival.grad - old) / count
    return Table(replaced(table.means, m, new), replaced(table.counts, m, count))


def mean(vectors: tuple[Tensor, ...]) -> Tensor:
    """The mean of vectors, summed in order."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total / len(vectors)
