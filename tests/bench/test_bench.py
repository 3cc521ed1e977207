"""The bench's arithmetic, files and tables; what it times is no business of a test."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dcasgd_repro.bench import cluster, page, parts, timing
from dcasgd_repro.bench.timing import Row
from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # From a table of the sign test: the k-th smallest and largest of n bound the median at 95 %,
    # and no two of fewer than six do.
    [(6, 1, 6), (10, 2, 9), (20, 6, 15), (30, 10, 21), (100, 40, 61), (5, None, None)],
)
def test_interval_of_a_median(n: int, low: int | None, high: int | None) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert timing.interval(values) == (low, high)


def test_works_are_timed_in_turns_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def work(name: str, seconds: float) -> timing.Timed:
        def run() -> None:
            calls.append(name)
            clock[0] += seconds

        return run

    works = {"a": work("a", 2.0), "b": work("b", 3.0), "c": work("c", 1.0)}
    first, second, third = timing.compared(works, 4, torch.device("cpu"), {"b": "ratio <= 1.4"})
    assert calls == list("abc") + list("abac") * 4
    assert (first.what, first.median, first.n, first.ratio) == ("a", 2000.0, 8, None)
    assert (second.median, second.ratio, second.over) == (3000.0, 1.5, "a")
    assert (third.median, third.ratio, third.bound) == (1000.0, 0.5, None)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "bound", "said"),
    [
        (1.0, 0.9, 1.05, "ratio <= 1.1", "met"),
        (1.0, 0.9, 1.2, "ratio <= 1.1", "met, within noise"),
        (1.2, 0.9, 1.3, "ratio <= 1.1", "NOT met, within noise"),
        (1.2, 1.15, 1.3, "ratio <= 1.1", "NOT met"),
        (1.4, 1.35, 1.5, "ratio >= 1.3", "met"),
        (1.2, 1.1, 1.35, "ratio >= 1.3", "NOT met, within noise"),
        (1.2, 1.1, 1.25, "ratio >= 1.3", "NOT met"),
        (1.4, None, None, "ratio >= 1.3", "met"),
        (None, None, None, "value <= 5", "met"),
        (None, None, None, "value <= 4", "NOT met"),
    ],
)
def test_verdicts(
    ratio: float | None, low: float | None, high: float | None, bound: str, said: str
) -> None:
    row = Row("x", "ms", 5.0, ratio=ratio, ratio_low=low, ratio_high=high, bound=bound)
    assert page.verdict(row) == said


def test_a_part_is_kept_beside_those_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(device: torch.device):
        """One thing."""
        yield Row("thing", "ms", 1.5, 1.0, 2.0, 3, bound="value <= 2")

    monkeypatch.setattr(page, "PARTS", {"memory": one, "update": one})
    for part in ("memory", "update"):
        assert cli.bench([part, "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    assert list(content) == ["memory", "update"]
    assert content["update"]["rows"][0]["median"] == 1.5
    assert content["update"]["provenance"]["argv"][:3] == ["dcasgd-repro", "bench", "update"]
    line = "| thing | 1.5 ms [1, 2] | 3 |  |  | value <= 2: met |"
    assert line in capsys.readouterr().out
    text = (tmp_path / "README.md").read_text()
    assert text == f"{page.HEAD}\n{page.performance(tmp_path)}\n"
    assert text.count(line) == 2


def test_an_empty_folder_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^bench=.*: no measurement there"):
        page.performance(tmp_path)
    (tmp_path / "cpu-2020-01-01.json").write_text('{"memory": {"rows": [{"odd": 1}]}}')
    with pytest.raises(BadInput, match=r"^bench=.*json: no file of this program's"):
        page.performance(tmp_path)


def test_an_interrupted_bench_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(device: torch.device):
        """One thing."""
        yield Row("thing", "ms", 1.5)

    def stopped(device: torch.device):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(page, "PARTS", {"memory": one, "update": stopped})
    assert cli.bench(["memory", "update", "--out", str(tmp_path)]) == 130
    assert f"the parts that were done are kept in {tmp_path}" in capsys.readouterr().err
    (file,) = tmp_path.glob("*.json")
    assert list(json.loads(file.read_text())) == ["memory"]


def test_pushes_per_second_are_those_of_the_later_blocks_of_a_run() -> None:
    """Sixteen slow pushes, then 48 at ten a second: the slow ones are the first two blocks of 8."""
    clocks = np.cumsum([1.0] * 17 + [0.1] * 48)
    assert cluster.rates(clocks.tolist()) == pytest.approx([10.0] * 6)
    assert len(cluster.arithmetic(size=5, workers=2, pushes=64)) == 64


def test_the_cluster_part_needs_ray_and_says_so_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(page, "PARTS", dict.fromkeys(parts.PARTS))  # to measure would raise
    with pytest.raises(
        BadInput, match=r"^engine=ray: needs Ray: pip install 'dcasgd-repro\[ray\]'"
    ):
        cli.bench(["memory", "cluster", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_all_parts_are_all_but_the_one_that_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[list[str]] = []
    monkeypatch.setattr(page, "run", lambda names, *rest: chosen.append(names))
    monkeypatch.setattr(page, "write", lambda out: out)
    assert cli.bench([]) == 0
    assert chosen == [["simulate", "memory", "schedule", "update", "waves"]]


def test_the_committed_page_is_that_of_the_files() -> None:
    folder = ROOT / "results" / "bench"
    expected = f"{page.HEAD}\n{page.performance(folder)}\n"
    assert (folder / "README.md").read_text() == expected


def test_the_work_of_a_gradient_is_counted() -> None:
    """ResNet-20: 121.2 million multiply-adds an image, forward and backward."""
    flop, traffic = parts.work_of(parts.Network("ResNet-20, batch 2", 20, 16, 2))
    assert flop * 64 == 31_029_952_512
    assert traffic * 64 > 1.7e9  # activations, mostly: 1.79 GB at batch 128


def test_traffic_counts_what_is_read_and_written_and_no_views() -> None:
    a, b = torch.ones(100), torch.ones(100)
    with parts.Traffic() as counted:
        (a + b).view(10, 10)
    assert counted.bytes == 3 * 400


def test_bounds_are_parts_of_what_the_card_can_do() -> None:
    roof = parts.Roof(flop_s=60e12, bytes_s=3e12, flop=31e9, bytes=1.8e9)
    assert roof.gradients_s == pytest.approx(3e12 / 1.8e9)  # traffic is the longer of the two
    row = roof.part("graphs", np.array([500.0, 600.0, 700.0]))
    assert row.median == pytest.approx(0.36)
    assert page.verdict(row) == "met"
    assert page.verdict(roof.part("graphs", np.array([500.0]))) == "NOT met"
    measured = parts.roof_of(torch.device("cpu"), 31e9, 1.8e9, size=64, rounds=2)
    assert 0 < measured.gradients_s < 1e6


def test_the_networks_steps_run() -> None:
    """Each loop that is timed takes its steps, into a second epoch and over a row of metrics."""
    network = parts.Network("tiny", 8, 2, 4)
    task = network.task(torch.device("cpu"), 8)
    pushes = partial(parts.pushes, engine=parts.simulate)
    for make in (parts.plain_loop, parts.repointed, parts.functional, pushes):
        parts.bundle(make(task), 60)()
    peers = parts.peers_loop(network, torch.device("cpu"))
    peers()
