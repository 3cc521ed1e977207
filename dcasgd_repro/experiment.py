"""The composition root: a config becomes objects, the objects a loop, the loop a run directory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional as F
from tqdm import tqdm

from dcasgd_repro import record
from dcasgd_repro.config import (
    Length,
    build,
    config_hash,
    length_of,
    named,
    schedule_of,
    task_name,
)
from dcasgd_repro.errors import BadInput, check_choice, check_whole
from dcasgd_repro.models import ResNet
from dcasgd_repro.simulate import Server, Step

FINISHED, DIVERGED, INTERRUPTED, FAILED = "finished", "diverged", "interrupted", "failed"


def run(cfg: DictConfig, argv: Sequence[str] = (), say: Callable[[str], None] = print) -> Path:
    """Runs what ``cfg`` describes; returns the run directory, whose summary tells the status.

    Raises BadInput, before anything is written, for a config that cannot be run.
    """
    length, device = length_of(cfg), set_device(cfg)
    rule, leaf, rate, engine = (build(cfg, key) for key in ("rule", "task", "lr", "engine"))
    schedule = schedule_of(cfg, length.pushes)
    path = run_dir(cfg)
    record.refuse_used(path)
    try:
        task = leaf.on(device)
    except BadInput as error:
        raise named(cfg, "task.data", error) from None
    w = task.initial(cfg.seeds.initial)
    server = Server(rule, w, cfg.workers, cfg.backup)
    say(describe(cfg, rule, length, len(w), device, path))

    provenance = {
        "argv": list(argv),
        "engine": cfg.engine._target_,
        "schedule_sha256": schedule.sha256(),
        "data_md5": task.md5,
        "seeds": OmegaConf.to_container(cfg.seeds, resolve=True),
        **record.environment(device),
    }
    log = record.Run(path, OmegaConf.to_yaml(cfg, resolve=True), provenance)
    log.schedule(schedule)
    log.hparams(hparams(cfg))
    steps = engine(task, server, schedule, lambda pushes: rate(length.epoch(pushes)))
    rows: list[dict[str, Any]] = []
    status = FAILED
    try:
        for row, delays in follow(steps, server, task, length, cfg.log_every, cfg.eval_every):
            log.log(row, delays)
            rows.append(row)
        status = FINISHED if math.isfinite(rows[-1]["train_loss"]) else DIVERGED
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        log.finish(
            {
                "status": status,
                "exp": cfg.exp,
                "scale": cfg.scale,
                "task": task_name(cfg),
                "rule": rule.name,
                "workers": cfg.workers,
                "seed": cfg.seed,
                "pushes": server.pushes,
                "updates": server.t,
                "epochs": length.epoch(server.pushes),
                **record.totals(rows),
                "schedule_sha256": provenance["schedule_sha256"],
                "weights_sha256": record.weights_sha256(server.w),
            }
        )
    return path


def follow(
    steps: Iterable[Step],
    server: Server,
    task: Any,
    length: Length,
    log_every: int,
    eval_every: float,
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Drives the loop under a progress bar; yields rows, each with the delays of its pushes.

    Ends early, with the offending row, when the loss is no longer finite.
    """
    interval: list[Step] = []
    evaluating = 0.0  # seconds, left out of wall_s
    shown: dict[str, str] = {}
    start = time.perf_counter()
    often = 0.2 if sys.stderr.isatty() else 30.0  # seconds; a log file wants few lines
    with tqdm(total=length.pushes, unit="push", dynamic_ncols=True, mininterval=often) as bar:
        for step in steps:
            interval.append(step)
            bar.update()
            evaluate = length.ends(step.push, eval_every)
            if not evaluate and step.push % log_every:
                continue

            row: dict[str, Any] = {"epoch": length.epoch(step.push), **record.row(interval)}
            row["wall_s"] = time.perf_counter() - start - evaluating
            delays, interval = [s.delay for s in interval], []
            if evaluate and math.isfinite(row["train_loss"]):
                began = time.perf_counter()
                row |= task.evaluate(server.w)
                evaluating += time.perf_counter() - began
            shown |= progress(row)
            bar.set_postfix(shown, refresh=False)
            yield row, delays
            if not math.isfinite(row["train_loss"]):
                return


