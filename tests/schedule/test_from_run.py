"""Workers fitted to a recorded run: the laws, what the fit reads, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.reactive import Reactive
from dcasgd_repro.rules import Ringmaster
from dcasgd_repro.schedule import (
    PULL,
    PUSH,
    Constant,
    Disturbed,
    Exponential,
    Failures,
    FromDelays,
    FromRun,
    Gamma,
    Generated,
    Lognormal,
    Schedule,
    Shifted,
)
from dcasgd_repro.schedule.from_run import apart, distribution, durations, fit_table, fitted
from dcasgd_repro.study import runs

GAMMA = [1.0, 0.1, 0.2, "gamma"]


def kept(folder: Path, log: Schedule) -> str:
    folder.mkdir(exist_ok=True)
    log.save(folder / "schedule.csv.gz")
    return str(folder)


def log_of(*messages: tuple[float, int, int], workers: int = 1) -> Schedule:
    clock, kind, worker = zip(*messages, strict=True)
    return Schedule(clock, kind, worker, workers)


def alternating(since: float, pushes: int, each_s: float = 2.0) -> list[tuple[float, int, int]]:
    """Pulls and pushes of worker 0."""
    pairs = [(since + k * each_s, since + (k + 1) * each_s) for k in range(pushes)]
    return [line for a, b in pairs for line in ((a, PULL, 0), (b, PUSH, 0))]


def law_of(row: tuple[float, float, float, str]) -> Shifted:
    return FromRun(None, 1, 0, busy=[row], away=[[0, 0, 0, "gamma"]]).like(0)[0]


@pytest.mark.parametrize("least_s", [0.0, 1.5])
@pytest.mark.parametrize("name", ["gamma", "lognormal"])
def test_the_law_has_its_moments_and_its_least_time(name: str, least_s: float) -> None:
    """Against scipy's exact moments, and scipy's function against the times that are drawn."""
    made = law_of((2.0, 0.3, least_s, name))
    frozen = distribution(made)
    mean, variance = frozen.stats("mv")
    assert [mean, np.sqrt(variance) / mean] == pytest.approx([2.0, 0.3], rel=1e-9)
    assert frozen.support()[0] == least_s
    drawn = made.sample(np.random.default_rng(0), 20_000)
    expected = stats.ks_1samp(drawn, frozen.cdf)
    assert expected.pvalue > 0.01
    assert apart(drawn, made) == pytest.approx(expected.statistic, rel=1e-12)
    assert drawn.min() >= least_s
    assert law_of((2.0, 0.0, 0.0, name)).sample(np.random.default_rng(0), 2).tolist() == [2.0, 2.0]


FITTED = {
    "gamma 0.2": (Gamma(1.0, 0.2), "gamma"),
    "gamma 1": (Gamma(1.0, 1.0), "gamma"),
    "exponential": (Exponential(1.0), "gamma"),
    "lognormal 0.8": (Lognormal(1.0, 0.8), "lognormal"),
    "lognormal 1.5": (Lognormal(1.0, 1.5), "lognormal"),
    "a least time": (Shifted(0.8, Exponential(0.2)), "gamma"),
    "a least time, lognormal": (Shifted(2.0, Lognormal(1.0, 1.0)), "lognormal"),
}


@pytest.mark.parametrize("known", FITTED)
def test_a_known_law_is_fitted_back(known: str) -> None:
    """Of 2,000 durations, four times: each near for a fitted law, and three of the right name."""
    law, name = FITTED[known]
    names = []
    for seed in range(4):
        seconds = law.sample(np.random.default_rng(seed), 2_000)
        row = fitted(seconds)
        names.append(row[3])
        assert apart(seconds, law_of(row)) < 0.02
        assert row[0] == pytest.approx(seconds.mean(), rel=0.03)
        assert row[2] <= seconds.min()
        assert (row[2] > 0) == isinstance(law, Shifted)
    assert names.count(name) >= 3


def test_one_stall_does_not_move_the_others() -> None:
    seconds = Gamma(1.0, 0.3).sample(np.random.default_rng(0), 2_000)
    mean = seconds.mean()
    seconds[77] = 3600.0
    row = fitted(seconds)
    assert row[:2] == pytest.approx((mean, 0.3), rel=0.25)
    assert apart(seconds, law_of(row)) < 0.05


def test_a_known_gamma_is_fitted_back_within_its_standard_error(tmp_path: Path) -> None:
    """Of n gamma times, asymptotically."""
    speeds, cv = [1.0, 2.0, 0.25], 0.2
    log = Generated(3, 7, Gamma(1.0, cv), speeds=speeds).messages(20_000)
    made = FromRun(kept(tmp_path / "run", log), workers=3, seed=0)
    for speed, row, away in zip(speeds, made.busy, made.away, strict=True):
        n = len(durations(log, "")[speeds.index(speed)].busy)
        errors = [cv / speed / np.sqrt(n), cv * np.sqrt((1 + 2 * cv**2) / (2 * n))]
        off = (np.array(row[:2]) - [1 / speed, cv]) / errors
        assert np.abs(off).max() < 3, off
        assert row[2:] == (0.0, "gamma")
        assert away == (0.0, 0.0, 0.0, "gamma")
    assert fit_table(made)["apart"].max() < 0.03
    assert set(fit_table(made)["lost"]) == {0}


def test_the_new_workers_have_the_delays_of_the_run(tmp_path: Path) -> None:
    """Mean and spread of each worker's delays, and the time that a push takes."""
    log = Generated(
        4, 1, Lognormal(0.1, 0.5), communication=Exponential(0.02), straggler=3.0, request_share=0.5
    ).messages(20_000)
    made = FromRun(kept(tmp_path / "run", log), workers=4, seed=5)
    anew = made.messages(20_000)
    assert made.away[0][:2] == pytest.approx((0.01, 1.0), rel=0.1)
    assert anew.duration_s == pytest.approx(log.duration_s, rel=0.02)
    for m in range(4):
        was, now = (x.delays()[x.worker[x.kind == PUSH] == m] for x in (log, anew))
        assert now.mean() == pytest.approx(was.mean(), rel=0.03)
        assert now.std() == pytest.approx(was.std(), rel=0.1)


