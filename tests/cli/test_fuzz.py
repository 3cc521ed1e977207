"""A few draws of the fuzzers; ``make torture`` makes a thousand of each."""

from pathlib import Path

import fuzz
import pytest


def test_odd_values_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    codes, faults = fuzz.command_line(50, seed=0)
    assert faults == []
    assert sum(codes.values()) == 50
    assert codes[2] > 0


def test_mutated_checkpoints(tmp_path: Path) -> None:
    seen, faults = fuzz.checkpoints(20, seed=0, place=tmp_path)
    assert faults == []
    assert seen["refused"] > 0
    assert seen["equal"] > 0


def test_mutated_schedule_files(tmp_path: Path) -> None:
    seen, faults = fuzz.schedule_files(300, seed=0, place=tmp_path)
    assert faults == []
    assert seen["refused"] > 250
