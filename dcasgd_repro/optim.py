"""Update rules as ``torch.optim.Optimizer``: the maths as a free function, the class as its shell.

``DCASGD`` is Apache MXNet's optimizer, which is NOT the paper's rule: see there. ``RuleOptimizer``
puts any rule of this package, the paper's among them, behind torch's interface.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dcasgd_repro.errors import BadInput, check_number, check_whole
from dcasgd_repro.rules import Arrival, Rule

_NOT_NEGATIVE = ("lr", "momentum", "lamda", "weight_decay")
_OPTIONS = (*_NOT_NEGATIVE, "clip_gradient", "rescale_grad", "semantics")
_SEMANTICS = ("mxnet2", "mxnet1")


def mxnet_displacement(
    w: Tensor,
    grad: Tensor,
    previous_weight: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    momentum: float,
    lamda: float,
    weight_decay: float,
    clip_gradient: float | None,
    rescale_grad: float,
    semantics: str,
) -> Tensor:
    """What MXNet adds to w: mom <- momentum * mom - lr * d, d = h + lamda * q * q * (w - w_prev).

    ``g = clip(rescale_grad * grad, ±clip_gradient)`` and ``h = g + weight_decay * w``. The squared
    gradient q is h in MXNet 2.0 ("mxnet2") and g in 1.9.1 ("mxnet1"). Without a buffer the first
    term is absent. The result is also the next momentum buffer: the learning rate is inside it.

    Shapes: all tensors alike; element-wise; no argument is written to.
    Source: the ``DCASGD`` optimizers of ``mxnet==2.0.0b1`` and ``mxnet==1.9.1``, whose float32
    bits it gives on a CPU: each branch keeps its version's order of operations, nothing is fused.
    """
    g = rescale_grad * grad
    if clip_gradient is not None:  # 0 clips too: every gradient becomes 0. NaN passes.
        g = g.clamp(-clip_gradient, clip_gradient)
    h = g + weight_decay * w
    drift = w - previous_weight
    d = h * h * drift * lamda + h if semantics == "mxnet2" else h + lamda * g * g * drift
    return -lr * d if momentum_buffer is None else momentum * momentum_buffer - lr * d


class DCASGD(torch.optim.Optimizer):
    """Apache MXNet's DCASGD: w <- w + mom, mom from :func:`mxnet_displacement`.

    It differs from the paper's Algorithm 2 (:class:`dcasgd_repro.rules.DCASGDc`; the README says
    more). MXNet keeps ONE previous weight per parameter and overwrites it at every update, so it
    compensates exactly one step whatever the true delay is, even with one worker and no delay. The
    paper keeps the weights that each worker pulled. Only the constant lambda exists here. Use it
    to port or check an MXNet run, not to reproduce the paper.

    Parameters (each but ``params`` can be set per group; MXNet's ``lr_mult`` and ``wd_mult`` are
    groups with their own ``lr`` and ``weight_decay``):

    - ``params``: real tensors of any floating dtype, or groups, as in ``torch.optim.SGD``.
    - ``lr``: learning rate, a float >= 0. Inside the momentum buffer, unlike in torch's SGD: after
      a drop of lr the old steps still act at the old rate.
    - ``momentum``: >= 0; 0 keeps no buffer.
    - ``lamda``: lambda_0 >= 0 (MXNet's spelling); it meets the square of the rescaled gradient.
    - ``weight_decay``: >= 0; MXNet's ``wd``.
    - ``clip_gradient``: bound >= 0 on each entry of the rescaled gradient; None is off, 0 is on.
    - ``rescale_grad``: finite factor on the gradient, before the clip (MXNet: 1 / batch size).
    - ``semantics``: "mxnet2" (2.0: weight decay inside the square) or "mxnet1" (1.9.1: outside).

    State per parameter: ``previous_weight`` (a copy) and, with momentum, ``momentum_buffer``.

    Raises ``BadInput`` (a ``ValueError``) for a value outside these ranges or a complex parameter,
    and ``RuntimeError`` in :meth:`step` for a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.0,
        lamda: float = 0.04,
        weight_decay: float = 0.0,
        clip_gradient: float | None = None,
        rescale_grad: float = 1.0,
        *,
        semantics: str = "mxnet2",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "lamda": lamda,
            "weight_decay": weight_decay,
            "clip_gradient": clip_gradient,
            "rescale_grad": rescale_grad,
            "semantics": semantics,
        }
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own hyper-parameters; refused as in the constructor."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(p.is_complex() for p in param_group["params"]):
            self.param_groups.pop()
            raise BadInput("params", "complex", "real tensors; q * q has no complex meaning here")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient; return the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options = {key: group[key] for key in _OPTIONS}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise RuntimeError("DCASGD does not support sparse gradients")
                buffer = self.state[p].get("momentum_buffer")
                if buffer is None and group["momentum"] != 0:
                    buffer = torch.zeros_like(p)
                previous = self.state[p].get("previous_weight", p)  # at first: no drift
                mom = mxnet_displacement(p, p.grad, previous, buffer, **options)
                # The previous weight is a copy: p itself moves below, and the correction would be
                # zero for ever. State is replaced, never written to, so that what state_dict()
                # handed out earlier stays what it was.
                state = {"previous_weight": p.clone()}
                if buffer is not None:
                    state["momentum_buffer"] = mom
                self.state[p] = state
                p.add_(mom)
        return loss