def test_any_number_of_workers_each_like_one_of_the_run(tmp_path: Path) -> None:
    log = Generated(4, 1, Gamma(1.0, 0.2), straggler=3.0).messages(2_000)
    run = kept(tmp_path / "run", log)
    made = FromRun(run, workers=32, seed=0)
    anew = made.messages(20_000)
    counts = np.bincount(anew.worker[anew.kind == PUSH])
    slow = counts[::4].mean() / np.delete(counts, np.s_[::4]).mean()
    assert slow == pytest.approx(1 / 3, rel=0.05)
    assert anew.delays().mean() == pytest.approx(31, abs=0.3)
    fewer = FromRun(run, workers=5, seed=0)
    for m in range(5):  # more workers leave the times there were
        mine = [log.clock[log.worker == m][:99] for log in (anew, fewer.messages(2_000))]
        assert np.array_equal(*mine)
    rounds = FromRun(run, workers=32, seed=0, barrier=True).messages(320)
    assert rounds.in_rounds
    ringmaster = Reactive(FromRun(run, workers=8, seed=0), Ringmaster(threshold=2)).messages(500)
    assert ringmaster.stopped > 0


def test_what_was_fitted_is_all_that_counts(tmp_path: Path) -> None:
    log = Generated(2, 1, Gamma(1.0, 0.2)).messages(200)
    made = FromRun(Path(kept(tmp_path / "run", log)), workers=3, seed=4)
    assert made.run == str(tmp_path / "run")
    (tmp_path / "run" / "schedule.csv.gz").unlink()
    again = FromRun("elsewhere", 3, 4, busy=[list(x) for x in made.busy], away=made.away)
    assert again.messages(500).sha256() == made.messages(500).sha256()


def test_a_process_that_starts_is_slow_and_does_not_count() -> None:
    restarted = [(9.5, PULL, 0), (10.0, PUSH, 0), (10.0, PULL, 0), (20.0, PULL, 0), (27.0, PUSH, 0)]
    log = log_of((0.0, PULL, 0), (9.0, PUSH, 0), *restarted, *alternating(28.0, 40))
    (found,) = durations(log, "run")
    assert found.busy.tolist() == [0.5] + [2.0] * 40
    assert found.away.tolist() == [0.5, 0.0, 1.0] + [0.0] * 39
    assert found.lost == 1


