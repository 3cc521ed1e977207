"""Verdicts and tables by hand-made runs whose every number is known; pages twice the same."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dcasgd_repro import cli, figures, results
from dcasgd_repro.errors import BadInput
from dcasgd_repro.evidence import Claim, Difference, Evidence, T, difference, near, student, verdict
from dcasgd_repro.study import FIGURES, names, study

ROOT = Path(__file__).parents[1]
DRAWN = [kind for kind in FIGURES if kind != "lr"]  # that one needs a grid to tune: test_tune.py


def make_run(folder: Path, errors: list[float], **given: object) -> None:
    """A kept run of 5 epochs, the first lr drop after 4; errors in [0, 1], one an epoch."""
    folder.mkdir(parents=True)
    rule, workers = given.get("rule", "asgd"), given.get("workers", 8)
    config = {
        "batch": 1,
        "images": 10_000,
        "workers": workers,
        "augment": True,
        "seed": 0,
        "lr": {"milestones": [4]},
    }
    config["rule"] = {"_target_": rule, "lam": given.get("lam", 0)}
    (folder / "config.yaml").write_text(yaml.dump(config | dict(given.get("config", {}))))
    origin = {"git_commit": "abcdef0123", "git_dirty": False, "versions": {"torch": "2.15.0"}}
    origin |= {"device_name": "a CPU", "threads": 1}
    (folder / "provenance.json").write_text(json.dumps(origin))
    rows = {"push": range(1, 6), "epoch": range(1, 6), "simulated_s": range(10, 60, 10)}
    frame = pd.DataFrame(rows).assign(test_error=errors, test_loss=1.0, train_error=errors)
    frame.to_csv(folder / "metrics.csv", index=False)
    summary = {
        "status": given.get("status", "finished"),
        "exp": None,
        "scale": "laptop",
        "task": "cifar10",
        "rule": rule,
        "workers": workers,
        "seed": int(folder.name[-1]),
        "pushes": 5,
        "epochs": 5,
        "test_error_best": min(errors),
        "test_error_final": errors[-1],
        "test_error_last10": float(np.mean(errors)),
        "train_error_final": errors[-1],
        "simulated_s": 50.0,
        "wall_s": 3600.0,
        "delay_mean": 7.0,
        "dc_ratio_mean": given.get("dc_ratio", 0.0),
        "weights_sha256": folder.name,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of four cells and three seeds, in results/ of an empty folder."""
    monkeypatch.chdir(tmp_path)
    grid = {
        "title": "Mine",
        "figure": "table",
        "cells": {"sgd": "a", "asgd-8": "b", "dc-8": "c", "tiny-8": "d"},
        "claims": [
            {"lower": "dc-8", "higher": "asgd-8", "paper": 3},
            {"lower": "tiny-8", "higher": "asgd-8", "paper": 3},
            {"lower": "asgd-8", "higher": "sgd", "paper": None},
        ],
        "least_dc_ratio": 1e-3,
        "words": {"reproduced": "can explain", "not reproduced": "cannot explain"},
    }
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text(yaml.dump(grid, sort_keys=False))
    (folder / "paper.csv").write_text(
        "cell,best_test_error_pct,final_test_error_pct,last10_test_error_pct\nasgd-8,10,11,12\n"
    )
    runs = tmp_path / "results" / "mine" / "laptop" / "runs"
    for seed in range(3):
        asgd = 0.50 + 0.01 * seed
        make_run(runs / f"sgd-seed{seed}", [0.3] * 5, workers=1)
        make_run(runs / f"asgd-8-seed{seed}", [0.9, asgd, asgd, asgd, asgd])
        # dc: 5, 6, 7 points below asgd in every epoch
        dc = [e - 0.05 - 0.01 * seed for e in (0.9, asgd, asgd, asgd, asgd)]
        make_run(runs / f"dc-8-seed{seed}", dc, rule="dcasgd_c", lam=2, dc_ratio=0.01)
        make_run(runs / f"tiny-8-seed{seed}", dc, rule="dcasgd_c", lam=1, dc_ratio=1e-6)
    return folder


