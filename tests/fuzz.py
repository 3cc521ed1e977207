"""Fuzzers: odd values on the command line, mutated checkpoints and schedule files.

``make torture`` runs 1,000 of each; the tests run a few. Every draw follows from its seed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torture

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run import checkpoint, experiment, read
from dcasgd_repro.run.plan import plan_of
from dcasgd_repro.schedule import Exponential, Generated, Schedule

ODD = [
    "-1", "0", "1", "2", "3", "4", "7", "1.5", "-0.5", "0.25", "0.9", "1.0", "1e-3", "1e400",
    "-1e400", "nan", "inf", "-inf", "abc", "''", "null", "true", "false", "[]", "[1,2]", "{a:1}",
    "???", "'${x}'", "1000000000000000000000000", "'é'", "mean", "sum", "shared", "worker", "pull",
    "push", "auto", "cpu", "never", "1_6", "'1'", "[[1]]", "[nan]", "[-1]", "batch",
    "1e300", "5e-324", "10000000",
]  # fmt: skip


def number(low: float, high: float = math.inf, ends: str = "[)") -> Callable[[str], bool]:
    def accepts(text: str) -> bool:
        with contextlib.suppress(ValueError):
            x = float(text)
            if text.lstrip("-").isdigit() and abs(x) >= 2**63:  # torch takes no such integer
                return False
            inside = low <= x <= high and math.isfinite(x)
            return inside and (ends[0] == "[" or x != low) and (ends[1] == "]" or x != high)
        return False

    return accepts


def whole(low: int, high: float = math.inf) -> Callable[[str], bool]:
    def accepts(text: str) -> bool:
        with contextlib.suppress(ValueError):
            return low <= int(text) <= high
        return False

    return accepts


def one_of(*words: str) -> Callable[[str], bool]:
    return lambda text: text in words


SMALL = [
    "task=synthetic", "images=32", "batch=2", "workers=2", "test_images=8", "epochs=0.25",
    "model.width=2", "task.stats_images=8", "task.train_images=8", "threads=1",
]  # fmt: skip
# Which values each key accepts, given SMALL; written from the documentation, not from the code.
KEYS: dict[str, tuple[list[str], Callable[[str], bool]]] = {
    "workers": ([], whole(1, 16)),
    "seed": ([], whole(0, 2**63 - 1)),
    "seeds.data": ([], whole(0, 2**63 - 1)),
    "images": ([], whole(4, 200_000)),
    "batch": ([], whole(1, 16)),
    "epochs": ([], number(0, 1e6, "()")),
    "test_images": ([], whole(1, 200_000)),
    "log_every": ([], whole(1)),
    "eval_every": ([], number(1e-6, 1e12)),
    "augment": ([], one_of("true", "false")),
    "backup": ([], one_of("pull", "push", "push_from_zero")),
    "device": ([], one_of("auto", "cpu")),
    "threads": ([], lambda t: t == "null" or whole(1, 1024)(t)),
    "resume": ([], one_of("auto", "never")),
    "checkpoint.every_s": ([], number(0)),
    "lr.base": ([], number(0, 1e30, "[]")),
    "lr.factor": ([], number(0, 10, "[]")),
    "lr.warmup": ([], number(0)),
    "lr.milestones": ([], one_of("[]", "[1,2]")),
    "rule.lam0": ([], number(0)),
    "rule.decay": ([], number(0, 1)),
    "rule.eps": ([], number(0, math.inf, "()")),
    "rule.momentum": ([], number(0, 1)),
    "rule.mean_square": ([], one_of("shared", "worker")),
    "rule.bias_correction": ([], one_of("true", "false")),
    "rule.gradient": ([], one_of("mean", "sum")),
    "rule.lam": (["rule=dcasgd_c"], number(0)),
    "rule.reduction": (["rule=ssgd"], one_of("mean", "sum")),
    "schedule.barrier": ([], one_of("true", "false")),
    "schedule.request_share": ([], number(0, 1, "[]")),
    "schedule.compute.mean_s": ([], number(1e-9, 1e9)),
    "schedule.compute.cv": ([], number(0, 5, "[]")),
    "schedule.ramp": (["schedule=heterogeneous"], number(1e-6, 1e6)),
    "schedule.straggler": (["schedule=straggler"], number(1e-6, 1e6)),
    "schedule.speeds": (
        ["schedule=heterogeneous"],
        one_of("null", "[1,2]"),
    ),
    "schedule.path": (["schedule=file"], one_of()),
    "model.depth": ([], one_of()),
    "model.width": ([], whole(1, 100)),
    "model.norm": ([], one_of("batch",)),
    "task.weight_decay": ([], number(0, 1e30, "[]")),
    "task.stats_images": ([], whole(1)),
    "task.train_images": ([], whole(1)),
    "task.statistics": ([], one_of("null", "workers")),
    "task.noise": (["task=quadratic"], number(0)),
    "task.start": (["task=quadratic"], number(-math.inf)),
    "task.curvature": (["task=quadratic"], one_of("[1,2]", "[-1]")),
    "rule": ([], one_of()),
    "schedule": ([], one_of()),
    "task": ([], one_of()),
    "scale": ([], one_of()),
    "+exp": ([], one_of("[]")),  # none, in Hydra's words
    "no.such.key": ([], one_of()),
    "rule.nothing": ([], one_of()),
}  # fmt: skip


def call(*arguments: str) -> tuple[object, str, str]:
    """One command line, in this process: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["dcasgd-repro", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code, out.getvalue(), err.getvalue()
        except BaseException as error:
            return repr(error), out.getvalue(), err.getvalue()
    return "no exit", out.getvalue(), err.getvalue()


def command_line(calls: int, seed: int) -> tuple[Counter[object], list[str]]:
    """Odd values for known and unknown keys; gives the exit codes and what went wrong."""
    rng, codes, faults = random.Random(seed), Counter(), []
    for k in range(calls):
        key = rng.choice(list(KEYS))
        value = rng.choice(ODD)
        context, accepts = KEYS[key]
        given = {a.split("=")[0] for a in (*context, f"{key}=")}
        base = [a for a in SMALL if a.split("=")[0] not in given]
        if "task=quadratic" in context:
            base = [a for a in base if not a.startswith(("model", "test_", "task."))]
        code, _, err = call("train", *base, *context, f"{key}={value}", f"run_dir=run{k}")
        codes[code] += 1
        message = f"{key}={value}: code {code}, {err.strip().splitlines()[-1:]}"
        fine = accepts(value)
        allowed = (0, 2, 3, 4) if key == "model.width" else (0, 2, 3)  # 4: out of memory
        if "Traceback" in err or code not in allowed:
            faults.append(f"fault: {message}")
        elif code == 2 and fine:
            faults.append(f"a good value refused: {message}")
        elif code != 2 and not fine:
            faults.append(f"a wrong value accepted: {message}")
        elif code == 2 and (err.count("\n") != 1 or key.lstrip("+").split(".")[-1] not in err):
            faults.append(f"not one line that names the key: {message}")
        shutil.rmtree(f"run{k}", ignore_errors=True)
    return codes, faults


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to three bytes changed, cut out or put in, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randint(1, 50)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 20))
        if not data:
            return b""
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)


