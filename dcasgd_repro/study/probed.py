"""A study's probe.csv files: medians by candidate, and their intervals.

taylor.py says what the columns are. Imports no torch.

Neighbouring probes share the weights and MeanSquare, so they are no independent draws. An interval
is therefore of block medians: a block is 100 pushes of one seed, and its median counts once. The
interval is that of the sign test: the median of n blocks lies between the k-th smallest and the
k-th largest with a probability of at least 95 %, whatever their distribution is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.read import Run
from dcasgd_repro.study.grid import Claim
from dcasgd_repro.study.verdicts import FAILS, HOLDS, LEVEL, UNDECIDED

BLOCK = 100  # pushes
LAM = 0.04  # of the candidates c, c_sum and abs
NAMES = ("c", "c_sum", "abs", "a_0.5", "a_2")


class Median(NamedTuple):
    """The median of n block medians, and its 95 % interval; infinite for fewer than 6 blocks."""

    median: float
    low: float
    high: float
    n: int

    @property
    def estimate(self) -> float:
        return self.median

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        if not self.n:
            return "-"
        width = f" [{self.low:.3g}, {self.high:.3g}]" if math.isfinite(self.half) else ""
        return f"{self.median:.3g}{width}"


def rows(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """The rows of each cell's probe.csv files, with ``cell`` and ``seed``; empty without any.

    Of finished runs, as far as they are read: one that diverged measured something else.
    """
    found = []
    for cell, of_cell in runs.items():
        for run in of_cell:
            if run.finished and run.probes is not None:
                table = checked(run, run.probes).assign(cell=cell, seed=run.summary["seed"])
                found.append(table[table["epoch"] <= (run.until or math.inf) + 1e-9])
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"cell": [], "seed": []})


def checked(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """A run's probe.csv, if it is one. Raises BadInput."""
    if not {"push", "epoch", *(f"removed_{name}" for name in NAMES)} <= set(table.columns):
        raise BadInput("run", run.path, "its probe.csv is not one of this program's")
    return table


def median(table: pd.DataFrame, column: str) -> Median:
    """The median of a column's block medians, over the seeds of one cell, and its interval.

    A block that the run ended in is left out.

    Raises BadInput for a column that is not there.
    """
    if table.empty:
        return Median(math.nan, -math.inf, math.inf, 0)
    if column not in table.columns:
        raise BadInput("probe", column, f"no such column; choose {', '.join(table.columns)}")
    pushes, block = table.groupby("seed")["push"], (table["push"] - 1) // BLOCK
    last = pushes.transform("max") + pushes.transform(lambda p: p.diff().median())  # the next one
    whole = table[(block + 1) * BLOCK < last].dropna(subset=[column])
    values = np.sort(whole.groupby(["seed", block])[column].median().to_numpy())
    n, k = len(values), rank(len(values))
    low, high = (values[k - 1], values[n - k]) if k else (-math.inf, math.inf)
    return Median(float(np.median(values)) if n else math.nan, float(low), float(high), n)


def rank(n: int) -> int:
    """k of the sign test: the most for which [k-th smallest, k-th largest] of n covers 95 %."""
    return int(stats.binom.ppf(LEVEL / 2, n, 0.5)) if n else 0


def verdict(claim: Claim, found: Median) -> str:
    """The claim holds if the whole interval lies between its ends, and fails if none of it does.

    Undecided if a part of it does.
    """
    above = -math.inf if claim.above is None else claim.above
    below = math.inf if claim.below is None else claim.below
    if found.n and above < found.low and found.high < below:
        return HOLDS
    return FAILS if found.high < above or below < found.low else UNDECIDED


def words(name: str, batch: int) -> str:
    """What a candidate adds to g, B being the mini-batch size."""
    if name.startswith("a_"):
        return f"{float(name[2:]):g} g g drift / sqrt(MeanSquare)"
    lam = LAM * batch if name == "c_sum" else LAM
    return f"{lam:g} {'|g|' if name == 'abs' else 'g g'} drift"


def summary(table: pd.DataFrame, batches: Mapping[str, int]) -> pd.DataFrame:
    """A row for each cell and candidate: median and quartiles over probes, and how many.

    ``batches``: the mini-batch size of each cell. Probes without delay or drift do not count.
    """
    found = []
    for cell, of_cell in table.groupby("cell", sort=False):
        for name in NAMES:
            line: dict[str, Any] = {"cell": cell, "candidate": name}
            line |= {"adds": words(name, batches[str(cell)])}
            parts = {"size": f"size_{name}", "cos_before": "cos", "cos_after": f"cos_{name}"}
            for key, column in {**parts, "removed": f"removed_{name}"}.items():
                quarters = of_cell[column].quantile([0.25, 0.5, 0.75])
                line |= dict(zip((f"{key}_q1", key, f"{key}_q3"), quarters, strict=True))
            found.append({**line, "n": int(of_cell[f"removed_{name}"].notna().sum())})
    return pd.DataFrame(found)


def markdown(table: pd.DataFrame) -> str:
    """``summary`` as a Markdown table: median [quartiles]."""
    head = ["cell", "the candidate adds", "its size, ‖c‖ / ‖g‖", "cos(g, g_t)", "cos(g + c, g_t)"]
    head += ["part of the squared staleness error removed", "probes"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in table.to_dict("records"):
        line = [str(row["cell"]), str(row["adds"]).replace("|", "\\|")]
        line += [
            f"{row[key]:.3g} [{row[f'{key}_q1']:.3g}, {row[f'{key}_q3']:.3g}]"
            for key in ("size", "cos_before", "cos_after", "removed")
        ]
        lines.append("| " + " | ".join([*line, str(row["n"])]) + " |")
    return "\n".join(lines)
