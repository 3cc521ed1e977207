"""The configs: every experiment composes, runs, and leaves a complete run directory."""

import importlib.util
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run import device, experiment, plan
from dcasgd_repro.run import write as record
from dcasgd_repro.run.groups import CONF
from dcasgd_repro.run.identity import identity
from dcasgd_repro.run.plan import plan_of

EXPERIMENTS = sorted(path.stem for path in (CONF / "exp").glob("*.yaml"))
RULES = sorted(path.stem for path in (CONF / "rule").glob("*.yaml"))
ENGINES = sorted(path.stem for path in (CONF / "engine").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (CONF / "schedule").glob("*.yaml"))
THREE_PUSHES = ["task=synthetic", "images=48", "batch=2", "epochs=0.125", "test_images=8"]
FILES = [".lock", "checkpoint.pt", "config.yaml", "fingerprint.json", "metrics.csv"]
FILES += ["provenance.json", "schedule.csv.gz", "summary.json"]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return compose("config", overrides=["scale=smoke", *overrides])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_three_pushes(name: str, tmp_path: Path) -> None:
    item = "Table 2 and Figure 4" if "imagenet" in name else "Table 1 and Figure 2"
    item = "Not of the paper" if "diloco" in name else item
    assert item in (CONF / "exp" / f"{name}.yaml").read_text().splitlines()[1]
    local = ["epochs=1"] if "diloco" in name else []  # a push is of 8 mini-batches
    cfg = composed(f"+exp={name}", *THREE_PUSHES, *local, f"run_dir={tmp_path / 'run'}")
    run = experiment.run(plan_of(cfg), ["argv"], say=lambda line: None)
    assert sorted(p.name for p in run.iterdir()) == sorted([*FILES, "tensorboard"])

    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["pushes"], summary["exp"]) == ("finished", 3, name)
    assert summary["epochs"] == (1.0 if local else 0.125)
    assert all(value is not None for value in summary.values())
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["schedule_sha256"] == summary["schedule_sha256"]
    assert provenance["argv"] == ["argv"]
    resolved = OmegaConf.load(run / "config.yaml")
    assert resolved.workers == (1 if name == "cifar_sgd" else 16 if "imagenet" in name else 8)
    assert OmegaConf.to_yaml(resolved) == OmegaConf.to_yaml(cfg, resolve=True)

    metrics = pd.read_csv(run / "metrics.csv")
    assert tuple(metrics.columns) == record.COLUMNS
    assert metrics["push"].tolist() == [3]
    assert metrics["test_error"].iloc[0] == pytest.approx(summary["test_error_final"], rel=1e-8)


def test_tensorboard_holds_the_rows_and_the_hparams(tmp_path: Path) -> None:
    cfg = composed("+exp=cifar_dc", "task=synthetic", f"run_dir={tmp_path / 'run'}", "epochs=1",
                   "probe.batch_error_every=9")  # fmt: skip
    run = experiment.run(plan_of(cfg), say=lambda line: None)
    board = run / "tensorboard" / "dcasgd_a-M8-seed0"
    assert [p.is_file() for p in board.iterdir()] == [True]  # no sub-run
    events = EventAccumulator(str(board)).Reload()
    metrics = pd.read_csv(run / "metrics.csv")
    for tag, key in record.TENSORBOARD.items():
        rows = metrics.dropna(subset=[key])
        scalars = events.Scalars(tag)
        assert [e.step for e in scalars] == rows["push"].tolist(), tag
        assert [e.value for e in scalars] == pytest.approx(rows[key].tolist(), rel=1e-6), tag
    (histogram,) = events.Histograms("delay/histogram")
    assert histogram.histogram_value.num == 64
    assert "_hparams_/experiment" in events.summary_metadata
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert "_hparams_/session_end_info" in events.summary_metadata
    assert metrics["dc_ratio"].iloc[-1] > 0


@pytest.mark.parametrize(
    ("rule", "barrier"),
    [*((rule, False) for rule in RULES), ("asgd", True), ("dcasgd_a", True), ("ssgd", True)],
)
def test_every_rule_on_the_quadratic(rule: str, barrier: bool, tmp_path: Path) -> None:
    cfg = composed(
        "task=quadratic", f"rule={rule}", f"schedule.barrier={barrier}", "workers=4",
        f"run_dir={tmp_path / 'run'}", "images=64", "batch=1", "lr.base=0.05", "backup=push",
    )  # fmt: skip
    summary = json.loads((experiment.run(plan_of(cfg), say=len) / "summary.json").read_text())
    assert summary["status"] == "finished"
    # f(w_0) = 0.55; 128 pushes, or twelve updates of FedBuff.
    assert summary["test_loss_final"] < 0.55 / (1.7 if rule == "fedbuff" else 2)
    assert summary["test_error_final"] is None


