"""What a simulated worker costs: the parts of the bench.

A part is a function from a device to rows. Timings of one comparison are taken in turns, A B A B,
in one process, and compared pair by pair: a machine that is busy for a minute slows both. Whatever
a process cannot undo (its peak memory, its allocator) is measured in a process of its own.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from dcasgd_repro.bench.cluster import cluster_part
from dcasgd_repro.bench.timing import Part, Row, Timed, compared, row, timings
from dcasgd_repro.data.images import CIFAR10_MEAN, CIFAR10_STD, Batch, Synthetic, generate
from dcasgd_repro.fast.fused import fuse
from dcasgd_repro.fast.graphs import CUDA, Captured, Graphs
from dcasgd_repro.fast.threads import Threads
from dcasgd_repro.fast.waves import Cell, Waves, replicas
from dcasgd_repro.models import ResNet
from dcasgd_repro.rules import Arrival, DCASGDa
from dcasgd_repro.run import write as record
from dcasgd_repro.run.device import keep_freed_memory, return_freed_memory
from dcasgd_repro.schedule import Exponential, Gamma, Generated, Law, Lognormal, Schedule
from dcasgd_repro.simulate import Server, Step, apply, simulate
from dcasgd_repro.tasks import Classification, Classifier, Drawn


@dataclass(frozen=True)
class Network:
    """A network and its batch, as the two scales have them."""

    name: str
    depth: int
    width: int
    batch: int

    def task(self, device: torch.device, workers: int) -> Classifier:
        shard = max(4096, workers * self.batch)
        data = Synthetic(workers, self.batch, 0, True, train_images=shard, test_images=64)
        return Classification(ResNet(self.depth, self.width), data).on(device)


PAPER = Network("ResNet-20, batch 128", 20, 16, 128)
LAPTOP = Network("ResNet-8 width 8, batch 32", 8, 8, 32)
LR = 0.01

Engine = Callable[..., Iterator[Step]]  # ``simulate``, or an engine of fast


def simulate_part(device: torch.device) -> Iterator[Row]:
    """A push of ``simulate`` against a step of the plainest PyTorch loop, and what others pay."""
    for network, rounds, limit in ((PAPER, 80, 1.01), (LAPTOP, 400, 1.03)):
        plain, ours = f"plain PyTorch loop, {network.name}", "simulate, DC-ASGD-a, M = 8, logged"
        works = {
            plain: plain_loop(network.task(device, 8)),
            "the plain loop once more (control)": plain_loop(network.task(device, 8)),
            ours: pushes(network.task(device, 8), simulate),
            "plain loop, parameters re-pointed at w": repointed(network.task(device, 8)),
            "plain loop, through functional_call": functional(network.task(device, 8)),
        }
        yield from compared(works, rounds, device, {ours: f"ratio <= {limit}"})
        yield from against_peers(network, device)
        yield from batches(network.task(device, 8), network)
    if device.type == "cpu":
        yield from allocator(PAPER)


def functional(task: Classifier) -> Timed:
    """The plain step with torch.func.functional_call on views of a flat vector."""
    module = task._network(0)
    names = [name for name, _ in module.named_parameters()]
    w, turns = task.initial(0), in_turn(task)

    def step() -> None:
        nonlocal w
        batch = next(turns)
        leaf = w.detach().requires_grad_()
        named = dict(zip(names, task._parts(leaf), strict=True))
        loss = F.cross_entropy(functional_call(module, named, (batch.images,)), batch.labels)
        (g,) = torch.autograd.grad(loss, leaf)
        w = torch.add(w, g, alpha=-LR)

    return step


def against_peers(network: Network, device: torch.device) -> Iterator[Row]:
    """Blocks of pushes and of peers' steps in turn, each in a process of its own.

    So the peers have glibc's own ways; and what the loader's processes prepare ahead while the
    other block runs is a small part of a block.
    """
    steps, threads = 12, torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, prepare, (our_loop, network, device, threads)) as ours,
        ProcessPoolExecutor(1, context, prepare, (peers_loop, network, device, threads)) as theirs,
    ):
        peers = f"{steps} steps as peers do: NCHW, DataLoader with 2 processes"
        works: dict[str, Timed] = {
            f"{steps} pushes of simulate, {network.name}": (
                lambda: ours.submit(repeat, steps).result()
            ),
            peers: lambda: theirs.submit(repeat, steps).result(),
        }
        bounds = {peers: "ratio >= 1.3"} if network is PAPER else {}
        yield from compared(works, 10 if network is PAPER else 30, device, bounds)


prepared: Any = None  # what a process of its own was started to repeat


def prepare(
    make: Callable[..., Timed], network: Network, device: torch.device, threads: int
) -> None:
    global prepared
    torch.set_num_threads(threads)
    prepared = make(network, device)


def repeat(times: int) -> None:
    for _ in range(times):
        prepared()


def our_loop(network: Network, device: torch.device) -> Timed:
    keep_freed_memory()
    return pushes(network.task(device, 8), simulate)


def batches(task: Classifier, network: Network) -> Iterator[Row]:
    """One mini-batch, drawn and augmented on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    turns = in_turn(task)
    works: dict[str, Timed] = {"-": lambda: None, "batch": lambda: next(turns)}
    taken = timings(works, 100, task.device)["batch"]
    torch.set_num_threads(threads)
    limit = "value <= 2" if network is PAPER else None
    yield row(f"draw, crop, flip, normalise, {network.name}", "ms", 1000 * taken, bound=limit)