def test_a_paired_difference_by_hand() -> None:
    # pairs 1, 2, 3 (seed 9 has no partner): sd 1, t(2) = 4.303
    found = difference({0: 5.0, 1: 7.0, 2: 9.0, 9: 1.0}, {0: 4.0, 1: 5.0, 2: 6.0})
    assert found.n == 3
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert str(found) == "+2.00 ± 2.48"
    assert str(difference({0: 1.0}, {0: 3.0})) == "-2.00"
    assert difference({0: 1.0}, {0: 3.0}).half == math.inf
    assert str(difference({}, {})) == "-"


def test_the_table_of_t_leaves_a_fortieth_above() -> None:
    for df, t in enumerate(T, 1):
        # P(|X| < t) by Simpson's rule on the density, t = tan(angle) sqrt(df)
        angle = np.linspace(0, math.atan(t / math.sqrt(df)), 20_001)
        inside = np.cos(angle) ** (df - 1)
        simpson = np.sum(inside[:-1:2] + 4 * inside[1::2] + inside[2::2]) * angle[1] / 3
        total = math.sqrt(math.pi) * math.gamma(df / 2) / (2 * math.gamma((df + 1) / 2))
        assert 1 - simpson / total == pytest.approx(0.05, rel=1e-3), df
    assert student(30) == pytest.approx(T[-1], abs=5e-4)
    assert student(99) == pytest.approx(1.9842, abs=5e-5)  # from any table
    many = difference(dict(enumerate([0.0, 2.0] * 50)), dict.fromkeys(range(100), 0.0))
    assert many.half == pytest.approx(1.9842 * math.sqrt(100 / 99) / 10, abs=1e-4)


WIDE = Claim("a", "b", 2.0)


@pytest.mark.parametrize(
    ("mean", "half", "n", "scale", "told"),
    [
        (2.0, 1.0, 3, "paper", "reproduced"),
        (2.0, 1.0, 2, "paper", "undecided"),  # too few
        (0.5, 0.4, 5, "paper", "reproduced, smaller"),  # 0.1 to 0.9: real, under half of 2
        (0.5, 0.4, 5, "laptop", "reproduced"),  # the paper's size does not carry over
        (0.3, 0.6, 5, "paper", "not reproduced"),  # -0.3 to 0.9
        (0.3, 0.6, 5, "laptop", "undecided"),
        (-1.0, 0.5, 5, "laptop", "not reproduced"),
        (0.5, 1.0, 5, "paper", "undecided"),
        (0.0, 0.0, 5, "laptop", "undecided"),
    ],
)
def test_verdicts(mean: float, half: float, n: int, scale: str, told: str) -> None:
    assert verdict(WIDE, Difference(mean, half, n), 0.1, 0.0, scale == "paper") == told


def test_a_correction_that_is_too_small_explains_nothing() -> None:
    found = Difference(2.0, 1.0, 3)
    assert verdict(WIDE, found, 0.9e-3, 1e-3, False) == "not reproduced"
    assert verdict(WIDE, found, 1.1e-3, 1e-3, False) == "reproduced"


def test_a_number_is_near_the_papers() -> None:
    claim = Claim("a", None, 1000.0, 0.15)
    assert near(claim, Difference(149.0, 0, 3)) == "reproduced"
    assert near(claim, Difference(-151.0, 0, 3)) == "not reproduced"
    assert near(claim, Difference(math.nan, math.inf, 0)) == "undecided"


def test_evidence_of_runs_made_by_hand(mine: Path) -> None:
    here = Evidence(study(str(mine)), "laptop", Path("results"))
    dc, _, asgd = here.found
    assert (dc.difference.mean, dc.difference.n) == (pytest.approx(6.0), 3)
    assert dc.difference.half == pytest.approx(4.303 / math.sqrt(3))
    assert [f.verdict for f in here.found] == ["reproduced", "not reproduced", "not reproduced"]
    assert asgd.difference.mean == pytest.approx(-28.8)
    assert here.counts() == "1 can explain, 2 cannot explain"
    row = here.table.set_index("cell").loc["dc-8"]
    assert row["minus_asgd_mean"] == pytest.approx(-6.0)
    assert row["minus_sgd_n"] == 3
    assert here.table.set_index("cell").loc["asgd-8", "paper_last10_test_error_pct"] == 12
    assert here.baseline("asgd-8", "asgd") is None  # not against itself
    assert here.values("sgd") == {0: pytest.approx(30), 1: pytest.approx(30), 2: pytest.approx(30)}


