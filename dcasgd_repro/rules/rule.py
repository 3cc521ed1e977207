"""What a rule is: ``init`` makes its state, ``direction`` turns one arrival into a step.

Rules are pure: they never write into a tensor they were given. Most are element-wise, and one such
rule serves a flat vector [P], a batch of vectors [K, P] and a single parameter of any shape alike.
A rule that takes a norm says ``elementwise = False``; its norms are over the last axis, P.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput, check_whole


class Arrival(NamedTuple):
    """One gradient reaching the server. All tensors have one shape, [P].

    ``grad``    g_m, the gradient at the vector the worker computed at
    ``w``       w_t, the server's vector now
    ``w_bak``   w_bak(m), the server's backup for this worker
    ``worker``  m, from 0
    ``delay``   tau, in server updates since the worker's pull
    ``lr``      eta, the learning rate of this push
    """

    grad: Tensor
    w: Tensor
    w_bak: Tensor
    worker: int
    delay: int
    lr: float

    @property
    def drift(self) -> Tensor:
        """``w_t - w_bak(m)``."""
        return self.w - self.w_bak


class Direction(NamedTuple):
    """What the server does with an arrival: ``w_{t+1} = w_t - eta * step``.

    ``step``        [P]; None: the gradient is kept or ignored, and w does not move
    ``state``       the rule's next state
    ``correction``  [P], what compensation added to g; None: nothing. ``dc_ratio`` reads it alone
    """

    step: Tensor | None
    state: Any
    correction: Tensor | None = None


class Rule(ABC):
    """An update rule. ``state`` is whatever ``init`` returned; only the rule looks inside it.

    One of your own is a frozen dataclass with two methods:

    >>> import torch
    >>> from dataclasses import dataclass
    >>> from dcasgd_repro import Arrival, Direction, Rule
    >>> @dataclass(frozen=True)
    ... class Slower(Rule):
    ...     power: float = 1.0
    ...
    ...     def init(self, w, workers):
    ...         return None
    ...
    ...     def direction(self, arrival, state):
    ...         return Direction(arrival.grad / (1 + arrival.delay) ** self.power, state)
    >>> late = Arrival(torch.ones(2), torch.zeros(2), torch.zeros(2), worker=0, delay=1, lr=0.1)
    >>> Slower().direction(late, None).step
    tensor([0.5000, 0.5000])

    In ``my_rule.py`` it is ``rule=my_rule:Slower rule.power=2`` on the command line. Write into
    none of the tensors you are given. A state is what a checkpoint can hold: tensors, numbers,
    text, None, and tuples, lists and dicts of these; named tuples too, but not inside a list or
    dict. A class may say beside:

    ``name``         what tables and the command line call it; by default the class's name
    ``label``        what legends and tables of results call it; by default ``name``
    ``for_rounds``   True: made for a barrier schedule; without one it is another method
    ``elementwise``  False: an entry of the step depends on other entries, as where a norm is taken
    """

    name: ClassVar[str]
    label: ClassVar[str] = ""
    for_rounds: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not isinstance(vars(cls).get("name"), str):
            cls.name = cls.__name__

    @abstractmethod
    def init(self, w: Tensor, workers: int) -> Any:
        """The state before the first arrival, for a server vector ``w`` [P] and M workers."""

    @abstractmethod
    def direction(self, arrival: Arrival, state: Any) -> Direction:
        """The step for one arrival, and the state after it."""

    def sends(self, w: Tensor, state: Any, worker: int) -> Tensor:
        """The vector a pulling worker receives: ``w``, unless a rule looks ahead.

        No learning rate is given here: a rule that needs it keeps the last arrival's.
        """
        return w

    def stops(self, state: Any, delays: Sequence[int]) -> Sequence[int]:
        """The workers to stop after an arrival: they give up their gradients, and pull w anew.

        ``delays``: of each worker, updates since its pull. Asked only with reactive=true, before
        the run, with all gradients zero: decide by counts and delays alone. A run ends where its
        gradients decide otherwise. Workers that do not compute at that moment are left alone.
        """
        return ()

    def keeps(self) -> tuple[int, int]:
        """Vectors [P] in the state: (once on the server, and again for each worker).

        The server's own w and its backup for each worker are not among them.
        """
        return 0, 0


def heavy_ball(momentum: float, g: Tensor, velocity: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Heavy-ball momentum, ``v = mu v + g``, the step being v; without momentum the step is g.

    The operations and their order are those of ``torch.optim.SGD``, so the result equals its own
    to the bit. Returns (step, next velocity).
    """
    if velocity is None:
        return g, None
    velocity = torch.add(velocity * momentum, g)
    return velocity, velocity


def momentum_step(
    momentum: float, nesterov: bool, g: Tensor, velocity: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``heavy_ball``, or with ``nesterov`` the step ``g + mu v``, v after this g."""
    step, velocity = heavy_ball(momentum, g, velocity)
    if nesterov and velocity is not None:
        step = torch.add(g, velocity, alpha=momentum)
    return step, velocity


def start_velocity(momentum: float, w: Tensor) -> Tensor | None:
    """``v_0 = 0``; no vector is kept where there is no momentum."""
    return torch.zeros_like(w) if momentum else None


def replaced(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    """A tuple with one entry replaced."""
    return (*values[:index], value, *values[index + 1 :])


def decayed(weight_decay: float, arrival: Arrival) -> Tensor:
    """``g + wd w_t``: weight decay at the server's w, where a task's own is at the worker's."""
    return torch.add(arrival.grad, arrival.w, alpha=weight_decay) if weight_decay else arrival.grad


def at_its_rate(total: Tensor, was: float, g: Tensor, lr: float) -> tuple[Tensor, float]:
    """Adds ``lr g`` to ``was total``. Returns (sum, rate): the sum is in units of the rate.

    With one rate throughout it is ``total + g``, to the bit. A rate of 0 adds nothing.
    """
    if lr == 0:
        return total, was
    return (total if lr == was else total * (was / lr)) + g, lr


def checked_blocks(blocks: Sequence[int]) -> tuple[int, ...]:
    """Sizes of consecutive parts of a vector, as a tuple; none: the vector is one part."""
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise BadInput("blocks", blocks, "give a list of sizes, or [] for the whole vector")
    for size in blocks:
        check_whole("blocks", size)
    return tuple(blocks)


def size_of(rule: Rule, otherwise: int) -> int:
    """P of a vector to try a rule on: what its ``blocks`` add up to, ``otherwise`` without any."""
    blocks = getattr(rule, "blocks", ())
    return sum(blocks) if blocks and isinstance(blocks, Sequence) else otherwise


def parts(x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
    """The consecutive parts of x along its last axis. Raises BadInput where they do not fill it."""
    if not blocks:
        return (x,)
    if sum(blocks) != x.shape[-1]:
        raise BadInput("blocks", list(blocks), f"make them add up to {x.shape[-1]}, w's size")
    cut: tuple[Tensor, ...] = x.split(list(blocks), dim=-1)
    return cut
