"""Pushes per second of one parameter server on Ray, by workers that compute nothing.

The very engine of ``train engine=ray`` runs: server, workers and the driver that follows, each a
process, on a Ray of this machine. Beside it the same calls in one process without Ray, which is the
server's own arithmetic. So a row's ratio is the share of its time that the server spends on
arithmetic: near 1, that is the bound; far below, it waits for gradients to reach it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcasgd_repro.bench.timing import Row, row
from dcasgd_repro.cluster.protocol import ParameterServer, Sent
from dcasgd_repro.cluster.ray import Ray
from dcasgd_repro.rules import DCASGDa
from dcasgd_repro.schedule import Live, Recording
from dcasgd_repro.simulate import Server

SIZES = (272_474, 25_557_032)  # parameters: ResNet-20, ResNet-50
WORKERS = (1, 2, 4, 8)
ROUNDS = 3  # runs of each, in turn
BYTES = 8 * 10**9  # of gradients in a run, as far as there are PUSHES of them
PUSHES = (64, 2000)  # of a run: at least, at most
BLOCKS = 8  # of equally many pushes; the first two of a run do not count


@dataclass(frozen=True)
class Nothing:
    """A task of so many parameters whose gradient is there already; its workers make it anew."""

    size: int

    def on(self, device: torch.device) -> Ready:
        return Ready(self)


class Ready:
    def __init__(self, conf: Nothing) -> None:
        self.conf = conf
        self.loss, self.g = torch.zeros(()), torch.full((conf.size,), 1e-3)

    def batch(self, worker: int, k: int) -> None:
        return None

    def gradient(self, w: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return self.loss, self.g


def cluster_part(
    device: torch.device,
    sizes: Sequence[int] = SIZES,
    workers: Sequence[int] = WORKERS,
    rounds: int = ROUNDS,
    most: int = PUSHES[1],
) -> Iterator[Row]:
    """Pushes per second of a server on Ray, DC-ASGD-a, and of its arithmetic alone."""
    engine = Ray()
    for size in sizes:
        pushes = int(np.clip(BYTES // (4 * size), PUSHES[0], most))
        alone: list[float] = []
        found: dict[int, list[float]] = {m: [] for m in workers}
        with engine.session(server_of(size, max(workers))):
            for _ in range(rounds):
                for m in workers:
                    alone += rates(arithmetic(size, m, pushes))
                    found[m] += rates(on_ray(engine, size, m, pushes))
        name = f"{size / 1e6:.3g} M parameters"
        first = f"{name}: the server's arithmetic alone"
        yield row(first, "pushes/s", alone)
        for m, per_s in found.items():
            shares = np.array(per_s) / np.median(alone)
            yield row(f"{name}, {m} workers", "pushes/s", per_s, shares, first)


def server_of(size: int, workers: int) -> Server:
    return Server(DCASGDa(), torch.zeros(size), workers)


def on_ray(engine: Ray, size: int, workers: int, pushes: int) -> list[float]:
    """The server's clock at each push of a real run."""
    recording = Recording(Live(workers).messages(pushes), pushes)
    steps = engine(Ready(Nothing(size)), server_of(size, workers), recording, lambda n: 0.1)
    return [step.clock_s for step in steps]


def arithmetic(size: int, workers: int, pushes: int) -> list[float]:
    """The clock at each push of the same calls, in this process, with a log taken as it grows."""
    server, task = server_of(size, workers), Ready(Nothing(size))
    ps = ParameterServer(server, lambda n: 0.1, pushes, [1] * workers)
    clocks, began = [], time.monotonic()
    for push in range(pushes):
        m = push % workers
        sent = ps.pull(m, 1)
        assert isinstance(sent, Sent)
        ps.push(m, 1, sent.k, *task.gradient(sent.w, None))
        ps.take(1)
        clocks.append(time.monotonic() - began)
    return clocks


def rates(clocks: Sequence[float]) -> list[float]:
    """Pushes per second in each of BLOCKS equal parts of a run, but for the first two."""
    at = np.linspace(0, len(clocks) - 1, BLOCKS + 1).astype(int)
    seconds = np.diff(np.array(clocks)[at])
    found: list[float] = (np.diff(at) / seconds)[2:].tolist()
    return found
