"""Whether a rule keeps what a rule promises: ``dcasgd-repro check``, a line for each promise."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput, in_words
from dcasgd_repro.fast.threads import Threads
from dcasgd_repro.fast.waves import Waves
from dcasgd_repro.reactive import Followed, Reactive, may_stop
from dcasgd_repro.rules import Arrival, Direction, Rule
from dcasgd_repro.rules.rule import size_of
from dcasgd_repro.run import checkpoint
from dcasgd_repro.run.check import check_contract, tensors
from dcasgd_repro.schedule import Constant, Gamma, Generated, Message
from dcasgd_repro.simulate import Server, Step, simulate
from dcasgd_repro.tasks import Quadratic, QuadraticTask

WORKERS = 4
RATE = 0.05  # times 1 - momentum: what curvature 1 and delays of about 3 leave stable
NEAR = 1e-12
CPU = torch.device("cpu")
CURVATURE = (1.0, 0.3, 0.1)


class Finding(NamedTuple):
    """What a check found, and whether it is what was demanded."""

    ok: bool
    found: str


@dataclass(frozen=True)
class Line:
    """One check of a rule, as it is printed."""

    name: str
    demanded: str
    found: str
    ok: bool

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'fails':5}  {self.name:14} {self.demanded}: {self.found}"


def battery(rule: Rule, names: Sequence[str] = ()) -> Iterator[Line]:
    """Tries a rule, check after check; ``names``: which of CHECKS, by default all.

    What the rule itself raises fails the check it is met in.
    """
    for name in names or CHECKS:
        demanded, check = CHECKS[name]
        try:
            ok, found = check(rule)
        except BadInput as error:
            ok, found = False, f"{error.value}: {error.remedy}"
        except Exception as error:  # whatever their code raises
            ok, found = False, f"{raiser(error)} raises {in_words(error)}"
        yield Line(name, demanded, " ".join(found.split()), ok)


def raiser(error: Exception) -> str:
    """The class and method of a reader's own that an exception came out of."""
    trace, ours = error.__traceback__, str(Path(__file__).parents[1])
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(ours):
            return code.co_qualname
        trace = trace.tb_next
    return "the rule"


# Message logs, a list for each kind.


def told(*turns: tuple[str, int]) -> list[Message]:
    """A log with a second between any two messages."""
    return [Message(float(k), kind, m) for k, (kind, m) in enumerate(turns)]


def round_robin(rounds: int = 10) -> list[Message]:
    """The workers in turn: all delays but the first are M - 1."""
    first = [("pull", m) for m in range(WORKERS)]
    turn = [word for m in range(WORKERS) for word in (("push", m), ("pull", m))]
    return told(*first, *turn * rounds)


def double_pulls(rounds: int = 5) -> list[Message]:
    """Pulls given twice, and pushes without a pull of their own."""
    first = [("pull", m) for m in range(WORKERS)]
    turn = [(kind, m) for m in range(WORKERS) for kind in ("pull", "pull", "push", "push")]
    return told(*first, *turn * rounds)


def silent_worker(rounds: int = 13) -> list[Message]:
    """The last worker pulls once and never pushes."""
    first = [("pull", m) for m in range(WORKERS)]
    turn = [word for m in range(WORKERS - 1) for word in (("push", m), ("pull", m))]
    return told(*first, *turn * rounds)


def barrier(rounds: int = 10) -> list[Message]:
    """All pull, then all push."""
    return told(*[(kind, m) for kind in ("pull", "push") for m in range(WORKERS)] * rounds)


def late_pulls(pushes: int = 40) -> list[Message]:
    """Workers of random speed, whose pulls come later than their pushes."""
    speed, link = Gamma(1.0, cv=0.5), Constant(1.0)
    return list(Generated(WORKERS, 3, speed, communication=link, request_share=0.5)
                .messages(pushes))  # fmt: skip


LOGS: dict[str, Callable[[], list[Message]]] = {
    "round robin": round_robin,
    "double pulls": double_pulls,
    "silent worker": silent_worker,
    "barrier": barrier,
    "late pulls": late_pulls,
}