NEED_A_FILE = {"file", "delays", "from_run"}


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {*NEED_A_FILE, "sequential", "live"}))
def test_every_schedule_gives_the_pushes_asked_for(name: str) -> None:
    log = plan.log_of(composed(f"schedule={name}", "workers=8"), 100)
    assert (log.pushes, log.workers) == (100, 8)


def test_each_seed_moves_its_own_stream(tmp_path: Path) -> None:
    def numbers(k: int, *overrides: str) -> tuple[object, ...]:
        cfg = composed("task=synthetic", *THREE_PUSHES, *overrides, f"run_dir={tmp_path / str(k)}")
        task = plan.build(cfg, "task").on(
            device.set_device(cfg.device, cfg.threads, cfg.deterministic)
        )
        w = record.weights_sha256(task.initial(cfg.seeds.initial))
        batch = task.batch(0, 0).images.sum().item()
        return w, batch, plan.log_of(cfg, 10).sha256()

    base = numbers(0)
    for k, name in enumerate(("initial", "data", "schedule")):
        moved = numbers(k + 1, f"seeds.{name}=5")
        assert [a != b for a, b in zip(base, moved, strict=True)] == [i == k for i in range(3)]
    assert all(a != b for a, b in zip(base, numbers(4, "seed=5"), strict=True))


@pytest.mark.parametrize(("given", "exact"), [("auto", True), ("true", True), ("false", False)])
def test_determinism_is_asked_of_torch(given: str, exact: bool) -> None:
    try:
        device.set_device("cpu", None, composed(f"deterministic={given}").deterministic)
        assert torch.are_deterministic_algorithms_enabled() is exact
        assert torch.utils.deterministic.fill_uninitialized_memory is False
    finally:
        torch.set_deterministic_debug_mode("default")


@pytest.mark.parametrize("name", sorted(set(ENGINES) - {"ray"}))
def test_every_engine_runs_from_its_config(name: str, tmp_path: Path) -> None:
    def weights(engine: str) -> str:
        cfg = composed(
            "task=synthetic", *THREE_PUSHES, f"engine={engine}", f"run_dir={tmp_path / engine}"
        )
        run = experiment.run(plan_of(cfg), say=lambda line: None)
        return json.loads((run / "summary.json").read_text())["weights_sha256"]

    same = weights(name) == weights("plain")
    assert same or name == "waves"  # a batched operation may sum in another order


def test_the_laptop_scale_computes_gradients_side_by_side() -> None:
    assert composed("scale=laptop").engine._target_.endswith(".Threads")
    assert composed("scale=laptop", "engine=plain").engine._target_.endswith(".simulate")
    assert composed("scale=paper").engine._target_.endswith(".simulate")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("engine.slots=0", "engine.slots=0: give a whole number"),
        ("engine.slots=two", "engine.slots=two: give a whole number"),
        ("fused=maybe", "fused=maybe: choose"),
    ],
)
def test_a_bad_engine_is_refused_before_anything_is_written(
    override: str, text: str, tmp_path: Path
) -> None:
    cfg = composed("task=synthetic", "engine=threads", override, f"run_dir={tmp_path / 'x'}")
    with pytest.raises(BadInput, match=re.escape(text)):
        experiment.run(plan_of(cfg), say=lambda line: None)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["engine=ray"], "schedule=generated: engine=ray and schedule=live go together: give both"),
        (["schedule=live"], "schedule=live: engine=ray and schedule=live go together: give both"),
        (["engine=ray", "schedule=live", "fused=true"], "fused=True: the server of engine=ray has"),
        (["engine=ray", "schedule=live", "engine.slow={1: 0.5}"], "engine.slow=0.5: give a finite"),
        (["engine=ray", "schedule=live", "engine.slow=3"], "engine.slow=3: give {worker: factor}"),
        (["engine=ray", "engine.gpus_per_worker=-1"], "engine.gpus_per_worker=-1: give a finite"),
    ],
)
def test_a_real_run_is_refused_before_anything_is_written(
    overrides: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ray")
    cfg = composed("task=synthetic", *overrides, f"run_dir={tmp_path / 'x'}")
    with pytest.raises(BadInput, match=re.escape(text)):
        experiment.run(plan_of(cfg), say=lambda line: None)
    assert not (tmp_path / "x").exists()


def test_a_real_run_without_ray_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"^engine=ray: needs Ray: pip install 'dcasgd-repro\[ray\]"):
        plan_of(composed("task=synthetic", "engine=ray", "schedule=live"))


def test_a_live_schedule_has_no_messages_to_show() -> None:
    with pytest.raises(BadInput, match=r"^schedule=live: a cluster makes it as it runs"):
        plan.log_of(composed("task=synthetic", "schedule=live"), 10)


