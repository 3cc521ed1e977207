"""What a run measures beside its Steps, of what the server receives. It changes no bit of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import Arrival, Rule
from dcasgd_repro.run import taylor
from dcasgd_repro.run.check import check_gradient
from dcasgd_repro.run.checkpoint import plain, shaped
from dcasgd_repro.run.identity import task_name
from dcasgd_repro.run.plan import PROBES, Plan
from dcasgd_repro.simulate import Server, norm


@dataclass
class Probe:
    """Stands between a server and its arithmetic (``Server.apply``) and measures each arrival.

    ``batch_error_every``  pushes between mini-batches whose own error rate is taken, at the vector
                           the worker computed at; None: never. A forward pass for each.
    ``every``              pushes between arrivals that are compared with the gradient at w_t, see
                           taylor.py; None: never. A gradient for each.
    ``batch``, ``epoch``   the mini-batch size, and pushes -> epochs passed: read by ``every``

    Two lists hold what was measured since they were last emptied: ``grad_norms`` a push's ||g_m||
    (scalars left on the device), ``batch_errors`` error rates in [0, 1]. ``rows`` are all those of
    probe.csv.
    """

    task: Any
    server: Server
    batch_error_every: int | None = None
    every: int | None = None
    batch: int = 1
    epoch: Callable[[int], float] = float
    grad_norms: list[Tensor] = field(default_factory=list)
    batch_errors: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._apply, self.server.apply = self.server.apply, self
        self.shadows = taylor.Shadows(self.server, self.batch) if self.every else None

    def __call__(
        self, rule: Rule, arrival: Arrival, state: Any
    ) -> tuple[Tensor | None, Any, Tensor, Tensor]:
        check_gradient(self.task, arrival.grad, arrival.w)
        self.grad_norms.append(norm(arrival.grad))
        push, m = self.server.pushes + 1, arrival.worker
        if self.batch_error_every and push % self.batch_error_every == 0:
            with torch.random.fork_rng():  # a network may draw numbers, as dropout does
                batch = self.task.batch(m, self.server.batches[m])
                self.batch_errors.append(self.task.batch_error(self.server.sent[m], batch))
        if self.every and self.shadows:
            due = push % self.every == 0
            corrections = self.shadows.corrections(arrival, due)
            if due:
                row = taylor.probed(self.task, self.server, arrival, corrections)
                self.rows.append(row | {"epoch": self.epoch(push)})
        return self._apply(rule, arrival, state)

    def packed(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain containers; floats hold the scalars exactly."""
        norms = [float(value) for value in self.grad_norms]
        content = {"grad_norms": norms, "batch_errors": self.batch_errors, "rows": self.rows}
        if self.shadows:
            content["shadows"] = {name: plain(s) for name, s in self.shadows.states.items()}
        return content

    def unpack(self, content: dict[str, Any]) -> None:
        """Takes over what a checkpoint kept; nothing from one that is older than the probe.

        Refuses to begin in the middle of a run: the candidates' states begin with its first push.
        """
        device = self.server.w.device
        norms = content.get("grad_norms", [])
        self.grad_norms = [torch.tensor(x, dtype=torch.float64, device=device) for x in norms]
        self.batch_errors = list(content.get("batch_errors", []))
        self.rows = list(content.get("rows", []))
        if self.shadows:
            if "shadows" not in content:
                remedy = "this run was begun without it; leave it out, or name another run_dir"
                raise BadInput("probe.every", self.every, remedy)
            for name, state in self.shadows.states.items():
                self.shadows.states[name] = shaped(state, content["shadows"][name])


def probe_of(plan: Plan, task: Any, server: Server) -> Probe:
    """The probe that the plan asks for, in the server's way. Raises BadInput."""
    lacks = {
        "batch_error_every": "classes to mistake",
        "probe_every": "network to differentiate",
    }
    for key, what in lacks.items():
        if (every := getattr(plan, key)) is not None and not hasattr(task, "batch_error"):
            remedy = f"task {task_name(plan.config)} has no {what}; leave it out"
            raise BadInput(PROBES[key], every, remedy)
    length = plan.length
    measured = (plan.batch_error_every, plan.probe_every)
    return Probe(task, server, *measured, length.batch, length.epoch)
