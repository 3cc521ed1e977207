"""The battery behind ``dcasgd-repro check``: a mutant for each check, which must fail that line."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from dcasgd_repro import Arrival, Direction, Rule
from dcasgd_repro.cli import commands as cli
from dcasgd_repro.rules import DCASGDn, Ringmaster
from dcasgd_repro.run.battery import CHECKS, battery

CALLS = 0


@dataclass(frozen=True)
class Mine(Rule):
    """Plain ASGD; the tests spoil one thing each."""

    def keeps(self) -> tuple[int, int]:
        return 1, 0

    def init(self, w: torch.Tensor, workers: int) -> Any:
        return torch.zeros_like(w)

    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, state + 1)


class WritesGrad(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad.mul_(1.5), state)


class WritesWhenLate(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad.mul_(0.5) if arrival.delay > 3 else arrival.grad, state)


class WritesList(Mine):
    def init(self, w: torch.Tensor, workers: int) -> Any:
        return []

    def direction(self, arrival: Arrival, state: Any) -> Any:
        state.append(arrival.delay)
        return Direction(arrival.grad, state)


class CountsInModule(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        global CALLS
        CALLS += 1
        return Direction(arrival.grad / (1 + 1e-9 * CALLS), state)


class CountsInClass(Mine):
    calls: ClassVar[int] = 0

    def direction(self, arrival: Arrival, state: Any) -> Any:
        type(self).calls += 1
        return Direction(arrival.grad / (1 + 1e-9 * self.calls), state)


@dataclass(frozen=True)
class Notes(Mine):
    seen: list[int] = field(default_factory=list)

    def direction(self, arrival: Arrival, state: Any) -> Any:
        self.seen.append(arrival.delay)
        return Direction(arrival.grad, state)


class KeepsMore(Mine):
    def init(self, w: torch.Tensor, workers: int) -> Any:
        return [torch.zeros_like(w)] * workers

    def direction(self, arrival: Arrival, state: Any) -> Any:
        m = arrival.worker
        return Direction(arrival.grad, [*state[:m], arrival.grad, *state[m + 1 :]])


class Norm(Mine):
    """The norm over all entries, so that a stack has the whole's answer."""

    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad / (1 + arrival.grad.norm()), state)


class NormOfEach(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        size = arrival.grad.norm(dim=-1, keepdim=True)
        return Direction(arrival.grad / (1 + size), state)


class Unheld(Mine):
    def init(self, w: torch.Tensor, workers: int) -> Any:
        return SimpleNamespace(seen=0)

    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, SimpleNamespace(seen=state.seen + 1))


class UnheldLater(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, {1} if arrival.delay > 3 else state)


class Forgets(Mine):
    """What it knows is in an attribute that no checkpoint sees."""

    def direction(self, arrival: Arrival, state: Any) -> Any:
        first = vars(self).setdefault("first", arrival.grad)
        return Direction(arrival.grad + 0.01 * first, state)


class NaN(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad * float("nan"), state)


class Sign(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad / arrival.grad.abs(), state)


class NoPullTwice(Mine):
    def init(self, w: torch.Tensor, workers: int) -> Any:
        return [None] * workers

    def direction(self, arrival: Arrival, state: Any) -> Any:
        if state[arrival.worker] is arrival.w_bak:
            raise KeyError("two pushes of one pull")
        backups = [*state[: arrival.worker], arrival.w_bak, *state[arrival.worker + 1 :]]
        return Direction(arrival.grad, backups)


class Up(Mine):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(-arrival.grad, state)


class StopsLarge(Mine):
    def stops(self, state: Any, delays: Any) -> Any:
        return [m for m, delay in enumerate(delays) if delay > 2 + state.abs().sum()]

    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, state + arrival.grad)


class StopsLate(Mine):
    def stops(self, state: Any, delays: Any) -> Any:
        return [m for m, delay in enumerate(delays, max(delays) - 3) if delay > 5]


class StopsList(WritesList):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return Direction(arrival.grad, [*state, arrival.delay])

    def stops(self, state: Any, delays: Any) -> Any:
        state.append(0)
        return [m for m, delay in enumerate(delays) if delay > 4]


