"""Schedules against hand-worked logs, a second implementation in plain Python, and the paper."""

from __future__ import annotations

import gzip
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

import dcasgd_repro
from dcasgd_repro.errors import BadInput
from dcasgd_repro.schedule import (
    MAX_WORKERS,
    PULL,
    PUSH,
    Constant,
    ConstantDelay,
    Exponential,
    FromFile,
    Gamma,
    Generated,
    Law,
    Lognormal,
    Message,
    Schedule,
    Shifted,
    Summed,
    delay_table,
    repeats,
)
from dcasgd_repro.schedule import log as log_module
from dcasgd_repro.schedule import workers as times

CONF = Path(__file__).parents[2] / "conf" / "schedule"
LAWS = {
    "constant": Constant(1.0),
    "gamma": Gamma(1.0, 0.3),
    "exponential": Exponential(1.0),
    "lognormal": Lognormal(1.0, 0.8),
    "summed": Summed(Gamma(0.25, 0.3), 4),
    "shifted": Shifted(0.6, Gamma(0.4, 0.7)),
}


def from_yaml(name: str, workers: int, **changes: Any) -> Any:
    words = ["scale=smoke", f"schedule={name}", f"workers={workers}", "seeds.schedule=1"]
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        config = compose("config", overrides=words)
    OmegaConf.set_struct(config, False)
    for key, value in changes.items():
        OmegaConf.update(config, f"schedule.{key}", value)
    try:
        return instantiate(config.schedule)
    except Exception as error:  # Hydra wraps what the dataclass raised
        raise error.__cause__ or error from None


def log(*lines: str, workers: int) -> Schedule:
    """A schedule from "clock pull|push worker" lines."""
    rows = [line.split() for line in lines]
    kinds = [{"pull": PULL, "push": PUSH}[kind] for _, kind, _ in rows]
    return Schedule([float(r[0]) for r in rows], kinds, [int(r[2]) for r in rows], workers)  # type: ignore[arg-type]


def slow_reads(schedule: Schedule) -> list[int]:
    """Algorithm 2's bookkeeping, one message at a time."""
    version, backup, reads = 0, {}, []
    for message in schedule:
        if message.kind == "pull":
            backup[message.worker] = version
        else:
            reads.append(backup.get(message.worker, 0))
            version += 1
    return reads


def same(a: Schedule, b: Schedule) -> bool:
    return a.workers == b.workers and list(a) == list(b)


# --- logs worked by hand ---------------------------------------------------------------------


def test_three_equal_workers_tie_in_worker_order() -> None:
    got = Generated(3, seed=0, compute=Constant(2.0)).messages(4)
    want = ["0 pull 0", "0 pull 1", "0 pull 2", "2 push 0", "2 pull 0", "2 push 1", "2 pull 1"]
    want += ["2 push 2", "2 pull 2", "4 push 0"]
    assert same(got, log(*want, workers=3))
    assert got.reads().tolist() == [0, 0, 0, 1]
    assert got.delays().tolist() == [0, 1, 2, 2]
    assert (got.pushes, got.duration_s, len(got)) == (4, 4.0, 10)


def test_communication_is_split_by_request_share_and_compute_divided_by_speed() -> None:
    # Worker 0: compute 4, worker 1: compute 2; communication 2, of which 0.5 belongs to the push
    # and 1.5 to the next pull. Worker 0 pulls at 0, 6; worker 1 at 0, 4, 8.
    cluster = Generated(2, 0, Constant(4.0), Constant(2.0), speeds=[1, 2], request_share=0.75)
    want = ["0 pull 0", "0 pull 1", "2.5 push 1", "4 pull 1", "4.5 push 0", "6 pull 0"]
    want += ["6.5 push 1", "8 pull 1", "10.5 push 0", "10.5 push 1"]
    got = cluster.messages(5)
    assert same(got, log(*want, workers=2))
    assert got.delays().tolist() == [0, 1, 1, 1, 1]


