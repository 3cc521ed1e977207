"""Waves: gradients whose vectors exist are computed together, for one simulation or for many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from dcasgd_repro.schedule import Message
from dcasgd_repro.simulate import Server, Step, Task, simulate


class Cell(NamedTuple):
    """The arguments of one ``simulate``."""

    task: Task
    server: Server
    messages: Iterable[Message]
    lr: Callable[[int], float]


Gradients = Sequence[tuple[Tensor, Tensor]]  # (loss, g [P]) of each member of a wave
Compute = Callable[[Task, Sequence[Tensor], Sequence[Any]], Gradients]  # task, vectors, batches


@dataclass(frozen=True)
class Waves:
    """``simulate``, each wave of gradients computed as one batch [K, P] (torch.func.vmap).

    A wave begins at a push whose gradient is not there yet; it holds that one and every other that
    a worker has pulled for since. M equal workers make waves of M.

    The Steps are the plain loop's up to the order of sums inside a batched operation: within 1e-12
    in float64. In float32 a gradient differs by up to 1 % of its norm, as the plain loop's own do
    between one thread and two (0.67 % and 0.64 %: ResNet-20 at its initial weights, batch 128, CPU;
    the wave was 0.11 % from float64, the plain loop 0.66 %). A resumed run begins with narrower
    waves, so in float32 it is equal only as far as that. The task needs a ``loss``.
    """

    def __call__(
        self, task: Task, server: Server, messages: Iterable[Message], lr: Callable[[int], float]
    ) -> Iterator[Step]:
        return (step for _, step in replicas([Cell(task, server, messages, lr)]))


def replicas(cells: Sequence[Cell], compute: Compute | None = None) -> Iterator[tuple[int, Step]]:
    """Replays several simulations whose gradients share waves; yields (index of the cell, Step).

    Gradients share a wave where their tasks have one ``same_loss``; vectors, batches, rules and
    schedules are each cell's own. Each cell's Steps come in its own order. ``compute`` (default
    ``batched``) computes a wave.
    """
    compute = compute or batched
    flights = [Flight(*cell) for cell in cells]
    while any(flight.blocked for flight in flights):
        wanted = [(flight, m) for flight in flights for m in flight.wanted()]
        for alike in dict.fromkeys(flight.alike for flight, _ in wanted):
            wave = [(flight, m) for flight, m in wanted if flight.alike == alike]
            vectors = [flight.server.sent[m] for flight, m in wave]
            batches = [f.task.batch(m, f.server.batches[m]) for f, m in wave]
            results = compute(wave[0][0].task, vectors, batches)
            for (flight, m), result in zip(wave, results, strict=True):
                flight.arrived[m] = result
        for index, flight in enumerate(flights):
            for step in flight.replay():
                yield index, step


class Flight:
    """One simulation, advanced as far as its gradients have been computed; a Task to ``simulate``.

    ``blocked`` is the message it waits at, the next one of the log; None when that has ended.
    """

    def __init__(
        self, task: Task, server: Server, messages: Iterable[Message], lr: Callable[[int], float]
    ) -> None:
        self.task, self.server, self.lr = task, server, lr
        self.alike = alike(task)
        self._rest = iter(messages)
        self.blocked = next(self._rest, None)
        self.arrived: dict[int, tuple[Tensor, Tensor]] = {}  # computed, not pushed
        self._flying: dict[int, None] = {}  # pulled, not computed; in the order of the pulls

    def wanted(self) -> list[int]:
        """The workers whose gradients the next wave computes."""
        if self.blocked is None or self.blocked.kind != "push":
            return []
        self._flying.setdefault(self.blocked.worker)  # it may have pulled before these messages
        wanted, self._flying = list(self._flying), {}
        return wanted

    def replay(self) -> Iterator[Step]:
        """The Steps up to the next push whose gradient has not been computed."""
        return simulate(self, self.server, self._computed(), self.lr)

    def _computed(self) -> Iterator[Message]:
        while self.blocked is not None:
            message = self.blocked
            m = message.worker
            if message.kind == "push" and m not in self.arrived:
                return
            self.blocked = next(self._rest, None)
            yield message
            if message.kind == "pull":  # by now the server has sent the vector
                self.arrived.pop(m, None)
                self._flying[m] = None

    def batch(self, worker: int, k: int) -> int:
        return worker

    def gradient(self, w: Tensor, worker: int) -> tuple[Tensor, Tensor]:
        return self.arrived.pop(worker)


def batched(task: Any, vectors: Sequence[Tensor], batches: Sequence[Any]) -> Gradients:
    """K losses and gradients at once: ``vmap`` of the task's loss over [K, P] and K batches."""
    if len(vectors) == 1 or getattr(task, "draws", False):
        return [task.gradient(w, batch) for w, batch in zip(vectors, batches, strict=True)]
    g, loss = vmap(grad_and_value(task.loss))(torch.stack(list(vectors)), stacked(batches))
    return list(zip(loss.unbind(), g.unbind(), strict=True))


def alike(task: Any) -> Any:
    """A task's ``same_loss``; one without it is like no other."""
    return getattr(task, "same_loss", id(task))


def stacked(batches: Sequence[Any]) -> Any:
    """K batches as one, each tensor with a leading dimension K."""
    one = batches[0]
    if isinstance(one, tuple):
        return getattr(one, "_make", tuple)(map(torch.stack, zip(*batches, strict=True)))
    return torch.stack(list(batches))
