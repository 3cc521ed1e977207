"""Schedules in which the rule stops workers: their logs, against a second way of making them."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from replay_oracle import rule_of
from rules_under_test import RULES

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.reactive import APPLIED, IGNORED, KEPT, Play, Reactive, answers
from dcasgd_repro.rules import ASGD, HeLoCo, Malenia, Rennala, Ringmaster, Rule, Throttle
from dcasgd_repro.run import checkpoint, identity, read
from dcasgd_repro.run.compose import composed
from dcasgd_repro.run.plan import plain_config
from dcasgd_repro.schedule import (
    PUSH,
    Constant,
    Gamma,
    Generated,
    Live,
    Lognormal,
    Schedule,
    stepping,
)
from dcasgd_repro.study import runs
from dcasgd_repro.study.figures import timeline
from dcasgd_repro.study.grid import Cell
from dcasgd_repro.study.reproduce import Job, refusal

ORACLE = Path(__file__).parent / "oracle" / "rules"
STOPPING = [Ringmaster(threshold=3), Rennala(), Rennala(collect=2), Malenia(), Throttle()]
TIMES = {
    "gamma": Generated(5, 1, Gamma(1.0, cv=0.3)),
    "ties": Generated(4, 0, Constant(1.0)),
    "slow": Generated(4, 2, Lognormal(1.0, cv=0.5), straggler=6.0),
    "far": Generated(3, 3, Gamma(1.0, 0.2), communication=Gamma(0.4, 0.5), request_share=0.3),
    "one": Generated(1, 0, Gamma(1.0, cv=0.3), communication=Constant(1.0)),
}


@dataclasses.dataclass(frozen=True)
class Nobody(ASGD):
    """It could stop workers, and does not."""

    def stops(self, state: Any, delays: Any) -> list[int]:
        return []


@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
def test_where_nobody_is_stopped_the_log_is_that_of_the_times(times: Generated) -> None:
    for pushes in (1, 40, 700):  # more than one block of drawn times
        log = times.messages(pushes)
        assert Reactive(times, Nobody()).messages(pushes).sha256() == log.sha256()
        assert Reactive(times, ASGD()).messages(pushes).sha256() == log.sha256()
        assert log.stopped == 0


def test_local_steps_take_their_time_here_too() -> None:
    times = TIMES["far"]
    log = stepping(Reactive(times, Nobody()), 3).messages(40)
    assert log.sha256() == stepping(times, 3).messages(40).sha256()
    assert log.sha256() != times.messages(40).sha256()


def slowly(times: Generated, rule: Rule, pushes: int) -> list[tuple[float, str, int]]:
    """The log, made by looking at every worker for the next message: without a queue."""
    play, cycles = Play(rule, times.workers), [times.cycles(m) for m in range(times.workers)]
    due: list[tuple[float, str]] = [(0.0, "pull")] * times.workers
    away, log = [0.0] * times.workers, []
    while play.server.pushes < pushes:
        m = min(range(times.workers), key=lambda m: (due[m][0], m))
        clock, kind = due[m]
        log.append((clock, kind, m))
        play.message(int(kind == "push"), m)
        if kind == "pull":
            busy, away[m] = next(cycles[m])
            due[m] = (clock + busy, "push")
        else:
            due[m] = (clock + away[m], "pull")
            for other in play.stopped():
                due[other] = (clock, "pull")
    return log


@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
@pytest.mark.parametrize("rule", STOPPING, ids=repr)
def test_a_log_is_that_of_a_second_way_of_making_it(rule: Rule, times: Generated) -> None:
    reactive = Reactive(times, rule)
    log = reactive.messages(60)
    assert [tuple(message) for message in log] == slowly(times, rule, 60)
    assert log.pushes == 60
    part = reactive.messages(25)
    assert part.sha256() == log[: len(part)].sha256()
    pulls = np.count_nonzero(log.kind != PUSH) - log.pushes
    computing = len(played(rule, log).computing)
    assert log.stopped == pulls - computing  # every other pull has its push


def played(rule: Rule, log: Schedule) -> Play:
    play = Play(rule, log.workers)
    for _, kind, m in log:
        play.message(int(kind == "push"), m)
    return play


def test_by_hand() -> None:
    # Worker 1 takes 10 seconds. Ringmaster, R = 3: at the pushes of second 3, 6, 9 it is 3 updates
    # late, is stopped and starts anew, so worker 0 alone is heard.
    times = Generated(2, 0, Constant(1.0), speeds=(1.0, 0.1))
    log = Reactive(times, Ringmaster(threshold=3)).messages(9)
    assert set(log.worker[log.kind == PUSH]) == {0}
    pulls = [clock for clock, kind, m in log if (kind, m) == ("pull", 1)]
    assert pulls == [0.0, 3.0, 6.0]
    assert log.stopped == 2
    assert log.delays().max() == 0
    # Ignoring it instead, w loses nothing until second 10, when its gradient is 9 or 10 late.
    assert answers(Ringmaster(threshold=3), times.messages(11)) == [APPLIED] * 10 + [IGNORED]
    # THROTTLE: worker 0's q-th gradient of a round weighs 1 / 2q; the round ends at second 10.
    # Worker 0 pushed and pulled in that second, as ties go to it, and is stopped at once.
    assert Reactive(times, Throttle()).messages(12).stopped == 1
    free = Generated(3, 0, Constant(1.0), speeds=(1.0, 0.4, 0.1))
    log = Reactive(free, Throttle()).messages(16)
    pulls = [m for clock, kind, m in log if (clock, kind) == (10.0, "pull")]
    assert pulls == [0, 1, 0, 1, 2]  # worker 1's fourth push is of second 10 too
    assert log.stopped == 2


def test_rennala_wastes_nothing_when_it_stops_workers() -> None:
    times = TIMES["slow"]
    found = answers(Rennala(collect=2), Reactive(times, Rennala(collect=2)).messages(40))
    assert found == [KEPT, APPLIED] * 20
    ignoring = answers(Rennala(collect=2), times.messages(40))
    assert ignoring.count(IGNORED) > 5


def test_the_workers_stopped_are_those_that_others_code_stopped() -> None:
    paths = [*ORACLE.glob("ringmaster/*.json"), *ORACLE.glob("rennala/*.json")]
    seen = 0
    for path in paths:
        case = json.loads(path.read_text())
        play, stopped = Play(rule_of(case)[0], case["workers"]), []
        for kind, m in case["messages"]:
            if kind == "push":
                assert stopped == []
            elif m in play.computing and play.server.pushes:
                stopped.remove(m)  # they pull again without a push
                seen += 1
            play.message(int(kind == "push"), m)
            if kind == "push":
                stopped = play.stopped()
    assert seen > 80


@pytest.mark.parametrize("rule", [*RULES, HeLoCo(blocks=(2, 6))], ids=repr)
def test_a_rule_stops_as_it_does_whatever_the_gradients_are(rule: Rule) -> None:
    """What makes it right to play a rule beforehand: its answers do not depend on gradients."""
    rng = torch.Generator().manual_seed(0)
    log, workers = Generated(3, 5, Gamma(1.0, cv=0.8)).messages(60), 3
    found = answers(rule, log)
    play = Play(rule, workers)
    stopped = []
    again = []
    for _, kind, m in log:
        play.zero = torch.randn(len(play.zero), generator=rng, dtype=torch.float64)
        answer = play.message(int(kind == "push"), m)
        again += [answer] if answer else []
        stopped.append(play.stopped())
    assert again == found
    plain = Play(rule, workers)
    for (_, kind, m), then in zip(log, stopped, strict=True):
        plain.message(int(kind == "push"), m)
        assert plain.stopped() == then


WORDS = "task=quadratic rule=ringmaster rule.threshold=4 schedule=straggler workers=4 images=64"
WORDS += " batch=1 log_every=16 epochs=2"


def test_a_run_is_replayed_by_its_saved_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch("train", f"{WORDS} reactive=true run_dir=A".split()) == 0
    said = capsys.readouterr().out
    log = "schedule=file schedule.path=A/schedule.csv.gz"
    assert cli.dispatch("train", [*WORDS.split(), *log.split(), "run_dir=B"]) == 0
    assert cli.dispatch("train", f"{WORDS} run_dir=C".split()) == 0
    a, b, c = (read.summary_of(tmp_path / name) for name in "ABC")
    assert a["weights_sha256"] == b["weights_sha256"] != c["weights_sha256"]
    assert a["schedule_sha256"] == b["schedule_sha256"] != c["schedule_sha256"]
    assert a["updates"] == a["pushes"] == 128  # no gradient came too late
    assert c["updates"] < 128
    assert cli.verify(["A"]) == 0
    run = read.Run.read(tmp_path / "A")
    assert run.log is not None
    assert run.log.stopped > 0
    assert f"note      the rule stops a worker {run.log.stopped} times" in said


def test_it_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, ends in (("A", ["stop_epoch=1", ""]), ("B", [""])):
        for word in ends:
            words = f"{WORDS} reactive=true run_dir={path} {word}".split()
            assert cli.dispatch("train", words) == 0
    a, b = (read.summary_of(tmp_path / name) for name in "AB")
    assert a["weights_sha256"] == b["weights_sha256"]


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    barrier = dataclasses.replace(TIMES["gamma"], barrier=True)
    for times, what in ((barrier, "barrier=True"), (Live(3), "schedule=Live")):
        with pytest.raises(BadInput, match=f"^{what}: its workers do not run freely"):
            Reactive(times, ASGD())  # type: ignore[arg-type]
    for command, word, said in (
        ("train", "schedule.barrier=true", "schedule.barrier=True"),
        ("schedule", "schedule=barrier", "schedule=barrier"),
        ("schedule", "schedule=live", "schedule=live"),
        ("schedule", "schedule=constant_delay schedule.delay=3", "schedule=constant_delay"),
        ("train", "schedule=file schedule.path=log.csv", "schedule=file"),
    ):
        words = [*WORDS.split(), "reactive=true", *word.split()]
        assert cli.dispatch(command, words) == 2
        line = f"{said}: its workers do not run freely; take gamma, "
        assert capsys.readouterr().err.startswith(f"dcasgd-repro: {line}")
    job = Job(Cell("a", ()), 1, (*words, "scale=smoke"), 8, Path("x"))
    assert str(refusal(job)).startswith(f"cell a: {line}")
    assert cli.dispatch("train", [*WORDS.split(), "reactive=often"]) == 2
    assert "reactive=often: choose true or false" in capsys.readouterr().err


def test_a_rate_may_follow_the_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the pushes, some of which this rule ignores: in a run, and under another engine."""
    monkeypatch.chdir(tmp_path)
    words = [*WORDS.split(), "log_every=1", "lr=warmup"]
    for name, more in {
        "A": "",
        "B": "lr_by=updates",
        "C": "lr_by=updates engine=threads",
        "D": "lr_by=pushes",
    }.items():
        assert cli.dispatch("train", [*words, *more.split(), f"run_dir={name}"]) == 0
    a, b, _, d = (read.rows_of(tmp_path / name).set_index("push") for name in "ABCD")
    assert (b["update"] < b.index).any()
    before = b["update"].shift(fill_value=0)
    by_pushes = a["lr"].shift(-1).dropna()  # the rate of push t + 1 is that of t pushes
    expected = [by_pushes.get(t, a["lr"].iloc[0]) for t in before]
    assert b["lr"].tolist()[1:] == expected[1:]
    assert a["lr"].tolist() == d["lr"].tolist() != b["lr"].tolist()
    sums = [read.summary_of(tmp_path / name)["weights_sha256"] for name in "ABCD"]
    assert sums[0] == sums[3] != sums[1] == sums[2]
    assert cli.verify(["B"]) == 0
    assert cli.dispatch("train", [*WORDS.split(), "lr_by=epochs"]) == 2


