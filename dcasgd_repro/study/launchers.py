"""Where a study's runs are computed: processes of this machine, a Slurm cluster, or Ray.

A launcher starts a command, its output going to a file, and gives back a handle on it. The runs
go on from their own checkpoints, so a launcher need not remember anything.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from dcasgd_repro.errors import BadInput


class Handle(Protocol):
    """A command under way."""

    def ended(self) -> bool: ...

    def stop(self, hard: bool) -> None:
        """Asks it to write its checkpoint and end, or kills it."""


class Launcher(Protocol):
    def start(self, command: Sequence[str], log: Path) -> Handle: ...


class Local:
    """Processes of this machine, each in a process group of its own: Ctrl-C reaches only us."""

    def start(self, command: Sequence[str], log: Path) -> Handle:
        with log.open("ab") as file:
            return _Process(
                subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            )


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self, hard: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            (self.process.kill if hard else self.process.terminate)()


class Slurm:
    """Slurm jobs through submitit, which must be installed (``pip install 'dcasgd-repro[slurm]'``).

    ``options`` are sbatch's: time in minutes (which must be given), partition, gres, account, or
    setup, a list of lines as [module load cuda, "export A=1,2"]. A job that reaches its time limit
    is put into the queue again, and goes on from its checkpoint.
    """

    def __init__(self, options: Mapping[str, str], cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError:
            remedy = "needs submitit: pip install 'dcasgd-repro[slurm]'"
            raise BadInput("launcher", "slurm", remedy) from None
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise BadInput("launcher", "slurm", "there is no sbatch here; log in to the cluster")
        if cluster == "slurm" and "time" not in options:
            raise BadInput("slurm.time", None, "give the minutes of a job, as in slurm.time=240")
        self.executor = submitit.AutoExecutor(
            folder="outputs/slurm", cluster=cluster, slurm_max_num_timeout=1000
        )
        self.executor.update_parameters(name="dcasgd-repro")
        given = {f"slurm_{key}": listed(key, value) for key, value in options.items()}
        try:
            self.executor.update_parameters(**given)
        except (NameError, TypeError, ValueError) as error:
            raise BadInput("slurm", dict(options), " ".join(str(error).split())) from None

    def start(self, command: Sequence[str], log: Path) -> Handle:
        return _SlurmJob(self.executor.submit(Command(command, log)))


def listed(key: str, value: str) -> str | list[str]:
    """A value as it was typed; in brackets, a list, whose parts may be quoted. Raises BadInput."""
    if not value.startswith("["):
        return value
    with contextlib.suppress(yaml.YAMLError):
        content = yaml.safe_load(value)
        if isinstance(content, list) and all(isinstance(part, str) for part in content):
            return content
    raise BadInput(f"slurm.{key}", value, "write a list as [first line, 'second, with a comma']")


class Command:
    """A command as Slurm runs it; ``checkpoint`` is what submitit calls when the time is up."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log = list(command), log.resolve()

    def __call__(self) -> int:
        with self.log.open("ab") as file:
            return subprocess.run(self.command, stdout=file, stderr=file, check=False).returncode

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(Command(self.command, self.log))


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self.job = job

    def ended(self) -> bool:
        return bool(self.job.done())

    def stop(self, hard: bool) -> None:
        self.job.cancel(check=False)  # SIGTERM first, SIGKILL after sbatch's grace


class Ray:
    """Tasks of a Ray cluster, or of this machine where there is none.

    Every node must see this folder. ``options`` are a remote task's: num_cpus, num_gpus.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        try:
            import ray
        except ImportError:
            remedy = "needs Ray: pip install 'dcasgd-repro[ray]'"
            raise BadInput("launcher", "ray", remedy) from None
        try:
            numbers = {key: float(value) for key, value in options.items()}
            self.remote = ray.remote(_follow).options(max_retries=3, **numbers)
        except ValueError as error:
            remedy = f"give numbers, as in ray.num_gpus=0.5 ({' '.join(str(error).split())})"
            raise BadInput("ray", dict(options), remedy) from None
        self.ray = ray
        ray.init(log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)

    def start(self, command: Sequence[str], log: Path) -> Handle:
        words = (list(command), str(log.resolve()), str(Path.cwd()))
        return _RayTask(self.ray, self.remote.remote(*words), log)


def _follow(command: list[str], log: str, folder: str) -> int:
    """Runs the command; passes Ray's cancellation, a KeyboardInterrupt, on to it."""
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=folder, start_new_session=True
        )
        try:
            while process.poll() is None:  # a wait() would not see the cancellation
                time.sleep(0.2)
            return process.returncode
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


class _RayTask:
    def __init__(self, ray: Any, task: Any, log: Path) -> None:
        self.ray, self.task, self.log, self.over = ray, task, log, False

    def ended(self) -> bool:
        done, _ = self.ray.wait([self.task], timeout=0)
        if done and not self.over:
            self.over = True
            try:
                self.ray.get(self.task)
            except self.ray.exceptions.RayError as error:  # a node lost, our package not there
                with self.log.open("a") as file:
                    file.write(f"\nRay: {' '.join(str(error).split())}\n")
        return bool(done)

    def stop(self, hard: bool) -> None:
        self.ray.cancel(self.task, force=hard)


def launcher(name: str, options: Mapping[str, str]) -> Launcher:
    """The launcher of that name. Raises BadInput."""
    if name == "slurm":
        return Slurm(options)
    if name == "ray":
        return Ray(options)
    if name != "local":
        raise BadInput("launcher", name, "choose local, slurm or ray")
    return Local()
