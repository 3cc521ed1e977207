"""The protocol on Ray: a server and M workers, each a process of its own, anywhere in a cluster.

The driver, which is the process of ``dcasgd-repro train``, follows: it takes the server's log, with
the gradients in it, and carries it out on its own ``Server`` through ``simulate``. So rows,
evaluations, probes and checkpoints are the simulator's, of a state equal to the server's to the
bit, and none of them holds the server up. The price is each update twice, and each gradient once
more over memory (driver and server are on one node).

A worker's death costs the gradient it was computing. A server's death costs the gradients that the
driver had not taken: the new server begins in the driver's state. The driver's death ends the
others, and the run goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dcasgd_repro.cluster.place import place
from dcasgd_repro.cluster.protocol import (
    REASONS,
    WAIT,
    Followed,
    Line,
    ParameterServer,
    Patience,
    Sent,
    table,
    twin,
)
from dcasgd_repro.errors import BadInput, Failure, check_number
from dcasgd_repro.schedule import Recording
from dcasgd_repro.schedule.live import ELSEWHERE, Event
from dcasgd_repro.simulate import Server, Step

TAKEN = 16  # pushes that the driver takes at a time
AHEAD_BYTES = 2**28  # of gradients that the server may hold for the driver
STORE_BYTES = 2**27  # of a local object store, beside the vectors
GIVE_UP = 5  # deaths of a process, one after another, without a gradient received between
STOP_S = 0.2  # between two looks at whether the run is to stop, while the server is silent
PAUSE_S = (0.001, 0.05)  # between two questions: at first, and at most


@dataclass(frozen=True)
class Ray:
    """An engine whose M workers compute for real; its schedule is ``Live``.

    ``address``          of a Ray cluster ("auto": the one of this machine); None: a Ray of its own
    ``gpus_per_worker``  GPUs, or a part of one, that each worker computes on; 0: the CPU
    ``slow``             {worker: factor}: it sleeps until its gradient took so many times as long

    The server and the driver compute on the CPU. All processes have as many torch threads as the
    driver, so that the log can be replayed to the bit. The task needs ``conf``, whose
    ``on(device)`` makes it again in each worker; its data must be at the same place on every node.
    Raises BadInput.
    """

    address: str | None = None
    gpus_per_worker: float = 0.0
    slow: Mapping[int, float] | None = None

    live: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise BadInput("engine", "ray", "needs Ray: pip install 'dcasgd-repro[ray]'")
        check_number("gpus_per_worker", self.gpus_per_worker)
        if not isinstance(self.factors, Mapping):
            raise BadInput("slow", self.slow, "give {worker: factor}, as {0: 3.0}")
        for factor in self.factors.values():
            check_number("slow", factor, 1)

    @property
    def factors(self) -> Mapping[int, float]:
        return self.slow or {}

    def check(self, task: Any, server: Server) -> None:
        """Refuses what cannot run, as far as is known before there is a Ray: BadInput."""
        if server.w.device.type != "cpu":
            remedy = "on Ray the server is on the CPU: set device=cpu, and engine.gpus_per_worker"
            raise BadInput("device", server.w.device.type, remedy)
        if not hasattr(task, "conf"):
            remedy = "has no conf, whose on(device) would make it again in each worker"
            raise BadInput("task", type(task).__name__, remedy)
        for worker in self.factors:
            if worker not in range(len(server.sent)):
                remedy = f"workers={len(server.sent)} have the numbers 0 to {len(server.sent) - 1}"
                raise BadInput("engine.slow", dict(self.factors), remedy)

    def __call__(
        self, task: Any, server: Server, messages: Recording, lr: Callable[[int], float]
    ) -> Iterator[Step]:
        tqdm.write(f"note      starting {len(server.sent)} workers on Ray", file=sys.stderr)
        with self.session(server):
            cluster = Cluster(self, task.conf, server, messages, lr)
            try:
                yield from Followed(cluster.lines()).steps(server, lr, messages.append)
            finally:
                cluster.end()

    @contextlib.contextmanager
    def session(self, server: Server) -> Iterator[None]:
        """A connection to the cluster, or a Ray of its own for as long; nothing on the screen."""
        import ray

        if ray.is_initialized():
            yield
            return
        workers, vector = len(server.sent), server.w.nbytes
        own: dict[str, Any] = {
            "address": "local",
            "num_cpus": workers * torch.get_num_threads(),  # a word to Ray, not a measure
            "object_store_memory": STORE_BYTES + 2 * AHEAD_BYTES + 8 * workers * vector,
            "include_dashboard": False,
        }
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with _handlers():
            try:
                ray.init(
                    **({"address": self.address} if self.address else own),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, ValueError) as error:
                told = " ".join(str(error).split())
                raise BadInput("engine.address", self.address, f"no Ray there ({told})") from None
            # Ray prints a paragraph for each process that dies, whatever log_to_driver says.
            ray._private.worker._worker_logs_enabled = False
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """Keeps this process's own handling of signals, which ``ray.init`` takes over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Cluster:
    """The processes of a run, as its driver sees them: starts them, and starts them again."""

    def __init__(
        self,
        engine: Ray,
        leaf: Any,
        server: Server,
        recording: Recording,
        lr: Callable[[int], float],
    ) -> None:
        import ray

        self.ray, self.recording, self.server = ray, recording, server
        self.rates = [lr(n) for n in range(server.pushes, recording.pushes)]
        self.first = server.pushes
        self.began: float | None = None  # at the run's second 0, by this process's clock
        self.incarnation = [0] * len(server.sent)
        self.deaths = [0] * len(server.sent)
        self.servers = self.server_deaths = 0  # started; died, one after another
        self.patience = Patience()
        self.places: dict[Any, int] = {}  # a call of place -> its worker
        cpus, gpus = torch.get_num_threads(), engine.gpus_per_worker
        self._fits(len(server.sent), cpus, gpus)
        self.leaf, self.gpu, self.factors = leaf, gpus > 0, engine.factors
        self.means = {"num_cpus": cpus, "num_gpus": gpus}
        self.keeper = self._keeper()
        self.workers = [self._worker(m) for m in range(len(server.sent))]
        self.working: dict[Any, tuple[int, int]] = {}  # a call of work -> worker, number of server
        self.received = list(server.batches)  # of each worker, as the present server began
        for m in range(len(self.workers)):
            self._work(m)

    def lines(self) -> Iterator[Line]:
        """The server's log, line by line, as it grows; refusals are noted and left out."""
        pause = Pause()
        tended = time.monotonic()
        while self.server.pushes < self.recording.pushes:
            try:
                lines = self._taken()
            except lost_ones() as error:
                self._replace_keeper(error)
                continue
            if self.recording.stopping():
                return
            for line in lines:
                self.began = self.began or time.monotonic() - line.clock_s
                self.patience.note(line)
                if line.kind in REASONS:
                    self._note(f"refused: {line.kind}", line.worker, line.k, clock_s=line.clock_s)
                    continue
                if line.kind == "push":
                    self.deaths[line.worker] = self.server_deaths = 0
                    line = line._replace(loss=tensor(line.loss), g=tensor(line.g))
                yield line
            if not lines or time.monotonic() > tended + 0.2:
                self._tend()
                tended = time.monotonic()
            if lines:
                pause = Pause()
            else:
                pause()

    def _taken(self) -> list[Line]:
        """The log's next lines; none where the run is to stop before the server answers."""
        call = self.keeper.take.remote(TAKEN)
        while not self.ray.wait([call], timeout=STOP_S)[0]:
            if self.recording.stopping():
                return []
        lines: list[Line] = self.ray.get(call)
        return lines

    def end(self) -> None:
        """Kills the processes, if Ray has not ended with all of them."""
        for actor in (self.keeper, *self.workers) if self.ray.is_initialized() else ():
            self.ray.kill(actor)

    def _tend(self) -> None:
        """Starts again whatever has stopped working."""
        if self.places:
            self._note_places()
        done, _ = self.ray.wait(list(self.working), num_returns=len(self.working), timeout=0)
        for call in done:
            m, server = self.working.pop(call)
            try:
                received = self.ray.get(call)
            except lost_ones() as error:
                memory = isinstance(error, self.ray.exceptions.OutOfMemoryError)
                # Without its batch: the server may be batches ahead of the driver.
                self._note("worker lost: out of memory" if memory else "worker lost", m)
                self.deaths[m] = counted(self.deaths[m], f"worker {m}", error)
                self.ray.kill(self.workers[m])  # it may only be out of reach
                self.workers[m] = self._worker(m)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, BadInput) else error from None
            else:
                lost = received - self.received[m]
                if server != self.servers and lost > 0:
                    self._note("pushes lost", m, self.received[m], lost)
            if self.server.pushes < self.recording.pushes:
                self._work(m)

    def _replace_keeper(self, error: Exception) -> None:
        self._note("server lost")
        self.server_deaths = counted(self.server_deaths, "the server", error)
        self.ray.kill(self.keeper)  # it may only be out of reach
        self.received = list(self.server.batches)
        self.incarnation = [number + 1 for number in self.incarnation]
        self.keeper = self._keeper()

    def _keeper(self) -> Any:
        """A server process on the driver's node, in the state of the driver's own Server."""
        self.servers += 1
        node = self.ray.get_runtime_context().get_node_id()
        place = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        remote = self.ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=place)
        protocol = {
            "pushes": self.recording.pushes,
            "incarnation": self.incarnation,
            "barrier": self.recording.barrier,
            "computing": self.recording.computing() if self.recording.barrier else (),
            "gather": self.began is None,
            "clock_s": self._clock_s(),
            "ahead": max(2 * len(self.incarnation), min(1000, AHEAD_BYTES // self.server.w.nbytes)),
        }
        rates = self.rates[self.server.pushes - self.first :]
        return remote.remote(twin(self.server), rates, settings(), protocol)

    def _worker(self, m: int) -> Any:
        remote = self.ray.remote(Worker).options(**self.means)
        worker = remote.remote(m, self.gpu, settings(), self.factors.get(m, 1.0))
        self.places[worker.place.remote()] = m
        return worker

    def _work(self, m: int) -> None:
        self.incarnation[m] += 1
        call = self.workers[m].work.remote(self.leaf, self.keeper, self.incarnation[m])
        self.working[call] = (m, self.servers)

    def _note_places(self) -> None:
        """Notes the workers that compute on another processor than this one, or another torch."""
        done, _ = self.ray.wait(list(self.places), num_returns=len(self.places), timeout=0)
        for call in done:
            m = self.places.pop(call)
            with contextlib.suppress(*lost_ones()):  # which its work tells too
                if (there := self.ray.get(call)) != place():
                    self._note(f"{ELSEWHERE}: {there}", m)

    def _note(
        self,
        event: str,
        worker: int | None = None,
        batch: int | None = None,
        pushes: int = 0,
        clock_s: float | None = None,
    ) -> None:
        at = self._clock_s() if clock_s is None else clock_s
        self.recording.events.append(Event(at, event, worker, batch, pushes))

    def _clock_s(self) -> float:
        last = self.recording.clock_s
        return last if self.began is None else max(last, time.monotonic() - self.began)

    def _fits(self, workers: int, cpus: int, gpus: float) -> None:
        """Refuses what would wait for resources that are not there."""
        there = self.ray.cluster_resources()
        for name, each in (("CPU", cpus), ("GPU", gpus)):
            if workers * each > there.get(name, 0):
                what = f"they need {workers * each:g} {name}s, the cluster has"
                raise BadInput("workers", workers, f"{what} {there.get(name, 0):g}")


class Keeper:
    """The server's process: a ``ParameterServer``, its vectors sent as arrays.

    A synchronous actor, so calls are carried out one after another, as they arrive.
    """

    def __init__(
        self,
        server: Server,
        rates: list[float],
        means: tuple[int, int],
        protocol: Mapping[str, Any],
    ) -> None:
        settle(*means)
        self.ps = ParameterServer(server, table(rates, server.pushes), **protocol)

    def pull(self, m: int, incarnation: int) -> Any:
        """See ParameterServer; w as an array."""
        reply = self.ps.pull(m, incarnation)
        return reply._replace(w=reply.w.numpy()) if isinstance(reply, Sent) else reply

    def push(self, m: int, incarnation: int, k: int, loss: Any, g: Any) -> tuple[int, Any]:
        """A push and the next pull in one call; first how many the server has received of m."""
        self.ps.push(m, incarnation, k, tensor(loss), tensor(g))
        return self.ps.server.batches[m], self.pull(m, incarnation)

    def take(self, pushes: int) -> list[Line]:
        """See ParameterServer; gradients as arrays."""
        return [
            line if line.g is None else line._replace(loss=line.loss.numpy(), g=line.g.numpy())
            for line in self.ps.take(pushes)
        ]


class Worker:
    """A worker's process: Algorithm 1, over and over."""

    def __init__(self, m: int, gpu: bool, means: tuple[int, int], slow: float) -> None:
        settle(*means)
        self.m, self.slow = m, slow
        self.device = torch.device("cuda" if gpu else "cpu")
        self.task: Any = None
        self.received = 0  # gradients that the server says it has received of this worker

    def place(self) -> str:
        return place()

    def work(self, leaf: Any, keeper: Any, incarnation: int) -> int:
        """Until the server is lost, has enough or has another one; ``received`` of then."""
        import ray

        self.task = self.task or leaf.on(self.device)
        pause = Pause()
        with contextlib.suppress(*lost_ones()):
            reply = ray.get(keeper.pull.remote(self.m, incarnation))
            while isinstance(reply, Sent) or reply == WAIT:
                if isinstance(reply, Sent):
                    call = keeper.push.remote(self.m, incarnation, reply.k, *self._compute(reply))
                    self.received, reply = ray.get(call)
                    pause = Pause()
                else:
                    pause()
                    reply = ray.get(keeper.pull.remote(self.m, incarnation))
        return self.received

    def _compute(self, sent: Sent) -> tuple[Any, Any]:
        began = time.monotonic()
        w = tensor(sent.w).to(self.device)
        loss, g = self.task.gradient(w, self.task.batch(self.m, sent.k))
        found = loss.detach().cpu().numpy(), g.cpu().numpy()
        time.sleep((self.slow - 1) * (time.monotonic() - began))
        return found


def lost_ones() -> tuple[type[Exception], ...]:
    """What a call raises whose process is lost: it died, or Ray ended it for want of memory."""
    from ray import exceptions

    return exceptions.RayActorError, exceptions.OutOfMemoryError


def counted(deaths: int, what: str, error: Exception) -> int:
    """One death more. Raises Failure at the last one that is borne."""
    if deaths + 1 < GIVE_UP:
        return deaths + 1
    last = (str(error).strip().splitlines() or [""])[-1]
    raise Failure(f"{what} died {GIVE_UP} times and did nothing between; the last time: {last}")


class Pause:
    """A sleep that grows while nothing comes."""

    def __init__(self) -> None:
        self.seconds = PAUSE_S[0]

    def __call__(self) -> None:
        time.sleep(self.seconds)
        self.seconds = min(2 * self.seconds, PAUSE_S[1])


def tensor(array: Any) -> Tensor:
    """An array's memory as a Tensor; copied where it does not begin as torch's own memory does.

    What a library adds up first may depend on that.
    """
    if array.ctypes.data % 64:
        return torch.tensor(np.asarray(array))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only: nobody writes into vectors here
        return torch.from_numpy(array)


def settings() -> tuple[int, int]:
    """This process's number of threads and determinism, for ``settle`` in another one."""
    return torch.get_num_threads(), torch.get_deterministic_debug_mode()


def settle(threads: int, deterministic: int) -> None:
    """Computes as the process whose ``settings`` these are."""
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
