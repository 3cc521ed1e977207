"""What disturbs workers: logs worked by hand, and moments against their closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.reactive import Reactive
from dcasgd_repro.rules import Rennala, Ringmaster, Throttle
from dcasgd_repro.run import read
from dcasgd_repro.schedule import (
    PULL,
    PUSH,
    Constant,
    Disturbed,
    Drift,
    Exponential,
    Failures,
    Gamma,
    Generated,
    Late,
    Lognormal,
    Pauses,
    Schedule,
    SlowDowns,
    stepping,
)
from dcasgd_repro.schedule.disturbed import Episodes, answered

Array = NDArray[np.float64]
PARTS: dict[str, dict[str, Any]] = {
    "failures": {"failures": Failures(6.0, 2.0)},
    "pauses": {"pauses": Pauses(2.0, 0.5)},
    "late": {"late": Late(2, Gamma(5.0, 0.5))},
    "drift": {"drift": Drift(2.5, 20.0)},
    "slow_downs": {"slow_downs": SlowDowns(3.0, 4.0, 2.0)},
    "queue": {"queue": Exponential(0.1)},
}
PARTS["all"] = {key: value for part in list(PARTS.values()) for key, value in part.items()}
PARTS["all"]["failures"] = Failures(30.0, 5.0)  # as computations take longer
LAWS = {"gamma": Gamma(1.0, 0.3), "lognormal": Lognormal(1.0, 0.8), "constant": Constant(1.0)}


def lines(log: Schedule) -> list[str]:
    return [f"{clock:g} {kind} {m}" for clock, kind, m in log]


def of_pushes(log: Schedule) -> Array:
    """Seconds from a worker's last pull to its push, of the one worker."""
    assert log.workers == 1
    pushed = np.flatnonzero(log.kind == PUSH)
    return log.clock[pushed] - log.clock[pushed - 1]


