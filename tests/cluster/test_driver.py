"""What the driver does with Ray's answers, on a Ray of paper: no process is started."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dcasgd_repro.cluster import ray as engine
from dcasgd_repro.cluster.place import place
from dcasgd_repro.cluster.protocol import Patience
from dcasgd_repro.errors import BadInput, Failure
from dcasgd_repro.lr import Step
from dcasgd_repro.rules import ASGD
from dcasgd_repro.run.experiment import run
from dcasgd_repro.run.plan import Length, Plan
from dcasgd_repro.run.read import summary_of
from dcasgd_repro.schedule import Constant, Generated, Live, Recording, Schedule
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Quadratic


class RayActorError(Exception):
    pass


class OutOfMemoryError(Exception):
    pass


class Handle:
    """An actor whose every call answers at once, or never (``silent``)."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: Call(self.answers.get(name)))


class Call:
    def __init__(self, answer: Any) -> None:
        self.answer = answer


SILENT = object()


def wait(calls: list[Call], num_returns: int = 1, timeout: float = 0) -> tuple[list[Call], None]:
    return [call for call in calls if call.answer is not SILENT], None


def get(call: Call) -> Any:
    if isinstance(call.answer, Exception):
        raise call.answer
    return call.answer


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> engine.Cluster:
    exceptions = ModuleType("ray.exceptions")
    exceptions.RayActorError, exceptions.OutOfMemoryError = RayActorError, OutOfMemoryError
    exceptions.RayTaskError = type("RayTaskError", (Exception,), {})
    ray = ModuleType("ray")
    ray.exceptions = exceptions
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    made = object.__new__(engine.Cluster)
    made.ray = SimpleNamespace(exceptions=exceptions, wait=wait, get=get, kill=lambda actor: None)
    made.recording = Recording(Live(2).messages(9), 9)
    made.server = SimpleNamespace(pushes=0, batches=[0, 0])
    made.began, made.servers, made.server_deaths = None, 1, 0
    made.incarnation, made.deaths, made.received = [1, 1], [0, 0], [0, 0]
    made.patience, made.places = Patience(), {}
    made.leaf, made.keeper = None, Handle({"take": SILENT})
    made.workers = [Handle({"work": SILENT}) for _ in range(2)]
    made.working = {Call(SILENT): (m, 1) for m in range(2)}
    made._worker = lambda m: Handle({"work": SILENT})
    return made


@pytest.mark.parametrize(
    ("error", "event"),
    [(RayActorError("x"), "worker lost"), (OutOfMemoryError("x"), "worker lost: out of memory")],
)
def test_a_worker_that_is_lost_is_started_again(
    driver: engine.Cluster, error: Exception, event: str
) -> None:
    old = driver.workers[1]
    driver.working = {Call(SILENT): (0, 1), Call(error): (1, 1)}
    driver._tend()
    assert [(e.event, e.worker) for e in driver.recording.events] == [(event, 1)]
    assert driver.workers[1] is not old
    assert (driver.incarnation, driver.deaths) == ([1, 2], [0, 1])
    assert sorted(driver.working.values()) == [(0, 1), (1, 1)]


def test_memory_that_is_always_exhausted_ends_the_run_in_one_line(driver: engine.Cluster) -> None:
    for _ in range(engine.GIVE_UP - 1):
        driver.working = {Call(OutOfMemoryError("many words\nset so and so")): (1, 1)}
        driver._tend()
    driver.working = {Call(OutOfMemoryError("many words\nset so and so")): (1, 1)}
    with pytest.raises(Failure, match=r"^worker 1 died 5 times .*; the last time: set so and so$"):
        driver._tend()


def test_a_run_that_is_to_stop_waits_for_no_push_and_no_server(driver: engine.Cluster) -> None:
    """Neither a silent server nor workers that compute for hours hold it up."""
    asked: list[int] = []
    driver.recording.stopping = lambda: bool(asked.append(1)) or len(asked) > 3
    assert list(driver.lines()) == []
    driver.keeper, asked[:] = Handle({"take": []}), []
    assert list(driver.lines()) == []


def test_a_worker_on_another_processor_is_noted(driver: engine.Cluster) -> None:
    driver.places = {Call(place()): 0, Call("another, AVX2, torch 1"): 1, Call(SILENT): 0}
    driver._tend()
    assert [(e.event, e.worker) for e in driver.recording.events] == [
        ("on another processor: another, AVX2, torch 1", 1)
    ]
    assert list(driver.places.values()) == [0]


def live(run_dir: Path, workers: int, engine: Any) -> Plan:
    """Twenty pushes of a quadratic, by workers that an engine has."""
    return Plan(
        rule=ASGD(),
        task=Quadratic((1.0, 0.1)),
        schedule=Live(workers),
        rate=Step(base=0.05, milestones=[]),
        length=Length(images=20, batch=1, epochs=1),
        workers=workers,
        engine=engine,
        run_dir=run_dir,
    )


def test_what_cannot_run_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name)
    plan = live(tmp_path / "run", 2, engine.Ray(slow={2: 3.0}))
    with pytest.raises(BadInput, match=r"^engine.slow=\{2: 3.0\}: workers=2 have the numbers 0 to"):
        run(plan, say=lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pushes", [0, 3])
def test_a_live_run_stopped_between_two_pushes_goes_on(tmp_path: Path, pushes: int) -> None:
    """The signal comes while workers compute: pulls were recorded, and no push since."""

    class Stopped:
        """Not Ray: it makes ``pushes`` pushes of worker 0, and one pull more, then is signalled."""

        live, signalled = True, True

        def check(self, task: Any, server: Server) -> None:
            pass

        def __call__(self, task: Any, server: Server, messages: Recording, lr: Any) -> Any:
            log = Generated(1, 0, Constant(1.0)).messages(messages.pushes)
            done = 2 * server.pushes

            def told() -> Any:
                for message in list(log)[done:]:
                    if self.signalled and server.pushes == pushes and message.kind == "push":
                        os.kill(os.getpid(), signal.SIGINT)
                        assert messages.stopping()
                        return
                    messages.append(message)
                    yield message

            return simulate(task, server, told(), lr)

    plan = live(tmp_path / "run", 1, Stopped())
    summary = summary_of(run(plan, say=lambda line: None))
    assert (summary["status"], summary["pushes"]) == ("interrupted", pushes)
    assert summary["stopped_by"] == "SIGINT"
    Stopped.signalled = False
    summary = summary_of(run(plan, say=lambda line: None))
    assert (summary["status"], summary["pushes"]) == ("finished", 20)
    log = Schedule.load(tmp_path / "run" / "schedule.csv.gz")
    assert log.sha256() == Generated(1, 0, Constant(1.0)).messages(20).sha256()
