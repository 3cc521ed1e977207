"""Paired timings: works in turn, their medians, and the interval of a ratio."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Row:
    """One measurement: the median of n, its quartiles, and a ratio paired with another row."""

    what: str
    unit: str
    median: float
    low: float | None = None  # quartiles
    high: float | None = None
    n: int = 1
    ratio: float | None = None  # median over pairs
    ratio_low: float | None = None  # 95 % interval of that median
    ratio_high: float | None = None
    over: str | None = None  # what the ratio is to
    bound: str | None = None  # "ratio <= 1.01"


Timed = Callable[[], Any]
Part = Callable[[torch.device], Iterator[Row]]


def timings(works: Mapping[str, Timed], rounds: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds of each work in each round; the first work comes before every other, A B A C A D.

    The first work's are given per partner, under (name of the partner, "before"), as
    ``"<partner> before"``.
    """
    first, *others = works
    taken: dict[str, list[float]] = {name: [] for name in others}
    taken |= {f"{name} before": [] for name in others}

    def once(work: Timed) -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for work in works.values():  # warm
        once(work)
    for _ in tqdm(range(rounds), desc=first[:40], unit="round", leave=False):
        for name in others:
            taken[f"{name} before"].append(once(works[first]))
            taken[name].append(once(works[name]))
    return {name: np.array(values) for name, values in taken.items()}


def compared(
    works: Mapping[str, Timed],
    rounds: int,
    device: torch.device,
    bounds: Mapping[str, str],
) -> Iterator[Row]:
    """Rows of ``works`` in milliseconds, each with its ratio to the first, pair by pair."""
    first, *others = works
    taken = timings(works, rounds, device)
    yield row(first, "ms", 1000 * np.concatenate([taken[f"{name} before"] for name in others]))
    for name in others:
        pairs = taken[name] / taken[f"{name} before"]
        yield row(name, "ms", 1000 * taken[name], pairs, first, bounds.get(name))


def row(
    what: str,
    unit: str,
    values: Sequence[float] | np.ndarray,
    ratios: Sequence[float] | np.ndarray | None = None,
    over: str | None = None,
    bound: str | None = None,
) -> Row:
    """The Row of repeated measurements."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    quartiles: tuple[float | None, float | None]
    quartiles = (low, high) if len(values) > 1 else (None, None)
    if ratios is None:
        return Row(what, unit, median, *quartiles, len(values), bound=bound)
    ratio = statistics.median(ratios)
    return Row(what, unit, median, *quartiles, len(values), ratio, *interval(ratios), over, bound)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float | None, float | None]:
    """A 95 % interval of the median, from the order of the values alone (binomial).

    Fewer than six values have none: even their whole range is less sure.
    """
    ordered, n = sorted(values), len(values)
    if n < 6:
        return None, None
    tail, k = 0.0, 0
    while k < n // 2 and (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    return float(ordered[k - 1]), float(ordered[n - k])