def test_a_change_of_the_difference_is_paired_over_four_runs(mine: Path) -> None:
    grid = yaml.safe_load((mine / "grid.yaml").read_text())
    grid["claims"][1]["than"] = "dc-8"
    (mine / "grid.yaml").write_text(yaml.dump(grid, sort_keys=False))
    folder = Path("results/mine/laptop/runs")

    def gains_less(seed: int, points: float) -> None:
        path = folder / f"tiny-8-seed{seed}" / "summary.json"
        dc = json.loads((folder / f"dc-8-seed{seed}" / "summary.json").read_text())
        error = dc["test_error_last10"] + points / 100
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test_error_last10": error}))

    for seed, points in enumerate((1, 2, 3)):
        gains_less(seed, points)
    near = {"cell": "dc-8", "paper": 50, "within": 0.1}  # beside the one that ``than`` means
    study_of = dict(grid, claims=[*grid["claims"], near])
    (mine / "grid.yaml").write_text(yaml.dump(study_of, sort_keys=False))
    plain, compared, *_ = Evidence(study(str(mine)), "laptop", Path("results")).found
    assert plain.change.n == 0
    assert not plain.moved
    assert (compared.change.mean, compared.change.n) == (pytest.approx(-2.0), 3)
    assert compared.change.half == pytest.approx(4.303 / math.sqrt(3))
    assert not compared.moved  # -2.00 +- 2.48
    results.write(study(str(mine)), "laptop", Path("results"))
    page = Path("results/mine/laptop/README.md").read_text()
    assert page.count(""" "within" a number of the paper: ours minus that. 4 claims in all.""") == 1
    assert "| paper | dc_ratio | change of the difference | verdict here |" in page
    assert "| 1.0e-06 | -2.00 ± 2.48 | cannot explain |" in page
    for seed, points in enumerate((1.9, 2, 2)):
        gains_less(seed, points)
    results.write(study(str(mine)), "laptop", Path("results"))
    page = Path("results/mine/laptop/README.md").read_text()
    assert "| 1.0e-06 | -1.97 ± 0.14, **moved** | cannot explain |" in page
    for name in ("asgd-8", "dc-8", "tiny-8"):
        shutil.copytree(folder / f"{name}-seed2", folder / f"{name}-seed3")
        path = folder / f"{name}-seed3" / "summary.json"
        path.write_text(path.read_text().replace('"seed": 2', '"seed": 3'))
    assert Evidence(study(str(mine)), "laptop", Path("results")).found[1].moved
    short = folder / "dc-8-seed2" / "summary.json"
    short.write_text(short.read_text().replace('"finished"', '"diverged"'))
    again = Evidence(study(str(mine)), "laptop", Path("results")).found[1]
    assert again.change.n == 3
    assert not again.moved  # a run of the claim that it is compared with was lost


def test_the_stretch_before_the_drop_is_the_last_fifth_of_its_epochs(mine: Path) -> None:
    here = Evidence(study(str(mine)), "laptop", Path("results"))
    # drop after epoch 4: epochs in (3.2, 4], which is the fourth
    assert here.values("asgd-8", "before_drop")[1] == pytest.approx(51.0)
    path = Path("results/mine/laptop/runs/asgd-8-seed1/metrics.csv")
    rows = pd.read_csv(path)  # an epoch of pushes that are not whole: its evaluation is a bit late
    rows.assign(epoch=rows["epoch"] + 2e-5).to_csv(path, index=False)
    here = Evidence(study(str(mine)), "laptop", Path("results"))
    assert here.values("asgd-8", "before_drop")[1] == pytest.approx(51.0)


