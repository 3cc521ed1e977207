"""Whether a rule and a task do what they must: tried before a run begins, and watched in it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput, is_ours, told_as
from dcasgd_repro.reactive import named_by
from dcasgd_repro.rules import Arrival, Direction, Rule
from dcasgd_repro.rules.rule import size_of

CURVATURE = (1.0, 0.5, 0.1, 0.0)  # the last entry's gradient is exactly 0, as a dead unit's is
MOST = 200  # arrivals
LEAF = ("on(device)",)
TASK = ("initial(seed)", "batch(worker, k)", "gradient(w, batch)", "evaluate(w, sent)")
MEASURED = ("test_error", "test_loss", "train_error")  # of an evaluation


def check_is_rule(rule: Any) -> None:
    """Refuses an object of another class, and a rule that is no frozen dataclass: BadInput."""
    if not isinstance(rule, Rule):
        remedy = "is no rule; derive its class from dcasgd_repro.rules.Rule"
        raise BadInput("rule", type(rule).__name__, remedy)
    made = getattr(type(rule), "__dataclass_params__", None)
    if made is None or not made.frozen:  # its fields tell runs apart, and no checkpoint holds them
        remedy = "is no frozen dataclass; write @dataclass(frozen=True) above its class"
        raise BadInput("rule", type(rule).__name__, remedy)


def check_contract(rule: Rule, workers: int) -> None:
    """Shows a copy of the rule the arrivals of a small quadratic in float32, twice each worker's.

    The server's vector moves as under plain SGD, whatever the rule answers. Raises BadInput, naming
    the class and the method, for a method that raises, returns another shape or dtype or a number
    that is not finite, stops what is no worker, or writes into a tensor it was given.
    """
    watched = Watched(copy.deepcopy(rule))
    size = size_of(rule, len(CURVATURE))  # a rule may have sizes of its own
    h = torch.tensor(CURVATURE).repeat(-(-size // len(CURVATURE)))[:size]
    with torch.random.fork_rng(devices=[]):
        w, updates = torch.ones_like(h), 0
        sent, sent_at = [w] * workers, [0] * workers
        state = watched.init(w, workers)
        for push in range(min(2 * workers + 1, MOST)):
            m = push % workers
            g = h * sent[m]
            arrival = Arrival(g, w, sent[m], m, updates - sent_at[m], 0.1)
            step, state, _ = watched.direction(arrival, state)
            if step is not None:
                w, updates = w - 0.1 * g, updates + 1
            watched.stops(state, [updates - at for at in sent_at])
            sent[m], sent_at[m] = watched.sends(w, state, m), updates


@dataclass(frozen=True)
class Watched(Rule):
    """A rule that holds another one to what a rule must do.

    In ``training`` it looks at no number: writing into a tensor is seen by torch's own count of it.
    """

    rule: Rule
    training: bool = False

    name = "watched"

    def init(self, w: Tensor, workers: int) -> Any:
        return self._call("init", self.rule.init, w, workers)

    def direction(self, arrival: Arrival, state: Any) -> Direction:
        found = self._call("direction", self.rule.direction, arrival, state)
        if not isinstance(found, Direction):
            remedy = "its direction() must return Direction(step, state, correction)"
            made = type(found).__name__
            raise BadInput("rule", type(self.rule).__name__, f"{remedy}, not a {made}")
        for name in ("step", "correction"):
            if (tensor := getattr(found, name)) is not None:
                self._like("direction", name, tensor, arrival.w)
        return found

    def sends(self, w: Tensor, state: Any, worker: int) -> Tensor:
        found: Tensor = self._call("sends", self.rule.sends, w, state, worker)
        self._like("sends", "vector", found, w)
        return found

    def stops(self, state: Any, delays: Sequence[int]) -> Sequence[int]:
        found: list[int] = self._call("stops", partial(named_by, self.rule), state, delays)
        return found

    def _call(self, method: str, call: Callable[..., Any], *given: Any) -> Any:
        if self.training:
            counts = [(tensor, tensor._version) for tensor in tensors(given)]
            found = call(*given)
            unwritten = all(tensor._version == count for tensor, count in counts)
        else:
            before = [(tensor, tensor.clone()) for tensor in tensors(given)]
            with told_as("rule", f"{type(self.rule).__name__}.{method}"):
                found = call(*given)
            unwritten = all(torch.equal(tensor, clone) for tensor, clone in before)
        if not unwritten:
            remedy = (
                "writes into a tensor that it was given; make a new one, as g + c for g.add_(c)"
            )
            raise self._refused(method, remedy)
        return found

    def _like(self, method: str, name: str, found: Any, w: Tensor) -> None:
        if not isinstance(found, Tensor):
            raise self._refused(method, f"returns a {name} that is a {type(found).__name__}")
        if other := unlike(found, w):
            raise self._refused(method, f"returns a {name} {other}")
        # Ours are held to it by tests, and may be given a lambda of any size.
        if self.training or is_ours(self.rule):
            return
        if not bool(torch.isfinite(found).all()):
            remedy = f"returns a {name} that is not finite, of finite gradients; is 0 / 0 in it?"
            raise self._refused(method, remedy)

    def _refused(self, method: str, remedy: str) -> BadInput:
        return BadInput("rule", f"{type(self.rule).__name__}.{method}", remedy)


def unlike(found: Tensor, w: Tensor) -> str:
    """In which shape or dtype a vector differs from w, for a reader; "" if in neither."""
    if found.shape != w.shape:
        return f"of shape {tuple(found.shape)} where w has {tuple(w.shape)}"
    return "" if found.dtype == w.dtype else f"of dtype {found.dtype} where w has {w.dtype}"


def check_methods(part: Any, methods: Sequence[str]) -> None:
    """Refuses a task, or its leaf, that lacks one of the methods "name(arguments)": BadInput."""
    for words in methods:
        name = words.partition("(")[0]
        method, value = getattr(part, name, None), f"{type(part).__name__}.{name}"
        if not callable(method):
            raise BadInput("task", value, f"there is no such method; it is called as {words}")
        try:
            inspect.signature(method).bind(*words.split(","))
        except TypeError as error:
            raise BadInput("task", value, f"is called as {words}: {error}") from None


def check_start(task: Any, w: Any) -> None:
    """Refuses a w_0 that is no vector of floats, and a first gradient unlike it: BadInput.

    A gradient is tried of a task, or of a network, that is not of this package.
    """
    if not isinstance(w, Tensor):
        raise _wrong(task, "initial", f"returns a {type(w).__name__}; make it a tensor [P]")
    if w.ndim != 1 or not len(w) or not w.is_floating_point() or w.is_meta:
        made = f"shape {tuple(w.shape)}, {w.dtype}, on {w.device}"
        raise _wrong(task, "initial", f"returns {made}; make it a vector [P] of floats, P >= 1")
    inside = getattr(task, "task", task)  # of local steps
    if is_ours(inside) and is_ours(getattr(inside, "module", inside)):
        return
    found = task.gradient(w, task.batch(0, 0))
    if not isinstance(found, tuple) or len(found) != 2:
        made = f"returns a {type(found).__name__}"
        raise _wrong(task, "gradient", f"{made}; make it (loss, gradient)")
    loss, g = found
    check_loss(task, loss)
    check_gradient(task, g, w)


def check_loss(task: Any, loss: Any) -> None:
    """Refuses a loss that is no scalar: BadInput."""
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        kind = type(loss).__name__
        made = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {kind}"
        raise _wrong(task, "gradient", f"returns a loss that is {made}; make it a scalar tensor")


def check_gradient(task: Any, g: Any, w: Tensor) -> None:
    """Refuses a gradient of another shape or dtype than w: BadInput."""
    if not isinstance(g, Tensor):
        raise _wrong(task, "gradient", f"returns a gradient that is a {type(g).__name__}")
    if other := unlike(g, w):
        raise _wrong(task, "gradient", f"returns a gradient {other}")


def check_measured(task: Any, measured: Any) -> None:
    """Refuses what is no evaluation: BadInput."""
    known = f"make it a dict with numbers as {', '.join(MEASURED)}"
    if not isinstance(measured, dict) or not measured:
        raise _wrong(task, "evaluate", f"returns a {type(measured).__name__}, {measured}; {known}")
    for key, value in measured.items():
        if key not in MEASURED:
            raise _wrong(task, "evaluate", f"returns {key}, which no column has; {known}")
        if not isinstance(value, float | int):
            made = f"a {type(value).__name__} as {key}"
            raise _wrong(task, "evaluate", f"returns {made}; make it a float, as tensor.item()")


def _wrong(task: Any, method: str, remedy: str) -> BadInput:
    return BadInput("task", f"{type(task).__name__}.{method}", remedy)


def tensors(given: Any) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for part in given:
            yield from tensors(part)
    elif isinstance(given, dict):
        yield from tensors(list(given.values()))
