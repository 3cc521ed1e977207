"""The Taylor probe: closed forms, a second computation, a run that it leaves alone, its page."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torture
import yaml
from omegaconf import DictConfig, OmegaConf
from test_resume import quiet, stop_at

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import ASGD, Arrival, DCASGDa, DCASGDc, Direction, Rule
from dcasgd_repro.run import experiment, read, taylor
from dcasgd_repro.run.plan import plan_of
from dcasgd_repro.run.probe import Probe
from dcasgd_repro.schedule import Constant, Generated
from dcasgd_repro.simulate import Server, apply, simulate
from dcasgd_repro.study import pages as results
from dcasgd_repro.study import probed, reproduce
from dcasgd_repro.study import runs as report
from dcasgd_repro.study.grid import Cell, Claim, study
from dcasgd_repro.tasks import Quadratic

CPU = torch.device("cpu")
SEEN: list[Arrival] = []


def watched(rule: Rule, arrival: Arrival, state: object) -> object:
    SEEN.append(arrival)
    return apply(rule, arrival, state)


def rows_of(
    conf: Quadratic, rule: Rule, workers: int, pushes: int, batch: int = 1, lr: float = 0.1
) -> tuple[list[dict], list[Arrival]]:
    """Every push probed, and the arrivals themselves."""
    task = conf.on(CPU)
    server = Server(rule, task.initial(0), workers)
    SEEN.clear()
    server.apply = watched
    probe = Probe(task, server, every=1, batch=batch)
    messages = Generated(workers, 0, Constant(1.0)).messages(pushes)
    for _ in simulate(task, server, messages, lambda push: lr):
        pass
    return probe.rows, list(SEEN)


def test_on_a_quadratic_the_best_lambda_is_h_over_g_squared() -> None:
    """``g_t - g = h drift``, so along g g drift it is h / g^2, along |g| drift h / |g|."""
    h = 0.7
    rows, arrivals = rows_of(Quadratic(curvature=[h], start=2.0), ASGD(), 4, 12, lr=0.3)
    assert [row["delay"] for row in rows[:5]] == [0, 1, 2, 3, 3]
    for row, arrival in zip(rows[1:], arrivals[1:], strict=True):
        g, drift = arrival.grad.item(), arrival.drift.item()
        assert row["gap_norm"] == abs(drift)
        assert row["lambda_gg"] == pytest.approx(h / g**2, rel=1e-12)
        assert row["lambda_abs"] == pytest.approx(h / abs(g), rel=1e-12)
        # In one dimension every direction is the right one, up to its length.
        assert [row[f"best_{y}"] for y in taylor.DIRECTIONS] == pytest.approx([1] * 3, abs=1e-12)
        c = 0.04 * g * g * drift
        assert row["size_c"] == pytest.approx(abs(c / g), rel=1e-12)
        assert row["removed_c"] == pytest.approx(1 - (1 - c / (h * drift)) ** 2, rel=1e-12)
        assert row["stale_error"] == pytest.approx(abs(h * drift / (g + h * drift)), rel=1e-12)


def test_at_the_best_lambda_all_of_the_error_is_removed() -> None:
    h, w, w_bak = 0.7, torch.tensor([1.1]).double(), torch.tensor([2.0]).double()
    arrival = Arrival(h * w_bak, w, w_bak, 0, 1, 0.1)
    best = h / (h * w_bak.item()) ** 2
    asked = {x: DCASGDc(best).direction(arrival, None).correction for x in ("c", "abs", "a_2")}
    row = taylor.compare(arrival, h * w, asked)
    assert row["removed_c"] == pytest.approx(1, abs=1e-12)
    assert row["cos_c"] == pytest.approx(1, abs=1e-12)
    assert row["lambda_gg"] == pytest.approx(0.04, rel=1e-12)  # c is 0.04 u: best is that u's own


def by_numpy(arrivals: list[Arrival], h: np.ndarray, batch: int) -> pd.DataFrame:
    """All columns once more, from the definitions, on the quadratic's own gradient h w + xi."""
    mean_square, found = np.zeros(len(h)), []
    for push, arrival in enumerate(arrivals, 1):
        g, w, w_bak = (x.numpy() for x in (arrival.grad, arrival.w, arrival.w_bak))
        drift = w - w_bak
        mean_square = 0.95 * mean_square + 0.05 * g**2
        row = {"push": push, "worker": arrival.worker, "delay": arrival.delay}
        row |= {"epoch": push, "gap_norm": np.sqrt((drift**2).sum())}
        found.append(row)
        if not arrival.delay:
            continue
        g_t = g - h * w_bak + h * w
        e, u = g_t - g, {"gg": g * g * drift, "abs": np.abs(g) * drift}
        u["a"] = u["gg"] / np.sqrt(mean_square + 1e-7)
        row["grad_norm"] = np.linalg.norm(g)
        row["stale_error"] = np.linalg.norm(e) / np.linalg.norm(g_t)
        row["cos"] = g @ g_t / np.linalg.norm(g) / np.linalg.norm(g_t)
        corrections = {"c": 0.04 * u["gg"], "c_sum": 0.04 * batch * u["gg"]}
        corrections |= {"abs": 0.04 * u["abs"], "a_0.5": 0.5 * u["a"], "a_2": 2 * u["a"]}
        for x, c in corrections.items():
            row[f"size_{x}"] = np.linalg.norm(c) / np.linalg.norm(g)
            row[f"cos_{x}"] = (g + c) @ g_t / np.linalg.norm(g + c) / np.linalg.norm(g_t)
            row[f"removed_{x}"] = 1 - np.sum((g_t - g - c) ** 2) / np.sum(e**2)
        for y, v in u.items():
            [best], [left], *_ = np.linalg.lstsq(v[:, None], e, rcond=None)
            row |= {f"lambda_{y}": best, f"best_{y}": 1 - left / np.sum(e**2)}
    return pd.DataFrame(found)


