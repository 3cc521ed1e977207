"""Verdicts and tables by hand-made runs whose every number is known; pages twice the same."""

import fcntl
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from scipy import stats

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.read import Run
from dcasgd_repro.study import figures
from dcasgd_repro.study import pages as results
from dcasgd_repro.study import runs as report_of_runs
from dcasgd_repro.study.evidence import Evidence
from dcasgd_repro.study.grid import study
from dcasgd_repro.study.looks import PAPERS, looks
from dcasgd_repro.study.runs import grouped
from dcasgd_repro.study.verdicts import Difference, above, difference, equal, holm

ROOT = Path(__file__).parents[2]
DRAWN = [
    kind for kind in figures.registered() if kind not in ("lr", "taylor")
]  # see test_tune, test_probe
T2 = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # Student's t, 97.5 %, 2 degrees of freedom: 4.3027


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
    origin |= {"device": "cpu", "device_name": "a CPU", "threads": 1}
    (folder / "provenance.json").write_text(json.dumps(origin))
    rows = {
        "push": range(10_000, 60_000, 10_000),
        "epoch": range(1, 6),
        "simulated_s": range(10, 60, 10),
    }
    frame = pd.DataFrame(rows).assign(test_error=errors, test_loss=1.0, train_error=errors)
    frame = frame.assign(dc_ratio=given.get("dc_ratio", 0.0), **given.get("columns", {}))
    frame.to_csv(folder / "metrics.csv", index=False)
    summary = {
        "status": given.get("status", "finished"),
        "exp": None,
        "scale": "laptop",
        "task": "cifar10",
        "rule": rule,
        "workers": workers,
        "seed": int(folder.name[-1]),
        "pushes": 50_000,
        "epochs": 5,
        "simulated_s": 50.0,
        "wall_s": 3600.0,
        "delay_mean": 7.0,
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
    # pairs 1, 2, 3 (seed 9 has no partner): sd 1, t(2) = 4.3027
    found = difference({0: 5.0, 1: 7.0, 2: 9.0, 9: 1.0}, {0: 4.0, 1: 5.0, 2: 6.0})
    assert found.n == 3
    assert found.mean == 2.0
    assert found.half == pytest.approx(T2 / math.sqrt(3))
    assert str(found) == "+2.00 ± 2.48"
    assert str(difference({0: 1.0}, {0: 3.0})) == "-2.00"
    assert difference({0: 1.0}, {0: 3.0}).half == math.inf
    assert str(difference({}, {})) == "-"


def test_an_interval_by_numbers_from_any_table_of_t() -> None:
    many = difference(dict(enumerate([0.0, 2.0] * 50)), dict.fromkeys(range(100), 0.0))
    assert many.half == pytest.approx(1.9842 * math.sqrt(100 / 99) / 10, abs=1e-4)
    # three pairs 1, 2, 3: t = 2 sqrt(3) = 3.4641 against 0, whose tail at 2 degrees is 0.0371
    found = difference({0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 0.0))
    t = 2 * math.sqrt(3)
    tail = 0.5 * (1 - t / math.sqrt(2 + t * t))  # closed form at 2 degrees of freedom
    assert found.p_above(0.0) == pytest.approx(tail, rel=1e-12)
    assert found.p_below(4.0) == pytest.approx(tail, rel=1e-12)
    assert found.p_above(2.0) == pytest.approx(0.5)
    assert difference({0: 1.0}, {0: 0.0}).p_above(0.0) == 1.0  # one seed tests nothing


def test_two_one_sided_tests_decide_a_true_null() -> None:
    """Equal within 1: the 90 % interval D ± t(0.95, 2) se, se = sigma / sqrt(3), inside ± 1."""
    pairs = [-0.2, 0.0, 0.2]  # sigma 0.2, se 0.1155, t 2.920: ± 0.337
    found = difference(dict(enumerate(pairs)), dict.fromkeys(range(3), 0.0))
    word, p = equal(found, 1.0)
    t = 1.0 / (0.2 / math.sqrt(3))
    assert p == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)), rel=1e-12)
    assert word == "reproduced"
    assert equal(found, 0.338)[0] == "reproduced"
    assert equal(found, 0.336)[0] == "undecided"
    far = difference({k: v + 2 for k, v in enumerate(pairs)}, dict.fromkeys(range(3), 0.0))
    assert equal(far, 1.0)[0] == "not reproduced"  # 2 ± 0.497, the 95 % interval
    assert equal(far, 1.51)[0] == "undecided"
    assert equal(Difference(0.0, 0.0, 2), 1.0)[0] == "undecided"  # too few seeds
    assert equal(Difference(0.0, 0.0, 3), 1.0) == ("reproduced", 0.0)


def test_a_margin_must_lie_outside_the_interval() -> None:
    assert above(Difference(12.0, 1.9, 3), 10.0)[0] == "reproduced"
    assert above(Difference(12.0, 2.1, 3), 10.0)[0] == "undecided"
    assert above(Difference(8.0, 1.9, 3), 10.0)[0] == "not reproduced"
    assert above(Difference(8.0, 1.9, 2), 10.0)[0] == "undecided"


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("mean", "half", "n", "scale", "message"),
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
def test_verdicts(mean: float, half: float, n: int, scale: str, message: str) -> None:
    assert above(Difference(mean, half, n), 0.0, 1.0 if scale == "paper" else 0.0)[0] == message