# Replays.


def task_for(rule: Rule, noise: float = 0.1, scale: float = 1.0) -> QuadraticTask:
    """A quadratic in float64, of the size that a rule with blocks asks for."""
    size = size_of(rule, len(CURVATURE))
    curvature = [scale * CURVATURE[k % len(CURVATURE)] for k in range(size)]
    return Quadratic(curvature, noise=noise, seed=5).on(CPU)


def rate_of(rule: Rule) -> float:
    return RATE * (1 - getattr(rule, "momentum", 0.0))


def replayed(
    rule: Rule, log: Iterable[Message], task: QuadraticTask | None = None, engine: Any = simulate
) -> tuple[list[Step], Server]:
    """The Steps, and the server after the last of them."""
    task = task or task_for(rule)
    server = Server(rule, task.initial(0), WORKERS)
    return list(engine(task, server, log, lambda pushes: rate_of(rule))), server


def same(a: Any, b: Any) -> bool:
    """Whether two arguments, states or answers are equal to the bit, NaN counting as NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if hasattr(a, "__dict__"):
        return same(vars(a), vars(b))
    return bool(np.all(a == b)) or (a != a and b != b)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, over 1 or the entry's size; inf where one is not finite alone."""
    if same(a, b):
        return 0.0
    apart = ((a - b).abs() / b.abs().clamp(min=1)).max().item()
    return apart if apart == apart else float("inf")


# The checks.


@dataclass(frozen=True)
class Twice(Rule):
    """Asks a rule everything twice, on copies; notes the calls that wrote or answered otherwise."""

    rule: Rule
    asked: list[str] = field(default_factory=list)
    wrote: list[str] = field(default_factory=list)
    differed: list[str] = field(default_factory=list)

    def init(self, w: Tensor, workers: int) -> Any:
        return self._twice("init", w, workers)

    def direction(self, arrival: Arrival, state: Any) -> Direction:
        found: Direction = self._twice("direction", arrival, state)
        return found

    def sends(self, w: Tensor, state: Any, worker: int) -> Tensor:
        found: Tensor = self._twice("sends", w, state, worker)
        return found

    def _twice(self, method: str, *given: Any) -> Any:
        copies = copy.deepcopy(given), copy.deepcopy(given)
        first, second = (getattr(self.rule, method)(*each) for each in copies)
        self.asked.append(method)
        if not all(same(each, given) for each in copies):
            self.wrote.append(method)
        if not same(first, second):
            self.differed.append(method)
        return first


def contract(rule: Rule) -> Finding:
    for workers in (1, WORKERS):
        check_contract(rule, workers)
    return Finding(True, f"with 1 worker and {WORKERS}")


def arguments(rule: Rule) -> Finding:
    """The delays are of updates, so a rule that gathers gradients meets smaller ones."""
    asker = Twice(rule)
    delays = [step.delay for step in replayed(asker, late_pulls(), task_for(rule))[0]]
    found = f"{len(asker.wrote)} of {len(asker.asked)} calls wrote{named(rule, asker.wrote)}"
    return Finding(not asker.wrote, f"{found}, at delays {min(delays)} to {max(delays)}")


def answers(rule: Rule) -> Finding:
    """Two calls of each method on the same arguments, and two replays of one log."""
    before, asker = copy.deepcopy(vars(rule)), Twice(rule)
    replayed(asker, late_pulls(), task_for(rule))
    (steps, server), (others, other) = replayed(rule, late_pulls()), replayed(rule, late_pulls())
    apart = sum(not same(a, b) for a, b in zip(steps, others, strict=True))
    apart += not same(server.w, other.w)
    kept = "" if same(before, vars(rule)) else "; it changes fields of its own"
    found = (
        f"{len(asker.differed)} of {len(asker.asked)} calls differ{named(rule, asker.differed)}, "
    )
    found += f"{apart} of {len(steps)} pushes and the last w of a second replay{kept}"
    return Finding(not (asker.differed or apart or kept), found)