def test_all_columns_by_a_second_computation() -> None:
    conf = Quadratic(curvature=[1.0, 0.2, -0.3], noise=0.3, start=1.5)
    rows, arrivals = rows_of(conf, DCASGDc(0.5), 3, 40, batch=8)
    ours = pd.DataFrame(rows, columns=list(taylor.COLUMNS)).astype(float)
    theirs = by_numpy(arrivals, np.array(conf.curvature), 8)[list(taylor.COLUMNS)].astype(float)
    assert set(theirs) == set(taylor.COLUMNS)
    assert ours["cos"].isna().sum() == 1  # the first push alone is fresh
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-9, atol=1e-13)
    assert (ours["lambda_gg"] < 0).any()  # a negative curvature, and noise
    assert (ours["lambda_gg"] > 0).any()


def test_its_dc_asgd_a_is_the_rules_own_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the run itself is DC-ASGD-a with lambda_0 = 2, and at pushes between probes too."""
    task = Quadratic(curvature=[1.0, 0.2], noise=0.5).on(CPU)
    server = Server(DCASGDa(2.0), task.initial(0), 4)
    real: list[torch.Tensor] = []

    def kept(rule: Rule, arrival: Arrival, state: object) -> object:
        real.append(rule.direction(arrival, state).correction)
        return apply(rule, arrival, state)

    server.apply = kept
    shadows: list[torch.Tensor] = []
    compare = taylor.compare

    def seen(arrival: Arrival, g_t: torch.Tensor, corrections: dict) -> dict:
        shadows.append(corrections["a_2"])
        assert list(corrections) == list(taylor.candidates(1))
        return compare(arrival, g_t, corrections)

    monkeypatch.setattr(taylor, "compare", seen)
    Probe(task, server, every=7)
    messages = Generated(4, 0, Constant(1.0)).messages(70)
    for _ in simulate(task, server, messages, lambda push: 0.1):
        pass
    assert len(shadows) == 10
    assert all(torch.equal(a, b) for a, b in zip(shadows, real[6::7], strict=True))
    assert all(a.abs().sum() > 0 for a in shadows)


class Ahead(ASGD):
    """Sends a vector that is half of w."""

    name = "ahead"

    def sends(self, w: torch.Tensor, state: object, worker: int) -> torch.Tensor:
        return w / 2


def test_a_rule_that_looks_ahead_is_compared_at_what_was_sent() -> None:
    """g is h sent; its backup is what was sent, as the rules have it."""
    rows, arrivals = rows_of(Quadratic(curvature=[0.5]), Ahead(), 2, 4)
    [sent, w] = arrivals[1].w_bak.item(), arrivals[1].w.item()
    assert (sent, w) == (0.5, 1 - 0.1 * 0.5 * 0.5)
    assert rows[1]["gap_norm"] == w - sent
    assert rows[1]["stale_error"] == pytest.approx((w - sent) / w, rel=1e-12)


class Standing(ASGD):
    """Never moves."""

    name = "standing"

    def direction(self, arrival: Arrival, state: object) -> Direction:
        return Direction(arrival.grad * 0, state)


@pytest.mark.parametrize(
    ("conf", "rule", "workers"),
    [
        (Quadratic(), ASGD(), 1),  # no delay
        (Quadratic(), Standing(), 4),  # a delay without drift
        (Quadratic(curvature=[0.0]), ASGD(), 4),  # no gradient
    ],
)
def test_nothing_to_correct_leaves_cells_empty(conf: Quadratic, rule: Rule, workers: int) -> None:
    rows, _ = rows_of(conf, rule, workers, 8)
    assert [row["push"] for row in rows] == list(range(1, 9))
    assert {row["gap_norm"] for row in rows} == {0.0}
    assert all(not row.keys() - {"push", "epoch", "worker", "delay", "gap_norm"} for row in rows)


def test_what_is_undefined_is_none() -> None:
    zero, one = torch.zeros(2).double(), torch.ones(2).double()
    nothing = dict.fromkeys(taylor.candidates(1), zero)
    row = taylor.compare(Arrival(one, one, zero, 0, 1, 0.1), one, nothing)  # no error
    assert (row["stale_error"], row["removed_c"], row["lambda_gg"]) == (0, None, None)
    row = taylor.compare(Arrival(zero, one, zero, 0, 1, 0.1), one, nothing)  # no gradient
    assert (row["cos"], row["size_c"], row["removed_c"]) == (None, None, 0)
    huge = dict.fromkeys(taylor.candidates(1), one * 1e300)
    row = taylor.compare(Arrival(one, one, zero, 0, 1, 0.1), 2 * one, huge)
    assert [row["size_c"], row["removed_c"], row["best_gg"]] == [None] * 3
    assert all(value is None or math.isfinite(value) for value in row.values())


# Runs. Dropout would draw numbers; BatchNorm keeps none while it trains.
CELL = ["rule=asgd", "schedule=exponential"]


def table(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "probe.csv")


@pytest.mark.parametrize(
    ("engine", "rule"), [("plain", "dcasgd_a"), ("threads", "asgd"), ("waves", "dcasgd_a")]
)
def test_a_probe_changes_no_bit_of_a_run(engine: str, rule: str, tmp_path: Path) -> None:
    keys = [f"engine={engine}", f"rule={rule}", "schedule=exponential", "checkpoint.every_s=60"]
    keys += ["log_every=1", "epochs=2"]
    without = quiet(torture.config(keys, tmp_path / "without"))
    probed = quiet(torture.config([*keys, "probe.every=3"], tmp_path / "probed"))
    a, b = (read.Run.read(run) for run in (without, probed))
    assert a.summary["weights_sha256"] == b.summary["weights_sha256"]
    metrics = b.metrics.drop(columns="wall_s")
    pd.testing.assert_frame_equal(a.metrics.drop(columns="wall_s"), metrics, check_exact=True)
    assert not (without / "probe.csv").exists()
    rows = table(probed)
    assert list(rows) == list(taylor.COLUMNS)
    assert rows["push"].tolist() == list(range(3, 33, 3))
    assert rows["epoch"].tolist() == [push * 4 / 64 for push in rows["push"]]
    stale = rows[rows["delay"] > 0]
    assert len(stale) > 5
    assert stale.notna().all(axis=None)
    assert rows[rows["delay"] == 0]["cos"].isna().all()
    there = metrics.set_index("push").loc[stale["push"]]  # log_every=1: each push's own
    assert stale["gap_norm"].tolist() == pytest.approx(there["gap_norm"].tolist(), rel=1e-8)
    if rule == "dcasgd_a":  # what it would add is what the run did add
        assert stale["size_a_2"].tolist() == pytest.approx(there["dc_ratio"].tolist(), rel=1e-8)


def probing(run: Path, every_s: int) -> DictConfig:
    return torture.config([*CELL, "probe.every=3", f"checkpoint.every_s={every_s}"], run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiet(probing(tmp_path_factory.mktemp("probed") / "run", 60))


@pytest.mark.parametrize("push", [8, 33])
def test_after_a_stop_each_row_is_there_once_to_the_byte(
    push: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = probing(tmp_path / "run", 0)
    with monkeypatch.context() as patched:
        stop_at(push, patched)
        run = quiet(cfg)
    assert len(table(run)) == push // 3
    experiment.run(plan_of(cfg), say=lambda line: None, until=push + 10)
    with (run / "probe.csv").open("a") as file:  # as a process leaves it that was killed
        file.write("93,1,0\n94")
    quiet(cfg)
    assert list(torture.differences(run, whole)) == []  # probe.csv's bytes and its curves, too
    assert table(run)["push"].tolist() == list(range(3, 65, 3))


def test_a_probe_does_not_begin_in_the_middle(tmp_path: Path) -> None:
    cfg = torture.config([*CELL, "epochs=1"], tmp_path / "run")
    experiment.run(plan_of(cfg), say=lambda line: None, until=10)
    with pytest.raises(BadInput, match=r"^probe\.every=5: this run was begun without it; leave"):
        quiet(OmegaConf.merge(cfg, {"probe": {"every": 5}}))
    assert read.Run.read(quiet(cfg)).finished


def test_a_run_that_goes_on_without_its_probe_keeps_its_rows(tmp_path: Path) -> None:
    cfg = torture.config([*CELL, "probe.every=5", "epochs=1"], tmp_path / "run")
    experiment.run(plan_of(cfg), say=lambda line: None, until=11)
    cfg.probe.every = None
    assert table(quiet(cfg))["push"].tolist() == [5, 10]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe.every=0"], "probe.every=0: give a whole number >= 1"),
        (["probe.every=-3"], "probe.every=-3: give a whole number >= 1"),
        (["probe.every=2.5"], "probe.every=2.5: give a whole number >= 1"),
        (["probe.every=often"], "probe.every=often: give a whole number >= 1"),
        (
            ["task=quadratic", "probe.every=10"],
            "probe.every=10: task quadratic has no network to differentiate; leave it out",
        ),
    ],
)
def test_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    every = [*torture.SMALL[2:], "task=synthetic", f"run_dir={run}", "rule=asgd", *words]
    if "task=quadratic" in words:
        every = ["rule=asgd", f"run_dir={run}", *words]
    assert cli.dispatch("train", ["scale=smoke", *every]) == 2
    assert capsys.readouterr().err == f"dcasgd-repro: {message}\n"
    assert not run.exists()


def test_evaluations_change_no_bit_so_the_study_has_table_1s_weights(
    whole: Path, tmp_path: Path
) -> None:
    """As taylor_cifar10 says of eval_every: rows of the same pushes are equal, and the weights."""
    rarely = quiet(torture.config([*CELL, "eval_every=2"], tmp_path / "rarely"))
    a, b = (read.Run.read(run) for run in (whole, rarely))
    assert a.summary["weights_sha256"] == b.summary["weights_sha256"]
    assert len(a.metrics) > len(b.metrics)
    same_rows(a, b, [5, 10, 15, 32, 64])


def same_rows(a: read.Run, b: read.Run, pushes: list[int]) -> None:
    apart = ["wall_s", "batch_error"]
    rows = [run.metrics.set_index("push").loc[pushes].drop(columns=apart) for run in (a, b)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)


def test_the_kept_run_of_the_study_is_the_beginning_of_table_1s() -> None:
    kept = [
        Path(__file__).parents[2] / f"results/{name}/paper/runs/asgd-8-seed0"
        for name in ("taylor_cifar10", "prefix_cifar10")
    ]
    if not all(path.exists() for path in kept):
        pytest.skip("one of the two runs has not been made")
    same_rows(*map(read.Run.read, kept), [50, 100, 150, 200, 1954])


def test_kept_to_six_digits(whole: Path, tmp_path: Path) -> None:
    job = reproduce.Job(Cell("a", ()), 0, (), 64, whole)
    reproduce.keep([job], tmp_path)
    ours, theirs = table(whole), table(tmp_path / "a-seed0")
    pd.testing.assert_frame_equal(ours, theirs, rtol=5e-6, atol=0)
    assert (tmp_path / "a-seed0" / "probe.csv").stat().st_size < 280 * len(ours)
    report.keep(whole, tmp_path / "b")
    assert (tmp_path / "b" / "probe.csv").read_bytes() == (whole / "probe.csv").read_bytes()


def test_the_ranks_of_the_sign_test() -> None:
    """From any table of the sign test, 95 % two-sided: no interval below 6, then these."""
    ranks = {0: 0, 5: 0, 6: 1, 8: 1, 9: 2, 12: 3, 15: 4, 20: 6, 25: 8, 40: 14}
    assert {n: probed.rank(n) for n in ranks} == ranks


def blocks(values: list[float], seed: int = 0, every: int = 20) -> pd.DataFrame:
    """Rows of probe.csv, each block of 100 pushes at its value but for one far outlier."""
    pushes = np.arange(every, 100 * len(values) + 1, every)
    column = np.repeat(values, 100 // every).astype(float)
    column[:: 100 // every] = 1e6
    return pd.DataFrame({"push": pushes, "seed": seed, "removed_c": column})


def test_a_blocks_median_counts_once() -> None:
    found = probed.median(blocks(list(range(20))), "removed_c")
    assert found == (9.5, 5.0, 14.0, 20)  # the 6th and the 15th
    assert str(found) == "9.5 [5, 14]"
    half_a_block = blocks(list(range(20))).iloc[:-2]
    assert probed.median(half_a_block, "removed_c").n == 19
    two = pd.concat([blocks([0.0] * 10), blocks([2.0] * 10, seed=1)])
    assert probed.median(two, "removed_c") == (1.0, 0.0, 2.0, 20)
    few = probed.median(blocks([1.0, 2.0, 3.0]), "removed_c")
    assert (str(few), few.half) == ("2", math.inf)
    assert str(probed.median(two.iloc[:0], "removed_c")) == "-"
    with pytest.raises(BadInput, match=r"^probe=removed_x: no such column; choose push, seed"):
        probed.median(two, "removed_x")


@pytest.mark.parametrize(
    ("above", "below", "message"),
    [
        (None, 15, "reproduced"),
        (4, None, "reproduced"),
        (4, 15, "reproduced"),
        (5, None, "undecided"),  # its end is not above it
        (10, None, "undecided"),
        (None, 10, "undecided"),
        (15, None, "not reproduced"),
        (None, 4, "not reproduced"),
        (20, 30, "not reproduced"),
    ],
)
def test_verdicts(above: float | None, below: float | None, message: str) -> None:
    claim = Claim("probe", ("a",), column="removed_c", above=above, below=below)
    assert probed.verdict(claim, probed.Median(9.5, 5.0, 14.0, 20)) == message
    assert probed.verdict(claim, probed.Median(9.5, -math.inf, math.inf, 3)) == "undecided"


def test_its_names_are_the_columns_own() -> None:
    assert tuple(taylor.candidates(1)) == probed.NAMES
    assert probed.LAM == taylor.LAM
    assert [probed.words(name, 128) for name in probed.NAMES[:3]] == [
        "0.04 g g drift",
        "5.12 g g drift",
        "0.04 |g| drift",
    ]


@pytest.fixture
def mine(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one cell and two seeds in an empty folder; three epochs of four count."""
    monkeypatch.chdir(tmp_path)
    grid = {
        "title": "Mine",
        "figure": "taylor",
        "stop_epoch": 3,  # of 4, past the drop of the learning rate at 2
        "cells": {"asgd-4": "x"},
        "claims": [{"probe": "removed_c", "cell": "asgd-4", "above": -1, "below": 1}],
    }
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text(yaml.dump(grid))
    for seed in (0, 1):
        kept = tmp_path / f"results/mine/smoke/runs/asgd-4-seed{seed}"
        report.keep(whole, kept)
        summary = {**json.loads((kept / "summary.json").read_text()), "seed": seed}
        (kept / "summary.json").write_text(json.dumps(summary | {"status": "stopped"}))
    return folder


