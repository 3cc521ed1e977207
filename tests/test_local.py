"""Local steps: closed forms, one step to the bit, engines, resumption, epochs, refusals."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from dcasgd_repro import lr
from dcasgd_repro.data.images import Synthetic
from dcasgd_repro.errors import BadInput
from dcasgd_repro.fast import graphs
from dcasgd_repro.fast.threads import Threads
from dcasgd_repro.fast.waves import Cell, Waves, replicas
from dcasgd_repro.local import LocalSteps
from dcasgd_repro.models import ResNet
from dcasgd_repro.rules import ASGD, DCASGDa
from dcasgd_repro.run import experiment, identity, read
from dcasgd_repro.run.plan import Length, Plan, log_of, plan_of
from dcasgd_repro.schedule import Constant, ConstantDelay, Gamma, Generated, stepping
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Classification, Quadratic

CPU = torch.device("cpu")
DATA = Synthetic(2, batch=4, seed=0, augment=True, train_images=32, test_images=8)
NETWORK = Classification(ResNet(8, 2), DATA, weight_decay=0.01, stats_images=8, train_images=8)
SMALL = ["scale=smoke", "task=synthetic", "images=64", "batch=4", "test_images=8", "workers=2"]
SMALL += ["epochs=1", "model.width=2", "threads=1", "task.stats_images=8", "task.train_images=8"]


def composed(*words: str) -> Any:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return compose("config", overrides=[*SMALL, *words])


def trained(path: Path, *words: str, until: int | None = None) -> dict[str, Any]:
    plan = plan_of(composed(*words, f"run_dir={path}"))
    return read.summary_of(experiment.run(plan, say=lambda line: None, until=until))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_closed_form_on_the_quadratic(steps: int) -> None:
    h, eta, w = torch.tensor([1.0, 0.1, 0.0]).double(), 0.3, torch.tensor([2.0, -1.0, 3.0]).double()
    task = LocalSteps(Quadratic(h.tolist()).on(CPU), steps, eta)
    loss, g = task.gradient(w, task.batch(0, 0))
    shrunk = (1 - eta * h) ** steps
    torch.testing.assert_close(g, w * (1 - shrunk) / eta, rtol=1e-13, atol=1e-15)
    at = [0.5 * float((h * (w * (1 - eta * h) ** j) ** 2).sum()) for j in range(steps)]
    assert loss.item() == pytest.approx(sum(at) / steps, rel=1e-13)


def test_asgd_at_the_local_rate_adds_the_workers_whole_move() -> None:
    """One worker, eta = eta_local: T pushes of H steps are T H steps of SGD."""
    quadratic = Quadratic((1.0, 0.1), noise=0.2).on(CPU)
    several = Server(ASGD(), quadratic.initial(0), 1)
    log = Generated(1, 0, Constant(1.0)).messages(6)
    losses = [s.loss for s in simulate(LocalSteps(quadratic, 3, 0.1), several, log, lambda t: 0.1)]
    one = Server(ASGD(), quadratic.initial(0), 1)
    log = Generated(1, 0, Constant(1.0)).messages(18)
    each = torch.stack([s.loss for s in simulate(quadratic, one, log, lambda t: 0.1)])
    torch.testing.assert_close(several.w, one.w, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.stack(losses), each.view(6, 3).mean(1), rtol=1e-12, atol=0)


def test_a_push_holds_the_mini_batches_from_k_h_on() -> None:
    task = NETWORK.on(CPU)
    batch = LocalSteps(task, 3, 0.1).batch(1, 2)  # beyond an epoch of 4 mini-batches
    each = [task.batch(1, k) for k in (6, 7, 8)]
    assert len(batch) == 6
    for mine, theirs in zip(batch, [x for part in each for x in part], strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("leaf", [NETWORK, Quadratic((1.0, 0.1), noise=0.1)], ids=["net", "quad"])
def test_one_step_is_the_task_to_the_bit(leaf: Any) -> None:
    task, one = leaf.on(CPU), LocalSteps(leaf, 1, 0.1).on(CPU)
    w = one.initial(3)
    assert torch.equal(w, task.initial(3))
    for k in range(3):
        found, plain = (t.gradient(w, t.batch(1, k)) for t in (one, task))
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert one.evaluate(w, []) == task.evaluate(w, [])
    assert one.md5 == task.md5


@pytest.mark.parametrize("words", [[], ["task=quadratic"]], ids=["net", "quad"])
def test_a_run_of_one_local_step_has_todays_bits(words: list[str], tmp_path: Path) -> None:
    small = [w for w in SMALL if not (words and w.startswith(("task", "model", "test_images")))]
    plans = []
    for extra in ([], ["task.local_steps=1"], ["task.local_steps=1", "task.local_lr=7"]):
        with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
            cfg = compose("config", overrides=[*small, *words, *extra])
        plans.append(replace(plan_of(cfg), run_dir=tmp_path / str(len(plans))))
    runs = [experiment.run(plan, say=lambda line: None) for plan in plans]
    assert len({read.summary_of(run)["weights_sha256"] for run in runs}) == 1
    assert len({(run / "fingerprint.json").read_text() for run in runs}) == 1
    assert len({type(plan.task) for plan in plans} - {LocalSteps}) == 1


def test_a_run_without_the_keys_is_what_it_was() -> None:
    cfg = composed()
    new = plan_of(cfg).config
    old = {**new, "task": {k: v for k, v in new["task"].items() if not k.startswith("local")}}
    assert new["task"]["local_steps"] is None
    assert identity.config_hash(new) == identity.config_hash(old)
    assert identity.identity(new) == identity.identity(old)
    several = plan_of(composed("task.local_steps=2")).config
    assert identity.identity(several) != identity.identity(new)


def captured(task: Any, server: Server, messages: Any, rate: Callable[[int], float]) -> Any:
    class Machine:
        def precise(self) -> Any:
            return torch.enable_grad()

        def warm(self, work: Callable[[], None]) -> None:
            work()

        def capture(self, work: Callable[[], None]) -> Callable[[], None]:
            return work

        def fork(self, works: Any) -> None:
            for work in works:
                work()

    compute = graphs.Captured(Machine())
    return (step for _, step in replicas([Cell(task, server, messages, rate)], compute))


ENGINES = {"waves": Waves(), "threads": Threads(slots=2), "graphs": captured}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("leaf", [NETWORK, Quadratic((1.0, 0.1), noise=0.1)], ids=["net", "quad"])
def test_engines_give_the_plain_loops_steps(engine: str, leaf: Any) -> None:
    log = Generated(2, 0, Gamma(1.0, 0.5)).messages(8)
    ends = []
    for play in (simulate, ENGINES[engine]):
        task = LocalSteps(leaf, 3, 0.05).on(CPU, torch.float64)
        server = Server(DCASGDa(), task.initial(1), 2)
        ends.append(([step.loss for step in play(task, server, log, lambda t: 0.05)], server.w))
    (plain, w), (found, other) = ends
    torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(other, w, rtol=1e-11, atol=1e-12)


def test_the_loss_of_a_wave_has_the_pseudo_gradient() -> None:
    task = LocalSteps(NETWORK, 3, 0.1).on(CPU, torch.float64)
    w, batch = task.initial(0), task.batch(0, 1)
    loss, g = task.gradient(w, batch)
    derived, value = torch.func.grad_and_value(task.loss)(w, batch)
    torch.testing.assert_close(derived, g, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(value, loss, rtol=1e-13, atol=0)
    assert task.same_loss == copy.copy(task).same_loss != replace(task, local_lr=0.2).same_loss
    assert copy.copy(task).module is not task.module


def test_a_batch_error_is_that_of_the_batches_as_they_train() -> None:
    task = NETWORK.on(CPU, torch.float64)
    several = LocalSteps(task, 2, 0.1)
    w = task.initial(0)
    _, g = task.gradient(w, task.batch(0, 2))
    each = task.batch_error(w, task.batch(0, 2)), task.batch_error(w - 0.1 * g, task.batch(0, 3))
    assert several.batch_error(w, several.batch(0, 1)) == pytest.approx(sum(each) / 2)
    assert not hasattr(LocalSteps(Quadratic(), 2, 0.1).on(CPU), "batch_error")


def test_a_leaf_is_copied_and_pickled() -> None:
    leaf = LocalSteps(NETWORK, 2, 0.1)
    assert pickle.loads(pickle.dumps(leaf)) == copy.deepcopy(leaf) == leaf
    assert leaf.data is DATA


LOCAL = ["task.local_steps=2", "task.local_lr=0.05"]


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    words = [*LOCAL, "probe.batch_error_every=3", "probe.every=2"]
    whole = trained(tmp_path / "whole", *words)
    assert trained(tmp_path / "cut", *words, until=3)["status"] == "interrupted"
    again = trained(tmp_path / "cut", *words)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert (tmp_path / "cut" / "probe.csv").read_text() == (
        tmp_path / "whole" / "probe.csv"
    ).read_text()


def test_epochs_count_the_images_of_every_local_step(tmp_path: Path) -> None:
    summary = trained(tmp_path / "a", *LOCAL, "epochs=2", "log_every=4")
    assert (summary["pushes"], summary["epochs"]) == (16, 2.0)  # 2 x 64 / (4 x 2)
    run = read.Run.read(tmp_path / "a")
    assert run.metrics["epoch"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert identity.images_a_push(run.config) == 8
    assert replace(run, until=1.0).finished
    assert "missing" not in (tmp_path / "a" / "fingerprint.json").read_text()
    (tmp_path / "a" / "schedule.csv.gz").unlink()
    assert read.log_of(tmp_path / "a", summary["schedule_sha256"]) is not None


RATES = {"delayed_nesterov": 0.05, "heloco": 0.05, "fedbuff": 0.5, "fedasync": 0.05}


@pytest.mark.parametrize("rule", RATES)
def test_rules_for_pseudo_gradients_train_with_four_local_steps(rule: str, tmp_path: Path) -> None:
    words = ["task=quadratic", "batch=1", "images=960", "workers=4", "epochs=1", f"rule={rule}"]
    words += ["scale=smoke", "task.local_steps=4", "task.local_lr=0.2", "lr.milestones=[]"]
    words += [f"lr.base={RATES[rule]}", f"run_dir={tmp_path / 'a'}"]
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        plan = plan_of(compose("config", overrides=words))
    summary = read.summary_of(experiment.run(plan, say=lambda line: None))
    assert (summary["status"], summary["pushes"]) == ("finished", 240)
    assert summary["test_loss_final"] < 0.1 * 0.55  # of f(w_0)


def test_a_push_takes_the_time_of_its_local_steps_and_communicates_once() -> None:
    workers = Generated(2, 3, Gamma(1.0, 0.5), Constant(0.25))
    several = stepping(workers, 4).messages(20)
    lone = Generated(1, 3, Gamma(1.0, 0.5)).messages(80)
    ends = lone.clock[lone.kind == 1][3::4]  # of worker 0's fourth, eighth, ... gradient
    mine = several.clock[(several.kind == 1) & (several.worker == 0)]
    travelled = 0.25 * (1 + torch.arange(len(mine)).numpy())
    assert mine.tolist() == pytest.approx((ends[: len(mine)] + travelled).tolist())
    log = log_of(composed("schedule=constant_delay", "workers=8", "task.local_steps=4"), 9)
    assert log.sha256() == ConstantDelay(7, 8).messages(9).sha256()
    quick, slow = (log_of(composed(*words), 40).duration_s for words in ([], LOCAL))
    # A cycle takes 85.5 ms of computing and 52 ms on the way.
    assert slow / quick == pytest.approx((2 * 85.5 + 52) / (85.5 + 52), rel=0.05)


def test_without_a_rate_of_its_own_it_is_that_of_the_run() -> None:
    assert plan_of(composed("task.local_steps=2", "lr.base=0.3")).task.local_lr == 0.3


def test_from_python_it_is_the_run_of_the_same_config() -> None:
    words = ["task=quadratic", *LOCAL, "schedule=gamma", "batch=1", "images=64", "workers=2"]
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        theirs = plan_of(compose("config", overrides=["scale=smoke", *words, "epochs=1"]))
    mine = Plan(
        rule=theirs.rule,
        task=LocalSteps(theirs.task.task, 2, 0.05),
        schedule=theirs.schedule,
        rate=lr.Step(0.1),
        length=Length(64, 1, 1, local_steps=2),
        workers=2,
    )
    assert mine.log().sha256() == theirs.log().sha256()
    ours = {k: v for k, v in identity.flat(mine.config).items() if k.startswith("task.")}
    assert ours["task.local_steps"] == 2
    assert identity.task_name(mine.config) == "quadratic"
    with pytest.raises(BadInput, match=r"^task.local_steps=2: the plan has 1; make both the same"):
        replace(mine, length=Length(64, 1, 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.local_steps=0"], "task.local_steps=0: give a whole number >= 1"),
        (["task.local_steps=-1"], "task.local_steps=-1: give a whole number >= 1"),
        (["task.local_steps=1.5"], "task.local_steps=1.5: give a whole number >= 1"),
        (["task.local_steps=true"], "task.local_steps=True: give a whole number >= 1"),
        (["task.local_lr=0.1"], "task.local_lr=0.1: is read with task.local_steps=H only"),
        *[
            ([LOCAL[0], f"task.local_lr={bad}"], f"task.local_lr={bad}: give a finite number > 0")
            for bad in ("0", "-0.1", "nan", "x")
        ],
    ],
)
def test_nonsense_is_refused_under_its_key(words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}"):
        plan_of(composed(*words))