def test_the_pull_rides_on_the_push_by_default() -> None:
    got = Generated(2, 0, Constant(1.0), Constant(0.5), speeds=[1, 2]).messages(4)
    want = ["0 pull 0", "0 pull 1", "1 push 1", "1 pull 1", "1.5 push 0", "1.5 pull 0"]
    assert same(got, log(*want, "2 push 1", "2 pull 1", "3 push 0", workers=2))


def test_one_worker_does_not_communicate() -> None:
    got = Generated(1, 0, Constant(3.0), Constant(100.0), request_share=0.5).messages(2)
    assert same(got, log("0 pull 0", "3 push 0", "3 pull 0", "6 push 0", workers=1))
    assert got.delays().tolist() == [0, 0]


def test_ramp_straggler_and_speeds_multiply() -> None:
    workers = Generated(3, 0, Constant(1.0), speeds=[1, 1, 2], ramp=3.0, straggler=2.0)
    got = workers.messages(200)
    first = [got.clock[(got.worker == m) & (got.kind == PUSH)][0] for m in range(3)]
    assert first == pytest.approx([2.0, 1 / 2, 1 / 6])


def test_barrier_rounds_start_at_the_last_push_and_may_be_cut() -> None:
    cluster = Generated(3, 0, Constant(4.0), Constant(1.0), speeds=[1, 4, 2], barrier=True)
    want = ["0 pull 0", "0 pull 1", "0 pull 2", "2 push 1", "3 push 2", "5 push 0"]
    want += ["5 pull 0", "5 pull 1", "5 pull 2", "7 push 1"]
    got = cluster.messages(4)
    assert same(got, log(*want, workers=3))
    assert got.delays().tolist() == [0, 1, 2, 0]
    late = replace(cluster, request_share=1.0).messages(4)  # pushes at 1, 2, 4; next pulls at 5
    assert late.clock.tolist() == [0, 0, 0, 1, 2, 4, 5, 5, 5, 6]


def test_the_next_round_waits_for_the_slowest_request() -> None:
    travel = Generated(3, 4, Constant(1.0), Exponential(1.0), barrier=True).messages(3)
    slowest_s = travel.clock[-1] - 1.0  # all of the communication lies before the push
    work = Generated(3, 4, Constant(4.0), Exponential(1.0), [1, 4, 2], barrier=True)
    got = replace(work, request_share=1.0).messages(4)
    assert got.clock[:6].tolist() == [0, 0, 0, 1, 2, 4]
    assert got.clock[6:9].tolist() == pytest.approx([4.0 + slowest_s] * 3)


def test_barrier_ties_go_to_the_lower_worker() -> None:
    got = Generated(3, 0, Constant(1.0), barrier=True).messages(6)
    assert got.worker.tolist() == [0, 1, 2] * 4
    assert got.kind.tolist() == ([PULL] * 3 + [PUSH] * 3) * 2


# --- delays ----------------------------------------------------------------------------------


def test_every_law_is_tried_here_and_given_out_by_the_package() -> None:
    defined = (each for each in vars(times).values() if isinstance(each, type))
    ours = {law for law in defined if issubclass(law, Law)} - {Law}
    assert {type(law) for law in LAWS.values()} == ours
    for package in (dcasgd_repro, dcasgd_repro.schedule):
        assert {law.__name__ for law in ours} <= {*package.__all__}


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_reads_agree_with_a_loop_over_messages(law: str, barrier: bool) -> None:
    for workers in (1, 2, 7):
        cluster = Generated(workers, 3, LAWS[law], Gamma(0.5, 1.0), ramp=3.0, request_share=0.4)
        got = replace(cluster, barrier=barrier).messages(500)
        assert got.reads().tolist() == slow_reads(got)
        assert got.delays().tolist() == [t - read for t, read in enumerate(slow_reads(got))]
        for part in (got[100:300], got[:0], got[5:]):
            assert part.reads().tolist() == slow_reads(part)


def test_reads_of_a_log_where_workers_do_not_alternate() -> None:
    odd = log("0 push 1", "0 pull 0", "1 push 1", "2 pull 0", "3 push 0", "4 push 0", workers=2)
    assert odd.reads().tolist() == [0, 0, 2, 2] == slow_reads(odd)