def in_turn(task: Classifier) -> Iterator[Batch | Drawn]:
    """The workers' batches, one worker after another, as equal workers ask for them.

    Each loop has a task of its own: a task keeps the orders of a few epochs, and two loops at
    different epochs would make each other draw them anew at every step.
    """
    for k in itertools.count():
        for worker in range(task.images.workers):
            yield task.batch(worker, k)


def plain_loop(task: Classifier) -> Timed:
    """zero_grad, forward, backward, SGD.step on the task's own batches."""
    module = task._network(0)
    sgd = torch.optim.SGD(module.parameters(), lr=LR)
    turns = in_turn(task)

    def step() -> None:
        batch = next(turns)
        sgd.zero_grad()
        F.cross_entropy(module(batch.images), batch.labels).backward()
        sgd.step()

    return step


def repointed(task: Classifier) -> Timed:
    """The plain step with parameters and gradients as views of two flat vectors."""
    module = task._network(0)
    parameters = list(module.parameters())
    w = torch.cat([p.detach().reshape(-1) for p in parameters])
    g = torch.zeros_like(w)
    at = 0
    for p in parameters:
        p.data = w[at : at + p.numel()].view(p.shape)
        p.grad = g[at : at + p.numel()].view(p.shape)
        at += p.numel()
    turns = in_turn(task)

    def step() -> None:
        batch = next(turns)
        g.zero_()
        F.cross_entropy(module(batch.images), batch.labels).backward()
        w.add_(g, alpha=-LR)

    return step


def peers_loop(network: Network, device: torch.device) -> Timed:
    """The plain step as it is usually written: images [B, C, H, W] from a DataLoader."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    pixels, labels = generate("train", 4096, 10, 60.0)
    pictures = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in pixels]
    pipe = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
        ]
    )

    class Pictures(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, k: int) -> tuple[Tensor, int]:
            return pipe(pictures[k % len(pictures)]), int(labels[k % len(pictures)])

    torch.manual_seed(0)
    loader = DataLoader(
        Pictures(), network.batch, shuffle=True, num_workers=2, multiprocessing_context="fork",
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    batches = iter(loader)
    module: nn.Module = ResNet(network.depth, network.width).build().to(device)
    sgd = torch.optim.SGD(module.parameters(), lr=LR)

    def step() -> None:
        images, targets = next(batches)
        images, targets = images.to(device), targets.to(device)
        sgd.zero_grad()
        loss = F.cross_entropy(module(images), targets)
        loss.backward()
        sgd.step()
        loss.item()

    return step


def pushes(
    task: Classifier,
    engine: Engine,
    workers: int = 8,
    fused: bool = False,
) -> Timed:
    """One push of DC-ASGD-a on a gamma schedule; a row of metrics every 50, as a run has."""
    server = server_of(task, workers)
    if fused:
        fuse(server)
    steps = engine(task, server, gamma(workers), lambda _: LR)
    recent: list[Step] = []

    def push() -> None:
        recent.append(next(steps))
        if len(recent) == 50:
            record.row(recent)
            recent.clear()

    return push


def server_of(task: Classifier, workers: int) -> Server:
    return Server(DCASGDa(), task.initial(0), workers)


def gamma(workers: int, length: int = 20_000) -> Schedule:
    return Generated(workers, 0, Gamma(mean_s=1.0, cv=0.14)).messages(length)


def allocator(network: Network) -> Iterator[Row]:
    """A gradient with glibc's defaults and with freed memory kept, in processes of their own."""
    taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(3):
        for keep in taken:
            taken[keep].append(isolated(faulting, network, keep, torch.get_num_threads()))
    names = {False: "gradient, glibc's own ways", True: "gradient, freed memory kept"}
    ms = {keep: [1000 * seconds for seconds, _ in taken[keep]] for keep in taken}
    faults = {keep: [count for _, count in taken[keep]] for keep in taken}
    yield row(names[False], "ms", ms[False])
    yield row(names[True], "ms", ms[True], np.divide(ms[True], ms[False]), names[False])
    for keep in taken:
        yield row(f"{names[keep]}: page faults", "per gradient", faults[keep])


