"""Kept runs made again: three small ones anywhere, three of results/ where CIFAR-10 is.

Those in tests/golden/kept are like the runs in results/, but need no data set. Their provenance
says by which command each was made; what `dcasgd-repro report RUN --out FOLDER` copies is kept.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from dcasgd_repro import models
from dcasgd_repro.cli import commands as cli
from dcasgd_repro.data import fetch, images
from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import SSGD, Arrival, DCASGDa, DCASGDc, Rule
from dcasgd_repro.run import experiment, fingerprint, read
from dcasgd_repro.run.plan import build, plan_of
from dcasgd_repro.run.verify import mark, verify
from dcasgd_repro.run.write import environment
from dcasgd_repro.schedule import PUSH, Gamma, Generated, Schedule
from dcasgd_repro.schedule.live import EVENTS, Event
from dcasgd_repro.study import grid, pages, runs
from dcasgd_repro.tasks import QuadraticTask

KEPT = Path(__file__).parents[1] / "golden" / "kept"
SMALL = sorted(KEPT.iterdir())
RESULTS = Path(__file__).parents[2] / "results"
HEAD = (KEPT / "quadratic" / "metrics.csv").read_text().splitlines()[0]
ALL = sorted(path.parent for path in RESULTS.glob("*/*/runs/*/fingerprint.json"))
REAL = [f"table1_cifar10/laptop/runs/{name}-seed0" for name in ("sgd", "ssgd-4", "dcasgd_a-8")]


def says(path: Path, **changes: Any) -> str:
    """In what a kept run's first pushes are others here."""
    cfg = OmegaConf.create(read.config_of(path))
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    plan = plan_of(cfg)
    here = fingerprint.fingerprint(plan, plan.log(), plan.task.on(torch.device("cpu")))
    kept = read.fingerprint_of(path)
    assert kept is not None
    return fingerprint.disagreement(kept, here)


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.name)
def test_a_kept_run_verifies(path: Path) -> None:
    message, same = verify(path)
    assert same, message
    assert re.match(
        rf"{path}: 16 pushes in float64 equal within 1e-09; \d+ pushes in float3", message
    )


@pytest.mark.parametrize("name", REAL)
def test_a_run_of_results_verifies(name: str) -> None:
    if not fetch._present(fetch.home()):
        pytest.skip("needs CIFAR-10, which tests do not fetch")
    message, same = verify(RESULTS / name)
    assert same, message


def test_every_run_of_results_has_a_fingerprint_of_its_own_schedule() -> None:
    """Without data: the schedule of each is made again. The losses need CIFAR-10."""
    assert len(ALL) == len(list(RESULTS.glob("*/*/runs/*/config.yaml"))) >= 210
    made: dict[str, Schedule] = {}
    for path in ALL:
        kept, cfg = read.fingerprint_of(path), OmegaConf.create(read.config_of(path))
        assert kept is not None
        assert "missing" not in kept, path
        pushes = len(kept["steps"])
        assert pushes == max(16, cfg.workers + 8)
        key = f"{cfg.schedule} {pushes}"
        log = made.setdefault(key, build(cfg, "schedule").messages(pushes))
        assert kept["schedule_sha256"] == fingerprint.order_sha256(log), path
        clocks = [step[0] for step in kept["steps"]]
        np.testing.assert_allclose(clocks, log.clock[log.kind == PUSH], rtol=1e-9)


def changed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, to: Callable[..., Any]) -> None:
    """``to`` is given the original before its arguments."""
    before = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: to(before, *a, **k))


def stronger(before: Any, rule: Rule, arrival: Arrival, state: Any) -> Any:
    """Compensation, or a mean, larger by a millionth."""
    made = before(rule, arrival, state)
    return made if made.step is None else made._replace(step=made.step * (1 + 1e-6))


def one_bit(before: Any, *args: Any) -> Any:
    pixels, labels = before(*args)
    pixels[:, 0, 0, 0] ^= 1
    return pixels, labels


def mirrored(before: Any, data: Any, number: int) -> Any:
    epoch = before(data, number)
    return epoch._replace(flip=1 - epoch.flip)