def test_round_robin_and_constant_delay_are_constant_after_the_first_round() -> None:
    for schedule in (from_yaml("round_robin", 6), ConstantDelay(5, workers=6)):
        assert schedule.messages(100).delays().tolist() == [0, 1, 2, 3, 4] + [5] * 95
    assert not from_yaml("sequential", 1).messages(100).delays().any()


@pytest.mark.parametrize("ramp", [1.0, 5.0])
@pytest.mark.parametrize("law", LAWS)
def test_mean_delay_is_workers_less_one_whatever_the_law(law: str, ramp: float) -> None:
    # T pushes lack at most about M^2 delays at the start and M^2 at the end: 2 * 64 / 20,000.
    delays = Generated(8, 5, LAWS[law], ramp=ramp).messages(20_000).delays()
    assert delays.mean() == pytest.approx(7, abs=0.03)


def test_delay_table() -> None:
    got = Generated(8, 5, Gamma(1.0, 0.5), straggler=3.0).messages(5_000)
    table = delay_table(got).set_index("worker")
    assert list(table.index) == [*range(8), "all"]
    sender = got.worker[got.kind == PUSH]
    for name, delays in [("all", got.delays())] + [(m, got.delays()[sender == m]) for m in (0, 7)]:
        spread = np.sqrt(np.mean((delays - delays.mean()) ** 2))
        points = [np.quantile(delays, q) for q in (0.5, 0.95, 0.99, 1)]
        want = [len(delays), delays.mean(), spread, *points]
        assert table.loc[name].tolist() == pytest.approx(want)
    assert table["mean"][0] > 2 * table["mean"][7]
    few = delay_table(got[:9]).set_index("worker")  # 8 pulls, 1 push
    assert sorted(few["pushes"].tolist()) == [0] * 7 + [1, 1]
    assert few["mean"].isna().sum() == 7


# --- random streams --------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_another_worker_leaves_the_others_times_alone(law: str) -> None:
    cluster = Generated(3, 7, LAWS[law], Gamma(0.5, 1.0), request_share=0.3)
    three, four = cluster.messages(300), replace(cluster, workers=4).messages(500)
    for m in range(3):
        before, after = three.clock[three.worker == m], four.clock[four.worker == m]
        assert len(before) > 150
        assert before.tolist() == after[: len(before)].tolist()
    clocks = [tuple(four.clock[four.worker == m][1:4]) for m in range(4)]
    assert law == "constant" or len(set(clocks)) == 4


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_a_longer_log_begins_with_every_shorter_one(law: str, barrier: bool) -> None:
    cluster = Generated(5, 7, LAWS[law], Lognormal(0.5, 2.0), request_share=0.3, barrier=barrier)
    long = cluster.messages(2_001)
    for pushes in (1, 2, 37, 1_000, 2_000):
        short = cluster.messages(pushes)
        assert short.pushes == pushes
        assert short.kind[-1] == PUSH
        assert same(short, long[: len(short)])


def test_blocks_of_any_size_give_the_same_clocks() -> None:
    cluster = Generated(10, 7, Gamma(1.0, 5.0))  # heavy tails: the first guess falls short
    for worker in range(10):
        whole = cluster._clocks(worker, 500.0)
        rng = cluster._streams(worker)[0]
        work = np.concatenate([cluster.compute.sample(rng, n) for n in (1, 2, 3, 5_000)])
        want = np.cumsum(np.concatenate([[0.0], work]))
        assert whole[::2].tolist() == want[want <= 500.0].tolist()


def test_seed_and_purpose_separate_the_streams() -> None:
    def first(seed: int, **laws: Any) -> float:
        laws = {"compute": Constant(1.0), "communication": Constant(1.0)} | laws
        pushes = Generated(2, seed, **laws).messages(1)
        return float(pushes.clock[-1])

    assert first(0, compute=Exponential(1.0)) != first(1, compute=Exponential(1.0))
    assert first(0, compute=Exponential(1.0)) != first(0, communication=Exponential(1.0))


