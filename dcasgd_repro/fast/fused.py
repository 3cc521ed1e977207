"""The server's update in one pass over memory, compiled from the rule's own formula."""

from __future__ import annotations

import functools
import os
import shutil
from typing import Any

import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import Arrival, Rule
from dcasgd_repro.simulate import Server, norm, ratio

# What torch.compile builds with: a language, the variable that names its compiler, and defaults.
COMPILERS = {"cpu": ("C++", "CXX", ("g++",)), "cuda": ("C", "CC", ("gcc", "clang"))}


def fuse(server: Server, backend: Any = "inductor") -> None:
    """Has the server receive gradients through a compiled ``apply``, whatever its rule.

    What moves is then near the least that DC-ASGD-a must: read g, w, w_bak and MeanSquare, write w
    and MeanSquare. The first push compiles for seconds (about 20 on a CPU where nothing is cached),
    so this is for large vectors. A learning rate that changes compiles nothing anew; a rule's
    counter does, once. Products and sums may be contracted: equal to the plain update within
    rounding, not to the bit. Ringleader and Malenia branch on more than torch compiles: it warns,
    and they go on uncompiled. Raises BadInput where no compiler is found.
    """
    if backend == "inductor":
        check_compiler(server.w.device.type)
    # A rule that branches on a counter or picks a worker's vector is compiled for each of them.
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(server.sent) + 8)
    compiled = torch.compile(moved, backend=backend)

    @functools.lru_cache(maxsize=1)
    def factor(lr: float) -> Tensor:
        return torch.full((), -lr, dtype=server.w.dtype, device=server.w.device)

    def apply(
        rule: Rule, arrival: Arrival, state: Any
    ) -> tuple[Tensor | None, Any, Tensor, Tensor]:
        # Where w_bak is w itself, torch.compile would note it, and compile anew where it is not.
        arrival = arrival._replace(w_bak=arrival.w_bak.view_as(arrival.w))
        found: tuple[Tensor | None, Any, Tensor, Tensor]
        found = compiled(rule, arrival, state, factor(arrival.lr))
        return found

    server.apply = apply


def moved(
    rule: Rule, arrival: Arrival, state: Any, factor: Tensor
) -> tuple[Tensor | None, Any, Tensor, Tensor]:
    """``simulate.apply`` with minus the learning rate as a scalar on the device.

    As a number it would be compiled in, once for each value. ``addcmul`` multiplies and adds as
    ``add`` with ``alpha`` does: uncompiled, both give the same bits on a CPU.
    """
    step, state, correction = rule.direction(arrival, state)
    w = None if step is None else torch.addcmul(arrival.w, step, factor)
    return w, state, ratio(correction, arrival.grad), norm(arrival.drift)


def check_compiler(device: str) -> None:
    """Refuses ``fused`` where torch.compile would find no compiler for the device."""
    language, variable, usual = COMPILERS.get(device, COMPILERS["cpu"])
    named = (os.environ[variable],) if os.environ.get(variable) else usual
    if not any(map(shutil.which, named)):
        told = f"torch.compile needs a {language} compiler, {' or '.join(named)} here"
        raise BadInput("fused", True, told)