def checkpoints(files: int, seed: int, place: Path) -> tuple[Counter[str], list[str]]:
    """Goes on from mutated checkpoints: refused, or equal to the uninterrupted run."""
    rng, seen, faults = random.Random(seed), Counter(), []
    few = ["rule=dcasgd_a", "epochs=0.5", "rule.mean_square=worker"]
    whole_run = experiment.run(plan_of(torture.config(few, place / "whole")), say=len)
    expected = read.Run.read(whole_run).summary["weights_sha256"]
    good = (
        (whole_run / checkpoint.NEWEST).read_bytes(),
        (whole_run / checkpoint.PREVIOUS).read_bytes(),
    )
    for k in range(files):
        run = place / f"run{k}"
        run.mkdir()
        for name in ("config.yaml", "provenance.json", "metrics.csv"):
            shutil.copyfile(whole_run / name, run / name)
        (run / checkpoint.NEWEST).write_bytes(mutated(good[0], rng))
        both = rng.random() < 0.5
        (run / checkpoint.PREVIOUS).write_bytes(mutated(good[1], rng) if both else good[1])
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                experiment.run(plan_of(torture.config(few, run)), say=len)
            same = read.Run.read(run).summary["weights_sha256"] == expected
            seen["equal" if same else "DIFFERENT"] += 1
            if not same:
                faults.append(f"checkpoint {k}: a different result")
        except BadInput as error:
            seen["refused"] += 1
            if "\n" in str(error):
                faults.append(f"checkpoint {k}: {error}")
        except Exception as error:
            faults.append(f"checkpoint {k}: {error!r}")
        shutil.rmtree(run)
    return seen, faults


def schedule_files(files: int, seed: int, place: Path) -> tuple[Counter[str], list[str]]:
    """Loads mutated schedule files: refused, or a valid log whose hash tells what it is."""
    rng, seen, faults = random.Random(seed), Counter(), []
    log = Generated(3, 0, Exponential(1.0)).messages(20)
    log.save(place / "log.csv")
    log.save(place / "log.csv.gz")
    for k in range(files):
        name = rng.choice(["log.csv", "log.csv.gz"])
        path = place / f"mutated-{name}"
        path.write_bytes(mutated((place / name).read_bytes(), rng))
        try:
            found = Schedule.load(path)
        except BadInput as error:
            seen["refused"] += 1
            if str(path) not in str(error) or "\n" in str(error):
                faults.append(f"schedule {k}: {error}")
            continue
        except Exception as error:
            faults.append(f"schedule {k}: {error!r}")
            continue
        same = len(found) == len(log) and all(
            np.array_equal(getattr(found, c), getattr(log, c)) for c in ("clock", "kind", "worker")
        )
        seen["equal" if same else "another valid log"] += 1
        if same != (found.sha256() == log.sha256()):
            faults.append(f"schedule {k}: its hash does not tell")
        if not valid(found):
            faults.append(f"schedule {k}: an invalid log accepted")
    return seen, faults


def valid(log: Schedule) -> bool:
    """The invariants, checked message by message."""
    pulled, before = dict.fromkeys(range(log.workers), False), 0.0
    for clock, kind, m in log:
        if not math.isfinite(clock) or clock < before or pulled[m] != (kind == "push"):
            return False
        pulled[m], before = kind == "pull", clock
    return len(log) > 0 and set(log.worker.tolist()) == set(range(log.workers))


def main(count: int = 1000) -> int:
    faults = []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for name in ("a", "b"):
            (Path(place) / name).mkdir()
        seen, found = schedule_files(count, 1, Path(place) / "a")
        print(f"{count} mutated schedule files: {dict(seen)}", flush=True)
        faults += found
        seen, found = checkpoints(count, 2, Path(place) / "b")
        print(f"{count} mutated checkpoints: {dict(seen)}", flush=True)
        faults += found
        codes, found = command_line(count, 3)
        print(f"{count} command lines, by exit code: {dict(codes)}", flush=True)
        faults += found
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(*map(int, sys.argv[1:])))