@pytest.mark.parametrize("given", ["true", "false"])
def test_fused_reaches_the_server(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = []
    monkeypatch.setattr(experiment, "fuse", fused.append)
    cfg = composed("task=synthetic", *THREE_PUSHES, f"fused={given}", f"run_dir={tmp_path / 'x'}")
    experiment.run(plan_of(cfg), say=lambda line: None)
    assert [server.pushes for server in fused] == ([3] if given == "true" else [])


def test_lengths() -> None:
    paper = plan.Length(images=50_000, batch=128, epochs=160)
    assert paper.pushes == 62_500
    assert paper.epoch(62_500) == 160
    ends = [p for p in range(1, 62_501) if paper.ends(p, 1)]
    assert len(ends) == 160
    assert ends[:3] == [391, 782, 1172]  # ceil(k * 390.625)
    odd = plan.Length(images=100, batch=30, epochs=1.0)
    assert [p for p in range(1, odd.pushes + 1) if odd.ends(p, 0.5)] == [2, 4]


def test_the_learning_rate_follows_the_epochs(tmp_path: Path) -> None:
    cfg = composed(
        "task=synthetic", "images=64", "batch=8", "epochs=4", "lr.milestones=[1,2.5]",
        "log_every=1", "test_images=8", f"run_dir={tmp_path / 'run'}", "lr.warmup=0.5",
        "lr.start=0.5", "workers=2",
    )  # fmt: skip
    rates = pd.read_csv(experiment.run(plan_of(cfg), say=len) / "metrics.csv")["lr"]
    epochs = [p / 8 for p in range(32)]
    warm = [0.5 + 0.5 * e / 0.5 if e < 0.5 else 1 for e in epochs]
    step = [1 if e < 1 else 0.1 if e < 2.5 else 0.01 for e in epochs]
    assert rates.tolist() == pytest.approx(
        [0.1 * a * b for a, b in zip(warm, step, strict=True)], rel=1e-8
    )


def test_divergence_ends_the_run_and_says_so(tmp_path: Path) -> None:
    cfg = composed("task=quadratic", "lr.base=1e30", "batch=1", f"run_dir={tmp_path / 'run'}")
    summary = json.loads((experiment.run(plan_of(cfg), say=len) / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert summary["pushes"] == 50  # the first row that shows it


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workers=0", "workers=0: give a whole number >= 1"),
        ("lr.base=fast", "lr.base=fast: give a finite number >= 0"),
        ("rule.lam0=nan", "rule.lam0=nan: give a finite number >= 0"),
        ("batch=512", "batch=512: give at most 128"),
        ("schedule.compute.cv=-1", "schedule.compute.cv=-1: "),
        ("device=tpu", "device=tpu: choose auto, cpu or cuda"),
        ("task.weight_decay=-1", "task.weight_decay=-1: "),
        ("model.depth=9", "model.depth=9: "),
        ("seeds.data=-1", "seeds.data=-1: "),
        ("images=0", "images=0: "),
        ("threads=0", "threads=0: "),
        ("task.stats_images=0", "task.stats_images=0: "),
        ("+rule.speed=3", "rule.speed=3: DCASGDa has no such key"),
        ("rule.lam0=???", "rule.lam0=???: this key needs a value"),
        ("batch=???", "batch=???: this key needs a value"),
    ],
)
def test_bad_values_are_refused_under_the_key_that_was_typed(
    override: str, message: str, tmp_path: Path
) -> None:
    cfg = composed("task=synthetic", override, f"run_dir={tmp_path / 'run'}")
    with pytest.raises(BadInput) as caught:
        experiment.run(plan_of(cfg), say=len)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["cifar10", "synthetic"])
def test_another_network_is_one_word(task: str) -> None:
    default = composed(f"task={task}").task.model
    assert OmegaConf.to_container(default, resolve=True) == {
        "_target_": "dcasgd_repro.models.ResNet", "depth": 8, "width": 4, "norm": "batch",
        "classes": None,
    }  # fmt: skip
    assert composed(f"task={task}", "model.depth=20").task.model.depth == 20
    other = composed(f"task={task}", "model=resnet50").task.model
    assert OmegaConf.to_container(other) == {
        "_target_": "dcasgd_repro.models.ResNet50", "classes": 10,
    }  # fmt: skip
    assert str(plan.build(composed(f"task={task}", "model=resnet50"), "task").model) == "ResNet-50"


def test_tasks_choose_their_network_and_the_quadratic_has_none() -> None:
    imagenet = composed("+exp=imagenet_dc").task.model
    assert imagenet == {"_target_": "dcasgd_repro.models.ResNet50", "classes": 1000}
    other = composed("+exp=imagenet_dc", "model=resnet").task.model
    assert (other._target_, other.depth) == ("dcasgd_repro.models.ResNet", 8)
    assert "model" not in composed("task=quadratic").task


@pytest.mark.parametrize(
    ("words", "before"),
    [
        (["+exp=cifar_dc", "scale=paper"], "4996605187a7e861"),
        (["+exp=imagenet_ssgd", "scale=imagenet"], "a0b7167eb4b11dc9"),
    ],
)
def test_a_run_is_what_it_was_before_there_was_a_group_of_networks(
    words: list[str], before: str
) -> None:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        cfg = compose("config", overrides=words)
    assert identity(plan.plain_config(cfg))[:16] == before