def test_evidence_of_runs_made_by_hand(mine: Path) -> None:
    evidence = Evidence(study(str(mine)), "laptop", Path("results"))
    dc, _, asgd = evidence.found
    assert (dc.difference.mean, dc.difference.n) == (pytest.approx(6.0), 3)
    assert dc.difference.half == pytest.approx(T2 / math.sqrt(3))
    assert [f.verdict for f in evidence.found] == ["reproduced", "not reproduced", "not reproduced"]
    assert asgd.difference.mean == pytest.approx(-21.0)
    assert evidence.counts() == "1 can explain, 2 cannot explain"
    row = evidence.table.set_index("cell").loc["dc-8"]
    assert row["minus_asgd_mean"] == pytest.approx(-6.0)
    assert row["minus_sgd_n"] == 3
    assert evidence.table.set_index("cell").loc["asgd-8", "paper_last10_test_error_pct"] == 12
    assert evidence.baseline("asgd-8", "asgd") is None  # not against itself
    assert evidence.values("sgd") == {
        0: pytest.approx(30),
        1: pytest.approx(30),
        2: pytest.approx(30),
    }


def test_a_change_of_the_difference_is_paired_over_four_runs(mine: Path) -> None:
    grid = yaml.safe_load((mine / "grid.yaml").read_text())
    grid["claims"][1]["than"] = "dc-8"
    (mine / "grid.yaml").write_text(yaml.dump(grid, sort_keys=False))
    folder = Path("results/mine/laptop/runs")

    def gains_less(seed: int, points: float) -> None:
        dc = pd.read_csv(folder / f"dc-8-seed{seed}" / "metrics.csv")
        path = folder / f"tiny-8-seed{seed}" / "metrics.csv"
        errors = dc["test_error"] + points / 100
        pd.read_csv(path).assign(test_error=errors).to_csv(path, index=False)

    for seed, points in enumerate((1, 2, 3)):
        gains_less(seed, points)
    near = {"cell": "dc-8", "paper": 50, "within": 0.1}  # beside the one that ``than`` means
    study_of = dict(grid, claims=[*grid["claims"], near])
    (mine / "grid.yaml").write_text(yaml.dump(study_of, sort_keys=False))
    plain, compared, *_ = Evidence(study(str(mine)), "laptop", Path("results")).found
    assert plain.change.n == 0
    assert not plain.moved
    assert (compared.change.mean, compared.change.n) == (pytest.approx(-2.0), 3)
    assert compared.change.half == pytest.approx(T2 / math.sqrt(3))
    assert not compared.moved  # -2.00 +- 2.48
    results.write(study(str(mine)), "laptop", Path("results"))
    page = Path("results/mine/laptop/README.md").read_text()
    assert (
        page.count(""" "within" a number of the paper: ours minus that. 4 claims in all; none""")
        == 1
    )
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
    evidence = Evidence(study(str(mine)), "laptop", Path("results"))
    # drop after epoch 4: epochs in (3.2, 4], which is the fourth
    assert evidence.values("asgd-8", "before_drop")[1] == pytest.approx(51.0)
    path = Path("results/mine/laptop/runs/asgd-8-seed1/metrics.csv")
    rows = pd.read_csv(path)  # an epoch of pushes that are not whole: its evaluation is a bit late
    rows.assign(epoch=rows["epoch"] + 2e-5).to_csv(path, index=False)
    evidence = Evidence(study(str(mine)), "laptop", Path("results"))
    assert evidence.values("asgd-8", "before_drop")[1] == pytest.approx(51.0)


def test_another_setting_is_no_baseline(mine: Path) -> None:
    folder = Path("results/mine/laptop/runs")
    for seed in range(3):
        path = folder / f"dc-8-seed{seed}" / "config.yaml"
        path.write_text(path.read_text().replace("augment: true", "augment: false"))
    evidence = Evidence(study(str(mine)), "laptop", Path("results"))
    assert evidence.baseline("dc-8", "asgd") is None
    assert evidence.baseline("tiny-8", "asgd") == "asgd-8"
    assert evidence.baseline("tiny-8", "sgd") == "sgd"


def test_a_run_that_diverged_counts_as_guessing_and_is_named(mine: Path) -> None:
    path = Path("results/mine/laptop/runs/dc-8-seed1/summary.json")
    path.write_text(path.read_text().replace('"finished"', '"diverged"'))
    evidence = Evidence(study(str(mine)), "laptop", Path("results"))
    dc = evidence.found[0]
    assert dc.verdict == "undecided"
    assert (dc.difference.n, dc.difference.mean) == (3, pytest.approx((5 - 39 + 7) / 3))
    assert dc.diverged == ("dc-8 (seed 1)",)
    assert evidence.found[1].verdict == "not reproduced"
    row = evidence.table.set_index("cell").loc["dc-8"]
    assert (row["n"], row["diverged"]) == (2, 1)
    assert row["test_error_last10_pct_mean"] == pytest.approx(45.0)  # of 45 and 45
    assert row["test_error_last10_pct_ranked"] == pytest.approx(60.0)  # of 45, 90 and 45
    assert row["minus_asgd_mean"] == pytest.approx((-5 + 39 - 7) / 3)
    cells = results.markdown_cells(evidence)
    assert "| dc-8 | 2 (+ 1 diverged) |" in cells
    assert "45.00 ± 0.00 (60.00 with 1 diverged)" in cells
    assert "undecided; diverged: dc-8 (seed 1) |" in results.markdown_claims(evidence)
    path.write_text(path.read_text().replace('"diverged"', '"failed"'))  # the machine's fault
    failed = Evidence(study(str(mine)), "laptop", Path("results"))
    assert (failed.found[0].verdict, failed.found[0].difference.n) == ("undecided", 2)


