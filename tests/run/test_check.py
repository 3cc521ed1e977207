"""Faulty rules, refused before a run in one line that names the class and the method."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from rules_under_test import RULES

from dcasgd_repro import ASGD, Arrival, Direction, Gamma, Generated, Quadratic, Rule
from dcasgd_repro.errors import BadInput
from dcasgd_repro.lr import Step
from dcasgd_repro.reactive import named_by
from dcasgd_repro.rules import DCASGDn, HeLoCo
from dcasgd_repro.run import Length, Plan
from dcasgd_repro.run.check import check_contract


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("workers", [1, 3, 128])
def test_ours_pass_and_no_random_number_is_drawn(rule: Rule, workers: int) -> None:
    before = torch.get_rng_state()
    check_contract(rule, workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("blocks", [(2,), (2, 6)])
def test_a_rule_with_blocks_is_shown_a_vector_of_their_size(blocks: tuple[int, ...]) -> None:
    for rule in (HeLoCo(blocks=blocks), DCASGDn(blocks=blocks)):
        check_contract(rule, 3)


class Plain(Rule):
    def init(self, w: torch.Tensor, workers: int) -> Any:
        return None

    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, state)


@dataclass
class Thawed(Plain):
    power: float = 1.0


@dataclass(frozen=True)
class Mine(Rule):
    """Plain ASGD; the tests spoil one method each."""

    seen: list[int] = field(default_factory=list)

    name = "mine"

    def init(self, w: torch.Tensor, workers: int) -> Any:
        return torch.zeros_like(w)

    def direction(self, arrival: Arrival, state: Any) -> Any:
        self.seen.append(arrival.delay)
        return Direction(arrival.grad, state + arrival.grad)


class Short(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad[:-1], state)


class Wide(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad.double(), state)


class Correction(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, state, arrival.grad.sum())


class OfFloat(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(1.0, state)  # type: ignore[arg-type]


class Sign(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad / arrival.grad.abs(), state)


class Bare(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return arrival.grad, state


class WritesGrad(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad.add_(arrival.drift), state)


class WritesState(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(state.mul_(0.9).add_(arrival.grad), state)


class WritesW(Mine):
    def init(self, w: torch.Tensor, workers: int) -> Any:
        return w.zero_()


class Raises(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, state[arrival.worker + 99])  # this is the line


class Sends(Mine):
    def sends(self, w: torch.Tensor, state: Any, worker: int) -> Any:
        return None


@dataclass(frozen=True)
class Stops(Mine):
    """It stops what it is told to."""

    answer: Any = ()

    def stops(self, state: Any, delays: Any) -> Any:
        return self.answer


class StopsAlone(Mine):
    def stops(self, state: Any) -> Any:  # type: ignore[override]
        return []


class StopsRaises(Mine):
    def stops(self, state: Any, delays: Any) -> Any:
        return [m for m in range(99) if delays[m] > 3]  # of two workers


class StopsWrites(Mine):
    def stops(self, state: Any, delays: Any) -> Any:
        return [] if state.mul_(0.9) is None else [0]


OF_TWO = "; return a list of workers, whole numbers from 0 to 1"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Stops(answer=None), f"Stops.stops: returns None (NoneType){OF_TWO}"),
        (Stops(answer=[[0]]), f"Stops.stops: returns a list with [0] (list){OF_TWO}"),
        (Stops(answer=[1.0]), f"Stops.stops: returns a list with 1.0 (float){OF_TWO}"),
        (Stops(answer=(0, 2)), f"Stops.stops: returns a tuple with 2 (int){OF_TWO}"),
        (Stops(answer=[-1]), f"Stops.stops: returns a list with -1 (int){OF_TWO}"),
        (Stops(answer=[True]), f"Stops.stops: returns a list with True (bool){OF_TWO}"),
        (Stops(answer=["1"]), f"Stops.stops: returns a list with '1' (str){OF_TWO}"),
        (Stops(answer="01"), f"Stops.stops: returns '01' (str){OF_TWO}"),
        (Stops(answer=b"\0"), f"Stops.stops: returns b'\\x00' (bytes){OF_TWO}"),
        (Stops(answer=1), f"Stops.stops: returns 1 (int){OF_TWO}"),
        (Stops(answer=torch.zeros(9, 9)), "Stops.stops: returns tensor([[0., "),
        (Stops(answer=[torch.tensor(1)]), "Stops.stops: returns a list with tensor(1) (Tensor)"),
        (StopsAlone(), "StopsAlone.stops: raises TypeError: StopsAlone.stops() takes 2 positional"),
        (StopsRaises(), "StopsRaises.stops: raises IndexError: list index out of range ("),
        (StopsWrites(), "StopsWrites.stops: writes into a tensor that it was given"),
        (Short(), "Short.direction: returns a step of shape (3,) where w has (4,)"),
        (Wide(), "Wide.direction: returns a step of dtype torch.float64 where w has torch.float32"),
        (Correction(), "Correction.direction: returns a correction of shape () where w has (4,)"),
        (OfFloat(), "OfFloat.direction: returns a step that is a float"),
        (Sign(), "Sign.direction: returns a step that is not finite, of finite gradients"),
        (
            Bare(),
            "Bare: its direction() must return Direction(step, state, correction), not a tuple",
        ),
        (WritesGrad(), "WritesGrad.direction: writes into a tensor that it was given"),
        (WritesState(), "WritesState.direction: writes into a tensor that it was given"),
        (WritesW(), "WritesW.init: writes into a tensor that it was given"),
        (Sends(), "Sends.sends: returns a vector that is a NoneType"),
        (Raises(), "Raises.direction: raises IndexError: index 99 is out of bounds"),
        (object(), "object: is no rule; derive its class from dcasgd_repro.rules.Rule"),
        (Plain(), "Plain: is no frozen dataclass; write @dataclass(frozen=True) above its class"),
        (Thawed(), "Thawed: is no frozen dataclass; write @dataclass(frozen=True) above its cl"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_faulty_rule_is_refused_by_name(rule: Any, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        plan(rule)
    assert str(refused.value).startswith(f"rule={message}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "workers"),
    [((), []), ([1, 0, 0], [0, 1]), ({1}, [1]), (range(2), [0, 1]), ([np.int64(1)], [1])],
)
def test_the_workers_to_stop_are_whole_numbers_of_them(answer: Any, workers: list[int]) -> None:
    assert named_by(plan(Stops(answer=answer)).rule, None, (0, 0)) == workers


def test_an_exception_is_shown_with_the_line_of_the_rule() -> None:
    with pytest.raises(BadInput, match=r"test_check.py, line \d+: return \[m for m in range\(99"):
        check_contract(StopsRaises(), 2)
    with pytest.raises(BadInput, match=r"test_check.py, line \d+: .*state\[arrival.worker \+ 99\]"):
        check_contract(Raises(), 2)


def test_a_rule_is_asked_about_every_worker_and_left_as_it_was() -> None:
    rule = Mine()
    check_contract(rule, 3)
    assert rule.seen == []
    watched: list[int] = []

    class Spy(Mine):
        def direction(self, arrival: Arrival, state: Any) -> Any:
            watched.append(arrival.delay)
            return super().direction(arrival, state)

    check_contract(Spy(), 3)
    assert watched == [0, 1, 2, 2, 2, 2, 2]


def plan(rule: Any) -> Plan:
    return Plan(
        rule=rule,
        task=Quadratic((1.0,)),
        schedule=Generated(workers=2, seed=0, compute=Gamma(1.0, cv=0.1)),
        rate=Step(base=0.1, milestones=[]),
        length=Length(images=8, batch=1, epochs=1),
        workers=2,
    )


def test_a_rule_of_ours_may_be_given_a_lambda_of_any_size() -> None:
    from dcasgd_repro import DCASGDc

    check_contract(DCASGDc(lam=1e300), 2)
    assert plan(ASGD()).rule == ASGD()