def test_what_null_means_said_aloud_is_no_other_run() -> None:
    def marks(*words: str) -> tuple[str, str]:
        config = plain_config(composed(["task=quadratic", "scale=smoke", *words]))
        return identity.identity(config), identity.config_hash(config)

    unsaid = marks()
    assert marks("reactive=false", "lr_by=pushes") == marks("reactive=false") == unsaid
    assert marks("lr_by=pushes") == unsaid
    others = [marks("reactive=true"), marks("lr_by=updates"), unsaid]
    assert len({mark for both in others for mark in both}) == 6


def test_a_run_goes_on_where_what_null_means_is_said(tmp_path: Path) -> None:
    run_dir = f"run_dir={tmp_path / 'A'}"
    for words in (["stop_epoch=1"], ["reactive=false", "lr_by=pushes"]):
        assert cli.dispatch("train", [*WORDS.split(), run_dir, *words]) == 0
    assert read.summary_of(tmp_path / "A")["pushes"] == 128


def test_shares_of_time_are_of_the_whole_log() -> None:
    # Worker 1 pulls at 0, 3 and 6, when it is stopped, and the log ends at 9: 6 s of 9 are lost.
    log = Reactive(Generated(2, 0, Constant(1.0), speeds=(1.0, 0.1)), Ringmaster(3)).messages(9)
    first, second = timeline.shares_of_each(log)
    assert (first[timeline.COMPUTES], second[timeline.STOPPED]) == (1.0, 6 / 9)
    text = runs.work(log, [APPLIED] * 9).splitlines()
    assert [line.split()[-3:] for line in text[2:]] == [["0", "0%", "0%"], ["2", "67%", "0%"]]
    log = Reactive(TIMES["far"], Throttle()).messages(60)
    for does, share in timeline.shares(log).items():
        each = [part[does] for part in timeline.shares_of_each(log)]
        assert share == pytest.approx(sum(each) / len(each))
        assert share > 0.05


