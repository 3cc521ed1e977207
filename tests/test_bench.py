"""The bench's arithmetic, files and tables; what it times is no business of a test."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dcasgd_repro import bench, cli, pages
from dcasgd_repro.bench import Row
from dcasgd_repro.errors import BadInput

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # From a table of the sign test: the k-th smallest and largest of n bound the median at 95 %,
    # and no two of fewer than six do.
    [(6, 1, 6), (10, 2, 9), (20, 6, 15), (30, 10, 21), (100, 40, 61), (5, None, None)],
)
def test_interval_of_a_median(n: int, low: int | None, high: int | None) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert bench.interval(values) == (low, high)


def test_works_are_timed_in_turns_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def work(name: str, seconds: float) -> bench.Timed:
        def run() -> None:
            calls.append(name)
            clock[0] += seconds

        return run

    works = {"a": work("a", 2.0), "b": work("b", 3.0), "c": work("c", 1.0)}
    first, second, third = bench.compared(works, 4, torch.device("cpu"), {"b": "ratio <= 1.4"})
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
    assert bench.verdict(row) == said


def test_a_part_is_kept_beside_those_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(device: torch.device):
        """One thing."""
        yield Row("thing", "ms", 1.5, 1.0, 2.0, 3, bound="value <= 2")

    monkeypatch.setattr(bench, "PARTS", {"memory": one, "update": one})
    page = tmp_path / "README.md"
    begin, end = pages.marks("performance")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for part in ("memory", "update"):
        assert cli.bench([part, "--out", str(tmp_path), "--readme", str(page)]) == 0
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    assert list(content) == ["memory", "update"]
    assert content["update"]["rows"][0]["median"] == 1.5
    assert content["update"]["provenance"]["argv"][:3] == ["dcasgd-repro", "bench", "update"]
    line = "| thing | 1.5 ms [1, 2] | 3 |  |  | value <= 2: met |"
    assert line in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count(line) == 2
    assert "old" not in text
    assert (
        text
        == text.partition(begin)[0]
        + begin
        + "\n"
        + bench.performance(tmp_path)
        + "\n"
        + end
        + text.partition(end)[2]
    )


def test_a_page_without_marks_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("nothing here\n")
    with pytest.raises(BadInput, match=r"^readme=.*: it has no line <!-- performance"):
        pages.into(page, "performance", "text")
    assert page.read_text() == "nothing here\n"
    with pytest.raises(BadInput, match=r"^bench=.*: no measurement there"):
        bench.performance(tmp_path)


def test_a_damaged_file_and_a_missing_page_are_refused_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "cpu-2020-01-01.json").write_text('{"memory": {"rows": [{"odd": 1}]}}')
    with pytest.raises(BadInput, match=r"^bench=.*json: no file of this program's"):
        bench.performance(tmp_path)
    with pytest.raises(BadInput, match=r"^readme=.*nope.md: not readable"):
        cli.bench(["memory", "--out", str(tmp_path), "--readme", str(tmp_path / "nope.md")])


def test_an_interrupted_bench_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(device: torch.device):
        """One thing."""
        yield Row("thing", "ms", 1.5)

    def stopped(device: torch.device):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(bench, "PARTS", {"memory": one, "update": stopped})
    assert cli.bench(["memory", "update", "--out", str(tmp_path)]) == 130
    assert f"the parts that were done are kept in {tmp_path}" in capsys.readouterr().err
    (file,) = tmp_path.glob("*.json")
    assert list(json.loads(file.read_text())) == ["memory"]


def test_the_readmes_performance_is_that_of_the_files() -> None:
    begin, end = pages.marks("performance")
    text = (ROOT / "README.md").read_text().partition(begin)[2].partition(end)[0]
    assert text.strip() == bench.performance(ROOT / "results" / "bench")


def test_the_networks_steps_run() -> None:
    """Each loop that is timed takes its steps, into a second epoch and over a row of metrics."""
    network = bench.Network("tiny", 8, 2, 4)
    task = network.task(torch.device("cpu"), 8)
    pushes = partial(bench.pushes, engine=bench.simulate)
    for make in (bench.plain_loop, bench.repointed, bench.functional, pushes):
        bench.bundle(make(task), 60)()
    peers = bench.peers_loop(network, torch.device("cpu"))
    peers()
