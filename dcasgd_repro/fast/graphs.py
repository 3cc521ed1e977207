"""CUDA graphs: a whole wave of gradients as one launch, its members on parallel streams."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput, check_choice
from dcasgd_repro.fast.waves import Cell, Gradients, alike, batched, replicas
from dcasgd_repro.schedule import Message
from dcasgd_repro.simulate import Server, Step, Task, simulate

STREAMS = 16  # torch hands out 32 in turn, the capture's own among them
WIDTHS_ONE_BY_ONE = 8  # wider waves are filled up to a multiple of this: fewer captures
ROW = 64  # elements that a row is padded to: 256 bytes of float32, as the allocator's own blocks

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Graphs:
    """``simulate``, each wave of gradients replayed as one CUDA graph.

    A graph is captured the first time a wave has its shape: each member runs the plain path's own
    kernels on one of 16 streams, forked and joined inside the capture. Vectors and batches are
    copied into the graph's static buffers, gradients out of them. The activations of a whole wave
    are in memory at once. The server's update stays outside; ``fused=true`` compiles it. Where a
    capture fails it names the cause in one line, once, and computes the gradients one by one.
    No GPU has run this yet.

    ``precision``: "float32" (default), "tf32" or "bfloat16" (autocast of the forward pass).
    It belongs to a run's identity. Where there is no CUDA device, float32 says so in one line and
    runs the plain loop; the others are refused. Raises BadInput.
    """

    precision: str = "float32"

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)

    def __call__(
        self, task: Task, server: Server, messages: Iterable[Message], lr: Callable[[int], float]
    ) -> Iterator[Step]:
        device = server.w.device.type
        check_device(self.precision, device)
        if device != "cuda":
            print(
                f"note      engine=graphs needs CUDA, this is {device}: plain loop", file=sys.stderr
            )
            return simulate(task, server, messages, lr)
        cells = [Cell(task, server, messages, lr)]
        return (step for _, step in replicas(cells, Captured(CUDA(self.precision))))


def check_device(precision: str, device: str) -> None:
    """Refuses a precision that the device does not have: the run would have other numbers."""
    if precision != "float32" and device != "cuda":
        remedy = f"only CUDA has it, this is {device}; leave it out"
        raise BadInput("engine.precision", precision, remedy)


class Machine(Protocol):
    """What a capture needs of a device."""

    def precise(self) -> contextlib.AbstractContextManager[None]:
        """The declared precision, for as long as a gradient is computed."""

    def warm(self, work: Callable[[], None]) -> None:
        """Runs ``work`` a few times, as a capture asks for beforehand."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records ``work``; what is returned repeats it."""

    def fork(self, works: Sequence[Callable[[], None]]) -> None:
        """Runs the works side by side, and waits for all before whatever is enqueued next."""


