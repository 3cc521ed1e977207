"""What a run's text files say happened, against logs and probes whose every number is known."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dcasgd_repro import ASGD, SSGD, DCASGDa, Gamma, Generated, Quadratic, Schedule
from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.lr import Step
from dcasgd_repro.run import Length, Plan, run
from dcasgd_repro.run.read import KEPT, Run, log_of
from dcasgd_repro.schedule import PULL, PUSH
from dcasgd_repro.study import diagnose
from dcasgd_repro.study.figures import sheet, timeline
from dcasgd_repro.study.probed import NAMES

ROOT = Path(__file__).parents[2]


def made(place: Path, rule: object, **schedule: object) -> Run:
    parts = {"workers": 4, "seed": 3, "compute": Gamma(1.0, cv=0.3)} | schedule
    plan = Plan(
        rule=rule,
        task=Quadratic((1.0, 0.1)),
        schedule=Generated(**parts),  # type: ignore[arg-type]
        rate=Step(0.1),
        length=Length(images=40, batch=1, epochs=2),
        workers=4,
        run_dir=place,
        log_every=5,
    )
    return Run.read(run(plan, say=len))


def by_hand() -> Schedule:
    """Worker 0 computes for 2 s, waits for 1 s and computes on; worker 1 computes for 3 s."""
    clock = np.array([0.0, 0.0, 2.0, 3.0, 3.0])
    kind = np.array([PULL, PULL, PUSH, PULL, PUSH], np.uint8)
    return Schedule(clock, kind, np.array([0, 1, 0, 0, 1], np.int32), 2)


def test_spans_by_hand() -> None:
    computes, stopped, waits = timeline.COLOURS
    first, *others = timeline.spans(by_hand())
    assert first == (0, computes, 0.0, 2.0)
    assert others == [(0, waits, 2.0, 3.0), (1, computes, 0.0, 3.0)]
    assert timeline.spans(by_hand()[:3])[-1] == (1, computes, 0.0, 2.0)  # to the log's last message
    # Worker 1 pulls again at 1 s: it computed in vain for a second, of 6 in all.
    again = Schedule(np.array([0.0, 0.0, 1.0, 3.0]), np.array([PULL, PULL, PULL, PUSH], np.uint8),
                     np.array([0, 1, 1, 1], np.int32), 2)  # fmt: skip
    assert (1, stopped, 0.0, 1.0) in timeline.spans(again)
    assert timeline.shares(again) == {computes: 5 / 6, stopped: 1 / 6, waits: 0.0}
    assert again.stopped == 1


def test_a_gantt_chart_shows_who_computes_and_waits_and_what_was_applied() -> None:
    axes = sheet(5, 3).subplots()
    timeline.gantt(axes, by_hand(), applied=[False, True])
    bars = {
        label: [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in bars]
        for bars, label in ((c.patches, c.get_label()) for c in axes.containers)
        if not str(label).startswith("_")
    }
    assert bars["computes"] == [pytest.approx((0.0, 2.0, 0.0))]
    assert bars["waits"] == [pytest.approx((2.0, 1.0, 0.0))]
    dots = {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in axes.lines}
    assert dots == {"push, applied": (3.0, 1), "push, kept or ignored": (2.0, 0)}
    assert [text.get_text() for text in axes.texts] == ["0", "1"]  # their delays


def test_a_log_is_made_anew_from_a_kept_config_and_from_nothing_else(tmp_path: Path) -> None:
    whole = made(tmp_path / "run", ASGD())
    log, sha = whole.log, whole.summary["schedule_sha256"]
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in KEPT:
        shutil.copyfile(whole.path / name, kept / name)
    again = Run.read(kept).log
    assert log is not None
    assert again is not None
    assert again.sha256() == log.sha256() == sha
    assert log_of(kept, "0" * 64) is None  # another log than the run's
    config = yaml.safe_load((kept / "config.yaml").read_text())
    config["schedule"]["compute"] = {"_target_": "pathlib.Path.touch", "self": str(kept / "ran")}
    (kept / "config.yaml").write_text(yaml.dump(config))
    assert Run.read(kept).log is None  # a config's text is no code to run
    assert not (kept / "ran").exists()
    assert "Its message log was not kept. The delay was" in diagnose.paragraph(Run.read(kept))
    diagnose.draw(Run.read(kept)).canvas.draw()


def test_a_committed_run_has_its_log() -> None:
    kept = Run.read(ROOT / "results/prefix_cifar10/paper/runs/dcasgd_a-8-seed0")
    assert kept.log is not None
    assert kept.log.pushes == kept.summary["pushes"] == 7813  # of the 62,500 of the whole run
    assert kept.log.delays().mean() == pytest.approx(kept.summary["delay_mean"])


def test_which_pushes_moved_the_weights(tmp_path: Path) -> None:
    rounds = made(tmp_path / "rounds", SSGD(), barrier=True)
    assert rounds.log is not None
    assert diagnose.applied(rounds, rounds.log) == [False, False, False, True] * 20
    text = diagnose.paragraph(rounds)
    assert "20 of 80 pushes moved the weights" in text
    assert "Counted in updates of the server it was 0.0." in text
    assert "Each worker sent 20 gradients and waited " in text
    plain = made(tmp_path / "plain", ASGD())
    assert plain.log is not None
    assert diagnose.applied(plain, plain.log) == [True] * 80
    rows = pd.read_csv(plain.path / "metrics.csv")
    odd = rows.assign(
        update=rows["push"] - (rows["push"] > 40)
    )  # one was ignored, nobody knows which
    odd.to_csv(plain.path / "metrics.csv", index=False)
    assert diagnose.applied(Run.read(plain.path), plain.log) is None


def test_the_paragraph_says_what_the_files_say(tmp_path: Path) -> None:
    one = made(tmp_path / "one", DCASGDa(lam0=2.0))
    probes = {"push": range(10, 90, 10), "epoch": 1.0, "cos": math.cos(math.radians(62))}
    probes |= {f"removed_{name}": 0.5 for name in NAMES} | {f"cos_{name}": 0.5 for name in NAMES}
    pd.DataFrame(probes | {"removed_a_2": 0.03}).to_csv(one.path / "probe.csv", index=False)
    one = Run.read(one.path)
    assert one.log is not None
    text = diagnose.paragraph(one)
    assert text.startswith("DC-ASGD-a, M = 4: finished after 80 pushes (2 epochs); test loss ")
    assert f"The delay was {one.log.delays().mean():.1f} pushes on average" in text
    assert "and never waited. Every push moved the weights." in text
    assert f"The correction was {100 * one.dc_ratio:.2g} % of ‖g‖" in text
    assert "pointed 62 degrees away from fresh ones, by the median of 8 probes." in text
    assert "A correction of 2 g g drift / sqrt(MeanSquare) would remove 3 % of the squared" in text
    pd.DataFrame(probes | {"removed_a_2": -0.4}).to_csv(one.path / "probe.csv", index=False)
    worse = diagnose.paragraph(Run.read(one.path))
    assert "would take them 40 % of the squared distance further away." in worse
    summary = json.loads((one.path / "summary.json").read_text())
    summary |= {"status": "diverged", "diverged_at_push": 17}
    (one.path / "summary.json").write_text(json.dumps(summary))
    assert "diverged after 80 pushes (2 epochs), the first loss that was not finite at push 17" in (
        diagnose.paragraph(Run.read(one.path))
    )


def test_the_command_draws_a_figure_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one = made(tmp_path / "a" / "same", DCASGDa())
    made(tmp_path / "b" / "same", ASGD())
    figure = diagnose.draw(one)
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels[0] == "delay (pushes; dashed: the mean)"
    assert labels.count("pushes") == 2  # norms, dc_ratio
    monkeypatch.setattr(diagnose, "draw", lambda run: sheet(1, 1))
    assert cli.diagnose(["a/same", "b/same", "--out", "o"]) == 0
    assert {path.name for path in Path("o").iterdir()} == {"same.png", "same-2.png"}
    said = capsys.readouterr().out
    assert said.count("figure in") == 2
    assert "The rule corrected nothing." in said
    with pytest.raises(BadInput, match=r"no readable summary\.json there"):
        cli.diagnose(["a"])


def test_a_run_that_stopped_before_its_first_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "task=quadratic images=64 batch=4 workers=2 stop_epoch=0.1 log_every=50 eval_every=1"
    path = str(tmp_path / "A")
    assert cli.dispatch("train", [*words.split(), f"run_dir={path}"]) == 0
    assert cli.diagnose([path, "--out", str(tmp_path / "out")]) == 0
    assert "stopped after 2 pushes. The delay was" in capsys.readouterr().out
    assert (tmp_path / "out" / "A.png").stat().st_size > 10_000
