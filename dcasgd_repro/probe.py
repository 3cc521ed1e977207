"""What a run measures beside its Steps, of what the server receives. It changes no bit of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dcasgd_repro.config import task_name
from dcasgd_repro.errors import BadInput, check_whole
from dcasgd_repro.rules import Arrival, Rule
from dcasgd_repro.simulate import Server, norm


@dataclass
class Probe:
    """Stands between a server and its arithmetic (``Server.apply``) and measures each arrival.

    ``batch_error_every``  pushes between mini-batches whose own error rate is taken, at the vector
                           the worker computed at; None: never. A forward pass for each.

    The lists hold what was measured since they were last emptied: ``grad_norms`` a push's ||g_m||
    (scalars left on the device), ``batch_errors`` error rates in [0, 1].
    """

    task: Any
    server: Server
    batch_error_every: int | None = None
    grad_norms: list[Tensor] = field(default_factory=list)
    batch_errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._apply, self.server.apply = self.server.apply, self

    def __call__(
        self, rule: Rule, arrival: Arrival, state: Any
    ) -> tuple[Tensor | None, Any, Tensor, Tensor]:
        self.grad_norms.append(norm(arrival.grad))
        push, m = self.server.pushes + 1, arrival.worker
        if self.batch_error_every and push % self.batch_error_every == 0:
            with torch.random.fork_rng():  # a network may draw numbers, as dropout does
                batch = self.task.batch(m, self.server.batches[m])
                self.batch_errors.append(self.task.batch_error(self.server.sent[m], batch))
        return self._apply(rule, arrival, state)

    def packed(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain containers; floats hold the scalars exactly."""
        norms = [float(value) for value in self.grad_norms]
        return {"grad_norms": norms, "batch_errors": self.batch_errors}

    def unpack(self, content: dict[str, Any]) -> None:
        """Takes over what a checkpoint kept; nothing from one that is older than the probe."""
        device = self.server.w.device
        norms = content.get("grad_norms", [])
        self.grad_norms = [torch.tensor(x, dtype=torch.float64, device=device) for x in norms]
        self.batch_errors = list(content.get("batch_errors", []))


def probe_of(cfg: DictConfig, task: Any, server: Server) -> Probe:
    """The probe that ``cfg.probe`` describes, in the server's way. Raises BadInput."""
    keys = cfg.get("probe")  # absent from configs that are older than the key
    if keys is None:
        return Probe(task, server)
    if not OmegaConf.is_dict(keys):
        raise BadInput("probe", keys, "this is a group of keys; set one inside it")
    every = keys.get("batch_error_every")
    if every is not None:
        check_whole("probe.batch_error_every", every)
        if not hasattr(task, "batch_error"):
            remedy = f"task {task_name(cfg)} has no classes to mistake; leave it out"
            raise BadInput("probe.batch_error_every", every, remedy)
    return Probe(task, server, every)