class RuleOptimizer(torch.optim.Optimizer):
    """A rule over a model's parameters: w <- w - lr * direction(g, w, w_bak), for your own loop.

    The paper's server holds the model; each worker's gradient arrives with the backup that it was
    computed at, and you keep the backups::

        server = RuleOptimizer(model.parameters(), DCASGDa(lam0=2.0), lr=0.5, workers=8)
        backup[m] = server.pull()           # worker m pulls: w_bak(m) <- w_t
        ...                                 # put its gradient at backup[m] into each p.grad
        server.step(backup[m], worker=m)    # it arrives

    ``rule`` is any element-wise ``dcasgd_repro.rules.Rule``; ``lr`` may differ between groups and
    follow a torch scheduler; ``workers`` is M. Momentum is the rule's, weight decay belongs to your
    loss.
    State per parameter: ``rule``, what the rule keeps (MeanSquare, velocity).

    The rule being element-wise, this equals ``simulate`` on the flattened parameters bit for bit.
    Every step needs every gradient where a rule counts arrivals (SSGD).

    Raises ``BadInput`` for what cannot be meant: a bad ``lr``, ``rule`` or ``workers``, a rule that
    is not element-wise, a worker out of range, a backup of other shapes or one that is the live
    parameters (the correction would be zero for ever), a ``state_dict`` of another rule;
    ``RuntimeError`` for a sparse gradient.
    """

    rule: Rule
    workers: int

    def __init__(self, params: ParamsT, rule: Rule, lr: float = 0.1, workers: int = 1) -> None:
        if not isinstance(rule, Rule):
            raise BadInput("rule", rule, "give a rule of dcasgd_repro.rules, as DCASGDa()")
        if not rule.elementwise:
            remedy = "its norms are of the whole vector; here each parameter would have its own"
            raise BadInput("rule", rule.name, remedy)
        check_whole("workers", workers)
        self.rule, self.workers = rule, workers
        # The rule's text travels in the groups, so that a state_dict says what it belongs to.
        super().__init__(params, {"lr": lr, "rule": f"{rule}, workers={workers}"})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add real parameters, with their own ``lr`` if they have one."""
        check_number("lr", {**self.defaults, **param_group}["lr"])
        super().add_param_group(param_group)
        if any(p.is_complex() for p in param_group["params"]):
            self.param_groups.pop()
            raise BadInput("params", "complex", "real tensors; g * g has no complex meaning here")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state of an optimizer with the same rule and number of workers."""
        for group in state_dict["param_groups"]:
            if group.get("rule") != self.defaults["rule"]:
                remedy = f"this optimizer's is {self.defaults['rule']}"
                raise BadInput("state_dict rule", group.get("rule"), remedy)
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        # torch's own names only defaults, state and groups; a copy needs the rule too.
        return {**super().__getstate__(), "rule": self.rule, "workers": self.workers}

    def pull(self, worker: int = 0) -> list[Tensor]:
        """A copy of what a pulling worker receives, in order: its weights, and its backup."""
        sends = self.rule.sends
        return [sends(p.detach(), self._state(p), worker).clone() for _, p in self._pairs()]

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch knows no backup, worker or delay
        self,
        backup: Sequence[Tensor],
        worker: int = 0,
        delay: int = 0,
        closure: Callable[[], float] | None = None,
    ) -> float | None:
        """One gradient arrives, taken at ``backup``; parameters without a gradient stay."""
        self._check_arrival(backup, worker)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for (group, p), w_bak in zip(self._pairs(), backup, strict=True):
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise RuntimeError("RuleOptimizer does not support sparse gradients")
            arrival = Arrival(p.grad, p.detach(), w_bak, worker, delay, group["lr"])
            direction, state, _ = self.rule.direction(arrival, self._state(p))
            # Plain containers only, which torch copies and casts in load_state_dict; replaced, not
            # written to, so that an earlier state_dict() stays what it was.
            packed = state._asdict() if hasattr(state, "_asdict") else state
            self.state[p] = {"rule": packed}
            if direction is not None:
                p.add_(direction, alpha=-group["lr"])
        return loss

    def _pairs(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.param_groups for p in group["params"]]

    def _check_arrival(self, backup: Sequence[Tensor], worker: int) -> None:
        check_whole("worker", worker, 0, self.workers - 1)
        parameters = [p for _, p in self._pairs()]
        if not isinstance(backup, Sequence):
            raise BadInput("backup", type(backup).__name__, "give the list that pull() returned")
        if [b.shape for b in backup] != [p.shape for p in parameters]:
            what = f"{len(backup)} tensors"
            raise BadInput("backup", what, f"give {len(parameters)} of the parameters' shapes")
        if any(b.data_ptr() == p.data_ptr() for b, p in zip(backup, parameters, strict=True)):
            raise BadInput("backup", "the parameters", "give a copy taken at the pull: pull()")

    def _state(self, p: Tensor) -> Any:
        if "rule" not in self.state[p]:
            return self.rule.init(p.detach(), self.workers)
        packed = self.state[p]["rule"]
        if not isinstance(packed, dict):
            return packed
        return type(self.rule.init(p.new_empty(0), self.workers))(**packed)


def _check(options: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters out of range, NaN among them; ``options`` may hold more keys."""
    for key in (*_NOT_NEGATIVE, "rescale_grad"):
        value = options[key]
        if not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise BadInput(key, value, "give a finite number")
        if key in _NOT_NEGATIVE and value < 0:
            raise BadInput(key, value, "give a number >= 0")
    clip = options["clip_gradient"]
    if clip is not None and not (isinstance(clip, numbers.Real) and float(clip) >= 0):
        raise BadInput("clip_gradient", clip, "give a number >= 0, or None for no clipping")
    if options["semantics"] not in _SEMANTICS:
        raise BadInput("semantics", options["semantics"], f"give one of {', '.join(_SEMANTICS)}")