def test_waiting_for_others_is_not_a_workers_own_time(tmp_path: Path) -> None:
    log = Generated(4, 1, Gamma(1.0, 0.3), straggler=3.0, barrier=True).messages(4_000)
    found = durations(log, "run")
    assert [one.away.tolist() for one in found] == [[0.0]] * 4
    assert found[0].busy.mean() == pytest.approx(3 * found[1].busy.mean(), rel=0.03)
    anew = FromRun(kept(tmp_path / "run", log), 4, 0, barrier=True).messages(4_000)
    assert anew.duration_s == pytest.approx(log.duration_s, rel=0.02)


def test_constant_times_stay_constant(tmp_path: Path) -> None:
    log = Generated(2, 0, Constant(0.1), speeds=[1.0, 0.5]).messages(300)
    made = FromRun(kept(tmp_path / "run", log), workers=2, seed=0)
    assert made.busy == ((0.1, 0.0, 0.0, "gamma"), (0.2, 0.0, 0.0, "gamma"))
    assert np.allclose(made.messages(300).clock, log.clock, rtol=1e-12, atol=0)
    assert fit_table(made)["apart"].tolist() == [0.0, 0.0]
    assert fitted(np.full(5, 1e9)) == (1e9, 0.0, 0.0, "gamma")


def of_one_worker(seconds: Any) -> Schedule:
    """A log of its durations, one after another."""
    clock = np.repeat(np.concatenate([[0.0], np.cumsum(seconds)]), 2)[1:-1]
    n = len(seconds)
    return Schedule(clock, np.tile([PULL, PUSH], n), np.zeros(2 * n, np.int32), 1)


def test_where_no_law_fits_the_page_says_so(tmp_path: Path) -> None:
    """Half of the times are twice as long; and none are."""
    rng = np.random.default_rng(0)
    seconds = rng.normal(1.0, 0.02, 2_000)
    for factor, above in ((2.0, True), (1.0, False)):
        seconds[::2] *= factor
        made = FromRun(kept(tmp_path / f"{factor}", of_one_worker(seconds)), 1, 0)
        said = runs.schedule(made.messages(100), tmp_path / "out", like=made)
        assert (fit_table(made)["apart"][0] > 0.1) == above
        line = "note: worker(s) 0: the time from pull to push is none of these laws; look at the fi"
        assert (line in said) == above
        assert abs(fit_table(made)["lag1"][0]) <= 1.0
        seconds[::2] /= factor


def test_a_cv_beyond_that_of_a_law_is_cut() -> None:
    seconds = np.array([0.0] * 9_999 + [1.0])  # a cv of 100
    row = fitted(seconds)
    assert row[1] == pytest.approx(5.0, rel=1e-3)
    assert apart(seconds, law_of(row)) > 0.1


def test_where_a_cv_is_cut_or_gradients_were_lost_the_page_says_so(tmp_path: Path) -> None:
    seconds = np.random.default_rng(0).lognormal(0.0, 2.0, 2_000)  # cv 7.3
    made = FromRun(kept(tmp_path / "wide", of_one_worker(seconds)), 1, 0)
    assert fit_table(made)["apart"][0] < 0.1
    said = runs.schedule(made.messages(100), tmp_path / "out", like=made)
    assert "note: worker(s) 0: the times vary more than any law here; their cv is cut to 5" in said
    assert "lost" not in said.split("delays of its")[1]

    log = Disturbed(4, 3, Gamma(1.0, 0.3), failures=Failures(50.0, 10.0)).messages(4_000)
    made = FromRun(kept(tmp_path / "down", log), 4, 0)
    said = runs.schedule(made.messages(100), tmp_path / "out", like=made)
    found = re.search(r"pushes per second: recorded ([\d.]+), fitted ([\d.]+); gradients", said)
    assert found
    assert float(found[1]) == pytest.approx(log.pushes / log.duration_s, rel=1e-3)
    assert float(found[2]) == pytest.approx(4.0, rel=0.02)  # as if nobody were ever down
    assert "gradients were lost, and the time that workers were down is not modelled" in said


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (None, "there is no such run directory"),
        ("empty", "has no schedule.csv.gz; kept runs leave it out: name the folder where it was"),
        (
            log_of((0.0, PULL, 0), *alternating(2.0, 30)[1:]),
            "worker 0 has 29 durations that count; 30",
        ),
        (log_of(*alternating(2.0, 50, 0.0)), "worker 0 takes no time there"),
        (
            log_of(*alternating(0.0, 40), *[(80.0 + k, PULL, 0) for k in range(6)]),
            "worker 0 lost 5 of 45 gradients: how long the lost ones took is not known",
        ),
    ],
)
def test_a_run_that_says_nothing_is_refused(tmp_path: Path, log: Any, text: str) -> None:
    if isinstance(log, Schedule):
        kept(tmp_path / "run", log)
    elif log == "empty":
        (tmp_path / "run").mkdir()
    with pytest.raises(BadInput, match=f"^run={tmp_path}/run: {text}"):
        FromRun(tmp_path / "run", 2, 0)