Mutant = tuple[str, Any, str, Callable[..., Any], str]
MUTANTS: dict[str, Mutant] = {
    "DC-ASGD-a": ("dcasgd_a", DCASGDa, "direction", stronger, "from push 2 on"),
    "DC-ASGD-c": ("quadratic", DCASGDc, "direction", stronger, "from push 2 on"),
    "SSGD": ("ssgd", SSGD, "direction", stronger, "from push 5 on"),
    "law of times": (
        "quadratic", Gamma, "sample", lambda f, *a: f(*a) * (1 + 1e-6), "clock_s by"),
    "order of the workers": (
        "dcasgd_a", Generated, "messages",
        lambda f, s, n: f(dataclasses.replace(s, seed=1), n), "the schedule's order and the mini-"),
    "noise": ("quadratic", QuadraticTask, "batch", lambda f, *a: f(*a) * (1 + 1e-6), "the mini-"),
    "pixels": ("dcasgd_a", images, "generate", one_bit, "the mini-batches; from push 1 on"),
    "order of the images": (
        "ssgd", images.Partitioned, "_order", lambda f, *a: f(*a)[::-1].copy(), "the mini-batches"),
    "augmentation": ("dcasgd_a", images.Images, "_draw", mirrored, "the mini-batches; from push 1"),
    "model": (
        "dcasgd_a", models._SmallResNet, "forward", lambda f, *a: f(*a) * (1 + 1e-6), "push 1 on"),
    "first weights": (
        "ssgd", models.nn.init, "zeros_", lambda f, x: torch.nn.init.constant_(x, 1e-6), "push 1"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_a_changed_part_is_another_run(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    name, owner, method, to, expected = mutant
    changed(monkeypatch, owner, method, to)
    assert expected in says(KEPT / name)


@pytest.mark.parametrize(
    "change",
    [
        {"lr__base": 0.1001},
        {"rule__lam0": 2.0001},
        {"task__weight_decay": 1e-6},
        {"backup": "push_from_zero"},
        {"seeds__initial": 1},
        {"seeds__data": 1, "task__data__seed": 1},
    ],
)
def test_a_changed_configuration_is_another_run(change: dict[str, Any]) -> None:
    assert not says(KEPT / "dcasgd_a", run_dir="elsewhere", threads=2)
    assert "from push" in says(KEPT / "dcasgd_a", **change)


def test_float32_rows_count_where_the_run_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(KEPT / "quadratic", path)

    def edit(name: str, **values: Any) -> None:
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**content, **values}))

    here = environment(torch.device("cpu"))
    edit("provenance.json", **{key: here[key] for key in here if key != "threads"})
    rows = pd.read_csv(path / "metrics.csv", dtype=str)
    rows.loc[2, "train_loss"] = str(float(rows.loc[2, "train_loss"]) * 1.01)
    rows.to_csv(path / "metrics.csv", index=False)
    message, same = verify(path)
    assert not same
    push = rows.loc[2, "push"]
    assert (
        f"they differ from push {push} on, there by at most 9.9e-03 of the value, in t" in message
    )
    assert message.endswith("though this is the run's own place")
    assert cli.verify([str(path)]) == 1

    edit("provenance.json", cpu_capability="SVE256")
    message, same = verify(path)
    assert same
    assert (
        "of the value, in train_loss, as may be elsewhere: cpu_capability was SVE256, is" in message
    )
    for name, value in (("lr", "0.3"), ("delay_mean", "1"), ("update", "49"), ("simulated_s", "9")):
        changed = rows.copy()
        changed.loc[1, name] = value
        changed.to_csv(path / "metrics.csv", index=False)
        message, same = verify(path)
        assert not same, name
        assert f"{name}, which is equal on any machine" in message
    for name in (
        "test_loss",
        "epoch",
        "w_norm",
    ):  # every column counts at home, and not by its place
        changed = rows.copy()
        k = changed[name].first_valid_index()
        changed.loc[k, name] = str(float(changed.loc[k, name]) + 1)
        changed.to_csv(path / "metrics.csv", index=False)
        message, _ = verify(path)
        assert name in message

    (path / "fingerprint.json").rename(tmp_path / "kept.json")
    rows.loc[0, "gap_norm"] = "1"
    rows.to_csv(path / "metrics.csv", index=False)
    with pytest.raises(BadInput, match="gets no fingerprint") as refused:
        mark(path)
    assert "in gap_norm, as may be elsewhere" in str(refused.value)
    with pytest.raises(BadInput, match=r"it has no fingerprint.json, and its float32 rows belong"):
        verify(path)

    (tmp_path / "kept.json").rename(path / "fingerprint.json")
    steps = json.loads((path / "fingerprint.json").read_text())["steps"]
    steps[3][2] *= 1 + 2e-9
    edit("fingerprint.json", steps=steps)
    message, same = verify(path)
    assert not same
    assert (
        "this is another run. In float64 from push 4 on, of the value: loss by 2.0e-09" in message
    )