def test_every_seed_of_a_cell_that_diverged_is_worse_than_one_that_trained(mine: Path) -> None:
    for seed in range(3):
        path = Path(f"results/mine/laptop/runs/asgd-8-seed{seed}/summary.json")
        path.write_text(path.read_text().replace('"finished"', '"diverged"'))
    dc, *_ = Evidence(study(str(mine)), "laptop", Path("results")).found
    assert (dc.verdict, dc.difference.mean) == ("reproduced", pytest.approx(45.0))  # 90 - 45


def test_last_errors_are_of_the_phase_after_the_last_drop(mine: Path) -> None:
    """lr drops after epoch 4: the evaluation at 4 was trained before, so epoch 5 alone counts."""
    path = Path("results/mine/laptop/runs/sgd-seed0")
    rows = pd.read_csv(path / "metrics.csv").assign(test_error=[0.9, 0.8, 0.7, 0.6, 0.2])
    rows.to_csv(path / "metrics.csv", index=False)
    assert Evidence(study(str(mine)), "laptop", Path("results")).values("sgd")[0] == pytest.approx(
        20
    )
    for seed in range(3):
        config = path.with_name(f"sgd-seed{seed}") / "config.yaml"
        config.write_text(config.read_text().replace("- 4", "- 9"))  # never reached
    assert Evidence(study(str(mine)), "laptop", Path("results")).values("sgd")[0] == pytest.approx(
        64
    )


def claims_of(mine: Path, claims: list[dict[str, object]], scale: str, **keys: object) -> Evidence:
    grid = yaml.safe_load((mine / "grid.yaml").read_text()) | {"claims": claims} | keys
    (mine / "grid.yaml").write_text(yaml.dump(grid, sort_keys=False))
    if scale != "laptop":
        Path("results/mine/laptop").rename(f"results/mine/{scale}")
    return Evidence(study(str(mine)), scale, Path("results"))


def test_equivalence_order_margin_and_curve_are_judged(mine: Path) -> None:
    (mine / "curves.csv").write_text(
        "cell,workers,split,epoch,error\n"
        "sgd,8,train,2,0.36\nsgd,8,train,4,0.32\nsgd,8,test,4,0.9\nsgd,4,train,3,0.9\n"
    )
    claims: list[dict[str, object]] = [
        {"equal": ["dc-8", "tiny-8"], "within": 1},
        {"equal": ["dc-8", "asgd-8"], "within": 5},
        {"lower": "dc-8", "higher": "asgd-8", "margin": 3},
        {"order": ["sgd", "dc-8", "asgd-8"], "measure": "epochs_to"},
        {"order": ["sgd", "asgd-8", "dc-8"], "measure": "epochs_to"},
        {"curve": "sgd", "within": 4.5},
        {"curve": "sgd", "within": 3.5},
        {"order": ["sgd", "dc-8"], "measure": "batch_epochs_to"},
    ]
    evidence = claims_of(mine, claims, "paper", epochs=[2, 4], level=51.5, measure="train_error")
    words = [f.verdict for f in evidence.found]
    assert words[:3] == ["reproduced", "undecided", "reproduced"]  # 0; 6 ± 1.7 (90 %); 6 ± 2.5 > 3
    # from 90 at epoch 0: sgd is at 30 at 1; dc at 85, 84, 83 at 1 and at 45 at 2; asgd at 90 at 1
    # and at 50, 51, 52 at 2, so that seed 2 never comes to 51.5
    at = np.mean([1 + (first - 51.5) / (first - 45) for first in (85, 84, 83)])
    assert evidence.found[3].observed == f"{38.5 / 60:.1f}, {at:.1f}, never, n = 3"
    assert words[3:5] == ["reproduced", "not reproduced"]
    # sgd 30 against 36 at epoch 2 and 32 at epoch 4: 4 away on average
    assert evidence.found[5].observed == "4.0 away, n = 3"
    assert words[5:7] == ["reproduced", "not reproduced"]
    assert (words[7], evidence.found[7].observed) == ("undecided", "")  # no run has that column
    page = results.page(evidence, ["", results.markdown_claims(evidence)])
    assert "| dc-8 = tiny-8 within 1 | +0.00 ± 0.00 | 3 | - |" in page
    assert "asgd-8 - dc-8 >= 3" in page


def test_primary_claims_are_judged_as_a_family(mine: Path) -> None:
    """Holm: p = 0.0091 of a paired t of 6 / (1 / sqrt 3) times 2 holds; beside one of p = 1."""
    one = {"lower": "dc-8", "higher": "asgd-8", "primary": True}
    alone = claims_of(mine, [one], "laptop").found[0]
    t = 6 * math.sqrt(3)
    p = 1 - t / math.sqrt(2 + t * t)  # both tails, 2 degrees of freedom
    assert (alone.p, alone.adjusted) == (pytest.approx(p), pytest.approx(p))
    assert alone.verdict == "reproduced"
    others = [{"lower": "sgd", "higher": name, "primary": True} for name in ("asgd-8", "dc-8")]
    found = claims_of(mine, [one, *others], "laptop").found
    assert found[0].adjusted == pytest.approx(p)  # the largest of three, times 1
    weak = {"lower": "dc-8", "higher": "asgd-8", "margin": 3.4, "primary": True}
    assert claims_of(mine, [dict(weak, primary=False)], "laptop").found[0].verdict == "reproduced"
    both = claims_of(mine, [weak, {"lower": "sgd", "higher": "sgd", "primary": True}], "laptop")
    t = 2.6 * math.sqrt(3)
    assert both.found[0].p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert both.found[0].adjusted == pytest.approx(2 * both.found[0].p)
    assert both.found[0].verdict == "undecided"  # 0.046 alone, 0.092 in its family
    assert "| primary, p = 0.092 | undecided |" in results.markdown_claims(both)