def test_golden_clocks_of_a_gamma_log() -> None:
    # Recorded from this code: a change here changes every experiment's message log.
    got = Generated(2, 0, Gamma(1.0, 0.2)).messages(3)
    assert got.worker.tolist() == [0, 1, 1, 1, 0, 0, 1]
    pushes = [0.6934397873762923, 1.151176749258491, 1.682610645869128]
    assert got.clock[got.kind == PUSH].tolist() == pytest.approx(pushes, rel=1e-9)


@pytest.mark.parametrize(
    ("law", "mean", "cv"),
    [
        (Constant(3.0), 3.0, 0.0),
        (Exponential(3.0), 3.0, 1.0),
        (Gamma(3.0, 0.2), 3.0, 0.2),
        (Gamma(3.0, 0.0), 3.0, 0.0),
        (Gamma(3.0, 1.5), 3.0, 1.5),
        (Lognormal(3.0, 0.5), 3.0, 0.5),
        (Lognormal(3.0, 0.0), 3.0, 0.0),
        (Summed(Gamma(1.0, 0.6), 4), 4.0, 0.3),
    ],
)
def test_laws_have_their_mean_and_coefficient_of_variation(
    law: Any, mean: float, cv: float
) -> None:
    times = law.sample(np.random.default_rng(0), 200_000)
    assert times.shape == (200_000,)
    assert times.min() > 0
    assert times.mean() == pytest.approx(mean, rel=0.01)
    assert times.std() / times.mean() == pytest.approx(cv, rel=0.02, abs=1e-12)


def test_lognormal_times_are_normal_in_the_logarithm_and_gamma_times_are_not() -> None:
    def skew_of_log(law: Any) -> float:
        logs = np.log(law.sample(np.random.default_rng(0), 100_000))
        return float(np.mean(((logs - logs.mean()) / logs.std()) ** 3))

    assert abs(skew_of_log(Lognormal(2.0, 0.7))) < 0.05
    assert skew_of_log(Gamma(2.0, 0.7)) < -0.5


# --- columns, files, hashes ------------------------------------------------------------------


def test_messages_are_plain_python_values_across_chunks() -> None:
    got = Generated(3, 0, Gamma(1.0, 0.3)).messages(40_000)
    messages = list(got)  # 80,000 messages, more than one chunk
    assert len(messages) == len(got) > 2**16
    assert {tuple(map(type, m)) for m in messages} == {(float, str, int)}
    assert messages[0] == Message(0.0, "pull", 0)
    for i in (2**16 - 1, 2**16, len(got) - 1):
        assert messages[i] == (got.clock[i], ["pull", "push"][got.kind[i]], got.worker[i])


def test_columns_are_read_only_and_slices_are_checked() -> None:
    got = Generated(3, 0, Constant(1.0)).messages(10)
    with pytest.raises(ValueError, match="read-only"):
        got.clock[0] = 1.0
    assert list(got[2:7]) == list(got)[2:7]
    assert got[2:7].workers == 3
    for wrong in (slice(None, None, 2), slice(None, None, -1), 3):
        with pytest.raises(TypeError):
            got[wrong]  # type: ignore[index]
    with pytest.raises(BadInput, match="equally long"):
        log("0 pull 0", workers=1).__class__(got.clock, got.kind[1:], got.worker, 3)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_a_saved_log_loads_bit_for_bit(tmp_path: Path, name: str) -> None:
    got = Generated(4, 2, Lognormal(1e-3, 1.0), Gamma(0.1, 1.0), request_share=0.5).messages(2_000)
    (tmp_path / "other").mkdir()
    got.save(tmp_path / name)
    again = Schedule.load(tmp_path / name)
    assert same(got, again)
    assert got.clock.tobytes() == again.clock.tobytes()
    assert got.sha256() == again.sha256()
    again.save(tmp_path / "other" / f"other{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / "other" / f"other{name}").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "other"]  # nothing temporary left
    if name.endswith(".gz"):
        assert (tmp_path / name).read_bytes()[3:8] == bytes(5)  # no name, no time
    assert same(FromFile(str(tmp_path / name), workers=4).messages(1_500), got_first(got, 1_500))


def got_first(schedule: Schedule, pushes: int) -> Schedule:
    seen, messages = 0, list(schedule)
    for length, message in enumerate(messages, 1):
        seen += message.kind == "push"
        if seen == pushes:
            return schedule[:length]
    raise AssertionError("too short")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.csv.gz"
    Generated(1, 0, Constant(1.0)).messages(3).save(path)
    before = path.read_bytes()

    def full(_: Schedule) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Schedule, "__iter__", full)
    with pytest.raises(OSError, match="No space left"):
        Generated(1, 0, Constant(1.0)).messages(5).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    for nowhere in (tmp_path / "no" / "folder.csv", path / "log.csv", "", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match=r"\[Errno"):
            Generated(1, 0, Constant(1.0)).messages(5).save(nowhere)


