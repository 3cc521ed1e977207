"""Recorded delays: inverted to the worker order they come from, tiled, or refused by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcasgd_repro.errors import BadInput
from dcasgd_repro.schedule import (
    PUSH,
    DrawnDelays,
    Exponential,
    FromDelays,
    Gamma,
    Generated,
    Schedule,
)

calm = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(path: Path, delays: list[int], header: str = "delay\n") -> str:
    path.write_text(header + "".join(f"{delay}\n" for delay in delays))
    return str(path)


def order(log: Schedule) -> list[int]:
    return log.worker[log.kind == PUSH].tolist()


def relabelled(workers: list[int]) -> list[int]:
    labels: dict[int, int] = {}
    return [labels.setdefault(m, len(labels)) for m in workers]


def counted(workers: list[int], before: list[int] = ()) -> list[int]:
    """Delays of pushes by workers that pull right after each of their own; in plain Python."""
    whole, delays = [*before, *workers], []
    for t in range(len(before), len(whole)):
        others = 0
        while others < t and whole[t - 1 - others] != whole[t]:
            others += 1
        delays.append(others)
    return delays


@pytest.mark.parametrize("law", [Gamma(1.0, 0.14), Exponential(1.0)])
@pytest.mark.parametrize("header", ["", "delay\n"])
def test_a_generated_logs_delays_give_its_worker_order_back(
    law: object, header: str, tmp_path: Path
) -> None:
    log = Generated(workers=8, seed=3, compute=law).messages(2000)
    path = written(tmp_path / "delays.csv", log.delays().tolist(), header)
    found = FromDelays(path, 8).messages(2000)
    assert order(found) == relabelled(order(log))
    assert np.array_equal(found.reads(), log.reads())
    assert np.array_equal(found.delays(), log.delays())


def test_the_log_of_a_hand_worked_file_and_its_tiles(tmp_path: Path) -> None:
    # The workers push in the order 0 1 1 0, over and over; at a seam a worker's last push lies in
    # the tile before.
    path = written(tmp_path / "d.txt", [0, 1, 0, 2], header="")
    log = FromDelays(path, 2).messages(7)
    assert order(log) == [0, 1, 1, 0, 0, 1, 1]
    assert log.delays().tolist() == [0, 1, 0, 2, 0, 2, 0]
    assert [tuple(message) for message in log][:7] == [
        (0.0, "pull", 0), (0.0, "pull", 1), (0.5, "push", 0), (0.5, "pull", 0),
        (1.0, "push", 1), (1.0, "pull", 1), (1.5, "push", 1),
    ]  # fmt: skip
    assert tuple(list(log)[-1]) == (3.5, "push", 1)
    assert FromDelays(path, 2).messages(3).sha256() == log[:7].sha256()
    log.save(tmp_path / "log.csv")
    assert Schedule.load(tmp_path / "log.csv").sha256() == log.sha256()


def test_a_file_from_the_middle_of_a_run(tmp_path: Path) -> None:
    # Before it workers a, b, c pushed in the order b a c; then c a a b. Their last pushes lie 1, 2
    # and 3 pushes before the file: delays 0, 2, 0 (its own), 5.
    path = written(tmp_path / "d.txt", [0, 2, 0, 5])
    log = FromDelays(path, 3).messages(4)
    assert order(log) == [0, 1, 1, 2]
    assert log.delays().tolist() == [0, 1, 0, 3]


def test_a_file_from_the_first_pushes_of_a_run(tmp_path: Path) -> None:
    # a pushed once before the file, b and c had not yet: both computed at w_0, one push before it.
    path = written(tmp_path / "d.txt", [1, 2, 2, 2])
    assert order(FromDelays(path, 3).messages(4)) == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", 1, "holds no delay"),
        ("delay\n", 2, "holds no delay"),
        ("delay\n0\n\n1\n", 3, "'' is no whole number"),
        ("0\n1.0\n", 2, "'1.0' is no whole number"),
        ("nan\n0\n", 1, "'nan' is no whole number"),
        ("0,1\n0,2\n", 1, "'0,1' is no whole number"),
        ("0\n1_0\n", 2, "'1_0' is no whole number"),
        ("0\n" + "9" * 5000 + "\n", 2, "is no whole number"),
        ("0\n-1\n", 2, "-1 is negative"),
        # Both lines 3 and 4 say that their worker pushed last at line 2.
        ("delay\n0\n0\n1\n", 4, "1 says that this worker's push before is at line 2, as line 3"),
        # Pushes before the file: two of them cannot be one, unless there the run began.
        ("0\n1\n5\n", 2, "1 says that this worker's push before is 1 before the file, as line 1"),
    ],
)
def test_a_file_that_does_not_invert_is_refused_by_line(
    content: str, line: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "d.txt").write_text(content)
    with pytest.raises(BadInput) as refused:
        FromDelays(str(tmp_path / "d.txt"), 3).messages(5)
    assert str(refused.value).startswith(f"path={tmp_path / 'd.txt'}:{line}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_workers_asked_for_must_be_those_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "d.txt", [0, 1, 2, 2])
    with pytest.raises(BadInput, match=r"^workers=2: .* holds 3 \(line 4 is of one too many\)"):
        FromDelays(path, 2).messages(5)
    with pytest.raises(BadInput, match=r"^workers=4: .*d\.txt holds 3; set workers=3, or"):
        FromDelays(path, 4).messages(5)


def test_other_refusals(tmp_path: Path) -> None:
    for missing in (None, "", "???"):
        with pytest.raises(BadInput, match=r"schedule=delays needs schedule.path=FILE"):
            FromDelays(missing, 2)
    with pytest.raises(BadInput, match=r"^workers=0: "):
        FromDelays("d.txt", 0)
    with pytest.raises(BadInput, match=r"^pushes=0: "):
        FromDelays(written(tmp_path / "d.txt", [0]), 1).messages(0)
    (tmp_path / "binary").write_bytes(b"\xff\xfe0")
    for path in (tmp_path / "gone", tmp_path, tmp_path / "binary"):
        with pytest.raises(BadInput, match="not a readable file of delays"):
            FromDelays(str(path), 2).messages(5)


@calm
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 20))
def test_any_part_of_any_run_gives_its_order_back(
    tmp_path: Path, workers: list[int], cut: int
) -> None:
    before, rest = workers[:cut], workers[cut:] or [0]
    path = written(tmp_path / "d.txt", counted(rest, before))
    log = FromDelays(path, len(set(rest))).messages(len(rest))
    assert order(log) == relabelled(rest)
    assert log.delays().tolist() == counted(rest)


@calm
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 20))
def test_what_is_accepted_is_replayed_and_tiled(
    tmp_path: Path, delays: list[int], workers: int, pushes: int
) -> None:
    """Any numbers: refused, or a log whose delays are the file's wherever a worker came before."""
    path = written(tmp_path / "d.txt", delays)
    try:
        log = FromDelays(path, workers).messages(pushes)
    except BadInput:
        return
    assert (log.pushes, log.workers) == (pushes, workers)
    tile = order(FromDelays(path, workers).messages(len(delays)))
    assert order(log) == (tile * pushes)[:pushes]
    assert log.delays().tolist() == counted(order(log))
    for t, delay in enumerate(delays[:pushes]):
        assert log.delays()[t] == min(t, delay)


