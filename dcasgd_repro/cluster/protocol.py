"""What a parameter server does with pull and push when calls arrive twice, late or not at all.

Each worker computes at one vector at a time. A worker process has an incarnation; whoever starts
processes gives a restarted one a higher number. A call belongs to an incarnation, and a push also
to a mini-batch k, so a call that arrives again, or after its process was replaced, is known for it.
No network library here: a call is a method, and the caller sees that calls come one at a time.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import Failure
from dcasgd_repro.schedule import Message
from dcasgd_repro.simulate import Server, Step, apply, simulate

# What a pull is answered with where it gets no vector.
WAIT = "wait"  # ask again soon: others have not come, or the log is not followed fast enough
ENDED = "ended"  # the server has received all the gradients it was asked for
REPLACED = "replaced"  # a later incarnation of this worker has called

# Why a push is refused.
INCARNATION = "incarnation"  # from another process than the worker's last pull
DUPLICATE = "duplicate"  # this gradient was received before, or refused
SHAPE = "shape"  # not a vector like w
NOT_FINITE = "not finite"  # a loss or gradient that is infinite or NaN
REASONS = (INCARNATION, DUPLICATE, SHAPE, NOT_FINITE)
OWN_FAULT = (SHAPE, NOT_FINITE)  # its worker's
PATIENCE = 5  # gradients of one worker, refused while nobody sends a finite one
FAULTS = 10  # refusals of one worker in a row, for its own fault, that end the run


class Sent(NamedTuple):
    """The answer to a pull: compute the gradient of mini-batch k at w."""

    w: Any  # [P]: a Tensor, or an array on its way
    k: int  # the mini-batch: as many as the server has received of this worker
    version: int  # t at which w was sent
    incarnation: int


class Line(NamedTuple):
    """A line of the server's log, and what a follower needs to apply it."""

    clock_s: float
    kind: str  # "pull", "push", or of REASONS
    worker: int
    incarnation: int
    k: int
    loss: Any = None  # of a push, with
    g: Any = None  # its gradient [P]: a Tensor, or an array on its way
    check: tuple[int, float, float] | None = None  # its delay, dc_ratio and gap_norm


class ParameterServer:
    """A ``Server`` behind ``pull`` and ``push``; it applies each gradient at most once.

    ``lr``         number of gradients received -> learning rate of the next one
    ``pushes``     gradients to receive in all; then pulls are answered with ENDED
    ``clock_s``    the run's clock as it begins; it goes on with ``timer``, in seconds
    ``incarnation``  of each worker, which older ones may still call: a restarted server must know
    ``barrier``    a round begins when every gradient of the one before is in: all M are sent w
    ``computing``  the workers that a barrier's round, begun before, still waits for
    ``gather``     it begins when all M workers have asked, with a pull of each
    ``ahead``      pushes in the log that nobody has taken, from which on pulls are told to wait

    Pulls and pushes that were carried out are lines of ``log``, in their order; so are pushes that
    were refused, which change nothing. ``simulate`` on the log's pulls and pushes gives the
    server's w, to the bit.
    """

    def __init__(
        self,
        server: Server,
        lr: Callable[[int], float],
        pushes: int,
        incarnation: Sequence[int],
        clock_s: float = 0.0,
        timer: Callable[[], float] = time.monotonic,
        barrier: bool = False,
        computing: Iterable[int] = (),
        gather: bool = False,
        ahead: int = 1000,
    ) -> None:
        self.server, self.lr, self.pushes = server, lr, pushes
        self.timer, self.clock_s, self.began = timer, clock_s, timer()
        self.incarnation, self.barrier, self.ahead = list(incarnation), barrier, ahead
        self.absent = set(range(len(incarnation))) if gather else set()
        self.computing = set(computing)  # have been sent a vector, and have not pushed since
        self.suspect = Counter[int]()  # refusals as not finite, by worker, since the last gradient
        self.log: list[Line] = []
        self.untaken = 0  # pushes in it

    def pull(self, m: int, incarnation: int) -> Sent | str:
        """Worker m asks for the model: Algorithm 2's pull, or why there is no vector now.

        Asked again by the same incarnation, before its push, it is the same answer: the first one
        was lost. Asked by a new one, it is a new vector for the same mini-batch; within a barrier's
        round, which has only one, the same vector.
        """
        if self.server.pushes >= self.pushes:
            return ENDED
        if incarnation < self.incarnation[m]:
            return REPLACED
        again = m in self.computing and (self.barrier or incarnation == self.incarnation[m])
        self.incarnation[m] = incarnation
        begins = self.absent == {m}
        if begins:
            self.began = self.timer()
        self.absent.discard(m)
        if self.absent or (self.untaken >= self.ahead and not again):
            return WAIT
        if not again:
            if self.barrier and self.computing:
                return WAIT
            for each in range(len(self.incarnation)) if self.barrier or begins else (m,):
                self._send(each)
        k, version = self.server.batches[m], self.server.sent_at[m]
        return Sent(self.server.sent[m], k, version, incarnation)

    def push(self, m: int, incarnation: int, k: int, loss: Tensor, g: Tensor) -> str | None:
        """Worker m's gradient of mini-batch k: Algorithm 2's push, or why it is refused."""
        if self.server.pushes >= self.pushes:
            return ENDED
        reason = self._reason(m, incarnation, k, loss, g)
        if reason is not None:
            self.log.append(Line(self.clock(), reason, m, incarnation, k))
            return reason
        self.suspect.clear()
        self.computing.discard(m)
        clock_s, eta = self.clock(), self.lr(self.server.pushes)
        delay, dc_ratio, gap_norm = self.server.receive_gradient(m, g, eta)
        check = (delay, float(dc_ratio), float(gap_norm))
        self.log.append(Line(clock_s, "push", m, incarnation, k, loss, g, check))
        self.untaken += 1
        return None

    def clock(self) -> float:
        return self.clock_s + self.timer() - self.began

    def take(self, pushes: int) -> list[Line]:
        """The log's next lines, with at most so many pushes; they leave it."""
        end = seen = 0
        while end < len(self.log) and seen < pushes:
            seen += self.log[end].kind == "push"
            end += 1
        taken, self.log = self.log[:end], self.log[end:]
        self.untaken -= seen
        return taken

    def _send(self, m: int) -> None:
        self.server.receive_pull(m)
        self.computing.add(m)
        k = self.server.batches[m]
        self.log.append(Line(self.clock(), "pull", m, self.incarnation[m], k))

    def _reason(self, m: int, incarnation: int, k: int, loss: Tensor, g: Tensor) -> str | None:
        """Why this push is refused.

        A gradient that is not finite is its worker's fault where another one is finite. The weights
        have diverged where they are not finite themselves, where all that compute have sent such
        gradients, or where several have and one has ``PATIENCE`` times: others may hang. Then it is
        taken, and the run ends as it would in the simulator.
        """
        if incarnation != self.incarnation[m]:
            return INCARNATION
        if m not in self.computing or k != self.server.batches[m]:
            return DUPLICATE
        if g.shape != self.server.w.shape or g.dtype != self.server.w.dtype:
            reason = SHAPE
        elif bool(torch.isfinite(loss)) and bool(torch.isfinite(g).all()):
            return None
        else:
            reason = NOT_FINITE
            self.suspect[m] += 1
            if self._diverged(m):
                return None
        if not self.barrier:
            self.computing.discard(m)  # its next pull is a new one
        return reason

    def _diverged(self, m: int) -> bool:
        """Whether the weights are at fault for a gradient of worker m that is not finite."""
        asked = len(self.computing if self.barrier else self.incarnation)
        several = len(self.suspect) > 1 and self.suspect[m] >= PATIENCE
        return several or len(self.suspect) == asked or not self.server.w.isfinite().all()