def faulting(network: Network, keep: bool, threads: int) -> tuple[float, float]:
    """Median seconds of a gradient, and page faults per gradient."""
    import resource

    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    task = network.task(torch.device("cpu"), 8)
    w, seconds = task.initial(0), []
    faults = 0
    for k in range(12):
        if k == 4:  # the first ones warm up
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        task.gradient(w, task.batch(0, k))
        seconds.append(time.perf_counter() - began)
    now = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return statistics.median(seconds[4:]), (now - faults) / 8


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_part(device: torch.device) -> Iterator[Row]:
    """Peak memory of 64 workers' backups over that of plain SGD, in vectors."""
    workers, network = 64, Network("ResNet-20, batch 16", 20, 16, 16)
    plain, vector = isolated(peak, network, device.type, 0, torch.get_num_threads())
    ours, _ = isolated(peak, network, device.type, workers, torch.get_num_threads())
    yield Row(f"plain PyTorch loop, {network.name}: peak", "MB", plain / 1e6)
    yield Row(f"simulate, DC-ASGD-a, M = {workers}: peak", "MB", ours / 1e6)
    vectors = (ours - plain) / vector
    limit = f"value <= {1.1 * workers:.1f}"
    yield Row("the difference, in vectors of w", "vectors", vectors, bound=limit)
    yield Row("the same per worker", "bytes", (ours - plain) / workers)
    yield Row("a vector of w", "bytes", vector)


