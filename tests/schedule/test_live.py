"""A log that is recorded as a run goes: kept, gone on with, and its events."""

import os
from pathlib import Path

import pytest

from dcasgd_repro.errors import BadInput
from dcasgd_repro.schedule import Live, Message, Recording
from dcasgd_repro.schedule.live import Event, events_of, going_on, recorded

MESSAGES = [
    Message(0.1, "pull", 0),
    Message(0.1, "pull", 1),
    Message(0.7, "push", 1),
    Message(0.8, "pull", 1),
    Message(0.9, "pull", 0),
    Message(1.5, "push", 0),
    Message(1.5, "pull", 0),
]
EVENTS = [Event(0.85, "worker lost", 0, 0), Event(1.6, "server lost"), Event(2.0, "x", 1, 2, 3)]


def filled() -> Recording:
    recording = Recording(Live(2).messages(9), pushes=9)
    for message in MESSAGES:
        recording.append(message)
    recording.events += EVENTS
    return recording


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    nothing = Live(2).messages(9)
    assert recorded(tmp_path, nothing) is nothing
    log = filled().save(tmp_path)
    assert list(log) == MESSAGES
    assert recorded(tmp_path, nothing).sha256() == log.sha256()
    assert events_of(tmp_path) == EVENTS
    lines = (tmp_path / "cluster.csv").read_text().splitlines()
    assert lines[:3] == ["clock_s,event,worker,batch,pushes", "0.85,worker lost,0,0,0",
                         "1.6,server lost,,,0"]  # fmt: skip
    assert filled().totals() == {
        "events": {"server lost": 1, "worker lost": 1, "x": 1},
        "pushes_lost": 3,
    }


def test_the_disk_has_the_log_before_a_checkpoint_counts_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    filled().save(tmp_path)
    assert synced == [str(tmp_path / "schedule.csv.gz"), str(tmp_path / "cluster.csv")]


def test_it_goes_on_after_its_checkpoint(tmp_path: Path) -> None:
    """What was recorded after that push belongs to a future that did not happen."""
    log = filled().save(tmp_path)
    assert (filled().clock_s, filled().computing()) == (1.5, {0, 1})
    again = going_on(tmp_path, log, Live(2, barrier=True), 9, 1)
    assert list(again.log) == MESSAGES[:3]
    assert (again.clock_s, again.computing()) == (0.7, {0})
    assert (again.pushes, again.barrier, again.events) == (9, True, EVENTS)
    anew = going_on(tmp_path, log, Live(2), 9, 0)
    assert (len(anew.log), anew.clock_s, anew.events) == (0, 0.0, [])
    with pytest.raises(BadInput, match="holds 2 pushes, and its checkpoint is of push 3"):
        going_on(tmp_path, log, Live(2), 9, 3)


def test_what_was_stopped_between_two_pushes_goes_on_from_the_first_of_them(
    tmp_path: Path,
) -> None:
    recording = filled()
    recording.end_at_push()
    log = recording.save(tmp_path)
    assert list(log) == MESSAGES[:-1]
    assert going_on(tmp_path, log, Live(2), 9, 2).log.sha256() == log.sha256()


@pytest.mark.parametrize("text", ["clock_s,event\n1.0,x\n", f"{','.join(Event._fields)}\n,,,,\n"])
def test_damaged_events_are_refused(tmp_path: Path, text: str) -> None:
    log = filled().save(tmp_path)
    (tmp_path / "cluster.csv").write_text(text)
    with pytest.raises(BadInput, match=r"^cluster.csv=.*: is not readable"):
        going_on(tmp_path, log, Live(2), 9, 1)


def test_a_live_schedule_refuses_bad_values() -> None:
    with pytest.raises(BadInput, match=r"^workers=0: "):
        Live(0)
    with pytest.raises(BadInput, match=r"^barrier=1: "):
        Live(2, barrier=1)  # type: ignore[arg-type]
    assert len(Live(3).messages(5)) == 0
