"""The unattended session: its bookkeeping, and that a step measures what it says."""

import sys
import time
from pathlib import Path

import gpu_session
import pytest
from gpu_session import Session

STEP = """
import json, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("said by", words["--step"], flush=True)
if words["--step"] == "slots":
    time.sleep(60)
if words["--step"] == "profile":
    sys.exit("no profiler")
open(f"{words['--out']}/{words['--step']}.json", "w").write("{}")
"""


def test_a_step_that_hangs_or_fails_stops_no_other_and_only_those_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "step.py"
    script.write_text(STEP)
    names = ["versions", "slots", "profile", "engines"]
    monkeypatch.setattr(gpu_session, "__file__", str(script))
    monkeypatch.setattr(Session, "steps", lambda self: dict.fromkeys(names, (1.5, None)))
    monkeypatch.setattr(sys, "argv", ["", "--device", "cpu", "--out", str(tmp_path)])
    began = time.monotonic()
    assert gpu_session.main() == 1
    assert time.monotonic() - began < 50  # the sleeper was not waited for
    words = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert words == [
        ["versions", "done"], ["slots", "FAILED"], ["profile", "FAILED"], ["engines", "done"]
    ]  # fmt: skip
    left = {path.name for path in (tmp_path / "cpu").iterdir()}
    assert left == {"versions.json", "engines.json", "slots.failed.txt", "profile.failed.txt"}
    assert "ended after its 1.5 s" in (tmp_path / "cpu" / "slots.failed.txt").read_text()
    assert "no profiler" in (tmp_path / "cpu" / "profile.failed.txt").read_text()
    script.write_text(STEP.replace("time.sleep(60)", "pass").replace("sys.exit", "str"))
    assert gpu_session.main() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "slots",
        "profile",
    ]


def test_a_rehearsed_step_finds_what_is_so(tmp_path: Path) -> None:
    one = Session("cpu", tmp_path)
    found = one.versions()
    assert (found["device"], found["batches_as_on_the_cpu"]) == ("cpu", True)
    assert len([name for name in one.steps() if name.startswith("matrix-")]) == 12
