"""A run that is left at stop_epoch: a prefix to the bit, that goes on; and the measured norms."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torture
import yaml
from omegaconf import OmegaConf

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import ASGD
from dcasgd_repro.run import experiment, read
from dcasgd_repro.run.identity import identity
from dcasgd_repro.run.plan import build, log_of, plain_config, plan_of
from dcasgd_repro.run.probe import Probe
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.study import reproduce
from dcasgd_repro.study.grid import study
from dcasgd_repro.study.measures import MEASURES

CELL = ["rule=dcasgd_a", "rule.mean_square=worker", "rule.momentum=0.9"]
BATCHES = "probe.batch_error_every=3"


def run(folder: Path, *keys: str) -> dict[str, object]:
    experiment.run(plan_of(torture.config([*CELL, *keys], folder)), say=lambda line: None)
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("engine", ["plain", "threads"])
def test_a_stopped_run_is_a_prefix_and_goes_on_to_the_same_bits(
    engine: str, tmp_path: Path
) -> None:
    """64 pushes of 4 of 64 images: epoch 1.3 is push 20.8."""
    keys = [f"engine={engine}", "eval_every=0.5", BATCHES]
    whole = run(tmp_path / "whole", *keys)
    first = run(tmp_path / "parts", *keys, "stop_epoch=1.3")
    assert (first["status"], first["pushes"], first["epochs"]) == ("stopped", 21, 21 / 16)
    rows = pd.read_csv(tmp_path / "parts" / "metrics.csv").drop(columns="wall_s")
    of_whole = pd.read_csv(tmp_path / "whole" / "metrics.csv").drop(columns="wall_s")
    pd.testing.assert_frame_equal(rows, of_whole[: len(rows)])
    second = run(tmp_path / "parts", *keys, "stop_epoch=2")
    assert (second["status"], second["pushes"]) == ("stopped", 32)
    assert run(tmp_path / "parts", *keys)["weights_sha256"] == whole["weights_sha256"]
    assert list(torture.differences(tmp_path / "parts", tmp_path / "whole")) == []


def test_a_stop_that_was_reached_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "run", "stop_epoch=2")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    said: list[str] = []
    for epoch in (2, 1):
        experiment.run(
            plan_of(torture.config([*CELL, f"stop_epoch={epoch}"], tmp_path / "run")),
            say=said.append,
        )
    assert all("holds this very run, stopped already" in line for line in said)
    assert len(said) == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_interrupted_run_past_the_stop_makes_no_push_more(tmp_path: Path) -> None:
    cfg = torture.config(CELL, tmp_path / "run")
    experiment.run(plan_of(cfg), say=lambda line: None, until=40)
    assert run(tmp_path / "run", "stop_epoch=2")["pushes"] == 40
    summary = run(tmp_path / "run", "stop_epoch=4")
    assert (summary["status"], summary["pushes"]) == ("finished", 64)  # the stop is its end


@pytest.mark.parametrize("epoch", ["4.01", "-1", "0", "soon", "[1]", "nan", "true"])
def test_a_stop_that_cannot_be_is_refused(
    epoch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["train", "task=quadratic", "epochs=4", f"stop_epoch={epoch}", f"run_dir={tmp_path}/r"]
    assert cli.dispatch(keys[0], keys[1:]) == 2
    [line] = capsys.readouterr().err.splitlines()
    shown = {"true": "True"}.get(epoch, epoch)
    assert line.startswith(f"dcasgd-repro: stop_epoch={shown}: ")
    assert "give" in line
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("probe.batch_error_every=5", "probe.batch_error_every=5: task quadratic has no classes"),
        ("probe.batch_error_every=0", "probe.batch_error_every=0: give a whole number >= 1"),
        ("probe=3", "probe=3: this is a group of keys"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(
    key: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch("train", ["task=quadratic", key, f"run_dir={tmp_path}/r"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dcasgd-repro: {message}")


def test_a_stop_and_a_probe_make_no_other_run(tmp_path: Path) -> None:
    plain = torture.config(CELL, tmp_path)
    stopped = torture.config([*CELL, "stop_epoch=1", BATCHES], tmp_path)
    assert identity(plain_config(stopped)) == identity(plain_config(plain))
    old = OmegaConf.masked_copy(plain, [k for k in plain if k not in ("stop_epoch", "probe")])
    assert identity(plain_config(old)) == identity(plain_config(plain))


def test_a_probe_changes_no_bit_and_takes_the_mini_batches_own_error(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "eval_every=1")
    probed = run(tmp_path / "probed", "eval_every=1", BATCHES)
    assert probed["weights_sha256"] == plain["weights_sha256"]
    keys = ["push", "batch_error", "wall_s"]
    rows = pd.read_csv(tmp_path / "probed" / "metrics.csv")
    without = pd.read_csv(tmp_path / "plain" / "metrics.csv")
    pd.testing.assert_frame_equal(rows.drop(columns=keys[1:]), without.drop(columns=keys[1:]))
    assert without["batch_error"].isna().all()
    # By hand: replay, and count each third mini-batch's mistakes at the vector the worker held.
    cfg = torture.config(CELL, tmp_path / "again")
    leaf, rule = (build(cfg, key) for key in ("task", "rule"))
    task = leaf.on(torch.device("cpu"))
    server = Server(rule, task.initial(0), 4)
    log = log_of(cfg, 64)
    wrong: dict[int, list[float]] = {}
    norms: list[float] = []
    gradient = task.gradient

    def noted(w: torch.Tensor, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        loss, g = gradient(w, batch)
        norms.append(float(torch.linalg.vector_norm(g.double())))
        push = server.pushes + 1
        if push % 3 == 0:
            network = task._network(0)
            torch.nn.utils.vector_to_parameters(w, network.parameters())
            network.train()
            with torch.no_grad():
                guess = network(batch.images).argmax(1)
            wrong.setdefault((push - 1) // 16, []).append(float((guess != batch.labels).sum()) / 4)
        return loss, g

    task.gradient = noted
    weights: list[float] = []
    for _ in simulate(task, server, log, lambda k: 0.1 * 0.1 ** (k >= 32)):
        weights.append(float(torch.linalg.vector_norm(server.w.double())))
    expected = [np.mean(wrong[epoch]) for epoch in range(4)]
    assert rows.dropna(subset=["test_loss"])["batch_error"].tolist() == pytest.approx(expected)
    starts = [0, *rows["push"][:-1]]
    means = [np.mean(norms[a:b]) for a, b in zip(starts, rows["push"], strict=True)]
    assert rows["grad_norm"].tolist() == pytest.approx(means, rel=1e-8)
    assert rows["w_norm"].tolist() == pytest.approx([weights[k - 1] for k in rows["push"]])


def test_a_networks_own_draws_are_not_used_up_by_a_probe(tmp_path: Path) -> None:
    """Dropout draws from torch's generator; a probe that drew from it would move later draws."""

    class Drawing:
        def batch(self, worker: int, k: int) -> int:
            return k

        def batch_error(self, w: torch.Tensor, batch: int) -> float:
            return float(torch.rand(()))

    server = Server(ASGD(), torch.zeros(2), 1)
    probe = Probe(Drawing(), server, batch_error_every=1)
    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    server.receive_gradient(0, torch.ones(2), 0.1)
    assert torch.rand(()) == expected
    assert len(probe.batch_errors) == 1


