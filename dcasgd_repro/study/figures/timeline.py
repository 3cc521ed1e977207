"""A message log, drawn: its delays, and who computes and waits in its first rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcasgd_repro.schedule import PUSH, Schedule, delay_table
from dcasgd_repro.schedule.log import first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#666666"
COMPUTES, STOPPED, WAITS = "computes", "computes in vain (stopped, failed)", "waits"
COLOURS = {COMPUTES: BLUE, STOPPED: "#CC79A7", WAITS: ORANGE}
SHOWN = 16  # workers of a Gantt chart
ROUNDS = 4  # pushes a worker of a Gantt chart, on average
NUMBERED = 60  # pushes that can have their delays written beside them


class Span(NamedTuple):
    """What a worker does from one message to the next, in simulated seconds."""

    worker: int
    does: str  # COMPUTES, STOPPED or WAITS, which is between its push and its next pull
    start_s: float
    end_s: float


def spans(log: Schedule) -> list[Span]:
    """What each worker does between two messages of its own, to the log's last message.

    A worker computes from its pull to its push, the way of its messages included. Where it pulls
    again without a push, it was stopped, or failed and was down for a part of that time.
    """
    found, since = [], dict[int, tuple[float, str]]()
    for clock, kind, m in log:
        if m in since:
            start, does = since[m]
            lost = does == COMPUTES and kind == "pull"
            found.append(Span(m, STOPPED if lost else does, start, clock))
        since[m] = (clock, COMPUTES if kind == "pull" else WAITS)
    end = float(log.clock[-1]) if len(log) else 0.0
    found += [Span(m, does, start, end) for m, (start, does) in since.items()]
    return [span for span in found if span.end_s > span.start_s]


def shares(log: Schedule) -> dict[str, float]:
    """The shares of the workers' time in which they compute, compute in vain, and wait."""
    return _shares(spans(log))


def shares_of_each(log: Schedule) -> list[dict[str, float]]:
    """``shares`` of each worker alone, to the log's last message, whosever it is."""
    own: list[list[Span]] = [[] for _ in range(log.workers)]
    for span in spans(log):
        own[span.worker].append(span)
    return list(map(_shares, own))


def _shares(spans: Sequence[Span]) -> dict[str, float]:
    seconds = dict.fromkeys(COLOURS, 0.0)
    for span in spans:
        seconds[span.does] += span.end_s - span.start_s
    whole = sum(seconds.values()) or 1.0
    return {does: spent / whole for does, spent in seconds.items()}


def histogram(axes: Axes, log: Schedule) -> None:
    """The share of pushes with each delay."""
    counts = delay_shares(log)
    axes.bar(np.arange(len(counts)), counts, width=0.9, color=BLUE)
    axes.axvline(log.delays().mean(), color="black", linestyle="--", linewidth=1)
    whole_ticks(axes.xaxis)
    axes.set_axisbelow(True)
    axes.set(xlabel="delay (pushes; dashed: the mean)", ylabel="share of pushes")


def overlaid(axes: Axes, recorded: Schedule, drawn: Schedule) -> None:
    """The delays of a recorded log, as bars, and those of workers like its own, as a line."""
    there, anew = (delay_shares(log) for log in (recorded, drawn))
    axes.bar(np.arange(len(there)), there, width=0.9, color=BLUE, alpha=0.5, label="recorded")
    axes.stairs(anew, np.arange(len(anew) + 1) - 0.5, color=ORANGE, linewidth=1.8, label="fitted")
    whole_ticks(axes.xaxis)
    axes.set_axisbelow(True)
    longest = max(np.quantile(log.delays(), 0.995) for log in (recorded, drawn))
    axes.set(xlabel="delay (pushes; 99.5 % of them)", ylabel="share of pushes")
    axes.set_xlim(-0.6, max(longest, 2) + 0.6)
    axes.legend(frameon=False, fontsize=8)


def delay_shares(log: Schedule) -> NDArray[np.float64]:
    """The share of pushes with each delay from 0 on."""
    delays = log.delays()
    shares: NDArray[np.float64] = np.bincount(delays) / len(delays)
    return shares


def in_common(one: Schedule, other: Schedule) -> float:
    """The share of pushes that two logs' histograms of delays have in common, in [0, 1]."""
    longest = max(len(a := delay_shares(one)), len(b := delay_shares(other)))
    both = np.zeros((2, longest))
    both[0, : len(a)], both[1, : len(b)] = a, b
    return float(both.min(axis=0).sum())


def whole_ticks(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def by_worker(axes: Axes, log: Schedule) -> None:
    """Each worker's mean delay, a line up to its 95th percentile; bars: how many pushes it made."""
    table = delay_table(log).iloc[:-1]
    at = np.arange(len(table))
    counts = axes.twinx()
    counts.bar(at, table["pushes"], width=0.8, color=GREY, alpha=0.25, linewidth=0)
    counts.set_ylabel("pushes (bars)")
    for both in (axes, counts):
        both.spines["top"].set_visible(False)
    axes.vlines(at, table["mean"], table["p95"], color=BLUE, linewidth=1.5)
    axes.plot(at, table["mean"], "o", color=BLUE, markersize=5)
    axes.set_zorder(counts.get_zorder() + 1)  # dots before bars
    axes.patch.set_visible(False)
    axes.set_ylim(0, 1.1 * max(1.0, float(table["p95"].max())))
    whole_ticks(axes.xaxis)
    axes.set(xlabel="worker", ylabel="delay (dots: mean; lines: to 95 %)")


def gantt(axes: Axes, log: Schedule, applied: Sequence[bool] | None = None) -> None:
    """Who computes and who waits in the first rounds, a row for each of the first 16 workers.

    A dot is a push, with its delay beside it. ``applied``: whether the server moved at each push;
    an open dot is a gradient that it kept or ignored. None: that is not known.
    """
    shown = min(log.workers, SHOWN)
    part = first(min(log.pushes, ROUNDS * log.workers), log)
    for does, colour in COLOURS.items():
        of = [s for s in spans(part) if s.does == does and s.worker < shown]
        for k, span in enumerate(of):
            axes.barh(span.worker, span.end_s - span.start_s, left=span.start_s, height=0.62,
                      color=colour, alpha=0.45, linewidth=0.6, edgecolor="white",
                      label=does if not k else None)  # fmt: skip
    pushed = part.kind == PUSH
    clocks, workers, delays = part.clock[pushed], part.worker[pushed], part.delays()
    moved = np.ones(len(clocks), bool) if applied is None else np.asarray(applied)[: len(clocks)]
    words = "push" if applied is None else "push, applied"
    for which, face, label in ((moved, "black", words), (~moved, "white", "push, kept or ignored")):
        which = which & (workers < shown)
        if which.any():
            axes.plot(clocks[which], workers[which], "o", color="black", markerfacecolor=face,
                      markersize=4, label=label)  # fmt: skip
    if len(clocks) <= NUMBERED:
        for clock, m, delay in zip(clocks, workers, delays, strict=True):
            axes.annotate(f"{delay}", (clock, m), xytext=(-4, 3), textcoords="offset points",
                          ha="right", fontsize=7)  # fmt: skip
    axes.set_ylim(shown - 0.4, -0.6)
    whole_ticks(axes.yaxis)
    few = f" (the first {shown} of {log.workers:,})" if shown < log.workers else ""
    numbers = "; numbers: delays" if len(clocks) <= NUMBERED else ""
    axes.set(xlabel=f"simulated seconds, the first {part.pushes} pushes{numbers}")
    axes.set_ylabel(f"worker{few}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