def named(rule: Rule, methods: Sequence[str]) -> str:
    """Methods by their full names, as " (Mine.direction)"."""
    names = [f"{type(rule).__name__}.{method}" for method in dict.fromkeys(methods)]
    return f" ({', '.join(names)})" if names else ""


def no_gradient(rule: Rule) -> Finding:
    """Every gradient is exactly 0, as a dead unit's is."""
    for log in (barrier(), late_pulls()):
        steps, server = replayed(rule, log, task_for(rule, noise=0.0, scale=0.0))
        if not all(bool(torch.isfinite(w).all()) for w in (server.w, *server.sent)):
            return Finding(False, f"w is not finite after {len(steps)} pushes; is 0 / 0 in it?")
    return Finding(True, f"after {len(steps)} pushes")


def resumed(rule: Rule, stops: Sequence[int] = ()) -> Finding:
    """A replay is left after each of the pushes ``stops``, by default every one, and goes on.

    Of the resumed run all Steps and the last w count, each bit of them.
    """
    log, task = late_pulls(20), task_for(rule)
    pushes = [k for k, message in enumerate(log) if message.kind == "push"]
    whole, reference = replayed(rule, log)
    apart = 0
    with tempfile.TemporaryDirectory() as place:
        for stop in stops or range(1, len(pushes) + 1):
            cut = pushes[stop - 1] + 1
            steps, left = replayed(rule, log[:cut])
            checkpoint.check_held(left.state, checkpoint.kinds(rule.init(left.w, WORKERS)))
            checkpoint.save(Path(place), {"server": checkpoint.pack(left)})
            saved = checkpoint.load(Path(place), CPU)
            assert saved is not None
            server = Server(rule, task.initial(0), WORKERS)
            checkpoint.unpack(server, saved["server"])
            steps += simulate(task, server, log[cut:], lambda pushes: rate_of(rule))
            apart += not (same(steps, whole) and same(server.w, reference.w))
    return Finding(not apart, f"{apart} of {len(stops or pushes)} resumed runs differ")


def kept(rule: Rule) -> Finding:
    """The most vectors of w's shape that the state has at once, each counted once."""
    once, each = rule.keeps()
    most = 0
    for log in LOGS.values():
        task = task_for(rule)
        server = Server(rule, task.initial(0), WORKERS)
        for _ in simulate(task, server, log(), lambda pushes: rate_of(rule)):
            found = {x.data_ptr() for x in tensors(server.state) if x.shape == server.w.shape}
            most = max(most, len(found))
    said = f"keeps() says {once} and {each} a worker"
    return Finding(most <= once + each * WORKERS, f"{most}; {said}")


def split(rule: Rule) -> Finding:
    """The steps and sent vectors of a vector's two parts, alone and stacked, against the whole's.

    A rule that says ``elementwise = False`` is not asked.
    """
    if not rule.elementwise:
        return Finding(True, "it says elementwise = False; not asked")
    return Finding(not (apart := parted(rule)), f"{apart} of 3 ways to cut 40 entries differ")


def parted(rule: Rule) -> int:
    """In how many of three ways to cut it a vector has other steps."""
    whole = _shown(rule, lambda x: x)
    low, high = _shown(rule, lambda x: x[:17]), _shown(rule, lambda x: x[17:])
    cut = [torch.cat(pair) for pair in zip(low, high, strict=True)] if len(low) == len(high) else []
    stacked = [_shown(rule, lambda x: x.reshape(2, -1)), _shown(rule, lambda x: x.reshape(8, -1))]
    return sum(not same([x.reshape(-1) for x in one], whole) for one in (cut, *stacked))


