"""Does the correction point the right way? A stale gradient against the one that it stands for.

DC-ASGD takes ``g + c`` for the gradient at w_t, where g was taken at w_bak(m). A probe computes
that gradient too, on the same mini-batch, so c can be compared with what it estimates. It asks
what each candidate would have added, whatever rule runs: one trajectory answers for all of them.

Columns of probe.csv, a row for each probed push. g is the gradient that arrived, g_t the same
mini-batch's at w_t, and ``e = g_t - g`` the staleness error. After ``delay`` and ``gap_norm`` a row
is empty where the delay or the drift is 0: there is nothing to correct. So is a number that is
undefined.

push          gradients the server has received, this one included
epoch         pushes x batch / images
worker        m, from 0
delay         tau, server updates between the worker's pull and this push
gap_norm      ||w_t - w_bak(m)||, the drift as the rules take it
grad_norm     ||g||
stale_error   ||e|| / ||g_t||
cos           cos(g, g_t), before any correction
size_X        ||c|| / ||g||, where c is what candidate X adds to g
cos_X         cos(g + c, g_t)
removed_X     1 - ||g_t - (g + c)||^2 / ||e||^2, the part of the squared error that c removes: 1 for
              a perfect correction, 0 for none, negative where c takes g further from g_t
lambda_Y      the lambda that would remove most along u: <e, u> / ||u||^2; negative: u points away
best_Y        the part that this lambda would remove: cos(e, u)^2

candidate X                                                     direction Y
c         0.04 g g drift                     DC-ASGD-c           gg    u = g g drift
c_sum     0.04 B g g drift                   g a batch's sum
abs       0.04 |g| drift                     |g| for g g         abs   u = |g| drift
a_0.5     0.5 / sqrt(MeanSquare + eps) g g drift  DC-ASGD-a      a     u = g g drift /
a_2       2 / sqrt(MeanSquare + eps) g g drift    DC-ASGD-a            sqrt(MeanSquare + eps)

MeanSquare has the defaults of ``DCASGDa`` and sees every arrival, probed or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcasgd_repro.rules import Arrival, DCASGDa, DCASGDc, Direction, Rule
from dcasgd_repro.simulate import Server, norm

LAM = 0.04  # the paper's lambda for CIFAR-10
DIRECTIONS = {"gg": ("c", LAM), "abs": ("abs", LAM), "a": ("a_2", 2.0)}  # Y: (X, its lambda)


@dataclass(frozen=True)
class Absolute(Rule):
    """``g + lambda |g| drift``: |g| where DC-ASGD-c has g g. A candidate, no rule of the paper."""

    name = "absolute"

    lam: float

    def init(self, w: Tensor, workers: int) -> None:
        return None

    def direction(self, arrival: Arrival, state: None) -> Direction:
        correction = self.lam * (arrival.grad.abs() * arrival.drift)
        return Direction(arrival.grad + correction, state, correction)


def candidates(batch: int) -> dict[str, Rule]:
    """The rules whose corrections are compared, by the name that the columns have."""
    return {
        "c": DCASGDc(LAM),
        "c_sum": DCASGDc(LAM, gradient="sum", batch=batch),
        "abs": Absolute(LAM),
        "a_0.5": DCASGDa(0.5),
        "a_2": DCASGDa(2.0),
    }


COLUMNS: tuple[str, ...] = ("push", "epoch", "worker", "delay", "gap_norm", "grad_norm")
COLUMNS += ("stale_error", "cos")
COLUMNS += tuple(f"{what}_{x}" for x in candidates(1) for what in ("size", "cos", "removed"))
COLUMNS += tuple(f"{what}_{y}" for y in DIRECTIONS for what in ("lambda", "best"))


class Shadows:
    """The candidates, each with the state that it would have had it seen the same arrivals."""

    def __init__(self, server: Server, batch: int) -> None:
        self.rules = candidates(batch)
        workers = len(server.sent)
        self.states = {name: rule.init(server.w, workers) for name, rule in self.rules.items()}

    def corrections(self, arrival: Arrival, wanted: bool) -> dict[str, Tensor]:
        """What each candidate would add to the arriving g, [P] each; states go on.

        Unless it is ``wanted``, only those with a state are asked.
        """
        found = {}
        for name, rule in self.rules.items():
            if wanted or self.states[name] is not None:
                _, self.states[name], correction = rule.direction(arrival, self.states[name])
                assert correction is not None
                found[name] = correction
        return found


def compare(
    arrival: Arrival, g_t: Tensor, corrections: Mapping[str, Tensor]
) -> dict[str, float | None]:
    """The columns from ``grad_norm`` on, from g_t [P] and each candidate's correction [P].

    Sums are taken in float64. None stands for what is undefined or not finite.
    """
    g, g_t = arrival.grad.double(), g_t.double()
    e = g_t - g
    products = [torch.dot(g, g), torch.dot(g_t, g_t), torch.dot(g, g_t), torch.dot(e, e)]
    for correction in corrections.values():
        c = correction.double()
        sum_ = g + c
        products += [torch.dot(c, c), torch.dot(c, e), torch.dot(sum_, sum_), torch.dot(sum_, g_t)]
    gg, tt, gt, ee, *rest = torch.stack(products).tolist()  # fetched from the device once
    row = {
        "grad_norm": _finite(math.sqrt(gg)),
        "stale_error": _part(math.sqrt(ee), math.sqrt(tt)),
        "cos": _part(gt, math.sqrt(gg) * math.sqrt(tt)),
    }
    squares = {}
    for k, name in enumerate(corrections):
        cc, ce, ss, st = rest[4 * k : 4 * k + 4]
        squares[name] = cc, ce
        row[f"size_{name}"] = _part(math.sqrt(cc), math.sqrt(gg))
        row[f"cos_{name}"] = _part(st, math.sqrt(ss) * math.sqrt(tt))
        row[f"removed_{name}"] = _part(2 * ce - cc, ee)  # exact for a tiny c too
    for y, (name, lam) in DIRECTIONS.items():
        cc, ce = squares[name]  # of lambda u
        row[f"lambda_{y}"] = _part(lam * ce, cc)
        row[f"best_{y}"] = _part(ce * ce, cc * ee)
    return row


def probed(
    task: Any, server: Server, arrival: Arrival, corrections: Mapping[str, Tensor]
) -> dict[str, Any]:
    """A row of probe.csv but for ``epoch``: one more gradient, of the same mini-batch, at w_t.

    Called before the server takes the arrival in. It works on any Task.
    """
    m, gap = arrival.worker, norm(arrival.drift).item()
    row = {"push": server.pushes + 1, "worker": m, "delay": arrival.delay, "gap_norm": _finite(gap)}
    if not arrival.delay or not gap:
        return row
    with torch.random.fork_rng():  # a network may draw numbers, as dropout does
        _, g_t = task.gradient(arrival.w, task.batch(m, server.batches[m]))
    return row | compare(arrival, g_t, corrections)


def _part(a: float, b: float) -> float | None:
    return _finite(a / b) if b else None


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
