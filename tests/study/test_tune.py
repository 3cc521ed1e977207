"""Tuning by validation: the split in a run's identity and words, the choice, equal budgets."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run import experiment, read
from dcasgd_repro.run.identity import config_hash, flat, identity
from dcasgd_repro.run.plan import length_of, plain_config, plan_of
from dcasgd_repro.study import figures, launchers, reproduce, tune
from dcasgd_repro.study import pages as results
from dcasgd_repro.study import runs as report
from dcasgd_repro.study.evidence import Evidence
from dcasgd_repro.study.grid import study
from dcasgd_repro.study.measures import MEASURES
from dcasgd_repro.study.reproduce import jobs_of
from dcasgd_repro.study.tune import Trial, best, extended, inside

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "results").glob("*/*/runs/*"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return compose("config", overrides=["scale=smoke", *overrides])


# --- the split in a run ---------------------------------------------------------------------------


def test_kept_runs_keep_their_identity_and_their_hash() -> None:
    """A null ``validation`` is none: of a run that is older than the key nothing changes."""
    configs = [OmegaConf.load(path / "config.yaml") for path in KEPT[::7]]
    older = [config for config in configs if "validation" not in config]
    assert len(older) > 20
    for old in older:
        assert (
            identity(plain_config(old))[:16] == Path(old.run_dir).name
        )  # as it was when the run was made
        before = hashlib.sha256(
            json.dumps(flat(plain_config(old)), sort_keys=True).encode()
        ).hexdigest()
        assert config_hash(plain_config(old)) == before
        with open_dict(old):
            old.validation = old.task.data.validation = None
        assert identity(plain_config(old))[:16] == Path(old.run_dir).name
        assert config_hash(plain_config(old)) == before
        old.validation = old.task.data.validation = 5000
        assert identity(plain_config(old))[:16] != Path(old.run_dir).name
        assert config_hash(plain_config(old)) != before


def test_a_split_is_part_of_the_run() -> None:
    plain, split, other = (
        composed("+exp=cifar_dc", *words) for words in ([], ["validation=9"], ["validation=8"])
    )
    assert len({identity(plain_config(cfg)) for cfg in (plain, split, other)}) == 3
    assert split.task.data.validation == 9
    with pytest.raises(BadInput, match=r"^task.data.validation=4: set validation=4 instead"):
        length_of(composed("task.data.validation=4"))
    with pytest.raises(BadInput, match=r"^validation=2.5: give a whole number >= 1"):
        length_of(composed("validation=2.5"))
    with pytest.raises(BadInput, match=r"^validation=5: task quadratic keeps no images for it"):
        length_of(composed("task=quadratic", "validation=5"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "scale=paper validation=5000 device=cpu",
            "images=50000: the last 5000 of 50000 are for validation; give images=45000",
        ),
        ("scale=smoke validation=50000", "validation=50000: leaves nothing to train on"),
        ("scale=smoke validation=-1", "validation=-1: give a whole number >= 1"),
        ("scale=smoke validation=half", "validation=half: give a whole number >= 1"),
        ("task=quadratic validation=5", "validation=5: task quadratic reads no validation"),
    ],
)
def test_train_refuses_a_split_that_is_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dcasgd-repro", "train", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"dcasgd-repro: {message}")
    assert line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_says_what_its_errors_are_of(tmp_path: Path) -> None:
    words = ["task=synthetic", "rule=asgd", "workers=2", "images=32", "epochs=0.5", "batch=4"]
    words += ["test_images=8", "model.width=2", "lr.base=0.01"]
    paths = {}
    for name, more in (("test", []), ("validation", ["validation=8"])):
        cfg = composed(*words, *more, f"run_dir={tmp_path / name}")
        paths[name] = experiment.run(plan_of(cfg), say=lambda line: None)
    split, plain = (json.loads((paths[n] / "summary.json").read_text()) for n in reversed(paths))
    assert split["evaluated_on"] == "validation"
    assert plain["evaluated_on"] == "test"
    assert split["weights_sha256"] == plain["weights_sha256"]  # trained on the same images
    message = report.one_run(paths["validation"])
    assert "  validation error, mean of the last ten after the last drop" in message
    assert "  validation loss, final" in message
    assert "test" not in message.replace(str(tmp_path), "")
    tags = {tag for tag in board(paths["validation"]) if tag.endswith(("test", "validation"))}
    assert tags == {"error/validation", "loss/validation"}
    table = report.comparison([paths["validation"]], tmp_path / "out")
    assert "validation error, best %" in table
    assert "test error" not in table
    head = (tmp_path / "out/table.csv").read_text().splitlines()[0]
    assert "validation_error_last10_pct_mean" in head
    assert "test_error" not in head
    with pytest.raises(
        BadInput, match=r"validation: evaluated on validation images, but .*/test o"
    ):
        report.comparison(list(paths.values()), None)


def board(path: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard" / read.summary_of(path)["name"]))
    events.Reload()
    return list(events.Tags()["scalars"])


# --- the choice -----------------------------------------------------------------------------------


def trial_list(*means: float) -> list[Trial]:
    return [Trial(2.0**k, (mean,)) for k, mean in enumerate(means)]


def test_a_trial_is_the_mean_of_its_seeds_and_a_divergence_is_chance() -> None:
    chosen = study("lr_cifar10")
    kept = [read.Run.read(ROOT / f"results/table1_cifar10/laptop/runs/sgd-seed{k}") for k in (0, 1)]
    errors = [MEASURES["last10"].read(run, chosen) for run in kept]
    ends = [
        replace(kept[0], summary={**kept[0].summary, "status": s}) for s in ("diverged", "failed")
    ]
    trial = Trial.of(0.5, chosen, [*ends, *kept])
    assert trial.errors == (*errors, 90.0)
    assert (trial.mean, trial.diverged) == (pytest.approx(np.mean([*errors, 90])), 1)
    assert trial.sd == pytest.approx(np.std([*errors, 90], ddof=1))
    assert trial.finished == tuple(errors)
    assert Trial.of(0.5, chosen, []).mean == np.inf


def test_every_grid_is_extended_by_one_value_on_the_side_of_its_better_end() -> None:
    found = {
        "low": trial_list(1, 2, 3),  # best at its low end
        "high": trial_list(3, 2, 1),
        "inside": trial_list(3, 1, 2),  # its better end is the high one
        "level": trial_list(2, 1, 2),
        "chance": trial_list(90, 90, 90),  # of equal ones the first
    }
    assert [inside(of) for of in found.values()] == [False, False, True, True, False]
    assert [best(of) for of in found.values()] == [0, 2, 1, 1, 0]
    assert extended(found, 2) == {
        "low": (0.5, 1, 2, 4),
        "high": (1, 2, 4, 8),
        "inside": (1, 2, 4, 8),
        "level": (0.5, 1, 2, 4),
        "chance": (0.5, 1, 2, 4),
    }


# --- the command ----------------------------------------------------------------------------------

RULE = "task=synthetic rule=asgd schedule=gamma"
BEST = {"workers=1": 0.2, "workers=2": 0.05, "workers=3": 0.1}  # the optimum of each


@cache
def of_rule(workers: str) -> DictConfig:
    return composed(*RULE.split(), workers)


class Fabricated:
    """A launcher whose runs end at once, at an error of 10 % and 5 points for each doubling away.

    Odd seeds have a point more. A run at a rate above ``too_high`` diverges; one of a cell in
    ``lost`` is killed.
    """

    def __init__(self, too_high: float = 0.9, lost: Sequence[str] = ()) -> None:
        self.too_high, self.lost, self.asked = too_high, lost, []

    def start(self, command: Sequence[str], log: Path) -> "Fabricated":
        words = dict(word.split("=", 1) for word in command if "=" in word)
        self.asked.append(command)
        path, workers = Path(words["run_dir"]), f"workers={words['workers']}"
        rate, seed = float(words["lr.base"]), int(words["seed"])
        cfg = of_rule(workers)
        cfg.lr.base, cfg.seed, cfg.validation = rate, seed, 32
        (path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        origin = {"git_commit": "abcdef0123", "git_dirty": False, "versions": {"torch": "2"}}
        origin |= {"device": "cpu", "device_name": "a CPU", "threads": 1}
        (path / "provenance.json").write_text(json.dumps(origin))
        error = 0.1 + 0.05 * abs(np.log2(rate / BEST[workers])) + 0.01 * (seed % 2)
        rows = "push,epoch,simulated_s,test_error,test_loss,train_error\n"
        (path / "metrics.csv").write_text(f"{rows}1,1,5,0.9,1,0.9\n2,2,9,{error},1,0.1\n")
        if workers in self.lost:
            return self
        ends = ("best", "final", "last10")
        summary = {"status": "finished", **{f"test_error_{end}": error for end in ends}}
        if rate > self.too_high:
            summary = {"status": "diverged", **{f"test_error_{end}": None for end in ends}}
        summary |= {
            "evaluated_on": "validation",
            "scale": "smoke",
            "task": "synthetic",
            "rule": "asgd",
            "exp": None,
        }
        summary |= {"workers": int(words["workers"]), "seed": seed, "pushes": 2, "epochs": 2}
        summary |= {"train_error_final": 0.1, "delay_mean": 0.0, "dc_ratio_mean": 0.0}
        summary |= {"simulated_s": 9.0, "wall_s": 1.0, "weights_sha256": "0"}
        (path / "summary.json").write_text(json.dumps(summary))
        return self

    def ended(self) -> bool:
        return True

    def stop(self, hard: bool) -> None: ...


class Stopped(Fabricated):
    """As Fabricated, stopped by Ctrl-C at the fourth run."""

    def start(self, command: Sequence[str], log: Path) -> Fabricated:
        if len(self.asked) == 3:
            raise KeyboardInterrupt
        return super().start(command, log)


GRID = {
    "title": "Mine",
    "figure": "lr",
    "cells": {f"m{m}": f"{RULE} workers={m}" for m in (1, 2, 3)},
    "tune": {
        "key": "lr.base",
        "factor": 2,
        "validation": 32,
        "values": {"m1": [0.2, 0.4, 0.8], "m2": [0.1, 0.2, 0.4], "m3": [0.05, 0.1, 0.2]},
    },
}
FINAL = {
    "title": "Final",
    "figure": "table",
    "tuned_by": "mine",
    "first_seed": 3,
    "cells": {f"m{m}": f"{RULE} workers={m} lr.base={{tuned}}" for m in (1, 2)}
    | {"fixed": f"{RULE} workers=3"},
    "claims": [{"lower": "m1", "higher": "m2"}],
}


@pytest.fixture
def run_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fabricated], None]:
    """An empty folder with a study to tune and its final one; says which launcher runs them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "POLL_S", 0.0)
    for name, content in (("mine", GRID), ("final", FINAL)):
        grid(tmp_path / name, content)
    return lambda launcher: monkeypatch.setattr(launchers, "launcher", lambda *_: launcher)