class Captured:
    """Computes waves through one captured graph for each shape; a ``waves.Compute``.

    After a capture that failed, every gradient is computed as the plain loop does, in the declared
    precision.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.graphs: dict[Any, _Graph] = {}
        self.failed = False

    def __call__(self, task: Task, vectors: Sequence[Tensor], batches: Sequence[Any]) -> Gradients:
        if getattr(task, "draws", False):  # a graph would replay its random numbers
            return batched(task, vectors, batches)
        graph = None if self.failed else self._graph(task, vectors, batches)
        if graph is not None:
            return graph(vectors, batches)
        with self.machine.precise():
            return [task.gradient(w, batch) for w, batch in zip(vectors, batches, strict=True)]

    def _graph(
        self, task: Task, vectors: Sequence[Tensor], batches: Sequence[Any]
    ) -> _Graph | None:
        """The graph of that shape, captured if it is the first; None where that fails."""
        size, w, batch = width(len(vectors)), vectors[0], batches[0]
        shape = alike(task), size, w.shape, *[part.shape for part in _tensors(batch)]
        if shape not in self.graphs:
            try:
                self.graphs[shape] = _Graph(self.machine, task, size, w, batch)
            except RuntimeError as error:  # torch's own for memory and for CUDA are kinds of it
                self.failed = True
                self.graphs.clear()  # their memory, too, is for the plain loop
                told = f"engine=graphs cannot capture {size} gradients: {cause(error)}"
                print(f"note      {told}; plain loop", file=sys.stderr)
                return None
        return self.graphs[shape]


def cause(error: BaseException) -> str:
    """The first error of a chain, in words: the end of a failed capture raises another one."""
    while error.__context__ is not None:
        error = error.__context__
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory ({text})"
    return f"an operation that a graph cannot hold ({text})" if "captur" in text else text


def width(members: int) -> int:
    """The width of the graph that such a wave uses; slots left over repeat the last gradient."""
    if members <= WIDTHS_ONE_BY_ONE:
        return members
    return -(-members // WIDTHS_ONE_BY_ONE) * WIDTHS_ONE_BY_ONE


class _Graph:
    """K gradients with static buffers: vectors [K, P] and batches in, losses [K] and g [K, P] out.

    A slot's buffers are contiguous rows, so a member computes on views of them. Rows begin ``ROW``
    elements apart, or a multiple: kernels are chosen by alignment, and every slot's is that of a
    vector by itself. The images keep the memory format of the batches.
    """

    def __init__(self, machine: Machine, task: Task, size: int, w: Tensor, batch: Any) -> None:
        self.length = len(w)
        rows = torch.empty(2, size, -(-self.length // ROW) * ROW, dtype=w.dtype, device=w.device)
        vectors, self.g = rows.unbind()
        self.vectors = vectors[:, : self.length]
        self.batches = [_like(batch) for _ in range(size)]
        self.losses = torch.empty(size, dtype=w.dtype, device=w.device)
        self._fill([w] * size, [batch] * size)

        def member(k: int) -> Callable[[], None]:
            def work() -> None:
                loss, g = task.gradient(self.vectors[k], self.batches[k])
                self.losses[k].copy_(loss)
                self.g[k, : self.length].copy_(g)

            return work

        works = [member(k) for k in range(size)]

        def wave() -> None:
            with machine.precise():
                machine.fork(works)

        machine.warm(wave)
        self._replay = machine.capture(wave)

    def __call__(self, vectors: Sequence[Tensor], batches: Sequence[Any]) -> Gradients:
        members = len(vectors)
        spare = len(self.batches) - members
        self._fill([*vectors, *[vectors[-1]] * spare], [*batches, *[batches[-1]] * spare])
        self._replay()
        # The next wave overwrites the buffers while this one's losses and gradients are in use.
        losses, g = self.losses[:members].clone(), self.g[:members].clone()
        return list(zip(losses.unbind(), g[:, : self.length].unbind(), strict=True))

    def _fill(self, vectors: Sequence[Tensor], batches: Sequence[Any]) -> None:
        torch.stack(list(vectors), out=self.vectors)
        for mine, theirs in zip(self.batches, batches, strict=True):
            for buffer, values in zip(_tensors(mine), _tensors(theirs), strict=True):
                buffer.copy_(values)


def _tensors(batch: Any) -> tuple[Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def _like(batch: Any) -> Any:
    """Buffers of a batch's shapes and memory formats."""
    if isinstance(batch, tuple):
        return getattr(batch, "_make", tuple)(map(torch.empty_like, batch))
    return torch.empty_like(batch)


def _stream() -> Any:
    return torch.cuda.Stream()


class CUDA:
    """A CUDA device as a ``Machine``."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.streams: list[Any] = []
        self.pool: Any = None

    @contextlib.contextmanager
    def precise(self) -> Iterator[None]:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        fast = self.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
        half = self.precision == "bfloat16"
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=half, cache_enabled=False):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def warm(self, work: Callable[[], None]) -> None:
        side: Any = _stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            work()
        self.pool = graph.pool()  # shared: graphs run one at a time and leave nothing in it
        return graph.replay

    def fork(self, works: Sequence[Callable[[], None]]) -> None:
        main = torch.cuda.current_stream()
        while len(self.streams) < min(STREAMS, len(works)):
            if (stream := _stream()) != main:
                self.streams.append(stream)
        used = self.streams[: len(works)]
        for stream in used:
            stream.wait_stream(main)
        for k, work in enumerate(works):
            with torch.cuda.stream(used[k % len(used)]):
                work()
        for stream in used:
            main.wait_stream(stream)