# sha256 of struct.pack("<7d", 0, 0, 1.25, 1.25, 1.25, 1.25, 2.5) + bytes([0, 0, 1, 0, 1, 0, 1])
# + struct.pack("<7i", 0, 1, 0, 0, 1, 1, 0)
GOLDEN_SHA256 = "a573c6834308c3b8d6bc766c3358220f6dbe2471dfe7eb888bfea7118a5ae776"


def test_sha256_is_golden_and_sees_every_column() -> None:
    got = Generated(2, 0, Constant(1.0), Constant(0.25)).messages(3)
    assert got.sha256() == GOLDEN_SHA256
    for column, value in (("clock", 1e-300), ("kind", PUSH), ("worker", 1)):
        changed = getattr(got, column).copy()
        changed[0] = value
        assert replace(got, **{column: changed}).sha256() != GOLDEN_SHA256


GOOD = "clock_s,kind,worker\n0.0,pull,0\n0.0,pull,1\n1.0,push,0\n1.5,push,1\n1.5,pull,0\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("1.0,push,0", "1.0,push,0\n1.0,push,0", 5, "out of turn"),
        (
            "0.0,pull,1\n",
            "",
            4,
            "out of turn",
        ),  # worker 1 now pushes on line 4, never having pulled
        ("0.0,pull,1", "nan,pull,1", 3, "finite"),
        ("1.5,pull,0", "inf,pull,0", 6, "finite"),
        ("0.0,pull,0", "-1.0,pull,0", 2, "not before"),
        ("1.5,push,1", "0.5,push,1", 5, "not before 1.0"),
        ("1.0,push,0", "1.0,Push,0", 4, "pull or push"),
        ("1.0,push,0", "1.0,push", 4, "a row is"),
        ("1.0,push,0", "1.0,push,0,9", 4, "a row is"),
        ("1.0,push,0", "soon,push,0", 4, "a row is"),
        ("1.0,push,0", "1.0,push,0.5", 4, "a row is"),
        ("1.0,push,0\n", "\n1.0,push,0\n", 4, "a row is"),
        ("0.0,pull,1", "0.0,pull,-1", 3, "from 0"),
        ("0.0,pull,1", "0.0,pull,4294967296", 3, "from 0"),
        ("1.5,pull,0", "1.5,pull,3", 6, "no worker 2"),
        ("clock_s", "clock", 1, "clock_s,kind,worker"),
        (GOOD, "", 1, "clock_s,kind,worker"),
        (GOOD, "clock_s,kind,worker\n", 2, "no message"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_file_is_refused_by_line(
    tmp_path: Path, old: str, new: str, line: int, why: str, packed: bool
) -> None:
    path = tmp_path / ("log.csv.gz" if packed else "log.csv")
    write = (lambda text: gzip.compress(text.encode())) if packed else str.encode
    path.write_bytes(write(GOOD))
    assert len(Schedule.load(path)) == 5
    assert old in GOOD
    path.write_bytes(write(GOOD.replace(old, new, 1)))
    with pytest.raises(BadInput, match=why) as refusal:
        Schedule.load(path)
    assert f"{path}:{line}: " in str(refusal.value)


def test_the_first_of_two_bad_lines_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(GOOD.replace("0.0,pull,1\n", "").replace("1.5,pull,0", "x"))
    with pytest.raises(BadInput, match=r"log.csv:4: push 1 is out of turn"):
        Schedule.load(path)


def test_a_worker_that_was_restarted_pulls_again(tmp_path: Path) -> None:
    """Its gradient since the pull before is lost: the delay counts from the later pull."""
    path = tmp_path / "log.csv"
    path.write_text(GOOD.replace("1.5,push,1", "1.0,pull,1\n1.5,push,1"))
    log = Schedule.load(path)
    assert log.kind.tolist() == [PULL, PULL, PUSH, PULL, PUSH, PULL]
    assert log.delays().tolist() == [0, 0]
    log.save(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == path.read_text()


def test_what_is_not_a_log_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode())
    contents = {
        "plain.csv.gz": GOOD.encode(),
        "short.csv.gz": packed[:-12],
        "broken.csv.gz": packed[:20] + bytes(20) + packed[40:],
        "garbled.csv.gz": packed[:10] + b"\xff" * 20,
        "binary.csv": b"\xff\xfe\x00",
        "packed.csv": packed,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "missing.csv", "."]:
        with pytest.raises(BadInput) as refusal:
            Schedule.load(tmp_path / name)
        assert str(tmp_path) in str(refusal.value)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, -1, 2.0, True, None, "4", MAX_WORKERS + 1])