def test_the_page_has_medians_and_quartiles(mine: Path, whole: Path) -> None:
    results.write(study(str(mine)), "smoke", Path("results"))
    here = Path("results/mine/smoke")
    text = (here / "README.md").read_text()
    rows = table(whole)
    rows = rows[(rows["epoch"] <= 3) & rows["cos"].notna()]
    found = pd.read_csv(here / "probes.csv").set_index("candidate")
    assert found["n"].tolist() == [2 * len(rows)] * 5
    twice = pd.concat([rows, rows])
    for name in probed.NAMES:
        for key, column in (("size", f"size_{name}"), ("removed", f"removed_{name}")):
            quarters = twice[column].quantile([0.25, 0.5, 0.75]).tolist()
            ours = [found.loc[name, k] for k in (f"{key}_q1", key, f"{key}_q3")]
            assert ours == pytest.approx(quarters, rel=1e-5)
    low, middle, high = twice["cos"].quantile([0.25, 0.5, 0.75])
    assert text.count(f"| {middle:.3g} [{low:.3g}, {high:.3g}] |") >= 5
    assert "| 0.04 \\|g\\| drift |" in text
    assert "| -1 < median removed_c of asgd-4 < 1 | - | 0 | undecided |" in text  # no whole block
    assert "last-10 error, the right cell's" not in text
    picture = (here / "figure.svg").read_bytes()
    results.write(study(str(mine)), "smoke", Path("results"))
    assert (here / "figure.svg").read_bytes() == picture


def test_a_page_without_probes_is_drawn_too(mine: Path) -> None:
    for path in Path("results/mine/smoke/runs").glob("*/probe.csv"):
        path.unlink()
    message = results.write(study(str(mine)), "smoke", Path("results"))
    assert "no run has a probe.csv" in Path("results/mine/smoke/figure.svg").read_text()
    assert "| -1 < median removed_c of asgd-4 < 1 | - | 0 | undecided |" in message
    assert "staleness error" not in message
    shutil.rmtree(mine)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"probe": "removed_c", "cell": "b", "above": 0}, "a claim names b, which is no cell"),
        ({"probe": "removed_c", "cell": "a"}, "probe: give above, below or both"),
        ({"probe": "removed_c", "cell": "a", "within": 1}, "a claim with within"),
    ],
)
def test_a_claim_that_is_none_is_refused(claim: dict, message: str, tmp_path: Path) -> None:
    grid = {"title": "t", "cells": {"a": ""}, "claims": [claim]}
    (tmp_path / "grid.yaml").write_text(yaml.dump(grid))
    with pytest.raises(BadInput, match=message):
        study(str(tmp_path))
