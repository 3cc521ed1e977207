"""``dcasgd-repro new``: the skeleton of a rule or a study of one's own, in the current folder."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.groups import choices
from dcasgd_repro.study.grid import names

RULE = '''\
"""CLASS: what it does, in one line with the equation: `w -= eta (1 + tau)^-p g`.

Source: where it is from.
"""

from dataclasses import dataclass

from torch import Tensor

from dcasgd_repro import Arrival, Direction, Rule


@dataclass(frozen=True)
class CLASS(Rule):
    name = "NAME"  # in tables and legends

    power: float = 1.0  # a key: rule.power=2

    def init(self, w: Tensor, workers: int) -> int:
        """The state before the first gradient: tensors, numbers, tuples, lists or dicts of them.

        w [P] is the server's vector. Here: how many gradients were late.
        """
        return 0

    def direction(self, arrival: Arrival, late: int) -> Direction:
        """The step for one gradient, after which the server makes `w <- w - lr step`.

        arrival.grad [P]    the gradient, taken at w_bak
        arrival.w [P]       the server's vector now
        arrival.w_bak [P]   the vector that the worker had; drift = w - w_bak
        arrival.worker, arrival.delay (updates between pull and push), arrival.lr

        Write into none of these, nor into the state: return new ones. A step of None leaves w.
        """
        step = arrival.grad * (1 + arrival.delay) ** -self.power
        return Direction(step, late + (arrival.delay > 0))
'''
TEST = '''\
"""Does CLASS keep what a rule promises, and is its step the one that is meant?"""

import torch
from NAME import CLASS

from dcasgd_repro import Arrival
from dcasgd_repro.run.battery import battery


def test_it_keeps_what_a_rule_promises() -> None:
    """As `dcasgd-repro check rule=NAME:CLASS`."""
    failed = [str(line) for line in battery(CLASS()) if not line.ok]
    assert not failed, "\\n".join(failed)


def test_a_step_worked_by_hand() -> None:
    g, w = torch.tensor([2.0, -4.0]), torch.zeros(2)
    arrival = Arrival(grad=g, w=w, w_bak=w, worker=0, delay=1, lr=0.1)
    rule = CLASS(power=1.0)
    step, late, _ = rule.direction(arrival, rule.init(w, workers=2))
    assert step.tolist() == [1.0, -2.0]  # half of g, which is one update late
    assert late == 1
'''
GRID = """\
# NAME: what is asked. All keys: KEYS and Claim in dcasgd_repro/study/grid.py.
title: "NAME: the question in one line"
figure: table
cells: # name: what one types after `dcasgd-repro train`; runs of a cell differ in the seed alone
  # Generated images, to try whether it runs. For CIFAR-10: +exp=cifar_asgd and +exp=cifar_dc.
  asgd: task=synthetic rule=asgd
  dcasgd_a: task=synthetic rule=dcasgd_a # one of yours: rule=my_rule:MyRule
claims: # before the runs; a measure unless told is the last-10 test error
  - {lower: dcasgd_a, higher: asgd, primary: true}
"""
CLAIM = """\
# NAME

**The question.** What is not known, and why it matters.

**What we do, written before the runs.** Cells, seeds, scale, measure.

**What we expect**, and what would say otherwise: the inequalities of grid.yaml in words.

**What it cannot show.** Scale, number of seeds, what is held fixed.
"""


def rule(name: str) -> str:
    """Writes NAME.py and test_NAME.py; returns what to print. Raises BadInput."""
    check_name(name)
    path, test = Path(f"{name}.py"), Path(f"test_{name}.py")
    refuse_old(path, test)
    if importlib.util.find_spec(name) is not None:
        raise BadInput("NAME", name, "a module of that name is installed; choose another")
    if name in choices("rule"):
        raise BadInput("NAME", name, "a rule here has that name; choose another")
    made = "".join(part.capitalize() for part in name.split("_"))
    for file, text in ((path, RULE), (test, TEST)):
        file.write_text(text.replace("NAME", name).replace("CLASS", made))
    return (
        f"wrote {path} and {test}\n"
        f"next  python -m pytest {test}\n"
        f"then  dcasgd-repro train task=synthetic rule={name}:{made}"
    )


def study(name: str) -> str:
    """Writes experiments/NAME/grid.yaml and claim.md; returns what to print. Raises BadInput."""
    check_name(name)
    folder = Path("experiments") / name
    refuse_old(folder)
    if name in names():
        raise BadInput("NAME", name, "a study here has that name; choose another")
    folder.mkdir(parents=True)
    for file, text in (("grid.yaml", GRID), ("claim.md", CLAIM)):
        (folder / file).write_text(text.replace("NAME", name))
    return (
        f"wrote {folder / 'claim.md'} and {folder / 'grid.yaml'}\n"
        f"next  dcasgd-repro reproduce {folder} scale=smoke --dry-run"
    )


def check_name(name: str) -> None:
    """Refuses what is no name of a Python module in lower case: BadInput."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name) or keyword.iskeyword(name):
        remedy = "begin with a small letter; then small letters, digits, _, as in my_rule"
        raise BadInput("NAME", name, remedy)


def refuse_old(*paths: Path) -> None:
    """Refuses to write where something is: BadInput."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise BadInput("NAME", path, "is there already, and is not overwritten")
