"""All that is to be measured where a GPU is lent, unattended: ``make gpu-session``.

Each step is a process of its own under a time limit, and leaves one small JSON file in ``--out``.
A step whose file is there is not done again; one that failed or hung leaves ``NAME.failed.txt``
with its last lines, and the others go on. ``--device cpu`` rehearses every step with a tiny network
and the tests' stand-in for a graph: such numbers mean nothing. Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dcasgd_repro import models
from dcasgd_repro.bench import parts
from dcasgd_repro.data.images import Synthetic
from dcasgd_repro.fast import graphs
from dcasgd_repro.fast.waves import Cell, replicas
from dcasgd_repro.lr import Step as Rate
from dcasgd_repro.rules import DCASGDa
from dcasgd_repro.run import experiment, read, write
from dcasgd_repro.run.device import set_device
from dcasgd_repro.run.plan import Length, Plan
from dcasgd_repro.schedule import Gamma, Generated
from dcasgd_repro.simulate import simulate
from dcasgd_repro.tasks import Classification, Classifier

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (1, 4, 8, 16)
TINY = parts.Network("tiny", 8, 2, 4)  # a rehearsal's
Found = dict[str, Any]


class Session:
    """The steps, on one device; ``cuda`` is False in a rehearsal."""

    def __init__(self, device: str, out: Path) -> None:
        self.device, self.out, self.cuda = device, out, device == "cuda"
        self.network = parts.PAPER if self.cuda else TINY

    def steps(self) -> dict[str, tuple[float, Callable[[], Found]]]:
        """Name: (seconds that it may take, what it does), in the order of the work."""
        found: dict[str, tuple[float, Callable[[], Found]]] = {
            "versions": (120, self.versions),
            "slots": (180, self.slots),
            "tests": (580, self.tests),
            "profile": (180, self.profile),
        }
        for precision in graphs.PRECISIONS:
            for last in (False, True):
                for cudnn in (False, True):
                    kernels = models.Kernels(channels_last=last, cudnn_norm=cudnn)
                    name = f"matrix-{precision}-{'nhwc' if last else 'nchw'}-"
                    name += "cudnn" if cudnn else "native"
                    found[name] = 120, self.matrix(precision, kernels)
        found |= {"resume": (300, self.resume), "update": (300, self.update)}
        found |= {"engines": (580, self.engines)}
        for name, words in {
            "prefix": ["prefix", "scale=paper", "seeds=5"],
            "table1-one-seed": ["table1", "scale=paper", "seeds=1"],
            "table1": ["table1", "scale=paper", "seeds=3"],
        }.items():
            found[name] = 580, self.reproduce(words)
        return found

    def task(self, workers: int = 8, deterministic: bool | str = "auto") -> Classifier:
        return self.network.task(set_device(self.device, deterministic=deterministic), workers)

    def machine(self, precision: str = "float32") -> graphs.Machine:
        if self.cuda:
            return graphs.CUDA(precision)
        sys.path.insert(0, str(ROOT / "tests" / "fast"))
        from test_engines import StandIn

        return StandIn()

    def versions(self) -> Found:
        """Where this is, and whether batches have the CPU's bits."""
        data = Synthetic(8, 128, 0, True, train_images=4096, test_images=64)
        pairs = zip(data.load(self.device).batch(3, 2), data.load("cpu").batch(3, 2), strict=True)
        same = all(torch.equal(mine.cpu(), theirs) for mine, theirs in pairs)
        return {**write.environment(set_device(self.device)), "batches_as_on_the_cpu": same}

    def slots(self) -> Found:
        """One graph of width 8 with one input: slots against each other, plain, and replays."""
        task = self.task(deterministic=True)
        w, batch, compute = task.initial(0), task.batch(0, 0), graphs.Captured(self.machine())
        _, right = task.gradient(w, batch)
        found = compute(task, [w] * 8, [batch] * 8)
        apart = [float((g - right).norm() / right.norm()) for _, g in found]
        equal = all(torch.equal(g, found[0][1]) for _, g in found)
        again, began = True, time.perf_counter()
        replays = 500 if self.cuda else 3
        for _ in range(replays):
            again &= torch.equal(compute(task, [w] * 8, [batch] * 8)[7][1], found[7][1])
        return {
            "slots_equal": equal,
            "from_plain": apart,
            "equal_to_plain": torch.equal(found[0][1], right),
            "replays": replays,
            "replays_equal": again,
            "seconds": time.perf_counter() - began,
            "captured": not compute.failed,
        }

    def tests(self) -> Found:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/fast"]
        if not self.cuda:
            command += ["-k", "test_gpu and (batches or width)"]
        env = {**os.environ, "DCASGD_GPU_TESTS": self.device}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        return {"code": done.returncode, "said": done.stdout.splitlines()[-40:]}

    def profile(self) -> Found:
        """Where a replay's time goes, by kernel."""
        task = self.task()
        w, compute = task.initial(0), graphs.Captured(self.machine())
        batches = [task.batch(m, 0) for m in range(8)]
        compute(task, [w] * 8, batches)
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] * self.cuda
        with torch.profiler.profile(activities=kinds) as seen:
            for _ in range(3):
                compute(task, [w] * 8, batches)
            self.wait()
        key = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        events = sorted(seen.key_averages(), key=lambda e: -getattr(e, key))[:40]
        return {"us": [[e.key[:160], e.count, getattr(e, key)] for e in events]}

    def matrix(self, precision: str, kernels: models.Kernels) -> Callable[[], Found]:
        """Milliseconds a gradient in graphs of each width, with these kernels."""

        def measure() -> Found:
            models.FORCED = kernels
            task, rows = self.task(workers=16), []
            w = task.initial(0)
            for width in WIDTHS:
                if self.cuda:
                    torch.cuda.reset_peak_memory_stats()
                compute = graphs.Captured(self.machine(precision))
                batches = [task.batch(k, 0) for k in range(width)]

                def wave(width: int = width, compute: Any = compute, batches: Any = batches) -> Any:
                    return compute(task, [w] * width, batches)

                taken = sorted(self.milliseconds(wave, 20 if self.cuda else 2))
                rows.append({
                    "width": width, "captured": not compute.failed,
                    "ms_a_gradient": taken[len(taken) // 2] / width,
                    "peak_bytes": torch.cuda.max_memory_allocated() if self.cuda else None,
                })  # fmt: skip
            return {"rows": rows}

        return measure

    def milliseconds(self, work: Callable[[], Any], rounds: int) -> Iterator[float]:
        """Of each round, after two to warm up; by CUDA's own events where there are any."""
        for k in range(rounds + 2):
            began = time.perf_counter()
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.cuda else []
            for mark in marks[:1]:
                mark.record()
            work()
            for mark in marks[1:]:
                mark.record()
            self.wait()
            if k >= 2:
                host = 1000 * (time.perf_counter() - began)
                yield marks[0].elapsed_time(marks[1]) if marks else host

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def resume(self) -> Found:
        """Hashes of a whole run and of a stopped and resumed one, plain and as graphs."""
        found: Found = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, engine in {"plain": simulate, "graphs": self.graphed}.items():
                for stops in ((), (11, 60)):
                    place = Path(folder) / f"{name}-{len(stops)}"
                    for until in (*stops, None):
                        experiment.run(self.plan(place, engine), say=lambda line: None, until=until)
                    key = f"{name}, stopped {len(stops)} times"
                    found[key] = read.Run.read(place).summary["weights_sha256"]
        return found

    def graphed(self, task: Any, server: Any, messages: Any, lr: Any) -> Iterator[Any]:
        cells = [Cell(task, server, messages, lr)]
        return (step for _, step in replicas(cells, graphs.Captured(self.machine())))

    def plan(self, folder: Path, engine: Any) -> Plan:
        one = self.network
        images = 96 * one.batch
        data = Synthetic(8, one.batch, 0, True, train_images=images, test_images=64)
        return Plan(
            rule=DCASGDa(),
            task=Classification(models.ResNet(one.depth, one.width), data),
            schedule=Generated(workers=8, seed=0, compute=Gamma(1.0, cv=0.14)),
            rate=Rate(base=0.1),
            length=Length(images=images, batch=one.batch, epochs=1),
            workers=8,
            engine=engine,
            device=self.device,
            deterministic=True,
            run_dir=folder,
        )

    def update(self) -> Found:
        """The plain and the fused update beside a copy, of 25 million parameters."""
        size = 25 if self.cuda else 1
        rounds, device = 20 if self.cuda else 2, torch.device(self.device)
        rows = parts.updates(size, rounds, device, "ratio >= 0.85")
        return {"rows": [vars(row) for row in rows]}

    def engines(self) -> Found:
        """Gradients per second of each engine at M = 1, 4, 8, 16, and of replicas."""
        if not self.cuda:
            timings, roof_of = parts.timings, parts.roof_of
            parts.PAPER = TINY
            parts.timings = lambda works, rounds, device: timings(works, 1, device)
            parts.bundle = lambda work, times: work
            parts.roof_of = lambda device, *work: roof_of(device, *work, size=256)
        device = set_device(self.device)
        return {"rows": [vars(row) for row in parts.engines_on_cuda(device)]}

    def reproduce(self, words: list[str]) -> Callable[[], Found]:
        """A study's runs, which go on where they stopped; ended only when all of them have."""

        def command() -> Found:
            means = ["engine=graphs", f"device={self.device}", *["--dry-run"] * (not self.cuda)]
            line = [sys.executable, "-m", "dcasgd_repro", "reproduce", *words, *means]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            return {"said": done.stdout.splitlines()[-40:]}

        return command


def attempt(name: str, limit: float, device: str, out: Path) -> bool:
    """One step in a process group of its own, which a hang cannot outlive."""
    line = [sys.executable, __file__, "--device", device, "--out", str(out), "--step", name]
    log = out / f"{name}.failed.txt"
    with log.open("w") as file:
        child = subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(limit)
        if child.poll() is None:
            # SIGTERM first: a study's runs then write their checkpoints.
            for number, patience in ((signal.SIGTERM, 60), (signal.SIGKILL, 5)):
                until, message = time.monotonic() + patience, int(number)
                while signalled(child.pid, message) and time.monotonic() < until:
                    message = 0  # which only asks
                    child.poll()
                    time.sleep(0.2)
            child.wait()
            file.write(f"\nended after its {limit:g} s\n")
    if child.returncode == 0:
        log.unlink()
    else:
        log.write_text("\n".join(log.read_text().splitlines()[-60:]) + "\n")
    return child.returncode == 0


def signalled(group: int, number: int) -> bool:
    """Sends a process group a signal; False where nobody is left of it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_session"))
    parser.add_argument("--step", help="only this one, in this process")
    given = parser.parse_args()
    out = given.out if given.step else given.out / given.device
    out.mkdir(parents=True, exist_ok=True)
    steps = Session(given.device, out).steps()
    if given.step:
        began = time.perf_counter()
        found = steps[given.step][1]()
        write.write_json(out / f"{given.step}.json", {
            "step": given.step, "device": given.device,
            "seconds": round(time.perf_counter() - began, 1), **found,
        })  # fmt: skip
        return 0
    failed = 0
    for name, (limit, _) in steps.items():
        if (out / f"{name}.json").exists():
            continue
        began = time.perf_counter()
        word = "done" if attempt(name, limit, given.device, out) else "FAILED"
        failed += word == "FAILED"
        print(f"{name:28} {word:7} {time.perf_counter() - began:6.1f} s", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