def grid(folder: Path, content: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "grid.yaml").write_text(yaml.dump(content, sort_keys=False))


def test_tune_finds_the_optima_with_equal_budgets_and_the_final_study_reads_them(
    run_with: Callable[[Fabricated], None], capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = Fabricated()
    run_with(launcher)
    with pytest.raises(
        BadInput, match=r"^tuned_by=mine: nothing is chosen for scale=smoke yet; fi"
    ):
        cli.reproduce(["final", "scale=smoke", "--dry-run"])
    assert cli.tune(["mine", "scale=smoke", "seeds=2"]) == 0
    # m2's 0.05 lies below its grid: round 2 finds it at the end, round 3 has it inside.
    text = Path("mine/tuned.yaml").read_text()
    assert text.startswith("# Written by `dcasgd-repro tune mine`.")
    chosen = yaml.safe_load(text)["smoke"]
    assert {cell: of["value"] for cell, of in chosen["cells"].items()} == {
        "m1": 0.2,
        "m2": 0.05,
        "m3": 0.1,
    }
    tried = {cell: list(of["tried"]) for cell, of in chosen["cells"].items()}
    assert tried == {
        "m1": [0.05, 0.1, 0.2, 0.4, 0.8],
        "m2": [0.025, 0.05, 0.1, 0.2, 0.4],
        "m3": [0.025, 0.05, 0.1, 0.2, 0.4],  # its low end is as good as its high one
    }
    assert chosen["cells"]["m1"]["mean"] == 10.5  # 10 and 11 %
    assert chosen["cells"]["m1"]["sd"] == pytest.approx(np.std([10, 11], ddof=1), abs=1e-4)
    assert chosen["cells"]["m1"]["tried"][0.8] == pytest.approx(20.5)
    message = {"key": "lr.base", "validation": 32, "seeds": [0, 1], "commit": ["abcdef0"]}
    assert {key: chosen[key] for key in message} == message
    assert len(launcher.asked) == 3 * 5 * 2
    assert all("validation=32" in command for command in launcher.asked)

    assert Path("results/mine/smoke/figure.png").exists()
    page = Path("results/mine/smoke/README.md").read_text()
    assert "**Every error here is on validation images**" in page
    assert "| m2 | 0.05 | 10.50 ± 0.71 | 2 | 5 | 0.025: 15.50; 0.05: 10.50; 0.1: 15.50;" in page
    assert "| cell | n | validation error, best % |" in page
    assert "validation_error_best_pct_mean" in Path("results/mine/smoke/cells.csv").read_text()
    assert len(list(Path("results/mine/smoke/runs").iterdir())) == 30

    capsys.readouterr()
    assert cli.tune(["mine", "scale=smoke", "seeds=2", "--dry-run"]) == 0
    assert "30 runs, 0 to do" in capsys.readouterr().out
    # The extended trials are cells of the study, so that report finds them.
    assert len(Evidence(study("mine"), "smoke", Path("results")).all_runs) == 30

    jobs = jobs_of(study("final"), "smoke", 2)
    assert [job.name for job in jobs[:4]] == ["m1-seed3", "m2-seed3", "fixed-seed3", "m1-seed4"]
    assert "lr.base=0.05" in jobs[1].overrides
    content = {**FINAL, "cells": {"{M}": f"{RULE} workers={{M}} lr.base={{tuned[m2]}}"}}
    grid(Path("third"), content | {"for": {"M": [4, 8]}, "claims": []})
    grid(Path("view"), {"title": "View", "runs_of": "third", "claims": []})
    views = [
        [(job.path, job.seed) for job in jobs_of(study(s), "smoke", 1)] for s in ("third", "view")
    ]
    assert views[0] == views[1]
    of_m2 = [job.overrides[-3:-1] for job in jobs_of(study("third"), "smoke", 1)]
    assert of_m2 == [("workers=4", "lr.base=0.05"), ("workers=8", "lr.base=0.05")]
    assert not any("validation" in word for job in jobs for word in job.overrides)
    assert not {job.path for job in jobs} & {Path(c[-1][8:]) for c in launcher.asked}
    with pytest.raises(BadInput, match=r"^tuned_by=mine: nothing is chosen for scale=laptop yet"):
        jobs_of(study("final"), "laptop", 2)


def test_a_run_that_diverged_is_chance_and_is_named(run_with: Callable[[Fabricated], None]) -> None:
    run_with(Fabricated(too_high=0.3))
    assert cli.tune(["mine", "scale=smoke", "seeds=1"]) == 0
    chosen = yaml.safe_load(Path("mine/tuned.yaml").read_text())["smoke"]["cells"]
    assert chosen["m1"]["tried"][0.4] == 90
    assert (chosen["m1"]["value"], chosen["m1"]["diverged"]) == (0.2, 2)
    page = Path("results/mine/smoke/README.md").read_text()
    assert "0.4: 90.00 (1 diverged)" in page
    figure = figures.draw(Evidence(study("mine"), "smoke", Path("results")))
    figure.canvas.draw()
    [axes] = figure.axes
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    at = [(x, y) for line in crosses for x, y in zip(*line.get_data(), strict=True)]
    assert at == [(0.4, 90), (0.8, 90), (0.4, 90), (0.4, 90)]  # SGD, SGD; ASGD, SSGD
    lines = [
        dict(zip(*line.get_data(), strict=True))
        for line in axes.lines
        if line.get_label()[0] != "_"
    ]
    assert [line[0.4] for line in lines] == [
        90,
        90,
        90,
    ]  # the line goes through them, as the choice does
    rings = [line for line in axes.lines if line.get_markersize() == 13]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [
        (0.2, pytest.approx(10)),
        (0.05, pytest.approx(10)),
        (0.1, pytest.approx(10)),
    ]
    assert axes.get_ylabel().startswith("validation error")
    # Errors on validation and on test images stand in no table together.
    path = Path("results/mine/smoke/runs/m1-0.1-seed0/summary.json")
    summary = json.loads(path.read_text())
    del summary["evaluated_on"]
    path.write_text(json.dumps(summary))
    with pytest.raises(BadInput, match=r"evaluated on validation images, but .* on test images; r"):
        results.write(study("mine"), "smoke", Path("results"))


def test_a_lost_run_chooses_nothing_and_the_same_command_goes_on(
    run_with: Callable[[Fabricated], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run_with(Fabricated())
    words = ["mine", "scale=smoke", "seeds=1"]
    assert cli.tune([*words, "--dry-run"]) == 0
    assert "9 runs, 9 to do" in capsys.readouterr().out
    run_with(Stopped())
    assert cli.tune(words) == 130
    message = (
        "interrupted; every run goes on from its checkpoint with: dcasgd-repro tune mine scale=s"
    )
    assert message in capsys.readouterr().err
    run_with(Fabricated(lost=["workers=3"]))
    assert cli.tune(words) == 1
    assert not Path("mine/tuned.yaml").exists()
    assert Path("results/mine/smoke/figure.png").exists()
    launcher = Fabricated()
    run_with(launcher)
    assert cli.tune(words) == 0
    assert len(launcher.asked) == 15 - 6  # what had ended is left alone
    capsys.readouterr()
    assert cli.tune([*words, "--dry-run"]) == 0
    assert "15 runs, 0 to do" in capsys.readouterr().out


def test_an_optimum_that_no_extension_leaves_behind_is_refused(
    run_with: Callable[[Fabricated], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(Fabricated())
    monkeypatch.setattr(tune, "ROUNDS", 1)
    with pytest.raises(
        BadInput, match=r"^tune.values=mine: after 0 extensions the best value of m1,"
    ):
        cli.tune(["mine", "scale=smoke", "seeds=1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "lr.bse"}, r"tune.key=lr.bse: no such key; did you mean lr.base"),
        ({"values": {"m1": [1, 2]}}, "tune.values=m2, m3: give each cell its list of values, and"),
        ({"values": {"m1": [1], "m2": [1], "m3": [1]}}, "tune.values.m1=[1]: a grid has 2 values"),
        ({"values": {"m1": [1, "x"], "m2": [1], "m3": [1]}}, "tune.values.m1=x: give a finite num"),
        ({"values": {"m1": 1, "m2": [1], "m3": [1]}}, "tune.values.m1=1: give a list of numbers"),
        (
            {"values": {"m1": [1, 2], "m2": [1, 2, 3], "m3": [1, 2]}},
            "tune.values=m1: 2, m2: 3, m3: 2: give every cell as many values: equal budgets",
        ),
        (
            {"values": {f"m{m}": [2, 1] for m in (1, 2, 3)}},
            "tune.values.m1=[2, 1]: give them a",
        ),
        ({"factor": 1}, "tune.factor=1: give a finite number > 1"),
        ({"validation": 0}, "tune.validation=0: give a whole number >= 1"),
        (
            {"metric": "best"},
            "tune=['metric']: its keys are factor, key, validation, values, all needed: it chooses "
            "by images kept out of training, and needs a task with images",
        ),
    ],
)
def test_a_grid_to_tune_that_is_none_is_refused_in_one_line(
    run_with: Callable[[Fabricated], None], change: dict[str, object], message: str
) -> None:
    grid(Path("mine"), GRID | {"tune": {**GRID["tune"], **change}})
    with pytest.raises(BadInput) as refused:
        cli.tune(["mine", "scale=smoke"])
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert not Path("outputs").exists()


def test_studies_that_cannot_be_tuned_or_must_be_are_refused(
    run_with: Callable[[Fabricated], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for job, name, message in (
        (cli.tune, "table1", "study=table1_cifar10: has no `tune` in its grid.yaml; did you mean"),
        (cli.reproduce, "mine", "study=mine: it has a grid to tune: dcasgd-repro tune mine scale="),
    ):
        with pytest.raises(BadInput, match=f"^{message}"):
            job([name, "scale=smoke"])
    for key, content, message in (
        ("tuned_by", "table1_cifar10", "tuned_by=table1_cifar10: that study has no tune"),
        ("cells", {"m9": "lr.base={tuned}"}, "tuned_by=mine: it tunes no m9; it tunes m1, m2, m3"),
        ("cells", {"m1": "lr.base={tuned[m8]}"}, "tuned_by=mine: it tunes no m8; it tunes m1, m2"),
        ("cells", {"m1": ""}, "tuned_by=mine: no cell has {tuned} in it"),
        ("first_seed", -1, "first_seed=-1: give a whole number >= 0"),
    ):
        grid(Path("final"), {**FINAL, "claims": [], key: content})
        with pytest.raises(BadInput, match=f"^{re.escape(message)}"):
            study("final")
    without = {key: value for key, value in FINAL.items() if key != "tuned_by"}
    grid(Path("final"), without)
    with pytest.raises(BadInput, match=r"^tuned_by=None: m1, m2: name the study of {tuned}"):
        study("final")
    grid(Path("mine"), {**GRID, "extra_seeds": {"m1": 2}})
    with pytest.raises(BadInput, match=r"^tune=extra_seeds: does not go with a grid to tune"):
        study("mine")
    grid(Path("mine"), {key: value for key, value in GRID.items() if key != "tune"})
    with pytest.raises(BadInput, match=r"^figure=lr: draws a grid to tune.*; choose another, as"):
        study("mine")
    cells = dict.fromkeys(GRID["cells"], "task=quadratic")
    grid(Path("mine"), {**GRID, "cells": cells})
    with pytest.raises(BadInput, match=r"^cell m1: task=quadratic: has no images to choose by; tu"):
        cli.tune(["mine", "scale=smoke"])
    grid(Path("mine"), GRID)
    for text in ("smoke: 3", "smoke: {cells: {m1: {value: x}}}", "- 1", "a: ["):
        Path("mine/tuned.yaml").write_text(text)
        with pytest.raises(BadInput, match=r"^(tuned|m1.value)="):
            jobs_of(study("mine"), "smoke", 1)
    with pytest.raises(BadInput, match=r"^option=--quick: no such option; `dcasgd-repro tune --he"):
        cli.tune(["mine", "--quick"])


def test_the_committed_grid_is_what_its_claim_says() -> None:
    chosen, final = study("lr_cifar10"), study("tuned_cifar10")
    assert chosen.tune is not None
    low = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    four = tuple(4 * rate for rate in low)
    expected = {cell.name: four if cell.name == "ssgd-8" else low for cell in chosen.cells}
    assert chosen.tune.values == expected
    trials = chosen.trials(chosen.tune.values).cells
    assert len({cell.name for cell in trials}) == len(trials) == 6 * 5
    assert all("validation=5000" in cell.overrides for cell in trials)
    assert trials[0].overrides == ("+exp=cifar_sgd", "lr.base=0.0625", "validation=5000")
    assert (final.first_seed, [str(claim) for claim in final.claims[:2]]) == (
        3,
        ["dcasgd_a-8 < asgd-8", "dcasgd_a-8 = asgd-8 within 0.5"],
    )
    assert final.stop_epoch is None