def check_moments(values: Array, mean: float, variance: float, block: int = 1) -> None:
    """Both within four standard errors; of blocks, where neighbours depend on each other."""
    for found, expected in ((values, mean), ((values - mean) ** 2, variance)):
        means = found[: len(found) // block * block].reshape(-1, block).mean(axis=1)
        error = means.std(ddof=1) / math.sqrt(len(means))
        assert error < 0.05 * expected  # else the check would say nothing
        assert abs(means.mean() - expected) < 4 * error, (means.mean(), expected, error)


# --- nothing disturbs: Generated, bit for bit ------------------------------------------------


def given(times: Generated) -> dict[str, object]:
    """What it was made with."""
    return {field.name: getattr(times, field.name) for field in fields(times)}


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_without_any_the_log_is_that_of_generated(law: str, barrier: bool) -> None:
    plain = Generated(5, 3, LAWS[law], Gamma(0.4, 0.5), ramp=2.0, request_share=0.3)
    plain = replace(plain, barrier=barrier)
    same = Disturbed(**given(plain))
    idle = replace(same, queue=Constant(0.0), request_share=0.0)  # message by message
    for pushes in (1, 36, 900):
        assert same.messages(pushes).sha256() == plain.messages(pushes).sha256()
        undisturbed = replace(plain, request_share=0.0).messages(pushes)
        assert idle.messages(pushes).sha256() == undisturbed.sha256()
    assert stepping(same, 3).messages(50).sha256() == stepping(plain, 3).messages(50).sha256()


# --- by hand ---------------------------------------------------------------------------------


class Given:
    """A random stream that gives these exponential times."""

    def __init__(self, *times: float) -> None:
        self.times = iter(times)

    def exponential(self, mean_s: float) -> float:
        return next(self.times)


def with_streams(monkeypatch: pytest.MonkeyPatch, streams: dict[int, Callable[[int], Any]]) -> None:
    own = Disturbed.stream
    monkeypatch.setattr(
        Disturbed,
        "stream",
        lambda self, number, m: streams[number](m) if number in streams else own(self, number, m),
    )


def test_episodes_alternate_from_clock_0() -> None:
    episodes = Episodes(Given(3.0, 2.0, 4.0, 1.0, 9.0), 1.0, 1.0)  # type: ignore[arg-type]
    asked = [0.0, 2.9, 3.0, 4.0, 5.0, 9.5, 10.0, 3.5]
    inside = [False, False, True, True, False, True, False, True]
    assert [episodes.at(clock)[0] for clock in asked] == inside
    assert [episodes.at(clock)[1] for clock in asked] == [3, 3, 5, 5, 9, 10, 19, 5]


def test_a_failure_loses_the_computation_and_the_worker_pulls_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Worker 0 is down from 3 to 7, worker 1 from 4 to 4.5, as its push is on its way: that arrives.
    down = {0: (3.0, 4.0, 99.0), 1: (4.0, 0.5, 99.0)}
    with_streams(monkeypatch, {2: lambda m: Given(*down[m])})
    times = Disturbed(2, 0, Constant(2.0), Constant(0.25), failures=Failures(9.0, 1.0))
    log = replace(times, speeds=[1, 0.5]).messages(3)
    want = ["0 pull 0", "0 pull 1", "2.25 push 0", "2.25 pull 0", "4.25 push 1", "4.5 pull 1"]
    assert lines(log) == [*want, "7 pull 0", "8.75 push 1"]
    assert log.stopped == 1


def test_late_joiners_begin_at_their_time() -> None:
    times = Disturbed(3, 0, Constant(1.0), late=Late(2, Constant(1.5)))
    want = ["0 pull 0", "1 push 0", "1 pull 0", "1.5 pull 1", "1.5 pull 2", "2 push 0", "2 pull 0"]
    assert lines(times.messages(4)) == [*want, "2.5 push 1", "2.5 pull 1", "2.5 push 2"]
    with pytest.raises(BadInput, match=r"late.at.mean_s=1.5: 2 would join after the last push"):
        times.messages(1)


def test_a_drift_changes_times_evenly_and_then_stays() -> None:
    log = Disturbed(1, 0, Constant(1.0), drift=Drift(3.0, 4.0)).messages(5)
    # A computation from t takes 1 + t / 2: those of 0, 1, 2.5 and then 3 for ever.
    assert log.clock[log.kind == PUSH].tolist() == [1.0, 2.5, 4.75, 7.75, 10.75]
    log = Disturbed(1, 0, Constant(1.0), drift=Drift(0.5, 2.0)).messages(3)
    assert log.clock[log.kind == PUSH].tolist() == [1.0, 1.75, 2.3125]


def test_a_slow_down_is_of_all_workers_and_not_of_communication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_streams(monkeypatch, {6: lambda m: Given(2.0, 3.0, 99.0)})  # from 2 to 5
    times = Disturbed(2, 0, Constant(1.0), Constant(0.5), slow_downs=SlowDowns(3.0, 9.0, 9.0))
    log = replace(times, speeds=[1, 2]).messages(6)
    want = ["0 pull 0", "0 pull 1", "1 push 1", "1 pull 1", "1.5 push 0", "1.5 pull 0"]
    want += ["2 push 1", "2 pull 1", "3 push 0", "3 pull 0", "4 push 1", "4 pull 1", "6 push 1"]
    assert lines(log) == want


def test_a_server_with_a_queue_serves_pushes_in_the_order_of_arrival() -> None:
    times = Disturbed(3, 0, Constant(4.0), speeds=[1, 4, 2], queue=Constant(1.5))
    # Pushes arrive at 1 (worker 1), 2 (2), 4 (0), and are served until 2.5, 4, 5.5; worker 1
    # computes again from 2.5 to 3.5, and is served after worker 2, before worker 0.
    want = ["0 pull 0", "0 pull 1", "0 pull 2", "2.5 push 1", "2.5 pull 1", "4 push 2", "4 pull 2"]
    assert lines(times.messages(4)) == [*want, "5.5 push 1", "5.5 pull 1", "7 push 0"]
    barrier = replace(times, barrier=True).messages(4)
    assert barrier.in_rounds
    assert lines(barrier)[3:6] == ["2.5 push 1", "4 push 2", "5.5 push 0"]
    assert lines(barrier)[6:] == ["5.5 pull 0", "5.5 pull 1", "5.5 pull 2", "8 push 1"]
    equal = replace(times, speeds=None).messages(3)
    assert lines(equal)[3::2] == ["5.5 push 0", "7 push 1", "8.5 push 2"]  # ties: the lower worker


def test_under_a_barrier_a_failed_worker_begins_the_round_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    down = {0: (1.0, 2.0, 99.0), 1: (5.5, 1.0, 99.0)}
    with_streams(monkeypatch, {2: lambda m: Given(*down[m])})
    times = Disturbed(2, 0, Constant(2.0), barrier=True, failures=Failures(9.0, 1.0))
    log = times.messages(4)
    assert log.in_rounds
    want = ["0 pull 0", "0 pull 1", "2 push 1", "5 push 0", "5 pull 0", "5 pull 1", "7 push 0"]
    assert lines(log) == [*want, "8.5 push 1"]
    assert log.stopped == 0


# --- the first two moments -------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.0, 0.6])
def test_pauses_are_a_compound_poisson_process(cv: float) -> None:
    mean_s, apart_s, length_s, speed = 1.5, 2.0, 0.7, 0.5
    times = Disturbed(1, 4, Gamma(mean_s, cv), speeds=[speed], pauses=Pauses(apart_s, length_s))
    x, longer = mean_s / speed, 1 + length_s / apart_s
    variance = (cv * x * longer) ** 2 + 2 * x * length_s**2 / apart_s
    check_moments(of_pushes(times.messages(30_000)), x * longer, variance)


def test_failures_are_an_alternating_renewal_process() -> None:
    episodes = Episodes(np.random.default_rng(0), 6.0, 2.0)
    episodes.at(80_000.0)
    spent = np.diff([0.0, *episodes._changes])
    check_moments(spent[0::2], 6.0, 36.0)
    check_moments(spent[1::2], 2.0, 4.0)


def test_computations_lost_to_failures_and_their_time() -> None:
    # x seconds of computing are interrupted with probability 1 - exp(-x / up), whatever came
    # before: attempts are geometric. A lost one lasts an exponential time that is below x.
    x, up_s, down_s = 2.0, 4.0, 1.0
    log = Disturbed(1, 5, Constant(x), failures=Failures(up_s, down_s)).messages(30_000)
    pushed = np.flatnonzero(log.kind == PUSH)
    lost = np.diff(pushed, prepend=-1) - 2.0
    p = math.exp(-x / up_s)
    check_moments(lost, (1 - p) / p, (1 - p) / p**2)
    # A failure never falls between a push and the pull that rides on it.
    took = np.diff(log.clock[pushed], prepend=0.0)
    below = up_s - x * p / (1 - p)
    below_squared = 2 * up_s**2 - (x**2 + 2 * up_s * x) * p / (1 - p)
    each_variance = below_squared - below**2 + down_s**2
    mean = x + (1 - p) / p * (below + down_s)
    variance = (1 - p) / p * each_variance + (1 - p) / p**2 * (below + down_s) ** 2
    assert mean == pytest.approx((1 / p - 1) * (up_s + down_s))  # the known form
    check_moments(took, mean, variance)


def test_late_joiners_begin_as_their_law_says() -> None:
    workers = 2_001
    times = Disturbed(workers, 6, Constant(1.0), late=Late(workers - 1, Gamma(2.0, 0.5)))
    log = times.messages(16_000)
    first = np.zeros(workers)
    pulls = np.flatnonzero(log.kind == PULL)[::-1]
    first[log.worker[pulls]] = log.clock[pulls]
    assert first[0] == 0.0
    check_moments(first[1:], 2.0, 1.0)


def test_a_drift_scales_mean_and_standard_deviation() -> None:
    drift = Drift(4.0, 20_000.0)
    times = Disturbed(1, 7, Gamma(1.0, 0.5), drift=drift)
    log = times.messages(30_000)
    began, took = log.clock[log.kind == PULL], of_pushes(log)
    check_moments(took / [drift.factor(clock) for clock in began], 1.0, 0.25)
    check_moments(took[began > 20_000], 4.0, 4.0)
    # Along the way, dt / dk = 1 + 3 t / over: t = over / 3 (exp(3 k / over) - 1).
    k = 5_000
    expected = 20_000 / 3 * math.expm1(3 * k / 20_000)
    error = math.sqrt(k) * 0.5 * drift.factor(expected)
    assert abs(log.clock[log.kind == PUSH][k - 1] - expected) < 4 * error


@pytest.mark.parametrize("cv", [0.0, 0.5])
def test_slow_downs_are_a_two_state_chain_at_the_starts(cv: float) -> None:
    mean_s, factor, apart_s, length_s = 1.0, 3.0, 6.0, 4.0
    times = Disturbed(1, 8, Gamma(mean_s, cv), slow_downs=SlowDowns(factor, apart_s, length_s))
    took = of_pushes(times.messages(60_000))
    # The state relaxes as exp(-rate t); over a computation X that is X's Laplace transform.
    slow, rate = length_s / (apart_s + length_s), 1 / apart_s + 1 / length_s

    def relaxed(x: float) -> float:
        return math.exp(-rate * x) if not cv else (1 + rate * x * cv**2) ** (-1 / cv**2)

    begins = slow * (1 - relaxed(mean_s))
    goes_on = slow + (1 - slow) * relaxed(factor * mean_s)
    share = begins / (begins + 1 - goes_on)  # of computations that begin in an episode
    mean = mean_s * (1 + (factor - 1) * share)
    second = (1 + (factor**2 - 1) * share) * mean_s**2 * (1 + cv**2)
    check_moments(took, mean, second - mean**2, block=100)


def test_a_queue_is_the_machine_repairman() -> None:
    # An arrival sees what a system of M - 1 workers would show (the arrival theorem); with n before
    # it, its time at the server is the sum of n + 1 service times.
    workers, service_s = 5, 0.3
    times = Disturbed(workers, 9, Exponential(1.0), queue=Exponential(service_s))
    log = times.messages(60_000)
    weights = np.ones(workers)
    for n in range(1, workers):
        weights[n] = weights[n - 1] * (workers - n) * service_s
    seen, n = weights / weights.sum(), np.arange(workers)
    mean = float(seen @ (n + 1)) * service_s
    second = float(seen @ ((n + 1) * (n + 2))) * service_s**2
    clock, stays = [], []
    for m in range(workers):
        mine = log.worker == m
        pushes = log.clock[mine & (log.kind == PUSH)]
        pulls = log.clock[mine & (log.kind == PULL)][: len(pushes)]
        computing = [busy_s for (busy_s, _), _ in zip(times.cycles(m), pushes, strict=False)]
        clock.append(pushes)
        stays.append(pushes - pulls - computing)
    order = np.argsort(np.concatenate(clock), kind="stable")
    check_moments(np.concatenate(stays)[order], mean, second - mean**2, block=200)
    # The server is busy while anyone is there: its rate of pushes is (1 - P(nobody)) / service.
    nobody = np.concatenate([weights, weights[-1:] * 0])
    for n_there in range(1, workers + 1):
        nobody[n_there] = nobody[n_there - 1] * (workers - n_there + 1) * service_s
    busy = 1 - nobody[0] / nobody.sum()
    assert log.pushes / log.duration_s == pytest.approx(busy / service_s, rel=0.01)


# --- streams and prefixes --------------------------------------------------------------------


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_a_longer_log_begins_with_every_shorter_one(part: str, barrier: bool) -> None:
    if barrier and part in ("late", "all"):
        return
    times = Disturbed(5, 7, Gamma(1.0, 0.5), Lognormal(0.5, 1.0), request_share=0.3, **PARTS[part])
    times = replace(times, barrier=barrier)
    long = times.messages(700)
    assert long.sha256() == times.messages(700).sha256()
    assert long.sha256() != replace(times, seed=8).messages(700).sha256()
    for pushes in (60, 500, 699):
        short = times.messages(pushes)
        assert short.pushes == pushes
        assert short.sha256() == long[: len(short)].sha256()
    if barrier:
        assert long.in_rounds


@pytest.mark.parametrize("part", ["failures", "pauses", "late", "drift", "slow_downs"])
def test_another_worker_leaves_the_others_times_alone(part: str) -> None:
    parts = dict(PARTS[part])
    if part == "late":  # it counts from the last worker
        parts["late"] = Late(2, Constant(5.0))
    few = Disturbed(3, 7, Gamma(1.0, 0.5), Gamma(0.5, 1.0), request_share=0.3, **parts)
    if part == "late":
        parts["late"] = Late(3, Constant(5.0))
    three, four = few.messages(300), replace(few, workers=4, **parts).messages(500)
    for m in range(3):
        before, after = three.clock[three.worker == m], four.clock[four.worker == m]
        assert len(before) > 100
        assert before.tolist() == after[: len(before)].tolist()


def test_service_times_are_of_the_worker_and_its_push() -> None:
    """With another worker there, the server takes as long for worker m's k-th push as before."""

    def served(workers: int) -> Array:
        # A worker at a time: the next push arrives when the server is idle.
        times = Disturbed(workers, 3, Constant(1.0), queue=Exponential(1e-4))
        log = times.messages(100 * workers)
        return np.diff(log.clock[(log.worker == 0) & (log.kind == PUSH)], prepend=0.0) - 1.0

    assert served(1)[:50] == pytest.approx(served(2)[:50], abs=1e-12)
    assert len(set(served(1))) == 100


def test_each_leaves_the_drawn_times_as_they_are() -> None:
    """Under pauses of no length, failures that never come and so on the log is the plain one."""
    plain = Generated(4, 2, Gamma(1.0, 0.5), Gamma(0.3, 0.5))
    never: list[dict[str, Any]] = [
        {"failures": Failures(1e9, 1.0)},
        {"pauses": Pauses(1e9, 1.0)},
        {"drift": Drift(1.0, 5.0)},
        {"slow_downs": SlowDowns(1.0, 1.0, 1.0)},
        {"late": Late(3, Constant(0.0))},
    ]
    for parts in never:
        log = Disturbed(**given(plain), **parts).messages(300)
        assert log.sha256() == plain.messages(300).sha256()


# --- with rules that stop workers ------------------------------------------------------------


class Nobody(Ringmaster):
    def stops(self, state: Any, delays: Any) -> list[int]:
        return []


@pytest.mark.parametrize("part", PARTS)
def test_where_nobody_is_stopped_the_log_is_that_of_the_times(part: str) -> None:
    times = Disturbed(4, 2, Lognormal(1.0, 0.6), Gamma(0.4, 0.5), straggler=3.0, **PARTS[part])
    assert Reactive(times, Nobody(3)).messages(400).sha256() == times.messages(400).sha256()
    for rule in (Ringmaster(threshold=3), Rennala(collect=2), Throttle()):
        reactive = Reactive(times, rule)
        log = reactive.messages(200)
        assert log.stopped > 0
        part_of = reactive.messages(150)
        assert part_of.sha256() == log[: len(part_of)].sha256()
        for m in range(4):  # a worker pulls before each push
            kinds = log.kind[log.worker == m]
            assert kinds[0] == PULL
            assert not ((kinds[1:] == PUSH) & (kinds[:-1] == PUSH)).any()


def test_a_stopped_worker_that_is_down_pulls_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Worker 1 takes 10 s and is down from 2.5 to 4.5. Ringmaster with R = 3 stops it at second 3.
    down = {0: (99.0,), 1: (2.5, 2.0, 99.0)}
    with_streams(monkeypatch, {2: lambda m: Given(*down[m])})
    times = Disturbed(2, 0, Constant(1.0), speeds=[1, 0.1], failures=Failures(10.0, 1.0))
    log = Reactive(times, Ringmaster(threshold=3)).messages(6)
    assert [clock for clock, kind, m in log if (kind, m) == ("pull", 1)] == [0.0, 4.5]


def test_what_a_stopped_worker_had_sent_is_served_in_vain() -> None:
    # Pushes of workers 0, 1 arrive at 1 and are served until 2 and 3. The rule stops all at 2.
    times = Disturbed(2, 0, Constant(1.0), queue=Constant(1.0))
    log = Reactive(times, Rennala(collect=1)).messages(2)
    want = ["0 pull 0", "0 pull 1", "2 push 0", "2 pull 0", "2 pull 1", "4 push 0"]
    assert lines(log) == want  # both arrive again at 3, when the server is free


# --- runs ------------------------------------------------------------------------------------

RUN = "task=quadratic task.noise=1 rule=dcasgd_a workers=4 images=160 batch=1 epochs=2"
QUEUE = "+schedule.queue={_target_: dcasgd_repro.schedule.Exponential, mean_s: 0.2}"
FAILING = ["schedule=failures", "schedule.failures.up_s=5", "schedule.failures.down_s=2"]


def test_a_run_stops_goes_on_and_is_replayed_by_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*RUN.split(), "log_every=40"]
    disturbed = [*words, *FAILING, QUEUE]
    assert cli.dispatch("train", [*disturbed, "run_dir=A", "stop_epoch=1"]) == 0
    for more in ("run_dir=A", "run_dir=B engine=threads"):
        assert cli.dispatch("train", [*disturbed, *more.split()]) == 0
    assert "note      a worker fails" in capsys.readouterr().out
    log = ["schedule=file", "schedule.path=A/schedule.csv.gz", "run_dir=C"]
    assert cli.dispatch("train", [*words, *log]) == 0
    assert "note      a worker begins anew" in capsys.readouterr().out
    sums = [read.summary_of(tmp_path / name)["weights_sha256"] for name in "ABC"]
    assert len(set(sums)) == 1
    rounds = [*words, *FAILING, "schedule.barrier=true", "rule=ssgd", "run_dir=D"]
    assert cli.dispatch("train", rounds) == 0
    assert "note" not in capsys.readouterr().out
    assert read.summary_of(tmp_path / "D")["in_rounds"]


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("schedule=failures schedule.failures.up_s=0", "schedule.failures.up_s=0: give a finite"),
        ("schedule=failures schedule.failures.down_s=-1", "schedule.failures.down_s=-1: give a"),
        (
            "schedule=failures schedule.failures.up_s=0.5",
            "schedule.failures.up_s=0.5: a computation takes 1 s, and few would end; give at",
        ),
        ("schedule=failures schedule.failures=3", "schedule.failures=3: give a Failures"),
        ("schedule=failures schedule.failures.up=3", "schedule.failures.up=3: no such key"),
        ("schedule=pauses schedule.pauses.length_s=nan", "schedule.pauses.length_s=nan: give a"),
        ("schedule=pauses schedule.pauses.apart_s=1e-4", "schedule.pauses.apart_s=0.0001: that"),
        ("schedule=drift schedule.drift.to=0", "schedule.drift.to=0: give a finite number"),
        ("schedule=drift schedule.drift.over_s=0", "schedule.drift.over_s=0: give a finite"),
        ("schedule=slow_downs schedule.slow_downs.factor=x", "schedule.slow_downs.factor=x: give"),
        ("schedule=late schedule.late.workers=8", "schedule.late.workers=8: one of 8 must be"),
        ("schedule=late schedule.late.workers=0", "schedule.late.workers=0: give a whole"),
        ("schedule=late schedule.late.at=5", "schedule.late.at=5: a law of times"),
        ("schedule=late schedule.barrier=true", "schedule.barrier=True: a round is of all"),
        ("schedule=late schedule.late.at.mean_s=1e6", "schedule.late.at.mean_s=1000000.0: 1 would"),
        ("schedule=queue schedule.queue=0.05", "schedule.queue=0.05: a law of times"),
        ("schedule=queue schedule.queue.mean_s=-1", "schedule.queue.mean_s=-1: give a finite"),
    ],
)
def test_bad_input_is_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["task=quadratic", "scale=smoke", *words.split()]
    assert cli.dispatch("train", given) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"dcasgd-repro: {message}"), said
    assert "\n" not in said