def test_what_decides_against_a_primary_claim_has_the_p_value_of_that(mine: Path) -> None:
    """The p-value of an equivalence is 1 far outside; Holm must not turn that into undecided."""
    far: dict[str, object] = {"equal": ["sgd", "asgd-8"], "within": 5, "primary": True}
    [found] = claims_of(mine, [far], "laptop").found  # 20, 21, 22 apart
    assert found.verdict == "not reproduced"
    t = (21 - 5) * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # both tails
    word, p = above(Difference(0.2, 0.3, 5), 0.0, least=1.0)
    assert word == "not reproduced"
    t = 0.8 / Difference(0.2, 0.3, 5).error
    assert p == pytest.approx(2 * stats.t.sf(t, 4))


def test_extra_seeds_are_no_seeds_that_the_other_cell_lacks(mine: Path) -> None:
    folder = Path("results/mine/laptop/runs")
    make_run(folder / "asgd-8-seed3", [0.5] * 5)
    claim: dict[str, object] = {"lower": "dc-8", "higher": "asgd-8"}
    assert claims_of(mine, [claim], "laptop").found[0].verdict == "undecided"
    evidence = claims_of(mine, [claim], "laptop", extra_seeds={"asgd-8": 1})
    assert (evidence.found[0].verdict, evidence.found[0].difference.n) == ("reproduced", 3)
    shutil.rmtree(folder / "dc-8-seed1")  # not an extra one
    assert Evidence(evidence.study, "laptop", Path("results")).found[0].verdict == "undecided"


def test_a_seed_that_never_gets_there_leaves_a_difference_in_epochs_undecided(mine: Path) -> None:
    claim: dict[str, object] = {"lower": "dc-8", "higher": "asgd-8", "measure": "epochs_to"}
    evidence = claims_of(mine, [claim], "laptop", level=51.5)  # asgd's seed 2 stays at 52
    assert evidence.found[0].verdict == "undecided"


def test_seconds_to_a_level_are_linear_between_evaluations(mine: Path) -> None:
    # asgd falls from 90 % at 10 s to 50, 51 and 52 at 20 s, dc from 85, 84 and 83 to 45
    claim: dict[str, object] = {"lower": "dc-8", "higher": "asgd-8", "measure": "seconds_to"}
    found = claims_of(mine, [claim], "laptop", level=70).found[0]
    asgd = [10 + 10 * (90 - 70) / (90 - last) for last in (50, 51, 52)]
    dc = [10 + 10 * (first - 70) / (first - 45) for first in (85, 84, 83)]
    assert found.difference.mean == pytest.approx(np.mean(asgd) - np.mean(dc), abs=1e-12)


@pytest.mark.parametrize(("least_n", "verdict"), [(3, "reproduced"), (4, "undecided")])
def test_a_study_may_ask_for_more_seeds(mine: Path, least_n: int, verdict: str) -> None:
    claim: dict[str, object] = {"lower": "dc-8", "higher": "asgd-8"}
    assert claims_of(mine, [claim], "laptop", least_n=least_n).found[0].verdict == verdict


def test_a_curve_beyond_what_was_run_is_not_judged(mine: Path) -> None:
    (mine / "curves.csv").write_text(
        "cell,workers,split,epoch,error\nsgd,8,train,2,0.3\nsgd,8,train,9,0.3\n"
    )
    claim: dict[str, object] = {"curve": "sgd", "within": 4}
    with pytest.raises(BadInput, match="a curve is compared at epochs"):
        claims_of(mine, [claim], "laptop")
    evidence = claims_of(mine, [claim], "paper", epochs=[2, 9])  # the runs have 5 epochs
    assert (evidence.found[0].verdict, evidence.found[0].observed) == ("undecided", "")


def test_a_run_is_read_up_to_the_epoch_its_study_stops_at(mine: Path) -> None:
    evidence = claims_of(mine, [], "laptop", stop_epoch=3)
    assert len(evidence.runs["asgd-8"][0].metrics) == 3  # the runs went on to epoch 5
    path = Path("results/mine/laptop/runs/asgd-8-seed1/summary.json")
    whole = json.loads(path.read_text())
    for status, pushes, n in (
        ("stopped", 3, 3),
        ("stopped", 2, 2),
        ("diverged", 4, 3),
        ("interrupted", 4, 3),
        ("failed", 5, 2),
    ):
        pushes *= 10_000  # of batch 1
        message = {"status": status, "pushes": pushes}
        message |= {"diverged_at_push": pushes} if status == "diverged" else {}
        path.write_text(json.dumps(whole | message))
        again = Evidence(evidence.study, "laptop", Path("results"))
        assert (status, again.table.set_index("cell").loc["asgd-8", "n"]) == (status, n)
    # Its row at the stop closes the prefix, and it diverged before: it counts as guessing.
    message = {"status": "diverged", "pushes": 30_000, "diverged_at_push": 29_990}
    path.write_text(json.dumps(whole | message))
    row = Evidence(evidence.study, "laptop", Path("results")).table.set_index("cell").loc["asgd-8"]
    assert (row["n"], row["diverged"]) == (2, 1)
    stopped = replace(
        evidence.study, stop_epoch=None
    )  # to a study of whole runs a prefix is no run
    path.write_text(json.dumps(whole | {"status": "stopped"}))
    assert len(Evidence(stopped, "laptop", Path("results")).values("asgd-8")) == 2


