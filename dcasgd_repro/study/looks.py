"""How a rule looks in tables and figures: its label, colour, dashes and marker. No torch.

A rule of one's own has the label that its class gives (``label``, else its name). Its colour and
dashes follow from its name, so that it looks alike in every figure; of two rules that would look
alike in one figure, the later name moves on to what is free. The paper's rules keep theirs always.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dcasgd_repro.run.read import Run

Dashes = str | tuple[float, Sequence[float]]  # as matplotlib takes them


class Look(NamedTuple):
    """Of a rule, or of one line."""

    label: str
    colour: str
    dashes: Dashes = "-"
    marker: str = "o"


# Okabe and Ito's colours, which the colour-blind can tell apart; the paper's rules have five.
PAPERS = {
    "sgd": Look("SGD", "#000000", "-", "s"),
    "asgd": Look("ASGD", "#D55E00", "--", "v"),
    "ssgd": Look("SSGD", "#E69F00", "-.", "D"),
    "dcasgd_c": Look("DC-ASGD-c", "#009E73", ":", "^"),
    "dcasgd_a": Look("DC-ASGD-a", "#0072B2", "-", "o"),
}
NO_RUN = Look("", "#CC79A7")
FREE = ("#CC79A7", "#56B4E9", "#999933", "#882255", "#332288")  # what no rule of the paper has
MARKERS = ("P", "X", "p", "h", "<", ">", "*")
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
SWEEP = ("#CC79A7", "#56B4E9", "#999933", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#000000")


def looks(runs: Sequence[Run]) -> dict[str, Look]:
    """The look of each rule of these runs, by ``Run.kind``."""
    labels = {run.kind: label_of(run) for run in runs}
    found = {kind: look for kind, look in PAPERS.items() if kind in labels}
    places = [(colour, dashes) for dashes in DASHES for colour in FREE]
    taken: set[int] = set()
    for kind in sorted(labels.keys() - PAPERS.keys()):
        start = zlib.crc32(kind.encode())
        order = [(start + step) % len(places) for step in range(len(places))]
        place = next((p for p in order if p not in taken), order[0])
        taken.add(place)
        found[kind] = Look(labels[kind], *places[place], MARKERS[place % len(MARKERS)])
    return found


def label_of(run: Run) -> str:
    """The name of a run's rule as tables and legends have it."""
    known = PAPERS.get(run.kind)
    return known.label if known else str(run.summary.get("rule_label") or run.kind)


def separated(lines: Mapping[str, Look]) -> dict[str, Look]:
    """The look of each line of a plot, by the line's name, which is its label where two have one.

    Lines of one rule differ in their dashes; where all lines are of one rule, in their colours.
    """
    found = {}
    for name, look in lines.items():
        alike = [other for other, theirs in lines.items() if theirs == look]
        if len(alike) > 1:
            k = alike.index(name)
            if len(alike) == len(lines):
                look = look._replace(colour=SWEEP[k % len(SWEEP)], dashes="-")
            else:
                others = [look.dashes, *(dashes for dashes in DASHES if dashes != look.dashes)]
                look = look._replace(dashes=others[k % len(others)])
        if sum(theirs.label == look.label for theirs in lines.values()) > 1:
            look = look._replace(label=name)
        found[name] = look
    return found