def test_workers_are_refused(workers: Any) -> None:
    for build in (
        lambda: Generated(workers, 0, Constant(1.0)),
        lambda: ConstantDelay(3, workers),
        lambda: FromFile("log.csv", workers if workers is not None else 0),
    ):
        with pytest.raises(BadInput) as refusal:
            build()
        assert refusal.value.key == "workers"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", [-1, 0.5, None, True]),
        ("compute", [1.0, None, Constant]),
        ("compute.mean_s", [Constant(0.0)]),
        ("communication", [0.0, None]),
        ("speeds", [[1.0], [1.0] * 4, 2.0]),
        ("speeds[1]", [[1, 0, 1], [1, -1, 1], [1, float("nan"), 1], [1, "2", 1]]),
        ("ramp", [0.0, -1.0, float("inf"), None]),
        ("straggler", [0.0, float("nan"), "4"]),
        ("request_share", [-0.1, 1.1, float("nan"), True]),
        ("barrier", [1, None, "true"]),
    ],
)
def test_fields_are_refused_by_name(key: str, values: list[Any]) -> None:
    good = Generated(3, 0, Constant(1.0))
    for value in values:
        with pytest.raises(BadInput) as refusal:
            replace(good, **{key.split(".")[0].split("[")[0]: value})
        assert refusal.value.key == key


@pytest.mark.parametrize("law", [Constant, Exponential, Gamma, Lognormal])
def test_laws_refuse_impossible_times(law: Any) -> None:
    spread = (0.5,) if law in (Gamma, Lognormal) else ()
    for mean in (-1.0, float("nan"), float("inf"), None, True, "1"):
        with pytest.raises(BadInput, match="mean_s="):
            law(mean, *spread)
    for cv in (-0.1, float("nan"), 6.0, None) if spread else ():
        with pytest.raises(BadInput, match="cv="):
            law(1.0, cv)


@pytest.mark.parametrize("pushes", [0, -3, 2.5, None, True])
def test_pushes_are_refused(tmp_path: Path, pushes: Any) -> None:
    path = tmp_path / "log.csv"
    path.write_text(GOOD)
    cluster = Generated(2, 0, Constant(1.0))
    for schedule in (cluster, replace(cluster, barrier=True), ConstantDelay(0, 1), FromFile(path)):
        with pytest.raises(BadInput, match="pushes="):
            schedule.messages(pushes)


def test_constant_delay_names_the_workers_it_needs() -> None:
    with pytest.raises(BadInput, match=r"workers=8: .* set workers=4"):
        ConstantDelay(3, workers=8)
    with pytest.raises(BadInput, match=r"workers=4: .* set workers=1"):
        from_yaml("sequential", 4)
    for delay in (-1, 1.0, None):
        with pytest.raises(BadInput, match="delay="):
            ConstantDelay(delay, workers=1)  # type: ignore[arg-type]