def test_pages_tables_and_figures_are_the_same_twice(mine: Path) -> None:
    evidence = study(str(mine))
    results.write(evidence, "laptop", Path("results"))
    first = {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file()}
    results.write(evidence, "laptop", Path("results"))
    assert {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file()} == first
    assert {p.name for p in first} >= {"README.md", "cells.csv", "claims.csv", "figure.svg"}
    page = Path("results/mine/laptop/README.md").read_text()
    assert "| dc-8 < asgd-8 | +6.00 ± 2.48 | 3 | 3 | 1.0e-02 | can explain |" in page
    assert "12 runs; commit abcdef0; torch 2.15.0; a CPU, threads: 1; 12.0 h of training" in page
    line = "| asgd-8 | 3 | 51.00 ± 1.00 | 10.00 | 51.00 ± 1.00 | 11.00 | 51.00 ± 1.00 | 12.00 | - |"
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
        "prefix": (0, "y", 30.0),
        "settings": (2, "y", 30.0),
        "panels": (0, "x", 30.0),
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
    evidence = Evidence(study(str(mine)), "laptop", Path("results"))
    assert evidence.found[0].difference.n == 3
    assert evidence.found[0].verdict == "undecided"


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
    for path in [*Path("results").glob("*/*/*.md"), *Path("results").glob("*/*/*.csv")]:
        path.unlink()
    monkeypatch.setattr("dcasgd_repro.study.figures.draw", lambda evidence: NoFigure())
    assert cli.report([]) == 0
    for path in [*Path("results").rglob("*.md"), *Path("results").rglob("*.csv")]:
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
    with pytest.raises(BadInput, match=r"^results=.*: no kept runs there; give run directories"):
        cli.report([])
    assert not Path("results").exists()


def test_a_claim_without_a_test_is_in_no_family(mine: Path) -> None:
    """An order has no p-value: as a member it would never be decided, and raise the others'."""
    claim: dict[str, object] = {"order": ["sgd", "dc-8"], "measure": "epochs_to", "primary": True}
    with pytest.raises(BadInput, match="primary: order has no test"):
        claims_of(mine, [claim], "laptop")