def test_another_setting_is_no_baseline(mine: Path) -> None:
    folder = Path("results/mine/laptop/runs")
    for seed in range(3):
        path = folder / f"dc-8-seed{seed}" / "config.yaml"
        path.write_text(path.read_text().replace("augment: true", "augment: false"))
    here = Evidence(study(str(mine)), "laptop", Path("results"))
    assert here.baseline("dc-8", "asgd") is None
    assert here.baseline("tiny-8", "asgd") == "asgd-8"
    assert here.baseline("tiny-8", "sgd") == "sgd"


def test_a_run_that_diverged_stays_and_leaves_its_claims_undecided(mine: Path) -> None:
    path = Path("results/mine/laptop/runs/dc-8-seed1/summary.json")
    path.write_text(path.read_text().replace('"finished"', '"diverged"'))
    here = Evidence(study(str(mine)), "laptop", Path("results"))
    assert here.found[0].verdict == "undecided"
    assert here.found[0].difference.n == 2
    assert here.found[1].verdict == "not reproduced"
    row = here.table.set_index("cell").loc["dc-8"]
    assert (row["n"], row["diverged"]) == (2, 1)
    assert "| dc-8 | 2 (+ 1 diverged) |" in results.markdown_cells(here)


def test_pages_tables_and_figures_are_the_same_twice(mine: Path) -> None:
    here = study(str(mine))
    results.write(here, "laptop", Path("results"))
    first = {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file()}
    results.write(here, "laptop", Path("results"))
    assert {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file()} == first
    assert {p.name for p in first} >= {"README.md", "cells.csv", "claims.csv", "figure.svg"}
    page = Path("results/mine/laptop/README.md").read_text()
    assert "| dc-8 < asgd-8 | +6.00 ± 2.48 | 3 | 3 | 1.0e-02 | can explain |" in page
    assert "12 runs; commit abcdef0; torch 2.15.0; a CPU, threads: 1; 12.0 h of training" in page
    line = "| asgd-8 | 3 | 51.00 ± 1.00 | 10.00 | 51.00 ± 1.00 | 11.00 | 58.80 ± 0.80 | 12.00 | - |"
    assert line in page


def test_a_stray_folder_among_the_runs_is_refused(mine: Path) -> None:
    make_run(Path("results/mine/laptop/runs/other-seed0"), [0.3] * 5)
    with pytest.raises(BadInput, match=r"^report=.*other-seed0: mine has no cell of that name"):
        results.write(study(str(mine)), "laptop", Path("results"))


@pytest.mark.parametrize("scale", ["paper", "laptop"])
@pytest.mark.parametrize("kind", DRAWN)
def test_every_figure_draws_every_scale(mine: Path, kind: str, scale: str) -> None:
    if scale == "paper":
        Path("results/mine/laptop").rename("results/mine/paper")
    chosen = replace(study(str(mine)), figure=kind)
    figure = figures.draw(Evidence(chosen, scale, Path("results")))
    figure.canvas.draw()
    means = {  # of something that must be in the picture
        "table": (0, "x", 30.0),
        "epochs": (0, "y", 30.0),
        "seconds": (0, "y", 30.0),
        "workers": (0, "y", 30.0),
        "readings": (0, "x", 6.0),
        "lambda": (0, "y", 30.0),
    }
    axes, axis, value = means[kind]
    lines = figure.axes[axes].lines
    data = [np.atleast_1d(line.get_xdata() if axis == "x" else line.get_ydata()) for line in lines]
    assert any(np.allclose(line.astype(float).mean(), value, atol=1e-6) for line in data)