def test_a_file_must_hold_what_is_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "log.csv")
    Generated(3, 0, Gamma(1.0, 1.0)).messages(30).save(path)
    for missing in (None, "", "???"):
        with pytest.raises(BadInput, match=r"schedule=file needs schedule.path=FILE"):
            FromFile(missing)
    with pytest.raises(BadInput, match=r"workers=4: .* has workers=3"):
        FromFile(path, workers=4).messages(30)
    with pytest.raises(BadInput, match=r"barrier=True: .* rounds of 3"):
        FromFile(path, barrier=True).messages(30)
    rounds = Generated(3, 0, Gamma(1.0, 1.0), barrier=True).messages(30)
    rounds.save(path)
    assert same(FromFile(path, 3, barrier=True).messages(29), got_first(rounds, 29))
    (tmp_path / "none.csv").write_text("clock_s,kind,worker\n0.0,pull,0\n")
    with pytest.raises(BadInput, match=r"^path=.*none.csv: holds no push; record a longer log"):
        FromFile(str(tmp_path / "none.csv")).messages(1)


def test_a_shorter_file_is_repeated_each_worker_going_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "clock_s,kind,worker\n1.0,pull,0\n1.0,pull,1\n2.0,push,1\n2.5,pull,1\n4.0,push,1\n"
    )
    # Worker 0 computes at the end and never pulls again; worker 1 has pushed, and pulls.
    got = FromFile(str(path), 2).messages(5)
    assert [tuple(message) for message in got] == [
        (1.0, "pull", 0), (1.0, "pull", 1), (2.0, "push", 1), (2.5, "pull", 1), (4.0, "push", 1),
        (4.0, "pull", 1), (5.0, "push", 1), (5.5, "pull", 1), (7.0, "push", 1),
        (7.0, "pull", 1), (8.0, "push", 1),
    ]  # fmt: skip
    assert repeats(FromFile(str(path)), 5) == f"{path} holds 2 pushes, which are repeated 2.5 times"
    assert repeats(FromFile(str(path)), 2) == repeats(Generated(2, 0, Constant(1.0)), 5) == ""
    log = Generated(4, 0, Gamma(1.0, 0.5)).messages(300)
    log.save(path)
    whole = FromFile(str(path), 4).messages(1000)
    assert same(got_first(whole, 300), log)
    assert same(got_first(whole, 650), FromFile(str(path)).messages(650))
    assert (whole.pushes, whole.stopped) == (1000, 0)
    sender = whole.worker[whole.kind == 1]
    assert sender.tolist() == np.resize(log.worker[log.kind == 1], 1000).tolist()
    assert whole.delays().mean() == pytest.approx(3, abs=0.1)
    whole.save(tmp_path / "whole.csv")
    assert same(Schedule.load(tmp_path / "whole.csv"), whole)
    rounds = Generated(3, 0, Gamma(1.0, 1.0), barrier=True)
    rounds.messages(30).save(path)
    assert FromFile(str(path), 3, barrier=True).messages(70).in_rounds
    rounds.messages(29).save(path)
    with pytest.raises(BadInput, match=r"barrier=True: .* rounds of 3"):
        FromFile(str(path), 3, barrier=True).messages(30)


# --- conf/schedule ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({p.stem for p in CONF.glob("*.yaml")} - {"live"}))
@pytest.mark.parametrize("workers", [1, 8])
def test_every_yaml_gives_a_log(tmp_path: Path, name: str, workers: int) -> None:
    changes: dict[str, Any] = {}
    if name == "file":
        changes = {"path": str(tmp_path / "log.csv")}
        Generated(workers, 0, Constant(1.0)).messages(200).save(changes["path"])
    if name == "delays":
        changes = {"path": str(tmp_path / "delays.txt")}
        delays = Generated(workers, 0, Constant(1.0)).messages(200).delays()
        Path(changes["path"]).write_text("\n".join(map(str, delays)))
    if name == "from_run":
        changes = {"run": str(tmp_path)}
        Generated(2, 0, Gamma(1.0, 0.2)).messages(200).save(tmp_path / "schedule.csv.gz")
    if (name, workers) in {
        ("constant_delay", 1),
        ("sequential", 8),
        ("late", 1),
        ("drawn_delays", 1),
    }:
        with pytest.raises(BadInput, match=f"workers={workers}: "):
            from_yaml(name, workers)
        return
    got = from_yaml(name, workers, **changes).messages(200)
    assert (got.pushes, got.workers) == (200, workers)
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")