def test_a_made_up_clock_is_refused(tmp_path: Path) -> None:
    delays = Generated(4, 0, Gamma(1.0, 0.3)).messages(400).delays()
    (tmp_path / "delays.txt").write_text("\n".join(map(str, delays)))
    run = kept(tmp_path / "run", FromDelays(str(tmp_path / "delays.txt"), 4).messages(400))
    with pytest.raises(
        BadInput, match="its pushes are evenly spaced: its clock may be made up, or the server"
    ):
        FromRun(run, 4, 0)
    full = Disturbed(4, 0, Constant(0.1), queue=Constant(1.0)).messages(400)
    with pytest.raises(BadInput, match="may be made up, or the server alone sets the pace"):
        FromRun(kept(tmp_path / "full", full), 4, 0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "^run=None: schedule=from_run needs schedule.run=RUN_DIR"),
        ({"workers": 0}, "^workers=0: "),
        ({"run": 5}, "^run=5: give the path of a run directory"),
        ({"run": ["a"]}, r"^run=\['a'\]: give the path of a run directory"),
        ({"busy": 5, "away": 5}, r"^busy=5: give \[mean_s, cv, least_s, law\] of each worker"),
        ({"busy": "ab", "away": "ab"}, r"^busy=ab: give \[mean_s, cv, least_s, law\] of each"),
        ({"busy": [GAMMA], "away": {"a": 1}}, r"^away=\{'a': 1\}: give \[mean_s, cv, least_s, l"),
        ({"busy": [5], "away": [5]}, r"^busy=5: give \[mean_s, cv, least_s, law\] of each worker"),
        ({"busy": [[1, 0, [], "gamma"]], "away": [GAMMA]}, r"^busy=.*least_s=\[\]: give a finite"),
        ({"busy": [GAMMA]}, "^away=None: give busy and away of each worker, or neither"),
        ({"busy": [GAMMA[:3]]}, r"^busy=\[1.0, 0.1, 0.2\]: give \[mean_s, cv, least_s, law\] of e"),
        ({"busy": [[0.0, 0, 0, "gamma"]]}, "^busy=.*mean_s=0.0: give a finite number"),
        ({"busy": [[1.0, 6.0, 0, "gamma"]]}, "^busy=.*cv=6.0: give a finite number"),
        ({"busy": [[1.0, 0.1, 1.0, "gamma"]]}, "^busy=.*least_s=1.0: give a finite number"),
        ({"busy": [[1.0, 0.1, 0.99, "gamma"]]}, "^busy=.*cv=9.99.*: give a finite number"),
        ({"busy": [[1.0, 0.1, 0.2, "normal"]]}, "^busy=.*law=normal: choose gamma or lognormal"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        FromRun(**{"run": None, "workers": 2, "seed": 0, **changes})


@pytest.mark.parametrize("value", ["5", "[a]", "{a: 1}"])
def test_a_run_that_is_no_path_is_one_line(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=quadratic", "schedule=from_run", f"schedule.run={value}"]
    assert cli.dispatch("schedule", words) == 2
    said = capsys.readouterr().err.strip()
    assert re.match(r"dcasgd-repro: schedule.run=.*: give the path of a run directory$", said)