def progress(row: dict[str, Any]) -> dict[str, str]:
    """What the progress bar shows of a row."""
    shown = {
        "epoch": f"{row['epoch']:.2f}",
        "sim": f"{row['simulated_s']:.0f}s",
        "loss": f"{row['train_loss']:.3f}",
        "delay": f"{row['delay_mean']:.2f}",
        "dc_ratio": f"{row['dc_ratio']:.1e}",
    }
    if "test_error" in row:
        shown["test_error"] = f"{100 * row['test_error']:.2f}%"
    return shown


def set_device(cfg: DictConfig) -> torch.device:
    """The device, and torch's threads. auto is CUDA where torch sees one, else the CPU."""
    if cfg.threads is not None:
        check_whole("threads", cfg.threads)
        torch.set_num_threads(cfg.threads)
    check_choice("device", cfg.device, ("auto", "cpu", "cuda"))
    found = torch.cuda.is_available()
    if cfg.device == "cuda" and not found:
        raise BadInput("device", cfg.device, "torch sees no CUDA device here; use device=cpu")
    return torch.device("cuda" if found and cfg.device != "cpu" else "cpu")


def run_dir(cfg: DictConfig) -> Path:
    """``run_dir``, or outputs/<exp>/<time>-<hash of the config>."""
    if cfg.run_dir is not None:
        return Path(str(cfg.run_dir))
    name = cfg.exp or f"{task_name(cfg)}_{cfg.rule._target_.rsplit('.', 1)[-1].lower()}"
    return Path("outputs") / name / f"{time.strftime('%Y%m%d-%H%M%S')}-{config_hash(cfg)[:8]}"


def describe(
    cfg: DictConfig,
    rule: Any,
    length: Length,
    parameters: int,
    device: torch.device,
    path: Path,
) -> str:
    """What the run resolved to, a line for each part."""
    schedule = str(build(cfg, "schedule"))
    model = f"ResNet-{cfg.model.depth} width {cfg.model.width}, " if "model" in cfg.task else ""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    lines = {
        "rule": rule,
        "workers": f"{cfg.workers}, backup at {cfg.backup}",
        "schedule": schedule,
        "task": f"{task_name(cfg)}, {model}{parameters:,} parameters",
        "length": f"{length.epochs:g} epochs of {length.images:,} images in batches of "
        f"{length.batch}: {length.pushes:,} pushes",
        "lr": f"{cfg.lr.base:g}, x{cfg.lr.factor:g} after epochs {list(cfg.lr.milestones)}",
        "device": gpu or f"cpu, {torch.get_num_threads()} threads",
        "seed": cfg.seed,
        "run_dir": path,
    }
    return "\n".join(f"{key:9} {value}" for key, value in lines.items())


def scale_line(cfg: DictConfig) -> str:
    """Says which scale was chosen for want of one, and what the paper's run would take here."""
    device = set_device(cfg)
    seconds = seconds_per_gradient(device)
    hours = seconds * 160 * 50_000 / 128 / 3600
    found = "a CUDA device" if device.type == "cuda" else "no CUDA device"
    return (
        f"no scale given and {found}: scale={cfg.scale}. The paper's run (scale=paper) would take "
        f"about {hours:.1f} h here ({1000 * seconds:.0f} ms a ResNet-20 gradient, just measured)"
    )


def seconds_per_gradient(device: torch.device, repeats: int = 2) -> float:
    """Measured seconds of one ResNet-20 gradient on 128 images, the paper's unit of work."""
    model = ResNet(depth=20, width=16).build().to(device)
    images = torch.zeros(128, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(128, dtype=torch.long, device=device)
    start = 0.0
    for repeat in range(repeats + 1):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        loss.item()  # waits for the device
        if repeat == 0:  # the first one warms up
            start = time.perf_counter()
    return (time.perf_counter() - start) / repeats


def hparams(cfg: DictConfig) -> dict[str, Any]:
    """The config's scalars that TensorBoard's hparams table shows."""
    keys = ("workers", "seed", "batch", "epochs", "backup", "augment")
    content: dict[str, Any] = {key: cfg[key] for key in keys}
    for group in ("rule", "lr", "schedule"):
        for key, value in cfg[group].items():
            if isinstance(value, int | float | str | bool):
                content[f"{group}.{key.strip('_')}"] = value
    return content