def _shown(rule: Rule, part: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Steps and sent vectors of six arrivals. Fresh ones first: some rules take no other."""
    source = torch.Generator().manual_seed(0)
    state, out = rule.init(part(torch.zeros(40, dtype=torch.float64)), 2), []
    for k in range(6):
        drawn = torch.randn(3, 40, generator=source, dtype=torch.float64)
        g, w, bak = map(part, drawn)
        step, state, _ = rule.direction(Arrival(g, w, bak, k % 2, k // 4, 0.1), state)
        out += [] if step is None else [step]
        out.append(rule.sends(w, state, k % 2))
    return out


def stopping(rule: Rule) -> Finding:
    """Whom it stops on a reactive schedule, made where gradients are 0, where they are not."""
    if not may_stop(rule):
        return Finding(True, "it stops nobody")
    times = Generated(WORKERS, 3, Gamma(1.0, cv=0.5), straggler=3.0)
    log, task = Reactive(times, rule).messages(40), task_for(rule)
    server, followed, wrote = Server(rule, task.initial(0), WORKERS), Followed(rule, log), 0
    for _ in simulate(task, server, log, lambda pushes: rate_of(rule)):
        before = copy.deepcopy(server.state)
        followed.check(server)
        wrote += not same(before, server.state)
    found = f"{log.stopped} stops at {log.pushes} pushes; {wrote} of {log.pushes} calls wrote"
    return Finding(not wrote, f"{found}{named(rule, ['stops'] if wrote else [])}")


def one_log(log: str, rule: Rule) -> Finding:
    messages = LOGS[log]()
    pushes = sum(message.kind == "push" for message in messages)
    steps, server = replayed(rule, messages)
    whole = bool(torch.isfinite(server.w).all())
    found = f"{len(steps)} of {pushes} pushes, {server.t} moved w; w is {'' if whole else 'not '}"
    return Finding(whole and len(steps) == pushes, f"{found}finite")


def agrees(engine: Any, least: float, rule: Rule) -> Finding:
    """The largest difference of a loss, dc_ratio, gap_norm or entry of w, over all kinds of log."""
    largest, counted = 0.0, 0
    for log in LOGS.values():
        steps, server = replayed(rule, log(), engine=engine)
        plain, reference = replayed(rule, log())
        if [step[:6] for step in steps] != [step[:6] for step in plain]:
            return Finding(False, "pushes, workers or delays differ")
        pairs = [(server.w, reference.w)]
        for step, other in zip(steps, plain, strict=True):
            pairs += zip(step[6:], other[6:], strict=True)
        largest = max(largest, *(distance(a, b) for a, b in pairs))
        counted += len(steps)
    return Finding(largest <= least, f"{largest:.1e} over {counted} pushes")


def goes_down(rule: Rule) -> Finding:
    """The worse of two logs: delays that vary, and rounds. (With equal ones ASAP stands still.)"""
    task = task_for(rule, noise=0.0)
    first = task.evaluate(task.initial(0), ())["test_loss"]
    left = 0.0
    for log in (late_pulls(400), barrier(100)):
        loss = task.evaluate(replayed(rule, log, task)[1].w, ())["test_loss"] / first
        left = loss if loss != loss else max(left, loss)
    return Finding(left < 0.25, f"{left:.2g} of it is left, lr = {rate_of(rule):.3g}")


CHECKS: dict[str, tuple[str, Callable[[Rule], Finding]]] = {
    "contract": ("answers of w's shape and dtype, finite", contract),
    "arguments": ("nothing given is written", arguments),
    "answers": ("the same to the same", answers),
    "zero gradients": ("w stays finite", no_gradient),
    "checkpoint": ("stopped after every push, the same bits", resumed),
    "keeps": ("no more vectors in the state than it says", kept),
    "element-wise": ("a part of a vector has the whole's bits", split),
    "stops": ("those stopped where gradients are 0; nothing given is written", stopping),
    **{log: ("a log of this kind is replayed", partial(one_log, log)) for log in LOGS},
    "threads": ("the plain loop's bits", partial(agrees, Threads(), 0.0)),
    "waves": (f"the plain loop within {NEAR:g}", partial(agrees, Waves(), NEAR)),
    "quadratic": ("under a quarter of the loss after 400 pushes", goes_down),
}