@pytest.mark.parametrize("kind", DRAWN)
def test_every_figure_draws_a_seed_0_that_was_killed(mine: Path, kind: str) -> None:
    folder = Path("results/mine/laptop/runs")
    for seed in range(3):
        (folder / f"dc-8-seed{seed}").rename(folder / f"lambda-1-seed{seed}")
    grid = (mine / "grid.yaml").read_text()
    (mine / "grid.yaml").write_text(grid.replace("dc-8", "lambda-1"))
    path = folder / "lambda-1-seed0" / "summary.json"
    whole = json.loads(path.read_text())
    left = ("exp", "scale", "task", "rule", "workers", "seed", "pushes", "weights_sha256")
    killed = {key: whole[key] for key in left} | {"status": "failed", "wall_s": None}
    path.write_text(json.dumps(killed))  # as reproduce writes it
    chosen = replace(study(str(mine)), figure=kind)
    figure = figures.draw(Evidence(chosen, "laptop", Path("results")))
    figure.canvas.draw()
    if kind == "lambda":  # the mean of the other two, against parts of a whole run
        [curve] = [line for line in figure.axes[0].lines if line.get_label() == "lambda-1"]
        assert list(curve.get_xdata()) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    results.write(chosen, "laptop", Path("results"))


def test_a_seed_that_only_one_of_the_two_cells_has_leaves_the_claim_undecided(mine: Path) -> None:
    shutil.rmtree("results/mine/laptop/runs/asgd-8-seed2")
    make_run(Path("results/mine/laptop/runs/asgd-8-seed3"), [0.5] * 5)
    make_run(Path("results/mine/laptop/runs/dc-8-seed3"), [0.4] * 5, rule="dcasgd_c", lam=2)
    here = Evidence(study(str(mine)), "laptop", Path("results"))
    assert here.found[0].difference.n == 3
    assert here.found[0].verdict == "undecided"


def test_runs_of_another_configuration_are_not_pooled(mine: Path) -> None:
    path = Path("results/mine/laptop/runs/dc-8-seed1/config.yaml")
    path.write_text(path.read_text().replace("lam: 2", "lam: 3"))
    with pytest.raises(
        BadInput, match=r"dc-8-seed1: not the configuration of dc-8's other runs: ru"
    ):
        results.write(study(str(mine)), "laptop", Path("results"))


def test_what_is_committed_is_what_report_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Markdown and CSV, byte for byte (figures depend on matplotlib's version)."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results", "results")
    shutil.copy(ROOT / "README.md", "README.md")
    for path in [*Path("results").glob("*/*/*.md"), *Path("results").glob("*/*/*.csv")]:
        path.unlink()
    monkeypatch.setattr("dcasgd_repro.figures.draw", lambda here: NoFigure())
    assert cli.report(["--readme", "README.md"]) == 0
    for path in [
        Path("README.md"),
        *Path("results").rglob("*.md"),
        *Path("results").rglob("*.csv"),
    ]:
        assert path.read_bytes() == (ROOT / path).read_bytes(), path
    committed = [p.relative_to(ROOT) for p in (ROOT / "results").rglob("*.md")]
    assert all(p.exists() for p in committed)


class NoFigure:
    def savefig(self, *given: object, **more: object) -> None: ...


def test_the_papers_differences_are_those_of_its_last_ten_epochs() -> None:
    for name in ("table1_cifar10", "fig5_lambda"):
        chosen = study(name)
        last10 = chosen.paper["last10_test_error_pct"]
        for claim in chosen.claims:
            if claim.paper is not None:
                assert claim.higher is not None
                assert claim.paper == pytest.approx(last10[claim.higher] - last10[claim.lower])
    table = study("table1").paper["last10_test_error_pct"]
    gains = {"a": table["asgd-8"] - table["dcasgd_a-8"], "c": table["asgd-8"] - table["dcasgd_c-8"]}
    for claim in study("readings").claims:
        c = claim.lower.endswith("-c") or claim.lower.startswith("lambda")
        if claim.paper is not None:
            assert claim.paper == pytest.approx(gains["c" if c else "a"])


def test_report_refuses_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"^study=table1_cifar10: no runs in results/table1_cifar10"):
        cli.report(["table1"])
    with pytest.raises(BadInput, match=r"^study=nope: no such study"):
        cli.report(["nope"])
    assert cli.report([]) == 0  # nothing there: an overview of studies without runs
    assert Path("results/README.md").read_text().count("no runs yet") == len(names())