# --- delays of any kind, by virtual workers -------------------------------------------------------


@calm
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(7, 9))
def test_virtual_workers_give_any_delays_exactly(
    tmp_path: Path, delays: list[int], workers: int
) -> None:
    path = written(tmp_path / "d.txt", delays)
    log = FromDelays(path, workers, virtual=True).messages(50)
    assert log.delays().tolist() == np.minimum(np.resize(delays, 50), np.arange(50)).tolist()
    assert (log.workers, log.stopped) == (workers, 0)
    assert order(log) == [t % workers for t in range(50)]
    log.save(tmp_path / "log.csv")
    assert Schedule.load(tmp_path / "log.csv").sha256() == log.sha256()
    longer = FromDelays(path, workers, virtual=True).messages(60)
    assert longer.reads()[:50].tolist() == log.reads().tolist()


def test_a_hand_worked_log_of_virtual_workers(tmp_path: Path) -> None:
    # Delays 0, 1, 0, 2 of workers 0, 1, 2, 0: read at w_0, w_0, w_2, w_1. Worker 0 waits for w_1.
    path = written(tmp_path / "d.txt", [0, 1, 0, 2])
    assert [tuple(message)[1:] for message in FromDelays(path, 3, virtual=True).messages(4)] == [
        ("pull", 0), ("pull", 1), ("push", 0), ("pull", 0), ("push", 1), ("pull", 2),
        ("push", 2), ("push", 0),
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"^workers=2: the largest delay is 2, .* set workers=3, or"):
        FromDelays(path, 2, virtual=True).messages(4)
    few = FromDelays(path, 5, virtual=True).messages(2)
    assert (few.pushes, len(few)) == (2, 7)  # all five pull


@pytest.mark.parametrize(
    ("law", "mean", "variance", "workers"),
    [
        ("uniform", 3.5, 63 / 12, 8),  # of 0 to 7: (8^2 - 1) / 12
        ("poisson", 3.0, 3.0, 40),
        ("geometric", 3.0, 12.0, 200),  # mean (1 + mean)
    ],
)
def test_drawn_delays_have_their_laws_moments_and_are_the_logs(
    law: str, mean: float, variance: float, workers: int
) -> None:
    schedule = DrawnDelays(workers, 1, law, mean)
    drawn = schedule.drawn(40_000)
    log = schedule.messages(40_000)
    assert np.array_equal(log.delays(), np.minimum(drawn, np.arange(40_000)))
    assert np.array_equal(log.delays()[workers:], drawn[workers:])
    # Four standard errors: of a mean sqrt(v / n); of a variance, for a kurtosis of at most 10.
    assert drawn.mean() == pytest.approx(mean, abs=4 * (variance / 40_000) ** 0.5)
    assert drawn.var() == pytest.approx(variance, rel=4 * (9 / 40_000) ** 0.5)
    assert np.corrcoef(drawn[1:], drawn[:-1])[0, 1] == pytest.approx(0, abs=0.02)
    assert np.array_equal(schedule.drawn(500), drawn[:500])
    assert not np.array_equal(DrawnDelays(workers, 2, law, mean).drawn(500), drawn[:500])


def test_drawn_delays_refuse_what_they_cannot_give() -> None:
    with pytest.raises(BadInput, match=r"^workers=7: the largest delay is 7, .* set workers=8"):
        DrawnDelays(7, 0)
    with pytest.raises(BadInput, match=r"^mean=0.3: a uniform delay has a multiple of 0.5"):
        DrawnDelays(8, 0, mean=0.3)
    with pytest.raises(BadInput, match=r"^law=normal: choose uniform, poisson or geometric"):
        DrawnDelays(8, 0, law="normal")
    with pytest.raises(BadInput, match=r"^workers=8: the largest delay is \d\d, .* set workers="):
        DrawnDelays(8, 0, "geometric", 7).messages(1000)
    assert DrawnDelays(1, 0, "uniform", 0).messages(20).delays().max() == 0
