"""The run directory against itself: every number recomputed from the schedule and the rows."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from dcasgd_repro.cli.commands import dispatch
from dcasgd_repro.data.images import Synthetic
from dcasgd_repro.errors import BadInput
from dcasgd_repro.fast.graphs import Graphs
from dcasgd_repro.lr import Step as Rate
from dcasgd_repro.models import ResNet
from dcasgd_repro.rules import ASGD, SSGD
from dcasgd_repro.run import device, experiment, identity, plan, read
from dcasgd_repro.run import write as record
from dcasgd_repro.run.compose import LINKS, PLACES
from dcasgd_repro.run.plan import plan_of
from dcasgd_repro.schedule import Constant, Generated, Schedule
from dcasgd_repro.simulate import Server, Step, ratio
from dcasgd_repro.study import pages
from dcasgd_repro.study import runs as report
from dcasgd_repro.tasks import Classification, Quadratic

PLAIN = ["scale=smoke", "task=synthetic", "model.width=2", "images=64", "test_images=40"]
PLAIN += ["batch=4", "workers=4", "task.stats_images=32", "task.train_images=24", "log_every=7"]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return compose("config", overrides=[*PLAIN, *overrides])


def run(place: Path, *overrides: str) -> Path:
    return experiment.run(plan_of(composed(*overrides, f"run_dir={place}")), ["a", "b"], say=len)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve epochs of 16 pushes, evaluated every second, rows every 7; all seeds different."""
    place = tmp_path_factory.mktemp("twelve") / "run"
    seeds = ["seeds.initial=3", "seeds.data=4", "seeds.schedule=5", "schedule=exponential"]
    return run(place, "epochs=12", "eval_every=0.5", "lr.milestones=[3,6]", *seeds)