MUTANTS = {
    StopsLarge(): ("stops", "StopsLarge.stops: stops workers [] after push 3, and [0] where"),
    StopsLate(): ("stops", "StopsLate.stops: returns a list with 4 (int); return a list of"),
    StopsList(): ("stops", "40 of 40 calls wrote (StopsList.stops)"),
    WritesGrad(): ("arguments", "40 of 84 calls wrote"),
    WritesWhenLate(): ("arguments", "(WritesWhenLate.direction), at delays 0 to 5"),
    WritesList(): ("arguments", "40 of 84 calls wrote (WritesList.direction)"),
    CountsInModule(): ("answers", "(CountsInModule.direction), 40 of 40 pushes"),
    CountsInClass(): ("answers", "40 of 84 calls differ (CountsInClass.direction)"),
    KeepsMore(): ("keeps", "4; keeps() says 1 and 0 a worker"),
    Norm(): ("element-wise", "1 of 3 ways to cut 40 entries differ"),
    NormOfEach(): ("element-wise", "3 of 3 ways to cut 40 entries differ"),
    Unheld(): ("checkpoint", "a state with a types.SimpleNamespace: no checkpoint can hold it"),
    UnheldLater(): ("checkpoint", "a state with a builtins.set: no checkpoint can hold it"),
    NaN(): ("zero gradients", "w is not finite after 40 pushes"),
    Sign(): ("zero gradients", "w is not finite after 40 pushes"),
    NoPullTwice(): ("double pulls", "NoPullTwice.direction raises KeyError: 'two pushes of one"),
    Up(): ("quadratic", "of it is left, lr = 0.05"),
}


@pytest.mark.parametrize("rule", MUTANTS, ids=lambda rule: type(rule).__name__)
def test_a_mutant_fails_its_line(rule: Rule) -> None:
    name, found = MUTANTS[rule]
    [line] = battery(rule, [name])
    assert not line.ok
    assert found in line.found
    assert str(line).startswith(f"fails  {name} ")
    assert "\n" not in str(line)


def test_what_a_rule_keeps_in_itself_is_told() -> None:
    for rule in (Notes(), Forgets()):
        [line] = battery(rule, ["answers"])
        assert line.found.endswith("; it changes fields of its own")
        assert not line.ok


@pytest.mark.parametrize(
    "rule",
    [Mine(), DCASGDn(blocks=(2, 6)), Ringmaster(threshold=3)],
    ids=["mine", "blocks", "stops"],
)
def test_a_rule_that_keeps_its_promises_passes_every_check(rule: Rule) -> None:
    lines = list(battery(rule))
    assert [line.name for line in lines] == list(CHECKS)
    assert [line for line in lines if not line.ok] == []


OWN = """\
from dcasgd_repro import ASGD, Direction


class Late(ASGD):
    def direction(self, arrival, state):
        if arrival.delay > 4:
            raise KeyError("too late")
        return Direction(arrival.grad, state)


class Refuses:
    def __init__(self) -> None:
        self.rate = 1 / 0
"""


def test_the_command_says_each_line_and_exits_with_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_late.py").write_text(OWN)
    assert cli.dispatch("check", ["-m", "rule=asgd,own_late:Late"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok ") for line in out) == 24
    raised = "Late.direction raises KeyError: 'too late' ("
    assert sum(raised in line and line.startswith("fails ") for line in out) == 8
    assert f"{tmp_path}/own_late.py, line 7: raise KeyError(" in "\n".join(out)
    assert out[-2:] == [
        "rule=asgd           ok",
        "rule=own_late:Late  fails arguments, answers, zero gradients, keeps, late pulls, "
        "threads, waves, quadratic",
    ]
    for words, line in {
        "rule=own_late:Refuses": "rule={'_target_': 'own_late.Refuses'}: ZeroDivisionError: ",
        "rule=builtins:object": "rule=object: is no rule; derive its class",
        "rule=asgd workers=2": "workers=2: check reads rule= and its keys; leave it out",
        "": "rule=None: which one? As in rule=dcasgd_a or rule=my_rule:MyRule",
        "rule=asgd rule.momentum=2": "rule.momentum=2: give a finite number >= 0 and < 1",
    }.items():
        assert cli.dispatch("check", words.split()) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"dcasgd-repro: {line}")
        assert len(err.splitlines()) == 1
    sys.modules.pop("own_late")