def test_a_study_with_a_stop_runs_prefixes_and_extra_seeds_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {"a": "task=quadratic rule=asgd workers=2", "b": "task=quadratic rule=asgd workers=4"}
    grid = {"title": "Mine", "cells": cells, "stop_epoch": 1, "extra_seeds": {"b": 2}}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grid.yaml").write_text(yaml.dump(grid))
    jobs = reproduce.jobs_of(study("mine"), "smoke", 1)
    assert [job.name for job in jobs] == ["a-seed0", "b-seed0", "b-seed1", "b-seed2"]
    assert {job.pushes for job in jobs} == {64}  # of 128
    assert all("stop_epoch=1" in job.command for job in jobs)
    whole = reproduce.jobs_of(study("mine"), "smoke", 1, ["threads=1"])
    assert [job.path for job in whole] == [job.path for job in jobs]
    job = jobs[0]
    job.path.mkdir(parents=True)
    for status, pushes, ended in (("stopped", 64, True), ("stopped", 63, False)):
        (job.path / "summary.json").write_text(json.dumps({"status": status, "pushes": pushes}))
        assert job.ended is ended
    # a study of whole runs goes on with the same run
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "grid.yaml").write_text(yaml.dump({"title": "All", "cells": cells}))
    (job.path / "summary.json").write_text(json.dumps({"status": "stopped", "pushes": 64}))
    [other, _] = reproduce.jobs_of(study("all"), "smoke", 1)
    assert other.path == job.path
    assert not other.ended
    assert not any("stop_epoch" in word for word in other.command)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"extra_seeds": {"c": 1}}, "extra_seeds has c: 1; give a cell a whole number"),
        ({"extra_seeds": {"a": 0}}, "extra_seeds has a: 0; give a cell a whole number"),
        ({"claims": [{"order": ["a"]}]}, "order: give a list of cells"),
        ({"claims": [{"equal": ["a", "b", "a"], "within": 1}]}, "equal: give a list of cells"),
        ({"claims": [{"equal": ["a", "b"]}]}, "KeyError: 'within'"),
        ({"claims": [{"higher": "a"}]}, "a claim has one of the keys lower, equal"),
        ({"claims": [{"cell": "a", "within": 1}]}, "cell: give paper"),
        (
            {"claims": [{"lower": "a", "higher": "b", "measure": "vigour"}]},
            "a < b in vigour: no such measure; choose last10, before_drop, train_error",
        ),
        (
            {"claims": [{"lower": "a", "higher": "b", "primary": True, "post_hoc": True}]},
            "a claim is primary or post_hoc",
        ),
        ({"measure": "vigour"}, "measure=vigour: choose last10, before_drop, train_error"),
        ({"stop_epoch": "soon"}, "could not convert string to float"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(
    keys: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    cells = {"a": "task=quadratic", "b": "task=quadratic workers=2"}
    (tmp_path / "mine" / "grid.yaml").write_text(yaml.dump({"title": "M", "cells": cells} | keys))
    with pytest.raises(BadInput) as error:
        study("mine")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_before_the_stop_is_a_divergence(tmp_path: Path) -> None:
    """The stop comes between two rows: no row would have told."""
    keys = ["lr.base=1e25", "log_every=50", "eval_every=4", "stop_epoch=0.5"]
    summary = run(tmp_path / "run", *keys)
    assert (summary["status"], summary["pushes"]) == ("diverged", 8)
    assert summary["diverged_at_push"] < 8


def test_a_prefix_is_the_same_whether_its_run_went_on_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, "eval_every=0.25", "log_every=4", "stop_epoch=1")
    short = replace(read.Run.read(folder), until=1.0)
    before = short.errors, short.delay, short.dc_ratio, len(short.metrics)
    run(folder, "eval_every=0.25", "log_every=4")
    long = replace(read.Run.read(folder), until=1.0)
    assert long.finished
    assert (long.errors, long.delay, long.dc_ratio, len(long.metrics)) == before
    for name in ("simulated_s", "test_loss", "last10"):
        assert MEASURES[name].read(long, None) == MEASURES[name].read(short, None)


def test_a_kept_prefix_is_not_lost_to_a_run_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = {"title": "M", "cells": {"a": "task=quadratic rule=asgd workers=2"}, "stop_epoch": 1}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grid.yaml").write_text(yaml.dump(grid))
    [job] = reproduce.jobs_of(study("mine"), "smoke", 1)
    assert cli.dispatch(job.command[3], job.command[4:]) == 0
    reproduce.keep([job], Path("kept"))
    assert json.loads(Path("kept/a-seed0/summary.json").read_text())["status"] == "stopped"
    (job.path / "summary.json").write_text(json.dumps({"status": "failed", "pushes": 3}))
    reproduce.keep([job], Path("kept"), [job])
    assert json.loads(Path("kept/a-seed0/summary.json").read_text())["status"] == "stopped"