OWN = """\
from dataclasses import dataclass

import torch

from dataclasses import dataclass

from dcasgd_repro import Direction, Rule


@dataclass(frozen=True)
class Late(Rule):
    def init(self, w, workers):
        return 0

    def direction(self, arrival, state):
        return Direction(arrival.grad, state + 1)

    def stops(self, state, delays):
        return [m for m in (0, 1, 2, 3)[: 40 - state] if delays[m] > 4] + [state // 30 * 9]


class Tires(Late):
    def direction(self, arrival, state):
        if state == 30:
            raise KeyError("tired")
        return Direction(arrival.grad, state + 1)

    def stops(self, state, delays):
        return []


@dataclass(frozen=True)
class Sizes(Late):
    blocks: tuple = (1, 1)

    def direction(self, arrival, state):
        step = torch.cat([part / 2 for part in arrival.grad.split(self.blocks)])
        return Direction(step, state + 1)

    def stops(self, state, delays):
        return [m for m, delay in enumerate(delays) if delay > 4]


class Large(Late):
    def init(self, w, workers):
        return torch.zeros(())

    def direction(self, arrival, state):
        return Direction(arrival.grad, state + (arrival.grad.abs().sum() < 0.5))

    def stops(self, state, delays):
        return [m for m, delay in enumerate(delays) if delay > 4 and state > 20]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Words of a reactive run of a rule of one's own, to which its class is added."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_stops.py").write_text(OWN)
    yield [*WORDS.replace("rule=ringmaster rule.threshold=4 ", "").split(), "reactive=true"]
    sys.modules.pop("own_stops", None)


def test_a_rule_that_errs_late_is_refused_in_one_line(
    own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Later than the trial before a run, so where its log is made."""
    for name, message in (
        ("Late", "Late.stops: returns a list with 9 (int); return a list of workers, whole num"),
        ("Tires", "Tires.direction: raises KeyError: 'tired' ("),
    ):
        for command in ("train", "schedule"):
            assert cli.dispatch(command, [*own, f"rule=own_stops:{name}", "run_dir=A"]) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert line.startswith(f"dcasgd-repro: rule={message}")
    assert "own_stops.py, line 25: raise KeyError(" in line
    assert not Path("A").exists()