def peak(network: Network, device: str, workers: int, threads: int) -> tuple[float, int]:
    """Peak bytes of 160 pushes with so many workers (0: the plain loop), and those of a vector."""
    import torch._dynamo  # 140 MB of code, which torch.optim loads at its first step

    torch.set_num_threads(threads)
    return_freed_memory()
    task = network.task(torch.device(device), max(1, workers))
    step, vector = pushes(task, simulate, workers) if workers else plain_loop(task), task.initial(0)
    for k in range(180):
        if k == 20:  # of the training, not of what came before it
            forget_peak(device)
        step()
    most = torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss()
    return most, vector.nbytes


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> float:
    """This process's peak resident memory in bytes; its parent's does not count, as in rusage."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024.0 * int(found.group(1)) if found else math.nan


def schedule_part(device: torch.device) -> Iterator[Row]:
    """10^7 pushes of 1,000 workers of unequal speed: generated, hashed, delays computed."""
    del device
    laws = (Gamma(mean_s=1.0, cv=0.14), Exponential(mean_s=1.0), Lognormal(mean_s=1.0, cv=0.5))
    for law in tqdm(laws, desc="schedules", leave=False):
        seconds, memory = isolated(ten_million, law)
        name = type(law).__name__.lower()
        yield Row(f"10^7 pushes, 1,000 workers, {name} times", "s", seconds, bound="value <= 15")
        yield Row(f"10^7 pushes, {name} times: peak memory", "GB", memory / 1e9, bound="value <= 2")


def ten_million(law: Law) -> tuple[float, float]:
    began = time.perf_counter()
    log = Generated(1000, 0, law, ramp=4.0).messages(10**7)
    log.sha256()
    log.delays()
    return time.perf_counter() - began, peak_rss()


def update_part(device: torch.device) -> Iterator[Row]:
    """The server's DC-ASGD-a, as a fraction of the bandwidth of a plain copy.

    The least that it can move is six vectors (reads g, w, w_bak, MeanSquare; writes w,
    MeanSquare), three times a copy's: the fraction is 3 copy / update.
    """
    least = 0.6 if device.type == "cpu" else 0.85
    for millions, rounds in ((25, 30), (250, 7)):
        torch._dynamo.reset()  # compiled for each size, as a run is
        yield from updates(millions, rounds, device, f"ratio >= {least}")


def updates(millions: int, rounds: int, device: torch.device, bound: str) -> Iterator[Row]:
    """The plain and the fused update of so many parameters, beside a copy."""
    g, w, w_bak, to = (torch.full((millions * 10**6,), 0.01, device=device) for _ in range(4))
    rule, arrival = DCASGDa(), Arrival(g, w, w_bak, 0, 7, LR)
    server = Server(rule, w, 8)
    fuse(server)
    works = {
        "copy": lambda: to.copy_(g),
        "fused": lambda: server.apply(rule, arrival, server.state),
        "plain": lambda: apply(rule, arrival, server.state),
    }
    if millions > 100:
        del works["plain"]  # its intermediate vectors need 20 GB
    taken = timings(works, rounds, device)
    size = f"{millions} M parameters"
    yield row(f"copy of a vector, {size}", "ms", 1000 * taken["fused before"])
    for name in list(works)[1:]:
        fractions = 3 * taken[f"{name} before"] / taken[name]
        what = f"{name} DC-ASGD-a with diagnostics, {size}"
        limit = bound if name == "fused" else None
        yield row(what, "ms", 1000 * taken[name], fractions, "a copy's bandwidth", limit)


def waves_part(device: torch.device) -> Iterator[Row]:
    """Gradients per second of each engine, of several simulations in one, of several processes."""
    if device.type == "cuda":
        yield from engines_on_cuda(device)
        return
    engines: dict[str, Engine] = {"plain": simulate, "threads": Threads(), "waves": Waves()}
    for network, counts, gradients, rounds in ((PAPER, (8,), 16, 6), (LAPTOP, (1, 8), 96, 6)):
        for workers in counts:
            works = {"loop": bundle(plain_loop(network.task(device, workers)), gradients)}
            for name, engine in engines.items():
                works[name] = from_the_start(network.task(device, workers), engine, gradients)
            taken = timings(works, rounds, device)
            for name in engines:
                what = f"{name}, M = {workers}, {network.name}"
                yield rates(what, gradients, taken[name], taken[f"{name} before"])
        yield from processes(network)


def from_the_start(task: Classifier, engine: Engine, pushes: int) -> Timed:
    """A whole simulation of so many pushes: an engine that works ahead leaves nothing undone."""
    workers = task.images.workers

    def whole() -> None:
        for _ in engine(task, server_of(task, workers), gamma(workers, pushes), lambda _: LR):
            pass

    return whole


def rates(
    what: str, gradients: int, ours: np.ndarray, loop: np.ndarray, bound: str | None = None
) -> Row:
    """Gradients per second, and how many times those of the plain PyTorch loop."""
    return row(what, "gradients/s", gradients / ours, loop / ours, "plain PyTorch loop", bound)


def engines_on_cuda(device: torch.device) -> Iterator[Row]:
    """Each engine at M = 1, 4, 8, 16, and replicas up to 128 gradients in flight.

    A bound is a fraction of the ``Roof`` that the card's own rates make. Not run on a GPU yet.
    """
    roof = roof_of(device, *work_of(PAPER))
    yield row("float32 matrix product, 8192 x 8192", "TFLOP/s", [roof.flop_s / 1e12])
    yield row("copy, reads and writes", "TB/s", [roof.bytes_s / 1e12])
    yield row(f"most that these allow, {PAPER.name}", "gradients/s", [roof.gradients_s])
    for workers in (1, 4, 8, 16):
        gradients = 8 * workers
        works = {"loop": bundle(plain_loop(PAPER.task(device, workers)), gradients)}
        engines: dict[str, Engine] = {"plain": simulate, "waves": Waves(), "graphs": Graphs()}
        for name, engine in engines.items():
            for fused in (False, True) if name == "graphs" else (False,):
                push = pushes(PAPER.task(device, workers), engine, workers, fused)
                works[name + ", fused update" * fused] = bundle(push, gradients)
        taken = timings(works, 20, device)
        for name in list(works)[1:]:
            what = f"{name}, M = {workers}, {PAPER.name}"
            yield rates(what, gradients, taken[name], taken[f"{name} before"])
            if (name, workers) == ("graphs", 8):
                yield roof.part(what, gradients / taken[name])
    for copies in (2, 4, 8, 16):
        tasks = [PAPER.task(device, 8) for _ in range(copies)]
        cells = [Cell(task, server_of(task, 8), gamma(8), lambda _: LR) for task in tasks]
        steps = replicas(cells, Captured(CUDA("float32")))
        gradients = 64 * copies
        works = {
            "loop": bundle(plain_loop(PAPER.task(device, 8)), gradients),
            "replicas": bundle(lambda: next(steps), gradients),  # noqa: B023
        }
        taken = timings(works, 5, device)
        what = f"graphs, {copies} replicas of M = 8, {PAPER.name}"
        yield rates(what, gradients, taken["replicas"], taken["replicas before"])
        if copies == 16:
            yield roof.part(what, gradients / taken["replicas"])


@dataclass(frozen=True)
class Roof:
    """What a device's own rates allow: arithmetic and traffic, whichever takes longer."""

    flop_s: float  # of a float32 matrix product, per second
    bytes_s: float  # read and written by a copy, per second
    flop: float  # of one gradient
    bytes: float  # that its kernels read and write, none of them fused with another

    @property
    def gradients_s(self) -> float:
        return 1 / max(self.flop / self.flop_s, self.bytes / self.bytes_s)

    def part(self, what: str, rates: np.ndarray) -> Row:
        """Measured gradients per second as a part of the most; a third of it is asked for."""
        parts = rates / self.gradients_s
        return row(f"{what}: of the most", "of 1", parts, bound="value >= 0.33")