def test_episodes_without_end_are_refused() -> None:
    with pytest.raises(BadInput, match=r"slow_downs.apart_s=10.0: that is over 1,000 in 1e\+06 s"):
        Disturbed(2, 0, Constant(1.0), slow_downs=SlowDowns(2.0, 10.0, 10.0),
                  failures=Failures(1e6, 1e6))  # fmt: skip
    with pytest.raises(BadInput, match=r"failures.up_s=9.0: a computation takes 12 s, and few"):
        Disturbed(2, 0, Constant(1.0), speeds=[1, 0.5], failures=Failures(9.0, 1.0),
                  pauses=Pauses(1.0, 2.0), drift=Drift(2.0, 5.0))  # fmt: skip


def test_failures_without_end_are_refused() -> None:
    """While a push is on its way, or waits at the server, a worker fails and is back."""
    many = r"failures.up_s=5.0: that is over 1,000 in 9e\+08 s, a worker's mean time; give more"
    with pytest.raises(BadInput, match=many):
        Disturbed(4, 0, Constant(1.0), Constant(9e8), failures=Failures(5.0, 1.0))
    with pytest.raises(BadInput, match=r"failures.up_s=2.0: that is over 1,000 in 3.6e\+09 s"):
        Disturbed(4, 0, Constant(1.0), queue=Constant(9e8), failures=Failures(2.0, 1.0))
    long = Disturbed(4, 0, Constant(1.0), Constant(5e5), failures=Failures(5.0, 1e6))  # 4 a cycle
    assert long.messages(20).pushes == 20


def test_what_answers_has_no_barrier_and_some_pushes() -> None:
    times = Generated(2, 0, Constant(1.0), barrier=True)
    for barred in (times, Disturbed(**given(times), queue=Constant(0.1))):
        with pytest.raises(BadInput, match=r"^barrier=True: workers that may be stopped run"):
            answered(barred, 4, lambda kind, m: ())
    for pushes in (0, -1, 1.5):
        with pytest.raises(BadInput, match=f"^pushes={pushes}: give a whole number >= 1"):
            answered(replace(times, barrier=False), pushes, lambda kind, m: ())  # type: ignore[arg-type]


def test_two_choices_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^schedule=\[failures,queue\]: choose one; a file of"):
        cli.dispatch("train", ["task=quadratic", "schedule=[failures,queue]"])
