"""Replays the log that a real run recorded, in the simulator, and compares the final weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run import checkpoint, write
from dcasgd_repro.run.device import set_device
from dcasgd_repro.run.plan import Plan, plan_of
from dcasgd_repro.run.read import config_of, elsewhere, origins, provenance_of, summary_of
from dcasgd_repro.schedule import Schedule
from dcasgd_repro.schedule.live import ELSEWHERE, EVENTS, LOG, events_of
from dcasgd_repro.simulate import Server, norm, simulate

PLAIN = {"_target_": "dcasgd_repro.simulate.simulate", "_partial_": True}


def is_recorded(path: Path) -> bool:
    """Whether the run's log is one that a cluster made."""
    return (path / EVENTS).exists()


def replayed(path: Path, plan: Plan, log: Schedule) -> tuple[str, bool, str]:
    """What a replay of the run's whole log gives, in words; whether bit for bit its weights.

    Last, why this machine need not give its bits, "" where it must: torch, the processor or the
    number of threads is not the run's own, in any process that had a part in it, or its workers
    computed on GPUs. The words then say how far apart the weights are, as far as the run has a
    checkpoint. Raises BadInput for a run that has none of its files.
    """
    summary, origin = summary_of(path), provenance_of(path)
    if log.pushes != summary.get("pushes"):
        remedy = f"its {LOG} holds {log.pushes} pushes; its summary says {summary.get('pushes')}"
        raise BadInput("run", path, remedy)
    server = replay(plan, log)
    other = another_place(path, origin)
    what = f"{path}: {log.pushes} recorded pushes of {plan.workers} workers replayed"
    if write.weights_sha256(server.w) == summary["weights_sha256"]:
        return f"{what}: the weights are equal to the last bit", True, other
    saved = checkpoint.load(path, torch.device("cpu"))
    apart = "the weights differ"
    if saved is not None and saved["server"]["pushes"] == log.pushes:
        theirs = saved["server"]["w"]
        apart += f" by {float(norm(server.w - theirs) / norm(theirs)):.1e} of their norm"
    why = f"; no bits are promised here, as {other}" if other else None
    return f"{what}: {apart}{why or ', though this is where they were made'}", False, other


def replay(plan: Plan, log: Schedule) -> Server:
    """The server after all messages of the log, by the plain loop on the CPU."""
    task = plan.task.on(set_device("cpu", plan.threads, plan.deterministic))
    server = Server(plan.rule, task.initial(plan.initial_seed), plan.workers, plan.backup)
    steps = simulate(task, server, log, plan.lr(server))
    for _ in tqdm(steps, total=log.pushes, unit="push", disable=not sys.stderr.isatty()):
        pass
    return server


def another_place(path: Path, origin: dict[str, Any]) -> str:
    """Why this machine need not give the run's bits; "" where it must."""
    here = write.environment(torch.device("cpu"))
    if other := next(filter(None, (elsewhere(was, here) for was in origins(origin))), ""):
        return other
    if other := next((e.event for e in events_of(path) if e.event.startswith(ELSEWHERE)), ""):
        return f"a worker was {other}"
    gpus = config_of(path)["engine"].get("gpus_per_worker")
    return f"workers had {gpus} GPUs each" if gpus else ""


def recorded(path: Path) -> tuple[Plan, Schedule]:
    """The run's plan, with its recorded log as its schedule, and that log. Raises BadInput."""
    config = config_of(path)
    if "model" not in config:  # a key of conf/config.yaml that no Plan spells out
        raise BadInput("run", path, "it was made without a config, so it cannot be composed again")
    file = {"_target_": "dcasgd_repro.schedule.FromFile", "path": str(path / LOG)}
    plan = plan_of(OmegaConf.create({**config, "schedule": file, "engine": PLAIN}))
    log = Schedule.load(path / LOG)
    if log.workers != plan.workers:
        raise BadInput("run", path, f"its {LOG} has {log.workers} workers, not {plan.workers}")
    return replace(plan, device="cpu", threads=provenance_of(path)["threads"]), log
