"""Properties that hold for every schedule and every place to stop (hypothesis draws them)."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rules_under_test import RULES

from dcasgd_repro.rules import Rule
from dcasgd_repro.run import checkpoint
from dcasgd_repro.schedule import KINDS, Schedule
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Quadratic

BACKUPS = ["pull", "push", "push_from_zero"]
calm = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


ANY_GAP = st.floats(0, 1e6)


@st.composite
def schedules(draw: st.DrawFn, gap: st.SearchStrategy = ANY_GAP) -> Schedule:
    """Any valid log: up to five workers, each alternating pull and push, clocks never back."""
    workers = draw(st.integers(1, 5))
    turns = draw(st.lists(st.integers(0, workers - 1), max_size=40))
    sender = [*range(workers), *turns]  # every worker occurs
    seen = [0] * workers
    kinds = []
    for m in sender:
        kinds.append(seen[m] % 2)
        seen[m] += 1
    gaps = draw(st.lists(gap, min_size=len(sender), max_size=len(sender)))
    clock = np.array(list(itertools.accumulate(gaps)))
    return Schedule(clock, np.array(kinds, np.uint8), np.array(sender, np.int32), workers)


def server_for(rule: Rule, log: Schedule, backup: str = "pull") -> Server:
    return Server(rule, torch.tensor([1.0, -2.0], dtype=torch.float64), log.workers, backup)


TASK = Quadratic(curvature=(1.0, 0.3), noise=0.2).on(torch.device("cpu"))


def trace(server: Server, log: Schedule) -> list[object]:
    steps = simulate(TASK, server, log, lambda t: 0.1 / (1 + t))
    return [x.item() if isinstance(x, torch.Tensor) else x for s in steps for x in s]


@calm
@given(schedules())
def test_a_schedule_survives_its_file(tmp_path: Path, log: Schedule) -> None:
    for name in ("log.csv", "log.csv.gz"):
        log.save(tmp_path / name)
        back = Schedule.load(tmp_path / name)
        assert back.sha256() == log.sha256()
        assert back.workers == log.workers


@calm
@given(schedules())
def test_delays_agree_with_counting(log: Schedule) -> None:
    received, read, delays = 0, {}, []
    for _, kind, m in log:
        if kind == KINDS[0]:
            read[m] = received
        else:
            delays.append(received - read.get(m, 0))
            received += 1
    assert log.delays().tolist() == delays


@calm
@given(schedules(), st.integers(0, 60), st.sampled_from(RULES), st.sampled_from(BACKUPS))
def test_stopping_anywhere_and_going_on_is_never_having_stopped(
    log: Schedule, cut: int, rule: Rule, backup: str
) -> None:
    """The state goes through the bytes of a checkpoint, into a fresh server."""
    whole = server_for(rule, log, backup)
    expected = trace(whole, log)

    first = server_for(rule, log, backup)
    found = trace(first, log[:cut])
    buffer = io.BytesIO()
    torch.save(checkpoint.pack(first), buffer)
    buffer.seek(0)
    second = server_for(rule, log, backup)
    checkpoint.unpack(second, torch.load(buffer, weights_only=True))
    found += trace(second, log[cut:])
    assert found == expected
    assert torch.equal(second.w, whole.w)


@calm
@given(schedules(gap=st.sampled_from([0.0, 0.0, 1.0])), st.randoms(), st.sampled_from(RULES))
def test_pulls_at_the_same_time_commute(log: Schedule, random: object, rule: Rule) -> None:
    """Pulls in a row at one clock, in any order: nothing between them changes w."""
    blocks: list[list[int]] = []
    for i in range(len(log)):
        joins = (
            blocks
            and log.kind[i] == log.kind[blocks[-1][-1]] == 0
            and log.clock[i] == log.clock[blocks[-1][-1]]
        )
        if joins:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    shuffled = [i for block in blocks for i in random.sample(block, len(block))]
    other = Schedule(log.clock[shuffled], log.kind[shuffled], log.worker[shuffled], log.workers)
    a, b = server_for(rule, log), server_for(rule, log)
    assert trace(a, log) == trace(b, other)
    assert torch.equal(a.w, b.w)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_longer_log_begins_with_the_shorter_ones_result(rule: Rule) -> None:
    sender = np.array([0, 1, *[m for k in range(20) for m in (k % 2, k % 2)]], np.int32)
    kind = np.array([0, 0, *[1, 0] * 20], np.uint8)
    log = Schedule(np.arange(42.0), kind, sender, 2)
    whole = trace(server_for(rule, log), log)
    part = trace(server_for(rule, log), log[:21])
    assert part == whole[: len(part)]
    assert len(part) < len(whole)