def test_a_figure_is_one_function(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered under its name, a grid.yaml may ask for it at once."""
    monkeypatch.setattr(figures, "_REGISTERED", dict(figures.registered()))
    path = mine / "grid.yaml"
    path.write_text(path.read_text().replace("figure: table", "figure: blank"))
    with pytest.raises(BadInput, match="figure=blank: choose epochs, lambda, lr"):
        study(str(mine))

    @figures.figure("blank")
    def blank(evidence: Evidence) -> Figure:
        return figures.sheet(3, 2)

    drawn = figures.draw(Evidence(study(str(mine)), "laptop", Path("results")))
    assert drawn.get_suptitle() == "Mine (laptop scale)"
    with pytest.raises(ValueError, match="two figures are called blank"):
        figures.figure("blank")(blank)


def test_a_curve_of_survivors_says_how_many_diverged(mine: Path) -> None:
    cells_of(mine, {"a": {"error": 0.5}, "b": {"error": 0.9, "status": "diverged", "rule": "ssgd"}})
    lost = Path("results/mine/laptop/runs/a-seed1")
    make_run(lost, [0.9] * 5, status="diverged")
    named = set(lines_of(drawn(mine, "prefix")))
    assert {"asgd, n = 1, 1 diverged", "ssgd: 1 diverged"} <= {name.lower() for name in named}


def drawn(mine: Path, kind: str) -> Figure:
    return figures.draw(Evidence(replace(study(str(mine)), figure=kind), "laptop", Path("results")))


def cells_of(mine: Path, cells: dict[str, dict[str, object]]) -> None:
    """A study of these cells in place of its own: what ``make_run`` is given, and ``error``."""
    grid = yaml.safe_load((mine / "grid.yaml").read_text())
    grid |= {"cells": dict.fromkeys(cells, "a"), "claims": []}
    (mine / "grid.yaml").write_text(yaml.dump(grid, sort_keys=False))
    shutil.rmtree("results/mine")
    for cell, given in cells.items():
        path = Path(f"results/mine/laptop/runs/{cell}-seed0")
        make_run(path, [float(str(given["error"]))] * 5, **given)


def lines_of(figure: Figure, axes: int = 0) -> dict[str, tuple[str, str, list[float]]]:
    """The labelled lines of a plot: colour, dashes and heights."""
    return {
        str(line.get_label()): (
            str(line.get_color()),
            line.get_linestyle(),
            [float(y) for y in np.atleast_1d(line.get_ydata())],
        )
        for line in figure.axes[axes].lines
        if not str(line.get_label()).startswith("_")
    }


def test_a_line_against_workers_is_of_one_configuration(mine: Path) -> None:
    """27.1 and 0.34 % at two learning rates are two points, not one of 13.7 %."""
    cells: dict[str, dict[str, object]] = {}
    for base, errors in ((0.1, (0.271, 0.3)), (0.3, (0.0034, 0.01))):
        for m, error in zip((4, 8), errors, strict=True):
            config = {"lr": {"milestones": [4], "base": base}}
            cells[f"asgd-{m}-{base}"] = {"error": error, "workers": m, "config": config}
    config = {"lr": {"milestones": [4], "base": 0.1}}
    cells["sgd"] = {"error": 0.2, "workers": 1, "config": config}
    cells_of(mine, cells)
    lines = lines_of(drawn(mine, "workers"))
    assert lines["ASGD, lr.base=0.1"][2] == pytest.approx([20, 27.1, 30])  # with its own SGD
    assert lines["ASGD, lr.base=0.3"][2] == pytest.approx([0.34, 1.0])
    one, other = (lines[f"ASGD, lr.base={base}"][:2] for base in (0.1, 0.3))
    assert (one[0], one[1] == other[1]) == (other[0], False)  # the rule's colour, other dashes


def test_panels_are_settings_and_rows_are_rules(mine: Path) -> None:
    law = {"straggler": 4.0, "mean_s": 1.0}
    settings = {"": {"workers": 4}, "-16": {"workers": 16}}
    settings["-slow"] = {"workers": 4, "config": {"schedule": law}}
    errors = {"": (0.3, 0.2), "-16": (0.5, 0.4), "-slow": (0.25, 0.6)}
    cells: dict[str, dict[str, object]] = {}
    for end, (asgd, dc) in errors.items():
        given = {"config": {"schedule": {"mean_s": 1.0}}} | settings[end]
        cells[f"asgd{end}"] = {"rule": "asgd", "error": asgd, **given}
        cells[f"dcasgd_a{end}"] = {"rule": "dcasgd_a", "error": dc, **given}
    cells_of(mine, cells)
    grid = yaml.safe_load((mine / "grid.yaml").read_text())
    grid["claims"] = [{"lower": f"dcasgd_a{end}", "higher": f"asgd{end}"} for end in errors]
    (mine / "grid.yaml").write_text(yaml.dump(grid))
    figure = drawn(mine, "panels")
    assert [a.get_title() for a in figure.axes] == ["M = 4", "M = 16", "M = 4, straggler=4.0"]
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert rows == ["DC-ASGD-a", "ASGD"]  # the lower one in the first panel on top
    for axes, (asgd, dc) in zip(figure.axes, errors.values(), strict=True):
        found = [line.get_xdata()[0] for line in axes.lines]
        assert found == pytest.approx([100 * asgd, 100 * dc, 100 * asgd])  # dashed: the last


@pytest.mark.parametrize("kind", ["epochs", "workers"])
def test_rules_of_ones_own_are_told_apart_and_move_no_other(mine: Path, kind: str) -> None:
    rules = ("asgd", "dcasgd_a", "mine", "yours")
    cells = {rule: {"error": 0.1, "rule": rule} for rule in rules}
    cells_of(mine, cells)
    path = Path("results/mine/laptop/runs/mine-seed0/summary.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rule_label": "Mine, v2"}))
    lines = lines_of(drawn(mine, kind))
    assert set(lines) == {"ASGD", "DC-ASGD-a", "Mine, v2", "yours"}
    assert lines["ASGD"][:2] == ("#D55E00", "--")
    assert lines["DC-ASGD-a"][:2] == ("#0072B2", "-")
    assert len({line[:2] for line in lines.values()}) == 4
    cells_of(mine, {rule: {"error": 0.1, "rule": rule} for rule in ("asgd", "yours")})
    assert lines_of(drawn(mine, kind))["yours"][:2] == lines["yours"][:2]


def test_two_rules_of_one_label_are_two_lines(mine: Path) -> None:
    cells_of(mine, {rule: {"error": 0.1, "rule": rule} for rule in ("mine", "yours")})
    for path in Path("results/mine/laptop/runs").glob("*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rule_label": "Same"}))
    lines = lines_of(drawn(mine, "workers"))
    assert set(lines) == {"Same, rule._target_=mine", "Same, rule._target_=yours"}


def test_thirty_rules_have_their_looks_and_none_is_the_papers(mine: Path) -> None:
    cells_of(mine, {"asgd": {"error": 0.1}})
    [run] = Evidence(study(str(mine)), "laptop", Path("results")).all_runs
    names = [f"rule{k}" for k in range(30)]
    found = looks([run, *(replace(run, summary={**run.summary, "rule": n}) for n in names)])
    styles = [(found[name].colour, found[name].dashes) for name in names]
    assert len(set(styles)) == 30  # as many as there are
    assert len({(found[name].colour, found[name].marker) for name in names}) == 30
    assert not {look.colour for look in PAPERS.values()} & {colour for colour, _ in styles}


def test_cells_of_one_rule_in_one_panel_are_called_by_their_names(mine: Path) -> None:
    cells: dict[str, dict[str, object]] = {"slow": {"error": 0.1}, "fast": {"error": 0.1}}
    cells_of(mine, cells | {"dc": {"error": 0.2, "rule": "dcasgd_a"}})
    lines = lines_of(drawn(mine, "epochs"))
    assert set(lines) == {"slow", "fast", "DC-ASGD-a"}
    assert lines["slow"][:2] == ("#D55E00", "--")
    assert lines["fast"][:2] == ("#D55E00", "-")


@pytest.mark.parametrize("kind", ["epochs", "seconds", "prefix", "settings", "lambda"])
def test_the_papers_runs_are_spoken_of_where_there_are_some(mine: Path, kind: str) -> None:
    def words(figure: Figure) -> str:
        legends = [axes.get_legend() for axes in figure.axes]
        texts = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
        return " ".join([*texts, figure.get_supxlabel()])

    assert "paper" not in words(drawn(mine, kind))
    (mine / "curves.csv").write_text(
        "cell,workers,split,epoch,seconds,error\nsgd,8,test,2,20,0.3\nsgd,8,train,2,20,0.3\n"
    )
    assert "the paper's run" in words(drawn(mine, kind))


def quadratic(mine: Path) -> None:
    """The same runs of a task without classes: their test errors are their losses."""
    for path in Path("results/mine/laptop/runs").glob("*"):
        rows = pd.read_csv(path / "metrics.csv")
        rows = rows.assign(test_loss=rows["test_error"], test_error=np.nan, train_error=np.nan)
        rows.to_csv(path / "metrics.csv", index=False)
        summary = json.loads((path / "summary.json").read_text())
        summary |= {"task": "quadratic", "test_loss_final": rows["test_loss"].iloc[-1]}
        (path / "summary.json").write_text(json.dumps(summary))


def test_a_task_without_classes_is_judged_by_its_loss(mine: Path) -> None:
    quadratic(mine)
    evidence = Evidence(study(str(mine)), "laptop", Path("results"))
    dc, *_ = evidence.found
    assert (dc.verdict, dc.difference.n) == ("reproduced", 3)
    assert dc.difference.mean == pytest.approx(0.06)  # 0.05, 0.06, 0.07
    half = T2 * 0.01 / math.sqrt(3)
    results.write(study(str(mine)), "laptop", Path("results"))
    page = Path("results/mine/laptop/README.md").read_text()
    assert f"| dc-8 < asgd-8 | +0.06 ± {half:.3g} | 3 | 3 |" in page
    assert "| dc-8 | 3 | 0.45 ± 0 | -0.06 ± " in page
    assert "of the final test loss" in page
    assert "error" not in page.replace("so no errors", "")
    table = pd.read_csv("results/mine/laptop/cells.csv").set_index("cell")
    assert table.loc["asgd-8", "test_loss_final_mean"] == pytest.approx(0.51)
    Path("results/mine/laptop").rename("results/mine/smoke")
    results.write(study(str(mine)), "smoke", Path("results"))
    page = Path("results/mine/smoke/README.md").read_text()
    assert "\n`scale=smoke`, which is the scale of task quadratic.\n" in page


@pytest.mark.parametrize("kind", DRAWN)
def test_every_figure_draws_a_task_without_classes(mine: Path, kind: str) -> None:
    quadratic(mine)
    path = Path("results/mine/laptop/runs/dc-8-seed1/summary.json")
    path.write_text(path.read_text().replace('"finished"', '"diverged"'))
    figure = drawn(mine, kind)
    figure.canvas.draw()
    along_x = kind in ("panels", "readings", "table")
    lines = [line for axes in figure.axes for line in axes.lines]
    data = [np.atleast_1d(line.get_xdata() if along_x else line.get_ydata()) for line in lines]
    values = np.concatenate(data).astype(float)
    expected = -0.21 if kind == "readings" else 0.51  # asgd against sgd; asgd's mean
    assert np.isclose(values, expected).any()
    assert values.max() < 10  # no error of guessing among losses


def test_a_study_of_ones_own_is_in_the_overview_and_its_links_lead_somewhere(mine: Path) -> None:
    own = mine.parent.parent / "elsewhere" / "own"
    shutil.copytree(mine, own)
    Path("results/mine").rename("results/own")
    grid = yaml.safe_load((own / "grid.yaml").read_text())
    grid["claims"] = [{"lower": "dc-8", "higher": "asgd-8"}]  # a claim of one's own, of no paper
    (own / "grid.yaml").write_text(yaml.dump(grid, sort_keys=False))
    (own / "paper.csv").unlink()
    assert cli.report([str(own)]) == 0
    page = Path("results/own/laptop/README.md")
    [link] = re.findall(r"\[grid.yaml\]\((.*?)\)", page.read_text())
    assert (page.parent / link).resolve() == own / "grid.yaml"
    assert "The paper's numbers" not in page.read_text()
    (own / "claim.md").write_text("What I claim.")
    assert cli.report([str(own)]) == 0
    [link] = re.findall(r"\[claim.md\]\((.*?)\)", page.read_text())
    assert (page.parent / link).resolve() == own / "claim.md"
    shutil.rmtree(own)  # the overview of another day, when nobody names that folder
    assert cli.report([]) == 0
    row = "| [own](own/laptop/README.md) | laptop | 1 can explain | 12 (n = 3) | commit abcdef0;"
    assert row in Path("results/README.md").read_text()


@pytest.mark.parametrize("scale", ["paper", "laptop"])
@pytest.mark.parametrize("paper", [3, None])
def test_only_a_papers_claim_at_its_scale_is_reproduced(
    mine: Path, scale: str, paper: int | None
) -> None:
    Path("results/mine/laptop").rename(f"results/mine/{scale}")
    grid = yaml.safe_load((mine / "grid.yaml").read_text())
    pairs = [("dc-8", "asgd-8"), ("asgd-8", "sgd")]
    claims = [{"lower": a, "higher": b} | ({"paper": paper} if paper else {}) for a, b in pairs]
    (mine / "paper.csv").unlink()
    (mine / "grid.yaml").write_text(yaml.dump({**grid, "words": {}, "claims": claims}))
    evidence = Evidence(study(str(mine)), scale, Path("results"))
    of_the_paper = scale == "paper" and paper
    words = ["reproduced", "not reproduced"] if of_the_paper else ["holds", "does not hold"]
    assert list(evidence.claims["verdict"]) == words
    labels = figures.draw(evidence).axes[1].get_yticklabels()
    assert [label.get_text().partition("\n")[2] for label in labels] == words


def test_a_table_without_claims_is_drawn_without_a_warning(
    mine: Path, recwarn: pytest.WarningsRecorder
) -> None:
    grid = yaml.safe_load((mine / "grid.yaml").read_text())
    (mine / "grid.yaml").write_text(yaml.dump({**grid, "claims": []}))
    for kind in ("table", "readings"):
        drawn(mine, kind).canvas.draw()
    assert [str(warning.message) for warning in recwarn] == []


def test_a_change_counts_from_as_many_seeds_as_the_study_asks_for(mine: Path) -> None:
    folder = Path("results/mine/laptop/runs")
    for seed, points in enumerate((1.9, 2, 2)):
        dc = pd.read_csv(folder / f"dc-8-seed{seed}" / "metrics.csv")
        path = folder / f"tiny-8-seed{seed}" / "metrics.csv"
        pd.read_csv(path).assign(test_error=dc["test_error"] + points / 100).to_csv(path)
    claims: list[dict[str, object]] = [
        {"lower": "dc-8", "higher": "asgd-8"},
        {"lower": "tiny-8", "higher": "asgd-8", "than": "dc-8"},
    ]
    assert claims_of(mine, claims, "laptop").found[1].moved
    assert not claims_of(mine, claims, "laptop", least_n=4).found[1].moved


def test_what_a_kept_run_says_of_itself_makes_no_cell_tag_or_line_of_a_page(mine: Path) -> None:
    runs = Path("results/mine/laptop/runs")
    odd = "a | b <script>\n# head"
    for path in runs.iterdir():
        origin = json.loads((path / "provenance.json").read_text())
        origin |= {"device_name": odd, "git_commit": "|<b>"}
        (path / "provenance.json").write_text(json.dumps(origin))
        summary = json.loads((path / "summary.json").read_text())
        summary |= {"rule": f"mine {odd}", "rule_label": odd}
        (path / "summary.json").write_text(json.dumps(summary))
    results.write(study(str(mine)), "laptop", Path("results"))
    results.overview(Path("results"))
    cli.report([str(runs), "--out", "out"])
    for page in ("results/mine/laptop/README.md", "results/README.md", "out/table.md"):
        text = Path(page).read_text()
        assert r"a \| b &lt;script> # head" in text
        assert "<script" not in text
        assert "\n# head" not in text


def test_a_number_written_3_and_3_0_is_one_configuration(tmp_path: Path) -> None:
    make_run(tmp_path / "a-seed0", [0.3] * 5, lam=3)
    make_run(tmp_path / "a-seed1", [0.4] * 5, lam=3.0)
    [(label, group)] = grouped([Run.read(path) for path in sorted(tmp_path.iterdir())]).items()
    assert len(group) == 2
    assert label == "ASGD, M = 8"


def test_a_line_is_of_one_configuration_whether_it_says_2_or_2_0(mine: Path) -> None:
    runs = Path("results/mine/laptop/runs")
    for seed in range(3):
        shutil.rmtree(runs / f"tiny-8-seed{seed}")
        make_run(runs / f"tiny-8-seed{seed}", [0.3] * 5, rule="dcasgd_c", lam=2.0, workers=4)
    lines = Evidence(study(str(mine)), "laptop", Path("results")).lines
    assert ["dc-8", "tiny-8"] in lines.values()


def test_report_waits_for_a_study_that_keeps_its_runs(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def held(*given: object) -> str:
        with open("outputs/.keeping") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(given)
        return ""

    monkeypatch.setattr(results, "all_of", held)
    monkeypatch.setattr(report_of_runs, "comparison", held)
    Path("outputs").mkdir()
    cli.report([str(mine)])
    cli.report(["results"])
    assert len(seen) == 2


DAMAGE: dict[str, dict[str, object]] = {
    "summary.json": {"seed": "<b>", "epochs": None, "evaluated_on": "x", "wall_s": [1]},
    "provenance.json": {"threads": "<b>", "versions": [], "device_name": [1]},
    "config.yaml": {"engine": "<b>", "images": None, "rule": [1]},
    "metrics.csv": {},
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_kept_run_is_refused_by_its_name(
    mine: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(figures, "save", lambda *drawn: None)
    path = Path("results/mine/laptop/runs/dc-8-seed1") / file
    good = path.read_text()
    bad = ["", "[" * 100_000, "[1]"]
    if file == "metrics.csv":
        bad += [good.replace("1", "x"), good.replace("train_error", "error")]
    for key, value in DAMAGE[file].items():
        bad.append(json.dumps({**yaml.safe_load(good), key: value}))
    for text in bad:
        path.write_text(text)
        with pytest.raises(BadInput, match=r"dc-8-seed1: "):
            results.write(study(str(mine)), "laptop", Path("results"))