def test_a_rule_with_sizes_of_its_own_is_played_at_them(
    own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in own if not word.startswith("rule")]
    assert cli.dispatch("schedule", [*words, "rule=heloco", "rule.blocks=[2,6]"]) == 0
    assert " 0   " in capsys.readouterr().out
    assert cli.dispatch("train", [*own, "rule=own_stops:Sizes", "run_dir=A"]) == 0
    log = read.Run.read(Path("A")).log
    assert log is not None
    assert log.stopped > 5


def test_a_rule_that_decides_by_gradients_ends_where_its_log_does_not_hold(
    own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*own, "rule=own_stops:Large", "log_every=1"]
    pushes = []
    for path, engine in (("A", "plain"), ("A", "plain"), ("B", "threads")):  # A goes on, and ends
        more = [f"run_dir={path}", f"engine={engine}"]
        assert cli.dispatch("train", [*words, *more]) == 2
        [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dcasgd-repro: ")]
        said = re.fullmatch(
            r"dcasgd-repro: rule=Large.stops: stops workers \[.*\] after push (\d+), and \[.*\] "
            r"where gradients are zero; a reactive .*",
            line,
        )
        assert said is not None
        pushes.append(int(said.group(1)))
        summary = read.summary_of(Path(path))
        assert (summary["status"], summary["pushes"]) == ("failed", pushes[0])
        saved = checkpoint.load(Path(path), torch.device("cpu"))
        assert saved is not None
        assert saved["server"]["pushes"] == pushes[0]
    assert len(set(pushes)) == 1
    assert pushes[0] > 20
    assert read.rows_of(Path("A"))["push"].tolist() == list(range(1, pushes[0]))


class Counts(Ringmaster):
    """It counts in itself, and stops somebody at every fifth count."""

    def direction(self, arrival: Any, state: Any) -> Any:
        vars(self)["count"] = vars(self).get("count", 0) + 1
        return super().direction(arrival, state)

    def stops(self, state: Any, delays: Any) -> list[int]:
        return [] if vars(self).get("count", 0) % 5 else [0]


def test_a_play_leaves_the_rule_as_it_was() -> None:
    rule = Counts(threshold=9)
    reactive = Reactive(TIMES["gamma"], rule)
    assert reactive.messages(40).sha256() == reactive.messages(40).sha256()
    assert vars(rule) == {"threshold": 9}