def summary_in(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_rows(twelve: Path) -> None:
    log = Schedule.load(twelve / "schedule.csv.gz")
    rows = pd.read_csv(twelve / "metrics.csv")
    pushes = sorted({*range(7, 193, 7), *range(8, 193, 8)})
    assert rows["push"].tolist() == pushes == rows["update"].tolist()
    assert rows["epoch"].tolist() == [p / 16 for p in pushes]
    assert rows["test_error"].notna().tolist() == [p % 8 == 0 for p in pushes]
    clocks = log.clock[log.kind == 1]
    assert rows["simulated_s"].tolist() == pytest.approx(clocks[np.array(pushes) - 1], rel=1e-8)
    assert rows["lr"].tolist() == pytest.approx(
        [0.1 * 0.1 ** (((p - 1) / 16 >= 3) + ((p - 1) / 16 >= 6)) for p in pushes], rel=1e-8
    )
    parts = np.split(log.delays(), pushes[:-1])
    assert rows["delay_mean"].tolist() == pytest.approx([p.mean() for p in parts], rel=1e-8)
    assert rows["delay_max"].tolist() == [p.max() for p in parts]
    assert (rows["wall_s"].diff().dropna() > 0).all()
    # Errors are of 40 and 24 images; a swap of columns shows.
    tested = rows.dropna(subset=["test_error"])
    assert (tested["test_error"] * 40 % 1 < 1e-6).all()
    assert (tested["train_error"] * 24).round(6).mod(1).eq(0).all()


def test_summary(twelve: Path) -> None:
    summary, log = summary_in(twelve), Schedule.load(twelve / "schedule.csv.gz")
    rows = pd.read_csv(twelve / "metrics.csv")
    test = rows["test_error"].dropna()
    assert summary["test_error_best"] == pytest.approx(test.min())
    assert summary["test_error_final"] == pytest.approx(test.iloc[-1])
    assert summary["test_error_last10"] == pytest.approx(test.iloc[-10:].mean())
    assert summary["train_error_final"] == pytest.approx(rows["train_error"].dropna().iloc[-1])
    widths = rows["push"].diff().fillna(7)
    assert summary["dc_ratio_mean"] == pytest.approx(np.average(rows["dc_ratio"], weights=widths))
    assert summary["delay_mean"] == pytest.approx(log.delays().mean())
    assert summary["delay_max"] == log.delays().max() > rows["delay_max"].iloc[-1]
    assert summary["simulated_s"] == pytest.approx(log.clock[-1])
    assert summary["schedule_sha256"] == log.sha256()
    assert (summary["pushes"], summary["updates"], summary["epochs"]) == (192, 192, 12)
    assert summary["in_rounds"] is False


def test_best_final_and_last_ten_are_three_numbers() -> None:
    errors = [0.5, 0.1, 0.9, *[0.4] * 8, 0.2, 0.3]
    rows = [
        {"push": 2 * k + 2, "delay_mean": k, "delay_max": 9 - k, "dc_ratio": k, "simulated_s": k,
         "wall_s": k, "epoch": k + 1, "test_error": e, "test_loss": e, "train_error": e / 2}
        for k, e in enumerate(errors)
    ]  # fmt: skip
    rows[0]["push"] = 1  # intervals of 1, 3, 2, 2, ...
    config = {"batch": 1, "images": 1, "lr.milestones": [1, 2]}  # epochs 4 to 13 come after
    found = record.totals(rows, config)
    assert found["test_error_best"] == 0.1
    assert found["test_error_final"] == 0.3
    assert found["test_error_last10"] == pytest.approx((0.4 * 8 + 0.2 + 0.3) / 10)
    assert found["train_error_final"] == 0.15
    assert found["delay_max"] == 9
    assert found["dc_ratio_mean"] == pytest.approx((3 + 2 * sum(range(2, 13))) / 26)
    assert record.totals([], config)["test_error_best"] is None
    late = record.totals(rows, config | {"lr.milestones": [2, 11, 99]})  # epochs 12 and 13
    assert late["test_error_last10"] == pytest.approx((0.2 + 0.3) / 2)


def test_a_row_keeps_its_columns_apart() -> None:
    def step(k: int) -> Step:
        scalars = [torch.tensor(x * (k + 1), dtype=torch.float64) for x in (1.0, 10.0, 100.0)]
        return Step(k + 1, k, 5.0 * k, 1, k, 0.1 / (k + 1), *scalars)

    assert record.row([step(0), step(1)]) == {
        "push": 2, "update": 1, "simulated_s": 5.0, "lr": 0.05, "train_loss": 1.5,
        "delay_mean": 0.5, "delay_max": 1, "dc_ratio": 15.0, "gap_norm": 150.0,
    }  # fmt: skip


def test_provenance(twelve: Path) -> None:
    found = json.loads((twelve / "provenance.json").read_text())
    assert found["argv"] == ["a", "b"]
    assert found["seeds"] == {"initial": 3, "data": 4, "schedule": 5}
    assert found["engine"] == "dcasgd_repro.simulate.simulate"
    assert found["schedule_sha256"] == Schedule.load(twelve / "schedule.csv.gz").sha256()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    root = Path(record.__file__).parents[2]
    if not (root / ".git").exists():
        assert (found["git_commit"], found["git_dirty"]) == (None, None)
        return
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert found["git_commit"] == head.stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "dcasgd_repro", "conf", "pyproject.toml"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found["git_dirty"] == bool(changed.stdout)


def test_the_weights_are_those_of_the_seed_and_are_what_was_evaluated(
    twelve: Path, tmp_path: Path
) -> None:
    """The whole run again by hand, from the parts its config names."""
    cfg = OmegaConf.load(twelve / "config.yaml")
    task = plan.build(cfg, "task").on(torch.device("cpu"))
    server = Server(plan.build(cfg, "rule"), task.initial(3), 4)
    log, rate = Schedule.load(twelve / "schedule.csv.gz"), plan.build(cfg, "lr")
    for _ in plan.build(cfg, "engine")(task, server, log, lambda t: rate(t / 16)):
        pass
    summary = summary_in(twelve)
    assert record.weights_sha256(server.w) == summary["weights_sha256"]
    assert task.evaluate(server.w, server.sent)["test_error"] == summary["test_error_final"]


def test_histograms_count_the_delays(twelve: Path) -> None:
    delays = Schedule.load(twelve / "schedule.csv.gz").delays()
    board = twelve / "tensorboard" / summary_in(twelve)["name"]
    events = EventAccumulator(str(board), size_guidance={"histograms": 0}).Reload()
    histograms = events.Histograms("delay/histogram")
    assert [h.step for h in histograms] == list(range(8, 193, 8))
    for k, h in enumerate(histograms):
        counts = np.bincount(delays[8 * k : 8 * k + 8])
        value = h.histogram_value
        found = {
            round(limit - 0.5): int(count)
            for limit, count in zip(value.bucket_limit, value.bucket, strict=True)
            if count
        }
        assert found == {d: int(c) for d, c in enumerate(counts) if c}


NAMED = "task=quadratic images=64 workers=2 epochs=1 log_every=4 threads=1"


def hparams_of(board: Path) -> tuple[list[str], dict[str, object]]:
    events = EventAccumulator(str(board)).Reload()
    contents = [
        plugin_data_pb2.HParamsPluginData.FromString(
            events.summary_metadata[f"_hparams_/{tag}"].plugin_data.content
        )
        for tag in ("experiment", "session_start_info")
    ]
    values = contents[1].session_start_info.hparams
    given = {key: getattr(v, str(v.WhichOneof("kind"))) for key, v in values.items()}
    return [info.name for info in contents[0].experiment.hparam_infos], given


def test_a_run_has_a_name_and_few_hparams_in_order(tmp_path: Path) -> None:
    words = f"{NAMED} rule=dcasgd_c rule.lam=0.5 schedule=gamma lr.base=0.2 'tags=[first,wide]'"
    words += f" seed=3 device=cpu run_dir={tmp_path / 'a'}"
    assert dispatch("train", shlex.split(words)) == 0
    typed = "images=64-epochs=1-task=quadratic-lam=0.5-schedule=gamma-base=0.2"
    [name, second] = sorted(path.name for path in (tmp_path / "a" / "tensorboard").iterdir())
    assert second == f"{name}.simulated_s"
    assert name.startswith("dcasgd_c-M2-seed3-")
    assert sorted(name.split("-")[3:]) == sorted(typed.split("-"))
    columns, values = hparams_of(tmp_path / "a" / "tensorboard" / name)
    assert columns[:5] == ["rule", "workers", "schedule", "lr", "seed"]
    assert sorted(columns[5:-1]) == ["epochs", "images", "rule.lam", "task"]
    assert columns[-1] == "tags"
    assert values == {
        "rule": "dcasgd_c", "workers": 2, "schedule": "gamma", "lr": 0.2, "seed": 3,
        "rule.lam": 0.5, "epochs": 1, "images": 64, "task": "quadratic", "tags": "first wide",
    }  # fmt: skip
    assert summary_in(tmp_path / "a")["tags"] == ["first", "wide"]


def test_the_wall_time_of_the_second_curves_is_the_simulated_second(twelve: Path) -> None:
    board = twelve / "tensorboard" / f"{summary_in(twelve)['name']}.simulated_s"
    events, metrics = EventAccumulator(str(board)).Reload(), pd.read_csv(twelve / "metrics.csv")
    for tag, key in (("loss/train", "train_loss"), ("error/test", "test_error")):
        rows, scalars = metrics.dropna(subset=[key]), events.Scalars(tag)
        assert [e.wall_time for e in scalars] == pytest.approx(rows["simulated_s"].tolist())
        assert [e.value for e in scalars] == pytest.approx(rows[key].tolist(), rel=1e-6)
    assert "_hparams_/experiment" not in events.summary_metadata


def test_a_name_of_ones_own_makes_no_other_run(tmp_path: Path) -> None:
    for extra in ("", " name=mine"):
        assert (
            dispatch("train", f"{NAMED} run_dir={tmp_path / 'a'} stop_epoch=0.5{extra}".split())
            == 0
        )
    assert dispatch("train", f"{NAMED} run_dir={tmp_path / 'a'} name=mine".split()) == 0
    assert summary_in(tmp_path / "a")["name"] == "mine"
    found = sorted(path.name for path in (tmp_path / "a" / "tensorboard").iterdir())
    assert found == ["mine", "mine.simulated_s"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": "a/b"}, r"^name=a/b: begin with a letter"),
        ({"title": ""}, r"^name=: begin with a letter"),
        ({"title": ".."}, r"^name=..: begin with a letter"),
        ({"tags": "one"}, r"^tags=one: give a list of words"),
        ({"tags": [1]}, r"^tags=\[1\]: give a list of words"),
    ],
)
def test_a_name_or_tag_that_is_none_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        small_plan(**changes)