def test_a_number_that_is_none_agrees_with_nothing() -> None:
    kept = read.fingerprint_of(KEPT / "quadratic")
    assert kept is not None
    for column in range(len(fingerprint.COLUMNS)):
        steps = [list(step) for step in kept["steps"]]
        steps[2][column] = float("nan")
        assert "from push 3 on" in fingerprint.disagreement(kept, {**kept, "steps": steps})


def test_a_run_without_a_fingerprint_is_given_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(KEPT / "quadratic", path)
    kept = (path / "fingerprint.json").read_text()
    (path / "fingerprint.json").unlink()
    assert mark(path).endswith("fingerprint written")
    made = json.loads((path / "fingerprint.json").read_text())
    assert made.pop("cpu_capability") == torch.backends.cpu.get_cpu_capability()
    assert not fingerprint.disagreement(json.loads(kept), made)
    assert mark(path).endswith("has a fingerprint")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", None, "no readable config.yaml there"),
        ("provenance.json", "{}", "no readable provenance.json there"),
        ("fingerprint.json", '{"steps": []}', "no readable fingerprint.json there"),
        (
            "fingerprint.json",
            '{"steps": [[NaN]]}',
            "no readable fingerprint.json there .NaN is no n",
        ),
        ("metrics.csv", f"{HEAD}\n250{',1' * HEAD.count(',')}\n", "no row up"),
    ],
)
def test_a_damaged_run_is_refused(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(KEPT / "quadratic", path)
    (path / name).unlink() if content is None else (path / name).write_text(content)
    with pytest.raises(BadInput, match=rf"^run={path}: .*{message}"):
        verify(path)


def test_without_a_checkout_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a wheel: no experiments/, and a results/ that is somebody else's."""
    monkeypatch.chdir(tmp_path)
    for module in (grid, pages):
        monkeypatch.setattr(module, "FOLDER", Path("experiments"))
    shutil.copytree(KEPT / "quadratic", tmp_path / "run")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "README.md").write_text("# My results\n")

    def there() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = there()
    assert verify(Path("run"))[1]
    with pytest.raises(BadInput, match=rf"^experiments={tmp_path}/experiments: has no studies"):
        pages.all_of([], Path("results"))
    assert pages.overview(Path("results")).endswith("is not this program's, and is left as it is")
    assert there() == before


def recorded_run(folder: Path) -> Path:
    """A run whose log is said to be a cluster's: the plain loop's weights are those of its log."""
    cfg = OmegaConf.create(read.config_of(KEPT / "quadratic"))
    cfg.run_dir, cfg.threads = str(folder / "run"), 1
    path = experiment.run(plan_of(cfg), say=lambda line: None)
    (path / EVENTS).write_text(",".join(Event._fields) + "\n")
    return path


def test_a_live_run_is_held_to_its_fingerprint_too(tmp_path: Path) -> None:
    path = recorded_run(tmp_path)
    line, equal = verify(path)
    assert equal
    assert line.endswith("equal to the last bit; 16 pushes in float64 equal within 1e-09")

    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(re.sub(r"( +base): .*", r"\1: 0.011", config))
    line, equal = verify(path)
    assert not equal
    assert line.startswith(f"{path}: this is another run. In float64 from push 1 on")
    (path / "config.yaml").write_text(config)

    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "weights_sha256": "0"}))
    line, equal = verify(path)
    assert not equal
    assert "though this is where they were made" in line
    with (path / EVENTS).open("a") as file:  # a worker of it computed elsewhere
        file.write("1.0,on another processor: P,1,,0\n")
    line, equal = verify(path)
    assert equal
    assert "no bits are promised here, as a worker was on another processor: P; 16 pushes" in line
    (path / read.FINGERPRINT).unlink()
    line, equal = verify(path)
    assert not equal
    assert line.endswith("no fingerprint (it has none)")


def test_what_is_kept_of_a_live_run_verifies(tmp_path: Path) -> None:
    path = recorded_run(tmp_path)
    runs.keep(path, tmp_path / "kept")
    names = {EVENTS, "schedule.csv.gz", read.FINGERPRINT, *read.KEPT}
    assert {file.name for file in (tmp_path / "kept").iterdir()} == names
    assert verify(tmp_path / "kept")[1]
    (path / EVENTS).unlink()
    runs.keep(path, tmp_path / "simulated")
    assert not (tmp_path / "simulated" / "schedule.csv.gz").exists()