def test_the_yamls_differ_as_they_say() -> None:
    def delays(name: str, **changes: Any) -> Any:
        return delay_table(from_yaml(name, 8, **changes).messages(62_500)).set_index("worker")

    gamma, lognormal = delays("gamma"), delays("lognormal")
    assert gamma["std"]["all"] == pytest.approx(1.4, abs=0.05)  # recorded: 1.2 to 1.8
    assert lognormal["std"]["all"] == pytest.approx(1.8, abs=0.05)
    assert 12 <= gamma["max"]["all"] < lognormal["max"]["all"] <= 23  # recorded: 12 to 23
    assert delays("exponential")["std"]["all"] == pytest.approx(7.5, abs=0.2)
    pushes = delays("heterogeneous")["pushes"]
    assert pushes[7] / pushes[0] == pytest.approx(2, rel=0.01)
    pushes = delays("heterogeneous", ramp=1.0, speeds=[1, 1, 1, 1, 1, 1, 1, 3])["pushes"]
    assert pushes[7] / pushes[0] == pytest.approx(3, rel=0.01)
    pushes = delays("straggler")["pushes"]
    assert pushes[7] / pushes[0] == pytest.approx(4, rel=0.01)
    assert delays("barrier")["max"]["all"] == 7


# fig3_totals.csv: seconds the paper's Figure 3 shows for 160 epochs (facts.md, section Time).
@pytest.mark.parametrize(
    ("workers", "barrier", "paper_s", "tolerance"),
    [
        (1, False, 5336, 0.05),
        (4, False, 2153, 0.05),
        (8, False, 1077, 0.05),
        (4, True, 2433, 0.05),
        (8, True, 1430, 0.12),  # the paper's own pace changes during this run
    ],
)
def test_paper_cluster_takes_the_papers_time(
    workers: int, barrier: bool, paper_s: float, tolerance: float
) -> None:
    got = from_yaml("paper_cluster", workers, barrier=barrier).messages(160 * 50_000 // 128)
    assert got.pushes == 62_500
    print(f"M={workers} barrier={barrier}: {got.duration_s:.0f} s, paper {paper_s} s")
    assert got.duration_s == pytest.approx(paper_s, rel=tolerance)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["", "mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_log_of_other_programs_lines_is_the_same_log(
    tmp_path: Path, start: bytes, end: bytes, suffix: str
) -> None:
    log = Generated(workers=3, seed=0, compute=Gamma(1.0, cv=0.3)).messages(pushes=20)
    log.save(tmp_path / "log.csv")
    content = start + (tmp_path / "log.csv").read_bytes().replace(b"\n", end)
    other = tmp_path / f"other.{suffix}"
    other.write_bytes(gzip.compress(content) if suffix == "csv.gz" else content)
    assert Schedule.load(other).sha256() == log.sha256()


def test_a_log_that_unpacks_without_end_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "log.csv.gz"
    bomb.write_bytes(gzip.compress(b"clock_s,kind,worker\n" + bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(BadInput, match=r"log.csv.gz:2: longer than 200 characters"):
        Schedule.load(bomb)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**22
    bomb.write_bytes(gzip.compress(b"clock_s,kind,worker\n" + b"0.0,pull,0\n" * 101))
    monkeypatch.setattr(log_module, "LONGEST", 100)
    with pytest.raises(BadInput, match=r"log.csv.gz:102: a log has at most 100 messages"):
        Schedule.load(bomb)