def test_ssgd_moves_once_a_round_and_its_rate_follows_pushes(tmp_path: Path) -> None:
    path = run(tmp_path / "run", "rule=ssgd", "schedule.barrier=true", "lr.milestones=[1]",
               "epochs=2", "log_every=4")  # fmt: skip
    rows, summary = pd.read_csv(path / "metrics.csv"), summary_in(path)
    assert (summary["pushes"], summary["updates"], summary["in_rounds"]) == (32, 8, True)
    assert rows["update"].tolist() == [p // 4 for p in rows["push"]]
    expected = [0.1 if p <= 16 else 0.01 for p in rows["push"]]
    assert rows["lr"].tolist() == pytest.approx(expected, rel=1e-8)
    assert rows["delay_max"].tolist() == [0] * len(rows)


def test_the_backup_option_is_read(tmp_path: Path) -> None:
    share = ["schedule.request_share=0.5", "rule=dcasgd_c", "rule.lam=5", "epochs=2"]
    cells = [[f"backup={name}", *share] for name in ("pull", "push", "push_from_zero")]
    hashes = {
        summary_in(run(tmp_path / str(k), *keys))["weights_sha256"]
        for k, keys in enumerate([*cells, ["backup=push", "epochs=2"]])
    }
    assert len(hashes) == 4


def test_notes_tell_what_a_config_does_not_do(tmp_path: Path) -> None:
    def said(*overrides: str) -> list[str]:
        cfg = composed(*overrides)
        log = plan.log_of(cfg, 64)
        return [note.split(" ")[0] for note in experiment.notes(plan.plan_of(cfg), log)]

    assert said("rule=ssgd") == ["no"]
    assert said("rule=ssgd", "schedule.barrier=true") == []
    assert said("backup=push") == said("backup=push_from_zero") == ["every"]
    assert said("backup=push", "schedule.request_share=0.5") == []
    assert said("backup=push_from_zero", "schedule.request_share=0.5") == []
    assert said("rule=asgd") == []
    assert said("rule=asgd", "schedule=drawn_delays", "workers=8") == ["every"]
    given = tmp_path / "d.txt"
    given.write_text("0\n" * 10)
    words = ("rule=asgd", "schedule=delays", f"schedule.path={given}", "workers=1")
    assert said(*words) == [str(given)]  # holds 10 pushes, which are repeated 6.4 times
    assert said(*words, "schedule.virtual=true") == [str(given), "every"]


def test_every_link_of_the_config_is_known() -> None:
    """A key inside a group that is filled in from outside is the user's to set in one place."""
    found = {}
    for path in Path(plan.__file__).parents[2].glob("conf/*/*.yaml"):
        raw = OmegaConf.to_container(OmegaConf.load(path))
        nodes = [(PLACES[path.parent.name], raw)] if path.parent.name in PLACES else []
        while nodes:
            at, node = nodes.pop()
            if isinstance(node, dict):
                nodes += [(f"{at}.{key}", child) for key, child in node.items()]
            elif str(node).startswith("${"):
                found[at] = str(node)[2:-1]
    assert found == LINKS


@pytest.mark.parametrize("inside", sorted(set(LINKS) - {"task.seed", "task.data.root"}))
def test_the_inside_of_a_link_is_refused(inside: str, tmp_path: Path) -> None:
    value = {"task.data.augment": "false", "task.model.norm": "none", "task.model.depth": "14"}
    given = value.get(inside, "3")
    lr = ["lr=warmup"] if inside.startswith("lr.") else []
    with pytest.raises(BadInput, match=rf"^{inside}=\w+: set {LINKS[inside]}="):
        run(tmp_path / "run", *lr, f"{inside}={given}")
    assert not (tmp_path / "run").exists()


def test_threads_are_set(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        run(tmp_path / "run", "threads=2", "epochs=0.0625")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_nothing_that_is_not_finite_gets_into_json(tmp_path: Path) -> None:
    record.write_json(tmp_path / "x.json", {"a": float("nan"), "b": float("inf"), "c": 1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": None, "c": 1.5}


def test_a_report_of_a_damaged_run_is_refused(twelve: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "summary.json"):
        (tmp_path / name).write_bytes((twelve / name).read_bytes())
    for content in (None, "rubbish", ""):
        if content is not None:
            (tmp_path / "metrics.csv").write_text(content)
        with pytest.raises(BadInput, match=r"^run="):
            report.comparison([tmp_path], tmp_path / "out")


@pytest.mark.parametrize("content", ["{}", "x", "[]", '{"status": "finished"}'])
def test_a_foreign_summary_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(content)
    with pytest.raises(BadInput, match=r"^run_dir="):
        run(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["summary.json"]


def test_infinite_weights_or_losses_at_the_end_are_a_divergence(tmp_path: Path) -> None:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        overrides = ["scale=smoke", "task=quadratic", "images=1", "batch=1", "epochs=1"]
        overrides += ["lr.base=1e30", "lr.milestones=[]", "workers=1", "task.curvature=[1e200]"]
        cfg = compose("config", overrides=[*overrides, f"run_dir={tmp_path / 'run'}"])
    path = experiment.run(plan_of(cfg), say=len)
    assert summary_in(path)["status"] == "diverged"


def test_ratio_of_nothing_and_of_nan() -> None:
    zero, nan = torch.zeros(3), torch.full((3,), float("nan"))
    assert ratio(zero, zero).item() == 0
    assert ratio(None, nan).item() == 0
    assert ratio(nan, torch.ones(3)).isnan()
    assert ratio(torch.full((3,), 1e-30), torch.ones(3)).item() == pytest.approx(1e-30)


def test_the_config_hash_sees_numbers_and_not_places() -> None:
    base = identity.config_hash(plan.plain_config(composed()))
    for change in ("seed=1", "rule=asgd", "epochs=3", "schedule.compute.cv=0.3", "log_every=8"):
        assert identity.config_hash(plan.plain_config(composed(change))) != base, change
    for same in ("run_dir=x", "data.root=y", "+exp=cifar_dc", "checkpoint.every_s=1"):
        cfg = composed(same, "workers=4")
        assert identity.config_hash(plan.plain_config(cfg)) == base, same


# Reports.


def test_report_counts_no_run_twice_and_keeps_configurations_apart(tmp_path: Path) -> None:
    short = ["epochs=0.25", "+exp=cifar_dc", "workers=4"]
    for lam in (0.5, 3.0):
        for seed in (0, 1):
            run(tmp_path / "o" / f"{lam}-{seed}", *short, f"rule.lam0={lam}", f"seed={seed}")
    out = tmp_path / "r"
    text = report.comparison([tmp_path / "o"], out)
    assert len(list((out / "runs").iterdir())) == 4
    assert report.comparison([out / "runs"], None) == text
    assert report.comparison([tmp_path / "o", out / "runs"], None) == text
    table = pd.read_csv(out / "table.csv")
    assert table["n"].tolist() == [2, 2]
    assert table["rule"].str.contains("synthetic").all()

    forged = out / "runs" / sorted(p.name for p in (out / "runs").iterdir())[0] / "summary.json"
    content = json.loads(forged.read_text())
    forged.write_text(json.dumps({**content, "weights_sha256": "0" * 64}))
    with pytest.raises(BadInput, match="but other weights"):
        report.comparison([tmp_path / "o", out / "runs"], None)


def test_report_never_averages_over_a_run_that_did_not_finish(tmp_path: Path) -> None:
    for seed in range(3):
        path = run(tmp_path / str(seed), "epochs=0.25", f"seed={seed}", "rule=asgd")
        if seed == 2:
            broken = {**summary_in(path), "status": "diverged", "test_error_final": 0.0}
            (path / "summary.json").write_text(json.dumps(broken))
    table = report.tabulate("x", [read.Run.read(tmp_path / str(k)) for k in range(3)])
    finals = [100 * summary_in(tmp_path / str(k))["test_error_final"] for k in range(2)]
    assert (table["n"], table["diverged"], table["not_finished"]) == (2, 1, 0)
    assert table["test_error_final_pct_mean"] == pytest.approx(np.mean(finals))
    assert table["test_error_final_pct_std"] == pytest.approx(np.std(finals, ddof=1))
    (tmp_path / "1" / "summary.json").unlink()
    text = report.comparison([tmp_path], None)
    assert "| 1 (+1 diverged) |" in text
    assert text.endswith(f"Not counted, stopped without a summary: {tmp_path / '1'}")


def test_labels_say_what_a_schedule_makes_of_a_rule(tmp_path: Path) -> None:
    def label(*overrides: str) -> str:
        path = tmp_path / "-".join(overrides).replace("=", "")
        return report.label(read.Run.read(run(path, "epochs=0.25", *overrides)))

    assert label("rule=ssgd", "schedule.barrier=true") == "SSGD, M = 4, synthetic data"
    assert label("rule=ssgd") == "buffered ASGD, M = 4, synthetic data"
    assert label("schedule.barrier=true") == "DC-ASGD-a in rounds, M = 4, synthetic data"
    assert label("rule=asgd", "workers=1") == "SGD, M = 1, synthetic data"
    assert SSGD.for_rounds
    assert not ASGD.for_rounds


def test_a_field_of_ones_own_that_is_called_like_a_key_of_ours_counts() -> None:
    """Only rule.scale differs; the key scale, at the top, is a label."""
    said = {"scale": "laptop", "rule": {"_target_": "mine.Rule", "scale": 1, "probe": 1, "root": 1}}
    for name in ("scale", "probe", "root"):
        other = {**said, "rule": {**said["rule"], name: 2}}
        assert identity.identity(other) != identity.identity(said)
        assert identity.config_hash(other) != identity.config_hash(said)
    assert identity.identity({**said, "scale": "paper"}) == identity.identity(said)


def test_a_lower_precision_makes_another_run_and_full_leaves_runs_what_they_are() -> None:
    said = {"rule": {"_target_": "mine.Rule"}, "engine": {"_target_": "simulate"}}

    def graphs(precision: str) -> str:
        return identity.identity({**said, "engine": {"_target_": "G", "precision": precision}})

    assert (
        graphs("float32") == identity.identity(said) == identity.identity({**said, "engine": None})
    )
    assert len({graphs(precision) for precision in ("float32", "tf32", "bfloat16")}) == 3


def test_a_lower_precision_is_in_labels_and_its_runs_are_no_group_with_others(
    tmp_path: Path,
) -> None:
    full = run(tmp_path / "full", "epochs=0.25", "engine=graphs")
    half = tmp_path / "half"
    shutil.copytree(full, half)
    text = (half / "config.yaml").read_text()
    assert text.count("precision: float32") == 1
    (half / "config.yaml").write_text(text.replace("precision: float32", "precision: bfloat16"))
    runs = [read.Run.read(path) for path in (full, half)]
    first, second = report.grouped(runs)
    assert (first, second) == (report.label(runs[0]), f"{report.label(runs[0])}, bfloat16")
    assert pages.made_with(runs[:1]).endswith("in all.")
    assert pages.made_with(runs).endswith("in all. Gradients were computed in bfloat16.")


def test_a_precision_that_the_device_lacks_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    told = small_plan(engine=Graphs("tf32"), device="cpu", run_dir=tmp_path / "run")
    with pytest.raises(BadInput, match=r"^engine.precision=tf32: only CUDA has it, this is cpu"):
        experiment.run(told, say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = record.metadata.version

    def elsewhere(name: str) -> str:
        if name == "dcasgd-repro":
            raise record.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(record.metadata, "version", elsewhere)
    here = record.environment(torch.device("cpu"))
    assert here["versions"]["dcasgd-repro"] is None
    assert here["versions"]["torch"] == version("torch")
    assert not {"driver", "cudnn", "capability"} & here.keys()


@pytest.mark.parametrize(
    ("told", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Re", "580.82.07"),
        ("another text 1.2", None),
        (None, None),
    ],
)
def test_a_run_on_cuda_says_with_what(
    told: str | None, driver: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is not None:
        (tmp_path / "version").write_text(told)
    monkeypatch.setattr(device, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert device.cuda_of(torch.device("cuda")) == {
        "driver": driver, "cuda": torch.version.cuda, "cudnn": 91002, "capability": "9.0"
    }  # fmt: skip


def small_plan(**changes: object) -> plan.Plan:
    parts: dict[str, object] = {
        "rule": ASGD(),
        "task": Quadratic((1.0, 0.1)),
        "schedule": Generated(workers=2, seed=0, compute=Constant(1.0)),
        "rate": Rate(0.1),
        "length": plan.Length(images=8, batch=1, epochs=1),
        "workers": 2,
    }
    return plan.Plan(**(parts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": lambda epoch: 0.1}, "rate=<function"),  # its parameters cannot be seen
        ({"workers": 3}, "schedule.workers=2: the plan has 3; make both the same"),
        ({"stop_epoch": 2}, "stop_epoch=2: the run has 1 epochs"),
        ({"probe_every": 0}, "probe.every=0: give a whole number"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        small_plan(**changes)
    assert str(refused.value).startswith(message)


def test_plans_without_a_config_tell_their_runs_apart(tmp_path: Path) -> None:
    """What a plan says of itself is what a config of the same run says, as far as they overlap."""
    one, other = small_plan(), small_plan(rule=ASGD(momentum=0.5))
    assert identity.identity(one.config) != identity.identity(other.config)
    assert identity.identity(one.config) == identity.identity(small_plan(threads=1).config)
    assert one.config["rule"] == {"_target_": "dcasgd_repro.rules.ASGD", "momentum": 0.0}
    path = experiment.run(small_plan(run_dir=tmp_path / "a", name="mine"), say=lambda line: None)
    assert read.Run.read(path).summary["status"] == "finished"
    with pytest.raises(BadInput, match=r"holds a run with rule.momentum=0.0 \(now 0.5\)"):
        experiment.run(small_plan(run_dir=path, rule=ASGD(momentum=0.5)), say=lambda line: None)


def test_a_split_without_a_config_is_a_validation_too() -> None:
    images = Synthetic(2, 4, 0, True, train_images=64, test_images=16, validation=8)
    task = Classification(ResNet(8, 2), images)
    length = plan.Length(images=64, batch=4, epochs=1)
    assert identity.evaluated_on(small_plan(task=task, length=length).config) == "validation"
    assert identity.evaluated_on(small_plan().config) == "test"


class Labelled(ASGD):
    name, label = "mine", "Mine, v2"


def test_a_rule_of_ones_own_has_its_label_and_a_colour_of_its_own(tmp_path: Path) -> None:
    mine, plain = (
        experiment.run(small_plan(run_dir=tmp_path / rule.name, rule=rule), say=len)
        for rule in (Labelled(), ASGD())
    )
    assert "rule_label" not in summary_in(plain)
    groups = report.grouped([read.Run.read(path) for path in (mine, plain)])
    assert list(groups) == ["ASGD, M = 2", "Mine, v2, M = 2"]
    lines = report.draw(groups, "both").axes[0].lines
    colours = {str(line.get_label()): line.get_color() for line in lines}
    assert colours["ASGD, M = 2"] == "#D55E00" != colours["Mine, v2, M = 2"]
    text = report.comparison([tmp_path], None)  # a quadratic: losses, no columns of errors
    assert f"| ASGD, M = 2 | 1 | {summary_in(plain)['test_loss_final']:.4g} |" in text
    assert "error" not in text
