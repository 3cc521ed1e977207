"""Whether a rule does what a rule must, tried before a run begins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput, told_as
from dcasgd_repro.reactive import named_by
from dcasgd_repro.rules import Arrival, Direction, Rule
from dcasgd_repro.rules.rule import size_of

CURVATURE = (1.0, 0.5, 0.1, 0.0)  # the last entry's gradient is exactly 0, as a dead unit's is
MOST = 200  # arrivals


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
    """A rule that holds another one to what a rule must do."""

    rule: Rule

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
        before = [(tensor, tensor.clone()) for tensor in tensors(given)]
        with told_as("rule", f"{type(self.rule).__name__}.{method}"):
            found = call(*given)
        if not all(torch.equal(tensor, clone) for tensor, clone in before):
            remedy = (
                "writes into a tensor that it was given; make a new one, as g + c for g.add_(c)"
            )
            raise self._refused(method, remedy)
        return found

    def _like(self, method: str, name: str, found: Any, w: Tensor) -> None:
        if not isinstance(found, Tensor):
            raise self._refused(method, f"returns a {name} that is a {type(found).__name__}")
        for what, theirs, due in (
            ("shape", tuple(found.shape), tuple(w.shape)),
            ("dtype", found.dtype, w.dtype),
        ):
            if theirs != due:
                remedy = f"returns a {name} of {what} {theirs} where w has {due}"
                raise self._refused(method, remedy)
        # Ours are held to it by tests, and may be given a lambda of any size.
        ours = type(self.rule).__module__.startswith("dcasgd_repro.")
        if not ours and not bool(torch.isfinite(found).all()):
            remedy = f"returns a {name} that is not finite, of finite gradients; is 0 / 0 in it?"
            raise self._refused(method, remedy)

    def _refused(self, method: str, remedy: str) -> BadInput:
        return BadInput("rule", f"{type(self.rule).__name__}.{method}", remedy)


def tensors(given: Any) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for part in given:
            yield from tensors(part)
    elif isinstance(given, dict):
        yield from tensors(list(given.values()))