class Patience:
    """Counts the refusals that are a worker's own fault, line by line of the log.

    Such a worker would be refused for ever: what it computes is wrong, and nothing it asks for
    makes it right.
    """

    def __init__(self) -> None:
        self.faults = Counter[int]()  # by worker, since its last gradient that was received

    def note(self, line: Line) -> None:
        """Raises Failure at the ``FAULTS``-th refusal in a row."""
        m = line.worker
        if line.kind == "push":
            del self.faults[m]
        self.faults[m] += line.kind in OWN_FAULT
        if self.faults[m] >= FAULTS:
            why = "has another shape or type than w" if line.kind == SHAPE else "is not finite"
            what = f"worker {m} sent {FAULTS} gradients in a row that were refused: {line.kind}"
            raise Failure(f"{what}. The last one, of its mini-batch {line.k}, {why}; mend the task")


class Followed:
    """A Task for ``simulate`` that a log's lines bring the gradients of.

    ``steps`` carries out on a Server of one's own what a ParameterServer's log says, and holds
    the one to the other: their weights are equal to the bit.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = lines
        self._line: Line

    def steps(
        self, server: Server, lr: Callable[[int], float], record: Callable[[Message], None]
    ) -> Iterator[Step]:
        """A Step for each push in the log; ``record`` gets each message as it is carried out."""
        for step in simulate(self, server, self._messages(record), lr):
            here, there = (step.delay, float(step.dc_ratio), float(step.gap_norm)), self._line.check
            if repr(here) != repr(there):  # repr: exact, and NaN is NaN
                what = f"push {step.push} of worker {step.worker}: delay, dc_ratio and gap_norm"
                raise RuntimeError(f"{what} are {there} on the server, {here} here")
            yield step

    def _messages(self, record: Callable[[Message], None]) -> Iterator[Message]:
        for line in self._lines:
            if line.kind not in REASONS:
                self._line, message = line, Message(line.clock_s, line.kind, line.worker)
                record(message)
                yield message

    def batch(self, worker: int, k: int) -> Any:
        return None

    def gradient(self, w: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return self._line.loss, self._line.g


def twin(server: Server) -> Server:
    """A Server in the same state that goes its own way; vectors are shared, as none is written."""
    other = copy.copy(server)
    other.apply = apply
    for name in ("w_bak", "sent", "sent_at", "batches"):
        setattr(other, name, list(getattr(server, name)))
    return other


def table(rates: Sequence[float], first: int) -> Callable[[int], float]:
    """A learning rate as numbers, which another process can be sent: that of push first, ..."""
    return lambda pushes: rates[pushes - first]