def roof_of(
    device: torch.device, flop: float, bytes: float, size: int = 8192, rounds: int = 10
) -> Roof:
    """The rates of a matrix product and of a copy of as many numbers, medians of the rounds."""
    a, b, to = (torch.ones(size, size, device=device) for _ in range(3))
    works = {
        "-": lambda: None,
        "product": lambda: torch.mm(a, b, out=to),
        "copy": lambda: to.copy_(a),
    }
    taken = {name: float(np.median(s)) for name, s in timings(works, rounds, device).items()}
    return Roof(2 * size**3 / taken["product"], 2 * a.nbytes / taken["copy"], flop, bytes)


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views read nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            touched = tree_leaves((args, kwargs, made))
            self.bytes += sum(part.nbytes for part in touched if isinstance(part, Tensor))
        return made


def work_of(network: Network) -> tuple[float, float]:
    """FLOP of one gradient, and bytes that its operations read and write, counted on the CPU."""
    task = network.task(torch.device("cpu"), 1)
    w, batch = task.initial(0), task.batch(0, 0)
    with FlopCounterMode(display=False) as counter, Traffic() as traffic:
        task.gradient(w, batch)
    return counter.get_total_flops(), traffic.bytes


def bundle(work: Timed, times: int) -> Timed:
    """The work several times over: engines give Steps in bursts."""

    def several() -> None:
        for _ in range(times):
            work()

    return several


def processes(network: Network) -> Iterator[Row]:
    """A study's runs one after another on all threads, or as many at a time as there are cores.

    What the latter can gain is what threads inside one gradient lose: see one thread alone.
    """
    cores, seconds = torch.get_num_threads(), 3.0
    ways = {
        f"1 process x {cores} threads": (1, cores, "plain"),
        f"1 process x {cores} threads, engine=threads": (1, cores, "threads"),
        "1 process x 1 thread": (1, 1, "plain"),
        f"{cores} processes x 1 thread": (cores, 1, "plain"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(6), desc=f"processes, {network.name}", leave=False):
        for name, (count, threads, engine) in ways.items():
            context = multiprocessing.get_context("spawn")
            together = (context.Barrier(count),)
            with ProcessPoolExecutor(count, context, wait_for, together) as pool:
                jobs = [pool.submit(rate, network, threads, engine, seconds) for _ in range(count)]
                found[name].append(sum(job.result() for job in jobs))
    first, *_, last = ways
    yield row(f"{first}, {network.name}", "gradients/s", found[first])
    for name in list(ways)[1:]:
        bound = "ratio >= 1.3" if name == last else None
        ratios = np.divide(found[name], found[first])
        yield row(f"{name}, {network.name}", "gradients/s", found[name], ratios, first, bound)


fellows: Any = None  # a barrier of the processes that are measured together


def wait_for(barrier: Any) -> None:
    global fellows
    fellows = barrier


def rate(network: Network, threads: int, engine: str, seconds: float) -> float:
    """Gradients per second of this process, from when its fellows are warm too."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    task = network.task(torch.device("cpu"), 8)
    push = pushes(task, Threads() if engine == "threads" else simulate)
    began = time.perf_counter()
    while time.perf_counter() - began < 2:
        push()
    fellows.wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        push()
        count += 1
    return count / (time.perf_counter() - began)


PARTS: dict[str, Part] = {
    "simulate": simulate_part,
    "memory": memory_part,
    "schedule": schedule_part,
    "update": update_part,
    "waves": waves_part,
    "cluster": cluster_part,
}
